"""Pattern IR -> warnings: sets that keep nothing, queries that see nothing. Exact, by isl."""

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


def warn(pattern: Pattern, definition: Named[Any]) -> tuple[Diagnostic, ...]:
    """Return warnings for a pattern that leaves some query, or every one, without a key.

    Decided for queries and keys of one length, over every length. No answer, no warning: isl works
    under a budget, and a pattern that is too large to read within it is not asked about.
    """
    if not pattern.is_static or not _readable(pattern.predicate):
        return ()
    from attnc.compiler import sets

    where = definition.item.name_span
    span = where if where.source is not None else definition.item.span
    name = pattern.name
    if sets.is_empty(pattern):
        return (
            Diagnostic(
                code="ATT0320", severity="warning", span=span,
                message=f"pattern `{name}` keeps no pair",
                label="no query sees any key, at any length",
                help="its conditions exclude each other; join alternatives with `|` or `or`",
            ),
        )  # fmt: skip
    row = sets.empty_row(pattern)
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
