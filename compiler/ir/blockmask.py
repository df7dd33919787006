"""Block-mask IR: which key tiles each query tile visits, and what is checked inside them.

A block mask belongs to one tiling. Its pieces are pairwise disjoint progressions of key tiles,
symbolic in the query tile ``qb``, the head ``h`` and the lengths (``nq``, ``nk``; in tiles ``NQ =
ceil(nq / tile.q)``, ``NK = ceil(nk / tile.k)``), so one object serves every length.

The classification is made on the *padded grid*: a full piece is full for every position of its
tiles, existing or not, and whoever walks a tile that crosses the end of the keys also checks
``k < nk``. Invariants (``verify`` checks them): bounds of a piece use tile-level variables only,
residuals token-level ones only; no tile lies in two pieces; every kept pair lies in some piece;
inside a piece the residual and the pattern agree.

Where the pattern reads data, the bounds hold whatever the data says: full pieces are full, and the
tiles of the others are told apart once the data is there (``plan.DataTiles``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TILE_VARS = frozenset({"qb", "h", "nq", "nk", "NQ", "NK"})
TOKEN_VARS = frozenset({"q", "k", "h", "nq", "nk"})


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of ``q`` query tokens by ``k`` key tokens."""

    q: int
    k: int

    def __str__(self) -> str:
        return f"{self.q}x{self.k}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progression:
    """Key tiles ``base + period * (i div run) + i mod run`` for ``0 <= i < count``.

    ``base`` and ``count`` are expressions of tile-level variables; a count below zero means none.
    ``period >= run >= 1``; an interval has ``period == run == 1``.
    """

    base: ex.IntExpr
    count: ex.IntExpr
    period: int = 1
    run: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One progression of tiles and the residual predicate its tiles still need (true: full)."""

    tiles: Progression
    residual: ex.BoolExpr = ex.TRUE

    @property
    def full(self) -> bool:
        """Whether tiles of this piece need no check."""
        return self.residual == ex.TRUE


@dataclass(frozen=True, slots=True)
class Counts:
    """What a block mask costs at given lengths, over all heads of the mask.

    ``full``/``partial``/``empty`` tiles are classified over *existing* pairs (a ragged last tile
    whose existing pairs are all kept is full); ``visited`` and ``masked`` are what a kernel does on
    the padded grid. Pairs are tokens: ``kept`` by the pattern, ``computed`` by visited tiles.
    """

    full: int
    partial: int
    empty: int
    visited: int
    masked: int
    pairs_kept: int
    pairs_computed: int

    @property
    def total(self) -> int:
        """All tiles."""
        return self.full + self.partial + self.empty


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMask:
    """A pattern classified for one tiling; ``widened`` says where tiles were added, and why."""

    pattern: Pattern
    tiling: Tiling
    pieces: tuple[Piece, ...]
    widened: tuple[str, ...] = field(default=())

    @property
    def exact(self) -> bool:
        """Whether every visited tile holds a kept pair of the padded grid."""
        return not self.widened

    def tiles_at(self, nq: int, nk: int) -> tuple[int, int]:
        """Return ``(NQ, NK)``."""
        return -(-nq // self.tiling.q), -(-nk // self.tiling.k)

    def rows(self, piece: Piece, nq: int, nk: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Evaluate base and count of a piece for all rows. Shape: two ``[heads or 1, NQ]``.

        They may be views of fewer numbers, which cannot be written to.
        """
        import numpy as np

        tiles_q, tiles_k = self.tiles_at(nq, nk)
        heads = self.pattern.heads or 1
        values = {
            "qb": np.arange(tiles_q, dtype=np.int64)[None, :],
            "h": np.arange(heads, dtype=np.int64)[:, None],
            "nq": nq, "nk": nk, "NQ": tiles_q, "NK": tiles_k,
        }
        shape = (heads, tiles_q)
        base = np.asarray(ex.evaluate(piece.tiles.base, values), np.int64)
        count = np.asarray(ex.evaluate(piece.tiles.count, values), np.int64)
        return np.broadcast_to(base, shape), np.broadcast_to(np.maximum(count, 0), shape)

    def grid(self, nq: int, nk: int) -> NDArray[np.int16]:
        """Which piece visits each tile. Shape: ``[heads or 1, NQ, NK]``; -1: none.

        Memory in proportion to NQ * NK: for tests and pictures, not for kernels.
        """
        import numpy as np

        tiles_q, tiles_k = self.tiles_at(nq, nk)
        grid = np.full((self.pattern.heads or 1, tiles_q, tiles_k), -1, dtype=np.int16)
        for number, piece in enumerate(self.pieces):
            base, count = self.rows(piece, nq, nk)
            most = int(count.max(initial=0))
            period, run = piece.tiles.period, piece.tiles.run
            for i in range(most):
                heads, rows = np.nonzero(count > i)
                kb = base[heads, rows] + period * (i // run) + i % run
                if kb.size and (kb.min() < 0 or kb.max() >= tiles_k):
                    raise AssertionError(f"piece {number} leaves the grid: {piece}")
                if (grid[heads, rows, kb] != -1).any():
                    raise AssertionError(f"piece {number} repeats a tile: {piece}")
                grid[heads, rows, kb] = number
        return grid

    def dense(
        self, nq: int, nk: int, given: Mapping[str, Any] | None = None
    ) -> NDArray[np.bool_]:
        """Evaluate to the dense mask. Shape: ``[heads or 1, nq, nk]``. This defines the IR.

        ``given`` has all that the pattern reads, by name (``Pattern.given``).
        """
        import numpy as np

        heads = self.pattern.heads or 1
        grid = self.grid(nq, nk)
        by_token = grid.repeat(self.tiling.q, axis=1)[:, :nq].repeat(self.tiling.k, axis=2)
        by_token = by_token[:, :, :nk]
        values = {
            "q": np.arange(nq, dtype=np.int64)[None, :, None],
            "k": np.arange(nk, dtype=np.int64)[None, None, :],
            "h": np.arange(heads, dtype=np.int64)[:, None, None],
            "nq": nq, "nk": nk,
        }
        mask = np.zeros((heads, nq, nk), dtype=bool)
        for number, piece in enumerate(self.pieces):
            mask |= (by_token == number) & np.asarray(
                ex.evaluate(piece.residual, values, given), bool
            )
        return mask

