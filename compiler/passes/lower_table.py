"""Lists indexed at run time, and functions of one integer -> chains of cases, one for each run.

    widths = [8, 8, 8, 2, 2]:  widths[i]  -->  if i <= 2 then 8 else 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import free_vars, input_names, substitute
from attnc.compiler.passes.lower_value import Item, Logic, LowerError, Num, Real
from attnc.dsl.source import Span

MAX_CASES = 512
"""How many cases one chain may have."""
MAX_VALUES = 1 << 16
"""Over how many values of an integer a function of it is tabulated."""


def to_real(item: Num | Real, span: Span) -> Real:
    """Return a number as a real."""
    if isinstance(item, Real):
        return item
    value = lv.known(item)
    if value is not None:
        return Real(sc.RealConst(float(value)), 1)
    top = sc.from_int(item.expr)
    expr = top if item.den == 1 else sc.real_div(top, sc.RealConst(float(item.den)))
    return lv.real(expr, item.size + 1, span)


def lookup(items: Sequence[Item], index: Num, ranges: ex.Ranges, span: Span) -> Item:
    """Return ``items[index]``; an index outside reads 0, or false.

    Raises: LowerError[ATT0312] if the list has too many runs of equal items.
    """
    if items and all(isinstance(i, Logic) for i in items):
        return _truth(items, index, span)
    numbers = [i for i in items if isinstance(i, Num | Real)]
    if len(numbers) < len(items):
        raise LowerError(
            "ATT0306", "a value here must be known at compile time", span,
            label="items of this list cannot be chosen at run time",
            help="use numbers, parameters, or variables of quantifiers with constant ends",
        )  # fmt: skip
    low, high = ex.interval(index.expr, ranges)
    first = max(0, low or 0)
    last = len(items) - 1 if high is None else min(high, len(items) - 1)
    inside = low is not None and low >= 0 and high is not None and high < len(items)
    line = _line(numbers[first : last + 1]) if inside else None
    if line is not None:
        slope, start = line[0], line[1] - line[0] * first
        whole = all(isinstance(n, Num) and n.whole for n in numbers)
        offset = lv.const(int(start) if whole else start)
        return lv.total((lv.times(slope, index, span, whole), offset), span)
    runs: list[tuple[int, Num | Real]] = []  # the last index of each run, and what it holds
    for place in range(first, last + 1):
        if runs and runs[-1][1] == numbers[place]:
            runs.pop()
        runs.append((place, numbers[place]))
    if len(runs) > MAX_CASES:
        raise LowerError(
            "ATT0312", "the list has too many different items", span,
            label=f"indexed at run time, it makes {len(runs)} cases; {MAX_CASES} are possible",
            help="give it as an input: `input table: int[*]`",
        )  # fmt: skip
    zero: Num | Real = lv.const(0)
    if any(isinstance(n, Real) for n in numbers):
        zero = Real(sc.RealConst(0.0), 1)
        runs = [(place, to_real(n, span)) for place, n in runs]
    if high is None or high >= len(items) or not runs:
        runs.append((len(items), zero))
    chain = runs[-1][1]
    for place, number in reversed(runs[:-1]):
        test = Logic(ex.compare("<=", index.expr, ex.Const(place)), 2)
        chain = choose(test, number, chain, span)
    if low is not None and low >= 0:
        return chain
    return choose(Logic(ex.compare(">=", index.expr, ex.ZERO), 2), chain, zero, span)


def _truth(items: Sequence[Item], index: Num, span: Span) -> Logic:
    """Return the item of a list of truth values."""
    known = [i for i, item in enumerate(items) if item == Logic(ex.TRUE, 1)]
    test = Logic(ex.member(index.expr, known) if known else ex.FALSE, 1 + len(known))
    tests = [test]
    for place, item in enumerate(items):
        assert isinstance(item, Logic)
        if not isinstance(item.expr, ex.Truth):
            at = Logic(ex.compare("==", index.expr, ex.Const(place)), 2)
            tests.append(lv.all_of((at, item), span))
    return lv.any_of(tests, span)


def _line(numbers: Sequence[Num | Real]) -> tuple[Fraction, Fraction] | None:
    """Return slope and offset of three items or more that are a linear function of the index."""
    known = [lv.known(n) if isinstance(n, Num) else None for n in numbers]
    values = [v for v in known if v is not None]
    if len(values) < len(known) or len(set(values)) < 3:
        return None
    slope = values[1] - values[0]
    if any(b - a != slope for a, b in pairwise(values)):
        return None
    return slope, values[0]


def choose(condition: Logic, then: Num | Real, otherwise: Num | Real, span: Span) -> Num | Real:
    """Return ``if condition then ... else ...`` of numbers, a real where one of them is."""
    if isinstance(condition.expr, ex.Truth):
        return then if condition.expr.value else otherwise
    if isinstance(then, Num) and isinstance(otherwise, Num):
        return lv.choose(condition, then, otherwise, span)
    a, b = to_real(then, span), to_real(otherwise, span)
    size = 1 + condition.size + a.size + b.size
    return lv.real(sc.real_select(condition.expr, a.expr, b.expr), size, span)


def per_head(parts: Sequence[Item], heads: Num, span: Span) -> Item | None:
    """Return what has a value for each head as one expression of the head; None for lists."""
    ranges = {"h": (0, len(parts) - 1)}
    if all(isinstance(p, Num | Real | Logic) for p in parts):
        return lookup(parts, heads, ranges, span)
    return parts[0] if all(p == parts[0] for p in parts) else None


def by_head(item: Item, heads: int, head: Num, span: Span) -> Item:
    """Return a number that depends on the head alone as a table of the heads.

        2**-(8 / heads) * 2**-(8 / heads * h),  2 heads  -->  if h <= 0 then 0.0625 else 0.00390625
    """
    if not isinstance(item, Num | Real) or free_vars(item) != {"h"} or input_names(item):
        return item
    if isinstance(item, Num) and isinstance(item.expr, ex.Var | ex.Scale | ex.Add):
        linear = all(
            isinstance(n, ex.Var | ex.Scale | ex.Add | ex.Const) for n in ex.walk(item.expr)
        )
        if linear:
            return item
    parts = [substitute(item, {"h": ex.Const(number)}) for number in range(heads)]
    if isinstance(item, Num) and not item.whole:
        parts = [to_real(p, span) for p in parts if isinstance(p, Num)]
    found = per_head(parts, head, span) if all(_is_number(p) for p in parts) else None
    return item if found is None else found


def _is_number(item: Item) -> bool:
    """Return whether an item is a number that is known."""
    return isinstance(item, Num | Real) and isinstance(item.expr, ex.Const | sc.RealConst)


def step(
    real: Real, function: Callable[[float], Item], ranges: ex.Ranges, span: Span
) -> Item:
    """Return a function of a real that depends on one integer alone, case by case.

    Raises: LowerError[ATT0306] if the real is no such function, or the integer has no bounds.
    """
    if isinstance(real.expr, sc.RealConst):
        return function(real.expr.value)
    leaves = {n.part for n in sc.walk(real.expr) if isinstance(n, sc.FromInt)}
    other = any(isinstance(n, sc.RealRead | sc.RealSelect | sc.Dot) for n in sc.walk(real.expr))
    low = high = None
    if len(leaves) == 1 and not other:
        (leaf,) = leaves
        low, high = ex.interval(leaf, ranges)
    if low is None or high is None or high - low >= MAX_VALUES:
        raise LowerError(
            "ATT0306", "a value here must be known at compile time", span,
            label="a real number that depends on positions",
            help="round and compare reals in compile-time lists, or of one bounded integer",
        )  # fmt: skip
    name = "x"
    formula = _with_leaf(real.expr, leaf, ex.Var(name))
    import numpy as np

    values = sc.evaluate(formula, {name: np.arange(low, high + 1)})
    items = [function(float(v)) if math.isfinite(v) else lv.const(0) for v in values]
    shifted = ex.sub(leaf, ex.Const(low))
    index = Num(shifted, 1, real.size, high - low)
    return lookup(items, index, {**ranges}, span)


def _with_leaf(expr: sc.RealExpr, leaf: ex.IntExpr, variable: ex.Var) -> sc.RealExpr:
    """Return the real with its one integer replaced by a variable."""
    match expr:
        case sc.FromInt(part) if part == leaf:
            return sc.FromInt(variable)
        case sc.RealAdd(parts):
            return sc.RealAdd(tuple(_with_leaf(p, leaf, variable) for p in parts))
        case sc.RealMul(left, right):
            return sc.RealMul(_with_leaf(left, leaf, variable), _with_leaf(right, leaf, variable))
        case sc.RealDiv(left, right):
            return sc.RealDiv(_with_leaf(left, leaf, variable), _with_leaf(right, leaf, variable))
        case sc.RealCall(function, args):
            return sc.RealCall(function, tuple(_with_leaf(a, leaf, variable) for a in args))
        case _:
            return expr
