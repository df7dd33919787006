"""``attnc compile``: pattern -> one written Python module with its kernels."""

from __future__ import annotations

from pathlib import Path

import click

from attnc.cli import EXIT_INPUT
from attnc.cli.options import (
    TARGET_NAMES,
    heads_option,
    json_option,
    layer_option,
    pattern_options,
    plan_options,
)


@click.command(
    epilog="Examples: `attnc compile longformer.attn --head-dim 128`, "
    "`attnc compile longformer -D w=256 -o my_ops --lint`. "
    "Then, in Python: `from attn_ops.longformer import longformer`.",
)
@pattern_options
@click.option("--target", type=click.Choice(TARGET_NAMES), default="sm_90", show_default=True,
              help="GPU the kernel is for; every written module also runs on a CPU.")
@plan_options
@heads_option
@layer_option
@click.option("-o", "--output", default="attn_ops", show_default=True, metavar="FOLDER",
              type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--lint", is_flag=True,
              help="Also compile the kernels, forward and backward, ahead of time (no GPU needed) "
              "and check for spills, shared memory over the limit and serialised tensor-core "
              "instructions; without --tile, each steps down to its first tile that has none.")
@click.option("--explain", is_flag=True, help="Print on stderr why the plan is as it is.")
@json_option
def command(
    file: str,
    pattern_name: str | None,
    defines: dict[str, str],
    target: str,
    head_dim: int,
    value_dim: int | None,
    dtype: str,
    tile: object,
    align: str,
    orders: object,
    bias: str | None,
    heads: int | None,
    layer: int | None,
    output: Path,
    lint: bool,
    explain: bool,
    as_json: bool,
) -> int | None:
    """Write FILE (a path, or a zoo name) as a Python module that needs only torch and triton."""
    from attnc.cli.inputs import align_pattern, check_heads, load_any, load_pattern
    from attnc.cli.planning import (
        artifact_facts,
        backward_findings,
        choices,
        clean_tile,
        compile_ahead,
        needs_torch,
        plan_for,
        with_clean_backward,
    )

    chosen = {} if layer is None else {"layer": layer}
    loaded = load_any(file, pattern_name, {**defines, **chosen})
    if loaded.is_routed:
        from attnc.cli.routed import compile_routed

        return compile_routed(
            loaded, output, as_json=as_json, explain=explain, lint=lint,
            options={
                "head_dim": head_dim, "value_dim": value_dim, "dtype": dtype, "target": target,
                "tile": tile, "cpu_tile": None, "align": align, "orders": orders or "auto",
                "bias": bias or "auto",
            },
        )  # fmt: skip
    pattern = align_pattern(load_pattern(file, pattern_name, {**defines, **chosen}), align)
    check_heads(pattern, heads)
    chosen_by = choices(loaded, tile, orders, bias)
    tile = chosen_by.pop("tile")
    dropped: tuple[str, ...] = ()
    picked = tile is None
    if lint and picked:
        tile, dropped = clean_tile(pattern, head_dim, value_dim, dtype, target)
    plan = plan_for(
        pattern, head_dim, value_dim, dtype, target, tile, **chosen_by, backward=True
    )
    if lint and picked:
        plan, more = with_clean_backward(plan)
        dropped += more
    try:
        from attnc.runtime.build import write_module
    except ImportError as missing:
        raise needs_torch(missing) from missing
    path = write_module(plan, output)
    findings: tuple[str, ...] = ()
    facts: dict[str, object] = {}
    if lint:
        from attnc.runtime.lint import lint as lint_artifact

        artifact = compile_ahead(plan)
        findings, facts = lint_artifact(artifact, plan.forward.target), artifact_facts(artifact)
        findings += () if picked else backward_findings(plan)
    if explain:
        for note in (*dropped, *plan.notes):
            click.echo(f"note: {note}", err=True)
    if as_json:
        import json

        record: dict[str, object] = {
            "pattern": pattern.name, "file": str(path), "target": target,
            "tile": str((plan.forward.boxes or plan.forward.block_mask).tiling),
            "notes": [*dropped, *plan.notes],
        }
        if lint:
            record |= {"lint": list(findings), **facts}
        click.echo(json.dumps(record, indent=2))
    else:
        click.echo(f"wrote {path}")
        if lint:
            shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
            click.echo(f"{target}: {shown}")
            for finding in findings:
                click.echo(f"lint: {finding}", err=True)
            if not findings:
                click.echo("lint: clean")
    return EXIT_INPUT if findings else None
