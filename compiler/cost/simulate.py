"""Tiles of each row + what a tile costs -> time of a kernel: free processors take the next row.

This is what a search over tiles, orders and splits calls: arrays in, one time out, under a
millisecond for thousands of rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINS = 24
"""Rows are sorted into this many kinds of equal length: the error is far below that of rates."""

MAX_IN_ORDER = 1 << 15
"""More rows than this, in no order, are bounded and not played through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The work of a kernel: how many tiles of each mask class a row visits.

    Shape: ``tiles`` int64 ``[classes, R]``, class 0 without a mask. Each row runs ``copies`` times
    (batch, heads of one mask), ``repeat`` times its tiles each (query heads of a key head).
    ``sorted``: heavy rows start first.
    """

    tiles: NDArray[np.int64]
    copies: int = 1
    repeat: int = 1
    sorted: bool = True

    @property
    def number(self) -> int:
        """How many rows run."""
        return int(self.tiles.shape[1]) * self.copies

    @property
    def visited(self) -> int:
        """How many tiles are visited, of all rows that run."""
        return int(self.tiles.sum()) * self.copies * self.repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What tiles and rows cost one of ``workers`` programs that run at the same time.

    Units: microseconds. A tile of class c takes ``tile_us * factors[c]``; ``factors[0]`` is 1.
    ``shares`` splits ``tile_us`` by cause: matrix products, softmax, L2 cache.
    """

    tile_us: float
    row_us: float
    factors: tuple[float, ...]
    workers: int
    shares: tuple[float, float, float] = (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The time of a kernel in disjoint parts: per worker, then what the last rows add.

    Units: microseconds.
    """

    tiles_us: float
    masks_us: float
    rows_us: float
    tail_us: float

    @property
    def time_us(self) -> float:
        """From the first row's start to the last one's end."""
        return self.tiles_us + self.masks_us + self.rows_us + self.tail_us


def simulate(rows: Rows, rates: Rates) -> Timing:
    """Play the launch through: each worker takes the next row when it is done with one.

    Units: microseconds.
    """
    import numpy as np

    if not rows.number:
        return Timing(tiles_us=0.0, masks_us=0.0, rows_us=0.0, tail_us=0.0)
    factors = np.asarray(rates.factors[: rows.tiles.shape[0]], dtype=np.float64)
    visited = rows.tiles.sum(0)
    weighted = factors @ rows.tiles
    tile_us = rates.tile_us * rows.repeat
    each: NDArray[np.float64] = rates.row_us + tile_us * weighted
    share = rows.copies / rates.workers
    tiles, rows_us = tile_us * float(visited.sum()) * share, rates.row_us * len(each) * share
    busy = float(each.sum()) * share
    end = makespan(each, rows.copies, rates.workers, heavy_first=rows.sorted)
    return Timing(
        tiles_us=tiles, masks_us=max(busy - tiles - rows_us, 0.0), rows_us=rows_us,
        tail_us=max(end - busy, 0.0),
    )


def makespan(
    each: NDArray[np.float64], copies: int, workers: int, *, heavy_first: bool = True
) -> float:
    """Return when the last of all rows ends, each of them ``copies`` times.

    Rows of nearly equal length are taken as equal, by their mean; the rest is exact.
    """
    import numpy as np

    if heavy_first:
        loads = np.zeros(workers)
        for length, number in _kinds(each):
            loads = _fill(loads, length, number * copies)
        return float(loads.max())
    if len(each) * copies > MAX_IN_ORDER:
        return float(each.sum()) * copies / workers + float(each.max()) * (1 - 1 / workers)
    ends = [0.0] * workers
    for _ in range(copies):
        for length in each.tolist():
            heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def _kinds(each: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Sort rows into kinds: their mean length and number, long ones first."""
    import numpy as np

    low, high = float(each.min()), float(each.max())
    if high - low <= 1e-9 * high:
        return [(high, len(each))]
    kind = np.rint((each - low) * ((BINS - 1) / (high - low))).astype(np.int64)
    number = np.bincount(kind, minlength=BINS)
    total = np.bincount(kind, weights=each, minlength=BINS)
    some = np.flatnonzero(number)[::-1]
    return [(float(total[i] / number[i]), int(number[i])) for i in some]


def _fill(loads: NDArray[np.float64], length: float, number: int) -> NDArray[np.float64]:
    """Give ``number`` equal rows one by one to whoever is free first: exactly that, at once.

    Loads rise to a common level; a last row goes to each of the lowest.
    """
    import numpy as np

    if length <= 0.0:
        return loads
    loads = np.sort(loads)
    if loads[-1] - loads[0] <= length:  # all take turns
        rounds, left = divmod(number, len(loads))
        loads += rounds * length
        loads[:left] += length
        return loads
    upto = np.arange(1, len(loads) + 1)
    level = (np.cumsum(loads) + number * length) / upto  # if the lowest 1, 2, ... share it
    reached = int(np.flatnonzero(level >= loads)[-1])
    whole = np.maximum(np.floor((level[reached] - loads) / length + 1e-9), 0.0)
    whole[reached + 1 :] = 0.0
    left = number - int(whole.sum())
    loads = loads + whole * length
    if left > 0:
        loads[np.argpartition(loads, left - 1)[:left]] += length
    return loads
