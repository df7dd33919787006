"""The CPU executor of selected pairs backward, pasted into written modules beside the forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from attnc.codegen.routes.attend_cpu import (
    _groups,
    _membership,
    _Relation,
    _Rule,
    _stack_weights,
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
    for b, heads, kv, rows, keys, keep in _groups(relations, rule, q, k, data):
        at, to = q[b, heads][:, rows].to(exact), k[b, kv][:, keys].to(exact)
        values, back = v[b, kv][:, keys].to(exact), grad_out[b, heads][:, rows].to(exact)
        grouped = (len(to), -1)
        s = (at.unflatten(0, grouped) @ to[:, None].transpose(-1, -2)).flatten(0, 1) * scale
        p = (s - shift[b, heads][:, rows, None]).exp_()
        if keep is not None:
            p.masked_fill_(~keep, 0.0)
        dp = (back.unflatten(0, grouped) @ values[:, None].transpose(-1, -2)).flatten(0, 1)
        ds = (dp - delta[b, heads][:, rows, None]).mul_(p).mul_(scale)
        _add(dq[b, heads], rows, (ds.unflatten(0, grouped) @ to[:, None]).flatten(0, 1))
        wide = ds.unflatten(0, grouped).transpose(-1, -2)
        _add(dk[b, kv], keys, (wide @ at.unflatten(0, grouped)).sum(1))
        wide = p.unflatten(0, grouped).transpose(-1, -2)
        _add(dv[b, kv], keys, (wide @ back.unflatten(0, grouped)).sum(1))
    for number, relation in enumerate(relations):
        if relation.form != "tokens":
            continue
        earlier = [_membership(r) for r in relations[:number]]
        for b, heads, kv, rows, keys, counts in _stacks(relation, rule, earlier, q, k, data):
            own = lse[b, heads][:, rows].to(exact)
            p, _ = _stack_weights(q[b, heads][:, rows], k[b, kv], keys, counts, scale, own)
            back = grad_out[b, heads][:, rows].to(exact)
            values, to = v[b, kv][:, keys].to(exact), k[b, kv][:, keys].to(exact)
            grouped = (len(to), -1)
            dp = torch.einsum("ghrd,grnd->ghrn", back.unflatten(0, grouped), values)
            ds = (dp.flatten(0, 1) - delta[b, heads][:, rows, None]) * p * scale
            at = q[b, heads][:, rows].to(exact)
            for x, y, into, gathered in ((ds, at, dk, to), (p, back, dv, None)):
                own_group, rest = x.unflatten(0, grouped), y.unflatten(0, grouped)
                found = torch.einsum("ghrn,ghrd->grnd", own_group, rest)
                into[b, kv].index_add_(1, keys.flatten(), found.flatten(1, 2))
                if gathered is not None:
                    found = torch.einsum("ghrn,grnd->ghrd", own_group, gathered)
                    _add(dq[b, heads], rows, found.flatten(0, 1))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _add(into: torch.Tensor, at: torch.Tensor, part: torch.Tensor) -> None:
    """Add to distinct rows. Shape: into ``[H, N, D]``, part ``[H, rows, D]``."""
    into[:, at] = into[:, at] + part
