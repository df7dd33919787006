"""The contract of a decode step, pasted verbatim into written modules: checks, torch.library.

``decode.py`` copies what stands below the cut line. Above it stand the names that the rest of such
a module defines.
"""

from __future__ import annotations

import math
from typing import Any

import torch

NAME = "causal"
OP = "causal_0123456789ab_decode"
HEADS: int | None = None
HEAD_DIM = 64
VALUE_DIM = 64
MAX_QUERIES = 16
GPU_DTYPES = (torch.bfloat16, torch.float16)
_NO_TRITON: ImportError | None = None
_EXTRA = ""


def _check_pattern(q: torch.Tensor, k: torch.Tensor, *extra: Any) -> None:
    raise NotImplementedError("a written module defines this")


def _space(*extra: Any) -> int | None:
    raise NotImplementedError("a written module defines this")


def _gpu_decode(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError("a written module defines this")


def _cpu_decode(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError("a written module defines this")


# --- cut: contract ---

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _call(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
    block_table: torch.Tensor | None, scale: float | None, *extra: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refuse what the dispatcher would word badly, then call the registered op."""
    scale = HEAD_DIM**-0.5 if scale is None else scale
    if isinstance(scale, torch.Tensor) or not isinstance(scale, int | float):
        raise ValueError(f"{NAME}: scale must be a number, got {type(scale).__name__}")
    result: tuple[torch.Tensor, torch.Tensor] = _op(
        q, k_cache, v_cache, lengths, block_table, float(scale), *extra
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


def _views(
    q: torch.Tensor, k_cache: torch.Tensor, table: torch.Tensor | None, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return stand-ins for q and k of the whole sequence, as long as the cache or the space."""
    tokens = _space(*extra)
    tokens = _capacity(k_cache, table) if tokens is None else tokens
    one = q.new_empty(()).expand
    return one(q.shape[0], q.shape[1], tokens, HEAD_DIM), one(
        q.shape[0], k_cache.shape[1], tokens, HEAD_DIM
    )


def _capacity(k_cache: torch.Tensor, table: torch.Tensor | None) -> int:
    """Return how many tokens the cache has room for in each sequence."""
    return k_cache.shape[2] * (1 if table is None else table.shape[1])


def _check(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
    table: torch.Tensor | None, *extra: Any,
) -> None:
    """Raise a ValueError that names the argument, what it is and what was expected."""
    items, tokens = ("B", "C") if table is None else ("pages", "page")
    for argument, t, shape, width in (
        ("q", q, "[B, Hq, T, {}]", HEAD_DIM),
        ("k_cache", k_cache, f"[{items}, Hkv, {tokens}, {{}}]", HEAD_DIM),
        ("v_cache", v_cache, f"[{items}, Hkv, {tokens}, {{}}]", VALUE_DIM),
    ):
        if t.dim() != 4 or t.shape[3] != width:
            raise ValueError(
                f"{NAME}: {argument} must be {shape.format(width)}, got {tuple(t.shape)}"
            )
        if t.shape[1] == 0:
            raise ValueError(f"{NAME}: {argument} has no heads: {tuple(t.shape)}")
        if t.stride(3) != 1:
            raise ValueError(
                f"{NAME}: the last dimension of {argument} must be contiguous, got stride "
                f"{t.stride(3)}"
            )
        if t.dtype not in _DTYPES or t.dtype != q.dtype:
            raise ValueError(f"{NAME}: {argument} has dtype {t.dtype}, q has {q.dtype}")
    if v_cache.shape[:3] != k_cache.shape[:3]:
        raise ValueError(
            f"{NAME}: v_cache is {tuple(v_cache.shape)} but k_cache is {tuple(k_cache.shape)}"
        )
    _check_table(q, lengths, table)
    if table is None and k_cache.shape[0] != q.shape[0]:
        raise ValueError(
            f"{NAME}: k_cache has batch size {k_cache.shape[0]} but q has {q.shape[0]}"
        )
    given = {"k_cache": k_cache, "v_cache": v_cache, "lengths": lengths, "block_table": table}
    for argument, one in given.items():
        if one is not None and one.device != q.device:
            raise ValueError(f"{NAME}: {argument} is on {one.device} but q is on {q.device}")
    if not 1 <= q.shape[2] <= MAX_QUERIES:
        raise ValueError(f"{NAME}: q has {q.shape[2]} queries, a step takes 1 to {MAX_QUERIES}")
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(
            f"{NAME}: the heads of q must be a multiple of the heads of k_cache, got "
            f"{q.shape[1]} and {k_cache.shape[1]}"
        )
    if HEADS is not None and q.shape[1] != HEADS:
        raise ValueError(
            f"{NAME}: q must have {HEADS} heads, one for each mask of the pattern, got {q.shape[1]}"
        )
    if q.device.type == "cuda" and q.dtype not in GPU_DTYPES:
        expected = " or ".join(str(dtype) for dtype in GPU_DTYPES)
        raise ValueError(f"{NAME}: q has dtype {q.dtype}, the kernel was compiled for {expected}")
    space, room, page = _space(*extra), _capacity(k_cache, table), k_cache.shape[2]
    if room > 2**30:
        raise ValueError(f"{NAME}: the cache has room for {room} tokens, the most is 2**30")
    if space is not None and room - (0 if table is None else max(page - 1, 0)) > space:
        raise ValueError(
            f"{NAME}: the cache has room for {room} tokens, but the space of the pattern has "
            f"{space} positions"
        )
    _check_pattern(*_views(q, k_cache, table, *extra), *extra)


def _check_table(q: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor | None) -> None:
    integers = (torch.int32, torch.int64)
    if lengths.dtype not in integers or lengths.shape != q.shape[:1]:
        raise ValueError(
            f"{NAME}: lengths must be int32 or int64 [{q.shape[0]}], got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    if table is not None and (
        table.dtype not in integers or table.dim() != 2 or table.shape[0] != q.shape[0]
    ):
        raise ValueError(
            f"{NAME}: block_table must be int32 or int64 [{q.shape[0]}, most pages], got "
            f"{table.dtype} {list(table.shape)}"
        )


def _decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
    table: torch.Tensor | None, scale: float, *extra: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a step. Shape: out ``[B, Hq, T, Dv]``, lse ``[B, Hq, T]``, both contiguous."""
    _tensors(q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths)
    _check(q, k_cache, v_cache, lengths, table, *extra)
    if not math.isfinite(scale):
        raise ValueError(f"{NAME}: scale must be finite, got {scale}")
    if q.device.type == "cpu":
        return _cpu_decode(q, k_cache, v_cache, lengths, table, scale, *extra)
    if _NO_TRITON is not None:
        raise RuntimeError(f"{NAME}: a GPU needs triton, which did not load") from _NO_TRITON
    return _gpu_decode(q, k_cache, v_cache, lengths, table, scale, *extra)


def _empty(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uninitialised results; lse is float32, float64 beside float64."""
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty((*q.shape[:3], VALUE_DIM))
    return out, q.new_empty(q.shape[:3], dtype=lse_dtype)


def _fake(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
    table: torch.Tensor | None, scale: float, *extra: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, k_cache, v_cache, lengths, table, *extra)
    return _empty(q)


def _autograd(*arguments: Any) -> Any:
    """Refuse gradients: a step serves generation."""
    flat = [t for a in arguments for t in (a if isinstance(a, list | tuple) else [a])]
    if torch.is_grad_enabled() and any(
        isinstance(t, torch.Tensor) and t.requires_grad for t in flat
    ):
        raise RuntimeError(
            f"attnc: a decode step of {NAME} has no backward; call it under torch.no_grad()"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return _op(*arguments)


def _register() -> Any:
    """Define the op, unless another copy of this module has; return it."""
    if not hasattr(torch.ops.attnc, OP):
        library = torch.library.Library("attnc", "FRAGMENT")
        # The op lives as long as its library object, and other copies of this module may use it.
        torch.library.__dict__.setdefault("_attnc_libraries", []).append(library)
        library.define(
            f"{OP}(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, "
            f"Tensor? block_table, float scale{_EXTRA}) -> (Tensor, Tensor)",
            tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
        )
        library.impl(OP, _decode, "CPU")
        library.impl(OP, _decode, "CUDA")
        library.impl(OP, _autograd, "Autograd")
        torch.library.register_fake(f"attnc::{OP}", _fake, lib=library)
    return getattr(torch.ops.attnc, OP).default


_op = _register()
