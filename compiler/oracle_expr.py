"""Checked expressions -> numbers and arrays: the meaning of the expression language.

Written as the language reads. At compile time: ints, Fractions, bools, words and tuples. Known at
run time: NumPy scalars (lengths and sizes) and arrays (what depends on a position). A real is
a float or a float64 array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.transforms import TRANSFORMS
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.source import Span

Env = Mapping[str, Any]

MAX_TURNS = 2**22
"""The turns of one loop; each is a mask."""


@dataclass(frozen=True, eq=False)
class Position:
    """A query or a key: its number, and its coordinates where it has some."""

    number: NDArray[np.int64]
    axes: tuple[str, ...] = ()
    coordinates: tuple[NDArray[np.int64], ...] = ()

    def along(self, axis: str) -> NDArray[np.int64]:
        """Return the coordinate along the axis of that name."""
        return self.coordinates[self.axes.index(axis)]


@dataclass(frozen=True, eq=False)
class Tensor:
    """An input, or a list that is indexed by run-time values, with the indices given so far."""

    values: NDArray[Any]
    index: tuple[Any, ...] = ()

    def at(self, index: Any) -> Any:
        """Index one more axis; the element when it was the last. Outside the tensor: 0."""
        deeper = replace(self, index=(*self.index, index))
        return deeper.read() if len(deeper.index) == self.values.ndim else deeper

    def read(self) -> Any:
        """Return the elements, 0 where an index is outside."""
        if self.values.size == 0:
            return np.zeros(np.broadcast_shapes(*map(np.shape, self.index)), self.values.dtype)
        inside: Any = True
        clipped = []
        for index, side in zip(self.index, self.values.shape, strict=True):
            inside = np.logical_and(inside, np.logical_and(index >= 0, index < side))
            clipped.append(np.clip(index, 0, side - 1))
        found = self.values[tuple(clipped)]
        return np.where(inside, found, np.zeros((), self.values.dtype))

    def holds(self, value: Any) -> Any:
        """Return whether a value is in the last axis; -1 is padding, a row outside is empty."""
        inside: Any = True
        for index, side in zip(self.index, self.values.shape[:-1], strict=True):
            inside = np.logical_and(inside, np.logical_and(index >= 0, index < side))
        found: Any = False
        for place in range(self.values.shape[-1]):
            entry = self.at(np.int64(place))
            found = np.logical_or(found, np.logical_and(entry == value, entry != -1))
        return np.logical_and(found, inside)


@dataclass(frozen=True)
class Missing:
    """A name without a value so far; ``refuse`` raises what says so."""

    refuse: Callable[[], Any]


class Surroundings(Protocol):
    """What an expression may use beside its variables: functions, patterns, scores of the file."""

    def call(self, function: str, args: list[Any], names: tuple[str | None, ...], env: Env) -> Any:
        """Return the value of a call of something that is not built in."""

    def name(self, name: str, env: Env) -> Any:
        """Return the value of a name that is no variable."""

    def keeps(self, pattern: ast.PatternValue, query: Any, key: Any, env: Env) -> Any:
        """Return whether a pattern keeps pairs."""

    def pattern(self, value: ast.Expr, env: Env) -> Any:
        """Return the pattern that a word or a call stands for."""


class Evaluator:
    """Evaluates checked expressions; ``around`` is where they stand."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    def __call__(self, expr: ast.Expr, env: Env) -> Any:
        """Return the value of an expression under the values of its variables."""
        match expr:
            case ast.Number(value=value):
                return int(value) if value.denominator == 1 else value
            case ast.Bool(value=value):
                return value
            case ast.Name(name=name):
                return self.name(name, env)
            case ast.ListOf(items=items):
                return tuple(self(i, env) for i in items)
            case ast.ListFor(var=var):
                turns, _ = self.turns(expr, env)
                return tuple(self(expr.body, {**env, var: turn}) for turn, _ in turns)
            case ast.Attribute(base=base, axis=axis):
                position: Position = env[base]
                return position.along(axis)
            case ast.Index(base=base, index=index):
                return self.index(base, self(index, env), env)
            case ast.Call(function=function, args=args, names=names):
                if function in BUILTINS:
                    return BUILTINS[function](*[self(a, env) for a in args])
                if function in TRANSFORMS:
                    return TRANSFORMS[function](*[_array(self(a, env)) for a in args])
                values = [self(a, env) for a in args]
                return self.around.call(function, values, names or (None,) * len(args), env)
            case ast.Unary(op="not", operand=operand):
                return np.logical_not(self(operand, env))
            case ast.Unary(operand=operand):
                return -self(operand, env)
            case ast.Binary(op=op, left=left, right=right):
                return ARITHMETIC[op](*_alike(self(left, env), self(right, env)))
            case ast.Compare(operands=operands, ops=ops):
                values = [self(o, env) for o in operands]
                held: Any = True
                for sign, one, other in zip(ops, values[:-1], values[1:], strict=True):
                    held = np.logical_and(held, _compare(sign, one, other))
                return held
            case ast.BoolOp():
                return self.junction(expr, env)
            case ast.Quantifier():
                return self.quantifier(expr, env)
            case ast.Reduce():
                return self.reduce(expr, env)
            case ast.IfExpr(condition=condition, then=then, otherwise=otherwise):
                chosen = self(condition, env)
                if np.ndim(chosen) == 0:
                    return self(then if chosen else otherwise, env)
                return np.where(chosen, *_alike(self(then, env), self(otherwise, env)))
            case ast.Let(name=name, value=bound, body=body):
                return self(body, {**env, name: self(bound, env)})
            case ast.PairIn(query=query, key=key, pattern=pattern, negated=negated):
                kept = self.around.keeps(pattern, self(query, env), self(key, env), env)
                return np.logical_not(kept) if negated else kept
        raise AssertionError(expr)

    def name(self, name: str, env: Env) -> Any:
        """Return the value of a name: a variable, else what stands around, else a choice."""
        if name not in env:
            return self.around.name(name, env)
        value = env[name]
        if isinstance(value, Missing):
            return value.refuse()
        if isinstance(value, Tensor) and value.values.ndim == 0:
            return value.values[()]
        return value.number if isinstance(value, Position) else value

    def index(self, base: ast.Expr, index: Any, env: Env) -> Any:
        """Return a coordinate, an item of a list, or an element of an input."""
        if isinstance(base, ast.Name) and isinstance(position := env.get(base.name), Position):
            return position.coordinates[index]
        items = self(base, env)
        if isinstance(items, tuple) and is_open(index):
            items = Tensor(padded(items))
        return items.at(index) if isinstance(items, Tensor) else items[index]

    def junction(self, expr: ast.BoolOp, env: Env) -> Any:
        """Left to right: a part after one that decides alone is not read (it may divide by 0)."""
        deciding = expr.op == "or"
        join = np.logical_or if deciding else np.logical_and
        total: Any = not deciding
        for part in expr.parts:
            value = self(part, env)
            if np.ndim(value) == 0 and bool(value) == deciding:
                return deciding
            total = join(total, value)
        return total

    def turns(
        self, loop: ast.Quantifier | ast.Reduce | ast.ListFor, env: Env
    ) -> tuple[list[tuple[Any, Any]], bool]:
        """Return each value of a loop with where it is inside the ends, and if ends are arrays."""
        low, high = self(loop.low, env), self(loop.high, env)
        if np.size(low) == 0 or np.size(high) == 0:
            return [], True
        values: Any = bounded(int(np.min(low)), int(np.max(high)), loop.span)
        if is_open(low) or is_open(high):
            values = map(np.int64, values)
        varied = np.ndim(low) > 0 or np.ndim(high) > 0
        return [(v, np.logical_and(low <= v, v <= high)) for v in values], varied

    def quantifier(self, expr: ast.Quantifier, env: Env) -> Any:
        """Loop over the values; where one is outside the ends it decides nothing."""
        exists = expr.op == "exists"
        total: Any = not exists
        for value, inside in self.turns(expr, env)[0]:
            held = self(expr.body, {**env, expr.var: value})
            if exists:
                total = np.logical_or(total, np.logical_and(inside, held))
            else:
                total = np.logical_and(total, np.logical_or(np.logical_not(inside), held))
        return total

    def reduce(self, expr: ast.Reduce, env: Env) -> Any:
        """Add up the values, or the number of turns whose condition holds, left to right."""
        total: Any = 0
        turns, varied = self.turns(expr, env)
        for value, inside in turns:
            term = self(expr.body, {**env, expr.var: value})
            if expr.op == "count":
                term = np.where(term, 1, 0) if np.ndim(term) else int(term)
            if varied:
                term = np.where(inside, *_alike(term, 0))
            total = ARITHMETIC["+"](*_alike(total, term))
        return total


