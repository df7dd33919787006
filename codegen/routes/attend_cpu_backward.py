"""The CPU executor of selected pairs backward, pasted into written modules beside the forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from attnc.codegen.routes.attend_cpu import _own_keys
from attnc.codegen.routes.walks_cpu import (
    _At,
    _membership,
    _pick,
    _pieces,
    _Relation,
    _Rule,
    _stacks,
)

# --- cut: backward ---


def _routed_gradients(
    relations: Sequence[_Relation], rule: _Rule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    out: torch.Tensor, lse: torch.Tensor, grad_out: torch.Tensor, grad_lse: torch.Tensor | None,
    scale: float, data: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dq, dk and dv of what is selected; ``out`` and ``lse`` are those of all pairs."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, dv = (torch.zeros(x.shape, dtype=exact) for x in (q, k, v))
    delta = (grad_out.to(exact) * out.to(exact)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.to(exact)
    shift = lse.masked_fill(lse == -math.inf, 0.0).to(exact)
    for b, heads, kv, piece in _pieces(relations, rule, q, k, data):
        at, back, near, d = (
            _pick(x[b, heads], piece.rows).to(exact).unflatten(0, (kv.stop - kv.start, -1))
            for x in (q, grad_out, shift, delta)
        )  # [heads of k, group, rows, ...]
        to, values = (_pick(x[b, kv], piece.keys).to(exact)[:, None] for x in (k, v))
        if piece.side:  # one more dimension, of triangles
            at, back, near, d, to, values = (
                x.unflatten(2, (-1, piece.side)) for x in (at, back, near, d, to, values)
            )
        p = (at @ to.mT).mul_(scale).sub_(near[..., None]).exp_()
        if piece.side:
            p.tril_()
        elif piece.keep is not None:
            p.masked_fill_(~piece.keep, 0.0)
        ds = (back @ values.mT).sub_(d[..., None]).mul_(p).mul_(scale)
        wide, narrow = dq.shape[3], dv.shape[3]
        _add(dq[b, heads], piece.rows, (ds @ to).reshape(heads.stop - heads.start, -1, wide))
        many = kv.stop - kv.start
        _add(dk[b, kv], piece.keys, (ds.mT @ at).sum(1).view(many, -1, wide))
        _add(dv[b, kv], piece.keys, (p.mT @ back).sum(1).view(many, -1, narrow))
    for number, relation in enumerate(relations):
        if relation.form != "tokens":
            continue
        earlier = [_membership(r) for r in relations[:number]]
        for b, heads, kv, rows, keys, counts in _stacks(relation, rule, earlier, q, k, v, data):
            at, back, near, d = (
                x[b, heads, rows].to(exact).unflatten(0, (kv.stop - kv.start, -1)).movedim(2, 0)
                for x in (q, grad_out, shift, delta)
            )  # [rows, heads of k, group, ...]
            to, values = (_own_keys(x[b, kv], keys).to(exact) for x in (k, v))
            p = (at @ to.mT).mul_(scale).sub_(near[..., None]).exp_()
            p.masked_fill_(~counts[:, None, None], 0.0)
            ds = (back @ values.mT).sub_(d[..., None]).mul_(p).mul_(scale)
            _add(dq[b, heads], rows, (ds @ to).movedim(0, 2).flatten(0, 1))
            for own, other, into in ((ds, at, dk), (p, back, dv)):
                _add_own(into[b, kv], keys, own.mT @ other)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _add(into: torch.Tensor, at: _At, part: torch.Tensor) -> None:
    """Add to distinct rows. Shape: into ``[H, N, D]``, part ``[H, rows, D]``."""
    if isinstance(at, slice):
        into[:, at] += part
    else:
        into.index_copy_(1, at, into.index_select(1, at).add_(part))


def _add_own(into: torch.Tensor, keys: torch.Tensor, part: torch.Tensor) -> None:
    """Add to the keys of each row, one after the other. Shape: part ``[rows, H, n, D]``."""
    for head in range(len(into)):
        into[head].index_add_(0, keys.flatten(), part[:, head].flatten(0, 1))
