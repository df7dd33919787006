"""Score terms: real-valued expressions of the product, positions, heads and learned tables.

Kept apart from masks, which are exact: these are evaluated in float32 by kernels (float64 beside
float64 inputs) and in float64 by ``evaluate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.expr.evaluate import read
from attnc.compiler.ir.expr.text import VARIABLES


@dataclass(frozen=True, slots=True)
class Dot:
    """The product of query and key times the scale."""


@dataclass(frozen=True, slots=True)
class RealConst:
    """A number, as float64."""

    value: float


@dataclass(frozen=True, slots=True)
class FromInt:
    """An integer expression of positions, heads, lengths and inputs."""

    part: ex.IntExpr


@dataclass(frozen=True, slots=True)
class RealRead:
    """``bias[h, k - q]``: an element of a real input; an index outside the tensor reads 0."""

    name: str
    index: tuple[ex.IntExpr, ...] = ()


@dataclass(frozen=True, slots=True)
class RealAdd:
    """The sum of the parts, left to right."""

    parts: tuple[RealExpr, ...]


@dataclass(frozen=True, slots=True)
class RealMul:
    """``left * right``."""

    left: RealExpr
    right: RealExpr


@dataclass(frozen=True, slots=True)
class RealDiv:
    """``left / right``."""

    left: RealExpr
    right: RealExpr


RealFunction = Literal[
    "exp", "exp2", "log", "log2", "sqrt", "tanh", "abs", "min", "max", "floor", "f32", "sign"
]


@dataclass(frozen=True, slots=True)
class RealCall:
    """A real function; ``min`` and ``max`` take two arguments, the others one.

    ``f32`` rounds to float32. ``sign`` (-1, 0 or 1) is not in the language: derivatives have it.
    """

    function: RealFunction
    args: tuple[RealExpr, ...]


@dataclass(frozen=True, slots=True)
class RealSelect:
    """``then`` where the condition holds, else ``otherwise``."""

    condition: ex.BoolExpr
    then: RealExpr
    otherwise: RealExpr


RealExpr: TypeAlias = (
    Dot | RealConst | FromInt | RealRead | RealAdd | RealMul | RealDiv | RealCall | RealSelect
)


def real_add(*parts: RealExpr) -> RealExpr:
    """Return the sum, left to right; constants fold."""
    flat: list[RealExpr] = []
    for part in parts:
        flat += part.parts if not flat and isinstance(part, RealAdd) else (part,)
    kept: list[RealExpr] = []
    for part in flat:
        if kept and isinstance(kept[-1], RealConst) and isinstance(part, RealConst):
            kept[-1] = RealConst(kept[-1].value + part.value)
        else:
            kept.append(part)
    kept = [p for p in kept if p != RealConst(0.0)] or [RealConst(0.0)]
    return kept[0] if len(kept) == 1 else RealAdd(tuple(kept))


def real_mul(left: RealExpr, right: RealExpr) -> RealExpr:
    """Return the product; constants fold."""
    match left, right:
        case RealConst(a), RealConst(b):
            return RealConst(a * b)
        case (RealConst(1.0), part) | (part, RealConst(1.0)):
            return part
    return RealMul(left, right)


def real_div(left: RealExpr, right: RealExpr) -> RealExpr:
    """Return the quotient; constants fold where the divisor is not 0."""
    match left, right:
        case RealConst(a), RealConst(b) if b:
            return RealConst(a / b)
        case part, RealConst(1.0):
            return part
    return RealDiv(left, right)


def real_call(function: RealFunction, *args: RealExpr) -> RealExpr:
    """Return the call; constants fold where the result is a number."""
    call = RealCall(function, args)
    if all(isinstance(a, RealConst) for a in args):
        value = float(evaluate(call, {}))
        if math.isfinite(value):
            return RealConst(value)
    return call


def real_select(condition: ex.BoolExpr, then: RealExpr, otherwise: RealExpr) -> RealExpr:
    """Return ``then`` or ``otherwise``; a known condition or equal branches fold."""
    if isinstance(condition, ex.Truth):
        return then if condition.value else otherwise
    return then if then == otherwise else RealSelect(condition, then, otherwise)


def from_int(part: ex.IntExpr) -> RealExpr:
    """Return an integer as a real number."""
    return RealConst(float(part.value)) if isinstance(part, ex.Const) else FromInt(part)


def children(expr: RealExpr) -> tuple[RealExpr | ex.Expr, ...]:
    """Return the direct sub-expressions, in order."""
    match expr:
        case FromInt(part):
            return (part,)
        case RealRead(_, index):
            return index
        case RealAdd(parts) | RealCall(_, parts):
            return parts
        case RealMul(left, right) | RealDiv(left, right):
            return (left, right)
        case RealSelect(condition, then, otherwise):
            return (condition, then, otherwise)
        case Dot() | RealConst():
            return ()


def walk(expr: RealExpr) -> Iterator[RealExpr | ex.Expr]:
    """Yield the expression and all below it, integers and truth values too, parents first."""
    stack: list[Any] = [expr]
    while stack:
        node = stack.pop()
        yield node
        below = children(node) if isinstance(node, RealExpr) else ex.children(node)
        stack.extend(reversed(below))


def op_count(expr: RealExpr) -> int:
    """Return how many operations evaluate the expression, of integers and truth values too."""
    return sum(
        bool(children(node) if isinstance(node, RealExpr) else ex.children(node))
        for node in walk(expr)
    )


def free_vars(expr: RealExpr) -> frozenset[str]:
    """Return the names of the variables used."""
    used: frozenset[str] = frozenset()
    for part in children(expr):
        used |= free_vars(part) if isinstance(part, RealExpr) else ex.free_vars(part)
    return used


def reads(expr: RealExpr) -> frozenset[str]:
    """Return the names of the inputs, numbers and extents that are read."""
    return frozenset(n.name for n in walk(expr) if isinstance(n, RealRead | ex.Read))


def substitute(expr: Any, values: Mapping[str, ex.IntExpr]) -> Any:
    """Return the expression with variables replaced."""
    match expr:
        case FromInt(part):
            return from_int(ex.substitute(part, values))
        case RealRead(name, index):
            return RealRead(name, tuple(ex.substitute(i, values) for i in index))
        case RealAdd(parts):
            return real_add(*(substitute(p, values) for p in parts))
        case RealMul(left, right):
            return real_mul(substitute(left, values), substitute(right, values))
        case RealDiv(left, right):
            return real_div(substitute(left, values), substitute(right, values))
        case RealCall(function, args):
            return real_call(function, *(substitute(a, values) for a in args))
        case RealSelect(condition, then, otherwise):
            return real_select(
                ex.substitute(condition, values),
                substitute(then, values),
                substitute(otherwise, values),
            )
        case _:
            return expr


def evaluate(
    expr: RealExpr,
    values: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    dot: Any = 0.0,
) -> Any:
    """Evaluate in float64 by NumPy; ``dot`` stands for the scaled product. Defines every node.

    What is not finite (the log of 0) comes out as NumPy makes it, without a warning.
    """
    import numpy as np

    def go(e: RealExpr) -> Any:
        match e:
            case Dot():
                return dot
            case RealConst(value):
                return value
            case FromInt(part):
                return np.asarray(ex.evaluate(part, values, inputs), dtype=np.float64)
            case RealRead(name, index):
                places = [ex.evaluate(i, values, inputs) for i in index]
                if inputs is None or name not in inputs:
                    raise ValueError(f"input `{name}` was not given")
                return np.asarray(read(inputs[name], places), dtype=np.float64)
            case RealAdd(parts):
                total = go(parts[0])
                for addend in parts[1:]:
                    total = total + go(addend)
                return total
            case RealMul(left, right):
                return go(left) * go(right)
            case RealDiv(left, right):
                return np.divide(go(left), go(right))
            case RealCall(function, args):
                return _NUMPY[function](*map(go, args))
            case RealSelect(condition, then, otherwise):
                return np.where(
                    ex.evaluate(condition, values, inputs), go(then), go(otherwise)
                )

    with np.errstate(all="ignore"):
        return go(expr)


def _f32(x: Any) -> Any:
    import numpy as np

    return np.float64(np.float32(x))


def _by_numpy(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        import numpy as np

        return getattr(np, name)(*args)

    return call


_NUMPY: dict[RealFunction, Callable[..., Any]] = {
    "exp": _by_numpy("exp"),
    "exp2": _by_numpy("exp2"),
    "log": _by_numpy("log"),
    "log2": _by_numpy("log2"),
    "sqrt": _by_numpy("sqrt"),
    "tanh": _by_numpy("tanh"),
    "abs": _by_numpy("abs"),
    "min": _by_numpy("minimum"),
    "max": _by_numpy("maximum"),
    "floor": _by_numpy("floor"),
    "f32": _f32,
    "sign": _by_numpy("sign"),
}


def show(expr: RealExpr) -> str:
    """Return the expression as text: integer parts stand in ``real(...)``."""
    match expr:
        case Dot():
            return "dot"
        case RealConst(value):
            return show_real(value)
        case FromInt(part):
            return f"real({ex.show(part)})"
        case RealRead(name, ()):
            return f"scalar({name})" if name in VARIABLES or name == "dot" else name
        case RealRead(name, index):
            return name + "".join(f"[{ex.show(i)}]" for i in index)
        case RealAdd(parts):
            return f"({' + '.join(map(show, parts))})"
        case RealMul(left, right):
            return f"({show(left)} * {show(right)})"
        case RealDiv(left, right):
            return f"({show(left)} / {show(right)})"
        case RealCall(function, args):
            return f"{function}({', '.join(map(show, args))})"
        case RealSelect(condition, then, otherwise):
            return f"(if {ex.show(condition)} then {show(then)} else {show(otherwise)})"


def show_real(value: float) -> str:
    """Return the shortest decimal text of a float64, with a point and without an exponent."""
    text = format(Decimal(repr(value)), "f")
    return text if "." in text or not text.lstrip("-").isdigit() else f"{text}.0"
