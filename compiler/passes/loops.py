"""Block-mask IR + a tile -> the loop of one kernel: segments, mask classes, form, row order.

Rows of a pattern are query tiles; rows of a transposed one are its key tiles.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal, TypeVar

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import MAX_LENGTH, DataTiles, LoopPlan, Segment, Target
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes.hull import hull
from attnc.compiler.passes.relations import project
from attnc.compiler.passes.tiles import DType, TileChoice

MAX_SEGMENTS = 8
"""More segments than this cost more in the loop prologue than a table costs in loads."""

MAX_MASKS = 4
"""More mask classes than this become one: the whole predicate."""

Kernel = TypeVar("Kernel", bound=LoopPlan)


def build_loop(
    kind: type[Kernel], block_mask: BlockMask, data: DataTiles | None, choice: TileChoice, *,
    head_dim: int, value_dim: int, dtype: DType, target: Target,
) -> Kernel:
    """Decide how one kernel walks the tiles of its rows.

    Args: ``data`` says how waiting tiles are tested; of ``choice`` warps and stages are taken.
    """
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
    return kind(
        block_mask=block_mask, segments=segments, masks=tuple(masks),
        form="data" if data else "ranges" if len(segments) <= MAX_SEGMENTS else "table",
        row_order=_candidate_order(block_mask) if data
        else row_order(block_mask.pattern, block_mask.tiling),
        head_dim=head_dim, value_dim=value_dim, dtype=dtype, target=target,
        warps=choice.warps, stages=choice.stages, data=data,
    )


def reachable(tiles: Progression, tiling: Tiling) -> bool:
    """Whether a progression can hold a tile at lengths an op takes (2**40 away is out of reach)."""
    rows, keys = MAX_LENGTH // tiling.q + 1, MAX_LENGTH // tiling.k + 1
    ranges = {"qb": (0, rows - 1), "NQ": (1, rows), "NK": (1, keys), "h": (0, None)}
    most = ex.interval(tiles.count, ranges)[1]
    return most is None or most > 0


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
        with sets.budget(share=cl.share_of(pattern)):
            found = project(pattern, tiling)
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
