"""Predicate of flat positions -> conjunctions of conditions on one axis each, in coordinates.

    (q div 8 == k div 8 and q mod 8 <= k mod 8)  -->  axis 0: q_0 == k_0, axis 1: q_1 <= k_1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.gridmask import Part

MAX_CONJUNCTIONS = 64
"""More conjunctions than these are not worth their products of boxes."""

MAX_CARRIES = 8
"""Most places of the slower axis at which a comparison of flat positions is decided by the next."""

MAX_SLICES = 64
"""Most values of what one axis adds to a condition that are told apart."""

BOOLEAN = (ex.Truth, ex.Compare, ex.IsPow2, ex.Member, ex.And, ex.Or, ex.Not, ex.Exists)

MAX_ROUNDS = 6
"""How often a predicate is rewritten until nothing changes."""

Conjunction: TypeAlias = Mapping[int, ex.BoolExpr]
"""A condition on each axis that has one; all of them hold."""


class Coupled(sets.OverBudget):
    """A condition speaks of several axes at once, and each has too many values to go through."""

    def __init__(self, condition: ex.BoolExpr) -> None:
        super().__init__(f"`{ex.show(condition)}` couples the axes")


def in_coordinates(predicate: ex.BoolExpr, queries: Part, keys: Part) -> ex.BoolExpr:
    """Return the predicate on two segments, in the coordinates ``q_0``, ..., ``k_0``, ..."""
    ranges = ranges_of(queries, keys)
    places = {"q": _position("q", queries, ranges), "k": _position("k", keys, ranges)}
    found: ex.BoolExpr = ex.tidy_truth(ex.substitute(predicate, places), ranges)
    for _ in range(MAX_ROUNDS):
        before = found
        found = ex.tidy_truth(_apart(found, ranges), ranges)
        if found == before:
            break
    return found


def ranges_of(queries: Part, keys: Part) -> ex.Ranges:
    """Return the bounds of all coordinates."""
    ranges: dict[str, ex.Bounds] = {}
    for side, part in (("q", queries), ("k", keys)):
        ranges |= {f"{side}_{a}": (0, extent - 1) for a, extent in enumerate(part.extents)}
    return ranges


def _position(side: str, part: Part, ranges: ex.Ranges) -> ex.IntExpr:
    """Return the flat position of a token from its coordinates."""
    axes: list[ex.IntExpr] = [
        ex.Var(f"{side}_{axis}") if extent > 1 else ex.ZERO
        for axis, extent in enumerate(part.extents)
    ]
    extents: list[int] = list(part.extents)
    if part.order is not None:
        pairs = list(zip(axes, part.order, strict=True))
        outer = [ex.tidy(ex.floordiv(axis, by), ranges) for axis, by in pairs]
        axes = outer + [ex.tidy(ex.mod(axis, by), ranges) for axis, by in pairs]
        extents = [e // by for e, by in zip(extents, part.order, strict=True)] + list(part.order)
    place: ex.IntExpr = ex.ZERO
    for axis, extent in zip(axes, extents, strict=True):
        place = ex.add(ex.scale(extent, place), axis)
    return ex.add(place, ex.Const(part.start))


def axes_of(expr: ex.Expr) -> frozenset[int]:
    """Return the numbers of the axes that an expression speaks of."""
    names = (name.split("_") for name in ex.free_vars(expr))
    return frozenset(int(name[1]) for name in names if len(name) == 2)


# ------------------------------------------------------------------------- one axis at a time


def _apart(expr: Any, ranges: ex.Ranges) -> Any:
    """Rewrite ``div``, ``mod`` and comparisons of sums over several axes into such over fewer."""
    if ex.children(expr):
        expr = ex.rebuild(expr, lambda part: _apart(part, ranges))
    match expr:
        case ex.FloorDiv(part, divisor) | ex.Mod(part, divisor):
            for unit, high, low in _cuts(part, divisor, ranges):
                quotient = divisor // unit
                if isinstance(expr, ex.FloorDiv):
                    return ex.floordiv(high, quotient)
                return ex.add(ex.scale(unit, ex.mod(high, quotient)), low)
        case ex.Add(parts):
            return _joined(expr, parts)
        case ex.Compare(op, left, right) if len(axes_of(expr)) > 1:
            return _compare(op, left, right, ranges) or expr
    return expr


def _terms(expr: ex.IntExpr) -> list[tuple[int, ex.IntExpr]]:
    """Return the terms of a sum as factor and rest; the constant is a multiple of one."""
    found: list[tuple[int, ex.IntExpr]] = []
    for term in expr.parts if isinstance(expr, ex.Add) else (expr,):
        match term:
            case ex.Scale(factor, part):
                found.append((factor, part))
            case ex.Const(value):
                found.append((value, ex.ONE))
            case _:
                found.append((1, term))
    return found


def _cuts(
    part: ex.IntExpr, divisor: int, ranges: ex.Ranges
) -> Iterator[tuple[int, ex.IntExpr, ex.IntExpr]]:
    """Yield ``(unit, high, low)``: ``part == unit * high + low``, ``0 <= low < unit``."""
    terms = _terms(part)
    units = {math.gcd(factor, divisor) for factor, rest in terms if rest != ex.ONE}
    for unit in sorted(units - {1}, reverse=True):
        high, low = _at(terms, unit)
        least, most = ex.interval(low, ranges)
        if least is not None and most is not None and 0 <= least and most < unit:
            yield unit, high, low


def _at(
    terms: list[tuple[int, ex.IntExpr]], unit: int
) -> tuple[ex.IntExpr, ex.IntExpr]:
    """Split a sum in multiples of a unit, and the rest with a constant from 0 on."""
    high: list[ex.IntExpr] = []
    low: list[ex.IntExpr] = []
    for factor, rest in terms:
        if rest == ex.ONE:
            high.append(ex.Const(factor // unit))
            low.append(ex.Const(factor % unit))
        elif factor % unit == 0:
            high.append(ex.scale(factor // unit, rest))
        else:
            low.append(ex.scale(factor, rest))
    return ex.add(*high), ex.add(*low)


def _joined(total: ex.Add, parts: tuple[ex.IntExpr, ...]) -> ex.IntExpr:
    """Write ``c * (d * (x div d) + x mod d)`` as ``c * x``."""
    terms = dict((rest, factor) for factor, rest in _terms(total))
    for rest, factor in terms.items():
        if isinstance(rest, ex.FloorDiv) and factor % rest.divisor == 0:
            times = factor // rest.divisor
            remainder = ex.mod(rest.part, rest.divisor)
            if terms.get(remainder) == times:
                found = ex.sub(total, ex.scale(factor, rest))
                found = ex.sub(found, ex.scale(times, remainder))
                return ex.add(found, ex.scale(times, rest.part))
    return total


def _compare(
    op: ex.CompareOp, left: ex.IntExpr, right: ex.IntExpr, ranges: ex.Ranges
) -> ex.BoolExpr | None:
    """Decide a comparison of sums over several axes axis by axis, where their units allow it."""
    for one, other, turned in ((left, right, op), (right, left, _TURNED[op])):
        found = _unfolded(turned, one, other)
        if found is not None:
            return found
    total = ex.sub(left, right)
    if op in ("==", "!="):
        same = _equal(total, ranges)
        return same if same is None or op == "==" else _negated(same)
    if op in ("<", "<="):
        total = ex.scale(-1, total)
    if op in ("<", ">"):
        total = ex.sub(total, ex.ONE)
    return _at_least_zero(total, ranges)


_TURNED: dict[ex.CompareOp, ex.CompareOp] = {
    "<=": ">=", ">=": "<=", "<": ">", ">": "<", "==": "==", "!=": "!=",
}


def _unfolded(op: ex.CompareOp, one: ex.IntExpr, other: ex.IntExpr) -> ex.BoolExpr | None:
    """Take ``abs``, ``min`` and ``max`` apart where they stand alone on one side."""
    match one, op:
        case ex.Abs(part), "<=" | "<":
            return ex.and_(ex.compare(op, part, other), ex.compare(op, ex.scale(-1, part), other))
        case ex.Abs(part), ">=" | ">":
            return ex.or_(ex.compare(op, part, other), ex.compare(op, ex.scale(-1, part), other))
        case (ex.Min(parts), "<=" | "<") | (ex.Max(parts), ">=" | ">"):
            return ex.or_(*(ex.compare(op, part, other) for part in parts))
        case (ex.Min(parts), ">=" | ">") | (ex.Max(parts), "<=" | "<"):
            return ex.and_(*(ex.compare(op, part, other) for part in parts))
        case ex.Select(condition, then, otherwise), _:
            return ex.or_(
                ex.and_(condition, ex.compare(op, then, other)),
                ex.and_(ex.not_(condition), ex.compare(op, otherwise, other)),
            )
    return None


def _units(total: ex.IntExpr, ranges: ex.Ranges) -> Iterator[tuple[int, Any, Any, int, int]]:
    """Yield ways to write a sum as ``unit * high + low`` on fewer axes each, and low's bounds."""
    terms = _terms(total)
    for unit in sorted({abs(f) for f, rest in terms if rest != ex.ONE} - {1}, reverse=True):
        high, low = _at(terms, unit)
        axes, others = axes_of(high), axes_of(low)
        least, most = ex.interval(low, ranges)
        if axes & others or not axes or not others or least is None or most is None:
            continue
        yield unit, high, low, least, most


