"""q, k, v + single distances -> attention, one distance at a time, and its gradients.

``codegen/cpu.py`` pastes what stands below the cut line, verbatim, into every written module whose
plan takes distances one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from attnc.codegen.cpu_executor import _lanes

# --- cut: distances ---

# The keys at one distance q - k are a slice of K: a block of queries times that slice, summed over
# the width, is all of its scores there. No tile is computed for a pair that is not kept. All scores
# of a block stand before its softmax, so nothing is rescaled; sums are those of the exact dtype.

_ROWS_AT_ONCE = 4096  # queries of a block, of all its lanes: its products stay in the cache
_EXACT_BYTES = 32 << 20  # keys or values of a lane that are widened at once, not slice by slice
_Span = tuple[slice, slice, slice]  # of queries, of the rows of the block, of keys


def _cpu_by_distance(
    distances: tuple[int, ...], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a plan of distances alone. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty((*q.shape[:3], v.shape[3]), dtype=exact)
    lse = q.new_empty(q.shape[:3], dtype=exact)
    _go_on_by_distance(distances, q, k, v, out, lse, scale, fresh=True)
    return out.to(q.dtype), lse


def _go_on_by_distance(
    distances: tuple[int, ...], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    out: torch.Tensor, lse: torch.Tensor, scale: float, *, fresh: bool = False,
) -> None:
    """Add the keys at some distances to rows of out and lse; ``fresh``: they hold nothing yet."""
    nq, nk, exact = q.shape[2], k.shape[2], out.dtype
    for lane in _few_lanes(q, k, v, out, lse):
        some = len(lane[0])
        lane_k, lane_v = (_widened(x, exact) for x in lane[1:3])
        for rows, found in _blocks(distances, nq, nk, some):
            side = rows.stop - rows.start
            lane_q = lane[0][:, rows].to(exact)
            scores = lane_q.new_full((len(found) + (not fresh), some, side), -math.inf)
            held = lane_q.new_empty(lane_q.numel())
            for score, (_, of_block, keys) in zip(scores, found, strict=False):
                asked = lane_q[:, of_block]
                product = held[: asked.numel()].view(asked.shape)
                torch.mul(asked, lane_k[:, keys].to(exact), out=product)
                torch.sum(product, 2, out=score[:, of_block])
            scores.mul_(scale)
            whole, whole_lse = lane[3][:, rows], lane[4][:, rows]
            if not fresh:
                scores[-1] = whole_lse
            total = scores.logsumexp(0) if len(scores) else whole_lse.fill_(-math.inf)
            whole_lse.copy_(total)
            weights = scores.sub_(total.masked_fill(total == -math.inf, 0.0)).exp_()
            if fresh:
                whole.zero_()
            else:
                whole.mul_(weights[-1][..., None])
            for weight, (queries, of_block, keys) in zip(weights, found, strict=False):
                values = lane_v[:, keys].to(exact)
                lane[3][:, queries].addcmul_(values, weight[:, of_block, None])


def _cpu_by_distance_backward(
    distances: tuple[int, ...],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Run them backward. Returns: dq, dk, dv, contiguous; None where ``needs`` says so."""
    nq, nk, exact = q.shape[2], k.shape[2], lse.dtype
    empty = lse == -math.inf
    less = (grad_out.to(exact) * out.to(exact)).sum(3)  # what a row's weights have in common
    if grad_lse is not None:
        less = less - grad_lse.to(exact).masked_fill(empty, 0.0)
    lse = lse.masked_fill(empty, math.inf)  # a row without keys: its weights are 0
    grads = [x.new_zeros(x.shape, dtype=exact) for x in (q, k, v)]
    for lane in _few_lanes(q, k, v, grad_out, lse, less, *grads):
        some = len(lane[0])
        lane_k, lane_v = (_widened(x, exact) for x in lane[1:3])
        dq, dk, dv = lane[6:]
        for rows, found in _blocks(distances, nq, nk, some):
            lane_q, lane_grad = (lane[i][:, rows].to(exact) for i in (0, 3))
            for queries, of_block, keys in found:
                asked, grad = lane_q[:, of_block], lane_grad[:, of_block]
                seen, values = lane_k[:, keys].to(exact), lane_v[:, keys].to(exact)
                weight = (asked * seen).sum(2).mul_(scale).sub_(lane[4][:, queries]).exp_()
                if needs[2]:
                    _add_scaled(dv[:, keys], grad, weight)
                if needs[0] or needs[1]:
                    slope = (grad * values).sum(2).sub_(lane[5][:, queries])
                    slope.mul_(weight).mul_(scale)
                    _add_scaled(dq[:, queries], seen, slope)
                    _add_scaled(dk[:, keys], asked, slope)
    return tuple(x.to(q.dtype) if wanted else None for x, wanted in zip(grads, needs, strict=False))


def _add_scaled(whole: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> None:
    """Add rows times their weights. Where all lanes share their keys whole has stride 0."""
    if len(whole) > 1 and whole.stride(0) == 0:
        whole[0] += (rows * weight[..., None]).sum(0)
    else:
        whole.addcmul_(rows, weight[..., None])


def _few_lanes(*parts: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Yield q, k, v, ... as ``[E, tokens, ...]``, as many lanes as make a block of short rows.

    The order is that of ``_lanes``: the second and third have the heads of k, as the three last of
    nine do.
    """
    if not parts[0].shape[0] * parts[0].shape[1] * parts[0].shape[2]:
        return
    most = max(1, _ROWS_AT_ONCE // parts[0].shape[2])
    for lane in _lanes(*parts):
        for first in range(0, len(lane[0]), most):
            yield [x[first : first + most] for x in lane]


def _blocks(
    distances: tuple[int, ...], nq: int, nk: int, lanes: int
) -> Iterator[tuple[slice, list[_Span]]]:
    """Yield blocks of queries and, for each distance at which they have keys, what meets."""
    side = max(1, _ROWS_AT_ONCE // lanes)
    for first in range(0, nq, side):
        stop = min(first + side, nq)
        found = []
        for distance in distances:
            low, high = max(first, distance), min(stop, nk + distance)
            if low < high:
                of_block = slice(low - first, high - first)
                found.append(
                    (slice(low, high), of_block, slice(low - distance, high - distance))
                )
        yield slice(first, stop), found


def _widened(x: torch.Tensor, exact: torch.dtype) -> torch.Tensor:
    """Return keys or values in the exact dtype, unless they are too many to hold at once."""
    if x.stride(0) == 0:
        x = x[:1]
    elements = x.numel()
    size = elements * torch.finfo(exact).bits // 8
    return x.to(exact) if size <= _EXACT_BYTES else x
