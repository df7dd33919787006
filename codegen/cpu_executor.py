"""q, k, v + a schedule -> attention by torch's CPU flash kernel.

``codegen/cpu.py`` pastes what stands below the cut line, verbatim, into every written module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from attnc.codegen.cpu_schedule import _Call, _CpuTiles, _Keys, _Schedule, _schedule

# --- cut: executor ---

_CALL_BYTES = 8 << 20  # output of one call: what stays in the cache until it is merged
_MASK_ELEMENTS = 1 << 20  # pairs whose predicate is evaluated at once, where rows share no mask
_OF_KEYS = (1, 2, 7, 8)  # of q, k, v, out, lse, grad_out, dq, dk, dv: those with the heads of k
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _cpu_attention(
    tiles: _CpuTiles, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a plan. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``, both contiguous."""
    nq, nk, value_dim = q.shape[2], k.shape[2], v.shape[3]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = q.new_empty(q.shape[:3], dtype=exact)
    if nk == 0 or lse.numel() == 0:  # the kernel dies of a length 0
        return q.new_zeros((*q.shape[:3], value_dim)), lse.fill_(-math.inf)
    with torch.device("cpu"):  # whatever the default device is
        schedule = _schedule(tiles, nq, nk)
    out = q.new_empty((*q.shape[:3], value_dim), dtype=exact if schedule.merges else q.dtype)
    if schedule.prefill:
        out.zero_()
        lse.fill_(-math.inf)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    wider = value_dim - q.shape[3]  # the kernel wants equal widths; zeros change no product
    if wider > 0:
        q, k = F.pad(q, (0, wider)), F.pad(k, (0, wider))
    elif wider < 0:
        v = F.pad(v, (0, -wider))
    for batch in schedule.batches:
        for head, part in _select(tiles.kv_heads, batch.heads, q, k, v, out, lse):
            if batch.keys.positions is not None:
                part[1:3] = [x.index_select(2, batch.keys.positions) for x in part[1:3]]
            for lane in _lanes(*part):
                for call in batch.calls:
                    _run(schedule, call, batch.keys, head, nq, nk, lane, scale)
    return out.to(q.dtype), lse


