"""The contract of a routed op, pasted verbatim into its module: selections, merging, the second op.

A routed attention has two parts that share no pair: what is kept at any rate, by the executors of
an ordinary pattern, and what routes selected. Below the cut line; above it stand the names that the
rest of such a module defines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

NAME = "moba"
OP = "moba_0123456789ab"
_BASE_EXTRA = ""
_ROUTES: dict[str, tuple[str, ...]] = {}
_ROUTE_INPUTS: dict[str, tuple[str, int]] = {}
_KEPT = False
_REFUSES_TRAINING = ""


def _unwritten(*arguments: Any, **named: Any) -> Any:
    raise NotImplementedError("a written module defines this")


_check = _check_base = _known = _select_all = _shapes_of = _unwritten
_cpu_routed_forward = _cpu_routed_backward = _gpu_routed_forward = _unwritten
_gpu_routed_backward = _kept_cpu_forward = _kept_cpu_backward = _unwritten
_kept_gpu_forward = _kept_gpu_backward = _op = _unwritten

# --- cut: routed ---

_EXTRA = ", Tensor?[] inputs, SymInt[] numbers, float[] reals"  # inputs: the pattern's, selections
Selection = dict[str, tuple[torch.Tensor, ...]]


def _split(
    inputs: Sequence[Any], numbers: Sequence[int], reals: Sequence[float]
) -> tuple[tuple[Any, ...], list[tuple[torch.Tensor, ...]]]:
    """Take apart what the pattern reads and what the routes selected."""
    at = len(inputs) - sum(map(len, _ROUTES.values()))
    base = (inputs[:at], numbers, reals) if _BASE_EXTRA else ()
    found = []
    for tensors in _ROUTES.values():
        found.append(tuple(inputs[at : at + len(tensors)]))
        at += len(tensors)
    return base, found


def _check_pattern(q: torch.Tensor, k: torch.Tensor, *extra: Any) -> None:
    """Raise a ValueError that names the input, or the selection, that is wrong."""
    base, selections = _split(*extra)
    _check_base(q, k, *base)
    for (route, names), tensors in zip(_ROUTES.items(), selections, strict=True):
        for name, t, (shape, dtype) in zip(names, tensors, _shapes_of(route, q, k), strict=True):
            if t.shape != shape or t.dtype != dtype or t.device != q.device:
                raise ValueError(
                    f"{NAME}: {name} of the selection of {route} is {t.dtype} {tuple(t.shape)} on "
                    f"{t.device}, expected {dtype} {tuple(shape)} on {q.device}"
                )


def _chosen(selection: Any) -> list[torch.Tensor]:
    """Return the tensors of a selection in the order of the schema."""
    if not isinstance(selection, Mapping) or set(selection) != set(_ROUTES):
        raise ValueError(f"{NAME}: selection must be what select returns, for {', '.join(_ROUTES)}")
    for route, names in _ROUTES.items():
        if len(selection[route]) != len(names):
            raise ValueError(f"{NAME}: the selection of {route} has {', '.join(names)}")
    return [t for route in _ROUTES for t in selection[route]]


def _route_tensors(q: torch.Tensor, given: Mapping[str, Any]) -> list[torch.Tensor]:
    """Check what routes read, by name; a missing batch dimension is put in front."""
    tensors = []
    for name, (shape, rank) in _ROUTE_INPUTS.items():
        t = given[name]
        if not isinstance(t, torch.Tensor):
            kind = "missing" if t is None else f"a {type(t).__name__}"
            raise ValueError(f"{NAME}: {name} is {kind}; a route reads it, as a tensor {shape}")
        if t.dim() != rank:
            raise ValueError(f"{NAME}: {name} has the shape {tuple(t.shape)}, expected {shape}")
        if t.device != q.device:
            raise ValueError(f"{NAME}: {name} is on {t.device} but q is on {q.device}")
        tensors.append(t)
    return tensors


def _tensors(**given: Any) -> None:
    for argument, t in given.items():
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{NAME}: {argument} must be a torch.Tensor, got {type(t).__name__}")
        if t.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(
                f"{NAME}: {argument} is on device {t.device}; this op runs on cpu and cuda"
            )


def _by_route(tensors: Sequence[torch.Tensor]) -> Selection:
    """Return selections by the names of their routes."""
    rest = iter(tensors)
    return {route: tuple(next(rest) for _ in names) for route, names in _ROUTES.items()}


def _weighted(selection: Selection, route: str, score: torch.Tensor) -> Selection:
    """Read the scores of members again, so that what made them gets gradients."""
    queries, keys, plain = selection[route]
    shape = (*queries.shape[:3], score.shape[-1])
    every = score[:, :, None].expand(*queries.shape[:2], *shape[2:])
    found = every.gather(3, queries.clamp(min=0).long()).where(queries >= 0, 0.0)
    return {**selection, route: (queries, keys, found.to(plain.dtype))}


def _refuse_training(*tensors: torch.Tensor) -> None:
    if _REFUSES_TRAINING and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{NAME} is for inference: {_REFUSES_TRAINING}. Call it under torch.no_grad(), or "
            "route whole tokens by completed blocks"
        )


def _merged(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the results of two disjoint parts by their log-sum-exps. Shape: as an op's results."""
    lse = torch.logaddexp(first[1], second[1])
    out: Any = 0
    for part, own in (first, second):
        weight = torch.exp(own - lse).nan_to_num_(0.0)[..., None]  # -inf beside -inf: no key
        out = out + part.to(weight.dtype) * weight
    return out.to(first[0].dtype), lse


