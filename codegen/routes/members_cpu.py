"""The CPU executor of members, pasted into written modules: a softmax for each, then combined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from attnc.codegen.routes.attend_cpu import _one_piece, _widened_to
from attnc.codegen.routes.walks_cpu import _Keep, _Piece, _Rule

# --- cut: members ---


def _member_groups(
    queries: torch.Tensor, keys: torch.Tensor, rule: _Rule, q: torch.Tensor, k: torch.Tensor,
    data: Any,
) -> Iterator[tuple[int, int, int, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Yield batch item, head, number, rows, keys and which of their pairs count, of each member."""
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keep = _Keep(rule, (), b, slice(h, h + 1), q.shape, k.shape, data)
            for c in range(queries.shape[2]):
                rows, own = (x[b, h, c].long() for x in (queries, keys))
                rows, own = rows[rows >= 0], own[own >= 0]
                if len(rows) and len(own):
                    yield b, h, c, rows, own, keep.mask(rows, own)


def _member_weights(
    queries: torch.Tensor, score: torch.Tensor | None, nq: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return what multiplies each result: the score, or 1 by how many chose the query."""
    if score is not None:
        return score
    chosen = queries.long().clamp(min=0).flatten(2)
    count = torch.zeros((*queries.shape[:2], nq), dtype=dtype)
    count.scatter_add_(2, chosen, (queries.flatten(2) >= 0).to(dtype))
    found = 1.0 / count.gather(2, chosen).clamp(min=1.0)
    return found.view(queries.shape).masked_fill(queries < 0, 0.0)


def _member_attention(
    queries: torch.Tensor, keys: torch.Tensor, score: torch.Tensor | None, rule: _Rule,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, data: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend among members. A query that none chose has out 0. There is no log-sum-exp."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=exact)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=exact)
    group = q.shape[1] // k.shape[1]
    wide = max(q.shape[3], v.shape[3])
    q_, k_, v_ = (_widened_to(x, wide) for x in (q, k, v))
    weights = _member_weights(queries, score, q.shape[2], exact)
    for b, h, c, rows, own, keep in _member_groups(queries, keys, rule, q, k, data):
        kv = h // group
        given = (q_[b, h : h + 1], rows), (k_[b, kv : kv + 1], own), (v_[b, kv : kv + 1], own)
        at_q, at_k, at_v = (x.index_select(1, at) for x, at in given)
        part, _ = _one_piece(at_q, at_k, at_v, scale, _Piece(rows, own, keep))
        weight = weights[b, h, c, : len(rows), None]
        out[b, h, rows] = out[b, h, rows] + part[0, :, : v.shape[3]] * weight
    return out.to(q.dtype), lse


def _member_gradients(
    queries: torch.Tensor, keys: torch.Tensor, score: torch.Tensor | None, rule: _Rule,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad_out: torch.Tensor, scale: float,
    data: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return dq, dk, dv and what the scores of members get."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, dv = (torch.zeros(x.shape, dtype=exact) for x in (q, k, v))
    learned = None if score is None else torch.zeros_like(score)
    group = q.shape[1] // k.shape[1]
    weights = _member_weights(queries, score, q.shape[2], exact)
    for b, h, c, rows, own, keep in _member_groups(queries, keys, rule, q, k, data):
        kv = h // group
        at, to, values = (x.to(exact) for x in (q[b, h, rows], k[b, kv, own], v[b, kv, own]))
        s = at @ to.T * scale
        s = s if keep is None else s.masked_fill(~keep, -math.inf)
        p = s.softmax(-1).nan_to_num_(0.0)
        back = grad_out[b, h, rows].to(exact)
        if learned is not None:
            learned[b, h, c, : len(rows)] = ((p @ values) * back).sum(-1)
        back = back * weights[b, h, c, : len(rows), None].to(exact)
        dp = back @ values.T
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
        dq[b, h, rows] += ds @ to
        dk[b, kv, own] += ds.T @ at
        dv[b, kv, own] += p.T @ back
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), learned
