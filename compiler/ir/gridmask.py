"""Block-mask IR of grids: which boxes of keys each box of queries visits, and what is checked.

Where tokens have coordinates, a tile is a box of them. The extents are known, so tiles are
classified over the tokens that exist: a full piece is full for every existing pair of its tiles,
and whoever walks a tile that crosses the end of an axis also checks that its keys exist. Tiles
never cross from one segment of a space to the next.

All segments have the rank of the longest one, those of fewer axes with axes of extent 1 in front.
``q_0``, ``q_1``, ... are the coordinates of a query in its segment, ``qb_0``, ``qb_1``, ... those
of its tile, and the same for keys. Tiles are numbered row-major, segment after segment.

Invariants (``verify`` checks them): no tile lies in two pieces; every kept pair lies in some piece;
inside a piece the residual and the pattern agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression
from attnc.compiler.ir.pattern import Pattern, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BoxTiling:
    """Tiles of a grid: sides in tokens, one for each axis, of a box of queries and one of keys."""

    query: tuple[int, ...]
    key: tuple[int, ...]

    @property
    def q(self) -> int:
        """Queries of a tile."""
        return math.prod(self.query)

    @property
    def k(self) -> int:
        """Keys of a tile."""
        return math.prod(self.key)

    def __str__(self) -> str:
        return ",".join("x".join(map(str, box)) for box in (self.query, self.key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A segment cut into boxes: tokens from ``start`` on, tiles from ``first_tile`` on.

    ``order``: the tokens stand box by box of these sides, as in ``pattern.Grid.tile``.
    """

    start: int
    first_tile: int
    extents: tuple[int, ...]
    box: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return math.prod(self.extents)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many tiles it has along each axis."""
        return tuple(-(-e // side) for e, side in zip(self.extents, self.box, strict=True))

    def coordinates(self) -> NDArray[np.int64]:
        """Return the coordinates of its tokens, as they stand. Shape: ``[rank, tokens]``."""
        import numpy as np

        places = np.arange(self.tokens, dtype=np.int64)
        if self.order is None:
            return np.stack(np.unravel_index(places, self.extents))
        boxes = [e // side for e, side in zip(self.extents, self.order, strict=True)]
        outer = np.stack(np.unravel_index(places // math.prod(self.order), boxes))
        inner = np.stack(np.unravel_index(places % math.prod(self.order), self.order))
        return outer * np.array(self.order)[:, None] + inner  # type: ignore[no-any-return]


def parts(space: Space | None, box: tuple[int, ...], rank: int) -> tuple[Part, ...]:
    """Cut the segments of a space into boxes; those without tokens too.

    A segment of fewer axes than the box has boxes of as many tokens: the last sides as they are,
    the others in one.
    Raises: ValueError where an extent is not known.
    """
    found: list[Part] = []
    start = tile = 0
    for segment in space.segments if space is not None else ():
        extents = [e.value for e in segment.extents if isinstance(e, ex.Const)]
        if len(extents) < len(segment.extents):
            raise ValueError("an extent is known only at the call")
        own = len(extents)
        merged = box[: max(len(box) - own + 1, 0)]
        sides = (math.prod(merged), *box[len(merged) :]) if own <= len(box) else box
        padding = (1,) * (rank - own)
        part = Part(
            start=start, first_tile=tile, extents=(*padding, *extents),
            box=((1,) * (rank - len(sides)) + sides),
            order=None if segment.tile is None else (*padding, *segment.tile),
        )
        found.append(part)
        start, tile = start + part.tokens, tile + math.prod(part.grid)
    return tuple(found)


def rank_of(pattern: Pattern) -> int:
    """Return the most axes that a segment of the pattern has, 0 without spaces."""
    spaces = (s for s in (pattern.query_space, pattern.key_space) if s is not None)
    return max((len(segment.extents) for s in spaces for segment in s.segments), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPiece:
    """A product of progressions of tiles, one for each axis, of two segments (by number).

    Bounds use ``qb_0``, ``qb_1``, ... and ``h``; the residual ``q_0``, ..., ``k_0``, ... and ``h``.
    """

    queries: int
    keys: int
    tiles: tuple[Progression, ...]
    residual: ex.BoolExpr = ex.TRUE

    @property
    def full(self) -> bool:
        """Whether existing pairs of its tiles need no check."""
        return self.residual == ex.TRUE


@dataclass(frozen=True, slots=True)
class AxisRows:
    """The key tiles of an axis for each row. Shape: ``[heads, NQ_0, NQ_1, ...]``, broadcast."""

    base: NDArray[np.int64]
    count: NDArray[np.int64]
    period: int
    run: int

    def visits(self, kb: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """Return whether a row visits the tile ``kb`` of the axis."""
        beyond = kb - self.base
        index = beyond // self.period * self.run + beyond % self.period
        inside = (beyond >= 0) & (beyond % self.period < self.run) & (index < self.count)
        return inside


@dataclass(frozen=True, slots=True, kw_only=True)
class GridMask:
    """A pattern classified for one tiling; ``widened`` says where tiles were added, and why."""

    pattern: Pattern
    tiling: BoxTiling
    pieces: tuple[GridPiece, ...]
    widened: tuple[str, ...] = field(default=())

    @property
    def exact(self) -> bool:
        """Whether every visited tile holds a kept pair, and full tiles are known as full."""
        return not self.widened

    @property
    def rank(self) -> int:
        """How many axes the segments have."""
        return rank_of(self.pattern)

    @property
    def queries(self) -> tuple[Part, ...]:
        """The segments of the queries."""
        return parts(self.pattern.query_space, self.tiling.query, self.rank)

    @property
    def keys(self) -> tuple[Part, ...]:
        """The segments of the keys."""
        return parts(self.pattern.key_space, self.tiling.key, self.rank)

    def tiles(self) -> tuple[int, int]:
        """Return ``(NQ, NK)``."""
        return _tiles(self.queries), _tiles(self.keys)

    def rows(self, piece: GridPiece) -> list[AxisRows]:
        """Evaluate the bounds of a piece for all rows, an item for each axis."""
        import numpy as np

        grid = self.queries[piece.queries].grid
        values: dict[str, NDArray[np.int64]] = {
            f"qb_{axis}": np.arange(side, dtype=np.int64).reshape(
                (1, *(-1 if other == axis else 1 for other in range(len(grid))))
            )
            for axis, side in enumerate(grid)
        }
        heads = self.pattern.heads or 1
        values["h"] = np.arange(heads, dtype=np.int64).reshape((-1, *(1 for _ in grid)))
        found = []
        for tiles in piece.tiles:
            base = np.asarray(ex.evaluate(tiles.base, values), dtype=np.int64)
            count = np.maximum(np.asarray(ex.evaluate(tiles.count, values), dtype=np.int64), 0)
            found.append(AxisRows(base, count, tiles.period, tiles.run))
        return found

    def grid(self) -> NDArray[np.int16]:
        """Which piece visits each tile. Shape: ``[heads or 1, NQ, NK]``; -1: none.

        Memory in proportion to NQ * NK: for tests, pictures and tables of small grids.
        """
        import numpy as np

        heads = self.pattern.heads or 1
        grid = np.full((heads, *self.tiles()), -1, dtype=np.int16)
        for number, piece in enumerate(self.pieces):
            queries, keys = self.queries[piece.queries], self.keys[piece.keys]
            visited = np.ones((), dtype=bool)
            for axis, row in enumerate(self.rows(piece)):
                self._check(row, keys.grid[axis], number)
                tiles = np.arange(keys.grid[axis], dtype=np.int64)
                shape = [-1 if other == axis else 1 for other in range(self.rank)]
                at = AxisRows(_open(row.base, self.rank), _open(row.count, self.rank),
                              row.period, row.run)
                visited = visited & at.visits(tiles.reshape(shape))
            visited = np.broadcast_to(visited, (heads, *queries.grid, *keys.grid))
            here = grid[
                :, queries.first_tile : queries.first_tile + math.prod(queries.grid),
                keys.first_tile : keys.first_tile + math.prod(keys.grid),
            ]  # fmt: skip
            flat = visited.reshape(here.shape)
            if (here[flat] != -1).any():
                raise AssertionError(f"piece {number} repeats a tile: {piece}")
            here[flat] = number
        return grid

    @staticmethod
    def _check(row: AxisRows, side: int, number: int) -> None:
        """Raise AssertionError if a row leaves the grid."""
        import numpy as np

        base, count = np.broadcast_arrays(row.base, row.count)
        last = base + (count - 1) // row.run * row.period + (count - 1) % row.run
        if ((count > 0) & ((base < 0) | (last >= side))).any():
            raise AssertionError(f"piece {number} leaves the grid")

    def dense(self) -> NDArray[np.bool_]:
        """Evaluate to the dense mask. Shape: ``[heads or 1, nq, nk]``. This defines the IR."""
        import numpy as np

        heads = self.pattern.heads or 1
        grid = self.grid()
        queries, keys = self.queries, self.keys
        mask = np.zeros((heads, _tokens(queries), _tokens(keys)), dtype=bool)
        for number, piece in enumerate(self.pieces):
            one, other = queries[piece.queries], keys[piece.keys]
            at_q, at_k = one.coordinates(), other.coordinates()
            values = {"h": np.arange(heads, dtype=np.int64)[:, None, None]}
            values |= {f"q_{a}": at_q[a][None, :, None] for a in range(self.rank)}
            values |= {f"k_{a}": at_k[a][None, None, :] for a in range(self.rank)}
            visited = grid[:, _tile_of(one, at_q)][:, :, _tile_of(other, at_k)] == number
            kept = np.asarray(ex.evaluate(piece.residual, values), dtype=bool)
            here = mask[:, one.start : one.start + one.tokens,
                        other.start : other.start + other.tokens]  # fmt: skip
            here |= visited & kept
        return mask


def existing(extent: int, side: int, tile: int) -> int:
    """Return how many tokens of an axis lie in one of its tiles."""
    return min(extent - tile * side, side)


def pairs_of(mask: GridMask) -> Iterator[tuple[int, int, Part, Part]]:
    """Yield the pairs of segments that have tokens: their numbers and what they are."""
    for i, queries in enumerate(mask.queries):
        for j, keys in enumerate(mask.keys):
            if queries.tokens and keys.tokens:
                yield i, j, queries, keys


def _tile_of(part: Part, coordinates: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    tiles = [coordinates[a] // side for a, side in enumerate(part.box)]
    if not part.tokens:
        return np.zeros(0, dtype=np.int64)
    return part.first_tile + np.ravel_multi_index(tiles, part.grid)  # type: ignore[no-any-return]


def _open(rows: NDArray[np.int64], rank: int) -> NDArray[np.int64]:
    """Add an axis of keys for each axis of queries, at the end."""
    import numpy as np

    rows = np.asarray(rows)
    return rows.reshape((*((1,) * (rank + 1 - rows.ndim)), *rows.shape, *((1,) * rank)))


def _tiles(of: tuple[Part, ...]) -> int:
    return sum(math.prod(part.grid) for part in of)


def _tokens(of: tuple[Part, ...]) -> int:
    return sum(part.tokens for part in of)