def _select(
    kv_heads: bool, heads: tuple[int, ...] | None, *parts: torch.Tensor
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield views of q, k, v, out, lse, ... with the given heads only, one by one."""
    if heads is None:
        yield 0, list(parts)
        return
    group = parts[0].shape[1] // parts[1].shape[1]
    for head in heads:
        at_q, at_k = slice(head, head + 1), slice(head // group, head // group + 1)
        if kv_heads:
            at_q, at_k = slice(head * group, (head + 1) * group), at_q
        yield head, [x[:, at_k if i in _OF_KEYS else at_q] for i, x in enumerate(parts)]


def _lanes(*parts: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Yield q, k, v, out, lse, ... as ``[E, tokens, ...]``, E pairs of batch and head each."""
    q, k = parts[:2]
    sizes = (q.shape[0], k.shape[1], q.shape[1] // k.shape[1])  # B, Hkv, heads of q for each
    strides = [
        (x.stride(0), x.stride(1) * (1 if x.shape[1] != q.shape[1] else sizes[2]), x.stride(1))
        if x.shape[1] == q.shape[1] else (x.stride(0), x.stride(1), 0)
        for x in parts
    ]
    merged: list[tuple[int, list[int]]] = []
    for dim, size in enumerate(sizes):
        steps = [s[dim] for s in strides]
        if merged and all(a == b * size for a, b in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        elif size > 1:
            merged.append((size, steps))
    merged.sort(key=lambda dim: dim[0])
    extent, steps = merged.pop() if merged else (1, [0] * len(parts))
    for index in itertools.product(*(range(size) for size, _ in merged)):
        offsets = [
            sum(i * s[x] for i, (_, s) in zip(index, merged, strict=True))
            for x in range(len(parts))
        ]
        yield [
            x.as_strided((extent, *x.shape[2:]), (step, *x.stride()[2:]), x.storage_offset() + at)
            for x, step, at in zip(parts, steps, offsets, strict=True)
        ]


def _run(
    schedule: _Schedule,
    call: _Call,
    keys: _Keys,
    head: int,
    nq: int,
    nk: int,
    lane: list[torch.Tensor],
    scale: float,
) -> None:
    """Run one call, in portions that stay in the cache, and write or merge its result."""
    q, k, v, out, lse = lane
    queries, value_dim = call.queries * call.stack, out.shape[2]
    most = max(1, _CALL_BYTES // (queries * q.shape[0] * q.shape[2] * q.element_size()))
    if call.strip is not None and not call.shared:
        most = min(most, max(1, _MASK_ELEMENTS // (call.queries * call.keys)))
    for first in range(0, call.spans, most):
        count = min(most, call.spans - first)

        mask, dead = _mask(schedule, call, keys, head, nq, nk, first, count, q.dtype)
        part, part_lse = _flash(
            _rows_of(q, call, first, count).flatten(2, 3), _keys_of_rows(k, call, first, count),
            _keys_of_rows(v, call, first, count), 0.0, False, attn_mask=mask, scale=scale,
        )
        part = part[..., :value_dim]
        if dead is not None:  # the kernel says lse 0 for a row without keys
            part = part.masked_fill(dead[..., None], 0)
            part_lse = part_lse.masked_fill(dead, -math.inf)
        part, part_lse = (x.unflatten(2, (call.stack, call.queries)) for x in (part, part_lse))
        whole, whole_lse = (_rows_of(x, call, first, count) for x in (out, lse))
        if call.fresh:
            whole.copy_(part)
            whole_lse.copy_(part_lse)
            continue
        total = torch.logaddexp(whole_lse, part_lse)
        finite = total.masked_fill(total == -math.inf, 0)  # no key yet: weights 0, not NaN
        whole.mul_((whole_lse - finite).exp_()[..., None])
        whole.addcmul_(part.to(whole.dtype), (part_lse - finite).exp_()[..., None])
        whole_lse.copy_(total)


def _rows_of(x: torch.Tensor, call: _Call, first: int, count: int) -> torch.Tensor:
    """View the queries of some spans. Shape: ``[E, Q, ...] -> [E, count, stack, queries, ...]``."""
    step = x.stride(1)
    return x.as_strided(
        (x.shape[0], count, call.stack, call.queries, *x.shape[2:]),
        (x.stride(0), call.query_step * step, call.stack_step * step, *x.stride()[1:]),
        x.storage_offset() + (call.first_query + first * call.query_step) * step,
    )


def _keys_of_rows(x: torch.Tensor, call: _Call, first: int, count: int) -> torch.Tensor:
    """View the keys of some spans; they overlap. Shape: ``[E, K, D] -> [E, count, keys, D]``."""
    step = x.stride(1)
    return x.as_strided(
        (x.shape[0], count, call.keys, x.shape[2]),
        (x.stride(0), call.key_step * step, *x.stride()[1:]),
        x.storage_offset() + (call.first_key + first * call.key_step) * step,
    )


def _mask(
    schedule: _Schedule,
    call: _Call,
    keys: _Keys,
    head: int,
    nq: int,
    nk: int,
    first: int,
    count: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the additive mask of some spans and which rows it leaves without keys (None: none)."""
    if call.strip is None or call.strip.keep is None:
        return None, None
    if call.shared:
        first, count = 0, 1
    name = (call.number, first, count, dtype)
    if name in schedule.masks.found:
        return schedule.masks.found[name]
    with torch.device("cpu"):
        index = first + torch.arange(count)[:, None, None]
        q = call.first_query + index * call.query_step + torch.arange(call.queries)[:, None]
        k = call.first_key + index * call.key_step + torch.arange(call.keys)
        kept = call.strip.keep(q, k if keys.positions is None else keys.positions[k], head, nq, nk)
        kept = torch.as_tensor(kept).expand(count, call.queries, call.keys)
    mask = dead = None
    if not kept.all():
        mask = kept.new_zeros((1, *kept.shape), dtype=dtype).masked_fill_(~kept, -math.inf)
        some = ~kept.any(-1)
        dead = some[None] if some.any() else None
    schedule.masks.keep(name, mask, dead)
    return mask, dead
