"""test of side terms -> whether it may hold in a tile, and whether it must: interval arithmetic.

    query_0 == key_0 with query_0 in 3 .. 5 and key_0 in 5 .. 9   -->   may hold, need not

Bounds are arrays with a place for each tile. They are sound for every test, and exact where one
order comparison holds a query term against a key term, or a truth value is read in a box of an
input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.expr.evaluate import read
from attnc.compiler.passes.sides import KEY, QUERY

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bounds: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"
"""Least and greatest value in each tile, both included."""

Outcome: TypeAlias = "tuple[NDArray[np.bool_], NDArray[np.bool_]]"
"""Whether a condition holds somewhere in each tile (true if unknown), and everywhere (false)."""

MAX_BOX = 2
"""Most indices with side terms for which the boxes of a truth value are counted."""


class TileTest:
    """The interval arithmetic of one test over given inputs; counts of boxes are kept."""

    def __init__(self, test: ex.BoolExpr, data: Mapping[str, Any]) -> None:
        self.test = test
        self.data = data
        self._areas: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
        self._extremes: dict[str, tuple[int, int]] = {}

    def outcome(self, bounds: Mapping[str, Bounds]) -> Outcome:
        """Return what the test can be, given bounds of terms, lengths and heads by name."""
        return self._condition(self.test, bounds)

    def _condition(self, expr: ex.BoolExpr, given: Mapping[str, Bounds]) -> Outcome:
        import numpy as np

        match expr:
            case ex.Truth(value):
                return np.asarray(value), np.asarray(value)
            case ex.Not(part):
                may, must = self._condition(part, given)
                return ~must, ~may
            case ex.And(parts) | ex.Or(parts):
                join = np.logical_and if isinstance(expr, ex.And) else np.logical_or
                may, must = self._condition(parts[0], given)
                for part in parts[1:]:
                    other_may, other_must = self._condition(part, given)
                    may, must = join(may, other_may), join(must, other_must)
                return may, must
            case ex.Compare(op, left, right):
                return _compared(op, self._integer(left, given), self._integer(right, given))
            case ex.IsPow2(part):
                powers = np.left_shift(1, np.arange(ex.POW2_MAX_EXPONENT + 1, dtype=np.int64))
                return _listed(powers, self._integer(part, given))
            case ex.Member(part, values):
                return _listed(np.asarray(values, dtype=np.int64), self._integer(part, given))
            case ex.Exists():
                raise AssertionError(f"not without quantifiers: {expr}")

    def _integer(self, expr: ex.IntExpr, given: Mapping[str, Bounds]) -> Bounds:
        import numpy as np

        def go(part: ex.IntExpr) -> Bounds:
            return self._integer(part, given)

        match expr:
            case ex.Const(value):
                point = np.asarray(value, dtype=np.int64)
                return point, point
            case ex.Var(name):
                return given[name]
            case ex.Add(parts):
                low, high = go(parts[0])
                for part in parts[1:]:
                    more_low, more_high = go(part)
                    low, high = low + more_low, high + more_high
                return low, high
            case ex.Scale(factor, part):
                low, high = go(part)
                ends = (factor * low, factor * high)
                return ends if factor > 0 else ends[::-1]
            case ex.FloorDiv(part, divisor):
                low, high = go(part)
                return low // divisor, high // divisor
            case ex.Mod(part, divisor):
                return _remainder(go(part), np.asarray(divisor), np.asarray(True))
            case ex.Min(parts) | ex.Max(parts):
                pick = np.minimum if isinstance(expr, ex.Min) else np.maximum
                low, high = go(parts[0])
                for part in parts[1:]:
                    more_low, more_high = go(part)
                    low, high = pick(low, more_low), pick(high, more_high)
                return low, high
            case ex.Abs(part):
                low, high = go(part)
                return np.maximum(np.maximum(low, -high), 0), np.maximum(-low, high)
            case ex.Select(condition, then, otherwise):
                may, must = self._condition(condition, given)
                (a, b), (c, d) = go(then), go(otherwise)
                low = np.where(must, a, np.where(may, np.minimum(a, c), c))
                return low, np.where(must, b, np.where(may, np.maximum(b, d), d))
            case ex.Mul(left, right):
                (a, b), (c, d) = go(left), go(right)
                return _ends(a * c, a * d, b * c, b * d)
            case ex.Quot(part, by):
                return _quotient(go(part), go(by))
            case ex.Rem(part, by):
                least, most = go(by)
                low, high = _remainder(go(part), np.maximum(most, 1), least == most)
                return low, np.where(most < 1, 0, high)
            case ex.Read(name, index):
                return self._read(name, index, [go(i) for i in index])

    def _read(self, name: str, index: tuple[ex.IntExpr, ...], boxes: list[Bounds]) -> Bounds:
        """Return bounds of an element of an input whose indices are only known by bounds."""
        import numpy as np

        tensor = np.asarray(self.data[name])
        loose = tuple(axis for axis, part in enumerate(index) if _has_terms(part))
        if tensor.dtype == np.bool_ and 0 < len(loose) <= MAX_BOX:
            return self._box(name, tensor, loose, boxes)
        point = np.asarray(read(tensor, [low for low, _ in boxes]), dtype=np.int64)
        if not loose:
            return point, point
        known = np.asarray(True)
        for low, high in boxes:
            known = known & (low == high)
        if name not in self._extremes:  # outside the tensor 0 is read
            self._extremes[name] = int(tensor.min(initial=0)), int(tensor.max(initial=0))
        least, most = self._extremes[name]
        return np.where(known, point, least), np.where(known, point, most)

    def _box(
        self, name: str, tensor: NDArray[np.bool_], loose: tuple[int, ...], boxes: list[Bounds]
    ) -> Bounds:
        """Count the true elements of a box by inclusion and exclusion; outside all are false."""
        import numpy as np

        area = self._areas.get((name, loose))
        if area is None:
            area = self._areas[name, loose] = _areas(tensor, loose)
        corners: list[tuple[int, list[Any]]] = [(1, [])]
        cells = np.asarray(1)
        inside = np.asarray(True)
        for axis, (low, high) in enumerate(boxes):
            side = tensor.shape[axis]
            if axis in loose:
                ends = (-1, np.clip(low, 0, side)), (1, np.clip(high + 1, 0, side))
                corners = [(s * t, [*at, place]) for s, at in corners for t, place in ends]
                cells = cells * (high - low + 1)
            else:
                inside = inside & (low >= 0) & (low < side)
                corners = [(s, [*at, np.clip(low, 0, max(side - 1, 0))]) for s, at in corners]
        if not area.size:
            zero = np.asarray(0, dtype=np.int64)
            return zero, zero
        counted = sum(sign * area[tuple(np.broadcast_arrays(*at))] for sign, at in corners)
        counted = np.where(inside, counted, 0)
        return (counted == cells).astype(np.int64), (counted > 0).astype(np.int64)


def _areas(tensor: NDArray[np.bool_], axes: tuple[int, ...]) -> NDArray[Any]:
    """Return the running counts along some axes, each one longer than before, 0 in front."""
    import numpy as np

    longer = [side + (axis in axes) for axis, side in enumerate(tensor.shape)]
    total = np.zeros(longer, dtype=np.int32 if tensor.size < 1 << 31 else np.int64)
    total[tuple(slice(int(axis in axes), None) for axis in range(tensor.ndim))] = tensor
    for axis in axes:
        np.cumsum(total, axis=axis, out=total)
    return total


def _has_terms(expr: ex.IntExpr) -> bool:
    return any(name.startswith((QUERY, KEY)) for name in ex.free_vars(expr))


def _compared(op: ex.CompareOp, left: Bounds, right: Bounds) -> Outcome:
    (a, b), (c, d) = left, right
    match op:
        case "<=":
            return a <= d, b <= c
        case "<":
            return a < d, b < c
        case ">=":
            return b >= c, a >= d
        case ">":
            return b > c, a > d
        case "==":
            return (a <= d) & (c <= b), (a == b) & (c == d) & (a == c)
        case "!=":
            return ~((a == b) & (c == d) & (a == c)), (a > d) | (c > b)


def _listed(values: NDArray[np.int64], part: Bounds) -> Outcome:
    """Return whether some, and whether all, of the values in reach are in a sorted list."""
    import numpy as np

    low, high = part
    found = np.searchsorted(values, high, side="right") - np.searchsorted(values, low, side="left")
    return found > 0, found == high - low + 1


def _remainder(part: Bounds, by: NDArray[Any], sure: NDArray[Any]) -> Bounds:
    """Return bounds of ``part mod by``; not ``sure``: ``by`` is only the largest divisor."""
    import numpy as np

    low, high = part
    same = sure & (low // by == high // by)
    top = np.where(low >= 0, np.minimum(high, by - 1), by - 1)
    return np.where(same, low % by, 0), np.where(same, high % by, top)


def _quotient(part: Bounds, by: Bounds) -> Bounds:
    """Return bounds of ``floor(part / by)``, which is 0 where ``by`` is below 1."""
    import numpy as np

    (a, b), (least, most) = part, by
    c, d = np.maximum(least, 1), np.maximum(most, 1)
    low, high = _ends(a // c, a // d, b // c, b // d)
    low = np.where(least < 1, np.minimum(low, 0), low)
    high = np.where(least < 1, np.maximum(high, 0), high)
    return np.where(most < 1, 0, low), np.where(most < 1, 0, high)


def _ends(*corners: Any) -> Bounds:
    import numpy as np

    low, high = corners[0], corners[0]
    for corner in corners[1:]:
        low, high = np.minimum(low, corner), np.maximum(high, corner)
    return low, high
