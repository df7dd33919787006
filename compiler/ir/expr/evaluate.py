"""The meaning of every node, by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir.expr.nodes import (
    POW2_MAX_EXPONENT,
    Abs,
    Add,
    And,
    BoolExpr,
    Compare,
    CompareOp,
    Const,
    Exists,
    Expr,
    FloorDiv,
    IsPow2,
    Max,
    Member,
    Min,
    Mod,
    Mul,
    Not,
    Or,
    Quot,
    Read,
    Rem,
    Scale,
    Select,
    Truth,
    Var,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def evaluate(
    expr: Expr, values: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> Any:
    """Evaluate with NumPy int64 arrays or plain integers for the variables (they broadcast).

    ``inputs`` has the tensors and numbers that are known at the call, by name, without a batch.

    Returns: an integer array for an ``IntExpr``, a boolean array for a ``BoolExpr`` (NumPy scalars
    or Python values where nothing broadcasts). This is the definition of every node.
    """
    import numpy as np

    def go(e: Expr) -> Any:
        match e:
            case Const(value) | Truth(value):
                return value
            case Var(name):
                return values[name]
            case Add(parts):
                total = go(parts[0])
                for part in parts[1:]:
                    total = total + go(part)
                return total
            case Scale(factor, part):
                return factor * go(part)
            case FloorDiv(part, divisor):
                return go(part) // divisor
            case Mod(part, divisor):
                return go(part) % divisor
            case Min(parts):
                return _fold(np.minimum, min, [go(p) for p in parts])
            case Max(parts):
                return _fold(np.maximum, max, [go(p) for p in parts])
            case Abs(part):
                return np.abs(go(part))
            case Select(condition, then, otherwise):
                test = go(condition)
                if isinstance(test, bool):
                    return go(then) if test else go(otherwise)
                return np.where(test, go(then), go(otherwise))
            case Compare(op, left, right):
                return _COMPARE[op](go(left), go(right))
            case IsPow2(part):
                x = np.asarray(go(part))
                return (x > 0) & (x <= 1 << POW2_MAX_EXPONENT) & ((x & (x - 1)) == 0)
            case Member(part, members):
                return np.isin(go(part), np.asarray(members))
            case And(parts):
                return _fold(np.logical_and, all, [go(p) for p in parts])
            case Or(parts):
                return _fold(np.logical_or, any, [go(p) for p in parts])
            case Not(part):
                truth = go(part)
                return not truth if isinstance(truth, bool) else np.logical_not(truth)
            case Exists(var, low, high, body):
                return _exists(var, go(low), go(high), body, values, inputs)
            case Read(name, index):
                return read(_given(name, inputs), [go(i) for i in index])
            case Mul(left, right):
                return go(left) * go(right)
            case Quot(part, by):
                divisor = go(by)
                return np.where(np.greater(divisor, 0), go(part) // np.maximum(divisor, 1), 0)
            case Rem(part, by):
                divisor = go(by)
                return np.where(np.greater(divisor, 0), go(part) % np.maximum(divisor, 1), 0)
        raise AssertionError(e)

    return go(expr)


def read(tensor: Any, index: list[Any]) -> Any:
    """Return the elements of a tensor at broadcast indices; outside of it 0 (or false) is read.

    A truth value reads as 0 or 1.
    """
    import numpy as np

    array = np.asarray(tensor)
    if array.dtype == np.bool_:
        array = array.astype(np.int64)
    assert array.ndim == len(index), f"{len(index)} indices into {array.ndim} dimensions"
    if not index:
        return array[()]
    places = np.broadcast_arrays(*index)
    inside = np.ones(places[0].shape, dtype=bool)
    for place, side in zip(places, array.shape, strict=True):
        inside &= (place >= 0) & (place < side)
    if not array.size:
        return np.zeros(inside.shape, dtype=array.dtype)
    found = array[tuple(np.where(inside, place, 0) for place in places)]
    return np.where(inside, found, array.dtype.type(0))


def _given(name: str, inputs: Mapping[str, Any] | None) -> Any:
    if inputs is None or name not in inputs:
        raise ValueError(f"input `{name}` was not given")
    return inputs[name]


_COMPARE: dict[CompareOp, Callable[[Any, Any], Any]] = {
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _fold(ufunc: np.ufunc, plain: Callable[[list[Any]], Any], parts: list[Any]) -> Any:
    """Join the parts; ``plain`` does it for Python numbers, which NumPy is slow about."""
    if all(isinstance(part, int) for part in parts):
        return plain(parts)
    total = parts[0]
    for part in parts[1:]:
        total = ufunc(total, part)
    return total


def _exists(
    var: str,
    low: Any,
    high: Any,
    body: BoolExpr,
    values: Mapping[str, Any],
    inputs: Mapping[str, Any] | None,
) -> NDArray[np.bool_]:
    import numpy as np

    if not np.size(low) or not np.size(high):
        return np.zeros(np.broadcast_shapes(np.shape(low), np.shape(high)), dtype=bool)
    first, last = int(np.min(low)), int(np.max(high))
    found: Any = np.False_
    for i in range(first, last + 1):
        inside = np.logical_and(np.less_equal(low, i), np.greater_equal(high, i))
        found = np.logical_or(found, inside & evaluate(body, {**values, var: i}, inputs))
    return np.asarray(found)
