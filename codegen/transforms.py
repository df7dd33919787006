"""Transforms of whole input arrays, torch forms: what computed inputs are made of.

Each stands below the cut line; ``codegen/inputs.py`` pastes, verbatim, those that a module uses.
They mean what ``compiler/transforms.py`` says. Only ``_repeat`` of an unknown length waits for the
device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# --- cut: transforms ---


def _next_where(flags: torch.Tensor) -> torch.Tensor:
    """The first place at or after each whose flag is set; the length where there is none."""
    length = flags.shape[-1]
    here = torch.arange(length, device=flags.device).where(flags != 0, length)
    return here.flip(-1).cummin(-1).values.flip(-1) if length else here


def _prefix_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of all before each place, and the total: one longer; float64 of reals."""
    exact = x.to(torch.float64 if x.is_floating_point() else torch.int64)
    return torch.nn.functional.pad(exact.cumsum(-1), (1, 0))


def _sums_between(x: torch.Tensor) -> torch.Tensor:
    """The sum of the steps from one place to another, both ways. Shape: [..., n] -> [..., n, n]."""
    exact = x.to(torch.float64 if x.is_floating_point() else torch.int64)
    onward = exact[..., None, :].expand(*exact.shape, x.shape[-1]).triu(1).cumsum(-1).triu(1)
    return onward + onward.mT


def _differences(x: torch.Tensor) -> torch.Tensor:
    """``x[1:] - x[:-1]`` along the last dimension."""
    return x.to(torch.int64).diff(dim=-1)


def _repeat(counts: torch.Tensor, size: int | None) -> torch.Tensor:
    """0 counts[0] times, 1 counts[1] times, ...: ``size`` elements, all of them where it is None.

    Raises: ValueError on a CPU if a count is negative or the counts do not add up to ``size``; a
        GPU is not waited for.
    """
    if counts.device.type == "cpu" and (counts < 0).any():
        raise ValueError(f"a count to repeat is {int(counts.min())}; it must be 0 or more")
    ends = counts.clamp(min=0).to(torch.int64).cumsum(0)
    if size is None or counts.device.type == "cpu":
        total = int(ends[-1]) if len(ends) else 0
        if size is not None and total != size:
            raise ValueError(f"counts to repeat add up to {total}, expected {size}")
        size = total
    return torch.searchsorted(ends, torch.arange(size, device=counts.device), right=True)


def _khop(adjacency: torch.Tensor, hops: int) -> torch.Tensor:
    """Whether the column is reached from the row in at most ``hops`` steps, itself included."""
    size = len(adjacency)
    reached = torch.eye(size, dtype=torch.float32, device=adjacency.device)
    edges = (adjacency != 0).to(torch.float32)
    for _ in range(min(hops, size)):
        reached = ((reached + reached @ edges) > 0).to(torch.float32)
    return reached != 0


def _members(lists: torch.Tensor, size: int) -> torch.Tensor:
    """Whether each of 0 .. size - 1 is in the list; other entries are padding."""
    inside = (lists >= 0) & (lists < size)
    found = lists.new_zeros((*lists.shape[:-1], size + 1), dtype=torch.bool)
    place = torch.where(inside, lists, size).to(torch.int64)
    return found.scatter(-1, place, torch.ones_like(inside))[..., :size]


def _transpose(x: torch.Tensor) -> torch.Tensor:
    """Rows and columns (the last two dimensions) change places."""
    return x.transpose(-1, -2)


def _merge_ranges(
    verticals: torch.Tensor, slashes: torch.Tensor, block: int, n: int
) -> torch.Tensor:
    """The key columns of MInference's vertical-slash kernel for each block of queries.

    Shape: ``[..., V], [..., S] -> [..., ceil(n / block), n]``.
    """
    device = slashes.device
    heads = torch.broadcast_shapes(verticals.shape[:-1], slashes.shape[:-1])
    steps = slashes.expand(*heads, -1).to(torch.int64).sort(-1, descending=True).values
    end = torch.arange(1, -(-n // block) + 1, device=device) * block  # [rows]
    shape = (*heads, len(end))
    start, stop = (torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2))
    edges = torch.zeros((*shape, n + 1), dtype=torch.int32, device=device)

    def close(done: torch.Tensor) -> None:
        """Mark the range so far in the rows where it is done."""
        for place, sign in ((start, 1), (stop, -1)):
            value = torch.where(done, sign, 0).to(torch.int32)
            edges.scatter_add_(-1, place.clamp(max=n)[..., None], value[..., None])

    for slash in steps.unbind(-1):  # the farthest first: left to right
        asked = (slash[..., None] >= 0) & (slash[..., None] < end)
        last = (end - slash[..., None]).clamp(min=block)
        opens = asked & ((stop == 0) | (last > stop + block))
        grows = asked & ~opens & (last > stop)
        close(opens & (stop > 0))
        start = torch.where(opens, last - block, start)
        stop = torch.where(opens, last, torch.where(grows, stop + block, stop))
    close(stop > 0)
    near = edges.cumsum(-1)[..., :n] > 0
    alone = _members(verticals.expand(*heads, -1), n)[..., None, :]
    return near | (alone & (torch.arange(n, device=device) < stop.clamp(max=n)[..., None]))


def _block_counts(
    keep: Callable[..., Any], heads: int, nq: int, nk: int, data: dict[str, Any],
    sides: tuple[int, int], enough: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Whether enough pairs of each block are kept. Shape: ``[heads, row blocks, column blocks]``.

    ``enough``: kept pairs, existing pairs -> bool. One row of blocks is evaluated at a time.
    """
    block_q, block_k = sides
    columns = -(-nk // block_k)
    k = torch.arange(columns * block_k)
    h = torch.arange(heads)[:, None, None]
    rows = []
    for first in range(0, nq, block_q):
        q = torch.arange(first, min(first + block_q, nq))[:, None]
        kept = keep(q, k, h, 0, nq, nk, data) & (k < nk) & (q >= 0) & (h >= 0)
        pairs = kept.sum(1).unflatten(-1, (columns, block_k)).sum(-1)  # [heads, columns]
        existing = len(q) * (k < nk).unflatten(0, (columns, block_k)).sum(-1)
        rows.append(enough(pairs, existing))
    return torch.stack(rows, 1) if rows else torch.zeros(heads, 0, columns, dtype=torch.bool)
