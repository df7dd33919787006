"""Pattern IR -> block-mask IR: full, partial and empty tiles, exactly, symbolic in the lengths."""

from __future__ import annotations

from functools import lru_cache

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import TILE_VARS, BlockMask, Piece, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes import progression as prog
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.powers import far_powers
from attnc.compiler.passes.relations import Relations, project, refined
from attnc.compiler.passes.residual import residual

MAX_RESIDUALS = 8
"""With more partial pieces than this, all of them check the whole predicate (one mask class)."""


GRID_SHARE = 16
"""What part of a budget a pattern on a grid gets, one in so many: mostly a millisecond is enough or
a second is not, and tests of the tiles serve instead."""

GRID_PIECES = 16
"""Most pieces, unlike each other, of a class on a grid: more have mostly spent its budget."""

LESS = 2
"""After a spent budget the next, coarser attempt gets one part in so many."""

EVERYTHING = Progression(base=ex.ZERO, count=ex.Var("NK"))
"""All tiles of a row."""

SIMPLE = 36
"""Operations in the bounds of a piece below which no simpler form is looked for."""


def classify(pattern: Pattern, tiling: Tiling) -> BlockMask:
    """Sort the tiles of a pattern into full, partial and empty, exactly.

    Shape: pieces are symbolic in ``qb``, ``h`` and the lengths; residuals are token predicates.
    Units: ``tiling`` in tokens, pieces in tiles.
    Past isl's budget the result is *widened* (still exact as a mask, more tiles visited) and
    ``BlockMask.widened`` says why.
    Source: Verdoolaege, "isl: An Integer Set Library for the Polyhedral Model", ICMS 2010.
    """
    return _classify(eliminate(pattern), tiling)


@lru_cache(maxsize=256)
def _classify(pattern: Pattern, tiling: Tiling) -> BlockMask:
    if pattern.predicate == ex.FALSE:
        return BlockMask(pattern=pattern, tiling=tiling, pieces=())
    notes: list[str] = []
    share = share_of(pattern)
    far = far_powers(pattern, tiling, share)
    if far is not None:
        try:
            pieces = merge_residuals(
                _cut(far.near, pattern, tiling, share, far.full, far.partial)
            )
            return BlockMask(pattern=pattern, tiling=tiling, pieces=pieces)
        except sets.OverBudget:
            pass  # all powers alike, then
    try:
        with sets.budget(share=share):
            found = project(pattern, tiling)
    except sets.OverBudget as error:
        return _everything(pattern, tiling, [f"{failure}: {error}" for _, failure in ATTEMPTS])
    for attempt, failure in ATTEMPTS:
        try:
            pieces = merge_residuals(attempt(found, pattern, tiling, share))
            return BlockMask(pattern=pattern, tiling=tiling, pieces=pieces, widened=tuple(notes))
        except sets.OverBudget as error:
            notes.append(f"{failure}: {error}")
            if isinstance(error, sets.Spent):
                share *= LESS
    return _everything(pattern, tiling, notes)


def _everything(pattern: Pattern, tiling: Tiling, notes: list[str]) -> BlockMask:
    """Return all tiles, masked."""
    return BlockMask(
        pattern=pattern, tiling=tiling, widened=tuple(notes),
        pieces=(Piece(tiles=EVERYTHING, residual=pattern.predicate),),
    )


def share_of(pattern: Pattern) -> int:
    """Return what part of a budget a pattern gets: one in so many."""
    spaces = (s for s in (pattern.query_space, pattern.key_space) if s is not None)
    segments = [segment for space in spaces for segment in space.segments]
    on_grid = any(len(s.extents) > 1 or s.tile is not None for s in segments)
    return GRID_SHARE if on_grid else 1


def _exact(found: Relations, pattern: Pattern, tiling: Tiling, share: int) -> list[Piece]:
    """Full and partial tiles, each class cut into progressions."""
    with sets.budget(share=share, gone=found.operations):
        found = refined(found, tiling)
    return _cut(found, pattern, tiling, share)


def _cut(
    found: Relations, pattern: Pattern, tiling: Tiling, share: int,
    more_full: tuple[Progression, ...] = (), more_partial: tuple[Progression, ...] = (),
) -> list[Piece]:
    """Cut tiles into progressions, and add those that are known already."""
    parts = best_split(found.full, found, pattern, tiling, share=share)
    full = [Piece(tiles=p) for p in (*more_full, *(p for p, _ in parts))]
    return full + _partial(found.partial, found, pattern, tiling, share, more_partial)


def _visited(found: Relations, pattern: Pattern, tiling: Tiling, share: int) -> list[Piece]:
    """All visited tiles as partial ones."""
    sets.afford(found.operations, share=share)
    return _partial(found.nonempty, found, pattern, tiling, share)


def _hull(found: Relations, pattern: Pattern, tiling: Tiling, share: int) -> list[Piece]:
    """One interval of tiles a row, from its first visited tile to its last."""
    with sets.budget(share=share, gone=found.operations):
        interval = prog.hull(prog.row_of(found.nonempty, found.context))
    if interval is None or not _clean(interval):
        raise sets.OverBudget("the hull has no simple bound")
    return [Piece(tiles=interval, residual=pattern.predicate)]


ATTEMPTS = (
    (_exact, "full tiles are masked too"),
    (_visited, "each row visits the hull of its tiles"),
    (_hull, "each row visits all tiles"),
)
"""Ways to classify what isl projected, the exact one first, and what is lost where one fails."""


