"""``attnc compile`` and ``attnc cost`` of what is chosen by content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from attnc.cli.options import OpenShape
    from attnc.compiler.loaded import Loaded


def compile_routed(
    loaded: Loaded, output: Path, *, options: dict[str, Any], explain: bool, lint: bool,
    as_json: bool,
) -> int | None:  # fmt: skip
    """Write the modules of an attention with routes, or of a sum of attentions, and say where.

    Returns: 1 where ``lint`` found something wrong with the kernels of its routes.
    """
    from attnc.cli.planning import needs_torch

    try:
        from attnc.runtime.combined import CombinedOp, compile_any
        from attnc.runtime.options import options as checked
    except ImportError as missing:
        raise needs_torch(missing) from missing
    try:
        op = compile_any(loaded.routed, checked(**options), folder=output)
    except ValueError as wrong:
        raise CompileError([Diagnostic(code="ATT0405", message=str(wrong))]) from wrong
    ops = op.terms if isinstance(op, CombinedOp) else (op,)
    notes = [note for each in ops for note in each.plan.notes]
    paths = [str(each.path) for each in ops]
    if isinstance(op, CombinedOp):
        paths.append(str(output / f"{op.name}.py"))
    findings = [finding for each in ops for finding in _findings(each.plan)] if lint else []
    if explain:
        for note in notes:
            click.echo(f"note: {note}", err=True)
    if as_json:
        import json

        record = {"pattern": loaded.name, "files": paths, "notes": notes, "lint": findings}
        click.echo(json.dumps(record, indent=2))
    else:
        for path in paths:
            click.echo(f"wrote {path}")
        for finding in findings:
            click.echo(f"lint: {finding}", err=True)
        if lint and not findings:
            click.echo("lint: clean")
    return 1 if findings else None


def _findings(plan: Any) -> tuple[str, ...]:
    """Return what is wrong with the kernels of a plan's routes; those of patterns have --lint."""
    from attnc.codegen.routes.gpu_attend import refuses
    from attnc.compiler.ir.routed_plan import RoutedPlan
    from attnc.runtime.lint_routes import lint_routed

    if not isinstance(plan, RoutedPlan):
        return ()
    why = refuses(plan)
    return (why,) if why else lint_routed(plan)


def cost_routed(
    loaded: Loaded, refused: list[str], shape: OpenShape, samples: dict[str, str],
    share: float | None, *, explain: bool, as_json: bool, options: dict[str, Any],
) -> None:  # fmt: skip
    """Print what it costs; extents of ``shape`` are the lengths of second streams of keys.

    Args: ``samples``: files of selections by route. ``refused``: flags that were given and are for
        patterns.
    """
    from attnc.compiler.cost.predict import end_to_end
    from attnc.compiler.cost.report import assumptions_text
    from attnc.compiler.cost.route_report import explain_text
    from attnc.costs import routed_cost

    if refused:
        raise click.UsageError(f"{refused[0]} is for patterns: of `{loaded.name}`, which is "
                               "decided by content, the forward is predicted")  # fmt: skip
    made = {name: _sample(name, Path(path)) for name, path in samples.items()}
    try:
        found = routed_cost(
            loaded.routed, shape.nq, shape.nk, samples=made, streams=dict(shape.extents), **options
        )
    except ValueError as wrong:
        raise CompileError([Diagnostic(code="ATT0406", message=str(wrong))]) from wrong
    record, texts = found.as_dict(), [str(found), assumptions_text(found)]
    if share is not None:
        whole = end_to_end(found.speedup_over_dense, share)
        record["end_to_end"] = whole
        texts.append(f"whole    {whole:.2f} times as fast, attention being {share:.1%} of it")
    if explain:
        texts.append(explain_text(found))
    if as_json:
        import json

        click.echo(json.dumps(record, indent=2))
    else:
        click.echo("\n".join(texts))


def _sample(name: str, path: Path) -> Any:
    import numpy as np

    from attnc.compiler.cost.route_density import Sample

    try:
        relation = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as wrong:
        raise click.UsageError(f"--sample {name}: {path} is no .npy file: {wrong}") from wrong
    if relation.dtype != bool or relation.ndim < 2:
        raise click.UsageError(
            f"--sample {name}: {path} is {relation.dtype} {list(relation.shape)}, expected bool "
            "[..., query units, key units]"
        )
    return Sample(relation)