# --------------------------------------------------------------------------------- arithmetic


def bounded(low: int, high: int, span: Span) -> range:
    """Return ``low .. high``, both ends included. Raises: CompileError where these are too many."""
    if high - low >= MAX_TURNS:
        message = f"a loop of {high - low + 1} turns is too long to be evaluated"
        raise CompileError([Diagnostic(code="ATT0312", message=message, span=span)])
    return range(low, high + 1)


def is_open(x: Any) -> bool:
    """Return whether a value is known at run time only: lengths, sizes, positions."""
    return isinstance(x, np.ndarray | np.generic)


def is_real(x: Any) -> bool:
    """Return whether a value is a real: a float or an array of them."""
    return isinstance(x, float | np.floating) or (isinstance(x, np.ndarray) and x.dtype.kind == "f")


def to_real(x: Any) -> Any:
    """Return a number, or an array of numbers, as float64."""
    return np.asarray(x).astype(np.float64) if np.ndim(x) else float(x)


def padded(items: Any, fill: int = -1) -> NDArray[Any]:
    """Return nested lists as one array; short ones are filled up. ``[[1], []] -> [[1], [-1]]``."""
    depth, level = 0, [items]
    sides: list[int] = []
    while level and all(isinstance(part, tuple | list) for part in level):
        sides.append(max(map(len, level)))
        level = [item for part in level for item in part]
        depth += 1
    ragged = math.prod(sides) != len(level)
    kinds = {type(item) for item in level}
    whole = np.array(level, dtype=object if Fraction in kinds else None)
    dtype = np.dtype(np.int64) if not level else whole.dtype
    array = np.full(sides, fill if ragged else 0, dtype=dtype)
    for place in np.ndindex(*sides):
        part = items
        for index in place:
            part = part[index] if index < len(part) else None
            if part is None:
                break
        else:
            array[place] = part
    return array