def hints(pattern: Pattern, tiling: Tiling) -> tuple[Progression, ...]:
    """Guess tile ranges from token ranges: where ``first(q) .. last(q)`` is one run of keys.

    If both ends grow with ``q``, the visited tiles of a row run from the first key of its first
    query to the last key of its last query, and the full ones the other way round. The guesses are
    only tried; isl proves or drops them.
    """
    if tiling == Tiling(1, 1):
        return ()
    found: list[Progression] = []
    for piece in _classify(pattern, Tiling(1, 1)).pieces:
        if piece.full and piece.tiles.period == 1:
            first = piece.tiles.base
            last = ex.sub(ex.add(first, piece.tiles.count), ex.ONE)
            found += _ranges(first, last, tiling)
    return tuple(dict.fromkeys(found))


def _ranges(first: ex.IntExpr, last: ex.IntExpr, tiling: Tiling) -> list[Progression]:
    top = ex.scale(tiling.q, ex.Var("qb"))
    bottom = ex.add(top, ex.Const(tiling.q - 1))
    keys = ex.scale(tiling.k, ex.Var("NK"))

    def at(end: ex.IntExpr, q: ex.IntExpr) -> ex.IntExpr:
        return ex.tidy(ex.substitute(end, {"qb": q, "NK": keys}), prog.RANGES)

    def tile(key: ex.IntExpr) -> ex.IntExpr:
        return ex.tidy(ex.floordiv(key, tiling.k), prog.RANGES)

    seen_first, seen_last = tile(at(first, top)), tile(at(last, bottom))
    full_first = tile(ex.add(at(first, bottom), ex.Const(tiling.k - 1)))
    full_last = ex.sub(tile(ex.add(at(last, top), ex.ONE)), ex.ONE)
    right_first = ex.maximum(ex.add(full_last, ex.ONE), seen_first)
    left_last = ex.minimum(ex.sub(full_first, ex.ONE), full_last)
    ends = (
        (seen_first, seen_last), (full_first, full_last), (right_first, seen_last),
        (seen_first, left_last),
    )
    return [
        Progression(base=a, count=ex.tidy(ex.add(ex.sub(b, a), ex.ONE), prog.RANGES))
        for a, b in ends
    ]


def _partial(
    tiles: isl.Map, found: Relations, pattern: Pattern, tiling: Tiling, share: int,
    more: tuple[Progression, ...] = (),
) -> list[Piece]:
    """Cut partial tiles into pieces and find what each still has to check.

    ``more``: pieces that are known already, and check the whole.
    """
    whole = pattern.predicate
    parts = best_split(tiles, found, pattern, tiling, share=share)
    if len(parts) + len(more) > MAX_RESIDUALS:
        return [Piece(tiles=p, residual=whole) for p in (*more, *(p for p, _ in parts))]
    with sets.budget(share=share):
        return [
            Piece(tiles=progression, residual=residual_of(found, exact, whole))
            for progression, exact in parts
        ]


def best_split(
    tiles: isl.Map, found: Relations, pattern: Pattern, tiling: Tiling, *, share: int = 1
) -> list[tuple[Progression, isl.Set]]:
    """Cut tiles into progressions, with hints where that needs fewer or simpler ones.

    Raises: OverBudget.
    """
    row = prog.row_of(tiles.coalesce(), found.context)
    options: list[list[tuple[Progression, isl.Set]]] = []
    trouble = sets.OverBudget("loop bounds that need an existential variable")
    for with_hints in (False, True):
        near = hints(pattern, tiling) if with_hints else ()
        if with_hints and not near:
            break
        try:
            with sets.budget(share=share):
                parts = prog.split(row, near, GRID_PIECES if share >= GRID_SHARE else None)
        except sets.Spent as error:
            trouble = error
            break
        except sets.OverBudget as error:
            trouble = error
            continue
        if all(_clean(progression) for progression, _ in parts):
            options.append(parts)
            pieces, operations = _cost(parts)
            clear = not any(_nested(p.base) or _nested(p.count) for p, _ in parts)
            if pieces > MAX_RESIDUALS or (clear and operations <= SIMPLE * pieces):
                break
    if not options:
        raise trouble
    return min(options, key=_cost)


def _cost(parts: list[tuple[Progression, isl.Set]]) -> tuple[int, int]:
    """Pieces, then operations; ``div`` in heaps reads as badly as a whole piece costs."""
    nested = sum(_nested(p.base) + _nested(p.count) for p, _ in parts)
    return len(parts), sum(prog.operations(p) for p, _ in parts) + SIMPLE * nested


def _nested(expr: ex.Expr) -> bool:
    divs = [node for node in ex.walk(expr) if isinstance(node, ex.FloorDiv)]
    return len(divs) > 2 and any(
        isinstance(node, ex.FloorDiv) for div in divs for node in ex.walk(div.part)
    )


def residual_of(found: Relations, exact: isl.Set, whole: ex.BoolExpr) -> ex.BoolExpr:
    """Return what is left to check inside the key tiles ``exact`` (a set with parameter ``qb``)."""
    return residual(found.pairs, as_map(exact), found.token_tiles, lengths(found.context), whole)


def lengths(context: isl.Set) -> isl.Set:
    """Return a row context without its row: what is known of heads and lengths."""
    return context.project_out(isl.dim_type.param, 0, 1)


def _clean(progression: Progression) -> bool:
    return (ex.free_vars(progression.base) | ex.free_vars(progression.count)) <= TILE_VARS


def as_map(tiles: isl.Set) -> isl.Map:
    """Turn key tiles with parameter ``qb`` back into ``{ [qb] -> [kb] }``."""
    return isl.Map.from_range(tiles).move_dims(isl.dim_type.in_, 0, isl.dim_type.param, 0, 1)


def merge_residuals(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Order pieces: full first, then by residual, so that equal checks stand together."""
    order = list(dict.fromkeys(p.residual for p in pieces))
    return tuple(sorted(pieces, key=lambda p: (not p.full, order.index(p.residual))))
