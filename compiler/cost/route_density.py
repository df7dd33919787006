"""A route and its lengths -> how much it selects, expected: closed forms, or what a sample shows.

Budgets of ``top`` and ``ratio`` say how many units a row selects, exactly; which ones decides only
what the base cuts of them: a unit that starts before a query and ends behind it is half seen.
Masses, thresholds and differences depend on the data: a sample has to show them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir.route import Grain, Ratio, Route, TopK

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sample:
    """A selection that was made: of some heads, at some lengths.

    Shape: ``relation`` bool ``[..., query units, key units]`` (distances, for slashes), as the
    oracle returns it. ``Sample.of_lists`` takes what ``select`` returns.
    """

    relation: NDArray[np.bool_]

    @classmethod
    def of_lists(cls, index: Any, count: Any, key_units: int) -> Sample:
        """Return the sample of a selection's index ``[..., C]`` and count."""
        import numpy as np

        index, count = np.asarray(index), np.asarray(count)
        found = np.zeros((*count.shape, key_units + 1), dtype=bool)
        valid = np.where(np.arange(index.shape[-1]) < count[..., None], index, key_units)
        np.put_along_axis(found, valid, True, axis=-1)
        return cls(found[..., :key_units])

    @property
    def share(self) -> float:
        """The part of the key units that a row selects, in the mean."""
        return float(self.relation.mean()) if self.relation.size else 0.0

    def union(self, rows: int) -> float:
        """Return how many key units the rows of a tile select together, in the mean."""
        flat = self.relation.reshape(-1, *self.relation.shape[-2:])
        number = flat.shape[1]
        some = [flat[:, r : r + rows].any(1).sum(-1).mean() for r in range(0, number, rows)]
        return sum(map(float, some)) / len(some) if some else 0.0


@dataclass(frozen=True, eq=False)
class Expected:
    """What a route selects.

    Shape: ``selected`` float ``[query units]``, key units (or distances) of each row; ``pairs``
    float ``[query units]``, the pairs of tokens of it that the base keeps, of one head.
    ``key_units`` are all there are, of ``unit_tokens`` tokens; ``scored`` is how many pairs of
    units at the grain of the score are visible, ``candidates`` how many are left for the selection;
    ``measured``: a sample said it.
    """

    selected: NDArray[np.float64]
    pairs: NDArray[np.float64]
    key_units: int
    unit_tokens: float
    row_tokens: float
    scored: float
    candidates: float
    measured: Sample | None = None

    @property
    def units(self) -> float:
        """Key units of a row, in the mean."""
        return float(self.selected.mean()) if self.selected.size else 0.0

    def union(self, rows: int) -> float:
        """Return the key units that so many rows in a row select together.

        Independent choices select ``N * (1 - (1 - k/N)**rows)``; a sample shows what they do.
        """
        if self.measured is not None:
            scale = self.key_units / max(self.measured.relation.shape[-1], 1)
            return float(self.measured.union(rows) * scale)
        return union(self.units, self.key_units, rows)


def union(chosen: float, of: float, rows: float) -> float:
    """Return how many of ``of`` units are chosen by some of ``rows`` that choose independently."""
    if of <= 0 or chosen <= 0:
        return 0.0
    return of * (1 - math.pow(1 - min(chosen / of, 1.0), rows))


