"""Block mask of candidates + data -> which tiles are empty, full and partial, by NumPy.

The side terms are evaluated once for each position and reduced to their least and greatest value
in each tile; the test runs over the candidates, a bounded number at a time; what it leaves open is
evaluated pair by pair where that is asked for, a bounded number of pairs at a time. This is what
counts are made of, and the definition of the tables that written modules build on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Counts
from attnc.compiler.ir.plan import DataTiles
from attnc.compiler.passes.sides import KEY, QUERY, split
from attnc.compiler.passes.tile_test import Bounds, TileTest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_TILES = 1 << 16
"""Candidates that are tested at once."""

CHUNK_PAIRS = 1 << 20
"""Pairs that are evaluated at once."""

FULL, PARTIAL = 0, 1
"""Classes of the entries of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileTable:
    """The tiles that each row visits: a row for each head of the mask and query tile.

    Shape: ``starts`` int64 ``[heads * NQ + 1]``; row ``h * NQ + qb`` has the entries
    ``starts[row] .. starts[row + 1] - 1``, int32 ``kb * 8 + class``. ``heads`` is 1 where all heads
    have the same rows.
    """

    heads: int
    starts: NDArray[np.int64]
    entries: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Some candidates of one head, row after row: what is known of each. Shape: ``[C]``.

    ``open``: between ``may`` and ``must``. ``kept`` counts the kept pairs of open tiles that were
    evaluated, -1 elsewhere; ``pairs`` are the existing ones.
    """

    qb: NDArray[np.int64]
    kb: NDArray[np.int64]
    full: NDArray[np.bool_]
    open: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    kept: NDArray[np.int64]


def tile_table(
    mask: BlockMask, tiles: DataTiles, nq: int, nk: int, given: Mapping[str, Any]
) -> TileTable:
    """Build the table of one batch element.

    Args: ``given`` has everything the pattern reads, by name (``Pattern.given``).
    Units: tiles. Memory in proportion to the visited tiles and to the positions.
    """
    import numpy as np

    heads = table_heads(mask)
    tiles_q, _ = mask.tiles_at(nq, nk)
    counts = np.zeros(heads * tiles_q, dtype=np.int64)
    entries: list[NDArray[np.int32]] = []
    for head in range(heads):
        for found in _stream(mask, tiles, nq, nk, given, head, pairs=tiles.refine):
            full, visited = _classes(found)
            entry = found.kb * 8 + np.where(full, FULL, PARTIAL)
            entries.append(entry[visited].astype(np.int32))
            counts += np.bincount(
                head * tiles_q + found.qb[visited], minlength=heads * tiles_q
            )
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    empty = np.zeros(0, dtype=np.int32)
    return TileTable(heads=heads, starts=starts, entries=np.concatenate([empty, *entries]))


def table_heads(mask: BlockMask) -> int:
    """Return how many heads have rows of their own: 1 where the mask is one for all."""
    depends = "h" in ex.free_vars(mask.pattern.predicate)
    return (mask.pattern.heads or 1) if depends else 1


def count(
    mask: BlockMask, tiles: DataTiles, nq: int, nk: int, given: Mapping[str, Any]
) -> Counts:
    """Count tiles by class and pairs, exactly: all open tiles are evaluated pair by pair.

    Units: tiles over all heads of the mask; pairs are tokens. ``visited`` and ``masked`` are what
    the table of ``tile_table`` holds.
    """
    tiles_q, tiles_k = mask.tiles_at(nq, nk)
    heads = table_heads(mask)
    total = Counts(
        full=0, partial=0, empty=0, visited=0, masked=0, pairs_kept=0, pairs_computed=0
    )
    for head in range(heads):
        for found in _stream(mask, tiles, nq, nk, given, head, pairs=True):
            full, seen = _classes(found)
            visited, masked = (seen, seen & ~full) if tiles.refine else (
                found.full | found.open, found.open
            )
            kept = int(found.pairs[found.full].sum()) + int(found.kept[found.open].sum())
            total = replace(
                total,
                full=total.full + int(full.sum()),
                partial=total.partial + int((seen & ~full).sum()),
                visited=total.visited + int(visited.sum()),
                masked=total.masked + int(masked.sum()),
                pairs_kept=total.pairs_kept + kept,
                pairs_computed=total.pairs_computed + int(found.pairs[visited].sum()),
            )
    total = replace(total, empty=heads * tiles_q * tiles_k - total.full - total.partial)
    return _times(total, (mask.pattern.heads or 1) // heads)


def _times(one: Counts, heads: int) -> Counts:
    return Counts(
        full=heads * one.full, partial=heads * one.partial, empty=heads * one.empty,
        visited=heads * one.visited, masked=heads * one.masked,
        pairs_kept=heads * one.pairs_kept, pairs_computed=heads * one.pairs_computed,
    )


def _classes(found: _Tiles) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which tiles are full and which are visited, by all that is known."""
    full = found.full | (found.kept == found.pairs)
    return full, found.full | (found.open & (found.kept != 0))


