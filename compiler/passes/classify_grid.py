"""Pattern IR -> block-mask IR of a grid: boxes of tokens, full, partial and empty, exactly.

The axes of a conjunction that no condition couples are projected one by one and multiplied. With
R a union of such products and D all existing pairs, ``D - R`` is one too, and the tiles follow as
on a line: ``nonempty = T(R)``, ``holes = T(D - R)``, ``full = nonempty - holes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Protocol, TypeAlias, TypeVar

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression
from attnc.compiler.ir.gridmask import (
    BoxTiling,
    GridMask,
    GridPiece,
    Part,
    pairs_of,
    parts,
    rank_of,
)
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes.axis_sets import Axis, AxisSets
from attnc.compiler.passes.axis_tables import AxisTables
from attnc.compiler.passes.coordinates import (
    Conjunction,
    conjunctions,
    in_coordinates,
    loosened,
)
from attnc.compiler.passes.eliminate import eliminate

MAX_BOXES = 256
"""More products than these are not cut apart any further."""

SHORT_PAIRS = 1 << 19
"""Pairs of positions of an axis, over all heads, up to which tables are quicker than sets."""

MAX_PIECES = 96
"""More pieces than these are worth less than their hull."""

Relation: TypeAlias = Any
"""Pairs of positions, or of tiles, of one axis; what it is only its engine knows."""

Box: TypeAlias = tuple[Relation, ...]
"""A product: one relation for each axis."""

T = TypeVar("T")


class Engine(Protocol):
    """What can be done with the relations of one axis. All may raise OverBudget."""

    def pairs(self, condition: ex.BoolExpr) -> Relation: ...
    def minus(self, left: Relation, right: Relation) -> Relation: ...
    def both(self, left: Relation, right: Relation) -> Relation: ...
    def is_empty(self, found: Relation) -> bool: ...
    def tiles(self, pairs: Relation) -> Relation: ...
    def split(self, tiles: Relation) -> list[tuple[Progression, Relation]]: ...
    def hull(self, tiles: Relation) -> Progression: ...
    def residual(self, condition: ex.BoolExpr, tiles: Relation) -> ex.BoolExpr: ...


class _Refused(Exception):
    """The engine of one axis gave up."""

    def __init__(self, axis: int, reason: sets.OverBudget) -> None:
        super().__init__(str(reason))
        self.axis = axis


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A piece: a progression for each axis, and the tiles that it stands for."""

    tiles: tuple[Progression, ...]
    box: Box
    full: bool


def classify_grid(pattern: Pattern, tiling: BoxTiling) -> GridMask:
    """Sort the boxes of a pattern on grids into full, partial and empty, exactly.

    Shape: pieces are symbolic in the coordinates of the query tile and ``h``.
    Units: sides of ``tiling`` in tokens, pieces in tiles.
    Where neither isl nor tables serve, or a condition couples axes, the result is *widened* (still
    exact as a mask) and ``GridMask.widened`` says why.
    Raises: ValueError where the pattern has no grid, an open extent, or reads data.
    """
    if pattern.query_space is None or pattern.key_space is None:
        raise ValueError(f"`{pattern.name}` has no grid: its tiles have a side for queries and one"
                         " for keys")
    rank = rank_of(pattern)
    for box in (tiling.query, tiling.key):
        if len(box) != rank:
            raise ValueError(f"`{pattern.name}` has {rank} axes, and the box of tile {tiling}"
                             f" {len(box)}")
    if not eliminate(pattern).is_static:
        raise ValueError(f"the tiles of `{pattern.name}` wait for data, and boxes cannot")
    for space in (pattern.query_space, pattern.key_space):
        try:
            parts(space, tiling.query, rank)
        except ValueError as wrong:
            raise ValueError(f"`{pattern.name}` has no boxes yet: {wrong}") from None
    return _classify(eliminate(pattern), tiling)


