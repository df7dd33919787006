"""``attnc emit``: pattern -> the text of one stage of its compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from attnc.cli.options import (
    TARGET_NAMES,
    Shape,
    heads_option,
    json_option,
    pattern_options,
    plan_options,
    shape_option,
)

if TYPE_CHECKING:
    from attnc.compiler.ir.blockmask import BlockMask
    from attnc.compiler.ir.plan import Plan

STAGES = ("ast", "pattern", "blocks", "plan", "triton", "ptx", "sass")


@click.command(
    epilog="Examples: `attnc emit longformer --stage blocks --shape n=65536`, "
    "`attnc emit p.attn --stage triton > kernel.py`, "
    "`attnc emit p.attn --stage sass --target sm_90 --head-dim 128`.",
)
@pattern_options
@click.option("--stage", type=click.Choice(STAGES), default="blocks", show_default=True,
              help="Which stage to print.")
@click.option("--target", type=click.Choice((*TARGET_NAMES, "cpu")), default="sm_90",
              show_default=True, help="Machine to generate for.")
@plan_options
@heads_option
@shape_option("With --stage blocks: also count tiles and pairs at these lengths.")
@click.option("--explain", is_flag=True, help="Print on stderr why the plan is as it is.")
@json_option
def command(
    file: str,
    pattern_name: str | None,
    defines: dict[str, str],
    stage: str,
    target: str,
    head_dim: int,
    value_dim: int | None,
    dtype: str,
    tile: object,
    heads: int | None,
    shape: Shape | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Print one stage of the compilation of FILE (a path, or a zoo name) on stdout.

    ast: what was written; pattern: the set algebra, parameters bound; blocks: the tiles, full and
    partial, symbolic in the lengths; plan: the loops and their order; triton: the written module;
    ptx and sass: machine code by ahead-of-time compilation, which needs triton and no GPU.
    """
    from attnc.cli.inputs import check_heads, load_pattern

    if shape is not None and stage != "blocks":
        raise click.UsageError("--shape counts tiles, so it goes with --stage blocks only")
    if explain and stage in ("ast", "pattern"):
        raise click.UsageError(f"--explain tells of the plan, which --stage {stage} does not make")
    if target == "cpu" and stage in ("triton", "ptx", "sass"):
        raise click.UsageError(
            f"--stage {stage} is GPU code; for the CPU executor write the module: `attnc compile`"
        )
    record: dict[str, object]
    if stage == "ast":
        from attnc.cli.tree import file_tree

        text, record = file_tree(file), {}
    else:
        pattern = load_pattern(file, pattern_name, defines)
        check_heads(pattern, heads)
        if stage == "pattern":
            from attnc.compiler.ir.show import show

            text, record = show(pattern), {"pattern": pattern.name}
        else:
            from attnc.cli.planning import plan_for

            plan = plan_for(pattern, head_dim, value_dim, dtype, target, tile)
            if explain:
                for note in plan.notes:
                    click.echo(f"note: {note}", err=True)
            text, record = emit_plan(plan, stage, target, shape)
    if as_json:
        import json

        click.echo(json.dumps({"stage": stage, **record, "text": text}, indent=2))
    else:
        click.echo(text.rstrip("\n"))


def emit_plan(
    plan: Plan, stage: str, target: str, shape: Shape | None
) -> tuple[str, dict[str, object]]:
    """Return the text of a stage from the block mask on, and its facts for JSON."""
    facts: dict[str, object] = {"pattern": plan.pattern.name, "target": target}
    if stage == "blocks":
        from attnc.compiler.ir.show import show

        block_mask = plan.cpu.block_mask if target == "cpu" else plan.forward.block_mask
        facts["tile"] = str(block_mask.tiling)
        if shape is None:
            return show(block_mask), facts
        counted = counts_record(block_mask, shape)
        return f"{show(block_mask).rstrip()}\n\n{counts_text(counted, shape)}", facts | counted
    if stage == "plan":
        from attnc.compiler.ir.show import show

        return show(plan), facts  # one plan holds the GPU kernel and the CPU executor
    if stage == "triton":
        from attnc.codegen.module import emit_module

        return emit_module(plan), facts
    from attnc.cli.planning import artifact_facts, compile_ahead

    artifact = compile_ahead(plan)
    return (artifact.ptx if stage == "ptx" else artifact.sass), facts | artifact_facts(artifact)


def counts_record(block_mask: BlockMask, shape: Shape) -> dict[str, int]:
    """Count tiles and pairs at one shape."""
    import dataclasses

    from attnc.compiler.counts import count

    return dataclasses.asdict(count(block_mask, shape.nq, shape.nk))


def counts_text(counted: dict[str, int], shape: Shape) -> str:
    """Write counts as three lines."""
    total = counted["full"] + counted["partial"] + counted["empty"]
    kept, computed = counted["pairs_kept"], counted["pairs_computed"]
    waste = f", {kept / computed:.1%} of them kept" if computed else ""
    return (
        f"# at {shape}: {total:,} tiles: {counted['full']:,} full, {counted['partial']:,} partial, "
        f"{counted['empty']:,} empty\n"
        f"# a kernel visits {counted['visited']:,} tiles and masks {counted['masked']:,} of them\n"
        f"# pairs kept {kept:,}, computed {computed:,}{waste}"
    )
