"""Pattern IR -> warnings: sets that keep nothing, queries that see nothing. Exact, or silent."""

from __future__ import annotations

from typing import Any

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.resolve import Named

MAX_PARTS = 6000
"""Expression nodes isl reads in about half a second."""
MAX_DIVISIONS = 4
"""How deep ``div`` and ``mod`` may nest: isl's time explodes with each level, budget or not."""
MAX_DENSE = 1 << 23
"""Pairs times expression nodes up to which a mask of fixed lengths is evaluated."""


def warn(pattern: Pattern, definition: Named[Any]) -> tuple[Diagnostic, ...]:
    """Return warnings for a pattern that leaves some query, or every one, without a key.

    Decided for queries and keys of one length, over every length, by isl, which works under a
    budget; a mask of fixed lengths is evaluated. No answer, no warning: a pattern that reads
    inputs, or that is too large, is not asked about.
    """
    if not pattern.is_static:
        return ()
    if pattern.lengths != (None, None):
        empty, row = _by_mask(pattern)
    elif _readable(pattern.predicate):
        from attnc.compiler import sets

        empty = sets.is_empty(pattern)
        row = None if empty else sets.empty_row(pattern)
    else:
        return ()
    where = definition.item.name_span
    span = where if where.source is not None else definition.item.span
    name = pattern.name
    if empty:
        return (
            Diagnostic(
                code="ATT0320", severity="warning", span=span,
                message=f"pattern `{name}` keeps no pair",
                label="no query sees any key, at any length",
                help="its conditions exclude each other; join alternatives with `|` or `or`",
            ),
        )  # fmt: skip
    if row is None:
        return ()
    query, length = row
    return (
        Diagnostic(
            code="ATT0321", severity="warning", span=span,
            message=f"in `{name}` some queries see no key",
            label=f"query {query} of {length} sees none" if length > 1 else "query 0 sees none",
            notes=("the output of such a query is 0 and its lse is -inf",),
            help="if that is not meant, let every query see itself: `| { q -> k : q == k }`",
        ),
    )  # fmt: skip


def _by_mask(pattern: Pattern) -> tuple[bool, tuple[int, int] | None]:
    """Return whether a mask of fixed lengths is empty, and its first empty row with the length."""
    nq, nk = pattern.lengths
    nodes = sum(MAX_DENSE if isinstance(n, ex.Exists) else 1 for n in ex.walk(pattern.predicate))
    if not nq or not nk or nq * nk * nodes * (pattern.heads or 1) > MAX_DENSE:
        return False, None
    seen = pattern.mask(nq, nk).any(axis=2)
    if seen.all():
        return False, None
    return not seen.any(), (int(seen.all(axis=0).argmin()), nq)


def _readable(predicate: ex.BoolExpr) -> bool:
    """Return whether isl answers questions about a predicate in reasonable time."""
    stack: list[tuple[ex.Expr, int]] = [(predicate, 0)]
    seen = 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        depth += isinstance(node, ex.FloorDiv | ex.Mod)
        if seen > MAX_PARTS or depth > MAX_DIVISIONS:
            return False
        stack += ((child, depth) for child in ex.children(node))
    return True
