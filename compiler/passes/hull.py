"""Pattern IR that reads data -> block-mask IR of its candidates, whatever the data says.

    k <= q and doc[q] == doc[k]   -->   hull: k <= q          core: false
    k < 4 or near[q, k]           -->   hull: true            core: k < 4

Between core and hull lies the pattern, for all data: tiles outside the hull are empty, and tiles
that the core fills are full. The tiles in between wait for the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.progression import operations

MAX_OPERATIONS = 60
"""Most operations of the bounds of candidates: past it, testing all tiles of a row is simpler."""

MAX_APART = 100
"""Most operations of a comparison that is taken apart: its parts stand several times then."""


def hull(predicate: ex.BoolExpr) -> ex.BoolExpr:
    """Return a static predicate that holds wherever this one can; itself if it is static."""
    return _approximate(predicate, unknown=ex.TRUE, negated=False)


def core(predicate: ex.BoolExpr) -> ex.BoolExpr:
    """Return a static predicate that holds only where this one must; itself if it is static."""
    return _approximate(predicate, unknown=ex.FALSE, negated=False)


def _approximate(expr: ex.BoolExpr, *, unknown: ex.Truth, negated: bool) -> ex.BoolExpr:
    """Replace tests of data by ``unknown``, with negations pushed down to the tests."""
    if ex.is_static(expr):
        return ex.not_(expr) if negated else expr
    match expr:
        case ex.Not(part):
            return _approximate(part, unknown=unknown, negated=not negated)
        case ex.And(parts) | ex.Or(parts):
            join = ex.and_ if isinstance(expr, ex.And) is not negated else ex.or_
            return join(*(_approximate(p, unknown=unknown, negated=negated) for p in parts))
        case ex.Compare():
            apart = _apart(_negated(expr) if negated else expr, unknown)
            if apart is None:
                return unknown
            return _approximate(apart, unknown=unknown, negated=False)
        case _:
            return unknown


def _negated(test: ex.Compare) -> ex.Compare:
    turned = ex.not_(test)
    assert isinstance(turned, ex.Compare)
    return turned


def _apart(test: ex.Compare, unknown: ex.Truth) -> ex.BoolExpr | None:
    """Take a comparison with a ``min``, ``max`` or ``if`` apart; None: it is none of these.

    Where the condition of an ``if`` reads data, either branch is possible: some comparison must
    hold for the hull, both for the core.
    """
    if ex.op_count(test) > MAX_APART:
        return None
    op, left, right = test.op, test.left, test.right
    found = _against(left, lambda part: ex.compare(op, part, right), op, unknown)
    if found is not None:
        return found
    return _against(right, lambda part: ex.compare(op, left, part), _MIRRORED[op], unknown)


def _against(
    side: ex.IntExpr, test: Callable[[ex.IntExpr], ex.BoolExpr], op: ex.CompareOp,
    unknown: ex.Truth,
) -> ex.BoolExpr | None:
    """Return ``side op something`` by the parts of ``side``, where it has such parts."""
    match side:
        case ex.Min(parts) | ex.Max(parts) if op in ("<=", "<", ">=", ">"):
            every = isinstance(side, ex.Max) is (op in ("<=", "<"))
            return (ex.and_ if every else ex.or_)(*map(test, parts))
        case ex.Select(condition, then, otherwise) if not ex.is_static(condition):
            return (ex.or_ if unknown.value else ex.and_)(test(then), test(otherwise))
        case ex.Select(condition, then, otherwise):
            return ex.or_(
                ex.and_(condition, test(then)), ex.and_(ex.not_(condition), test(otherwise))
            )
        case _:
            return None


_MIRRORED: dict[ex.CompareOp, ex.CompareOp] = {
    "<=": ">=", "<": ">", "==": "==", "!=": "!=", ">": "<", ">=": "<=",
}


@lru_cache(maxsize=256)
def candidates(pattern: Pattern, tiling: Tiling) -> BlockMask:
    """Classify as far as it goes without data: pieces are full by the core, or wait for the data.

    Pieces that wait check the whole predicate. A static pattern keeps its (widened) pieces.
    Units: ``tiling`` in tokens, pieces in tiles.
    """
    whole = eliminate(pattern)
    predicate = whole.predicate
    outer, inner = hull(predicate), core(predicate)
    notes: tuple[str, ...] = ()
    if outer == ex.FALSE:
        return BlockMask(pattern=whole, tiling=tiling, pieces=())
    if outer != predicate:
        try:
            return BlockMask(
                pattern=whole, tiling=tiling,
                pieces=tuple(_between(whole, outer, inner, tiling)),
            )
        except sets.OverBudget as error:
            notes = (f"full tiles wait for the data, too: {error}",)
    static = cl.classify(replace(whole, body=Where(outer)), tiling)
    notes += static.widened
    pieces = static.pieces
    if any(operations(piece.tiles) > MAX_OPERATIONS for piece in pieces):
        notes += ("each row has all tiles: bounds of too many operations",)
        pieces = (Piece(tiles=Progression(base=ex.ZERO, count=ex.Var("NK")), residual=predicate),)
    full_stays = outer == predicate
    return BlockMask(
        pattern=whole, tiling=tiling, widened=notes,
        pieces=tuple(
            piece if piece.full and full_stays else Piece(tiles=piece.tiles, residual=predicate)
            for piece in pieces
        ),
    )


def _between(
    pattern: Pattern, outer: ex.BoolExpr, inner: ex.BoolExpr, tiling: Tiling
) -> list[Piece]:
    """Return the tiles that the core fills, and the others of the hull. Raises: OverBudget."""
    around = replace(pattern, body=Where(outer))
    within = replace(pattern, body=Where(inner))
    full: list[Piece] = []
    with sets.budget():
        found = cl.project(around, tiling)
        waiting = found.nonempty
        if inner != ex.FALSE:
            sure = cl.relations(within, tiling)
            waiting = waiting.subtract(sure.full).coalesce()
            found = replace(found, context=found.context.intersect(sure.context))
    if inner != ex.FALSE:
        full = [Piece(tiles=p) for p, _ in cl.best_split(sure.full, sure, within, tiling)]
    return full + [
        Piece(tiles=tiles, residual=pattern.predicate)
        for tiles, _ in cl.best_split(waiting, found, around, tiling)
    ]
