"""Transforms of whole input arrays, NumPy forms: the meaning of formulas of computed inputs.

Leading axes (heads) are carried along; where a function takes several arrays they broadcast.
Written modules have a torch form of each that is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def next_where(flags: NDArray[Any]) -> Ints:
    """For each position, the first one at or after it that has its flag; the length where none has.

    Shape: ``[..., n] -> [..., n]``.
    """
    length = flags.shape[-1]
    here = np.where(flags.astype(bool), np.arange(length, dtype=np.int64), length)
    return np.minimum.accumulate(here[..., ::-1], axis=-1)[..., ::-1].astype(np.int64)


def prefix_sum(x: NDArray[Any]) -> NDArray[Any]:
    """The sum of all before each position, and the total at the end; float64 of reals.

    Shape: ``[..., n] -> [..., n + 1]``.
    """
    dtype = np.float64 if x.dtype.kind == "f" else np.int64
    zero = np.zeros((*x.shape[:-1], 1), dtype=dtype)
    return np.concatenate([zero, np.cumsum(x.astype(dtype), axis=-1)], axis=-1)


def sums_between(x: NDArray[Any]) -> NDArray[Any]:
    """The sum of the steps from one position to another: all after the first, the last included.

    The way back costs the same. Summed from the left, so that near sums lose nothing to far ones.
    Shape: ``[..., n] -> [..., n, n]``; float64 of reals.
    """
    length = x.shape[-1]
    steps = x.astype(np.float64 if x.dtype.kind == "f" else np.int64)
    sums = np.zeros((*x.shape[:-1], length, length), dtype=steps.dtype)
    for start in range(length):
        onward = np.cumsum(steps[..., start + 1 :], axis=-1)
        sums[..., start, start + 1 :] = onward
        sums[..., start + 1 :, start] = onward
    return sums


def transpose(x: NDArray[Any]) -> NDArray[Any]:
    """The last two axes exchanged. Shape: ``[..., m, n] -> [..., n, m]``."""
    return np.swapaxes(x, -1, -2)


def differences(x: NDArray[Any]) -> Ints:
    """``x[1:] - x[:-1]`` along the last axis. Shape: ``n -> n - 1``."""
    whole: Ints = x.astype(np.int64)
    return whole[..., 1:] - whole[..., :-1]


def repeat(counts: NDArray[Any]) -> Ints:
    """0 ``counts[0]`` times, 1 ``counts[1]`` times, ... Shape: ``[m] -> [sum(counts)]``.

    Raises: ValueError for a negative count.
    """
    if len(counts) and np.min(counts) < 0:
        raise ValueError(f"a count to repeat is {int(np.min(counts))}; it must be 0 or more")
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def khop(adjacency: NDArray[Any], hops: int) -> Flags:
    """Whether the column is reached from the row in at most ``hops`` steps, itself included.

    Shape: ``[m, m] -> [m, m]``.
    """
    edges = adjacency.astype(bool)
    reached = np.eye(len(edges), dtype=bool)
    for _ in range(min(int(hops), len(edges))):
        wider = reached | (reached.astype(np.float32) @ edges.astype(np.float32) > 0)
        if np.array_equal(wider, reached):
            break
        reached = wider
    return reached


def members(lists: NDArray[Any], size: int) -> Flags:
    """Whether each of ``0 .. size - 1`` is in the list; entries outside that (-1) are padding.

    Shape: ``[..., m] -> [..., size]``.
    """
    rows = lists.reshape(int(np.prod(lists.shape[:-1])), lists.shape[-1])
    found = np.zeros((len(rows), int(size)), dtype=bool)
    row, entry = np.nonzero((rows >= 0) & (rows < size))
    found[row, rows[row, entry]] = True
    return found.reshape(*lists.shape[:-1], int(size))


def merge_ranges(verticals: NDArray[Any], slashes: NDArray[Any], block: int, n: int) -> Flags:
    """The key columns that MInference's vertical-slash kernel walks for each block of queries.

    A block that ends before ``end`` asks, for each slash below ``end``, for the ``block`` columns
    before ``max(end - slash, block)``. From left to right, a request that ends within ``block`` of
    the range so far lengthens it by ``block``, a later one opens a new range. A vertical counts
    where it lies before the first range that ends after it.

    Shape: ``[..., V], [..., S] -> [..., ceil(n / block), n]``; -1 is padding.
    Source: Jiang et al., MInference 1.0, 2024, ``csrc/vertical_slash_index.cu``.
    """
    heads = np.broadcast_shapes(verticals.shape[:-1], slashes.shape[:-1])
    columns = np.broadcast_to(verticals, (*heads, verticals.shape[-1]))
    offsets = np.broadcast_to(slashes, (*heads, slashes.shape[-1]))
    kept = np.zeros((*heads, -(-int(n) // int(block)), int(n)), dtype=bool)
    for head in np.ndindex(heads):
        alone = sorted(int(v) for v in columns[head] if v >= 0)
        steps = sorted(int(s) for s in offsets[head] if s >= 0)
        for row in range(kept.shape[-2]):
            _merge_row(kept[(*head, row)], alone, steps, (row + 1) * int(block), int(block))
    return kept


def _merge_row(kept: Flags, verticals: list[int], slashes: list[int], end: int, block: int) -> None:
    """Mark the columns of one block of queries, which ends before ``end``."""
    ranges: list[tuple[int, int]] = []
    for slash in reversed(slashes):  # the farthest first: left to right
        if slash >= end:
            continue
        stop = max(end - slash, block)
        if not ranges or stop > ranges[-1][1] + block:
            ranges.append((stop - block, stop))
        elif stop > ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + block)
    for start, stop in ranges:
        kept[start:stop] = True
    if ranges:
        kept[[v for v in verticals if v < min(ranges[-1][1], len(kept))]] = True


TRANSFORMS: dict[str, Callable[..., NDArray[Any]]] = {
    "next_where": next_where,
    "prefix_sum": prefix_sum,
    "sums_between": sums_between,
    "transpose": transpose,
    "differences": differences,
    "repeat": repeat,
    "khop": khop,
    "merge_ranges": merge_ranges,
    "members": members,
}
