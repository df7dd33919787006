"""Pattern IR -> strips of the CPU executor: visited tiles, full and partial together.

    causal window 256, 32x16 tiles  -->  one strip: max(0, 2*qb - 16) .. 2*qb + 1, one mask for all
"""

from __future__ import annotations

from functools import lru_cache

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Strip
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.relations import Relations, project

MAX_SHIFT_ROWS = 64
"""Longest row period that is tried for a shared mask."""

SHIFT_OPERATIONS = 200_000
"""isl operations the search for a shared mask may take, a strip."""

MAX_STRIPS = 48
"""More strips than this are not tested for shared masks: their masks are made row by row."""


def strips(pattern: Pattern, tiling: Tiling) -> tuple[Strip, ...]:
    """Cut the visited tiles into strips and prove which of them can share one mask.

    Units: ``tiling`` in tokens, strips in tiles. Where isl runs out of budget the strips are those
    of the (widened) block mask and share nothing.
    """
    return _strips(eliminate(pattern), tiling)


@lru_cache(maxsize=256)
def _strips(pattern: Pattern, tiling: Tiling) -> tuple[Strip, ...]:
    whole = pattern.predicate
    if whole == ex.FALSE:
        return ()
    mask = cl.classify(pattern, tiling)
    if len(mask.widened) > 1:  # the visited tiles are no progressions, or too much for isl
        return _of_pieces(mask)
    try:
        with sets.budget(share=cl.share_of(pattern)):
            found = project(pattern, tiling)
        parts = cl.best_split(found.nonempty, found, pattern, tiling)
        few = len(parts) <= MAX_STRIPS
        with sets.budget(share=cl.share_of(pattern)):
            checks = [cl.residual_of(found, e, whole) if few else whole for _, e in parts]
    except sets.OverBudget:
        return _of_pieces(mask)
    return tuple(
        _strip(found, tiling, progression, exact, check, few=few)
        for (progression, exact), check in zip(parts, checks, strict=True)
    )


def _of_pieces(mask: BlockMask) -> tuple[Strip, ...]:
    return tuple(Strip(tiles=p.tiles, residual=p.residual, shift=None) for p in mask.pieces)


def _strip(
    found: Relations, tiling: Tiling, progression: Progression, exact: isl.Set,
    check: ex.BoolExpr, *, few: bool,
) -> Strip:
    if not few or check == ex.TRUE:
        return Strip(tiles=progression, residual=check, shift=None)
    try:
        with sets.budget(SHIFT_OPERATIONS):
            shift, first_row = _shift(found, tiling, exact)
    except sets.OverBudget:
        shift, first_row = None, 0
    shift = shift or _written_shift(check, tiling)
    return Strip(tiles=progression, residual=check, shift=shift, shift_from=first_row)


def _shift(
    found: Relations, tiling: Tiling, exact: isl.Set
) -> tuple[tuple[int, int] | None, int]:
    """Return the least proved shift, along the diagonal or down a column, and its first row."""
    inside = found.token_tiles.intersect_range(cl.as_map(exact).wrap()).domain()
    kept = found.pairs.wrap().intersect(inside)
    rows = 1
    while rows <= MAX_SHIFT_ROWS:
        diagonal, rest = divmod(rows * tiling.q, tiling.k)
        for tiles in ([] if rest else [diagonal]) + [0]:
            move = sets.read_map(
                f"{{ [[q] -> [k]] -> [[q + {rows * tiling.q}] -> [k + {tiles * tiling.k}]] }}"
            )
            both = inside.intersect(inside.apply(move.reverse()))
            if both.is_empty():
                continue
            here, there = kept.intersect(both), kept.apply(move.reverse()).intersect(both)
            broken = sets.minus(here, there).union(sets.minus(there, here))
            if broken.is_empty():
                return (rows, tiles), 0
            last = _last_row(broken, tiling)
            if last is not None:
                return (rows, tiles), last + 1
        rows *= 2
    return None, 0


def _written_shift(check: ex.BoolExpr, tiling: Tiling) -> tuple[int, int] | None:
    """Return the least shift that leaves the check as it is written: no isl, any size.

        abs(q div 64 - k div 64) <= 6, 32 tokens a tile   -->   2 rows, 2 tiles
    """
    rows = 1
    while rows <= MAX_SHIFT_ROWS:
        tiles, rest = divmod(rows * tiling.q, tiling.k)
        step = ex.Const(rows * tiling.q)
        moved = {name: ex.add(ex.Var(name), step) for name in ("q", "k")}
        if not rest and ex.substitute(check, moved) == check:
            return rows, tiles
        rows *= 2
    return None


def _last_row(pairs: isl.Set, tiling: Tiling) -> int | None:
    """Return the last query tile of some pairs, None if there is no last one."""
    queries = pairs.unwrap().domain()
    try:
        last = sets.greatest(queries).max_val()
    except isl.Error as error:
        sets.reraise_over_budget(error)
        return None
    return sets.whole(last) // tiling.q if last.is_int() else None
