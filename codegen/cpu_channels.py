"""score terms that are products of one of the query and one of the key -> channels of q and k.

``codegen/data.py`` pastes what stands below the cut line, verbatim, into the written modules of
patterns with such scores, behind the gathered executor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attnc.codegen.cpu_executor import _cpu_attention
from attnc.codegen.cpu_gathered import _Gathered, _gathered_attention
from attnc.codegen.cpu_schedule import _CpuTiles
from attnc.codegen.tables import _Data

# --- cut: channels ---

# `a[q] * b[k]` is one more channel of the product, `b[k]` one against ones, and `a[q]` joins the
# log-sum-exp of its row. A channel is rounded as a term is that is added: by its own size. In half
# types it would be rounded to a few digits, and an infinite element would meet zeros: there, and
# for scales that a division by them would take out of range, terms are added pair by pair.

_SCALES = (1e-6, 1e6)  # least and largest magnitude


def _attend_by_channels(
    plan: _Gathered, tiles: _CpuTiles, terms: Callable[..., Any], q: torch.Tensor, k: torch.Tensor,
    v: torch.Tensor, scale: float, data: _Data,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run strips with more channels, or the gathered plan. Shape: as ``_gathered_attention``.

    ``terms(q, k, h, b, nq, nk, data, dtype)`` returns those of the query and of the key, which
    match, and what is added once a row.
    """
    exact = q.dtype in (torch.float32, torch.float64)
    if exact and _SCALES[0] <= abs(scale) <= _SCALES[1]:
        (batch, heads, nq), (kv_heads, nk) = q.shape[:3], k.shape[1:3]
        with torch.device("cpu"):  # whatever the default device is
            h = torch.arange(heads)[:, None] // (heads // kv_heads if plan.kv_heads else 1)
            b = torch.arange(batch)[:, None, None]
            reals = {n: x for n, x in data.items() if isinstance(x, torch.Tensor)}
            read = {n: x.to(q.dtype) for n, x in reals.items() if x.is_floating_point()}
            at = (torch.arange(nq), torch.arange(nk))
            of_q, of_k, row = terms(*at, h, b, nq, nk, data | read, q.dtype)
        asked = torch.stack([x.expand(batch, heads, nq) for x in of_q], 3) / scale
        seen = torch.stack([x.expand(batch, kv_heads, nk) for x in of_k], 3)
        if asked.isfinite().all() and seen.isfinite().all() and row.isfinite().all():
            q, k = torch.cat([q, asked], 3), torch.cat([k, seen], 3)
            out, lse = _cpu_attention(tiles, q, k, v, scale)
            return out, lse + row
    return _gathered_attention(plan, q, k, v, scale, data)
