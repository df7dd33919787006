"""Block mask of a grid -> how many boxes of each class, how many pairs: axis by axis.

Extents are known, so tiles are classified over existing pairs already, and the number of pairs of
a product is the product of those along its axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Counts
from attnc.compiler.ir.gridmask import BoxTiling, GridMask, GridPiece
from attnc.compiler.passes.classify_grid import classify_grid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_PAIRS = 1 << 22
"""Pairs that are evaluated at once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rows of a piece visit: tiles, and pairs that exist. Over all heads."""

    tiles: int
    pairs: int


def count_grid(mask: GridMask) -> Counts:
    """Count boxes by class and pairs, exactly.

    Units: tiles over all heads of the mask; pairs are tokens.
    Memory in proportion to the query tiles; with pairs kept, to the queries.
    """
    tiles_q, tiles_k = mask.tiles()
    full = partial = computed = 0
    for piece in mask.pieces:
        one = seen(mask, piece)
        computed += one.pairs
        full += one.tiles if piece.full else 0
        partial += 0 if piece.full else one.tiles
    heads = mask.pattern.heads or 1
    return Counts(
        full=full, partial=partial, empty=heads * tiles_q * tiles_k - full - partial,
        visited=full + partial, masked=partial, pairs_kept=pairs_kept(mask),
        pairs_computed=computed,
    )


def seen(mask: GridMask, piece: GridPiece) -> Seen:
    """Count the tiles and the pairs of a piece: a product along the axes in each row."""
    import numpy as np

    queries, keys = mask.queries[piece.queries], mask.keys[piece.keys]
    shape = (mask.pattern.heads or 1, *queries.grid)
    tiles: Any = np.ones((1,) * len(shape), dtype=np.int64)
    pairs: Any = tiles
    for axis, row in enumerate(mask.rows(piece)):
        number = np.asarray(row.count)
        side, extent = keys.box[axis], keys.extents[axis]
        last = keys.grid[axis] - 1
        short = side - (extent - last * side)
        there = number * side - short * row.visits(last)
        at = np.arange(queries.grid[axis], dtype=np.int64)
        rows = np.minimum(queries.extents[axis] - at * queries.box[axis], queries.box[axis])
        rows = rows.reshape([-1 if i == axis + 1 else 1 for i in range(len(shape))])
        tiles = tiles * number
        pairs = pairs * (there * rows)
    return Seen(*(int(np.broadcast_to(part, shape).sum()) for part in (tiles, pairs)))


def tiles_of_rows(mask: GridMask) -> NDArray[np.int64]:
    """Return how many tiles each row visits. Shape: ``[heads or 1, NQ]``."""
    import numpy as np

    found = np.zeros((mask.pattern.heads or 1, mask.tiles()[0]), dtype=np.int64)
    for piece in mask.pieces:
        queries = mask.queries[piece.queries]
        shape = (len(found), *queries.grid)
        tiles: Any = np.ones((1,) * len(shape), dtype=np.int64)
        for row in mask.rows(piece):
            tiles = tiles * row.count
        own = np.broadcast_to(tiles, shape).reshape(len(found), -1)
        found[:, queries.first_tile : queries.first_tile + own.shape[1]] += own
    return found


def pairs_kept(mask: GridMask) -> int:
    """Return how many pairs the pattern keeps, over all heads of the mask."""
    by_token = classify_grid(mask.pattern, BoxTiling(*((1,) * mask.rank,) * 2))
    pieces = by_token.pieces
    if all(piece.full for piece in pieces):
        return sum(seen(by_token, piece).pairs for piece in pieces)
    return sum(_kept(mask, piece) for piece in mask.pieces)


def _kept(mask: GridMask, piece: GridPiece) -> int:
    """Count the pairs that a piece keeps, tile by tile, a bounded chunk at a time."""
    import numpy as np

    if piece.full:
        return seen(mask, piece).pairs
    queries, keys = mask.queries[piece.queries], mask.keys[piece.keys]
    shape = (mask.pattern.heads or 1, *queries.grid)
    rows = mask.rows(piece)
    total = 0
    for at in np.ndindex(shape):
        columns = []
        for axis, row in enumerate(rows):
            base, count = (int(np.broadcast_to(b, shape)[at]) for b in (row.base, row.count))
            index = np.arange(count, dtype=np.int64)
            tiles = base + row.period * (index // row.run) + index % row.run
            columns.append(_positions(tiles, keys.box[axis], keys.extents[axis]))
        lines = [
            _positions(np.array([tile]), queries.box[axis], queries.extents[axis])
            for axis, tile in enumerate(at[1:])
        ]
        total += _pairs_in(piece.residual, at[0], lines, columns)
    return total


def _pairs_in(
    check: ex.BoolExpr, head: int, lines: list[NDArray[np.int64]], columns: list[NDArray[np.int64]]
) -> int:
    """Count the pairs of two boxes of positions that satisfy a check."""
    import numpy as np

    each = math.prod(map(len, lines)) * math.prod(map(len, columns[1:]))
    if not each or not len(columns[0]):
        return 0
    rank = len(lines)
    step = max(1, CHUNK_PAIRS // each)
    total = 0
    for start in range(0, len(columns[0]), step):
        chunk = [columns[0][start : start + step], *columns[1:]]
        places = [*lines, *chunk]
        names = [f"{side}_{axis}" for side in "qk" for axis in range(rank)]
        values: dict[str, Any] = {
            name: part.reshape([-1 if i == at else 1 for i in range(2 * rank)])
            for at, (name, part) in enumerate(zip(names, places, strict=True))
        }
        kept = np.asarray(ex.evaluate(check, values | {"h": head}), dtype=bool)
        total += int(np.broadcast_to(kept, [len(part) for part in places]).sum())
    return total


def _positions(tiles: NDArray[np.int64], side: int, extent: int) -> NDArray[np.int64]:
    """Return the existing positions of an axis in some of its tiles."""
    import numpy as np

    found = (tiles[:, None] * side + np.arange(side)).reshape(-1)
    return found[found < extent]


