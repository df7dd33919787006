"""Pattern IR -> bands: the distances ``q - k`` of a pattern that depends on nothing else.

    0 <= q - k < 64 or q >= k and (q - k) mod 64 == 0   -->   0 .. 63 and 64, 128, 192, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex

MAX_BANDS = 64
"""A pattern of more bands than this is left as it is."""

MAX_DISJUNCTS = 16
"""A union of more parts than this is left as it is."""

SHARE = 4
"""The question gets one part in so many of isl's budget: mostly a millisecond is enough."""


@dataclass(frozen=True, slots=True)
class Band:
    """Distances ``first, first + step, ..., last`` in tokens, ``step >= 1``.

    None: without end on that side; then the distances are ``offset`` modulo ``step``. One distance
    alone has ``first == last``.
    """

    first: int | None
    last: int | None
    step: int
    offset: int

    @property
    def modulus(self) -> int:
        """The greatest number that divides every distance (0: any number does)."""
        if self.first is not None and self.first == self.last:
            return abs(self.first)
        return gcd(self.step, self.offset)

    @property
    def nearest(self) -> int:
        """The least distance, in either direction."""
        if self.first is not None and self.first > 0:
            return self.first
        return -self.last if self.last is not None and self.last < 0 else 0

    def test(self, distance: ex.IntExpr, modulus: int = 1) -> ex.BoolExpr:
        """Return whether ``distance``, in steps of ``modulus``, lies in the band."""
        step = self.step // modulus
        tests: list[ex.BoolExpr] = []
        if self.first is not None and self.first == self.last:
            return ex.compare("==", distance, ex.Const(self.first // modulus))
        if self.first is not None:
            tests.append(ex.compare(">=", distance, ex.Const(self.first // modulus)))
        if self.last is not None:
            tests.append(ex.compare("<=", distance, ex.Const(self.last // modulus)))
        if step > 1:
            offset = self.offset // modulus % step
            tests.append(ex.compare("==", ex.mod(distance, step), ex.Const(offset)))
        return ex.and_(*tests)


def predicate(bands: tuple[Band, ...], modulus: int = 1) -> ex.BoolExpr:
    """Return the pairs of some bands, for tokens ``modulus`` apart: the classes of one residue.

    Every distance must be a multiple of ``modulus``; ``q`` and ``k`` count the tokens of a class.
    """
    distance = ex.sub(ex.Var("q"), ex.Var("k"))
    return ex.or_(*(band.test(distance, modulus) for band in bands))


@lru_cache(maxsize=256)
def split_off(body: ex.BoolExpr) -> tuple[tuple[Band, ...], ex.BoolExpr]:
    """Cut a predicate into disjoint bands and what depends on more than the distance.

    Returns: the bands (empty: none found), and the predicate of the rest, without their pairs.
    """
    disjuncts = _disjuncts(body)
    if len(disjuncts) > MAX_DISJUNCTS:
        return (), body
    try:
        with sets.budget(share=SHARE):
            near = [(part, distances(part)) for part in disjuncts]
            found = [d for _, d in near if d is not None]
            if not found:
                return (), body
            union = found[0]
            for other in found[1:]:
                union = union.union(other)
            bands = _bands(union.coalesce())
    except sets.OverBudget:
        return (), body
    if bands is None:
        return (), body
    rest = ex.or_(*(part for part, d in near if d is None))
    return bands, ex.and_(rest, ex.not_(predicate(bands)))


def _disjuncts(body: ex.BoolExpr) -> tuple[ex.BoolExpr, ...]:
    """Write a predicate as alternatives, a common condition in each of them."""
    match body:
        case ex.Or(parts):
            return tuple(d for part in parts for d in _disjuncts(part))
        case ex.And(parts):
            unions = [part for part in parts if isinstance(part, ex.Or)]
            if len(unions) == 1:
                rest = ex.and_(*(part for part in parts if part is not unions[0]))
                return tuple(ex.and_(rest, d) for d in _disjuncts(unions[0]))
    return (body,)


def distances(part: ex.BoolExpr) -> isl.Set | None:
    """Return the distances ``{ [q - k] }`` of a predicate that depends on them alone, else None.

    Raises: OverBudget.
    """
    if not ex.is_static(part) or not ex.free_vars(part) <= {"q", "k"}:
        return None
    pairs = sets.pair_map(part, [], "1 = 1")
    found = pairs.deltas().neg().coalesce()
    tokens = sets.read_map("{ [q] -> [k] }")
    apart = sets.read_map("{ [[q] -> [k]] -> [q - k] }")
    closure = tokens.wrap().intersect(found.apply(apart.reverse())).unwrap()
    return found if sets.within(closure, pairs) else None


def _bands(union: isl.Set) -> tuple[Band, ...] | None:
    """Write a set of distances as disjoint bands, dense ones first to claim what they hold."""
    todo = [band for basic in union.get_basic_sets() if (band := _band(basic.to_set()))]
    if len(todo) != union.n_basic_set() or len(todo) > MAX_BANDS:
        return None
    done: list[Band] = []
    covered = sets.read_set("{ [d] : 1 = 0 }")
    for band in sorted(todo, key=lambda b: (b.step, b.nearest)):
        own = _set_of(band)
        if not own.intersect(covered).is_empty():
            own = sets.minus(own, covered).coalesce()
        for basic in own.get_basic_sets():
            piece = _band(basic.to_set())
            if piece is None or len(done) == MAX_BANDS:
                return None
            done.append(piece)
        covered = covered.union(_set_of(band))
    return tuple(sorted(done, key=lambda b: (b.nearest, b.step, b.offset)))


def _band(distances: isl.Set) -> Band | None:
    """Return the band that a set of distances is, None where it is no single one."""
    if distances.is_empty():
        return None
    first, last = distances.dim_min_val(0), distances.dim_max_val(0)
    step = sets.whole(distances.get_stride(0))
    low = sets.whole(first) if first.is_int() else None
    high = sets.whole(last) if last.is_int() else None
    if low is not None and low == high:
        return Band(low, low, 1, 0)
    inside = low if low is not None else high
    if inside is None:
        inside = sets.whole(distances.sample_point().get_coordinate_val(isl.dim_type.set, 0))
    band = Band(low, high, max(step, 1), inside % max(step, 1))
    return band if sets.equal(_set_of(band), distances) else None


def _set_of(band: Band) -> isl.Set:
    return sets.read_set(f"{{ [d] : {sets.text(band.test(ex.Var('d')))} }}")
