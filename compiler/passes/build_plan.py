"""Pattern IR -> kernel plan: tile, loop form, masks, row order, each choice with its reason."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import (
    MAX_LENGTH,
    CpuPlan,
    DataTiles,
    ForwardPlan,
    Plan,
    Segment,
    Target,
)
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes import cpu_tiles, tiles
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.hull import hull
from attnc.compiler.passes.strips import strips

MAX_SEGMENTS = 8
"""More segments than this cost more in the loop prologue than a table costs in loads."""

MAX_MASKS = 4
"""More mask classes than this become one: the whole predicate."""


def build_plan(
    pattern: Pattern,
    *,
    head_dim: int,
    value_dim: int | None = None,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    target: Target = "sm_90",
    tile: Tiling | None = None,
    cpu_tile: Tiling | None = None,
) -> Plan:
    """Decide everything codegen needs.

    Args: ``tile`` overrides the forward tile (sides in tokens, powers of two from 16 to 256), and
    ``cpu_tile`` the executor's.
    Raises: ValueError if a tile side or head dim cannot be served.
    """
    value_dim = head_dim if value_dim is None else value_dim
    choices = tiles.candidates(target, head_dim, value_dim, dtype)
    choice = tiles.default(choices, pattern, value_dim)
    if tile is not None:
        _check_tile(tile)
        same = [c for c in choices if c.tiling == tile]
        choice = same[0] if same else tiles.TileChoice(
            q=tile.q, k=tile.k, warps=8 if tile.q >= 128 and target != "gfx942" else 4,
            stages=min(c.stages for c in choices),
        )
    cpu_tiling = cpu_tile or cpu_tiles.choose(pattern)
    _check_tile(cpu_tiling)
    tested = any(tiles_of(pattern, tiling)[1] for tiling in (choice.tiling, cpu_tiling))
    block_mask, data, why = tiles_of(pattern, choice.tiling, tested=tested)
    forward = _forward(
        block_mask, data, choice, head_dim=head_dim, value_dim=value_dim, dtype=dtype,
        target=target,
    )
    return Plan(
        pattern=pattern, forward=forward, cpu=_cpu(pattern, cpu_tiling, tested=tested),
        notes=_notes(forward, tile, why),
    )


def _cpu(pattern: Pattern, tiling: Tiling, *, tested: bool) -> CpuPlan:
    """Plan the executor: strips, or the tiles to gather where data or score terms decide."""
    mask, data, _ = tiles_of(pattern, tiling, tested=tested)
    if data is None and pattern.score is None and pattern.sink is None:
        found = tuple(s for s in strips(pattern, tiling) if reachable(s.tiles, tiling))
        return CpuPlan(block_mask=mask, strips=found)
    segments = tuple(
        Segment(tiles=piece.tiles, mask=0 if piece.full else 1)
        for piece in mask.pieces
        if reachable(piece.tiles, tiling)
    )
    return CpuPlan(block_mask=mask, strips=(), segments=segments, data=data)


def reachable(tiles: Progression, tiling: Tiling) -> bool:
    """Whether a progression can hold a tile at lengths an op takes (2**40 away is out of reach)."""
    rows, keys = MAX_LENGTH // tiling.q + 1, MAX_LENGTH // tiling.k + 1
    ranges = {"qb": (0, rows - 1), "NQ": (1, rows), "NK": (1, keys), "h": (0, None)}
    most = ex.interval(tiles.count, ranges)[1]
    return most is None or most > 0


def _check_tile(tile: Tiling) -> None:
    for name, side in (("query", tile.q), ("key", tile.k)):
        if side < 16 or side > 256 or side & (side - 1):
            raise ValueError(
                f"tile {tile}: the {name} side is {side} tokens; use a power of two from 16 to 256"
            )


def _forward(
    block_mask: BlockMask, data: DataTiles | None, choice: tiles.TileChoice, *, head_dim: int,
    value_dim: int, dtype: Literal["bf16", "fp16", "fp32"], target: Target,
) -> ForwardPlan:
    masks = list(dict.fromkeys(p.residual for p in block_mask.pieces if not p.full))
    if len(masks) > MAX_MASKS:
        masks = [block_mask.pattern.predicate]
    segments = tuple(
        Segment(
            tiles=piece.tiles,
            mask=0 if piece.full else 1 if len(masks) == 1 else masks.index(piece.residual) + 1,
        )
        for piece in block_mask.pieces
        if reachable(piece.tiles, block_mask.tiling)
    )
    return ForwardPlan(
        block_mask=block_mask, segments=segments, masks=tuple(masks),
        form="data" if data else "ranges" if len(segments) <= MAX_SEGMENTS else "table",
        row_order=_candidate_order(block_mask) if data
        else row_order(block_mask.pattern, block_mask.tiling),
        head_dim=head_dim, value_dim=value_dim, dtype=dtype, target=target,
        warps=choice.warps, stages=choice.stages, data=data,
    )


def _candidate_order(mask: BlockMask) -> Literal["forward", "reversed"]:
    """Return the order in which rows of candidates are heavy first; rows of data are not sorted."""
    outer = replace(mask.pattern, body=Where(hull(mask.pattern.predicate)))
    return "reversed" if row_order(outer, mask.tiling) == "reversed" else "forward"


@lru_cache(maxsize=256)
def row_order(pattern: Pattern, tiling: Tiling) -> Literal["forward", "reversed", "sorted"]:
    """Return how rows should be launched so that heavy ones come first.

    "reversed" where isl proves, for ``nq == nk``, that a row has at least the tiles of the row
    above it, in place or moved along the diagonal; "forward" for the opposite; else "sorted", also
    where the block mask is widened twice: isl had trouble enough.
    """
    if pattern.predicate == ex.FALSE:
        return "forward"
    if len(cl.classify(pattern, tiling).widened) > 1:
        return "sorted"
    try:
        with sets.budget():
            found = cl.project(pattern, tiling)
            visited = found.nonempty.intersect_params(cl.lengths(found.context))
            if tiling.q * 64 % tiling.k:
                return "sorted"
            for order, rows in (("reversed", 1), ("forward", -1)):
                for tiles_down in {0, rows * tiling.q // tiling.k}:
                    move = sets.read_map(
                        f"{{ [[qb] -> [kb]] -> [[qb + {rows}] -> [kb + {tiles_down}]] }}"
                    )
                    inner = _square(visited, tiling)
                    moved = inner.wrap().apply(move)
                    rows_there = inner.domain()
                    landed = moved.unwrap().intersect_domain(rows_there)
                    if sets.within(landed, inner):
                        return order  # type: ignore[return-value]
    except sets.OverBudget:
        pass
    return "sorted"


def _square(visited: isl.Map, tiling: Tiling) -> isl.Map:
    """Restrict rows to those of self-attention: query tiles that start before the last key."""
    return visited.intersect(
        sets.read_map(
            f"[NK] -> {{ [qb] -> [kb] : 0 <= {tiling.q} * qb < {tiling.k} * NK }}"
        ).align_params(visited.get_space())
    )


def _notes(
    forward: ForwardPlan, tile: Tiling | None, why: tuple[str, ...]
) -> tuple[str, ...]:
    mask = forward.block_mask
    reason = "as asked" if tile is not None else f"the best clean tile of {forward.target}"
    notes = [
        f"tile {mask.tiling}, {forward.warps} warps, {forward.stages} stages: {reason}"
        f" for head dim {forward.head_dim}"
    ]
    if forward.form == "ranges":
        notes.append(f"one loop over {len(forward.segments)} symbolic ranges, no table")
    elif forward.form == "table":
        notes.append(
            f"{len(forward.segments)} ranges are more than {MAX_SEGMENTS}: one table, built on the"
            " device once per lengths"
        )
    else:
        notes.append("one table, built on the device from the data of the call")
        notes += why
    notes.append(f"rows are launched {forward.row_order}")
    notes += [f"widened: {note}" for note in mask.widened]
    return tuple(notes)
