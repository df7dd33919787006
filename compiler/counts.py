"""Block mask + lengths -> how many tiles of each class, how many pairs: no pair is enumerated.

Tiles are counted row by row from the symbolic bounds; pairs from the same bounds of the 1x1 tiling
(each row of tokens is a few progressions). Only partial tiles on a ragged border are looked into.
Where tiles wait for data, ``data_tiles.py`` counts.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from attnc.compiler.counts_grid import count_grid
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Counts, Piece, Tiling
from attnc.compiler.ir.plan import CpuPart, CpuPlan, DataTiles, Plan, TilePart
from attnc.compiler.passes import data_tiles
from attnc.compiler.passes.classify import classify

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

CHUNK_ROWS = 1 << 16
CHUNK_PAIRS = 1 << 22


def count(
    block_mask: BlockMask, nq: int, nk: int, data: DataTiles | None = None,
    given: Mapping[str, Any] | None = None,
) -> Counts:
    """Count tiles by class and pairs at given lengths, exactly.

    Args: ``data`` tells how waiting tiles are tested, where they wait for what is ``given``: all
    that the pattern reads, by name (``Pattern.given``).
    Units: tiles over all heads of the mask (1 if the mask is shared); pairs are tokens.
    Memory in proportion to the rows of tiles, and to chunks of ``CHUNK_PAIRS`` pairs.
    """
    import numpy as np

    if data is not None:
        return data_tiles.count(block_mask, data, nq, nk, given or {})

    tiles_q, tiles_k = block_mask.tiles_at(nq, nk)
    heads = block_mask.pattern.heads or 1
    visited = masked = computed = 0
    tail_q, tail_k = nq % block_mask.tiling.q, nk % block_mask.tiling.k
    for piece in block_mask.pieces:
        base, number = block_mask.rows(piece, nq, nk)
        tiles = int(number.sum())
        visited += tiles
        masked += 0 if piece.full else tiles
        rows_of_last = int(number[:, -1].sum()) if tiles_q else 0
        ends_last = _visits(piece, base, number, tiles_k - 1)
        area_q, area_k = block_mask.tiling.q, block_mask.tiling.k
        short_q, short_k = (area_q - tail_q) % area_q, (area_k - tail_k) % area_k
        computed += tiles * area_q * area_k
        computed -= rows_of_last * short_q * area_k + int(ends_last.sum()) * short_k * area_q
        if tiles_q:
            computed += int(ends_last[:, -1].sum()) * short_q * short_k
    full, partial = visited - masked, masked
    if tail_q or tail_k:
        now_full, now_empty = _border(block_mask, nq, nk)
        full += now_full
        partial -= now_full + now_empty
    return Counts(
        full=full, partial=partial, empty=heads * tiles_q * tiles_k - full - partial,
        visited=visited, masked=masked, pairs_kept=pairs_kept(block_mask, nq, nk),
        pairs_computed=int(np.int64(computed)),
    )


def count_cpu(
    plan: CpuPlan, nq: int, nk: int, given: Mapping[str, Any] | None = None
) -> Counts:
    """Count what the CPU executor does; of parts in other orders all classes together.

    The tiles of a part are those of its classes: pairs of tokens in different classes have none.
    A "tile" of boxes is a box of queries with one key; one of single distances is a pair.
    """
    if plan.boxes is not None:
        return count_grid(plan.boxes)
    if not plan.parts:
        return count(plan.block_mask, nq, nk, plan.data, given)
    return _sum(
        _count_classes(part.block_mask, part.modulus, nq, nk) if isinstance(part, CpuPart)
        else _count_distances(part.distances, 1, nq, nk)
        for part in plan.parts
    )


def count_forward(
    plan: Plan, nq: int, nk: int, given: Mapping[str, Any] | None = None
) -> Counts:
    """Count what the forward kernels do on a GPU.

    The tiles of a part are those of its classes. Where it takes distances one by one, a "tile" is
    so many queries with one key each: all that is computed is kept, but for rows past an end.
    """
    forward = plan.forward
    if forward.boxes is not None:
        return count_grid(forward.boxes)
    if not plan.parts:
        return count(forward.block_mask, nq, nk, forward.data, given)
    return _sum(
        _count_classes(part.loop.block_mask, part.modulus, nq, nk) if isinstance(part, TilePart)
        else _count_distances(part.distances, part.rows, nq, nk)
        for part in plan.parts
    )


def _count_classes(mask: BlockMask, modulus: int, nq: int, nk: int) -> Counts:
    found = []
    for first, stop in pairwise(sorted({0, nq % modulus, nk % modulus, modulus})):
        q, k = (max(0, -(-(n - first) // modulus)) for n in (nq, nk))
        one = count(mask, q, k)
        found.append(Counts(*((stop - first) * getattr(one, f.name) for f in fields(Counts))))
    return _sum(found)


def _count_distances(distances: tuple[int, ...], side: int, nq: int, nk: int) -> Counts:
    """Count blocks of queries, at each distance those that have a key there."""
    full = partial = kept = computed = 0
    rows = -(-nq // side)
    for distance in distances:
        first, stop = max(0, distance), min(nq, nk + distance)
        if stop <= first:
            continue
        kept += stop - first
        blocks = (stop - 1) // side - first // side + 1
        existing = min(nq, ((stop - 1) // side + 1) * side)
        computed += existing - first // side * side
        cut = {first // side} if first % side else set()
        cut |= {(stop - 1) // side} if stop < existing else set()
        full, partial = full + blocks - len(cut), partial + len(cut)
    return Counts(
        full=full, partial=partial, empty=rows * len(distances) - full - partial,
        visited=full + partial, masked=partial, pairs_kept=kept, pairs_computed=computed,
    )


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counts(
        full=0, partial=0, empty=0, visited=0, masked=0, pairs_kept=0, pairs_computed=0
    )
    for one in counts:
        total = Counts(*(getattr(total, f.name) + getattr(one, f.name) for f in fields(Counts)))
    return total


def _visits(
    piece: Piece, base: NDArray[np.int64], number: NDArray[np.int64], kb: int
) -> NDArray[np.bool_]:
    """Return which rows visit key tile ``kb``."""
    run, period = piece.tiles.run, piece.tiles.period
    beyond = kb - base
    index = beyond // period * run + beyond % period
    return (beyond >= 0) & (beyond % period < run) & (index < number)


def _border(block_mask: BlockMask, nq: int, nk: int) -> tuple[int, int]:
    """Return how many partial tiles of a ragged border are full and empty over existing pairs."""
    import numpy as np

    tiles_q, tiles_k = block_mask.tiles_at(nq, nk)
    ragged_row, ragged_column = bool(nq % block_mask.tiling.q), bool(nk % block_mask.tiling.k)
    full = empty = 0
    for piece in block_mask.pieces:
        if piece.full:
            continue
        base, number = block_mask.rows(piece, nq, nk)
        on_border = np.zeros(number.shape, dtype=bool)
        if ragged_column:
            on_border |= _visits(piece, base, number, tiles_k - 1)
        tiles = [
            (h, qb, np.array([tiles_k - 1])) for h, qb in zip(*np.nonzero(on_border), strict=True)
        ]
        if ragged_row:
            tiles = [t for t in tiles if t[1] != tiles_q - 1]
            for h in range(number.shape[0]):
                i = np.arange(number[h, -1])
                run, period = piece.tiles.run, piece.tiles.period
                tiles.append((h, tiles_q - 1, base[h, -1] + period * (i // run) + i % run))
        for h, qb, kbs in tiles:
            for kept, existing in _tile_pairs(block_mask, piece, int(h), int(qb), kbs, nq, nk):
                full += int((kept == existing).sum())
                empty += int((kept == 0).sum())
    return full, empty


def _tile_pairs(
    block_mask: BlockMask, piece: Piece, h: int, qb: int, kbs: NDArray[np.int64], nq: int, nk: int
) -> Iterator[tuple[Any, Any]]:
    """Yield (kept, existing) pairs of tiles of one row, a bounded chunk of tiles at a time."""
    import numpy as np

    side_q, side_k = block_mask.tiling.q, block_mask.tiling.k
    stop = min((qb + 1) * side_q, nq)
    q: NDArray[np.int64] = np.arange(qb * side_q, stop, dtype=np.int64)[None, :, None]
    step = max(1, CHUNK_PAIRS // (side_q * side_k))
    for start in range(0, len(kbs), step):
        k = (kbs[start : start + step, None] * side_k + np.arange(side_k))[:, None, :]
        values = {"q": q, "k": k, "h": h, "nq": nq, "nk": nk}
        inside = np.broadcast_to(k < nk, (k.shape[0], q.shape[1], side_k))
        kept = inside & np.asarray(ex.evaluate(piece.residual, values), dtype=bool)
        yield kept.sum((1, 2)), inside.sum((1, 2))


def pairs_kept(block_mask: BlockMask, nq: int, nk: int) -> int:
    """Return how many (query, key) pairs the pattern keeps, over all heads of the mask."""
    if not block_mask.pieces:
        return 0
    by_token = classify(block_mask.pattern, Tiling(1, 1))
    if not by_token.widened:
        return _sum_rows(by_token, nq, nk)
    total = 0
    for piece in block_mask.pieces:
        base, number = block_mask.rows(piece, nq, nk)
        run, period = piece.tiles.run, piece.tiles.period
        for h in range(number.shape[0]):
            for qb in range(number.shape[1]):
                i = _arange(int(number[h, qb]))
                kbs = base[h, qb] + period * (i // run) + i % run
                for kept, _ in _tile_pairs(block_mask, piece, h, qb, kbs, nq, nk):
                    total += int(kept.sum())
    return total


def _arange(stop: int) -> NDArray[np.int64]:
    import numpy as np

    return np.arange(stop, dtype=np.int64)


def _sum_rows(by_token: BlockMask, nq: int, nk: int) -> int:
    """Sum the lengths of all token progressions, a chunk of rows at a time."""
    import numpy as np

    heads = by_token.pattern.heads or 1
    total = 0
    for start in range(0, nq, CHUNK_ROWS):
        values: dict[str, Any] = {
            "qb": np.arange(start, min(start + CHUNK_ROWS, nq), dtype=np.int64)[None, :],
            "h": np.arange(heads, dtype=np.int64)[:, None],
            "nq": nq, "nk": nk, "NQ": nq, "NK": nk,
        }
        shape = (heads, min(start + CHUNK_ROWS, nq) - start)
        for piece in by_token.pieces:
            counted = np.asarray(ex.evaluate(piece.tiles.count, values))
            total += int(np.maximum(np.broadcast_to(counted, shape), 0).sum())
    return total
