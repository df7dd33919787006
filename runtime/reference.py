"""q, k, v, a mask or all terms of a pattern -> float64 attention, and how far a kernel may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.runtime.real_terms import real_values

_ULP = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
_ULPS_ALLOWED = {torch.float64: 8, torch.float32: 8, torch.float16: 1, torch.bfloat16: 1}


@dataclass(frozen=True, slots=True)
class Terms:
    """What attention is made of besides q, k and v.

    Shape: mask bool, broadcast to ``[B, Hq, Q, K]``; ``score`` maps scaled products ``[B, Hq, Q,
    K]`` in float64 to what the softmax runs over (None: the products); ``sink`` float64, broadcast
    to ``[B, Hq]``, is a logit beside the keys.
    """

    mask: Tensor
    score: Callable[[Tensor], Tensor] | None = None
    sink: Tensor | None = None


def terms(
    pattern: Pattern,
    q: Tensor,
    k: Tensor,
    inputs: Mapping[str, Any] | None = None,
    extents: Mapping[str, int] | None = None,
) -> Terms:
    """Evaluate a pattern at the lengths of q and k, by its definition.

    Scores, at pairs that are kept, and sinks have a gradient for the inputs that require one.

    Args: ``inputs`` are tensors, with or without a batch dimension, and numbers, by name.
    """
    nq, nk = q.shape[2], k.shape[2]
    ranks = {one.name: len(one.dims) for one in pattern.inputs}
    batched = {n for n, x in (inputs or {}).items() if np.ndim(x) > ranks[n]}
    items = max((len((inputs or {})[n]) for n in batched), default=1)
    given = []
    for item in range(items):
        own = {n: x[item if len(x) > 1 else 0] if n in batched else x
               for n, x in (inputs or {}).items()}  # fmt: skip
        arrays = {n: _array(x) if isinstance(x, Tensor) else x for n, x in own.items()}
        learned = {n: x for n, x in own.items() if isinstance(x, Tensor) and x.requires_grad}
        given.append((arrays, pattern.given(nq, nk, arrays, extents) | learned))
    group = q.shape[1] // k.shape[1] if pattern.kv_heads else 1
    mask = torch.stack([
        torch.from_numpy(pattern.mask(nq, nk, arrays, extents)) for arrays, _ in given
    ]).repeat_interleave(group, 1)  # fmt: skip

    def score(dot: Tensor) -> Tensor:
        assert pattern.score is not None
        kept, products = mask.broadcast_to(dot.shape).nonzero(), dot.cpu()
        found = torch.zeros_like(products)
        for item, (_, data) in enumerate(given):
            some = kept[kept[:, 0] == item] if items > 1 else kept
            _, heads, rows, keys = (x.numpy() for x in some.unbind(1))
            h = heads // group if pattern.heads else 0 * heads
            scope = {"q": rows, "k": keys, "h": h, "nq": nq, "nk": nk}
            at = tuple(some.unbind(1))
            values = real_values(pattern.score, scope, data, products[at])
            found = found.index_put(at, values)
        return found.to(dot.device)

    return Terms(
        mask=mask,
        score=None if pattern.score is None else score,
        sink=None if pattern.sink is None else torch.stack([
            _sink(pattern, pattern.sink, nq, nk, data) for _, data in given
        ]).repeat_interleave(group, 1),
    )  # fmt: skip


def _array(x: Tensor) -> Any:
    plain = x.detach().cpu()
    return (plain.double() if plain.is_floating_point() else plain).numpy()


def _sink(
    pattern: Pattern, sink: sc.RealExpr, nq: int, nk: int, data: Mapping[str, Any]
) -> Tensor:
    """Evaluate the logit beside the keys. Shape: ``[heads or 1]``."""
    heads = pattern.heads or 1
    scope = {"h": np.arange(heads), "nq": nq, "nk": nk}
    return real_values(sink, scope, data, torch.zeros(heads, dtype=torch.float64))


def reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Terms, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Compute masked attention densely in float64.

    Shape: q ``[B, Hq, Q, D]``, k ``[B, Hkv, K, D]``, v ``[B, Hkv, K, Dv]``; mask bool, broadcast to
    ``[B, Hq, Q, K]``, or ``Terms``.
    Returns: out ``[B, Hq, Q, Dv]`` and lse ``[B, Hq, Q]`` (natural logarithm), both float64; a row
    that keeps no key has out 0 and lse -inf, or the sink.
    """
    return _dense(q.double(), k.double(), v.double(), mask, scale)


