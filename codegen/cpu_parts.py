"""q, k, v + parts in residue classes -> attention, part by part, merged by log-sum-exp.

``codegen/cpu.py`` pastes what stands below the cut line, verbatim, into every written module whose
plan has parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from attnc.codegen.cpu_backward import _cpu_attention_backward, _Gradients
from attnc.codegen.cpu_distances import _cpu_by_distance_backward, _go_on_by_distance
from attnc.codegen.cpu_executor import _cpu_attention
from attnc.codegen.cpu_schedule import _CpuTiles

# --- cut: parts ---

# Token a of class r stands at a * modulus + r. A few classes at a time are copied together, as
# batches of shorter sequences, so that what a call reads is contiguous and stays in the cache.

_CLASS_BYTES = 16 << 20  # of q, k and v of the classes that run together
_Parts = tuple[tuple[int, _CpuTiles], ...]  # (modulus, tiles of a class)


def _cpu_in_parts(
    parts: _Parts, distances: tuple[int, ...],
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a plan. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``, both contiguous."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=exact)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=exact)
    for number, (modulus, tiles) in enumerate(parts):
        for first, stop in _classes(modulus, q, k, v):
            found = [_of_classes(x, modulus, first, stop) for x in (q, k, v, out, lse)]
            cq, ck, cv = (_together(x, modulus) for x in found[:3])
            part, part_lse = _cpu_attention(tiles, cq, ck, cv, scale)
            rows, rows_lse = found[3:]
            part, part_lse = part.view_as(rows), part_lse.view_as(rows_lse)
            if number:
                _merge(rows, rows_lse, part, part_lse)
            else:
                rows.copy_(part)
                rows_lse.copy_(part_lse)
    if distances:
        _go_on_by_distance(distances, q, k, v, out, lse, scale)
    return out.to(q.dtype), lse


def _merge(
    out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor
) -> None:
    """Add a part to the rows it belongs to, weighted by log-sum-exp; a row may have no key yet."""
    whole = torch.logaddexp(lse, part_lse)
    known = whole.masked_fill(whole == -math.inf, 0.0)  # exp(-inf - 0) is 0, not NaN
    out.mul_((lse - known).exp_()[..., None])
    out.add_((part_lse - known).exp_()[..., None] * part)
    lse.copy_(whole)


def _cpu_in_parts_backward(
    parts: _Parts,
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
) -> _Gradients:
    """Run a plan backward. Returns: dq, dk, dv, contiguous; None where ``needs`` says so."""
    grads = [
        x.new_zeros(x.shape, dtype=lse.dtype) if wanted else None
        for x, wanted in zip((q, k, v), needs, strict=False)
    ]
    given = [q, k, v, out, lse, grad_out, *([] if grad_lse is None else [grad_lse])]
    for modulus, tiles in parts:
        for first, stop in _classes(modulus, *given):
            found = [_together(_of_classes(x, modulus, first, stop), modulus) for x in given]
            cq, ck, cv, c_out, c_lse, c_grad, *c_grad_lse = found
            shares = _cpu_attention_backward(
                tiles, cq, ck, cv, c_out, c_lse, c_grad, next(iter(c_grad_lse), None), scale, needs
            )
            for grad, share in zip(grads, shares, strict=True):
                if grad is not None and share is not None:
                    rows = _of_classes(grad, modulus, first, stop)
                    rows += share.view_as(rows)
    if distances:
        single = _cpu_by_distance_backward(
            distances, q, k, v, out, lse, grad_out, grad_lse, scale, needs
        )
        for grad, share in zip(grads, single, strict=True):
            if grad is not None and share is not None:
                grad += share
    dq, dk, dv = (None if x is None else x.to(q.dtype) for x in grads)
    return dq, dk, dv


def _classes(
    modulus: int, q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor
) -> Iterator[tuple[int, int]]:
    """Yield ranges of classes as long as each other, as many at a time as the cache may hold."""
    nq, nk = q.shape[2], k.shape[2]
    size = sum(x.numel() * x.element_size() for x in (q, k, *rest)) // modulus
    together = max(1, _CLASS_BYTES // max(size, 1))
    ends = sorted({0, nq % modulus, nk % modulus, modulus})
    for first, stop in itertools.pairwise(ends):
        if nq > first:  # the other classes have no query
            for at in range(first, stop, together):
                yield at, min(at + together, stop)


def _together(x: torch.Tensor, modulus: int) -> torch.Tensor:
    """Return classes as batches, copied where they lie apart. Shape: ``[B * classes, H, ...]``."""
    return (x if modulus == 1 else x.contiguous()).flatten(0, 1)


def _of_classes(x: torch.Tensor, modulus: int, first: int, stop: int) -> torch.Tensor:
    """Return the tokens of some classes, a view. Shape: ``[B, classes, H, tokens, ...]``."""
    tokens = max(0, -(-(x.shape[2] - first) // modulus))
    sizes = (x.shape[0], stop - first, x.shape[1], tokens, *x.shape[3:])
    batch, head, token, *inner = x.stride()
    steps = (batch, token, head, token * modulus, *inner)
    return x.as_strided(sizes, steps, x.storage_offset() + first * token)
