"""The contract of an op, pasted verbatim into every written module: checks, impl, torch.library.

``module.py`` copies what stands between the cut lines: the checks first, the registration at the
end of a module. Above them stand the names that the rest of a written module defines.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

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


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise a ValueError that names the argument, what it is and what was expected."""
    for argument, t, heads, tokens, width in (
        ("q", q, "Hq", "Q", HEAD_DIM),
        ("k", k, "Hkv", "K", HEAD_DIM),
        ("v", v, "Hkv", "K", VALUE_DIM),
    ):
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
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"{NAME}: v has {v.shape[1]} heads but k has {k.shape[1]}")
    if v.shape[2] != k.shape[2]:
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


class _Autograd(_SingleLevelFunction):
    """The op with its derivative; ``rest`` is what the schema has behind the inputs."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, scale: float, rest: Any, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.rest = scale, rest
        with _below_autograd():
            out, lse = _op(q, k, v, scale, *_extra(inputs, rest))
        ctx.save_for_backward(q, k, v, out, lse, *inputs)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Any, grad_lse: Any) -> Any:
        needs = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[5:]]
        if grad_out is None and grad_lse is None:
            return (None,) * (len(needs) + 2)
        q, k, v, out, lse, *inputs = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grads = iter(_backward_op(
            grad_out, grad_lse, q, k, v, out, lse, ctx.scale, *_extra(inputs, ctx.rest), needs=needs
        ))
        dq, dk, dv, *given = (next(grads) if need else None for need in needs)
        return dq, dk, dv, None, None, *given


class _Once(_SingleLevelFunction):
    """The backward as a function of its arguments, whose own derivative is not generated."""

    @staticmethod
    def forward(ctx: Any, scale: float, rest: Any, needs: Any, *tensors: Any) -> Any:
        extra = _extra(tensors[7:], rest)
        with _below_autograd():
            return tuple(_backward_op(*tensors[:7], scale, *extra, needs=needs))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"attnc: {NAME} has first derivatives only; its backward cannot be differentiated"
        )


def _extra(inputs: Sequence[Any], rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what the schema has behind scale: nothing, or the inputs and the numbers."""
    return (list(inputs), *rest) if rest else ()


@contextlib.contextmanager
def _below_autograd() -> Iterator[None]:
    """Leave the autograd of this level; outer transforms of ``torch.func`` go on recording."""
    with contextlib.ExitStack() as stack:
        if torch._C._are_functorch_transforms_active():
            stack.enter_context(torch.enable_grad())
            stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        yield


def _with_grad(function: Any, arguments: tuple[Any, ...], tensors: tuple[Any, ...]) -> Any:
    """Apply an autograd function; under ``torch.func``, at the transform that asks for it."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*arguments, *tensors)
    with enable_single_level_autograd_function():
        return function.apply(*arguments, *tensors)


def _autograd(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> Any:
    inputs = extra[0] if extra else ()
    if _differentiates((q, k, v, *inputs)):
        return _with_grad(_Autograd, (q, k, v, scale, extra[1:]), tuple(inputs))
    with torch._C._AutoDispatchBelowAutograd():
        return _op(q, k, v, scale, *extra)


def _autograd_of_backward(*arguments: Any, needs: Any) -> Any:
    tensors, (scale, *extra) = arguments[:7], arguments[7:]
    given = (*tensors, *(extra[0] if extra else ()))
    if _differentiates(given):
        return list(_with_grad(_Once, (scale, tuple(extra[1:]), needs), given))
    with torch._C._AutoDispatchBelowAutograd():
        return _backward_op(*arguments, needs=needs)


def _differentiates(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a call is recorded for a backward; forward-mode derivatives are refused."""
    given = [t for t in tensors if t is not None]
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in given
    ):
        raise RuntimeError(f"attnc: forward-mode derivatives of {NAME} are not generated")
    return torch.is_grad_enabled() and any(t.requires_grad for t in given)


_BELOW_AUTOCAST = torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCPU
) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _autocast(device_type: str) -> Any:
    """Return the autocast rule: cast to the autocast dtype as SDPA does, float64 excepted."""

    def rule(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
    ) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        cast = [
            t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t
            for t in (q, k, v)
        ]
        with torch._C._ExcludeDispatchKeyGuard(_BELOW_AUTOCAST):
            return _op(*cast, scale, *extra)

    return rule


def _autocast_of_backward(*arguments: Any, needs: Any) -> Any:
    """Run a backward that was called under autocast in the dtypes of its forward."""
    with torch._C._ExcludeDispatchKeyGuard(_BELOW_AUTOCAST):
        return _backward_op(*arguments, needs=needs)


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


def _register() -> tuple[Any, Any]:
    """Define the op, unless another copy of this module has; return it and its backward."""
    qualified, backward = f"attnc::{OP}", f"attnc::{OP}_backward"
    if not hasattr(torch.ops.attnc, OP):
        library = torch.library.Library("attnc", "FRAGMENT")
        # The op lives as long as its library object, and other copies of this module may use it.
        torch.library.__dict__.setdefault("_attnc_libraries", []).append(library)
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        library.define(
            f"{OP}(Tensor q, Tensor k, Tensor v, float scale{_EXTRA}) -> (Tensor, Tensor)",
            tags=tags,
        )
        library.define(
            f"{OP}_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
            f"Tensor out, Tensor lse, float scale{_EXTRA}, *, bool[] needs) -> Tensor[]",
            tags=tags,
        )
        library.impl(OP, _forward, "CPU")
        library.impl(OP, _forward, "CUDA")
        library.impl(OP, _autograd, "Autograd")
        library.impl(OP, _autocast("cpu"), "AutocastCPU")
        library.impl(OP, _autocast("cuda"), "AutocastCUDA")
        for key, rule in (
            ("CPU", _backward), ("CUDA", _backward), ("Autograd", _autograd_of_backward),
            ("AutocastCPU", _autocast_of_backward), ("AutocastCUDA", _autocast_of_backward),
        ):
            library.impl(f"{OP}_backward", rule, key)
        torch.library.register_fake(qualified, _fake, lib=library)
        torch.library.register_fake(backward, _fake_backward, lib=library)
        torch.library.register_vmap(qualified, _vmap, lib=library)
        torch.library.register_vmap(backward, _vmap_of_backward, lib=library)
    packets = torch.ops.attnc
    return getattr(packets, OP).default, getattr(packets, f"{OP}_backward").default


_op, _backward_op = _register()
