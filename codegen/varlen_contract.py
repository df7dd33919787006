"""The contract of packed sequences, pasted verbatim into written modules: checks, the CPU's loop.

``varlen.py`` copies what stands below the cut line. Above it stand the names that the rest of such
a module defines; ``op_registration.py`` follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

NAME = "causal.varlen"
HEADS: int | None = None
HEAD_DIM = 64
VALUE_DIM = 64
GPU_DTYPES = (torch.bfloat16, torch.float16)
_NO_TRITON: ImportError | None = None
_EXTRA = ""
_op: Any = None


def _unwritten(*arguments: Any, **named: Any) -> Any:
    raise NotImplementedError("a written module defines this")


_check_pattern = _lse_without_keys = _unwritten
_cpu_forward = _cpu_backward = _gpu_forward = _gpu_backward = _unwritten


# --- cut: packed sequences ---

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MOST_TOKENS = 2**30  # positions are 32-bit in the kernels, addresses are not


def _call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts_q: torch.Tensor,
    starts_k: torch.Tensor | None, longest: tuple[Any, Any], scale: float | None, *extra: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refuse what the dispatcher would word badly, then call the registered op."""
    starts_k = starts_q if starts_k is None else starts_k
    scale = HEAD_DIM**-0.5 if scale is None else scale
    if isinstance(scale, torch.Tensor) or not isinstance(scale, int | float):
        raise ValueError(f"{NAME}: scale must be a number, got {type(scale).__name__}")
    for side, starts, most in zip("qk", (starts_q, starts_k), longest, strict=True):
        if most is None:
            continue
        if isinstance(most, bool) or not isinstance(most, int | torch.SymInt):
            raise ValueError(f"{NAME}: max_seqlen_{side} is a {type(most).__name__}, not an int")
        if starts.device.type == "cpu" and not torch.compiler.is_compiling():
            longer = int(starts.diff().max()) if len(starts) > 1 else 0
            if longer > most:
                raise ValueError(
                    f"{NAME}: max_seqlen_{side} is {most}, but a sequence has {longer} tokens"
                )
    result: tuple[torch.Tensor, torch.Tensor] = _op(
        q, k, v, float(scale), *(extra or ([], [], [])), starts_q, starts_k
    )
    return result


def _tensors(**given: Any) -> None:
    """Raise a TypeError or ValueError for what is no tensor, or one elsewhere."""
    for argument, t in given.items():
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{NAME}: {argument} must be a torch.Tensor, got {type(t).__name__}")
        if t.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(
                f"{NAME}: {argument} is on device {t.device}; this op runs on cpu and cuda"
            )


