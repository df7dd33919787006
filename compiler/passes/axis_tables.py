"""One axis of a grid as truth tables: quicker than integer sets on short axes, and surer.

An image of a million tokens has axes of a thousand: its pairs are never looked at, those of an
axis are.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression
from attnc.compiler.passes.axis_sets import Axis

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PAIRS = 1 << 24
"""Most pairs of positions, over all heads, that an axis is evaluated at."""

CHUNK_PAIRS = 1 << 20
"""Pairs that are evaluated at once."""

MAX_RUNS = 24
"""More stretches of tiles in a row than these make no pieces."""

MAX_BRANCHES = 48
"""Most conditionals in a bound."""

PIECE_COST, SELECT_COST, SCALE_COST = 6, 7, 3
"""What a piece more, a conditional and a factor weigh against operations in bounds."""

MAX_DIVISOR = 16
"""Greatest divisor that is tried for a bound."""


class AxisTables:
    """Relations of an axis as arrays ``[heads or 1, rows, columns]``; see ``AxisSets``."""

    def __init__(self, axis: Axis) -> None:
        if (axis.heads or 1) * axis.queries * axis.keys > MAX_PAIRS:
            raise sets.OverBudget(f"an axis of {axis.queries} x {axis.keys} positions")
        self._axis = axis

    def pairs(self, condition: ex.BoolExpr) -> NDArray[np.bool_]:
        """Return the existing pairs of positions that satisfy a condition on q, k and h."""
        import numpy as np

        shape = (self._axis.heads or 1, self._axis.queries, self._axis.keys)
        h, q, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
        kept = np.empty(shape, dtype=bool)
        step = max(1, CHUNK_PAIRS // (shape[0] * shape[2]))
        for start in range(0, shape[1], step):
            rows = slice(start, start + step)
            kept[:, rows] = ex.evaluate(condition, {"q": q[:, rows], "k": k, "h": h})
        return kept

    def minus(self, left: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return what is in ``left`` and not in ``right``."""
        return left & ~right

    def both(self, left: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return what is in both."""
        return left & right

    def is_empty(self, found: NDArray[np.bool_]) -> bool:
        """Return whether there is nothing, for any head."""
        return not found.any()

    def tiles(self, pairs: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the pairs of tiles with some pair of positions in them."""
        import numpy as np

        axis = self._axis
        rows = np.logical_or.reduceat(pairs, np.arange(0, axis.queries, axis.side_q), axis=1)
        found = np.logical_or.reduceat(rows, np.arange(0, axis.keys, axis.side_k), axis=2)
        return np.asarray(found, dtype=bool)

    def split(self, tiles: NDArray[np.bool_]) -> list[tuple[Progression, NDArray[np.bool_]]]:
        """Cut tiles into disjoint progressions, bounds in ``qb`` and ``h``."""
        import numpy as np

        axis = self._axis
        options = []
        step = _step(tiles)
        if step:
            options.append([(_progression(tiles, step), tiles)])
        if step != 1:
            rows, columns = np.ogrid[: axis.rows, : axis.columns]
            before = columns * axis.side_k * axis.queries < rows * axis.side_q * axis.keys
            options.append(_stretches(tiles))
            options.append(_stretches(tiles & before) + _stretches(tiles & ~before))
        return min(options, key=_cost)

    def hull(self, tiles: NDArray[np.bool_]) -> Progression:
        """Return one interval for each row that holds all its tiles."""
        import numpy as np

        after = np.logical_or.accumulate(tiles, axis=2)
        before = np.logical_or.accumulate(tiles[:, :, ::-1], axis=2)[:, :, ::-1]
        return _progression(after & before, 1)

    def residual(self, condition: ex.BoolExpr, tiles: NDArray[np.bool_]) -> ex.BoolExpr:
        """Return what of a condition is to be checked in some tiles; false: no pair has it."""
        axis = self._axis
        inside = tiles.repeat(axis.side_q, axis=1)[:, : axis.queries]
        return self._left(condition, inside.repeat(axis.side_k, axis=2)[:, :, : axis.keys])

    def _left(self, condition: ex.BoolExpr, inside: NDArray[np.bool_]) -> ex.BoolExpr:
        """Drop what holds at all positions inside, or at none."""
        kept = self.pairs(condition)[inside]
        if kept.all():
            return ex.TRUE
        if not kept.any():
            return ex.FALSE
        match condition:
            case ex.And(parts):
                return ex.and_(*(self._left(part, inside) for part in parts))
            case ex.Or(parts):
                return ex.or_(*(self._left(part, inside) for part in parts))
            case _:
                return condition


def _stretches(tiles: NDArray[np.bool_]) -> list[tuple[Progression, NDArray[np.bool_]]]:
    """Cut rows into stretches without a gap: the first of all rows, the second, and so on."""
    import numpy as np

    found: list[tuple[Progression, NDArray[np.bool_]]] = []
    columns = np.arange(tiles.shape[2])
    left = tiles
    while left.any():
        if len(found) == MAX_RUNS:
            raise sets.OverBudget(f"over {MAX_RUNS} stretches of tiles in a row")
        base = left.argmax(axis=2)[:, :, None]
        gap = ~left & (columns > base)
        stop = np.where(gap.any(axis=2), gap.argmax(axis=2), len(columns))[:, :, None]
        run = left & (columns >= base) & (columns < stop)
        found.append((_progression(run, 1), run))
        left = left & ~run
    return found


def _cost(found: list[tuple[Progression, NDArray[np.bool_]]]) -> int:
    """Return the operations of all bounds, and what the pieces cost."""
    return sum(PIECE_COST + _operations(p) for p, _ in found)


def _step(tiles: NDArray[np.bool_]) -> int:
    """Return the one step from tile to tile in all rows, 0 where there are several."""
    import numpy as np

    heads, rows, columns = np.nonzero(tiles)
    same = (np.diff(heads) == 0) & (np.diff(rows) == 0)
    steps = np.unique(np.diff(columns)[same])
    return 1 if not len(steps) else int(steps[0]) if len(steps) == 1 else 0


def _progression(tiles: NDArray[np.bool_], step: int) -> Progression:
    """Return the progression of rows whose tiles are all so many tiles apart."""
    import numpy as np

    seen: NDArray[np.bool_] = np.asarray(tiles.any(axis=2))
    first = tiles.argmax(axis=2)
    last = tiles.shape[2] - 1 - tiles[:, :, ::-1].argmax(axis=2)
    base, end = bound(first, seen), bound(last, seen)
    places = dict(zip(("h", "qb"), np.ogrid[: seen.shape[0], : seen.shape[1]], strict=True))
    at_base, at_end = (np.asarray(ex.evaluate(e, places)) for e in (base, end))
    options = [_from_to(base, end, step)]
    if (~seen & (at_end >= at_base)).any():  # rows without tiles: one end passes the other
        always = np.ones_like(seen)
        options = [
            _from_to(bound(np.where(seen, first, at_end + step), always), end, step),
            _from_to(base, bound(np.where(seen, last, at_base - step), always), step),
        ]
        if all(_branches(option) for option in options):
            number = bound(tiles.sum(axis=2), always)
            options.append(Progression(base=base, count=number, period=step))
    return min(options, key=_operations)


def _branches(of: Progression) -> bool:
    return any(isinstance(node, ex.Select) for e in (of.base, of.count) for node in ex.walk(e))


def _from_to(first: ex.IntExpr, last: ex.IntExpr, step: int) -> Progression:
    count = ex.add(ex.floordiv(ex.sub(last, first), step), ex.ONE)
    return Progression(base=first, count=count, period=step)


def _operations(of: Progression) -> int:
    """Return the size of bounds; a factor and a conditional are as hard to read as several."""
    weights = {ex.Scale: SCALE_COST, ex.Select: SELECT_COST}
    return sum(weights.get(type(node), 1) for e in (of.base, of.count) for node in ex.walk(e))


def bound(values: NDArray[np.int64], known: NDArray[np.bool_]) -> ex.IntExpr:
    """Return an expression of ``qb`` and ``h`` with these values where they are known.

    Shape: ``[heads, rows]``. Raises: OverBudget past ``MAX_BRANCHES``.
    """
    import numpy as np

    heads: list[tuple[int, ex.IntExpr]] = []
    last = -1
    for h in np.flatnonzero(known.any(axis=1)).tolist():
        if last >= 0 and np.array_equal(known[h], known[last]):
            if np.array_equal(values[h][known[h]], values[last][known[h]]):
                continue
        heads.append((h, _along_rows(np.flatnonzero(known[h]), values[h][known[h]])))
        last = h
    found = _chain("h", heads)
    if sum(isinstance(node, ex.Select) for node in ex.walk(found)) > MAX_BRANCHES:
        raise sets.OverBudget(f"over {MAX_BRANCHES} conditionals in a bound")
    return found


def _along_rows(rows: NDArray[np.int64], values: NDArray[np.int64]) -> ex.IntExpr:
    """Return an expression of ``qb``: a line between two ends, or line after line."""
    found = _clamped(rows, values)
    if found is not None:
        return found
    lines: list[tuple[int, ex.IntExpr]] = []
    start = 0
    while start < len(rows):
        line, stop = None, start
        while stop < len(rows):
            longer = _line(rows[start : stop + 1], values[start : stop + 1])
            if longer is None:
                break
            line, stop = longer, stop + 1
        assert line is not None
        lines.append((int(rows[start]), line))
        start = stop
    return _chain("qb", lines)


def _line(rows: NDArray[np.int64], values: NDArray[np.int64]) -> ex.IntExpr | None:
    """Return ``a * qb + b`` with these values, None where there is none."""
    over = int(rows[-1] - rows[0])
    slope = int(values[-1] - values[0]) // over if over else 0
    offset = int(values[0]) - slope * int(rows[0])
    if (values != slope * rows + offset).any():
        return None
    return ex.add(ex.scale(slope, ex.Var("qb")), ex.Const(offset))


def _clamped(rows: NDArray[np.int64], values: NDArray[np.int64]) -> ex.IntExpr | None:
    """Return ``clamp((a * qb + b) div c, least, most)`` with these values, None: there is none.

    The least and the greatest value bound the line from one side only.
    """
    least, most = int(values.min()), int(values.max())
    if least == most:
        return ex.Const(least)
    inner = (values > least) & (values < most)
    steep = _slope(rows[inner], values[inner]) or _slope(rows, values)
    for divisor in range(1, MAX_DIVISOR + 1):
        for slope in sorted({math.floor(steep * divisor), math.ceil(steep * divisor)}):
            if not slope:
                continue
            lows = (divisor * values - slope * rows)[values > least]
            highs = (divisor * values + divisor - 1 - slope * rows)[values < most]
            if lows.max() <= highs.min():
                line = ex.add(ex.scale(slope, ex.Var("qb")), ex.Const(_plain(lows, highs)))
                line = ex.floordiv(line, divisor)
                return _between(line, rows, values)
    return None


def _plain(lows: NDArray[np.int64], highs: NDArray[np.int64]) -> int:
    """Return the number nearest to zero that satisfies all bounds."""
    return int(min(max(0, lows.max()), highs.min()))


def _slope(rows: NDArray[np.int64], values: NDArray[np.int64]) -> Fraction:
    if len(rows) < 2:
        return Fraction(0)
    return Fraction(int(values[-1] - values[0]), int(rows[-1] - rows[0]))


def _between(
    line: ex.IntExpr, rows: NDArray[np.int64], values: NDArray[np.int64]
) -> ex.IntExpr:
    """Clamp a line to the values, on the sides where it leaves them."""
    import numpy as np

    along = np.asarray(ex.evaluate(line, {"qb": rows}))
    if (along > values).any():
        line = ex.minimum(line, ex.Const(int(values.max())))
    if (along < values).any():
        line = ex.maximum(line, ex.Const(int(values.min())))
    return line


def _chain(variable: str, parts: list[tuple[int, ex.IntExpr]]) -> ex.IntExpr:
    """Return the part that starts last at or before the variable."""
    if not parts:
        return ex.ZERO
    found = parts[0][1]
    for start, part in parts[1:]:
        found = ex.select(ex.compare(">=", ex.Var(variable), ex.Const(start)), part, found)
    return found
