"""``attnc emit``: pattern -> the text of one stage of its compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from attnc.cli.options import (
    TARGET_NAMES,
    OpenShape,
    Shape,
    data_options,
    heads_option,
    json_option,
    pattern_options,
    plan_options,
)

if TYPE_CHECKING:
    from attnc.compiler.ir.gridmask import BoxTiling
    from attnc.compiler.ir.plan import DataTiles, Plan
    from attnc.compiler.loaded import Loaded

STAGES = ("ast", "pattern", "blocks", "plan", "triton", "ptx", "sass")


@click.command(
    epilog="Examples: `attnc emit longformer --stage blocks --shape n=65536`, "
    "`attnc emit p.attn --stage triton > kernel.py`, "
    "`attnc emit document -I doc_ids=ids.npy`, "
    "`attnc emit p.attn --stage sass --target sm_90 --head-dim 128`.",
)
@pattern_options
@click.option("--stage", type=click.Choice(STAGES), default="blocks", show_default=True,
              help="Which stage to print.")
@click.option("--target", type=click.Choice((*TARGET_NAMES, "cpu")), default="sm_90",
              show_default=True, help="Machine to generate for.")
@plan_options
@heads_option
@data_options
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
    align: str,
    orders: object,
    bias: str | None,
    heads: int | None,
    inputs: dict[str, object],
    shape: OpenShape | None,
    layer: int | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Print one stage of the compilation of FILE (a path, or a zoo name) on stdout.

    ast: what was written; pattern: the set algebra, parameters bound; blocks: the tiles, full and
    partial, symbolic in the lengths; plan: the loops and their order; triton: the written module;
    ptx and sass: machine code by ahead-of-time compilation, which needs triton and no GPU.
    With lengths (--shape) or inputs (-I), the blocks are counted as well.
    """
    from attnc.cli.inputs import align_pattern, check_heads, load_any
    from attnc.cli.terminal import show_diagnostics
    from attnc.compiler.ir.gridmask import BoxTiling

    counted = shape is not None or bool(inputs)
    if counted and stage != "blocks":
        flag = "-I" if shape is None else "--shape"
        raise click.UsageError(f"{flag} counts tiles, so it goes with --stage blocks only")
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
        loaded = load_any(file, pattern_name, {**defines, **inputs})
        loaded = loaded if layer is None else loaded.at_layer(layer)
        pattern = align_pattern(loaded.ir, align)
        show_diagnostics(pattern.warnings)
        check_heads(pattern, heads)
        if stage == "pattern":
            from attnc.compiler.ir.show import show

            text, record = show(pattern), {"pattern": pattern.name}
        elif stage == "blocks" and isinstance(tile, BoxTiling):
            text, record = emit_boxes(loaded, tile, shape or OpenShape())
        else:
            from attnc.cli.planning import choices, plan_for

            plan = plan_for(
                pattern, head_dim, value_dim, dtype, target, backward=stage == "plan",
                **choices(loaded, tile, orders, bias, on_cpu=target == "cpu"),
            )
            if explain:
                for note in plan.notes:
                    click.echo(f"note: {note}", err=True)
            at = (loaded, shape or OpenShape()) if counted else None
            boxes = (plan.cpu if target == "cpu" else plan.forward).boxes
            if stage == "blocks" and boxes is not None:
                text, record = emit_boxes(loaded, boxes.tiling, shape or OpenShape())
            else:
                text, record = emit_plan(plan, stage, target, at)
    if as_json:
        import json

        click.echo(json.dumps({"stage": stage, **record, "text": text}, indent=2))
    else:
        click.echo(text.rstrip("\n"))