def _equal(total: ex.IntExpr, ranges: ex.Ranges) -> ex.BoolExpr | None:
    """Return ``total == 0`` as alternatives of an equation for each group of axes."""
    for unit, high, low, least, most in _units(total, ranges):
        places = range(math.ceil(-most / unit), math.floor(-least / unit) + 1)
        if len(places) <= MAX_CARRIES:
            return ex.or_(*(
                ex.and_(sets.balanced("==", ex.sub(high, ex.Const(x))),
                        sets.balanced("==", ex.add(low, ex.Const(unit * x))))
                for x in places
            ))  # fmt: skip
    return None


def _at_least_zero(total: ex.IntExpr, ranges: ex.Ranges) -> ex.BoolExpr | None:
    """Return ``total >= 0`` as steps: from each place of the slower axis on, how far the faster.

    unit * high + low >= 0  -->  high >= 1 or (high >= 0 and low >= 0)
    """
    for unit, high, low, least, most in _units(total, ranges):
        places = range(-(most // unit), -(least // unit) + 1)
        if len(places) <= MAX_CARRIES:
            return ex.or_(*(
                ex.and_(sets.balanced(">=", ex.sub(high, ex.Const(x))),
                        sets.balanced(">=", ex.add(low, ex.Const(unit * x))))
                for x in places
            ))  # fmt: skip
    return None


# ------------------------------------------------------------------------- alternatives


def _negated(expr: ex.BoolExpr) -> ex.BoolExpr:
    """Push a negation down to single conditions."""
    match expr:
        case ex.And(parts):
            return ex.or_(*map(_negated, parts))
        case ex.Or(parts):
            return ex.and_(*map(_negated, parts))
        case _:
            return ex.not_(expr)


def conjunctions(expr: ex.BoolExpr, queries: Part, keys: Part) -> list[Conjunction]:
    """Return conjunctions of conditions on one axis each; the predicate holds where one does.

    Raises: Coupled where a condition ties long axes together, OverBudget where there are too many.
    """
    return _conjunctions(expr, ranges_of(queries, keys))


def _conjunctions(expr: ex.BoolExpr, ranges: ex.Ranges) -> list[Conjunction]:
    axes = axes_of(expr)
    if expr == ex.FALSE:
        return []
    if len(axes) <= 1:
        return [{min(axes, default=0): expr}]
    match expr:
        case ex.Not(ex.And() | ex.Or() as inner):
            return _conjunctions(_negated(inner), ranges)
        case ex.Or(parts):
            return _limited(_alone(ex.or_, parts) + [c for p in parts if len(axes_of(p)) > 1
                                                     for c in _conjunctions(p, ranges)])
        case ex.And(parts):
            single = _alone(ex.and_, parts)
            found: list[Conjunction] = [_all(single)]
            for part in parts:
                if len(axes_of(part)) > 1:
                    more = _conjunctions(part, ranges)
                    found = _limited([_all([one, other]) for one in found for other in more])
            return [c for c in found if ex.FALSE not in c.values()]
        case _:
            slices = list(_slices(expr, ranges))
            return _limited([c for part in slices for c in _conjunctions(part, ranges)])


def loosened(expr: ex.BoolExpr, queries: Part, keys: Part) -> ex.BoolExpr:
    """Return a predicate that holds wherever this one does, and ties no axes together."""
    ranges = ranges_of(queries, keys)

    def go(part: ex.BoolExpr) -> ex.BoolExpr:
        if len(axes_of(part)) <= 1:
            return part
        match part:
            case ex.Not(ex.And() | ex.Or() as inner):
                return go(_negated(inner))
            case ex.And(parts):
                return ex.and_(*map(go, parts))
            case ex.Or(parts):
                return ex.or_(*map(go, parts))
            case _:
                try:
                    _conjunctions(part, ranges)
                except sets.OverBudget:
                    return ex.TRUE
                return part

    return go(expr)


def _slices(expr: ex.BoolExpr, ranges: ex.Ranges) -> Iterator[ex.BoolExpr]:
    """Yield alternatives: what one axis adds to a condition has a value, and the rest holds for it.

    abs(q_0 - k_0) + abs(q_1 - k_1) <= 1  -->  abs(q_0 - k_0) == 0 and abs(q_1 - k_1) <= 1, ...
    Raises: Coupled where every such part has more than ``MAX_SLICES`` values.
    """
    known = [(part, ex.interval(part, ranges)) for part in _parts_of_axes(expr)]
    lengths = [(high - low, part, low) for part, (low, high) in known
               if low is not None and high is not None]  # fmt: skip
    length, part, low = min(lengths, key=lambda one: one[0], default=(MAX_SLICES, ex.ZERO, 0))
    if length >= MAX_SLICES:
        raise Coupled(expr)
    first = low
    rest = ex.tidy_truth(_with(expr, part, low), ranges)
    for value in range(low + 1, low + length + 2):
        following = ex.FALSE if value > low + length else ex.tidy_truth(
            _with(expr, part, value), ranges
        )
        if following == rest and value <= low + length:
            continue
        if rest != ex.FALSE:
            between = ex.and_(ex.compare("<=", ex.Const(first), part),
                              ex.compare("<=", part, ex.Const(value - 1)))  # fmt: skip
            here = ex.compare("==", part, ex.Const(first)) if value == first + 1 else between
            yield ex.and_(here, rest)
        first, rest = value, following


def _parts_of_axes(expr: ex.Expr) -> Iterator[ex.IntExpr]:
    """Yield the largest parts of a condition that speak of one axis only."""
    for node in ex.walk(expr):
        if len(axes_of(node)) < 2:
            continue
        if isinstance(node, ex.Add):
            yield from _by_axis(node).values()
        else:
            for child in ex.children(node):
                if len(axes_of(child)) == 1 and not isinstance(child, BOOLEAN):
                    yield child


def _by_axis(total: ex.Add) -> dict[int, ex.IntExpr]:
    """Return what each axis adds to a sum, without terms on several axes."""
    found: dict[int, ex.IntExpr] = {}
    for term in total.parts:
        axes = axes_of(term)
        if len(axes) == 1:
            axis = min(axes)
            found[axis] = ex.add(found.get(axis, ex.ZERO), term)
    return found


def _with(expr: Any, part: ex.IntExpr, value: int) -> Any:
    """Return an expression with a value for one of its parts."""
    if expr == part:
        return ex.Const(value)
    if isinstance(expr, ex.Add) and part in _by_axis(expr).values():
        expr = ex.add(ex.sub(expr, part), ex.Const(value))
    return ex.rebuild(expr, lambda e: _with(e, part, value)) if ex.children(expr) else expr


def _alone(junction: Any, parts: tuple[ex.BoolExpr, ...]) -> list[Conjunction]:
    """Gather the parts that speak of one axis, axis by axis."""
    found: dict[int, ex.BoolExpr] = {}
    for part in parts:
        axes = axes_of(part)
        if len(axes) <= 1:
            axis = min(axes, default=0)
            found[axis] = junction(found[axis], part) if axis in found else part
    return [{axis: condition} for axis, condition in found.items()]


def _all(of: list[Conjunction]) -> Conjunction:
    found: dict[int, ex.BoolExpr] = {}
    for conjunction in of:
        for axis, condition in conjunction.items():
            found[axis] = ex.and_(found[axis], condition) if axis in found else condition
    return found


def _limited(found: list[Conjunction]) -> list[Conjunction]:
    if len(found) > MAX_CONJUNCTIONS:
        raise sets.OverBudget(f"over {MAX_CONJUNCTIONS} alternatives between axes")
    return found
