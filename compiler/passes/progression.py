"""Relation query tile -> key tiles  ->  progressions of key tiles, proved equal by isl.

    { [qb] -> [kb] : 2 qb - 8 <= kb <= 2 qb - 7, kb >= 0 }  -->  max(0, 2*qb - 8) .. 2*qb - 7
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement, pairwise
from math import lcm

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression
from attnc.compiler.passes.families import SHIFT, families
from attnc.compiler.passes.row_ends import Trial, ceil_div, ends, ends_of_basic, intervals, names_of

MAX_MERGE = 8
"""Above so many basic pieces, neighbours are not tried for merging (quadratic in isl calls)."""


MAX_OPERATIONS = 56
"""Bounds with more operations than this are not worth a loop prologue: the hull serves."""

MAX_WHOLE = 3
"""Above so many basic pieces, one progression for all of them is not looked for."""

MAX_JOINT_OPERATIONS = 13
"""Two pieces with simple bounds are better than one whose bounds take more than this."""

TIDIED = 2
"""Bounds are not expected to lose more operations than by this factor when they are tidied."""

MAX_SLICES = 6
"""Widest band, in tiles, that is cut into diagonals."""

TRIAL_ROWS = ((0, 1), (0, 12), (2, 12), (5, 4), (7, 12), (11, 9), (40, 41), (40, 100))
"""Small ``(qb, NK)`` at which a guess must hold before isl is asked to prove it."""

SAMPLE_KEYS = "[NK] -> { : NK >= 40 }"
"""Where looking at sets tells more: in few key tiles their ends meet."""

MAX_SAMPLE = 1 << 14
"""Largest row, head or length at which a set is looked at because it has tiles there."""

MAX_TRIAL_TILES = 4096
"""A guess with more tiles than this in one trial row is dropped unlooked at."""

RANGES = {"qb": (0, None), "h": (0, None), "NQ": (1, None), "NK": (1, None)}


@dataclass(frozen=True, slots=True)
class Row:
    """Key tiles of one query tile: a set over ``[kb]`` whose parameters include ``qb``."""

    tiles: isl.Set
    context: isl.Set

    def same(self, other: isl.Set) -> bool:
        """Whether both hold the same key tiles wherever the context holds."""
        return sets.equal(
            self.tiles.intersect_params(self.context), other.intersect_params(self.context)
        )


def row_of(tiles: isl.Map, context: isl.Set) -> Row:
    """Turn ``{ [qb] -> [kb] }`` into key tiles with ``qb`` as the first parameter."""
    moved = tiles.move_dims(isl.dim_type.param, 0, isl.dim_type.in_, 0, 1)
    moved = moved.set_dim_name(isl.dim_type.param, 0, "qb")
    return Row(moved.range(), context)


def split(
    row: Row, hints: Sequence[Progression] = (), most: int | None = None
) -> list[tuple[Progression, isl.Set]]:
    """Cut a row into disjoint progressions, as few as isl proves possible.

    ``hints`` are tried first: one that lies wholly inside what is left is taken off it. ``most``:
    how many pieces, unlike each other, are worth proving.
    Returns: the progressions with the exact sets they stand for.
    Raises: OverBudget, also when some piece is no progression.
    """
    tiles = row.tiles.intersect_params(row.context).coalesce()
    found: list[tuple[Progression, isl.Set]] = []
    for hint in hints:
        if tiles.is_empty():
            break
        inside = as_set(hint, tiles).intersect_params(row.context)
        if not inside.is_empty() and sets.within(inside, tiles):
            found.append((hint, inside))
            tiles = sets.minus(tiles, inside).coalesce()
    return found + _split(Row(tiles, row.context), most)


def _split(row: Row, most: int | None) -> list[tuple[Progression, isl.Set]]:
    tiles = row.tiles
    if tiles.is_empty():
        return []
    basics = _disjoint(row, tiles)
    if len(basics) <= MAX_MERGE:
        points = (*_points(row.context), *_points_in(basics, row.context))
        rows = [[_seen(basic, values) for values in points] for basic in basics]
        if len(basics) <= MAX_WHOLE:
            whole = fit(row, trials=_trials(points, rows))
            if whole is not None:
                return [(whole, tiles)]
        basics = _merge(basics, row.context, points, rows)
    known = _by_families(basics, row.context)
    if most is not None and len(basics) - len(known) > most:
        raise sets.Spent(f"more than {most} pieces unlike each other")
    found: list[tuple[Progression, isl.Set]] = []
    for i, basic in enumerate(basics):
        progression = known[i] if i in known else fit(Row(basic, row.context))
        found += [(progression, basic)] if progression is not None else _slices(basic, row.context)
    return found


def _by_families(parts: list[isl.Set], context: isl.Set) -> dict[int, Progression]:
    """Return progressions for sets, by index, that are proved together with others like them."""
    found: dict[int, Progression] = {}
    for family in families(parts, context):
        general = fit(Row(family.tiles, family.context))
        if general is not None:
            for i, shift in family.shifts.items():
                at = {SHIFT: ex.Const(shift)}
                base, count = (ex.substitute(e, at) for e in (general.base, general.count))
                found[i] = replace(general, base=base, count=count)
    return found


def _slices(tiles: isl.Set, context: isl.Set) -> list[tuple[Progression, isl.Set]]:
    """Cut a narrow band along the diagonal into single diagonals, each a tile or none.

    What repeats inside such a band depends on the row alone once the diagonal is fixed.
    """
    for rate in (1, 2, 4):
        away = tiles.apply(sets.read_map(f"[qb] -> {{ [kb] -> [kb - {rate} * qb] }}"))
        offsets = away.project_out(isl.dim_type.param, 0, away.dim(isl.dim_type.param))
        low, high = offsets.dim_min_val(0), offsets.dim_max_val(0)
        if not (low.is_int() and high.is_int()):
            continue
        first, last = sets.whole(low), sets.whole(high)
        if last - first >= MAX_SLICES:
            continue
        found: list[tuple[Progression, isl.Set]] = []
        for offset in range(first, last + 1):
            diagonal = sets.read_set(f"[qb] -> {{ [{rate} * qb + {offset}] }}")
            one = tiles.intersect(diagonal).coalesce()
            if one.is_empty():
                continue
            progression = fit(Row(one, context))
            if progression is None:
                break
            found.append((progression, one))
        else:
            return found
    raise sets.OverBudget("key tiles that are no progression")


def _disjoint(row: Row, tiles: isl.Set) -> list[isl.Set]:
    """Cut a set into disjoint basic sets, intervals first.

    What repeats loses what an interval already covers: the other way round an interval would fall
    to pieces around every repetition.
    """
    basics = [b.to_set() for b in tiles.get_basic_sets()]
    if len(basics) <= MAX_MERGE:
        basics.sort(key=lambda basic: not _is_interval(Row(basic, row.context)))
    found: list[isl.Set] = []
    covered = isl.Set.empty(tiles.get_space())
    for basic in basics:
        if sets.apart(basic, covered):
            found.append(basic)
        else:
            rest = sets.minus(basic, covered).coalesce()
            found += [b.to_set() for b in rest.make_disjoint().get_basic_sets()]
        covered = covered.union(basic)
    return found


def _is_interval(row: Row) -> bool:
    """Whether a convex set has no gaps: its moduli, if any, only round its ends."""
    if all(not basic.dim(isl.dim_type.div) for basic in row.tiles.get_basic_sets()):
        return True
    if not row.tiles.get_stride(0).is_one():
        return False
    between = sets.read_map("{ [kb] -> [kb + 1] }")
    one_on = row.tiles.intersect(row.tiles.apply(sets.read_map("{ [kb] -> [k2] : k2 > kb }")))
    return sets.within(one_on, row.tiles.apply(between))


def _merge(
    parts: list[isl.Set],
    context: isl.Set,
    points: Sequence[dict[str, int]],
    rows: list[list[list[int]]],
) -> list[isl.Set]:
    """Join pairs of sets whose union is one progression, until none is left.

    ``rows``: for each set its tiles at ``points``.
    """
    pieces = list(zip(parts, rows, strict=True))
    joined = True
    apart: set[tuple[int, int]] = set()  # pairs that were tried; sets live as long as ``kept``
    kept = list(parts)
    while joined:
        joined = False
        for (one, seen), (other, more) in combinations(pieces, 2):
            if (id(one), id(other)) in apart:
                continue
            trials = _trials(points, (seen, more))
            if _plausible([tiles for _, tiles in trials]):
                both = one.union(other).coalesce()
                if fit(Row(both, context), MAX_JOINT_OPERATIONS, trials) is not None:
                    pieces = [p for p in pieces if p[0] is not one and p[0] is not other]
                    pieces.append((both, [tiles for _, tiles in trials]))
                    kept.append(both)
                    joined = True
                    break
            apart.add((id(one), id(other)))
    return [part for part, _ in pieces]


def fit(
    row: Row, most: int = MAX_OPERATIONS, trials: Sequence[Trial] | None = None
) -> Progression | None:
    """Return the single progression equal to a row, or None; isl proves the equality.

    ``most``: the operations that its bounds may take. ``trials``: its tiles at a few points, where
    they are known.
    """
    tiles = row.tiles.intersect_params(row.context)
    if tiles.is_empty():
        return Progression(base=ex.ZERO, count=ex.ZERO)
    single = len(tiles.get_basic_sets()) == 1
    for guess, exact in intervals(row.tiles, row.context) if single else ():
        if operations(guess) <= MAX_OPERATIONS and row.same(exact):
            tidied = _tidied(guess)
            return tidied if operations(tidied) <= most else None
    if trials is None:
        points = (*_points(row.context), *_points_in([row.tiles], row.context))
        trials = _trials(points, [[_seen(row.tiles, values) for values in points]])
    stride = None if single else sets.whole(tiles.get_stride(0))
    if not _plausible([seen for _, seen in trials], stride):
        return None
    untidied = min(MAX_OPERATIONS, TIDIED * most)
    for guess in _guesses(row, tiles, trials, untidied):
        if operations(guess) > untidied:
            continue
        if any(_tiles_at(guess, values) != seen for values, seen in trials):
            continue  # wrong already at a trial point: isl need not be asked
        tidied = _tidied(guess)
        if operations(tidied) <= most and row.same(as_set(tidied, tiles)):
            return tidied
    return None


def _tidied(guess: Progression) -> Progression:
    return replace(guess, base=ex.tidy(guess.base, RANGES), count=ex.tidy(guess.count, RANGES))


def operations(progression: Progression) -> int:
    """Return how many operations the bounds of a progression take."""
    return ex.op_count(progression.base) + ex.op_count(progression.count)


def _plausible(rows: list[list[int]], stride: int | None = None) -> bool:
    """Whether rows of tiles could be one progression: one step, or steps of one and one jump.

    With ``stride``, that step alone.
    """
    steps = {b - a for row in rows for a, b in pairwise(row)}
    if stride is not None:
        return steps <= {stride}
    return len(steps) <= 1 or (len(steps) == 2 and min(steps) == 1)


def _trials(points: Sequence[dict[str, int]], rows: Sequence[list[list[int]]]) -> list[Trial]:
    """Return the tiles of disjoint sets together, at the points at which each was looked at."""
    return [
        (values, sorted(tile for part in rows for tile in part[i]))
        for i, values in enumerate(points)
    ]


def _seen(tiles: isl.Set, values: dict[str, int]) -> list[int]:
    """Return the key tiles of one row, in order."""
    for i, name in enumerate(sets.param_names(tiles)):
        tiles = tiles.fix_val(isl.dim_type.param, i, sets.val(values[name]))
    points: list[isl.Point] = []
    tiles.project_out(isl.dim_type.param, 0, tiles.dim(isl.dim_type.param)).foreach_point(
        points.append
    )
    return sorted(sets.whole(p.get_coordinate_val(isl.dim_type.set, 0)) for p in points)


def _points(context: isl.Set) -> Iterator[dict[str, int]]:
    """Yield values of all parameters at the trial rows that satisfy the context."""
    names = sets.param_names(context)
    for qb, keys in TRIAL_ROWS:
        at = context
        for i, name in enumerate(names):
            if name in ("qb", "NK"):
                at = at.fix_val(isl.dim_type.param, i, sets.val(qb if name == "qb" else keys))
        point = _sample(at)
        if point is not None:
            yield point


def _points_in(parts: Sequence[isl.Set], context: isl.Set) -> Iterator[dict[str, int]]:
    """Yield rows where sets have tiles, one by one and in pairs, if small ones are found."""
    rows = [part.params().intersect(context) for part in parts]
    for one, other in combinations_with_replacement(rows, 2):
        both = one.intersect(other)
        point = _sample(both.intersect(sets.read_set(SAMPLE_KEYS))) or _sample(both)
        if point is not None and max(point.values()) <= MAX_SAMPLE:
            yield point


def _sample(params: isl.Set) -> dict[str, int] | None:
    """Return values of the parameters that satisfy a condition, None if there are none."""
    names = sets.param_names(params)
    points = params.from_params().move_dims(isl.dim_type.set, 0, isl.dim_type.param, 0, len(names))
    point = points.sample_point()
    if point.is_void():
        return None
    return {
        name: sets.whole(point.get_coordinate_val(isl.dim_type.set, i))
        for i, name in enumerate(names)
    }


def _tiles_at(guess: Progression, values: dict[str, int]) -> list[int]:
    base, count = (int(ex.evaluate(e, values)) for e in (guess.base, guess.count))
    if count > MAX_TRIAL_TILES:
        return []
    return sorted(base + guess.period * (i // guess.run) + i % guess.run for i in range(count))


def _guesses(
    row: Row, tiles: isl.Set, trials: Sequence[Trial], most: int
) -> Iterator[Progression]:
    """Yield candidates: equally spaced tiles first, then runs that repeat."""
    stride = sets.whole(tiles.get_stride(0))
    for first, last in ends(row.tiles, row.context, stride, trials, most):
        length = ex.add(ex.floordiv(ex.sub(last, first), stride), ex.ONE)
        yield Progression(base=first, count=length, period=stride)
    yield from _repeating(row, tiles)


def _repeating(row: Row, tiles: isl.Set) -> Iterator[Progression]:
    """Yield the run form for tiles whose position within some period is an interval."""
    period = _period(tiles)
    names = names_of(tiles)
    if period is None or len(tiles.get_basic_sets()) != 1:
        return

    def name(kind: isl.dim_type, i: int) -> str:
        return names[(kind, i)]

    places = tiles.apply(
        sets.read_map(f"{{ [kb] -> [r] : 0 <= r < {period} and (kb - r) mod {period} = 0 }}")
    )
    kept = [names[(isl.dim_type.param, i)] for i in range(places.dim(isl.dim_type.param))]
    for position in range(len(kept) - 1, -1, -1):
        if kept[position] not in ("h", "qb"):
            places = places.project_out(isl.dim_type.param, position, 1)
            del kept[position]
    least = sets.least(places)
    run = sets.whole(sets.greatest(places).sub(least).max_val()) + 1
    for low in sets.piecewise(least, lambda kind, i: kept[i]):
        for first, last in ends_of_basic(row.tiles.gist_params(row.context), 1, name):
            # The first run that ends at or after ``first``; the proof fails if it would be cut.
            skipped = ceil_div(ex.sub(first, ex.add(low, ex.Const(run - 1))), period)
            base = ex.add(low, ex.scale(period, skipped))
            beyond = ex.sub(last, base)
            count = ex.add(
                ex.scale(run, ex.floordiv(beyond, period)),
                ex.minimum(ex.add(ex.mod(beyond, period), ex.ONE), ex.Const(run)),
            )
            yield Progression(base=base, count=count, period=period, run=run)


def as_set(progression: Progression, like: isl.Set) -> isl.Set:
    """Return the key tiles of a progression as an isl set over the parameters of ``like``."""
    params = sets.param_names(like)
    kb, index = ex.Var("kb"), ex.Var("i")
    beyond = ex.sub(kb, progression.base)
    if progression.period == 1:
        last = ex.sub(ex.add(progression.base, progression.count), ex.ONE)
        # Written without max and min, which isl reads slowly.
        lows = (
            progression.base.parts if isinstance(progression.base, ex.Max) else (progression.base,)
        )
        highs = last.parts if isinstance(last, ex.Min) else (last,)
        test = ex.and_(
            *(ex.compare(">=", kb, low) for low in lows),
            *(ex.compare("<=", kb, high) for high in highs),
        )
        return sets.read_set(f"[{', '.join(params)}] -> {{ [kb] : {sets.text(test)} }}")
    if progression.run == 1:
        extent = ex.scale(progression.period, progression.count)
        test = ex.and_(
            ex.compare(">=", beyond, ex.ZERO),
            ex.compare("<", beyond, extent),
            ex.compare("==", ex.mod(beyond, progression.period), ex.ZERO),
        )
        return sets.read_set(f"[{', '.join(params)}] -> {{ [kb] : {sets.text(test)} }}")
    position = ex.add(
        ex.scale(progression.period, ex.floordiv(index, progression.run)),
        ex.mod(index, progression.run),
    )
    test = ex.and_(
        ex.compare(">=", index, ex.ZERO),
        ex.compare("<", index, progression.count),
        ex.compare("==", beyond, position),
    )
    return sets.read_set(f"[{', '.join(params)}] -> {{ [kb] : exists (i : {sets.text(test)}) }}")


def _period(tiles: isl.Set) -> int | None:
    """Return the least common multiple of the moduli applied to ``kb``, None if there is none."""
    period = 1
    for basic in tiles.compute_divs().get_basic_sets():
        for i in range(basic.dim(isl.dim_type.div)):
            div = basic.get_div(i)
            if sets.nonzero(div.get_coefficient_val(isl.dim_type.in_, 0)):
                period = lcm(period, sets.whole(div.get_denominator_val()))
    return period if period > 1 else None


def hull(row: Row) -> Progression | None:
    """Return the one interval that covers a row, or None where isl finds no bound."""
    tiles = row.tiles.intersect_params(row.context)
    names = names_of(tiles)
    try:
        low, high = sets.least(tiles), sets.greatest(tiles)
    except isl.Error as error:
        sets.reraise_over_budget(error)
        return None
    *_, first = sets.piecewise(low.gist_params(row.context), lambda kind, i: names[(kind, i)])
    *_, last = sets.piecewise(high.gist_params(row.context), lambda kind, i: names[(kind, i)])
    guard = sets.bool_expr(
        tiles.params().gist(row.context).coalesce(), lambda kind, i: names[(kind, i)]
    )
    count = ex.select(guard, ex.add(ex.sub(last, first), ex.ONE), ex.ZERO)
    return Progression(base=first, count=count)