@lru_cache(maxsize=64)
def _classify(pattern: Pattern, tiling: BoxTiling) -> GridMask:
    mask = GridMask(pattern=pattern, tiling=tiling, pieces=())
    nq, nk = pattern.lengths
    assert nq is not None
    assert nk is not None
    lengths = {"nq": ex.Const(nq), "nk": ex.Const(nk)}
    predicate = ex.substitute(pattern.predicate, lengths)
    pieces: list[GridPiece] = []
    notes: list[str] = []
    for i, j, queries, keys in pairs_of(mask):
        condition = in_coordinates(predicate, queries, keys)
        found, more = _pair(condition, queries, keys, pattern.heads)
        pieces += [
            GridPiece(queries=i, keys=j, tiles=tiles, residual=check) for tiles, check in found
        ]
        notes += more
    order = list(dict.fromkeys(piece.residual for piece in pieces))
    pieces.sort(key=lambda piece: (not piece.full, order.index(piece.residual)))
    return GridMask(
        pattern=pattern, tiling=tiling, pieces=tuple(pieces),
        widened=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


_Found: TypeAlias = list[tuple[tuple[Progression, ...], ex.BoolExpr]]


def _pair(
    condition: ex.BoolExpr, queries: Part, keys: Part, heads: int | None
) -> tuple[_Found, list[str]]:
    """Return the pieces of a pair of segments with their residuals, and what was widened."""
    if condition == ex.FALSE:
        return [], []
    notes: list[str] = []
    attempts: tuple[_Attempt, ...] = _ATTEMPTS
    try:
        alternatives = conjunctions(condition, queries, keys)
    except sets.OverBudget as error:
        notes.append(f"{attempts[0][1]}: {error}")
        attempts = attempts[1:]
        try:
            alternatives = conjunctions(loosened(condition, queries, keys), queries, keys)
        except sets.OverBudget:
            alternatives = [{}]
    for attempt, failure in attempts:
        work = _Product(queries, keys, heads, alternatives)
        try:
            cuts = work.retried(attempt)
        except (sets.OverBudget, _Refused) as error:
            notes.append(f"{failure}: {error}")
            continue
        whole = attempts is not _ATTEMPTS
        return [
            (_named(cut, queries), condition if whole else work.check(cut, condition))
            for cut in cuts
        ], notes
    everything = tuple(
        Progression(base=ex.ZERO, count=ex.Const(count)) for count in keys.grid
    )
    return [(everything, condition)], notes


def _named(cut: _Cut, queries: Part) -> tuple[Progression, ...]:
    """Write the bounds of a piece in the coordinates of its query tile."""
    found = []
    for axis, (tiles, rows) in enumerate(zip(cut.tiles, queries.grid, strict=True)):
        name = f"qb_{axis}"
        ranges = {name: (0, rows - 1), "h": (0, None)}
        base, count = (
            ex.tidy(ex.substitute(bound, {"qb": ex.Var(name)}), ranges)
            for bound in (tiles.base, tiles.count)
        )
        found.append(Progression(base=base, count=count, period=tiles.period, run=tiles.run))
    return tuple(found)


def engine_of(axis: Axis) -> Engine:
    """Return what an axis is classified with first."""
    pairs = (axis.heads or 1) * axis.queries * axis.keys
    return AxisTables(axis) if pairs <= SHORT_PAIRS else AxisSets(axis)


class _Product:
    """The alternatives of one pair of segments: unions of products, and their tiles."""

    def __init__(
        self, queries: Part, keys: Part, heads: int | None, alternatives: list[Conjunction]
    ) -> None:
        sides = zip(queries.extents, keys.extents, queries.box, keys.box, strict=True)
        self._axes = [
            Axis(queries=nq, keys=nk, side_q=q, side_k=k, heads=heads) for nq, nk, q, k in sides
        ]
        self._engines: list[Engine] = [engine_of(axis) for axis in self._axes]
        self._tried: set[int] = set()
        self._conditions = [
            tuple(_local(one.get(axis, ex.TRUE), axis) for axis in range(len(self._axes)))
            for one in alternatives
        ]

    def retried(self, attempt: Callable[[_Product], list[_Cut]]) -> list[_Cut]:
        """Try, with the other engine on each axis where the first one gives up."""
        while True:
            try:
                return attempt(self)
            except _Refused as refused:
                axis = refused.axis
                if axis in self._tried:
                    raise
                self._tried.add(axis)
                other = AxisSets if isinstance(self._engines[axis], AxisTables) else AxisTables
                self._engines[axis] = other(self._axes[axis])

    # --------------------------------------------------------------------- attempts

    def exact(self) -> list[_Cut]:
        """Full and partial tiles."""
        kept = self._kept()
        everything = self._pairs((ex.TRUE,) * len(self._axes))
        holes = self._tiles(self._without([everything], kept))
        seen = self._disjoint(self._tiles(kept))
        full = self._without(seen, holes)
        partial = self._without(seen, full)
        return self._cuts(full, full=True) + self._cuts(partial, full=False)

    def visited(self) -> list[_Cut]:
        """All visited tiles as partial ones."""
        return self._cuts(self._disjoint(self._tiles(self._kept())), full=False)

    def hull(self) -> list[_Cut]:
        """One box of tiles for each row, from the first to the last on each axis."""
        found: list[Progression] = []
        box: list[Relation] = []
        for axis in range(len(self._axes)):
            either = ex.or_(*(one[axis] for one in self._conditions))
            seen = self._ask(axis, lambda e, c: e.tiles(e.pairs(c)), either)
            found.append(self._ask(axis, lambda e, t: e.hull(t), seen))
            box.append(self._ask(axis, lambda e: e.tiles(e.pairs(ex.TRUE))))
        return [_Cut(tiles=tuple(found), box=tuple(box), full=False)]

    def check(self, cut: _Cut, whole: ex.BoolExpr) -> ex.BoolExpr:
        """Return what is still to be checked in the tiles of a piece."""
        if cut.full:
            return ex.TRUE
        found: list[ex.BoolExpr] = []
        try:
            for one in self._conditions:
                left = []
                for axis, condition in enumerate(one):
                    check = ex.TRUE if condition == ex.TRUE else self._ask(
                        axis, lambda e, c, t: e.residual(c, t), condition, cut.box[axis]
                    )
                    left.append(_global(check, axis))
                    if check == ex.FALSE:
                        break
                found.append(ex.and_(*left))
        except _Refused:
            return whole
        check = ex.or_(*found)
        return check if ex.op_count(check) <= ex.op_count(whole) else whole

    # --------------------------------------------------------------------- products

    def _ask(self, axis: int, question: Callable[..., T], *given: Any) -> T:
        """Ask the engine of an axis under a budget of its own."""
        try:
            with sets.budget():
                return question(self._engines[axis], *given)
        except sets.OverBudget as error:
            raise _Refused(axis, error) from None

    def _pairs(self, conditions: tuple[ex.BoolExpr, ...]) -> Box:
        return tuple(
            self._ask(axis, lambda e, c: e.pairs(c), one) for axis, one in enumerate(conditions)
        )

    def _both(self, box: Box, other: Box) -> Box:
        return tuple(
            self._ask(axis, lambda e, a, b: e.both(a, b), *pair)
            for axis, pair in enumerate(zip(box, other, strict=True))
        )

    def _kept(self) -> list[Box]:
        """Return the products that hold some pair."""
        found = map(self._pairs, self._conditions)
        return [
            box for box in found if not any(self._is_empty(a, part) for a, part in enumerate(box))
        ]

    def _tiles(self, boxes: list[Box]) -> list[Box]:
        return [
            tuple(self._ask(axis, lambda e, p: e.tiles(p), part) for axis, part in enumerate(box))
            for box in boxes
        ]

    def _is_empty(self, axis: int, found: Relation) -> bool:
        return bool(self._ask(axis, lambda e: e.is_empty(found)))

    def _disjoint(self, boxes: list[Box]) -> list[Box]:
        """Cut products so that none lies over another."""
        found: list[Box] = []
        for box in boxes:
            found += self._without([box], found)
        return found

    def _without(self, boxes: list[Box], others: list[Box]) -> list[Box]:
        """Return what is in the disjoint products and in none of the others, as disjoint ones."""
        for other in others:
            boxes = [rest for box in boxes for rest in self._rest(box, other)]
            if len(boxes) > MAX_BOXES:
                raise sets.OverBudget(f"over {MAX_BOXES} boxes")
        return boxes

    def _rest(self, box: Box, other: Box) -> Iterator[Box]:
        """Yield ``box - other``: beside it on the first axis; level with it, beside it on the next.

        A x B - C x D  -->  (A - C) x B, (A & C) x (B - D)
        """
        common = self._both(box, other)
        if any(self._is_empty(axis, part) for axis, part in enumerate(common)):
            yield box
            return
        for axis, own in enumerate(box):
            beside = self._ask(axis, lambda e, a, b: e.minus(a, b), own, other[axis])
            if not self._is_empty(axis, beside):
                yield (*common[:axis], beside, *box[axis + 1 :])

    def _cuts(self, boxes: list[Box], *, full: bool) -> list[_Cut]:
        """Cut each product into products of progressions."""
        found: list[_Cut] = []
        for box in boxes:
            axes = [
                self._ask(axis, lambda e, p: e.split(p), part)
                for axis, part in enumerate(box)
            ]
            for chosen in product(*axes):
                found.append(_Cut(
                    tiles=tuple(p for p, _ in chosen), box=tuple(b for _, b in chosen), full=full,
                ))  # fmt: skip
                if len(found) > MAX_PIECES:
                    raise sets.OverBudget(f"over {MAX_PIECES} pieces")
        return found


_Attempt: TypeAlias = tuple[Callable[[_Product], list[_Cut]], str]

_ATTEMPTS: tuple[_Attempt, ...] = (
    (_Product.exact, "full tiles are masked too"),
    (_Product.visited, "each row visits the hull of its tiles"),
    (_Product.hull, "each row visits all tiles"),
)
"""What is tried, and what follows where it fails."""


def _local(condition: ex.BoolExpr, axis: int) -> ex.BoolExpr:
    """Write a condition on one axis in ``q`` and ``k``."""
    names = {f"q_{axis}": ex.Var("q"), f"k_{axis}": ex.Var("k")}
    found: ex.BoolExpr = ex.substitute(condition, names)
    return found


def _global(condition: ex.BoolExpr, axis: int) -> ex.BoolExpr:
    """Write a condition in ``q`` and ``k`` on an axis in its own coordinates."""
    names = {"q": ex.Var(f"q_{axis}"), "k": ex.Var(f"k_{axis}")}
    found: ex.BoolExpr = ex.substitute(condition, names)
    return found