def _views(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k as one sequence. Shape: ``[1, H, tokens, D]``."""
    return q.transpose(0, 1)[None], k.transpose(0, 1)[None]


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts_q: torch.Tensor,
    starts_k: torch.Tensor, *extra: Any,
) -> None:
    """Raise a ValueError that names the argument, what it is and what was expected."""
    for argument, t, shape, width in (
        ("q", q, "[total_q, Hq, {}]", HEAD_DIM),
        ("k", k, "[total_k, Hkv, {}]", HEAD_DIM),
        ("v", v, "[total_k, Hkv, {}]", VALUE_DIM),
    ):
        if t.dim() != 3 or t.shape[2] != width:
            raise ValueError(
                f"{NAME}: {argument} must be {shape.format(width)}, got {tuple(t.shape)}"
            )
        if t.shape[1] == 0:
            raise ValueError(f"{NAME}: {argument} has no heads: {tuple(t.shape)}")
        if t.stride(2) != 1:
            raise ValueError(
                f"{NAME}: the last dimension of {argument} must be contiguous, got stride "
                f"{t.stride(2)}; write {argument}.contiguous()"
            )
        if t.dtype not in _DTYPES or t.dtype != q.dtype:
            raise ValueError(f"{NAME}: {argument} has dtype {t.dtype}, q has {q.dtype}")
        if t.device != q.device:
            raise ValueError(f"{NAME}: {argument} is on {t.device} but q is on {q.device}")
        if t.shape[0] > _MOST_TOKENS:
            raise ValueError(f"{NAME}: {argument} has {t.shape[0]} tokens, the most is 2**30")
    if v.shape[:2] != k.shape[:2]:
        raise ValueError(f"{NAME}: v is {tuple(v.shape)} but k is {tuple(k.shape)}")
    if q.shape[1] % k.shape[1] != 0:
        raise ValueError(
            f"{NAME}: the heads of q must be a multiple of the heads of k, "
            f"got {q.shape[1]} and {k.shape[1]}"
        )
    if HEADS is not None and q.shape[1] != HEADS:
        raise ValueError(
            f"{NAME}: q must have {HEADS} heads, one for each mask of the pattern, got {q.shape[1]}"
        )
    if q.device.type == "cuda" and q.dtype not in GPU_DTYPES:
        expected = " or ".join(str(dtype) for dtype in GPU_DTYPES)
        raise ValueError(f"{NAME}: q has dtype {q.dtype}, the kernel was compiled for {expected}")
    for argument, starts in (("cu_seqlens_q", starts_q), ("cu_seqlens_k", starts_k)):
        whole = starts.dtype in (torch.int32, torch.int64)
        if not whole or starts.dim() != 1 or starts.numel() == 0:
            raise ValueError(
                f"{NAME}: {argument} must be int32 or int64 [B + 1], got {starts.dtype} "
                f"{list(starts.shape)}"
            )
        if starts.device != q.device:
            raise ValueError(f"{NAME}: {argument} is on {starts.device} but q is on {q.device}")
    if starts_q.shape != starts_k.shape:
        raise ValueError(
            f"{NAME}: cu_seqlens_q tells of {starts_q.shape[0] - 1} sequences, "
            f"cu_seqlens_k of {starts_k.shape[0] - 1}"
        )
    _check_pattern(*_views(q, k), *(extra if _EXTRA else ()))


# ---- On a CPU: neighbours of equal lengths are a batch of the op.


class _PackedRun(NamedTuple):
    """Sequences of equal lengths, one after the other: how many, their queries, their keys."""

    items: int
    rows: slice
    keys: slice

    def of(self, x: torch.Tensor, tokens: slice) -> torch.Tensor:
        """View their part of a tensor. Shape: ``[total, H, ...] -> [items, H, tokens, ...]``."""
        part: torch.Tensor = x[tokens].unflatten(0, (self.items, -1))
        return part.transpose(1, 2)


def _packed_runs(
    starts_q: torch.Tensor, starts_k: torch.Tensor, totals: tuple[int, int]
) -> Iterator[_PackedRun]:
    """Yield all sequences that have queries; lengths are read, so their values are checked."""
    bounds = []
    for side, starts, total in zip("qk", (starts_q, starts_k), totals, strict=True):
        found = starts.tolist()
        if found[0] != 0 or found[-1] != total or any(a > b for a, b in pairwise(found)):
            shown = found if len(found) <= 8 else [*found[:4], "...", *found[-3:]]
            raise ValueError(
                f"{NAME}: cu_seqlens_{side} must rise from 0 to {total}, the tokens of {side}, "
                f"got [{', '.join(map(str, shown))}]"
            )
        bounds.append(list(pairwise(found)))
    sequences = list(zip(*bounds, strict=True))
    first = 0
    while first < len(sequences):
        (q0, q1), (k0, k1) = sequences[first]
        last = first
        while last + 1 < len(sequences) and [b - a for a, b in sequences[last + 1]] == [
            q1 - q0, k1 - k0
        ]:  # fmt: skip
            last += 1
        if q1 > q0:
            ends = sequences[last]
            yield _PackedRun(last + 1 - first, slice(q0, ends[0][1]), slice(k0, ends[1][1]))
        first = last + 1


def _cpu_packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, starts_q: torch.Tensor,
    starts_k: torch.Tensor, *extra: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the executor. Shape: out ``[total_q, Hq, Dv]``, lse ``[Hq, total_q]``."""
    out, lse = _empty(q)
    for run in _packed_runs(starts_q, starts_k, (len(q), len(k))):
        part = run.of(q, run.rows), run.of(k, run.keys), run.of(v, run.keys)
        whole, sums = run.of(out, run.rows), run.of(lse.mT, run.rows)
        if run.keys.start == run.keys.stop:
            whole.zero_()
            sums.copy_(_lse_without_keys(*part[:2], torch.empty_like(sums), *extra))
            continue
        found = _cpu_forward(*part, scale, *extra)
        whole.copy_(found[0])
        sums.copy_(found[1])
    return out, lse


def _cpu_packed_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, scale: float, starts_q: torch.Tensor,
    starts_k: torch.Tensor, *extra: Any, needs: Sequence[bool],
) -> tuple[Any, Any, Any, list[Any]]:
    """Run it backward. Returns dq, dk, dv, those of inputs; None: not wanted."""
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    given: list[Any] = [None] * (len(needs) - 3)
    if extra:  # sums over sequences are rounded once, at the end
        exact = [
            t.float() if t is not None and t.dtype in (torch.bfloat16, torch.float16) else t
            for t in extra[0]
        ]
        extra = (exact, *extra[1:])
    for run in _packed_runs(starts_q, starts_k, (len(q), len(k))):
        rows, keys = run.rows, run.keys
        parts = [run.of(x, at) for x, at in ((q, rows), (k, keys), (v, keys), (out, rows))]
        sums = [None if x is None else run.of(x.mT, rows) for x in (lse, grad_lse)]
        *found, inputs = _cpu_backward(
            *parts, sums[0], run.of(grad_out, rows), sums[1], scale, *extra, needs=needs
        )
        for whole, part, at in zip(grads, found, (rows, keys, keys), strict=True):
            if part is not None:
                run.of(whole, at).copy_(part)
        given = [
            part if sum_ is None else sum_ if part is None else sum_ + part
            for sum_, part in zip(given, inputs, strict=True)
        ]
    tensors = extra[0] if extra else []
    for place, (t, need) in enumerate(zip(tensors, needs[3:], strict=True)):
        if need and given[place] is None:
            given[place] = torch.zeros_like(t)
    dq, dk, dv = (x if need else None for x, need in zip(grads, needs, strict=False))
    return dq, dk, dv, given