def emit_plan(
    plan: Plan, stage: str, target: str, at: tuple[Loaded, OpenShape] | None
) -> tuple[str, dict[str, object]]:
    """Return the text of a stage from the block mask on, and its facts for JSON.

    ``at``: count the blocks at these lengths, with the inputs that were loaded.
    """
    facts: dict[str, object] = {"pattern": plan.pattern.name, "target": target}
    if stage == "blocks":
        return emit_blocks(plan, target, at, facts)
    if stage == "plan":
        from attnc.compiler.ir.show import show

        return show(plan), facts  # one plan holds the GPU kernels and the CPU executor
    if stage == "triton":
        from attnc.codegen.module import emit_module

        return emit_module(plan), facts
    from attnc.cli.planning import artifact_facts, compile_ahead

    artifact = compile_ahead(plan)
    return (artifact.ptx if stage == "ptx" else artifact.sass), facts | artifact_facts(artifact)


def emit_blocks(
    plan: Plan, target: str, at: tuple[Loaded, OpenShape] | None, facts: dict[str, object]
) -> tuple[str, dict[str, object]]:
    """Return the text of the block mask, how its tiles are tested, and their counts."""
    from attnc.compiler.ir.show import show

    part = plan.cpu if target == "cpu" else plan.forward
    facts["tile"] = str(part.tiling)
    parts = part_texts(plan, target)
    texts = parts or [show(part.block_mask).rstrip()]
    if part.data is not None:
        texts.append(tests_text(part.data))
    if at is not None:
        import dataclasses

        from attnc.compiler.counts import count_cpu, count_forward

        loaded, shape = at
        nq, nk, given = loaded.data(shape.nq, shape.nk, extents=dict(shape.extents))
        counted = dataclasses.asdict(
            count_cpu(plan.cpu, nq, nk, given) if target == "cpu"
            else count_forward(plan, nq, nk, given)
        )
        texts.append(counts_text(counted, Shape(nq, nk)))
        facts |= counted
    return "\n\n".join(texts), facts


def part_texts(plan: Plan, target: str) -> list[str]:
    """Return the block mask of each part, or its distances; empty: the pattern is in one piece."""
    from attnc.compiler.ir.plan import CpuDistances, DistancePart, TilePart
    from attnc.compiler.ir.show import show

    texts = []
    found = plan.cpu.parts if target == "cpu" else plan.parts
    for part in found:
        if isinstance(part, DistancePart | CpuDistances):
            texts.append("distances " + " ".join(map(str, part.distances)))
        else:
            mask = part.loop.block_mask if isinstance(part, TilePart) else part.block_mask
            texts.append(f"in classes of {part.modulus}\n{show(mask).rstrip()}")
    return texts


def emit_boxes(
    loaded: Loaded, tile: BoxTiling, shape: OpenShape
) -> tuple[str, dict[str, object]]:
    """Return the boxes of a pattern on grids with their counts, and the same as facts for JSON."""
    import dataclasses

    from attnc.compiler.counts_grid import count_grid
    from attnc.compiler.ir.show import show
    from attnc.compiler.passes.classify_grid import classify_grid
    from attnc.dsl.diagnostics import CompileError, Diagnostic

    try:
        mask = classify_grid(loaded.ir, tile)
    except ValueError as wrong:
        raise CompileError([Diagnostic(code="ATT0405", message=str(wrong))]) from wrong
    nq, nk, _ = loaded.data(shape.nq, shape.nk, extents=dict(shape.extents))
    counted = dataclasses.asdict(count_grid(mask))
    facts: dict[str, object] = {"pattern": loaded.name, "tile": str(tile), **counted}
    return f"{show(mask)}\n\n{counts_text(counted, Shape(nq, nk))}", facts


def tests_text(data: DataTiles) -> str:
    """Say how partial tiles are told apart at the call."""
    from attnc.compiler.ir import expr as ex
    from attnc.compiler.passes.sides import KEY, QUERY, split

    sides = split(data.predicate)
    lines = ["# partial tiles are tested at the call, by the least and greatest value in a tile of"]
    for start, terms in ((QUERY, sides.query), (KEY, sides.key)):
        lines += [f"#   {start}{i} = {ex.show(term)}" for i, term in enumerate(terms)]
    lines.append(f"# for {ex.show(sides.test)}")
    left = "evaluated pair by pair" if data.refine else "masked"
    return "\n".join([*lines, f"# what that leaves open is {left}"])


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
