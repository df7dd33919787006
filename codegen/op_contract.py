"""The contract of an op, pasted verbatim into every written module: checks, and what is registered.

``module.py`` copies what stands between the cut lines: the checks first, the rest at the end of a
module, in front of ``op_registration.py``. Above them stand the names that the rest of a written
module defines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

NAME = "causal"
OP = "causal_0123456789ab"
HEADS: int | None = None
HEAD_DIM = 64
VALUE_DIM = 64
GPU_DTYPES = (torch.bfloat16, torch.float16)
_NO_TRITON: ImportError | None = None


_EXTRA = ""


def _check_pattern(q: torch.Tensor, k: torch.Tensor, *extra: Any) -> None:
    raise NotImplementedError("a written module defines this")


def _lse_without_keys(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, *extra: Any
) -> torch.Tensor:
    raise NotImplementedError("a written module defines this")


def _gpu_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
    out: torch.Tensor, lse: torch.Tensor, *extra: Any,
) -> None:
    raise NotImplementedError("a written module defines this")


def _cpu_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError("a written module defines this")


def _cpu_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, scale: float, *extra: Any,
    needs: Sequence[bool],
) -> tuple[Any, Any, Any, list[Any]]:
    raise NotImplementedError("a written module defines this")


def _gpu_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, scale: float, *extra: Any,
    needs: Sequence[bool],
) -> tuple[Any, Any, Any, list[Any]]:
    raise NotImplementedError("a written module defines this")


_op: Any = None
_backward_op: Any = None


# --- cut: checks ---

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_DEVICES = ("cpu", "cuda", "meta")
_MOST_TOKENS = 2**30  # positions are 32-bit in the kernels, addresses are not


def _call(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refuse what the dispatcher would word badly, then call the registered op."""
    for argument, t in (("q", q), ("k", k), ("v", v)):
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{NAME}: {argument} must be a torch.Tensor, got {type(t).__name__}")
        if t.device.type not in _DEVICES:
            raise ValueError(
                f"{NAME}: {argument} is on device {t.device}; this op runs on cpu and cuda"
            )
    if scale is None:
        scale = HEAD_DIM**-0.5
    elif isinstance(scale, torch.Tensor):
        raise ValueError(f"{NAME}: scale must be a number, got a Tensor; write scale.item()")
    else:
        try:
            scale = float(scale)
        except (TypeError, ValueError):
            raise ValueError(
                f"{NAME}: scale must be a number, got {type(scale).__name__}"
            ) from None
    result: tuple[torch.Tensor, torch.Tensor] = _op(q, k, v, scale, *extra)
    return result


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None) -> None:
    """Raise a ValueError that names the argument, what it is and what was expected."""
    for argument, t, heads, tokens, width in (
        ("q", q, "Hq", "Q", HEAD_DIM),
        ("k", k, "Hkv", "K", HEAD_DIM),
        ("v", v, "Hkv", "K", VALUE_DIM),
    ):
        if t is None:  # what selects keys has no values
            continue
        if t.dim() != 4:
            raise ValueError(
                f"{NAME}: {argument} must have 4 dimensions [B, {heads}, {tokens}, {width}], "
                f"got {t.dim()}: {tuple(t.shape)}"
            )
        if t.shape[3] != width:
            raise ValueError(
                f"{NAME}: the last dimension of {argument} must be {width}, got {t.shape[3]}; "
                "this op was compiled for that width only"
            )
        if t.shape[1] == 0:
            raise ValueError(f"{NAME}: {argument} has no heads: {tuple(t.shape)}")
        if t.stride(3) != 1:
            raise ValueError(
                f"{NAME}: the last dimension of {argument} must be contiguous, got stride "
                f"{t.stride(3)}; write {argument}.contiguous()"
            )
        if t.dtype not in _DTYPES:
            raise ValueError(
                f"{NAME}: {argument} must be float32, bfloat16, float16 or (on a CPU) float64, "
                f"got {t.dtype}"
            )
        if t.dtype != q.dtype:
            raise ValueError(f"{NAME}: {argument} has dtype {t.dtype} but q has {q.dtype}")
        if t.device != q.device:
            raise ValueError(f"{NAME}: {argument} is on {t.device} but q is on {q.device}")
        if t.shape[0] != q.shape[0]:
            raise ValueError(
                f"{NAME}: {argument} has batch size {t.shape[0]} but q has {q.shape[0]}"
            )
    if v is not None and v.shape[1] != k.shape[1]:
        raise ValueError(f"{NAME}: v has {v.shape[1]} heads but k has {k.shape[1]}")
    if v is not None and v.shape[2] != k.shape[2]:
        raise ValueError(f"{NAME}: v has {v.shape[2]} tokens but k has {k.shape[2]}")
    if q.shape[1] % k.shape[1] != 0:
        raise ValueError(
            f"{NAME}: the heads of q must be a multiple of the heads of k, "
            f"got {q.shape[1]} and {k.shape[1]}"
        )
    if HEADS is not None and q.shape[1] != HEADS:
        raise ValueError(
            f"{NAME}: q must have {HEADS} heads, one for each mask of the pattern, "
            f"got {q.shape[1]}"
        )
    if q.device.type == "cuda" and q.dtype not in GPU_DTYPES:
        expected = " or ".join(str(dtype) for dtype in GPU_DTYPES)
        raise ValueError(
            f"{NAME}: q has dtype {q.dtype}, but the GPU kernel was compiled for {expected}; "
            "compile the pattern again with that dtype, or convert q, k and v"
        )


