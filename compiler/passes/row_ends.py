"""The constraints of one query tile's key tiles  ->  guesses at the first and the last of them.

    2 qb - 8 <= kb <= 2 qb - 7, 0 <= kb   -->   max(2*qb - 8, 0) .. 2*qb - 7

A row is a set over ``[kb]`` whose parameters include ``qb``; it counts where its context holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TypeAlias

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression

Trial: TypeAlias = tuple[dict[str, int], list[int]]
"""Values of the parameters of a row, and the key tiles it has there."""


def names_of(space_of: isl.Set) -> dict[tuple[isl.dim_type, int], str]:
    """Return the names of the parameters of a row; its one dimension is ``kb``."""
    named = {(isl.dim_type.param, i): n for i, n in enumerate(sets.param_names(space_of))}
    for kind in (isl.dim_type.set, isl.dim_type.in_):
        named[(kind, 0)] = "kb"
    return named


def intervals(row: isl.Set, context: isl.Set) -> Iterator[tuple[Progression, isl.Set]]:
    """Yield guesses at a row without gaps, with the sets they stand for, the simplest first.

    The last one is right; its conditions that do not speak of ``kb`` are mostly implied.
    """
    tiles = row.gist_params(context).remove_redundancies()
    parts = tiles.get_basic_sets()
    if len(parts) != 1:
        return
    names = names_of(tiles)
    lows: list[ex.IntExpr] = []
    highs: list[ex.IntExpr] = []
    guards: list[ex.BoolExpr] = []
    for constraint in parts[0].get_constraints():
        if constraint.is_div_constraint():
            continue
        aff = constraint.get_aff()
        if _div_uses_tile(aff) or not sets.has_known_divs(aff):
            return
        if not _read(constraint, lambda kind, i: names[(kind, i)], lows, highs, guards):
            return
    if not lows or not highs:
        return
    bounded = parts[0].drop_constraints_not_involving_dims(isl.dim_type.set, 0, 1).to_set()
    on_grid = sets.read_set("[NK] -> { [kb] : kb < NK }") if "NK" in names.values() else None
    first, last = ex.maximum(*lows), ex.minimum(*highs)
    before_end = last if on_grid is None else ex.minimum(last, ex.sub(ex.Var("NK"), ex.ONE))
    for least in (0, None, 1) if guards else (None,):
        if least is None:
            yield _between(first, last), bounded
            continue
        inside = bounded.lower_bound_val(isl.dim_type.set, 0, sets.val(least))
        if on_grid is not None:
            inside = inside.intersect(on_grid)
        yield _between(ex.maximum(first, ex.Const(least)), before_end), inside
    nothing = ex.sub(first, ex.ONE)
    yield _between(first, ex.select(ex.and_(*guards), last, nothing)), tiles


def _between(first: ex.IntExpr, last: ex.IntExpr) -> Progression:
    return Progression(base=first, count=ex.add(ex.sub(last, first), ex.ONE))


def _read(
    constraint: isl.Constraint,
    name: Callable[[isl.dim_type, int], str],
    lows: list[ex.IntExpr],
    highs: list[ex.IntExpr],
    guards: list[ex.BoolExpr],
) -> bool:
    """Take in what a constraint says, of ``kb`` or of the row; False where it rounds ``kb``."""
    aff = constraint.get_aff()
    factor = sets.whole(aff.get_coefficient_val(isl.dim_type.in_, 0))
    if not factor:
        op: ex.CompareOp = "==" if constraint.is_equality() else ">="
        guards.append(sets.balanced(op, sets.int_expr(aff, name)))
        return True
    if constraint.is_equality() and abs(factor) != 1:
        return False
    rest = aff.set_coefficient_val(isl.dim_type.in_, 0, sets.val(0))
    scaled = sets.int_expr(rest if factor < 0 else rest.neg(), name)
    if factor > 0 or constraint.is_equality():
        lows.append(ceil_div(scaled, abs(factor)))
    if factor < 0 or constraint.is_equality():
        highs.append(ex.floordiv(scaled, abs(factor)))
    return True


def ends(
    row: isl.Set, context: isl.Set, stride: int, trials: Sequence[Trial], most: int
) -> Iterator[tuple[ex.IntExpr, ex.IntExpr]]:
    """Yield guesses at the first and last tile of a row, the simplest first.

    Of the ends by themselves, those that are wrong in a trial row are left out; so are those that
    are sure to take more than ``most`` operations.
    """
    tiles = row.intersect_params(context)
    names = names_of(tiles)

    def name(kind: isl.dim_type, i: int) -> str:
        return names[(kind, i)]

    pieces = tiles.get_basic_sets()
    if len(pieces) == 1:
        yield from ends_of_basic(row.gist_params(context), stride, name)
    try:
        low, high = sets.least(tiles), sets.greatest(tiles)
    except isl.Error as error:
        sets.reraise_over_budget(error)
        return  # unbounded on some side
    lows = list(sets.piecewise(low.gist_params(context), name))
    highs = list(sets.piecewise(high.gist_params(context), name))
    rows = [(values, seen) for values, seen in trials if seen]
    lows_seen = [
        first
        for first in lows
        if all(ex.evaluate(first, values) == seen[0] for values, seen in rows)
    ]
    highs_seen = [
        last
        for last in highs
        if all(0 <= ex.evaluate(last, values) - seen[-1] < stride for values, seen in rows)
    ]
    yield from product(lows_seen, highs_seen)
    if ex.op_count(lows[-1]) + ex.op_count(highs[-1]) > most:
        return
    guard = sets.bool_expr(tiles.params().gist(context).coalesce(), name)
    nothing = ex.sub(lows[-1], ex.Const(stride))
    yield lows[-1], ex.select(guard, highs[-1], nothing)


def ends_of_basic(
    tiles: isl.Set, stride: int, name: Callable[[isl.dim_type, int], str]
) -> Iterator[tuple[ex.IntExpr, ex.IntExpr]]:
    """Read the ends off the constraints on ``kb``: the greatest lower and least upper bound."""
    lows: list[ex.IntExpr] = []
    highs: list[ex.IntExpr] = []
    guards: list[ex.BoolExpr] = []
    residue: ex.IntExpr | None = None
    for basic in tiles.remove_redundancies().get_basic_sets():
        for constraint in basic.get_constraints():
            if constraint.is_div_constraint():
                continue
            if _div_uses_tile(constraint.get_aff()):
                _bounds_through_div(tiles, constraint, name, lows, highs)
                continue
            _read(constraint, name, lows, highs, guards)
    if not lows or not highs:
        return
    first, last = ex.maximum(*lows), ex.minimum(*highs)
    if stride > 1:
        info = tiles.get_stride_info(0)
        residue = sets.int_expr(info.get_offset(), name)
        first = ex.add(first, ex.mod(ex.sub(residue, first), stride))
    before_end = last
    if "NK" in sets.param_names(tiles):
        before_end = ex.minimum(last, ex.sub(ex.Var("NK"), ex.ONE))
    if guards:  # isl drops 0 <= kb < NK where a guard implies it
        yield ex.maximum(first, ex.ZERO), before_end
    yield first, last
    if guards:  # tile 0 often belongs to another piece: the sink
        yield ex.maximum(first, ex.ONE), before_end
    if guards:
        yield first, ex.select(ex.and_(*guards), last, ex.sub(first, ex.Const(stride)))


def _bounds_through_div(
    tiles: isl.Set,
    constraint: isl.Constraint,
    name: Callable[[isl.dim_type, int], str],
    lows: list[ex.IntExpr],
    highs: list[ex.IntExpr],
) -> None:
    """Add the bound that a constraint on ``floor(kb / c)`` puts on ``kb``, if it is one."""
    alone = isl.BasicSet.universe(tiles.get_space()).add_constraint(constraint).to_set()
    for bounds, extreme in ((lows, sets.least), (highs, sets.greatest)):
        try:
            bounds.append(next(sets.piecewise(extreme(alone), name)))
        except isl.Error as error:
            sets.reraise_over_budget(error)  # otherwise: unbounded on this side


def ceil_div(part: ex.IntExpr, divisor: int) -> ex.IntExpr:
    return ex.floordiv(ex.add(part, ex.Const(divisor - 1)), divisor)


def _div_uses_tile(aff: isl.Aff) -> bool:
    return any(
        sets.nonzero(aff.get_coefficient_val(isl.dim_type.div, i))
        and aff.get_div(i).involves_dims(isl.dim_type.in_, 0, 1)
        for i in range(aff.dim(isl.dim_type.div))
    )
