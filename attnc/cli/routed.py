"""``attnc compile`` and ``attnc run`` of what is chosen by content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from attnc.compiler.loaded import Loaded


def compile_routed(
    loaded: Loaded, output: Path, *, options: dict[str, Any], explain: bool, lint: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write the modules of an attention with routes, or of a sum of attentions, and say where."""
    from attnc.cli.planning import needs_torch

    if lint:
        raise click.UsageError("--lint is for patterns: what routes select has no GPU kernels yet")
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
    if explain:
        for note in notes:
            click.echo(f"note: {note}", err=True)
    if as_json:
        import json

        record = {"pattern": loaded.name, "files": paths, "notes": notes}
        click.echo(json.dumps(record, indent=2))
    else:
        for path in paths:
            click.echo(f"wrote {path}")