# ---- What is registered.


def _schema() -> str:
    return (
        ", Tensor?[] inputs, SymInt[] numbers, float[] reals, Tensor cu_seqlens_q, "
        "Tensor cu_seqlens_k"
    )


def _sorted_out(extra: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return where sequences start, and behind that what the pattern's functions take."""
    *given, starts_q, starts_k = extra
    return starts_q, starts_k, *(given if _EXTRA else ())


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the op. Shape: out ``[total_q, Hq, Dv]``, lse ``[Hq, total_q]``, both contiguous."""
    given = _sorted_out(extra)
    _check(q, k, v, *given)
    if not math.isfinite(scale):
        raise ValueError(f"{NAME}: scale must be finite, got {scale}")
    if q.device.type == "cpu":
        return _cpu_packed(q, k, v, scale, *given)
    if _NO_TRITON is not None:
        raise RuntimeError(f"{NAME}: a GPU needs triton, which did not load") from _NO_TRITON
    out, lse = _empty(q)
    _gpu_forward(q, k, v, scale, out, lse, *given)
    return out, lse


def _empty(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uninitialised results; lse is float32, float64 beside float64."""
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty((q.shape[0], q.shape[1], VALUE_DIM))
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=lse_dtype)


def _fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, k, v, *_sorted_out(extra))
    return _empty(q)


def _backward(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    scale: float, *extra: Any, needs: Sequence[bool],
) -> list[torch.Tensor]:
    """Return the gradients that ``needs`` asks for, of q, k, v and the tensors of the inputs."""
    given = _sorted_out(extra)
    _check(q, k, v, *given)
    if grad_out.stride(2) != 1:
        grad_out = grad_out.contiguous()
    if q.device.type != "cpu" and _NO_TRITON is not None:
        raise RuntimeError(f"{NAME}: a GPU needs triton, which did not load") from _NO_TRITON
    run = _cpu_packed_backward if q.device.type == "cpu" else _gpu_backward
    *found, inputs = run(q, k, v, out, lse, grad_out, grad_lse, scale, *given, needs=needs)
    kinds = [t.dtype if t is not None else None for t in (q, k, v, *extra[0])]
    return [
        x.to(kind).contiguous()
        for x, kind, need in zip((*found, *inputs), kinds, needs, strict=True)
        if need
    ]


def _fake_backward(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    scale: float, *extra: Any, needs: Sequence[bool],
) -> list[torch.Tensor]:
    _check(q, k, v, *_sorted_out(extra))
    given = (q, k, v, *extra[0])
    return [t.new_empty(t.shape) for t, need in zip(given, needs, strict=True) if need]


def _vmap(*arguments: Any, **named: Any) -> Any:
    """Refuse: packed sequences have no dimension to fold another into."""
    raise ValueError(f"{NAME}: vmap does not map packed sequences; call the op once for each")


_vmap_of_backward = _vmap