# --- cut: registration ---


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the op. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``, both contiguous.

    ``extra`` is what the schema has behind scale: the inputs of the pattern, if it has any.
    """
    _check(q, k, v)
    _check_pattern(q, k, *extra)
    if not math.isfinite(scale):
        raise ValueError(f"{NAME}: scale must be finite, got {scale}")
    for argument, t in (("q", q), ("k", k)):
        if t.shape[2] > _MOST_TOKENS:
            raise ValueError(f"{NAME}: {argument} has {t.shape[2]} tokens, the most is 2**30")
    if 0 in (*q.shape[:3], k.shape[2]):
        out, lse = _empty(q)
        return out.zero_(), _lse_without_keys(q, k, lse, *extra)
    if q.device.type == "cpu":
        out, lse = _cpu_forward(q, k, v, scale, *extra)
        return out.contiguous(), lse.contiguous()
    if _NO_TRITON is not None:
        raise RuntimeError(f"{NAME}: a GPU needs triton, which did not load") from _NO_TRITON
    out, lse = _empty(q)
    _gpu_forward(q, k, v, scale, out, lse, *extra)
    return out, lse


def _empty(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uninitialised results; lse is float32, float64 beside float64."""
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty((q.shape[0], q.shape[1], q.shape[2], VALUE_DIM))
    return out, q.new_empty((q.shape[0], q.shape[1], q.shape[2]), dtype=lse_dtype)


def _fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, k, v)
    _check_pattern(q, k, *extra)
    return _empty(q)


def _backward(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    scale: float, *extra: Any, needs: Sequence[bool],
) -> list[torch.Tensor]:
    """Return the gradients that ``needs`` asks for, of q, k, v and the tensors of the inputs."""
    _check(q, k, v)
    _check_pattern(q, k, *extra)
    if grad_out.stride(3) != 1:
        grad_out = grad_out.contiguous()
    run = _cpu_backward if q.device.type == "cpu" else _gpu_backward
    if q.device.type != "cpu" and _NO_TRITON is not None:
        raise RuntimeError(f"{NAME}: a GPU needs triton, which did not load") from _NO_TRITON
    *found, given = run(q, k, v, out, lse, grad_out, grad_lse, scale, *extra, needs=needs)
    grads = [x for x, need in zip((*found, *given), needs, strict=True) if need]
    return [x.contiguous() for x in grads]


def _fake_backward(
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    scale: float, *extra: Any, needs: Sequence[bool],
) -> list[torch.Tensor]:
    _check(q, k, v)
    _check_pattern(q, k, *extra)
    given = (q, k, v, *(extra[0] if extra else ()))
    return [t.new_empty(t.shape) for t, need in zip(given, needs, strict=True) if need]


def _vmap(info: Any, in_dims: Any, q: Any, k: Any, v: Any, scale: float, *extra: Any) -> Any:
    """Fold the mapped dimension into the batch; inputs of the pattern are shared by all of it."""
    _inputs_not_mapped(in_dims[4:])
    folded = [_fold(info, t, dim, 4) for t, dim in zip((q, k, v), in_dims, strict=False)]
    out, lse = _op(*folded, scale, *extra)
    sizes = (info.batch_size, out.shape[0] // info.batch_size)
    return (out.unflatten(0, sizes), lse.unflatten(0, sizes)), (0, 0)


def _vmap_of_backward(info: Any, in_dims: Any, *arguments: Any, needs: Any) -> Any:
    _inputs_not_mapped(in_dims[8:])
    if any(needs[3:]):
        raise ValueError(
            f"{NAME}: vmap maps gradients of q, k and v only; an input is shared by all that is "
            "mapped, so call the op once for each"
        )
    ranks = (4, 3, 4, 4, 4, 4, 3)  # of grad_out, grad_lse, q, k, v, out, lse
    folded = [
        None if t is None else _fold(info, t, dim, rank)
        for t, dim, rank in zip(arguments, in_dims, ranks, strict=False)
    ]
    grads = _backward_op(*folded, *arguments[7:], needs=needs)
    copies = info.batch_size
    return [x.unflatten(0, (copies, len(x) // copies)) for x in grads], [0] * len(grads)


def _inputs_not_mapped(in_dims: Any) -> None:
    if any(dim is not None for dims in in_dims for dim in dims or ()):
        raise ValueError(
            f"{NAME}: vmap maps q, k and v only; give inputs a batch dimension and call the op once"
        )


def _fold(info: Any, t: torch.Tensor, dim: int | None, rank: int) -> torch.Tensor:
    mapped = t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
    if mapped.dim() != rank + 1:
        raise ValueError(f"{NAME}: under vmap q, k and v must have 4 dimensions each")
    return mapped.flatten(0, 1)


def _schema() -> str:
    return _EXTRA
