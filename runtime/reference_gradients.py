"""q, k, v, a pattern and gradients of its results -> float64 gradients, and how far one may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnc.compiler.ir.pattern import Pattern
from attnc.runtime.reference import out_allowance, reference, same_precision, terms

_FLOAT32_ULP = 2.0**-23
_FLOAT64_ALLOWED = 2.0**-40  # beside float64 the dense form makes no error to compare with


@dataclass(frozen=True, kw_only=True)
class Backward:
    """A call whose gradients are asked for.

    Shape: q ``[B, Hq, Q, D]``, k ``[B, Hkv, K, D]``, v ``[B, Hkv, K, Dv]``, ``grad_out`` ``[B, Hq,
    Q, Dv]``, ``grad_lse`` ``[B, Hq, Q]`` (None: 0). ``inputs``: those of the pattern; the real
    tensors among them get gradients too.
    """

    pattern: Pattern
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
        real = (one.name for one in self.pattern.inputs if one.kind == "real" and one.dims)
        return tuple(name for name in real if name in self.inputs)


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
    scale = call.scale
    if scale is None and call.pattern.scale is not None:
        scale = float(call.pattern.scale)
    attend = reference if exact else same_precision
    out, lse = attend(q, k, v, terms(call.pattern, q, k, given, call.extents), scale)
    total = (out * call.grad_out.to(out.dtype)).sum()
    if call.grad_lse is not None:
        seen = lse.isfinite()
        total = total + (lse[seen] * call.grad_lse[seen].to(lse.dtype)).sum()
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_gradients_within(found: Sequence[Tensor | None], call: Backward) -> None:
    """Check gradients against float64 by the error rule; None: one that was not asked for.

    Allowed are twice the error of the dense computation in the dtypes of the call, some ulp at the
    largest gradient of all (where a query has one key, those of q and k are the difference of two
    equal numbers, which the dense form happens to find without error), and what a log-sum-exp that
    is rounded to float32 moves.

    Args: ``found``: gradients of q, k, v and the learned inputs, in this order.
    Raises: AssertionError that says which bound is broken and by how much.
    """
    right, dense = reference_gradients(call), reference_gradients(call, exact=False)
    largest = max(map(_largest, right.values()))
    _, lse = reference(
        call.q, call.k, call.v,
        terms(call.pattern, call.q, call.k, call.inputs, call.extents), call.scale,
    )  # fmt: skip
    rounded = _FLOAT32_ULP * _largest(lse[lse.isfinite()]) * largest
    for (name, expected), one in zip(right.items(), found, strict=True):
        if one is None:
            continue
        if one.shape != expected.shape:
            raise AssertionError(f"d{name} is {tuple(one.shape)}, expected {expected.shape}")
        if not torch.isfinite(one).all():
            raise AssertionError(f"d{name} holds NaN or inf")
        allowed = _FLOAT64_ALLOWED * max(largest, 1.0)
        if call.q.dtype != torch.float64:
            error = _largest(dense[name].double() - expected)
            allowed = out_allowance(call.q.dtype, error, largest) + rounded
        error = _largest(one.double() - expected)
        if error > allowed:
            raise AssertionError(f"d{name} is off by {error:.3e}, allowed {allowed:.3e}")


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0
