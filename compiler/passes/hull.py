"""Pattern IR that reads data -> block-mask IR of its candidates, whatever the data says.

    k <= q and doc[q] == doc[k]   -->   hull: k <= q          core: false
    k < 4 or near[q, k]           -->   hull: true            core: k < 4

Between core and hull lies the pattern, for all data: tiles outside the hull are empty, and tiles
that the core fills are full. The tiles in between wait for the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Piece, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.progression import operations
from attnc.compiler.passes.relations import project, relations

MAX_OPERATIONS = 60
"""Most operations of the bounds of candidates: past it, testing all tiles of a row is simpler."""

MAX_APART = 100
"""Most operations of a comparison that is taken apart: its parts stand several times then."""


Known: TypeAlias = Callable[[ex.Expr], bool]
"""Which conditions stay as they are; what is left decides nothing."""


def is_plain(expr: ex.Expr) -> bool:
    """Return whether an expression is static and rounds nothing: isl is quick about it."""
    rounded = ex.FloorDiv | ex.Mod | ex.IsPow2 | ex.Read | ex.Mul | ex.Quot | ex.Rem
    return not any(isinstance(node, rounded) for node in ex.walk(expr))


def hull(predicate: ex.BoolExpr, known: Known = ex.is_static) -> ex.BoolExpr:
    """Return a known predicate that holds wherever this one can; itself if it is known."""
    return _Outline(known, ex.TRUE).of(predicate, negated=False)


def core(predicate: ex.BoolExpr, known: Known = ex.is_static) -> ex.BoolExpr:
    """Return a known predicate that holds only where this one must; itself if it is known."""
    return _Outline(known, ex.FALSE).of(predicate, negated=False)


@dataclass(frozen=True, slots=True)
class _Outline:
    """Replaces the tests that are not ``known`` by ``unknown``."""

    known: Known
    unknown: ex.Truth

    def of(self, expr: ex.BoolExpr, *, negated: bool) -> ex.BoolExpr:
        """Return the outline, with negations pushed down to the tests."""
        if self.known(expr):
            return ex.not_(expr) if negated else expr
        match expr:
            case ex.Not(part):
                return self.of(part, negated=not negated)
            case ex.And(parts) | ex.Or(parts):
                join = ex.and_ if isinstance(expr, ex.And) is not negated else ex.or_
                return join(*(self.of(part, negated=negated) for part in parts))
            case ex.Compare():
                apart = self._apart(_negated(expr) if negated else expr)
                return self.unknown if apart is None else self.of(apart, negated=False)
            case _:
                return self.unknown

    def _apart(self, test: ex.Compare) -> ex.BoolExpr | None:
        """Take a comparison with a ``min``, ``max`` or ``if`` apart; None: it is none of these.

        Where the condition of an ``if`` is not known, either branch is possible: some comparison
        must hold for the hull, both for the core.
        """
        if ex.op_count(test) > MAX_APART:
            return None
        op, left, right = test.op, test.left, test.right
        found = self._against(left, lambda part: ex.compare(op, part, right), op)
        if found is not None:
            return found
        return self._against(right, lambda part: ex.compare(op, left, part), _MIRRORED[op])

    def _against(
        self, side: ex.IntExpr, test: Callable[[ex.IntExpr], ex.BoolExpr], op: ex.CompareOp
    ) -> ex.BoolExpr | None:
        """Return ``side op something`` by the parts of ``side``, where it has such parts."""
        match side:
            case ex.Min(parts) | ex.Max(parts) if op in ("<=", "<", ">=", ">"):
                every = isinstance(side, ex.Max) is (op in ("<=", "<"))
                return (ex.and_ if every else ex.or_)(*map(test, parts))
            case ex.Select(condition, then, otherwise) if not self.known(condition):
                return (ex.or_ if self.unknown.value else ex.and_)(test(then), test(otherwise))
            case ex.Select(condition, then, otherwise):
                return ex.or_(
                    ex.and_(condition, test(then)), ex.and_(ex.not_(condition), test(otherwise))
                )
            case _:
                return None


def _negated(test: ex.Compare) -> ex.Compare:
    turned = ex.not_(test)
    assert isinstance(turned, ex.Compare)
    return turned


_MIRRORED: dict[ex.CompareOp, ex.CompareOp] = {
    "<=": ">=", "<": ">", "==": "==", "!=": "!=", ">": "<", ">=": "<=",
}


@lru_cache(maxsize=256)
def candidates(pattern: Pattern, tiling: Tiling) -> BlockMask:
    """Classify as far as it goes without data: pieces are full by the core, or wait for the data.

    Pieces that wait check the whole predicate. A static pattern keeps its (widened) pieces. Where
    isl knows nothing of the hull, the hull without what is rounded serves.
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
            return _between(whole, outer, inner, tiling)
        except sets.OverBudget as error:
            notes = (f"full tiles wait for the data, too: {error}",)
    static = cl.classify(
        whole if outer == predicate else replace(whole, body=Where(outer)), tiling
    )
    notes += static.widened
    pieces = static.pieces
    nothing_known = [piece.tiles for piece in pieces] == [cl.EVERYTHING]
    too_long = any(operations(piece.tiles) > MAX_OPERATIONS for piece in pieces)
    if static.widened and (nothing_known or too_long):
        try:
            plain = _between(whole, hull(predicate, is_plain), core(predicate, is_plain), tiling)
            return replace(plain, widened=notes)
        except sets.OverBudget:
            pass
    if too_long:
        notes += ("each row has all tiles: bounds of too many operations",)
        pieces = (Piece(tiles=cl.EVERYTHING, residual=predicate),)
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
) -> BlockMask:
    """Return the tiles that the core fills, and the others of the hull. Raises: OverBudget."""
    around = replace(pattern, body=Where(outer))
    within = replace(pattern, body=Where(inner))
    full: list[Piece] = []
    share = cl.share_of(pattern)
    with sets.budget(share=share):
        found = project(around, tiling)
        waiting = found.nonempty
        if inner != ex.FALSE:
            sure = relations(within, tiling)
            waiting = waiting.subtract(sure.full).coalesce()
            found = replace(found, context=found.context.intersect(sure.context))
    if inner != ex.FALSE:
        parts = cl.best_split(sure.full, sure, within, tiling, share=share)
        full = [Piece(tiles=p) for p, _ in parts]
    parts = cl.best_split(waiting, found, around, tiling, share=share)
    waits = [Piece(tiles=tiles, residual=pattern.predicate) for tiles, _ in parts]
    return BlockMask(pattern=pattern, tiling=tiling, pieces=(*full, *waits))
