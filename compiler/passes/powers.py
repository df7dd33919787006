"""A pattern with a power of two -> its far powers as one set with a parameter.

    is_pow2(q - k)   -->   q - k in {1, 2, .., 256} or q - k == 512 * power

Far powers are so far apart that no tile meets two of them. Tiles that the rest of the pattern does
not visit are thus classified once, with the parameter, and not forty times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import TILE_VARS, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.passes import progression as prog
from attnc.compiler.passes.relations import Relations, project, relations

POWER = "power"
"""The parameter; no variable of the IRs is called so."""

FEW = 3
"""Where powers count blocks, those from ``2**FEW`` on may be far; where tokens, only later ones."""

SHARE = 4
"""What part of a budget looking for far powers gets, one in so many: without them it goes, too."""


@dataclass(frozen=True, slots=True)
class FarPowers:
    """The tiles that only far powers visit, as progressions, and all others as relations."""

    near: Relations
    full: tuple[Progression, ...]
    partial: tuple[Progression, ...]


def far_powers(pattern: Pattern, tiling: Tiling, share: int) -> FarPowers | None:
    """Classify the tiles of far powers, None where they cannot be told from the others."""
    tests = {node for node in ex.walk(pattern.predicate) if isinstance(node, ex.IsPow2)}
    if len(tests) != 1:
        return None
    (test,) = tests
    if not _stands_plainly(pattern.predicate, test):
        return None
    try:
        with sets.budget(share=SHARE * share):
            for first in (FEW, (tiling.q + tiling.k).bit_length() + 1):
                found = _from(first, test, pattern, tiling)
                if found is not None:
                    return found
    except sets.OverBudget:
        pass
    return None


def _from(
    first: int, test: ex.IsPow2, pattern: Pattern, tiling: Tiling
) -> FarPowers | None:
    """Classify as if the powers from ``2**first`` on were far, None where they are not."""

    def where(power: ex.BoolExpr) -> Pattern:
        return replace(pattern, body=Where(_replaced(pattern.predicate, test, power)))

    last = ex.POW2_MAX_EXPONENT - first
    far = ex.and_(
        ex.compare("==", test.part, ex.scale(1 << first, ex.Var(POWER))),
        ex.compare(">=", ex.Var(POWER), ex.ONE),
        ex.compare("<=", ex.Var(POWER), ex.Const(1 << last)),
    )
    band = project(replace(pattern, body=Where(far)), tiling).nonempty
    if not _no_two(band):
        return None
    near = relations(where(ex.member(test.part, [1 << e for e in range(first)])), tiling)
    if not band.intersect(near.partial).is_empty():
        return None
    beyond = relations(where(far), tiling)
    context = beyond.context.intersect_params(
        sets.read_set(f"[{POWER}] -> {{ : 1 <= {POWER} <= {1 << last} }}")
    )
    full, partial = (
        _pieces(sets.minus(tiles, near.nonempty), context, last)
        for tiles in (beyond.full, beyond.partial)
    )
    return FarPowers(near, full, partial)


def _stands_plainly(expr: ex.BoolExpr, test: ex.IsPow2) -> bool:
    """Whether a test stands under ``and`` and ``or`` only: where it holds, more pairs are kept."""
    if isinstance(expr, ex.And | ex.Or):
        return all(_stands_plainly(part, test) for part in expr.parts)
    return expr == test or all(node != test for node in ex.walk(expr))


def _replaced(expr: ex.BoolExpr, test: ex.IsPow2, by: ex.BoolExpr) -> ex.BoolExpr:
    """Replace a test that stands plainly."""
    match expr:
        case ex.And(parts):
            return ex.and_(*(_replaced(part, test, by) for part in parts))
        case ex.Or(parts):
            return ex.or_(*(_replaced(part, test, by) for part in parts))
        case _:
            return by if expr == test else expr


def _no_two(band: isl.Map) -> bool:
    """Whether no tile meets a far power and its double, or one beyond that."""
    at = band.find_dim_by_name(isl.dim_type.param, POWER)
    other = band.set_dim_name(isl.dim_type.param, at, "other")
    later = sets.read_set(f"[{POWER}, other] -> {{ : 2 {POWER} <= other }}")
    return bool(band.intersect(other).intersect_params(later).is_empty())


def _pieces(tiles: isl.Map, context: isl.Set, last: int) -> tuple[Progression, ...]:
    """Cut tiles into progressions, for each power the same. Raises: OverBudget."""
    general = [piece for piece, _ in prog.split(prog.row_of(tiles, context))]
    if any(
        not ex.free_vars(end) <= TILE_VARS | {POWER}
        for piece in general
        for end in (piece.base, piece.count)
    ):
        raise sets.OverBudget("loop bounds that need an existential variable")
    return tuple(
        replace(
            piece,
            base=ex.substitute(piece.base, {POWER: ex.Const(1 << exponent)}),
            count=ex.substitute(piece.count, {POWER: ex.Const(1 << exponent)}),
        )
        for exponent in range(last, -1, -1)
        for piece in general
    )
