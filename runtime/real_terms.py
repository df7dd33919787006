"""A score term -> its values at pairs, by torch in float64, with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc


def real_values(
    expr: sc.RealExpr, scope: Mapping[str, Any], given: Mapping[str, Any], dot: Tensor
) -> Tensor:
    """Evaluate as ``score.evaluate`` does, at a list of pairs, differentiably.

    A branch that is not chosen is not evaluated, so that what it would be (the log of 0) spoils no
    gradient.

    Shape: ``dot`` and the result ``[P]``; ``scope`` has NumPy arrays ``[P]`` and numbers; ``given``
    numbers and NumPy arrays, and Tensors for the inputs that have a gradient.
    """

    def go(e: sc.RealExpr) -> Tensor:
        match e:
            case sc.Dot():
                return dot
            case sc.RealConst(value):
                return dot.new_full(dot.shape, value)
            case sc.FromInt(part):
                return _full(ex.evaluate(part, scope, given), dot)
            case sc.RealRead(name, index):
                return _read(given[name], [ex.evaluate(i, scope, given) for i in index], dot)
            case sc.RealAdd(parts):
                total = go(parts[0])
                for addend in parts[1:]:
                    total = total + go(addend)
                return total
            case sc.RealMul(left, right):
                return go(left) * go(right)
            case sc.RealDiv(left, right):
                return go(left) / go(right)
            case sc.RealCall(function, args):
                return _TORCH[function](*map(go, args))
            case sc.RealSelect(condition, then, otherwise):
                chosen = np.broadcast_to(ex.evaluate(condition, scope, given), dot.shape)
                values = torch.zeros_like(dot)
                for branch, where in ((then, chosen), (otherwise, ~chosen)):
                    some = {n: x[where] if np.ndim(x) else x for n, x in scope.items()}
                    at = torch.from_numpy(where.nonzero()[0])
                    values = values.index_put((at,), real_values(branch, some, given, dot[at]))
                return values

    return go(expr)


def _full(value: Any, dot: Tensor) -> Tensor:
    return torch.as_tensor(np.broadcast_to(np.asarray(value, np.float64), dot.shape).copy())


def _read(tensor: Any, index: list[Any], dot: Tensor) -> Tensor:
    """Return elements at indices, with their gradient; outside of the tensor 0 is read."""
    values = torch.as_tensor(tensor).double()
    inside = np.ones(dot.shape, dtype=bool)
    for i, side in zip(index, values.shape, strict=True):
        inside &= np.greater_equal(i, 0) & np.less(i, side)
    some = torch.from_numpy(inside.nonzero()[0])
    places = [torch.as_tensor(np.broadcast_to(i, dot.shape)[inside]) for i in index]
    found = values[tuple(places)] if places else values.expand(len(some))
    return torch.zeros_like(dot).index_put((some,), found)


_TORCH: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "floor": torch.floor,
    "sign": torch.sign,
    "f32": lambda x: x.float().double(),
}
