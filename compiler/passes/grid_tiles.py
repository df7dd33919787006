"""Pattern on grids + tokens of a tile -> the boxes that visit the fewest pairs.

The shapes that are tried hold as many tokens as the tile that a target does best with, and are as
near to a cube as the extents allow: a window along each axis then touches the fewest of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from attnc.compiler.ir.blockmask import BlockMask, Tiling
from attnc.compiler.ir.gridmask import BoxTiling, GridMask, Part, parts, rank_of
from attnc.compiler.ir.pattern import Pattern, Space
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.eliminate import eliminate

MAX_CUBES = 2
"""Shapes near to a cube that are tried for each side."""

FULL_COST, MASK_COST = 4, 5
"""What a full tile costs beside one whose pairs are checked."""

MAX_TOKENS = 1 << 24
"""Longest side that is cut into boxes unasked, in tokens: each row of tiles is looked at."""


def choose(pattern: Pattern, tile: Tiling) -> GridMask:
    """Return the block mask whose boxes, of as many tokens as a tile, cost the least.

    Raises: ValueError where the pattern has no boxes.
    """
    if pattern.query_space is None or pattern.key_space is None:
        raise ValueError(f"`{pattern.name}` has no grid to cut into boxes")
    masks = [classify_grid(pattern, boxes) for boxes in _tried(pattern, tile)]
    return min(masks, key=lambda mask: (len(mask.widened), _cost(mask)))


def better(pattern: Pattern, tile: Tiling, flat: BlockMask, *, tested: bool) -> GridMask | None:
    """Return the boxes to take unasked, None: tiles of the flat order serve the pattern as well.

    Boxes need several axes of known extents, and must be exact. They are better where flat tiles
    are ``tested`` at the call, or cost more.
    """
    nq, nk = pattern.lengths
    if rank_of(pattern) < 2 or not nq or not nk or not eliminate(pattern).is_static:
        return None
    if max(nq, nk) > MAX_TOKENS:
        return None
    found: list[GridMask] = []
    for boxes in _tried(pattern, tile):
        mask = classify_grid(pattern, boxes)
        if mask.widened:  # what couples axes couples them in every shape
            return None
        found.append(mask)
    best = min(found, key=_cost)
    return best if tested or _cost(best) < _flat_cost(flat, nq, nk) else None


def _tried(pattern: Pattern, tile: Tiling) -> list[BoxTiling]:
    """Return the shapes that are tried for a tile: the nearest to cubes first."""
    assert pattern.query_space is not None
    assert pattern.key_space is not None
    rank = rank_of(pattern)
    cubes_q, rods_q = shapes(pattern.query_space, tile.q, rank)
    cubes_k, rods_k = shapes(pattern.key_space, tile.k, rank)
    tried = dict.fromkeys([*product(cubes_q, cubes_k), *zip(rods_q, rods_k, strict=True)])
    return [BoxTiling(q, k) for q, k in tried]


def _flat_cost(mask: BlockMask, nq: int, nk: int) -> int:
    """Return what ``_cost`` does for tiles of the flat order."""
    return sum(
        int(mask.rows(piece, nq, nk)[1].sum()) * (FULL_COST if piece.full else MASK_COST)
        for piece in mask.pieces
    )


def _cost(mask: GridMask) -> int:
    """Return how many tiles are visited, over all heads; full ones count a little less."""
    import numpy as np

    total = 0
    for piece in mask.pieces:
        shape = (mask.pattern.heads or 1, *mask.queries[piece.queries].grid)
        number = np.ones((1,) * len(shape), dtype=np.int64)
        for row in mask.rows(piece):
            number = number * row.count
        cost = FULL_COST if piece.full else MASK_COST
        total += int(np.broadcast_to(number, shape).sum()) * cost
    return total


def shapes(
    space: Space, tokens: int, rank: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return boxes that suit the largest segment: near to cubes, and one long along each axis."""
    every = list(_factors(tokens, rank))
    largest = max(parts(space, every[0], rank), key=lambda part: part.tokens)
    cubes = sorted(every, key=lambda box: (_waste(largest, box), sum(box)))
    return cubes[:MAX_CUBES], [_rod(every, largest, axis) for axis in range(rank)]


def _rod(boxes: list[tuple[int, ...]], part: Part, axis: int) -> tuple[int, ...]:
    """Return the box that is longest along an axis, of those that waste the least."""
    return min(boxes, key=lambda box: (_waste(part, box), -box[axis], sum(box)))


def _factors(tokens: int, rank: int) -> Iterator[tuple[int, ...]]:
    """Yield all boxes of so many tokens, a power of two, with powers of two as sides."""
    if rank == 1:
        yield (tokens,)
        return
    for exponent in range(tokens.bit_length()):
        for rest in _factors(tokens >> exponent, rank - 1):
            yield (1 << exponent, *rest)


def _waste(part: Part, box: tuple[int, ...]) -> int:
    """Return by how much boxes are larger than their tokens: powers of the square root of two."""
    grid = (-(-extent // side) for extent, side in zip(part.extents, box, strict=True))
    return round(2 * math.log2(math.prod(grid) * math.prod(box) / max(part.tokens, 1)))
