"""q, a cache, its lengths -> attention of a decode step on a CPU.

``decode.py`` pastes what stands below the cut line, verbatim, into written modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

NAME = "causal"
VALUE_DIM = 64

# --- cut: decode on a CPU ---

_KEYS_AT_ONCE = 8192  # keys read at once
_CONVERTED_BYTES = 4 << 20  # keys and values in another dtype, held at once
_LEAST_CONVERTED = 512  # keys that are worth a call
_PAIRS_AT_ONCE = 65536  # pairs asked at once, of one head


class _Step(NamedTuple):
    """What was written for a decode step; tile sides in tokens."""

    q: int
    k: int
    segments: Callable[..., Iterator[Any]]  # qb, h, nq, nk, NQ, NK -> base, count, period, run, _
    keep: Callable[..., Any]  # q, k, h, b, nq, nk, data -> bool
    by_head: bool  # whether heads visit tiles of their own
    kv_heads: bool  # whether a head of the pattern is a head of k
    score: Callable[..., Any] | None = None  # dot, q, k, h, b, nq, nk, data -> number; None: dot
    sink: Callable[..., Any] | None = None  # data, q, k -> logit beside the keys [B or 1, Hq]


class _Cache(NamedTuple):
    """The caches and where the pages of an item lie; None: one page, the item itself."""

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor | None

    def read(
        self, b: int, heads: slice, keys: torch.Tensor, exact: torch.dtype
    ) -> list[torch.Tensor]:
        """Return these keys and their values. Shape: ``[Hkv, keys, D or Dv]``."""
        found = []
        first, last = int(keys[0]), int(keys[-1])
        for x in (self.k, self.v):
            if self.table is not None:
                page = self.table[b, keys // x.shape[2]].to(torch.int64)
                if int(page.min()) < 0 or int(page.max()) >= x.shape[0]:
                    raise ValueError(
                        f"{NAME}: block_table names page {int(page.max())} or {int(page.min())} "
                        f"for item {b}, there are {x.shape[0]}"
                    )
                part = x[page, heads, keys % x.shape[2]].transpose(0, 1)
            elif last - first + 1 == len(keys):
                part = x[b, heads, first : last + 1]
            else:
                part = x[b, heads].index_select(1, keys)
            found.append(part.to(exact))
        return found


def _decode_attention(
    step: _Step, q: torch.Tensor, cache: _Cache, lengths: torch.Tensor, scale: float,
    space: int | None, data: dict[str, Any], logit: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a step. Shape: out ``[B, Hq, T, Dv]``, lse ``[B, Hq, T]``."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    data = {
        n: x.to(exact) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in data.items()
    }
    out = q.new_zeros((*q.shape[:3], VALUE_DIM), dtype=exact)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=exact)
    room = cache.k.shape[2] * (1 if cache.table is None else cache.table.shape[1])
    for b, length in enumerate(lengths.tolist()):
        if not 0 <= length <= (room if space is None else min(room, space)):
            raise ValueError(
                f"{NAME}: lengths[{b}] is {length}; there is room for "
                f"{room if space is None else min(room, space)} tokens"
            )
        if length:
            _decode_item(step, q, cache, b, length, scale, space or length, data, out, lse)
    if logit is not None:
        total = torch.logaddexp(lse, logit.to(exact)[..., None])
        out *= (lse - total.masked_fill(total == -math.inf, 0)).exp_()[..., None]
        lse = total
    return out.to(q.dtype), lse


def _decode_item(
    step: _Step, q: torch.Tensor, cache: _Cache, b: int, length: int, scale: float, tokens: int,
    data: dict[str, Any], out: torch.Tensor, lse: torch.Tensor,
) -> None:
    """Fill the rows of one item; ``tokens`` is the length that the pattern is told."""
    heads, queries = q.shape[1:3]
    kv_heads = cache.k.shape[1]
    group = heads // kv_heads
    first = max(0, queries - length)  # queries in front of the sequence see nothing
    at = torch.arange(length - queries + first, length, device="cpu")
    for h in range(kv_heads if step.kv_heads else heads) if step.by_head else (None,):
        of_k, of_q = slice(None), slice(None)
        if h is not None and step.kv_heads:
            of_k, of_q = slice(h, h + 1), slice(h * group, (h + 1) * group)
        elif h is not None:
            of_k, of_q = slice(h // group, h // group + 1), slice(h, h + 1)
        number = torch.arange(heads, device="cpu")[of_q]
        number = (number // group if step.kv_heads else number).view(
            1 if h is not None else kv_heads, -1, 1, 1
        )
        lanes = q[b, of_q, first:].to(out.dtype).unflatten(0, number.shape[:2])  # [Hkv, G, T, D]
        whole, total = out[b, of_q, first:], lse[b, of_q, first:]
        told = (number, b, tokens, tokens, data)
        most = _KEYS_AT_ONCE
        if cache.k.dtype != out.dtype:
            a_key = lanes.shape[0] * (lanes.shape[3] + VALUE_DIM) * out.element_size()
            most = max(_LEAST_CONVERTED, min(most, _CONVERTED_BYTES // a_key))
        for keys, kept in _live_keys(step, at, h or 0, length, told, most):
            k, v = cache.read(b, of_k, keys, out.dtype)
            dot = lanes @ k[:, None].mT * scale
            if step.score is not None:
                dot = step.score(dot, at[:, None], keys, *told).expand_as(dot)
            dot = dot.masked_fill(~kept, -math.inf)
            own = dot.logsumexp(3)
            finite = own.masked_fill(own == -math.inf, 0)  # no key: weights 0, not NaN
            part = (dot - finite[..., None]).exp_() @ v[:, None]
            own, part = own.flatten(0, 1), part.flatten(0, 1)
            merged = torch.logaddexp(total, own)
            finite = merged.masked_fill(merged == -math.inf, 0)
            whole.mul_((total - finite).exp_()[..., None])
            whole.add_(part * (own - finite).exp_()[..., None])
            total.copy_(merged)


def _live_keys(
    step: _Step, at: torch.Tensor, h: int, length: int, told: tuple[Any, ...], most: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield keys that some query keeps, ``most`` at once, and which of them each query does.

    Shape: ``[keys]``, ``[..., T, keys]``.
    """
    asked = max(_KEYS_AT_ONCE, _PAIRS_AT_ONCE // len(at))
    for keys in _live_tiles(step, at, h, length, told[2]).split(asked):
        kept = torch.as_tensor(step.keep(at[:, None], keys, *told))
        kept = kept.expand(*kept.shape[:-2], len(at), len(keys))
        alive = kept.flatten(0, -2).any(0)
        if not alive.all():
            keys, kept = keys[alive], kept[..., alive]
        if len(keys):
            yield from zip(keys.split(most), kept.split(most, -1), strict=True)


def _live_tiles(
    step: _Step, at: torch.Tensor, h: int, length: int, tokens: int
) -> torch.Tensor:
    """Return the keys of the tiles that the queries visit, in order."""
    counts = -(-tokens // step.q), -(-tokens // step.k)
    tiles = []
    for qb in (at // step.q).unique().tolist():
        for base, count, period, run, _ in step.segments(qb, h, tokens, tokens, *counts):
            i = torch.arange(int(count), device="cpu")
            tiles.append(int(base) + period * (i // run) + i % run)
    if not tiles:
        return at[:0]
    keys = torch.cat(tiles).unique()[:, None] * step.k + torch.arange(step.k, device="cpu")
    inside: torch.Tensor = keys.flatten()[: int((keys < length).sum())]  # they are in order
    return inside