def _cpu_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *extra: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    base, selections = _split(*extra)
    routed = _cpu_routed_forward(q, k, v, scale, selections, _known(q, k, *base))
    if not _KEPT:
        return routed  # type: ignore[no-any-return]
    return _merged(_kept_cpu_forward(q, k, v, scale, *base), routed)


def _gpu_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
    out: torch.Tensor, lse: torch.Tensor, *extra: Any,
) -> None:
    base, selections = _split(*extra)
    found = _gpu_routed_forward(q, k, v, scale, selections, _known(q, k, *base))
    if _KEPT:
        _kept_gpu_forward(q, k, v, scale, out, lse, *base)
        found = _merged((out, lse), found)
    out.copy_(found[0])
    lse.copy_(found[1])


def _backward_of(routed: Callable[..., Any], kept: Callable[..., Any]) -> Callable[..., Any]:
    """Return the backward of both parts: each takes the merged results, and gradients add up."""

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
        grad_out: torch.Tensor, grad_lse: torch.Tensor | None, scale: float, *extra: Any,
        needs: Sequence[bool],
    ) -> tuple[Any, Any, Any, list[Any]]:
        base, selections = _split(*extra)
        given = (q, k, v, out, lse, grad_out, grad_lse, scale)
        count = len(base[0]) if base else 0
        *grads, scores = routed(*given, selections, _known(q, k, *base), needs)
        inputs: list[Any] = [None] * count
        if _KEPT:
            *more, inputs = kept(*given, *base, needs=needs[: 3 + count])
            grads = [a if b is None else b if a is None else a + b
                     for a, b in zip(grads, more, strict=True)]  # fmt: skip
        dq, dk, dv = grads
        return dq, dk, dv, [*inputs, *scores]

    return run


_cpu_backward = _backward_of(_cpu_routed_backward, _kept_cpu_backward)
_gpu_backward = _backward_of(_gpu_routed_backward, _kept_gpu_backward)


# What selects is an op of its own: its result may serve several calls.


def _selected(
    q: torch.Tensor, k: torch.Tensor, inputs: Sequence[Any], numbers: Sequence[int],
    reals: Sequence[float],
) -> list[torch.Tensor]:
    """Run all routes. Returns the tensors of their selections, one after the other."""
    base, given = _given(q, k, inputs, numbers, reals)
    if 0 in (*q.shape[:3], k.shape[2]):
        return _nothing_selected(q, k)
    return list(_select_all(q, k, {**_known(q, k, *base), **given}))


def _given(
    q: torch.Tensor, k: torch.Tensor, inputs: Sequence[Any], numbers: Sequence[int],
    reals: Sequence[float],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check a call; return what the pattern reads, and what routes read by name."""
    _check(q, k, None)
    at = len(inputs) - len(_ROUTE_INPUTS)
    base = (inputs[:at], numbers, reals) if _BASE_EXTRA else ()
    _check_base(q, k, *base)
    return base, dict(zip(_ROUTE_INPUTS, inputs[at:], strict=True))


def _nothing_selected(q: torch.Tensor, k: torch.Tensor) -> list[torch.Tensor]:
    """Return selections of the right shapes that select nothing."""
    return [
        q.new_full(shape, -1 if name in ("index", "queries", "keys") else 0, dtype=dtype)
        for route, names in _ROUTES.items()
        for name, (shape, dtype) in zip(names, _shapes_of(route, q, k), strict=True)
    ]


def _fake_selected(
    q: torch.Tensor, k: torch.Tensor, inputs: Sequence[Any], numbers: Sequence[int],
    reals: Sequence[float],
) -> list[torch.Tensor]:
    _given(q, k, inputs, numbers, reals)
    return [
        q.new_empty(shape, dtype=dtype)
        for route in _ROUTES for shape, dtype in _shapes_of(route, q, k)
    ]  # fmt: skip


def _register_select() -> Any:
    """Define the op that selects, unless another copy of this module has; return it."""
    if not hasattr(torch.ops.attnc, f"{OP}_select"):
        library = torch.library.Library("attnc", "FRAGMENT")
        # It lives as long as its library object, and other copies of this module may use it.
        torch.library.__dict__.setdefault("_attnc_libraries", []).append(library)
        library.define(
            f"{OP}_select(Tensor q, Tensor k{_EXTRA}) -> Tensor[]",
            tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
        )
        library.impl(f"{OP}_select", _selected, "CPU")
        library.impl(f"{OP}_select", _selected, "CUDA")
        torch.library.register_fake(f"attnc::{OP}_select", _fake_selected, lib=library)
    return getattr(torch.ops.attnc, f"{OP}_select").default


_select_op = _register_select()
