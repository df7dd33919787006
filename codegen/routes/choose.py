"""Selection of key units in torch, function by function pasted into written modules that call them.

A pool of scores shares one budget. Of equal scores the lowest index is taken first, on every
device. Shapes: scores ``[B, H, R, U]``, -inf where invisible; truth values broadcast to them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

NAME = "moba"

# --- cut: choose ---


def _best(scores: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Return the ``count`` best of the last dimension that are not -inf, the first of equals.

    ``count``: a number, or one for each pool ``[..., 1]``.
    """
    if isinstance(count, int):
        most = min(max(count, 0), scores.shape[-1])
        if most == 0:
            return torch.zeros_like(scores, dtype=torch.bool)
        least = _least_of_best(scores, most)
        if scores.device.type == "cpu":
            found = scores >= least.clamp(min=torch.finfo(scores.dtype).min)
            if int(found.sum(-1, dtype=torch.int32).amax()) <= most:
                return found
    else:
        ordered = scores.sort(-1, descending=True).values
        at = (count - 1).clamp(0, scores.shape[-1] - 1)
        least = ordered.gather(-1, at).masked_fill(count <= 0, float("inf"))
    above = scores > least
    equal = (scores == least) & (scores > float("-inf"))
    missing = count - above.sum(-1, keepdim=True)
    if int(equal.sum(-1).amax()) > 1 if scores.device.type == "cpu" else True:
        equal = equal & (equal.cumsum(-1) <= missing)
    return above | (equal & (missing > 0))


def _least_of_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count``-th largest of the last dimension. Shape: ``[..., 1]``."""
    units, rows = scores.shape[-1], scores[..., 0].numel()
    if scores.device.type != "cpu" or count > 8 or units > 64 * count or rows < 512 * count:
        return scores.topk(count, sorted=False).values.amin(-1, keepdim=True)
    # Few of not many: unit by unit into a list of the best, all rows at a time.
    best = scores.new_full((count, rows), float("-inf"))
    for new in scores.reshape(rows, units).t().contiguous():
        for place in best:
            less = torch.minimum(place, new)
            torch.maximum(place, new, out=place)
            new = less
    return best[-1].view(*scores.shape[:-1], 1)


def _by_mass(
    scores: torch.Tensor, charged: torch.Tensor, mass: float, crossing: str, least: int
) -> torch.Tensor:
    """Return the best ones until their sum, begun with ``charged``, reaches a share of all.

    Shape: scores ``[..., U]``, -inf for what does not compete; charged ``[..., 1]``.
    """
    if mass >= 1:
        return scores > float("-inf")
    ordered, order = scores.sort(stable=True, dim=-1, descending=True)
    values = ordered.double().clamp(min=0)  # -inf: nothing
    total = values.cumsum(-1) + charged
    target = mass * total[..., -1:]
    taken = (total - values if crossing == "in" else total) < target
    if least:
        taken[..., :least] = True
    taken &= ordered > float("-inf")
    return torch.zeros_like(taken).scatter_(-1, order, taken)


def _no_negative(route: str, scores: torch.Tensor, visible: torch.Tensor) -> None:
    """Raise a ValueError where a sum of scores would have no meaning."""
    if scores.device.type == "cpu" and bool(((scores < 0) & visible).any()):
        raise ValueError(f"{NAME}: the route {route} selects by mass, but has negative scores")


def _own(
    queries: tuple[torch.Tensor, torch.Tensor], keys: tuple[torch.Tensor, torch.Tensor], length: int
) -> torch.Tensor:
    """Return the key units, of tokens in a row, that a query unit stands in. Shape: ``[R, U]``."""
    first, last = queries[0].clamp(min=0), queries[1].clamp(max=length - 1)
    return (keys[0] <= last[:, None]) & (keys[1] >= first[:, None]) & (first <= last)[:, None]


def _own_cells(cell: torch.Tensor, cells: int, places: torch.Tensor) -> torch.Tensor:
    """Return the cells that queries at ``places`` stand in. Shape: ``[R, cells]``."""
    inside = (places >= 0) & (places < len(cell))
    own = cell[places.clamp(0, len(cell) - 1)]
    return F.one_hot(own, cells).bool() & inside[:, None]


def _recent(own: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` key units that end with the last own one. Shape: ``[R, U]``."""
    at = torch.arange(own.shape[1], device=own.device)
    last = torch.where(own, at, -1).amax(1, keepdim=True) if own.shape[1] else own.long()
    return (at <= last) & (at > last - count) & (last >= 0)


