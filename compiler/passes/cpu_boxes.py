"""Pattern on grids -> boxes of queries for the CPU executor, each with the keys that it needs.

A box of keys is one token, so a box of queries visits exactly the union of the keys that its
queries see: what no query of the box needs is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from attnc.compiler import sets
from attnc.compiler.counts_grid import seen
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask
from attnc.compiler.ir.gridmask import BoxTiling, GridMask, Part, parts, rank_of
from attnc.compiler.ir.pattern import Pattern, Space
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.coordinates import axes_of, conjunctions, in_coordinates
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.grid_tiles import MAX_TOKENS, shapes

SIZES = (32, 64)
"""Queries of a box: the flash kernel takes 32 at a time below 192."""

# What the executor spends beside the pairs of its boxes, in pairs: measured on two cores with heads
# of 64 and one thread, from boxes of 32 and 64 queries.
KEY_PAIRS = 8
"""Each key of a box is copied before it is used, and its value."""
ROW_PAIRS = 1024
"""Each box of queries, and each run of key tiles where tiles are flat."""

MAX_PIECES = 20
"""Boxes of more pieces are not walked: each is looked up for every box of queries."""


def build_boxes(pattern: Pattern, flat: BlockMask, *, tested: bool) -> GridMask | None:
    """Return the boxes the executor walks, None: tiles of the flat order serve the pattern as well.

    They need several axes of known extents and what a predicate alone decides, must be exact, and
    cost less than ``flat``, unless its tiles would be ``tested`` at the call.
    """
    nq, nk = pattern.lengths
    if rank_of(pattern) < 2 or not nq or not nk or max(nq, nk) > MAX_TOKENS:
        return None
    if pattern.score is not None or pattern.sink is not None or not eliminate(pattern).is_static:
        return None
    found: list[GridMask] = []
    for box in _tried(pattern):
        mask = classify_grid(pattern, BoxTiling(box, (1,) * rank_of(pattern)))
        if mask.widened or not _apart(mask):  # what couples axes couples them in every shape
            return None
        if len(mask.pieces) > MAX_PIECES:
            break
        found.append(mask)
    if not found:
        return None
    best = min(found, key=_cost)
    return best if tested or _cost(best) < _flat_cost(flat, nq, nk) else None


def _apart(mask: GridMask) -> bool:
    """Whether all checks are alternatives of conditions on one axis each."""
    try:
        for piece in mask.pieces:
            conjunctions(piece.residual, mask.queries[piece.queries], mask.keys[piece.keys])
    except sets.OverBudget:
        return False
    return True


def _tried(pattern: Pattern) -> Iterator[tuple[int, ...]]:
    """Yield shapes of boxes, once each: near to cubes, blocks as written, long along an axis."""
    space, rank = pattern.query_space, rank_of(pattern)
    assert space is not None
    found = [shapes(space, size, rank) for size in SIZES]
    tried = [cubes[0] for cubes, _ in found] + _blocks(pattern, space) + found[-1][1]
    yield from dict.fromkeys(tried)


def _blocks(pattern: Pattern, space: Space) -> list[tuple[int, ...]]:
    """Return the largest box that divides the blocks which the pattern writes by ``div``.

        q.y div 7 == k.y div 7 and q.x div 7 == k.x div 7   -->   7x7
    """
    rank = rank_of(pattern)
    part = max(parts(space, (1,) * rank, rank), key=lambda one: one.tokens)
    sides = [_divisors(side) for side in _written(pattern, part)]
    boxes = [box for box in product(*sides) if math.prod(box) <= SIZES[-1]]
    best = max(boxes, key=lambda box: (math.prod(box), -sum(box)))
    return [best] if math.prod(best) >= SIZES[0] // 2 else []


def _written(pattern: Pattern, part: Part) -> list[int]:
    """Return the side of the blocks along each axis, a power of two where none are written."""
    found = [1 << max(extent.bit_length() - 1, 0) for extent in part.extents]
    if pattern.query_space == pattern.key_space:
        predicate = in_coordinates(eliminate(pattern).predicate, part, part)
        for node in ex.walk(predicate):
            axes = axes_of(node)
            if isinstance(node, ex.FloorDiv) and len(axes) == 1:
                found[min(axes)] = node.divisor
    return found


def _divisors(number: int) -> list[int]:
    return [side for side in range(1, min(number, SIZES[-1]) + 1) if number % side == 0]


def _cost(mask: GridMask) -> int:
    """Return what the executor spends, over all heads, in pairs."""
    found = [seen(mask, piece) for piece in mask.pieces]
    rows = mask.tiles()[0] * (mask.pattern.heads or 1)
    return sum(one.pairs + KEY_PAIRS * one.tiles for one in found) + ROW_PAIRS * rows


def _flat_cost(mask: BlockMask, nq: int, nk: int) -> int:
    """Return what the executor spends on tiles of the flat order."""
    total = 0
    for piece in mask.pieces:
        count, tiles = mask.rows(piece, nq, nk)[1], piece.tiles
        runs = count > 0 if tiles.period == tiles.run else -(-count // tiles.run)
        total += int(count.sum()) * mask.tiling.q * mask.tiling.k + int(runs.sum()) * ROW_PAIRS
    first = mask.tiles_at(nq, nk)[0] * (mask.pattern.heads or 1) * ROW_PAIRS  # without a merge
    return total - min(total, first)
