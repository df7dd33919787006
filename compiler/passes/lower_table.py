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
    low, high = ex.interval(index.expr, ranges)
    first = max(0, low or 0) if low is not None else 0
    last = len(items) - 1 if high is None else min(high, len(items) - 1)
    runs: list[tuple[int, Item]] = []  # the last index of each run, and what it holds
    for place in range(first, last + 1):
        if runs and runs[-1][1] == items[place]:
            runs[-1] = (place, items[place])
        else:
            runs.append((place, items[place]))
    if len(runs) > MAX_CASES:
        slope = _line(items, first, last)
        if slope is None or not _inside(low, high, len(items)):
            raise LowerError(
                "ATT0312", "the list has too many different items", span,
                label=f"indexed at run time, it makes {len(runs)} cases; {MAX_CASES} are possible",
                help="give it as an input: `input table: int[*]`",
            )  # fmt: skip
    sample = next((i for i in items if isinstance(i, Real)), items[0] if items else lv.const(0))
    match sample:
        case Logic():
            if all(isinstance(i, Logic) and isinstance(i.expr, ex.Truth) for i in items):
                kept = [i for i in range(first, last + 1) if items[i] == Logic(ex.TRUE, 1)]
                test = ex.member(index.expr, kept) if kept else ex.FALSE
                return lv.logic(test, 1 + len(kept), span)
            tests = [
                lv.all_of((Logic(ex.compare("==", index.expr, ex.Const(i)), 2), part), span)
                for i, part in enumerate(items)
                if isinstance(part, Logic)
            ]
            return lv.any_of(tests, span)
        case Num() | Real():
            line = _line(items, first, last) if len(runs) > 2 else None
            if line is not None and _inside(low, high, len(items)):
                slope_, offset = line
                return lv.total((lv.times(slope_, index, span), lv.const(offset)), span)
            if high is None or high >= len(items) or not runs:
                runs.append((len(items), lv.const(0)))
            chain = _chain(runs, index, isinstance(sample, Real), span)
            return chain if low is not None and low >= 0 else _below(index, chain, span)
    raise LowerError(
        "ATT0306", "a value here must be known at compile time", span,
        label="items of this list cannot be chosen at run time",
        help="use numbers, parameters, or variables of quantifiers with constant ends",
    )  # fmt: skip


def _inside(low: int | None, high: int | None, count: int) -> bool:
    return low is not None and low >= 0 and high is not None and high < count


def _line(items: Sequence[Item], first: int, last: int) -> tuple[Fraction, Fraction] | None:
    """Return slope and offset where the items are a linear function of the index."""
    values = [lv.known(i) if isinstance(i, Num) else None for i in items[first : last + 1]]
    known = [v for v in values if v is not None]
    if len(known) < len(values) or len(known) < 2:
        return None
    slope = known[1] - known[0]
    if any(b - a != slope for a, b in pairwise(known)):
        return None
    return slope, known[0] - slope * first


def _chain(runs: list[tuple[int, Item]], index: Num, reals: bool, span: Span) -> Num | Real:
    """Return the cases, the last run where no other holds."""
    parts = [item for _, item in runs if isinstance(item, Num | Real)]
    total: Num | Real = to_real(parts[-1], span) if reals else parts[-1]
    for (last, _), part in zip(reversed(runs[:-1]), reversed(parts[:-1]), strict=True):
        test = Logic(ex.compare("<=", index.expr, ex.Const(last)), 2)
        total = choose(test, to_real(part, span) if reals else part, total, span)
    return total


def _below(index: Num, chain: Num | Real, span: Span) -> Num | Real:
    zero: Num | Real = lv.const(0) if isinstance(chain, Num) else Real(sc.RealConst(0.0), 1)
    return choose(Logic(ex.compare(">=", index.expr, ex.ZERO), 2), chain, zero, span)


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