def same_precision(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Terms, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the same with torch matmuls in the dtype of the inputs: the error to hold against."""
    return _dense(q, k, v, mask, scale)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Terms, scale: float | None
) -> tuple[Tensor, Tensor]:
    given = mask if isinstance(mask, Terms) else Terms(mask)
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.matmul(q, k.transpose(-1, -2)) * factor  # [B, Hq, Q, K]
    if given.score is not None:
        scores = given.score(scores.double()).to(scores.dtype)
    keep = given.mask.to(scores.device).broadcast_to(scores.shape)
    scores = scores.masked_fill(~keep, -math.inf)
    if given.sink is not None:  # one more key, whose value is 0
        logit = given.sink.to(scores)[..., None, None].broadcast_to((*scores.shape[:3], 1))
        scores = torch.cat([scores, logit], -1)
        v = torch.nn.functional.pad(v, (0, 0, 0, 1))
    empty = torch.isneginf(scores).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores, dim=-1) if scores.shape[-1] else scores.sum(-1) - math.inf
    return torch.matmul(weights, v), lse


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """The largest error allowed against float64, for the output and for the log-sum-exp."""

    out: float
    lse: float


def out_allowance(dtype: torch.dtype, dense_error: float, largest_out: float) -> float:
    """Return the error allowed in an output: twice the dense one, plus some ulp at the maximum."""
    return 2 * dense_error + _ULPS_ALLOWED[dtype] * _ULP[dtype] * largest_out


def error_bound(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Terms, scale: float | None = None
) -> ErrorBound:
    """Return twice the error of a dense same-dtype computation, plus some ulp at the maximum.

    The allowance is 8 ulp (fp32) or 1 ulp (half types) at ``max|out|``. The log-sum-exp is held
    in fp32, so its allowance is 8 fp32 ulp at ``max|lse|`` whatever the dtype; where the dense
    computation rounds the scores to a half type its error counts in the same way.
    """
    out64, lse64 = reference(q, k, v, mask, scale)
    out, lse = same_precision(q, k, v, mask, scale)
    finite = torch.isfinite(lse64)
    return ErrorBound(
        out=out_allowance(q.dtype, _largest(out.double() - out64), _largest(out64)),
        lse=2 * _largest((lse.double() - lse64)[finite])
        + 8 * _ULP[torch.float32] * max(1.0, _largest(lse64[finite])),
    )


def assert_within(
    out: Tensor,
    lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Terms,
    scale: float | None = None,
) -> None:
    """Check a result against float64 by the error rule; rows without keys are checked exactly.

    Raises: AssertionError that says which bound is broken and by how much.
    """
    out64, lse64 = reference(q, k, v, mask, scale)
    bound = error_bound(q, k, v, mask, scale)
    if out.shape != out64.shape:
        raise AssertionError(f"out is {tuple(out.shape)}, expected {tuple(out64.shape)}")
    if not torch.isfinite(out).all():
        raise AssertionError("out holds NaN or inf")
    empty = torch.isneginf(lse64)
    if out[empty].any():
        raise AssertionError("a query without keys has an output that is not 0")
    error = _largest(out.double() - out64)
    if error > bound.out:
        raise AssertionError(f"out is off by {error:.3e}, allowed {bound.out:.3e}")
    if lse is None:
        return
    if lse.shape != lse64.shape:
        raise AssertionError(f"lse is {tuple(lse.shape)}, expected {tuple(lse64.shape)}")
    if not torch.equal(torch.isneginf(lse), empty):
        raise AssertionError("lse is not -inf exactly on the queries without keys")
    error = _largest((lse.double() - lse64)[~empty])
    if not error <= bound.lse:
        raise AssertionError(f"lse is off by {error:.3e}, allowed {bound.lse:.3e}")


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