def _array(x: Any) -> Any:
    return x.values if isinstance(x, Tensor) else x


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """Return both values, as reals when one of them is."""
    x, y = _array(x), _array(y)
    return (to_real(x), to_real(y)) if is_real(x) != is_real(y) else (x, y)


def _divide(x: Any, y: Any) -> Any:
    if is_real(x) or is_open(y):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(to_real(x), to_real(y))
    return x * (1 / Fraction(y))


def _floor_div(x: Any, y: Any) -> Any:
    if is_open(y):
        return np.where(y >= 1, x // np.maximum(y, 1), 0)[()]
    return x // int(y)  # both Python and NumPy floor


def _mod(x: Any, y: Any) -> Any:
    if is_open(y):
        return np.where(y >= 1, x % np.maximum(y, 1), 0)[()]
    return x % int(y)


def _power(x: Any, y: Any) -> Any:
    if np.ndim(x) == 0 and np.ndim(y) == 0 and not is_real(x):
        if isinstance(y, int | np.integer) and y >= 0:
            return x**y
        return Fraction(x) ** y
    if isinstance(y, int | np.integer) and y >= 0:
        return x**y
    return np.power(to_real(x), to_real(y))


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": _divide,
    "div": _floor_div,
    "mod": _mod,
    "**": _power,
}


def _compare(op: str, x: Any, y: Any) -> Any:
    if op in ("in", "not in"):
        found: Any = False
        if isinstance(y, Tensor):
            found = y.holds(x)
        else:
            for item in y:
                found = np.logical_or(found, x == item)
        return found if op == "in" else np.logical_not(found)
    x, y = _array(x), _array(y)
    match op:
        case "==":
            return x == y
        case "!=":
            return x != y
        case "<":
            return x < y
        case "<=":
            return x <= y
        case ">":
            return x > y
        case ">=":
            return x >= y
    raise AssertionError(op)


# -------------------------------------------------------------------------- built-in functions


def _least(x: Any, y: Any) -> Any:
    x, y = _alike(x, y)
    return min(x, y) if np.ndim(x) == np.ndim(y) == 0 else np.where(x <= y, x, y)


def _greatest(x: Any, y: Any) -> Any:
    x, y = _alike(x, y)
    return max(x, y) if np.ndim(x) == np.ndim(y) == 0 else np.where(x >= y, x, y)


def _extreme(pick: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def extreme(*args: Any) -> Any:
        items = list(args[0]) if isinstance(args[0], tuple) else list(args)
        result = items[0]
        for item in items[1:]:
            result = pick(result, item)
        return result

    return extreme


def _rounded(whole: Callable[[Any], int], of_reals: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return an integer-valued function of numbers and of arrays of them."""

    def rounded(x: Any) -> Any:
        if np.ndim(x) == 0:
            return whole(x)
        if is_real(x):
            return of_reals(x).astype(np.int64)
        return x if x.dtype != object else np.vectorize(whole, otypes=[np.int64])(x)

    return rounded


def _real(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def real(x: Any) -> Any:
        with np.errstate(all="ignore"):
            value = function(to_real(x))
        return value if np.ndim(value) else float(value)

    return real


def _bit_length(x: Any) -> Any:
    if is_open(x):
        return sum((x >= 2**e).astype(np.int64) for e in range(41))
    return int(x).bit_length()


def _bit(x: Any, place: Any) -> Any:
    there = np.logical_and(place >= 0, place <= 40)
    return np.logical_and(there, np.right_shift(x, np.clip(place, 0, 40)) & 1 == 1)


BUILTINS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "min": _extreme(_least),
    "max": _extreme(_greatest),
    "clamp": lambda x, low, high: _least(_greatest(x, low), high),
    "floor": _rounded(math.floor, np.floor),
    "ceil": _rounded(math.ceil, np.ceil),
    "is_pow2": lambda x: np.isin(x, [2**e for e in range(41)]),
    "bit_length": _bit_length,
    "bit": _bit,
    "len": len,
    "fill": lambda count, value: (value,) * int(count),
    "exp": _real(np.exp),
    "log": _real(np.log),
    "sqrt": _real(np.sqrt),
    "tanh": _real(np.tanh),
    "f32": _real(lambda x: np.asarray(x).astype(np.float32).astype(np.float64)),
}