def unit_sides(
    grain: Grain, length: int, cells: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last token of each unit, ``cells`` of equal size where it is a cell."""
    import numpy as np

    match grain.kind:
        case "token":
            first = np.arange(length)
            return first, first
        case "last":
            return np.array([max(length - grain.sizes[0], 0)]), np.array([length - 1])
        case "head":
            return np.array([0]), np.array([length - 1])
        case "cluster":
            return np.zeros(grain.sizes[0], np.int64), np.full(grain.sizes[0], length - 1)
    size = grain.sizes[0] if grain.kind == "block" else math.ceil(length / (cells or 1))
    first = np.arange(0, length, size)
    return first, np.minimum(first + size, length) - 1


def expected(
    route: Route, nq: int, nk: int, *, causal: bool, shift: int = 0,
    cells: tuple[int | None, int | None] = (None, None), sample: Sample | None = None,
) -> Expected:  # fmt: skip
    """Return what a route selects, of one head.

    Args: ``causal``: the base keeps keys up to the query alone; ``shift``: where query 0 stands;
    ``cells``: how many cells both sides have, where their grain is one.
    Raises: ValueError for a budget that only data can say, without a sample.
    """
    import numpy as np

    if route.emit == "members":
        return _members(route, nq, nk, causal)
    first, last = unit_sides(route.query, nq, cells[0])
    first, last = first + shift, last + shift
    start, end = unit_sides(route.key, nk, cells[1])
    number = nk if route.emit == "slashes" else len(start)
    size = 1.0 if route.emit == "slashes" else nk / max(number, 1)
    rows = _Rows(route, first, last, start, end, number)
    visible, reached = rows.visible, rows.reached
    counted, kept = rows.together(0, counted=True), rows.together(0, counted=None)
    compete = rows.together(visible, counted=None) - (kept - counted)
    match route.select:
        case TopK(count=count):
            chosen = np.minimum(np.maximum(count, counted), compete)
        case Ratio(share=share, least=least):
            wanted = np.maximum(np.floor(float(share) * compete), least)
            chosen = np.minimum(np.maximum(wanted, counted), compete)
        case _ if sample is None:
            raise ValueError(
                f"what `{route.name}` selects depends on the data: give a sample of it"
            )
        case _:
            chosen = np.zeros(len(first))
    if sample is not None:
        chosen = _measured(sample, len(first), number)
    else:
        chosen = (chosen + kept - counted).astype(float)
        if route.widen > 1:
            chosen = _widened(chosen, reached, route.widen)
    pairs = _pairs(route, chosen, rows, nq, nk, causal, shift)
    candidates = float(np.asarray(visible, dtype=float).sum())
    return Expected(
        chosen, pairs, number, size, nq / max(len(first), 1),
        candidates * _finer(route, nk, number), candidates, sample,
    )  # fmt: skip


class _Rows:
    """Which key units each row sees: all sets of them are a prefix, or end with the own unit.

    Shape: ``first``, ``last`` (where the row stands), ``visible``, ``reached`` (how many from the
    start), ``low``, ``high`` (own units, ``low <= unit < high``): ``[query units]``.
    """

    def __init__(
        self, route: Route, first: Any, last: Any, start: Any, end: Any, number: int
    ) -> None:
        import numpy as np

        self.route, self.first, self.last, self.start = route, first, last, start
        every = np.full(len(first), number)
        self.low = np.minimum(np.searchsorted(end, first, side="left"), number)
        self.high = np.minimum(np.searchsorted(start, last, side="right"), number)
        self.reached = every
        if route.visible != "all" and route.emit != "slashes":
            self.reached = self.high
        self.visible = self.reached
        if route.key_rep.window is not None and route.visible in ("past", "completed"):
            self.visible = self._windows(route.key_rep.window, number)
        elif route.visible == "past":
            self.visible = np.searchsorted(end, first, side="left")
        elif route.visible == "completed" and route.emit != "slashes":
            self.visible = np.searchsorted(end, last, side="right")

    def _windows(self, window: tuple[int, int], number: int) -> Any:
        """Return how many blocks a window touches that has ended: block 0 waits for a whole one."""
        import numpy as np

        tokens, stride = window
        ready = self.start + stride - 1
        ready[0] = tokens - 1
        at = self.last if self.route.visible == "completed" else self.first - 1
        return np.searchsorted(ready, at, side="right")

    def together(self, prefix: Any, counted: bool | None) -> Any:
        """Return the size of a prefix and what is kept, counted or not (None: both)."""
        import numpy as np

        prefix = np.broadcast_to(prefix, self.high.shape)
        begin = self.high
        for clause in self.route.keep:
            if counted is not None and clause.counted != counted:
                continue
            if clause.what in ("first", "nearest"):
                prefix = np.maximum(prefix, np.minimum(clause.count, self.reached))
            elif clause.what == "own":
                begin = np.minimum(begin, self.low)
            else:
                begin = np.minimum(begin, np.maximum(self.high - clause.count, 0))
        return prefix + np.maximum(self.high - np.maximum(begin, prefix), 0)


def _widened(chosen: Any, reached: Any, count: int) -> Any:
    """Return the units of each row of ``count`` rows: their union, if they choose independently."""
    import numpy as np

    found = np.empty(len(chosen))
    for r in range(0, len(chosen), count):
        some = slice(r, r + count)
        of = float(np.max(reached[some]))
        none = np.prod(1 - np.minimum(chosen[some] / max(of, 1.0), 1.0))
        found[some] = of * (1 - none)
    return found


def _measured(sample: Sample, rows: int, number: int) -> Any:
    """Return the units of each row as a sample shows them, stretched over these lengths."""
    import numpy as np

    flat = sample.relation.reshape(-1, *sample.relation.shape[-2:])
    share = flat.mean((0, 2))
    at = np.minimum(np.arange(rows) * len(share) // max(rows, 1), len(share) - 1)
    return share[at] * number


def _finer(route: Route, nk: int, number: int) -> float:
    """Return how many scores are computed for each pair of units of the selection."""
    keys = 1.0
    if route.key_rep.window is not None:
        keys = nk / route.key_rep.window[1] / max(number, 1)
    elif route.score.kind != "external" and route.key.kind in ("block", "cell"):
        tokens = nk / max(number, 1)
        if route.key_rep.kind in ("id", "unit"):
            keys = tokens
        elif route.key_rep.kind == "fold":
            keys = tokens / route.key_rep.size
    queries = 1.0
    if route.query.kind == "block" and route.score.kind != "external":
        if route.query_rep.kind in ("id", "unit"):
            queries = route.query.sizes[0]
        elif route.query_rep.kind == "fold":
            queries = route.query.sizes[0] / route.query_rep.size
    if route.query.kind == "last":
        queries = route.query.sizes[0]
    return keys * queries


def _pairs(
    route: Route, chosen: Any, rows: _Rows, nq: int, nk: int, causal: bool, shift: int
) -> Any:
    """Return the pairs of tokens of each row that the base keeps, expected."""
    import numpy as np

    tokens = rows.last - rows.first + 1
    if route.query.kind in ("last", "head"):
        return _of_every_query(route, chosen, nq, nk, causal, shift)
    if not causal:
        return chosen * nk / max(len(rows.start), 1) * tokens
    # Own units are half seen. They are selected if kept, never if only the past is scored, and
    # otherwise as often as the others.
    forced = any(clause.what in ("own", "recent") for clause in route.keep)
    scored = route.visible in ("reached", "all") or route.key.kind == "token"
    share = np.minimum(chosen / np.maximum(rows.reached, 1), 1.0)
    share = np.ones_like(share) if forced else share if scored else 0 * share
    start = rows.start[np.minimum(rows.low, len(rows.start) - 1)]
    seen = tokens * (rows.first - start + 1) + tokens * (tokens - 1) / 2
    size = route.key.sizes[0] if route.key.kind == "block" else nk / max(len(rows.start), 1)
    others = np.maximum(chosen - share * (rows.high - rows.low), 0)
    return others * size * tokens + share * seen


def _of_every_query(route: Route, chosen: Any, nq: int, nk: int, causal: bool, shift: int) -> Any:
    """Return the pairs of a selection that serves all queries: columns, or distances."""
    import numpy as np

    if not causal:
        return chosen * nk / max(len(chosen), 1) * nq
    first = sum(c.count for c in route.keep if c.what in ("first", "nearest"))
    places = np.arange(nq) + shift + 1
    early = np.minimum(places, first).sum()
    size = 1 if route.key.kind == "token" else route.key.sizes[0]
    rest = np.maximum(chosen - first, 0) * size
    return early * size + rest * places.sum() / max(nk, 1)


def _members(route: Route, nq: int, nk: int, causal: bool) -> Expected:
    """Return what centroids or heads choose: so many tokens on each side, and all their pairs."""
    import numpy as np

    if not isinstance(route.select, TopK):
        raise ValueError(f"members of `{route.name}` are chosen by top")
    groups = route.query.sizes[0] if route.query.kind == "cluster" else 1
    queries, keys = min(route.select.count, nq), min(route.select.count, nk)
    each = queries * keys * (0.5 if causal else 1.0)
    return Expected(
        np.full(groups, float(keys)), np.full(groups, each), nk, 1.0, float(queries),
        float(groups * (nq + nk)), float(groups * (nq + nk)),
    )  # fmt: skip
