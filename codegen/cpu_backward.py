"""gradients of out and lse + a schedule -> those of q, k, v, by torch's CPU flash kernel.

``codegen/cpu.py`` pastes what stands below the cut line, verbatim, into every written module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from attnc.codegen.cpu_executor import _keys_of_rows, _lanes, _mask, _rows_of, _select
from attnc.codegen.cpu_schedule import _Call, _CpuTiles, _Keys, _Schedule, _schedule
from attnc.codegen.cpu_windows import _add_windows

# --- cut: backward ---

# The calls are those of the forward. With the out and lse of a whole row each call gives its exact
# share of the gradients, and shares add up: those of keys, which windows have in common, slice by
# slice, so that two runs agree in every bit. Half types are computed in float32.

_SHARE_BYTES = 8 << 20  # gradients of one call: what stays in the cache until it is added
_TALLEST = 8  # most spans in a stack
_ALIKE = 8  # the keys of a stack are longer than those of one span by this part at most
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def _cpu_attention_backward(
    tiles: _CpuTiles,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> _Gradients:
    """Run a plan backward. Returns: dq, dk, dv, contiguous; None where ``needs`` says so."""
    nq, nk = q.shape[2], k.shape[2]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    grads = [x.new_zeros(x.shape, dtype=exact) for x in (q, k, v)]
    if nk > 0 and lse.numel() > 0:  # the kernel dies of a length 0
        with torch.device("cpu"):  # whatever the default device is
            schedule = _schedule(tiles, nq, nk)
        parts = [*_prepared(q, k, v, out, lse, grad_out, grad_lse), *grads]
        for batch in schedule.batches:
            at = batch.keys.positions
            for head, part in _select(tiles.kv_heads, batch.heads, *parts):
                whole = part[7:]
                if at is not None:
                    part[1:3] = [x.index_select(2, at) for x in part[1:3]]
                    part[7:] = [torch.zeros_like(x[:, :, : len(at)]) for x in whole]
                for lane in _lanes(*part):
                    for call in batch.calls:
                        _run_backward(schedule, call, batch.keys, head, nq, nk, lane, scale)
                if at is not None:
                    for x, gathered in zip(whole, part[7:], strict=True):
                        x[:, :, at] += gathered
    dq, dk, dv = (
        x.to(q.dtype) if wanted else None for x, wanted in zip(grads, needs, strict=False)
    )
    return dq, dk, dv


def _prepared(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Return q, k, v, out, lse and grad_out as the kernel wants them.

    A gradient of lse goes in as one more value: ``rowsum(grad_out * out)``, which the kernel takes
    from ``grad_out * (q @ k)``'s gradients, becomes smaller by it. A row without keys gets lse
    inf, which makes all of its weights 0.
    """
    empty = lse == -math.inf
    parts = [x.to(lse.dtype) for x in (q, k, v, out, grad_out)]
    dims, value_dims = q.shape[3], v.shape[3]
    if grad_lse is not None:
        less = -grad_lse.to(lse.dtype).masked_fill(empty, 0)
        parts[3] = torch.cat([parts[3], less[..., None]], 3)
        parts[4] = F.pad(parts[4], (0, 1), value=1.0)
        value_dims += 1
    width = max(dims, value_dims)  # the kernel wants equal widths; zeros change no product
    parts = [F.pad(x, (0, width - x.shape[3])) if x.shape[3] < width else x for x in parts]
    parts = [x if x.stride(3) == 1 else x.contiguous() for x in parts]
    return [*parts[:4], lse.masked_fill(empty, math.inf), parts[4]]


def _run_backward(
    schedule: _Schedule,
    call: _Call,
    keys: _Keys,
    head: int,
    nq: int,
    nk: int,
    lane: list[torch.Tensor],
    scale: float,
) -> None:
    """Run one call, in portions that stay in the cache, and add its shares to the gradients."""
    q, k, v, out, lse, grad_out, dq, dk, dv = lane
    for part, low in _taller(call):
        a_span = (part.queries * part.stack + 2 * part.keys) * q.shape[0] * q.shape[2]
        most = max(1, _SHARE_BYTES // (a_span * q.element_size()))
        for first in range(0, part.spans, most):
            count = min(most, part.spans - first)
            mask, _ = _mask(schedule, call, keys, head, nq, nk, low + first, count, q.dtype)
            mask = _tall_mask(call, part, mask, q)
            asked = [_rows_of(x, part, first, count).flatten(2, 3) for x in (grad_out, q, out, lse)]
            seen = [_keys_of_rows(x, part, first, count) for x in (k, v)]
            share, share_k, share_v = _flash_backward(
                *asked[:2], *seen, *asked[2:], 0.0, False, attn_mask=mask, scale=scale
            )
            rows = _rows_of(dq, part, first, count)
            rows += share[..., : dq.shape[2]].unflatten(2, (part.stack, part.queries))
            start = part.first_key + first * part.key_step
            for whole, own in ((dk, share_k), (dv, share_v)):
                _add_windows(whole, own[..., : whole.shape[2]], start, part.key_step)


def _taller(call: _Call) -> Iterator[tuple[_Call, int]]:
    """Stack neighbouring spans where their keys are nearly the same: fewer windows to add.

    Yields: calls, and the number of their first span.
    """
    tall = 1
    if call.stack == 1 and (call.shared or call.strip is None) and call.spans > 1:
        tall = min(_TALLEST, call.spans, 1 + call.keys // max(1, _ALIKE * call.key_step))
    if tall == 1:
        yield call, 0
        return
    number, rest = divmod(call.spans, tall)
    yield call._replace(
        spans=number, query_step=tall * call.query_step, stack=tall, stack_step=call.query_step,
        key_step=tall * call.key_step, keys=call.keys + (tall - 1) * call.key_step,
    ), 0  # fmt: skip
    if rest:
        low = call.spans - rest
        yield call._replace(
            spans=rest, first_query=call.first_query + low * call.query_step,
            first_key=call.first_key + low * call.key_step,
        ), low  # fmt: skip


def _tall_mask(
    call: _Call, part: _Call, mask: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Return the mask of stacked spans: each sees its own keys alone."""
    if part.stack == call.stack or (mask is None and call.key_step == 0):
        return mask
    tall = like.new_full((1, 1, part.stack, part.queries, part.keys), -math.inf)
    for i in range(part.stack):
        start = i * call.key_step
        tall[:, :, i, :, start : start + call.keys] = 0 if mask is None else mask
    return tall.flatten(2, 3)
