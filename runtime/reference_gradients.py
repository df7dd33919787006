"""q, k, v, a pattern and gradients of its results -> float64 gradients, and how far one may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnc.compiler.ir.pattern import Pattern
from attnc.runtime.reference import Terms, out_allowance, reference, same_precision, terms

_FLOAT32_ROUNDING = 2.0**-24
_FLOAT64_ALLOWED = 2.0**-44  # beside float64 there is no dense form that is more exact


@dataclass(frozen=True, kw_only=True)
class Backward:
    """A call whose gradients are asked for.

    Shape: q ``[B, Hq, Q, D]``, k ``[B, Hkv, K, D]``, v ``[B, Hkv, K, Dv]``, ``grad_out`` ``[B, Hq,
    Q, Dv]``, ``grad_lse`` ``[B, Hq, Q]`` (None: 0). ``pattern`` may be a mask alone, bool, that
    broadcasts to ``[B, Hq, Q, K]``. ``inputs``: those of the pattern; the real tensors among them
    get gradients too.
    """

    pattern: Pattern | Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    extents: Mapping[str, int] | None = None
    scale: float | None = None

    @property
    def learned(self) -> tuple[str, ...]:
        """The inputs that get gradients, in declared order."""
        if isinstance(self.pattern, Tensor):
            return ()
        real = (one.name for one in self.pattern.inputs if one.kind == "real" and one.dims)
        return tuple(name for name in real if name in self.inputs)

    @property
    def factor(self) -> float | None:
        """The factor on the products, as it was given or as the pattern has it."""
        own = None if isinstance(self.pattern, Tensor) else self.pattern.scale
        return float(own) if self.scale is None and own is not None else self.scale

    def terms(self, q: Tensor, k: Tensor, inputs: Mapping[str, Any]) -> Terms:
        """Return mask, score and sink for some tensors of the call."""
        if isinstance(self.pattern, Tensor):
            return Terms(self.pattern)
        return terms(self.pattern, q, k, inputs, self.extents)


def reference_gradients(call: Backward, *, exact: bool = True) -> dict[str, Tensor]:
    """Differentiate dense attention, by torch: in float64, or else in the dtypes of the call.

    Returns: gradients by name: ``q``, ``k``, ``v`` and the learned inputs. A query without keys
    contributes 0, whatever the gradient of its log-sum-exp is.
    """
    leaves = {"q": call.q, "k": call.k, "v": call.v} | {n: call.inputs[n] for n in call.learned}
    for name, x in leaves.items():
        leaves[name] = (x.detach().double() if exact else x.detach()).requires_grad_()
    q, k, v = (leaves[name] for name in "qkv")
    given = {**call.inputs, **{name: leaves[name] for name in call.learned}}
    attend = reference if exact else same_precision
    out, lse = attend(q, k, v, call.terms(q, k, given), call.factor)
    total = (out * call.grad_out.to(out.dtype)).sum()
    if call.grad_lse is not None:
        seen = lse.isfinite()
        total = total + (lse[seen] * call.grad_lse[seen].to(lse.dtype)).sum()
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_gradients_within(found: Sequence[Tensor | None], call: Backward) -> None:
    """Check gradients against float64 by the error rule; None: one that was not asked for.

    That of v is held as an output is: twice the error of the dense computation in the dtypes of the
    call, and some ulp at its maximum. The others are sums of differences ``dP - d``; where a query
    has one key both numbers are equal, which the dense form happens to find without error. So their
    ulp are those of the largest gradient of all. To all is added what half an ulp of a log-sum-exp,
    which is kept in float32, moves in each weight by the same share: much where it is large only.

    Args: ``found``: gradients of q, k, v and the learned inputs, in this order.
    Raises: AssertionError that says which bound is broken and by how much.
    """
    right, dense = reference_gradients(call), reference_gradients(call, exact=False)
    largest = max(map(_largest, right.values()))
    _, lse = reference(
        call.q, call.k, call.v, call.terms(call.q, call.k, call.inputs), call.factor
    )
    rounding = _FLOAT32_ROUNDING * _largest(lse[lse.isfinite()])
    for (name, expected), one in zip(right.items(), found, strict=True):
        if one is None:
            continue
        if one.shape != expected.shape:
            raise AssertionError(f"d{name} is {tuple(one.shape)}, expected {expected.shape}")
        if not torch.isfinite(one).all():
            raise AssertionError(f"d{name} holds NaN or inf")
        at = _largest(expected) if name == "v" else largest
        allowed = _FLOAT64_ALLOWED * at
        if call.q.dtype != torch.float64:
            error = _largest(dense[name].double() - expected)
            allowed = out_allowance(call.q.dtype, error, at) + rounding * at
        error = _largest(one.double() - expected)
        if error > allowed:
            raise AssertionError(f"d{name} is off by {error:.3e}, allowed {allowed:.3e}")


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0