def _first(own: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first ``count`` key units, for each row. Shape: as ``own``."""
    return (torch.arange(own.shape[1], device=own.device) < count).expand(own.shape)


def _widened(order: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the largest of ``rows`` neighbouring rows each; -inf: none of them selected it."""
    x = F.pad(order, (0, 0, 0, -order.shape[2] % rows), value=float("-inf"))
    return x.view(*x.shape[:2], -1, rows, x.shape[3]).amax(3)


def _within(route: str, order: torch.Tensor, room: int, overflow: str) -> torch.Tensor:
    """Return what is selected; a row with more than there is room for raises, or drops the least.

    ``order``: the scores of what is selected, inf for what is kept at any rate, else -inf.
    """
    found = order > float("-inf")
    if room >= order.shape[-1]:
        return found
    if overflow == "drop":
        return _best(order, room)
    if order.device.type == "cpu" and order.numel():
        largest = int(found.sum(-1).amax())
        if largest > room:
            raise ValueError(
                f"{NAME}: a row of the route {route} selects {largest}, its capacity is {room}"
            )
    return found & (found.cumsum(-1) <= room)


def _listed(found: torch.Tensor, room: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is selected as ascending int32 indices with -1 behind them, and how many.

    Shape: ``[..., room]`` and ``[...]``.
    """
    count = found.sum(-1, dtype=torch.int32)
    if found.device.type == "cpu":
        at = found.flatten(0, -2).nonzero()
        first = count.flatten().cumsum(0) - count.flatten()
        slot = torch.arange(len(at)) - first[at[:, 0]] + at[:, 0] * room
        index = torch.full((*found.shape[:-1], room), -1, dtype=torch.int32)
        index.view(-1)[slot] = at[:, 1].to(torch.int32)
        return index, count
    index = torch.full((*found.shape[:-1], room + 1), -1, dtype=torch.int32, device=found.device)
    slot = torch.where(found, found.cumsum(-1) - 1, room)
    every = torch.arange(found.shape[-1], dtype=torch.int32, device=found.device)
    index.scatter_(-1, slot, every.expand(found.shape))
    return index[..., :room].contiguous(), count


def _filled(
    parts: list[tuple[torch.Tensor, torch.Tensor]], shape: tuple[int, ...], room: int, x: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the lists of stretches of rows together; ``x`` is on their device."""
    if not parts:
        index = torch.full((*shape, room), -1, dtype=torch.int32, device=x.device)
        return index, torch.zeros(shape, dtype=torch.int32, device=x.device)
    index, count = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return index, count


def _chosen_tokens(route: str, scores: torch.Tensor, count: int, first: int) -> torch.Tensor:
    """Return the tokens that each member takes, the first ones at any rate, ascending.

    Shape: scores ``[B, H, C, N]``, result int32 ``[B, H, C, min(count, N)]``.
    """
    if scores.device.type == "cpu" and not bool(scores.isfinite().all()):
        raise ValueError(f"{NAME}: the route {route} has scores that are not finite")
    at = torch.arange(scores.shape[-1], device=scores.device)
    found = _best(scores.masked_fill(at < first, float("inf")), count)
    return _listed(found, min(count, scores.shape[-1]))[0]


def _scores_of(scores: torch.Tensor, index: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the scores of chosen tokens, 0 where there is none. Shape: as ``index``."""
    found = scores.gather(-1, index.clamp(min=0).long())
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    return found.where(index >= 0, 0.0).to(exact)
