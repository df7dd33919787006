"""Interval arithmetic: what an expression can be, and what that makes superfluous."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from attnc.compiler.ir.expr.fold import (
    absolute,
    add,
    and_,
    compare,
    floordiv,
    is_pow2,
    maximum,
    member,
    minimum,
    mod,
    mul,
    not_,
    or_,
    quot,
    rem,
    scale,
    select,
    sub,
)
from attnc.compiler.ir.expr.nodes import (
    FALSE,
    Abs,
    Add,
    And,
    BoolExpr,
    Compare,
    Const,
    Exists,
    FloorDiv,
    IntExpr,
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

Bounds: TypeAlias = tuple[int | None, int | None]
"""Least and greatest value, both included; None: unbounded."""

Ranges: TypeAlias = Mapping[str, Bounds]
"""Bounds of variables, by name, and of inputs as ``"doc[]"``; an absent name is unbounded."""


class Remembered(dict[str, Bounds]):
    """Ranges, and the bounds of what was asked under them: expressions share their parts."""

    def __init__(self, ranges: Ranges) -> None:
        super().__init__(ranges)
        self.bounds: dict[IntExpr, Bounds] = {}


def interval(expr: IntExpr, ranges: Ranges) -> Bounds:
    """Return bounds of an expression given bounds of its variables (None: unbounded)."""
    if isinstance(expr, Const):
        return expr.value, expr.value
    if isinstance(expr, Var):
        return ranges.get(expr.name, (None, None))
    if not isinstance(ranges, Remembered):
        return _interval(expr, ranges)
    found = ranges.bounds.get(expr)
    if found is None:
        found = ranges.bounds[expr] = _interval(expr, ranges)
    return found


def _interval(expr: IntExpr, ranges: Ranges) -> Bounds:
    match expr:
        case Const() | Var():
            return interval(expr, ranges)
        case Add(parts):
            pairs = [interval(p, ranges) for p in parts]
            lows, highs = zip(*pairs, strict=True)
            return _sum_or_none(lows), _sum_or_none(highs)
        case Scale(factor, part):
            low, high = interval(part, ranges)
            ends = (low, high) if factor > 0 else (high, low)
            return tuple(None if e is None else factor * e for e in ends)  # type: ignore[return-value]
        case FloorDiv(part, divisor):
            low, high = interval(part, ranges)
            return (
                None if low is None else low // divisor,
                None if high is None else high // divisor,
            )
        case Mod(_, divisor):
            return 0, divisor - 1
        case Min(parts) | Max(parts):
            pairs = [interval(p, ranges) for p in parts]
            some_low = [p[0] for p in pairs if p[0] is not None]
            some_high = [p[1] for p in pairs if p[1] is not None]
            if isinstance(expr, Min):
                low = min(some_low) if len(some_low) == len(pairs) else None
                return low, min(some_high, default=None)
            high = max(some_high) if len(some_high) == len(pairs) else None
            return max(some_low, default=None), high
        case Abs(part):
            low, high = interval(part, ranges)
            ends2 = [abs(e) for e in (low, high) if e is not None]
            least = 0 if low is None or high is None or low <= 0 <= high else min(ends2)
            if low is not None and low >= 0:
                least = low
            return least, (max(ends2) if len(ends2) == 2 else None)
        case Select(_, then, otherwise):
            (a, b), (c, d) = interval(then, ranges), interval(otherwise, ranges)
            return (
                None if a is None or c is None else min(a, c),
                None if b is None or d is None else max(b, d),
            )
        case Read(name):
            return ranges.get(f"{name}[]", (None, None))
        case Mul(left, right):
            return _product(interval(left, ranges), interval(right, ranges))
        case Quot(part, by):
            return _quotient(interval(part, ranges), interval(by, ranges))
        case Rem(part, by):
            (low, high), (_, most) = interval(part, ranges), interval(by, ranges)
            top = None if most is None else max(most - 1, 0)
            if low is not None and low >= 0 and high is not None:
                top = high if top is None else min(high, top)
            return 0, top


def _product(one: Bounds, other: Bounds) -> Bounds:
    if (0, 0) in (one, other):
        return 0, 0
    (a, b), (c, d) = _open_ends(one), _open_ends(other)
    ends = [0 if 0 in (x, y) else x * y for x in (a, b) for y in (c, d)]
    low, high = min(ends), max(ends)
    return None if low == -math.inf else int(low), None if high == math.inf else int(high)


def _open_ends(pair: Bounds) -> tuple[float, float]:
    """Return the ends with infinity for None; finite ones stay exact integers."""
    low, high = pair
    return -math.inf if low is None else low, math.inf if high is None else high


def _quotient(part: Bounds, by: Bounds) -> Bounds:
    """Return bounds of ``floor(part / by)``, which is 0 where ``by`` is below 1."""
    (low, high), (some, most) = part, by
    sure = some is not None and some >= 1
    least = max(some or 1, 1)
    if low is not None:
        low = low // least if low < 0 else 0 if most is None else low // max(most, 1)
        low = low if sure else min(low, 0)
    if high is not None:
        high = high // least if high >= 0 else -1 if most is None else high // max(most, 1)
        high = high if sure else max(high, 0)
    return low, high


def tidy(expr: IntExpr, ranges: Ranges) -> IntExpr:
    """Return an equal expression without the operations that ``interval`` shows to do nothing."""
    if not isinstance(ranges, Remembered):
        ranges = Remembered(ranges)

    def go(part: IntExpr) -> IntExpr:
        return tidy(part, ranges)

    match expr:
        case Add(parts):
            return add(*map(go, parts))
        case Scale(factor, part):
            return scale(factor, go(part))
        case FloorDiv(part, divisor) | Mod(part, divisor):
            inner = go(part)
            low, high = interval(inner, ranges)
            if low is not None and high is not None and low // divisor == high // divisor:
                quotient = Const(low // divisor)
                if isinstance(expr, FloorDiv):
                    return quotient
                return sub(inner, scale(divisor, quotient))
            return floordiv(inner, divisor) if isinstance(expr, FloorDiv) else mod(inner, divisor)
        case Min(parts) | Max(parts):
            kind = minimum if isinstance(expr, Min) else maximum
            return kind(*_undominated([go(p) for p in parts], ranges, isinstance(expr, Min)))
        case Select(condition, then, otherwise):
            return select(tidy_truth(condition, ranges), go(then), go(otherwise))
        case Read(name, index):
            return Read(name, tuple(map(go, index)))
        case Mul(left, right):
            return mul(go(left), go(right))
        case Quot(part, by):
            return quot(go(part), go(by))
        case Rem(part, by):
            return rem(go(part), go(by))
        case Abs(part):
            inner = go(part)
            low, high = interval(inner, ranges)
            if low is not None and low >= 0:
                return inner
            return scale(-1, inner) if high is not None and high <= 0 else absolute(inner)
        case _:
            return expr


def tidy_truth(expr: BoolExpr, ranges: Ranges) -> BoolExpr:
    """Return an equal predicate without what ``interval`` shows to be always or never true."""
    if not isinstance(ranges, Remembered):
        ranges = Remembered(ranges)

    def go(part: BoolExpr) -> BoolExpr:
        return tidy_truth(part, ranges)

    match expr:
        case Compare(op, left, right):
            left, right = tidy(left, ranges), tidy(right, ranges)
            low, high = interval(sub(left, right), ranges)
            below = high is not None and high < 0
            above = low is not None and low > 0
            at_most = high is not None and high <= 0
            at_least = low is not None and low >= 0
            always = {
                "<": below, "<=": at_most, ">": above, ">=": at_least, "!=": below or above,
                "==": low == high == 0,
            }  # fmt: skip
            never = {
                "<": at_least, "<=": above, ">": at_most, ">=": below, "==": below or above,
                "!=": low == high == 0,
            }  # fmt: skip
            if always[op] or never[op]:
                return Truth(always[op])
            return compare(op, left, right)
        case And(parts):
            return and_(*map(go, parts))
        case Or(parts):
            return or_(*map(go, parts))
        case Not(part):
            return not_(go(part))
        case IsPow2(part):
            return is_pow2(tidy(part, ranges))
        case Member(part, values):
            inner = tidy(part, ranges)
            low, high = interval(inner, ranges)
            kept = [
                v for v in values
                if (low is None or v >= low) and (high is None or v <= high)
            ]  # fmt: skip
            return member(inner, kept) if kept else FALSE
        case Exists(var, first, last, body):
            first, last = tidy(first, ranges), tidy(last, ranges)
            reach = interval(first, ranges)[0], interval(last, ranges)[1]
            kept_body = tidy_truth(body, {**ranges, var: reach})
            return FALSE if kept_body == FALSE else Exists(var, first, last, kept_body)
        case Truth():
            return expr


def _undominated(
    parts: list[IntExpr], ranges: Ranges, least: bool
) -> list[IntExpr]:
    """Drop parts that another part always beats (ties keep the earlier one)."""
    kept = list(dict.fromkeys(parts))
    for part in list(kept):
        for other in kept:
            if other is part:
                continue
            low, _ = interval(sub(part, other) if least else sub(other, part), ranges)
            if low is not None and low >= 0:
                kept.remove(part)
                break
    return kept


def _sum_or_none(values: tuple[int | None, ...]) -> int | None:
    return None if None in values else sum(v for v in values if v is not None)