def _stream(
    mask: BlockMask, tiles: DataTiles, nq: int, nk: int, given: Mapping[str, Any], head: int,
    *, pairs: bool,
) -> Iterator[_Tiles]:
    """Test the candidates of a head, whole rows at a time; with ``pairs`` evaluate open ones."""
    import numpy as np

    if not nq or not nk:
        return
    sides = split(tiles.predicate)
    fixed = {"h": head, "nq": nq, "nk": nk}
    terms = {
        **_evaluated(sides.query, QUERY, "q", nq, fixed, given),
        **_evaluated(sides.key, KEY, "k", nk, fixed, given),
    }
    ranges = {
        name: _ranges(values, {QUERY: mask.tiling.q, KEY: mask.tiling.k}[_start(name)])
        for name, values in terms.items()
    }
    points: dict[str, Bounds] = {n: (np.asarray(v), np.asarray(v)) for n, v in fixed.items()}
    test = TileTest(sides.test, given)
    for qb, kb, sure in _candidates(mask, nq, nk, head):
        bounds = {
            name: (low[at], high[at])
            for name, (low, high) in ranges.items()
            for at in ({QUERY: qb, KEY: kb}[_start(name)],)
        }
        may, must = (np.broadcast_to(side, kb.shape) for side in test.outcome(points | bounds))
        full = sure | must
        waiting = may & ~full
        long_q = np.minimum((qb + 1) * mask.tiling.q, nq) - qb * mask.tiling.q
        long_k = np.minimum((kb + 1) * mask.tiling.k, nk) - kb * mask.tiling.k
        kept = np.full(kb.shape, -1, dtype=np.int64)
        if pairs:
            places = np.flatnonzero(waiting)
            step = max(1, CHUNK_PAIRS // (mask.tiling.q * mask.tiling.k))
            for start in range(0, len(places), step):
                at = places[start : start + step]
                kept[at] = _kept(mask, sides.test, qb[at], kb[at], terms, fixed, given)
        yield _Tiles(qb=qb, kb=kb, full=full, open=waiting, pairs=long_q * long_k, kept=kept)


def _start(name: str) -> str:
    return QUERY if name.startswith(QUERY) else KEY


def _evaluated(
    terms: tuple[ex.IntExpr, ...], start: str, variable: str, length: int,
    fixed: Mapping[str, int], given: Mapping[str, Any],
) -> dict[str, NDArray[np.int64]]:
    """Evaluate side terms at every position, by name. Shape: ``[length]`` each."""
    import numpy as np

    values = {**fixed, variable: np.arange(length, dtype=np.int64)}
    found = (np.asarray(ex.evaluate(term, values, given), dtype=np.int64) for term in terms)
    return {f"{start}{i}": np.broadcast_to(value, (length,)) for i, value in enumerate(found)}


def _ranges(values: NDArray[np.int64], side: int) -> Bounds:
    """Return the least and greatest value in each tile. Shape: ``[length] -> [tiles]`` twice."""
    import numpy as np

    starts = np.arange(0, len(values), side)
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _candidates(
    mask: BlockMask, nq: int, nk: int, head: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield ``(qb, kb, full)`` of the tiles of a head's pieces, whole rows, a bounded number."""
    import numpy as np

    rows = [mask.rows(piece, nq, nk) for piece in mask.pieces]
    bases = [base[min(head, base.shape[0] - 1)] for base, _ in rows]
    numbers = [number[min(head, number.shape[0] - 1)] for _, number in rows]
    tiles_q, _ = mask.tiles_at(nq, nk)
    upto = np.cumsum(sum(numbers, np.zeros(tiles_q, dtype=np.int64)))
    first = 0
    while first < tiles_q:
        before = int(upto[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(upto, before + CHUNK_TILES, side="right")))
        parts = []
        for piece, base, number in zip(mask.pieces, bases, numbers, strict=True):
            here = number[first:last]
            qb = np.repeat(np.arange(first, last), here)
            i = np.arange(len(qb)) - np.repeat(np.cumsum(here) - here, here)
            kb = base[qb] + piece.tiles.period * (i // piece.tiles.run) + i % piece.tiles.run
            parts.append((qb, kb, np.full(len(qb), piece.full)))
        if parts:
            qb, kb, full = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(qb, kind="stable")
            yield qb[order], kb[order], full[order]
        first = last


def _kept(
    mask: BlockMask, test: ex.BoolExpr, qb: NDArray[np.int64], kb: NDArray[np.int64],
    terms: Mapping[str, NDArray[np.int64]], fixed: Mapping[str, int], given: Mapping[str, Any],
) -> NDArray[np.int64]:
    """Count the kept pairs of tiles. Shape: ``[C]``."""
    import numpy as np

    side_q, side_k = mask.tiling.q, mask.tiling.k
    q = qb[:, None, None] * side_q + np.arange(side_q)[None, :, None]  # [C, BQ, 1]
    k = kb[:, None, None] * side_k + np.arange(side_k)[None, None, :]  # [C, 1, BK]
    near = {QUERY: np.minimum(q, fixed["nq"] - 1), KEY: np.minimum(k, fixed["nk"] - 1)}
    values = {name: at[near[_start(name)]] for name, at in terms.items()}
    kept = np.asarray(ex.evaluate(test, {**fixed, **values}, given), dtype=bool)
    inside = (q < fixed["nq"]) & (k < fixed["nk"])
    counted: NDArray[np.int64] = np.count_nonzero(kept & inside, axis=(1, 2)).astype(np.int64)
    return counted
