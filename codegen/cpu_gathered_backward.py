"""gradients of out and lse + a table of tiles -> those of q, k, v and of learned inputs.

``codegen/data.py`` pastes what stands below the cut line, verbatim, behind the gathered executor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from attnc.codegen.cpu_gathered import (
    _bias,
    _Gathered,
    _keys_of,
    _masked,
    _Place,
    _positions,
    _shares,
    _Stretch,
    _stretches,
    _tiled,
    _with_diagonals,
)
from attnc.codegen.cpu_windows import _add_windows
from attnc.codegen.tables import _Data, _tile_table

# --- cut: gathered backward ---

# Weights are computed again from the lse, a bounded number at a time, in float32 (float64 beside
# float64). What learned inputs get is summed in float64, pair after pair: the same in every run.

_WEIGHTS_AT_ONCE = 1 << 19  # held three times over
_COPIED_AT_ONCE = 8 << 20  # bytes of keys and values, and of their gradients


class _Rows5(NamedTuple):
    """What belongs to the queries of some lanes. Shape: ``[E, G, tiles, BQ, ...]``."""

    q: torch.Tensor
    grad_out: torch.Tensor
    lse: torch.Tensor  # inf where a query has no key
    less: torch.Tensor  # what is taken off the gradient of each weight
    dq: torch.Tensor


class _Keys4(NamedTuple):
    """Keys, values and their gradients. Shape: ``[E, tiles, BK, D or Dv]``."""

    k: torch.Tensor
    v: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


def _gathered_backward(
    plan: _Gathered, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
    lse: torch.Tensor, grad_out: torch.Tensor, grad_lse: torch.Tensor | None, scale: float,
    data: _Data, names: Sequence[str], tensors: Sequence[torch.Tensor | None],
    needs: Sequence[bool],
) -> tuple[Any, ...]:
    """Run a plan backward; ``names`` are those of ``tensors``, the inputs that were given.

    Returns: dq, dk, dv, contiguous, and a list for the inputs; None where ``needs`` says so.
    """
    asked = zip(names, tensors, needs[3:], strict=True)
    wanted = [name for name, t, need in asked if need and t is not None]
    exact = lse.dtype
    read = {n: x for n, x in data.items() if isinstance(x, torch.Tensor)}
    own = max((len(x) for x in read.values()), default=1)
    data = data | {n: x.to(exact) for n, x in read.items() if x.is_floating_point()}
    learned = {n: torch.zeros_like(data[n], dtype=torch.float64) for n in wanted}
    less = (grad_out.to(exact) * out.to(exact)).sum(3)
    if grad_lse is not None:
        less -= grad_lse.masked_fill(lse == -math.inf, 0)
    lse = lse.masked_fill(lse == -math.inf, math.inf)
    if plan.sink is not None and plan.sink_slopes is not None and wanted:
        logit = plan.sink(q, k, data).to(exact)[..., None]
        amount = -((logit - lse).exp() * less).sum(2)  # [B, Hq]
        b = torch.arange(len(q), device="cpu")[:, None]
        _learn(learned, b, plan.sink_slopes(q, k, data), amount)
    grads = [x.new_zeros(x.shape, dtype=exact) for x in (q, k, v)]
    if lse.numel() and k.shape[2]:
        _tile_gradients(plan, (q, grad_out, lse, less, k, v), scale, data, own, learned, grads)
    shaped = [
        learned[name].view(t.shape).to(t.dtype) if t is not None and name in learned else None
        for name, t in zip(names, tensors, strict=True)
    ]
    found = (x.to(q.dtype) if need else None for x, need in zip(grads, needs, strict=False))
    return *found, shaped


def _tile_gradients(
    plan: _Gathered, given: Sequence[torch.Tensor], scale: float, data: _Data, own: int,
    learned: dict[str, torch.Tensor], grads: Sequence[torch.Tensor],
) -> None:
    """Fill ``grads`` of q, k, v and add to those of what is learned, over the tiles of a call."""
    exact, nq, nk = grads[0].dtype, given[0].shape[2], given[4].shape[2]
    table = _tile_table(plan.rules, nq, nk, own, data, given[0].device)
    q, grad_out = (_tiled(x.to(exact), plan.rules.q) for x in given[:2])
    k, v = (_tiled(x.to(exact), plan.rules.k) for x in given[4:])
    lse, less = (
        F.pad(x, (0, -nq % plan.rules.q), value=math.inf).unflatten(2, (-1, plan.rules.q))
        for x in given[2:4]
    )
    group = 1
    if plan.by_head and not plan.kv_heads and table.heads == 1:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    dq, dk, dv = (x.new_zeros(x.shape) for x in (q, k, v))
    for share in _shares(plan, own > 1, table.heads == 1, q, k, v):
        on_q, on_k = (share.items, share.q_heads), (share.items, share.k_heads)
        keys = [x[on_k].flatten(0, 1) for x in (k, v)]
        lanes = _Keys4(*keys, *(x.new_zeros(x.shape) for x in keys))
        sizes = (len(k[on_k]), k[on_k].shape[1], -1)
        asked, changed, total, taken = (
            x[on_q].unflatten(1, sizes[1:]).flatten(0, 1) for x in (q, grad_out, lse, less)
        )
        rows = _Rows5(asked, changed, total, taken, asked.new_zeros(asked.shape))
        place = _with_diagonals(plan, table, _Place(share.h, share.b, nq, nk, data), exact)
        for part in _stretches(plan, table, place, keys):
            _stretch_gradients(plan, part, place, scale, rows, lanes, learned)
        dq[on_q] += rows.dq.unflatten(0, sizes[:2]).flatten(1, 2)
        dk[on_k] += lanes.dk.unflatten(0, sizes[:2])
        dv[on_k] += lanes.dv.unflatten(0, sizes[:2])
    grads[0].copy_(dq.flatten(2, 3)[:, :, :nq])
    for whole, tiled in zip(grads[1:], (dk, dv), strict=True):
        whole.copy_(tiled.unflatten(1, (-1, group)).sum(2).flatten(2, 3)[:, :, :nk])


def _stretch_gradients(
    plan: _Gathered, part: _Stretch, place: _Place, scale: float, rows: _Rows5, keys: _Keys4,
    learned: dict[str, torch.Tensor],
) -> None:
    """Add what some rows give, portion by portion."""
    (lanes, group, _, tile_q, _), tile_k = rows.q.shape, keys.k.shape[2]
    number, count = part.tiles.shape
    held = group * part.stack * tile_q * tile_k * lanes
    copied = 2 * lanes * tile_k * (keys.k.shape[3] + keys.v.shape[3]) * keys.k.element_size()
    wide = max(1, min(count, _WEIGHTS_AT_ONCE // held, _COPIED_AT_ONCE // copied))
    tall = max(1, min(_WEIGHTS_AT_ONCE // (held * wide), _COPIED_AT_ONCE // (copied * wide)))
    for top in range(0, number, tall):
        for left in range(0, count, wide):
            piece = part.piece(slice(top, top + tall), slice(left, left + wide))
            _piece_gradients(plan, piece, place, scale, rows, keys, learned)


def _piece_gradients(
    plan: _Gathered, part: _Stretch, place: _Place, scale: float, rows: _Rows5, keys: _Keys4,
    learned: dict[str, torch.Tensor],
) -> None:
    """Add what some tiles of some rows give; the heads of a group stand below each other."""
    lanes, group, _, tile_q, _ = rows.q.shape
    side = part.stack * tile_q
    q, grad_out, lse, less = (part.of_rows(x).transpose(1, 2).flatten(2, 3) for x in rows[:4])
    k, v = (_keys_of(x, part) for x in keys[:2])  # [E, R, T * BK, D]
    shape = (lanes, len(part.tiles), group, side, part.tiles.shape[1], -1)
    dot = q @ k.mT * scale  # [E, R, G * BQ, T * BK]
    by_pair = dot.view(shape).transpose(1, 2)  # [E, G, R, BQ, T, BK]
    slopes: list[Any] = []
    slope = None
    if plan.slopes is not None and (learned or not plan.additive):
        at_q, at_k = (x[:, None] for x in _positions(plan, part))
        slope, slopes = place.evaluate(plan.slopes, by_pair, at_q, at_k)
    if plan.additive:
        bias, _ = _bias(plan, part, place, dot.dtype)
        if bias is not None and group > 1:  # the same for each head of a group
            bias = bias.repeat(1, 1, group, 1)
        score = dot if bias is None else dot + bias
    else:
        assert plan.score is not None
        score = torch.empty_like(dot)
        pairs = score.view(shape).transpose(1, 2)
        at_q, at_k = (x[:, None] for x in _positions(plan, part))
        pairs.copy_(place.evaluate(plan.score, by_pair, at_q, at_k))
        _masked(plan, part, place, pairs)
    weights = (score - lse[..., None]).exp_()
    dead = lse == math.inf  # rows beyond the end too, whatever their score is
    if dead.any():
        weights.masked_fill_(dead[..., None], 0)
        less = less.masked_fill(dead, 0)
    change = (grad_out @ v.mT).sub_(less[..., None]).mul_(weights)
    _learn(learned, place.b, slopes, change.view(shape).transpose(1, 2))
    if slope is not None and not plan.additive:
        pairs = change.view(shape).transpose(1, 2)
        pairs.copy_(_product(pairs, slope))
    change *= scale
    share = (change @ k).unflatten(2, (group, side)).transpose(1, 2)
    rows.dq[:, :, part.rows] += part.apart(share)
    _add_keys(keys.dk, part, change.mT @ q)
    _add_keys(keys.dv, part, weights.mT @ grad_out)


def _product(change: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return ``change * slope``, 0 where nothing changes: a slope may be infinite there."""
    return torch.where(change == 0, change, change * slope)


