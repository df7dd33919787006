"""What torch.library is told of an op, pasted verbatim into written modules: derivatives, rules.

Below the cut line; above it stand the names that the rest of such a module defines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

NAME = "causal"
OP = "causal_0123456789ab"


def _unwritten(*arguments: Any, **named: Any) -> Any:
    raise NotImplementedError("a written module defines this")


_schema = _forward = _fake = _backward = _fake_backward = _vmap = _vmap_of_backward = _unwritten

# --- cut: registration ---


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


def _register(rest: str) -> tuple[Any, Any]:
    """Define the op, unless another copy of this module has; return it and its backward.

    ``rest`` is what the schema has behind scale.
    """
    qualified, backward = f"attnc::{OP}", f"attnc::{OP}_backward"
    if not hasattr(torch.ops.attnc, OP):
        library = torch.library.Library("attnc", "FRAGMENT")
        # The op lives as long as its library object, and other copies of this module may use it.
        torch.library.__dict__.setdefault("_attnc_libraries", []).append(library)
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        library.define(
            f"{OP}(Tensor q, Tensor k, Tensor v, float scale{rest}) -> (Tensor, Tensor)",
            tags=tags,
        )
        library.define(
            f"{OP}_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
            f"Tensor out, Tensor lse, float scale{rest}, *, bool[] needs) -> Tensor[]",
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


_op, _backward_op = _register(_schema())
