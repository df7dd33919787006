"""Pattern IR -> kernel plan: tile, loop form, masks, row order, each choice with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Tiling
from attnc.compiler.ir.gridmask import BoxTiling, GridMask
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import (
    BackwardPlan,
    CpuDistances,
    CpuPart,
    CpuPlan,
    DistancePart,
    ForwardPlan,
    Plan,
    Target,
    TilePart,
)
from attnc.compiler.passes import cpu_tiles, tiles
from attnc.compiler.passes.bias_fold import Bias, fold_bias
from attnc.compiler.passes.build_backward import build_backward
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.cpu_boxes import MAX_PIECES
from attnc.compiler.passes.cpu_plan import build_cpu
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.grid_plan import on_boxes
from attnc.compiler.passes.grid_tiles import better, choose
from attnc.compiler.passes.kernel_parts import build_parts
from attnc.compiler.passes.loops import MAX_SEGMENTS, build_loop
from attnc.compiler.passes.token_order import Orders


def build_plan(
    pattern: Pattern,
    *,
    head_dim: int,
    value_dim: int | None = None,
    dtype: tiles.DType = "bf16",
    target: Target = "sm_90",
    tile: Tiling | BoxTiling | Literal["boxes"] | None = None,
    cpu_tile: Tiling | None = None,
    orders: Orders = "auto",
    bias: Bias = "auto",
    backward: bool = False,
) -> Plan:
    """Decide everything codegen needs.

    Args: ``tile`` overrides the tile of all kernels (sides in tokens, powers of two from 16 to
    256), and ``cpu_tile`` the executor's. Boxes of a grid are for the GPU's kernels: those given,
    or the best of as many tokens as its tile ("boxes"). Unasked, a kernel takes boxes where they
    are better than tiles of the flat order. ``orders``: the token orders that parts of the pattern
    may take. ``bias``: whether separable terms of a score are folded. ``backward``: plan its
    kernels as well, which about doubles the work of isl.
    Raises: ValueError if a tile side or head dim cannot be served.
    """
    value_dim = head_dim if value_dim is None else value_dim
    choices = tiles.candidates(target, head_dim, value_dim, dtype)
    boxes: GridMask | None = None
    if isinstance(tile, BoxTiling):
        boxes = classify_grid(pattern, tile)
        tile = Tiling(tile.q, tile.k)
    elif tile == "boxes":
        boxes = choose(pattern, choices[0].tiling)
        tile = choices[0].tiling
    if tile is None:
        wide = tiles.padded(value_dim)
        choice = tiles.default(choices, pattern, lambda c: c.q * (c.k + wide))
    else:
        _check_tile(tile)
        choice = tiles.asked(choices, tile, tile.q, target)
    cpu_tiling = cpu_tile or cpu_tiles.choose(pattern)
    _check_tile(cpu_tiling)
    tested = any(tiles_of(pattern, tiling)[1] for tiling in (choice.tiling, cpu_tiling))
    block_mask, data, why = tiles_of(pattern, choice.tiling, tested=tested)
    forward = build_loop(
        ForwardPlan, block_mask, data, choice, head_dim=head_dim, value_dim=value_dim, dtype=dtype,
        target=target,
    )
    if tile is None:
        boxes = better(pattern, choice.tiling, block_mask, tested=data is not None)
    if boxes is None:
        forward = replace(forward, fold=fold_bias(pattern, forward.tiling.q, dtype, bias))
    elif bias == "fold":
        raise ValueError("bias 'fold': kernels on boxes of a grid add biases pair by pair")
    kernel = forward if boxes is None else on_boxes(forward, boxes)
    back = build_backward(kernel, tile) if backward else None
    cpu = build_cpu(
        pattern, cpu_tiling, tested=tested, orders=orders, bias=bias, boxes=cpu_tile is None
        and (kernel.boxes is None or len(kernel.boxes.pieces) <= MAX_PIECES),
    )
    parts = build_parts(pattern, choices if tile is None else (choice,), forward, orders=orders)
    return Plan(
        pattern=pattern, forward=kernel, cpu=cpu,
        backward=back, parts=parts,
        notes=_notes(kernel, tile, why) + _notes_of_keys(back) + _notes_of_parts(
            parts, cpu, asked=isinstance(orders, tuple) and bool(cpu.parts)
        ),
    )


def _check_tile(tile: Tiling) -> None:
    for name, side in (("query", tile.q), ("key", tile.k)):
        if side < 16 or side > 256 or side & (side - 1):
            raise ValueError(
                f"tile {tile}: the {name} side is {side} tokens; use a power of two from 16 to 256"
            )


def _notes(
    forward: ForwardPlan, tile: Tiling | None, why: tuple[str, ...]
) -> tuple[str, ...]:
    mask: BlockMask | GridMask = forward.boxes or forward.block_mask
    reason = "as asked" if tile is not None else f"the best clean tile of {forward.target}"
    if tile is None and forward.boxes is not None:
        reason = f"boxes of as many tokens as {reason}"
    notes = [
        f"tile {mask.tiling}, {forward.warps} warps, {forward.stages} stages: {reason}"
        f" for head dim {forward.head_dim}"
    ]
    if forward.form == "ranges":
        notes.append(f"one loop over {len(forward.segments)} symbolic ranges, no table")
    elif forward.boxes is not None:
        notes.append("boxes of a grid: one table, built on the device once")
    elif forward.form == "table":
        notes.append(
            f"{len(forward.segments)} ranges are more than {MAX_SEGMENTS}: one table, built on the"
            " device once per lengths"
        )
    else:
        assert forward.data is not None
        given = {one.name for one in forward.block_mask.pattern.inputs}
        waits = any(read.name in given for read in ex.reads(forward.data.predicate))
        made = "from the data of the call" if waits else "once per lengths and extents"
        notes.append(f"one table, built on the device {made}")
        notes += why
    notes.append(f"rows are launched {forward.row_order}")
    if forward.fold is not None:
        notes.append(
            "separable terms of the score are added key by key in the forward, for the middle query"
            " of a tile, and what is left once a row; the backward adds them pair by pair"
        )
    notes += [f"widened: {note}" for note in mask.widened]
    return tuple(notes)


def _notes_of_parts(
    parts: tuple[TilePart | DistancePart, ...], cpu: CpuPlan, *, asked: bool
) -> tuple[str, ...]:
    """Say in which token order parts of the pattern are walked, and where what was asked is not."""
    notes = []
    if asked and not parts:
        notes.append("on a GPU the forward keeps the natural order: a part needs a table of tiles")
    for where, found in (("on a GPU the forward", parts), ("on a CPU", cpu.parts)):
        if found:
            said = ", ".join(map(_note_of_part, found))
            count = f"{len(found)} disjoint parts: " if len(found) > 1 else ""
            notes.append(f"{where} walks {count}{said}")
    if cpu.by_distance:
        notes.append("on a CPU score terms are evaluated once for each distance, not for each pair")
    if cpu.channels is not None:
        notes.append(
            f"on a CPU score terms are {len(cpu.channels.of_key)} more channels of q and k in a "
            "forward of float32 or float64; half types and the backward add them pair by pair"
        )
    if cpu.boxes is not None:
        box = "x".join(map(str, cpu.boxes.tiling.query))
        notes.append(f"on a CPU the executor walks boxes of {box} queries, with the keys they need")
    return tuple(notes)


def _note_of_part(part: TilePart | DistancePart | CpuPart | CpuDistances) -> str:
    if isinstance(part, DistancePart | CpuDistances):
        return f"{len(part.distances)} distances one by one"
    if part.modulus == 1:
        return "tokens as they stand"
    return f"classes of tokens {part.modulus} apart"


def _notes_of_keys(backward: BackwardPlan | None) -> tuple[str, ...]:
    """Say where the loops over query tiles visit more than they need."""
    if backward is None:
        return ()
    masks = [loop.boxes or loop.block_mask for loop in backward.of_keys]
    notes = dict.fromkeys(note for mask in masks for note in mask.widened)
    return tuple(f"widened for key tiles: {note}" for note in notes)
