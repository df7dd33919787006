"""op, q, k, v -> a verified result and its times, beside dense attention."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.runtime.reference import Terms, out_allowance, reference, same_precision

Op = Callable[..., Tensor]
ALL_ROWS_UP_TO = 4096
SAMPLED_ROWS = 512
SCORES_BYTES = 64 * 2**20
"""Verification holds at most about this many bytes of float64 scores at a time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The largest error against float64 over the rows checked, and what is allowed."""

    error: float
    allowed: float
    rows: int
    rows_total: int

    @property
    def right(self) -> bool:
        """Whether the error is within the bound (a NaN is not)."""
        return self.error <= self.allowed


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in milliseconds over interleaved rounds; ``dense_ms`` None: not timed."""

    op_ms: float
    dense_ms: float | None
    rounds: int


def rows_to_check(queries: int) -> Tensor:
    """Return all rows of a short sequence; of a long one both ends and a seeded sample."""
    if queries <= ALL_ROWS_UP_TO:
        return torch.arange(queries)
    edge = SAMPLED_ROWS // 8
    generator = torch.Generator().manual_seed(queries)
    inner = torch.randperm(queries - 2 * edge, generator=generator)[: SAMPLED_ROWS - 2 * edge]
    ends = torch.cat([torch.arange(edge), torch.arange(queries - edge, queries)])
    return torch.cat([ends, inner + edge]).sort().values


def verify(
    pattern: Pattern, out: Tensor, q: Tensor, k: Tensor, v: Tensor,
    given: Mapping[str, Any] | None = None,
) -> Verdict:
    """Hold ``out`` against float64 dense attention, by the error rule of ``reference``.

    Head by head and some rows at a time: memory is rows times keys, never queries times keys.
    Each row checked is checked against all of its keys, so a sample only leaves rows out.
    Args: ``given`` has what the pattern reads, by name (``Pattern.given``), without a batch.
    """
    rows = rows_to_check(q.shape[2])
    error = dense_error = largest = 0.0
    group = q.shape[1] // k.shape[1]
    scale = None if pattern.scale is None else float(pattern.scale)
    for part in rows.split(max(1, SCORES_BYTES // (8 * max(k.shape[2], 1)))):
        for head in range(q.shape[1]):
            own = 0 if pattern.heads is None else head // group if pattern.kv_heads else head
            kv = slice(head // group, head // group + 1)
            parts = q[:, head : head + 1, part.to(q.device)], k[:, kv], v[:, kv]
            known = terms_of_rows(pattern, part, own, q.shape[2], k.shape[2], given)
            exact, _ = reference(*parts, known, scale)
            dense, _ = same_precision(*parts, known, scale)
            found = out[:, head : head + 1, part.to(out.device)]
            if not torch.isfinite(found).all():
                error = float("nan")
            if exact.numel() and error == error:
                error = max(error, float((found.double() - exact).abs().max()))
                dense_error = max(dense_error, float((dense.double() - exact).abs().max()))
                largest = max(largest, float(exact.abs().max()))
    allowed = out_allowance(q.dtype, dense_error, largest)
    return Verdict(error, allowed, len(rows), q.shape[2])


def terms_of_rows(
    pattern: Pattern, rows: Tensor, head: int, nq: int, nk: int,
    given: Mapping[str, Any] | None = None,
) -> Terms:
    """Evaluate what attention is made of in some rows of one head of the mask.

    Shape: mask ``[rows, nk]``; ``score`` maps ``[..., rows, nk]``.
    """
    scope = {
        "q": rows.numpy()[:, None], "k": np.arange(nk, dtype=np.int64)[None, :], "h": head,
        "nq": nq, "nk": nk,
    }  # fmt: skip
    kept = np.asarray(ex.evaluate(pattern.predicate, scope, given), dtype=bool)
    mask = torch.from_numpy(np.broadcast_to(kept, (len(rows), nk)).copy())
    logit = None
    if pattern.sink is not None:
        logit = torch.as_tensor(np.asarray(sc.evaluate(pattern.sink, scope, given)).item())

    def score(dot: Tensor) -> Tensor:
        assert pattern.score is not None
        values = sc.evaluate(pattern.score, scope, given, dot.cpu().numpy())
        return torch.from_numpy(np.asarray(values)).to(dot.device)

    return Terms(mask, None if pattern.score is None else score, logit)


def measure(
    op: Op, q: Tensor, k: Tensor, v: Tensor, *, rounds: int, dense: bool, **inputs: Any
) -> Times:
    """Time the op and dense SDPA in turns, after one warm-up of each.

    Turns, because a machine that slows down half way must slow both.
    """
    calls: list[Callable[[], object]] = [lambda: op(q, k, v, **inputs)]
    if dense:
        calls.append(lambda: dense_attention(q, k, v))
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            times.append(_timed_ms(call, q.device))
    medians = [statistics.median(times) for times in taken]
    return Times(medians[0], medians[1] if dense else None, rounds)


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention by torch: on a GPU cuDNN where it serves the dtype, else torch's choice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    cudnn = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
    if cudnn and torch.version.cuda is not None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q, k, v)
    return scaled_dot_product_attention(q, k, v)


def _timed_ms(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop))
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3
