"""The CPU executor of selected pairs, pasted into written modules, function by function.

A piece is one call of torch's flash kernel; where a row has several pieces they merge by
log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from attnc.codegen.routes.walks_cpu import (
    _At,
    _membership,
    _pick,
    _Piece,
    _pieces,
    _Relation,
    _Rule,
    _stacks,
)

# --- cut: attend ---

_routed_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _routed_attention(
    relations: Sequence[_Relation], rule: _Rule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    scale: float, data: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to what is selected. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    wide = max(q.shape[3], v.shape[3])  # torch's kernel wants one width
    out = q.new_zeros((*q.shape[:3], wide), dtype=exact)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=exact)
    if k.shape[2] and lse.numel():
        q_, k_, v_ = (_widened_to(x, wide) for x in (q, k, v))
        _attend_pieces(relations, rule, q_, k_, v_, scale, data, out, lse)
    return out[..., : v.shape[3]].to(q.dtype), lse


def _widened_to(x: torch.Tensor, channels: int) -> torch.Tensor:
    """Put channels of 0 behind the others."""
    missing = channels - x.shape[3]
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def _attend_pieces(
    relations: Sequence[_Relation], rule: _Rule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    scale: float, data: Any, out: torch.Tensor, lse: torch.Tensor,
) -> None:
    """Merge all that is selected into results, which begin as those of no key."""
    for b, heads, kv, piece in _pieces(relations, rule, q, k, data):
        keys, values = _pick(k[b, kv], piece.keys), _pick(v[b, kv], piece.keys)
        part = _one_piece(_pick(q[b, heads], piece.rows), keys, values, scale, piece)
        _take_in(out[b, heads], lse[b, heads], piece.rows, *part)
    for at, relation in enumerate(relations):
        if relation.form != "tokens":
            continue
        earlier = [_membership(r) for r in relations[:at]]
        for b, heads, kv, rows, at_keys, counts in _stacks(relation, rule, earlier, q, k, v, data):
            part = _one_stack(q[b, heads, rows], k[b, kv], v[b, kv], at_keys, counts, scale)
            _take_in(out[b, heads], lse[b, heads], rows, *part)


def _one_piece(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, piece: _Piece
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in one piece. Shape: q ``[H, rows, D]``, k and v ``[heads of k, keys, D]``."""
    (heads, rows), keep, mask = q.shape[:2], piece.keep, None
    group = heads // k.shape[0]
    if piece.side:
        k, v = (x.repeat_interleave(group, 0) for x in (k, v))
        return _triangles(q, k, v, scale, piece.side)
    if group > 1:  # heads that share keys are rows
        q = q.reshape(k.shape[0], group * rows, q.shape[2])
    if keep is not None:
        mask = torch.zeros(keep.shape, dtype=q.dtype).masked_fill_(~keep, -math.inf)
        mask = mask.repeat(group, 1)[None, None]
    out, lse = _routed_flash(q[None], k[None], v[None], 0.0, False, attn_mask=mask, scale=scale)
    out, lse = out.reshape(heads, rows, -1), lse.reshape(heads, rows)
    return (out, lse) if keep is None else _without_keys(out, lse, ~keep.any(1))


def _triangles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in triangles along a diagonal. Shape: ``[H, n * side, D]``."""
    each = [x.unflatten(1, (-1, side)).transpose(0, 1) for x in (q, k, v)]  # [n, H, side, D]
    out, lse = _routed_flash(*each, 0.0, True, scale=scale)
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)


def _without_keys(
    out: torch.Tensor, lse: torch.Tensor, nothing: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put right what torch's kernel makes of rows without keys: 0, or no number."""
    if bool(nothing.any()):
        out = out.masked_fill(nothing[..., None], 0.0)
        lse = lse.masked_fill(nothing, -math.inf)
    return out, lse


def _one_stack(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, counts: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from each row to keys of its own. Shape: q ``[H, rows, D]``, keys ``[rows, n]``."""
    each = q.unflatten(0, (k.shape[0], -1)).permute(2, 0, 1, 3)  # [rows, heads of k, group, D]
    mask = None
    if not bool(counts.all()):
        mask = torch.zeros(counts.shape, dtype=q.dtype).masked_fill_(~counts, -math.inf)
        mask = mask[:, None, None].expand(-1, 1, each.shape[2], -1)
    given = [_own_keys(x, keys) for x in (k, v)]
    out, lse = _routed_flash(each, *given, 0.0, False, attn_mask=mask, scale=scale)
    out, lse = out.permute(1, 2, 0, 3).flatten(0, 1), lse.permute(1, 2, 0).flatten(0, 1)
    return (out, lse) if mask is None else _without_keys(out, lse, ~counts.any(1))


def _own_keys(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return the keys of each row. Shape: ``[rows, heads of k, n, D]``."""
    found = x.index_select(1, keys.flatten())
    return found.view(len(x), *keys.shape, -1).transpose(0, 1)


def _take_in(
    out: torch.Tensor, lse: torch.Tensor, rows: _At, part: torch.Tensor, own: torch.Tensor
) -> None:
    """Merge a part into the rows of a result. Shape: out ``[H, Q, Dv]``, part ``[H, rows, Dv]``."""
    before, merged, own = _pick(lse, rows), _pick(out, rows), own.to(lse.dtype)
    weight = torch.sigmoid(own - before).nan_to_num_(0.0)  # -inf beside -inf: no key
    merged.lerp_(part.to(out.dtype), weight[..., None])
    after = torch.logaddexp(before, own)
    if isinstance(rows, slice):
        lse[:, rows] = after
    else:
        out.index_copy_(1, rows, merged)
        lse.index_copy_(1, rows, after)
