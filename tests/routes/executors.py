"""Any executor of routes beside the oracle: selections equal, results within the error rule.

An executor is an op: ``op.select(q, k, **inputs)`` gives the tensors of each route's selection by
its name, and ``op(q, k, v, selection=..., return_lse=True, **inputs)`` attends. What it may err is
what ARCHITECTURE says: twice the error of dense attention in the same precision, and some ulp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from attnc.compiler import route_oracle as oracle
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.route import Route
from attnc.compiler.ir.routed import AnyAttention, Combined, Routed
from attnc.runtime.reference import assert_within, out_allowance, reference, same_precision
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.routes.cases import Shape
from tests.routes.data import as_relation

Selection = Mapping[str, Sequence[Tensor]]


class Op(Protocol):
    """What is tested."""

    def select(self, q: Tensor, k: Tensor, **inputs: Any) -> Selection:
        """Return the tensors of every route's selection, by name."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        """Attend; with ``return_lse`` the log-sum-exp too."""


@dataclass(frozen=True)
class Call:
    """Tensors of a call: what an op takes, of one dtype, and inputs by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    inputs: dict[str, Tensor]

    def arrays(self) -> dict[str, Any]:
        """Return the inputs as the oracle takes them: exactly these numbers, in float64."""
        return {name: x.detach().double().numpy() for name, x in self.inputs.items()}


def call_of(data: tuple[Any, Any, Any], inputs: Mapping[str, Any], dtype: torch.dtype) -> Call:
    """Return the tensors of a call, rounded to a dtype."""
    q, k, v = (torch.tensor(x.tolist(), dtype=dtype).reshape(x.shape) for x in data)
    given = {n: torch.tensor(x.tolist(), dtype=dtype).reshape(x.shape) for n, x in inputs.items()}
    return Call(q, k, v, given)


# ------------------------------------------------------------------------------------ selection


def check_selection(op: Op, routed: Routed, call: Call) -> Selection:
    """Compare what is selected with the oracle, unit by unit; return it."""
    found = op.select(call.q, call.k, **call.inputs)
    assert set(found) == {route.name for route in routed.routes}
    for route in routed.routes:
        check_route(routed, route, found[route.name], call)
    return found


def check_route(routed: Routed, route: Route, tensors: Sequence[Tensor], call: Call) -> None:
    """Compare the selection of one route."""
    q, k = call.q.double().numpy(), call.k.double().numpy()
    if route.emit == "members":
        own = oracle.members(routed, route, q, k, call.arrays())
        for index, right in zip(tensors[:2], (own.queries, own.keys), strict=True):
            assert index.dtype == torch.int32
            found = np.zeros((*index.shape[:3], right.shape[-1] + 1), dtype=int)
            np.add.at(found, (*np.indices(index.shape)[:3], index.numpy()), 1)  # -1: the last one
            assert np.array_equal(found[..., :-1], right), f"{route.name}: other members"
        return
    index, count = tensors[:2]
    assert (index.dtype, count.dtype) == (torch.int32, torch.int32)
    expected = oracle.relation(routed, route, q, k, call.arrays())
    assert tuple(index.shape[:3]) == expected.shape[:3]
    found = as_relation(index, count, expected.shape[3])
    wrong = np.argwhere(found != expected)
    assert not len(wrong), f"{route.name}: {len(wrong)} pairs, first [b, h, q, k] = {wrong[0]}"


# -------------------------------------------------------------------------------------- outputs


def dense(
    attention: AnyAttention, call: Call, scale: float | None = None
) -> Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor], bool], tuple[Tensor, Tensor | None]]:
    """Return dense attention to what the oracle selects: a function of q, k, v, inputs, exact.

    Masks are made once, from the values of the call; the function can be differentiated.
    """
    call = Call(call.q.detach(), call.k.detach(), call.v.detach(), call.inputs)
    q, k, arrays = call.q.double().numpy(), call.k.double().numpy(), call.arrays()
    if isinstance(attention, Combined):
        return _combined(attention, call, scale)
    if isinstance(attention, Routed) and attention.routes[0].emit == "members":
        return _members(attention, call, scale)
    if isinstance(attention, Routed):
        mask = torch.from_numpy(oracle.mask(attention, q, k, arrays))
        own = attention.base.scale
    else:
        mask = torch.from_numpy(attention.mask(q.shape[2], k.shape[2], arrays))
        own = attention.scale
    factor = float(own) if own is not None and scale is None else scale

    def run(q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Tensor], exact: bool) -> Any:
        return (reference if exact else same_precision)(q, k, v, mask, factor)

    return run


def _members(routed: Routed, call: Call, scale: float | None) -> Any:
    (route,) = routed.routes
    q, k = call.q.double().numpy(), call.k.double().numpy()
    own = oracle.members(routed, route, q, k, call.arrays())
    queries, keys = torch.from_numpy(own.queries), torch.from_numpy(own.keys)
    base = torch.from_numpy(routed.base.mask(q.shape[2], k.shape[2], call.arrays()))

    def run(q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Tensor], exact: bool) -> Any:
        total: Any = 0
        for c in range(queries.shape[2]):
            mask = base & queries[:, :, c, :, None] & keys[:, :, c, None, :]
            out, _ = (reference if exact else same_precision)(q, k, v, mask, scale)
            weight = queries[:, :, c].to(out.dtype)
            if route.combine == "score":
                score = inputs[route.score.input or ""].to(out.dtype)
                weight = weight * score.repeat_interleave(q.shape[1] // score.shape[1], 1)
            total = total + weight[..., None] * out
        if route.combine == "mean":
            total = total / queries.sum(2).clamp(min=1)[..., None]
        return total, None

    return run


def _combined(attention: Combined, call: Call, scale: float | None) -> Any:
    parts = []
    for term in attention.terms:
        keys = call
        if term.keys is not None:
            k, v = (call.inputs[f"{term.keys}_{x}"].detach() for x in "kv")
            keys = Call(call.q, k, v, call.inputs)
        parts.append((term, dense(term.attention, keys, scale)))

    def run(q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Tensor], exact: bool) -> Any:
        total: Any = 0
        for term, attend in parts:
            keys, values = k, v
            if term.keys is not None:
                keys, values = inputs[f"{term.keys}_k"], inputs[f"{term.keys}_v"]
            out, _ = attend(q, keys, values, inputs, exact)
            gate = 1.0 if term.gate is None else inputs[term.gate].to(out.dtype)[..., None]
            total = total + gate * out
        return total, None

    return run


def check_output(
    op: Op, attention: AnyAttention, call: Call, selection: Selection | None = None,
    scale: float | None = None,
) -> None:  # fmt: skip
    """Compare out, and the log-sum-exp where there is one, with float64 by the error rule."""
    given: dict[str, Any] = {} if selection is None else {"selection": selection}
    attend = dense(attention, call, scale)
    has_lse = isinstance(attention, Pattern) or (
        isinstance(attention, Routed) and attention.routes[0].emit != "members"
    )
    if has_lse:
        given["return_lse"] = True
    result = op(call.q, call.k, call.v, **given, scale=scale, **call.inputs)
    if has_lse:
        assert isinstance(attention, Pattern | Routed)
        base = attention.base if isinstance(attention, Routed) else attention
        factor = float(base.scale) if base.scale is not None and scale is None else scale
        arrays = (call.q.double().numpy(), call.k.double().numpy())
        mask = (
            oracle.mask(attention, *arrays, call.arrays())
            if isinstance(attention, Routed)
            else attention.mask(call.q.shape[2], call.k.shape[2], call.arrays())
        )
        out, lse = result
        assert out.dtype == call.q.dtype
        assert_within(out, lse, call.q, call.k, call.v, torch.from_numpy(mask), factor)
        return
    double = [x.double() for x in (call.q, call.k, call.v)]
    right, _ = attend(*double, {n: x.double() for n, x in call.inputs.items()}, True)
    near, _ = attend(call.q, call.k, call.v, call.inputs, False)
    within("out", result, right, near, call.q.dtype)


def within(name: str, found: Tensor, right: Tensor, near: Tensor, dtype: torch.dtype) -> None:
    """Hold a result to twice the error of the dense form of its precision, and some ulp."""
    assert found.shape == right.shape
    assert torch.isfinite(found).all()
    error = float((found.double() - right.double()).abs().max())
    dense_error = float((near.double() - right.double()).abs().max())
    allowed = _allowed(dtype, dense_error, float(right.abs().max()))
    assert error <= allowed, f"{name} is {error:.2e} off, {allowed:.2e} is allowed"


def _allowed(dtype: torch.dtype, dense_error: float, largest: float) -> float:
    """Return the error allowed; no dense form is more exact than float64, which has 256 ulp."""
    if dtype == torch.float64:
        return 2.0**-44 * largest
    return out_allowance(dtype, dense_error, largest)


# ------------------------------------------------------------------------------------ gradients


def check_gradients(op: Op, attention: AnyAttention, call: Call, seed: int = 0) -> None:
    """Compare gradients through the attended values, and through weights where they have some."""
    made = torch.Generator().manual_seed(seed)
    shape = (*call.q.shape[:3], call.v.shape[3])
    grad_out = torch.randn(shape, generator=made, dtype=torch.float64).to(call.q.dtype)
    if isinstance(attention, Routed) and attention.routes[0].emit != "members":
        grad_lse = torch.randn(shape[:3], generator=made, dtype=torch.float64)
        seen = oracle.mask(
            attention, call.q.double().numpy(), call.k.double().numpy(), call.arrays()
        )
        base = attention.base.scale
        backward = Backward(
            pattern=torch.from_numpy(seen), q=call.q, k=call.k, v=call.v, grad_out=grad_out,
            grad_lse=grad_lse, scale=None if base is None else float(base),
        )  # fmt: skip
        leaves = [x.detach().clone().requires_grad_() for x in (call.q, call.k, call.v)]
        out, lse = op(*leaves, return_lse=True, **call.inputs)
        finite = torch.isfinite(lse)
        total = (out * grad_out).sum() + (lse * grad_lse.to(lse.dtype))[finite].sum()
        assert_gradients_within(torch.autograd.grad(total, leaves), backward)
        return
    learned = [n for n, x in call.inputs.items() if _learns(attention, n)]
    names = ["q", "k", "v", *learned]
    start = [call.q, call.k, call.v, *(call.inputs[n] for n in learned)]
    attend = dense(attention, call)

    def grads(run: Callable[..., Tensor], dtype: torch.dtype | None) -> Sequence[Tensor]:
        leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in start]
        inputs = {n: x.to(dtype or x.dtype) for n, x in call.inputs.items()}
        inputs |= dict(zip(learned, leaves[3:], strict=True))
        out = run(*leaves[:3], inputs)
        found = torch.autograd.grad((out * grad_out.to(out.dtype)).sum(), leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]

    own = grads(lambda q, k, v, inputs: op(q, k, v, **inputs), None)
    right = grads(lambda q, k, v, inputs: attend(q, k, v, inputs, True)[0], torch.float64)
    near = grads(lambda q, k, v, inputs: attend(q, k, v, inputs, False)[0], None)
    largest = max(float(g.abs().max()) for g in right if g.numel())
    for name, found, exact, rough in zip(names, own, right, near, strict=True):
        if not found.numel():
            continue
        error = float((found.double() - exact).abs().max())
        dense_error = float((rough.double() - exact).abs().max())
        allowed = _allowed(call.q.dtype, dense_error, largest)
        assert error <= allowed, f"d{name} is {error:.2e} off, {allowed:.2e} is allowed"


def _learns(attention: AnyAttention, name: str) -> bool:
    """Whether an input gets gradients: a gate, a second key stream, a member's weight."""
    if isinstance(attention, Combined):
        gates = {term.gate for term in attention.terms}
        streams = {f"{term.keys}_{x}" for term in attention.terms for x in "kv"}
        return name in gates | streams
    return isinstance(attention, Routed) and any(
        route.grad == "weight" and route.score.input == name for route in attention.routes
    )


def sizes(shape: Shape) -> str:
    """Return a name for a shape."""
    return f"{shape.b}x{shape.hq}:{shape.hkv}x{shape.nq},{shape.nk}x{shape.d}"