def _learn(
    learned: dict[str, torch.Tensor], b: int | torch.Tensor, slopes: list[Any],
    change: torch.Tensor,
) -> None:
    """Add to the gradients of elements of inputs what a change of each score brings them."""
    for name, index, slope in slopes:
        if name not in learned:
            continue
        total = learned[name]
        place = torch.as_tensor(b if len(total) > 1 else 0, device="cpu")
        inside = torch.ones((), dtype=torch.bool, device="cpu")
        for i, side in zip(index, total.shape[1:], strict=True):
            at = torch.as_tensor(i, device="cpu")
            within = (at >= 0) & (at < side)
            place, inside = place * side + at * within, inside & within
        amount = _product(change, slope).to(torch.float64)
        shape = torch.broadcast_shapes(place.shape, inside.shape)
        shape = (1,) * (amount.dim() - len(shape)) + tuple(shape)
        amount = amount.sum_to_size(shape)  # those that go to one element in any case
        chosen = inside.expand(shape)
        total.view(-1).index_add_(0, place.expand(shape)[chosen], amount[chosen])


def _add_keys(whole: torch.Tensor, part: _Stretch, share: torch.Tensor) -> None:
    """Add to tiles of keys what each row gives. Shape: share ``[E, R, T * BK, D]``."""
    side = whole.shape[2]
    if part.step is not None:
        start = int(part.tiles[0, 0]) * side
        _add_windows(whole.flatten(1, 2), share, start, part.step * side)
        return
    whole.index_add_(1, part.tiles.flatten(), share.unflatten(2, (-1, side)).flatten(1, 2))
