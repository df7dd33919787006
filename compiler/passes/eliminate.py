"""Pattern IR -> pattern IR without quantifiers.

    exists m in 0..nk : q - k == 3 * m   -->   (q - k) mod 3 == 0 and k <= q and q - k <= 3 * nk
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.dsl.diagnostics import CompileError, Diagnostic

MAX_UNROLLED = 4096
"""Longest constant range that becomes a disjunction where isl does not find a formula."""


@lru_cache(maxsize=256)
def eliminate(pattern: pat.Pattern) -> pat.Pattern:
    """Return the pattern with every ``exists`` replaced by an equal formula.

    The same object comes back where there is nothing to do.
    Raises: CompileError[ATT0408] if isl finds no formula and the range is too long to write out.
    """
    if not any(isinstance(node, ex.Exists) for node in ex.walk(pattern.predicate)):
        return pattern
    return replace(pattern, body=_node(pattern.body, pattern))


def _node(node: pat.Node, pattern: pat.Pattern) -> pat.Node:
    match node:
        case pat.Where(predicate):
            return pat.Where(_without(predicate, pattern))
        case pat.Union(parts):
            return pat.Union(tuple(_node(p, pattern) for p in parts))
        case pat.Intersection(parts):
            return pat.Intersection(tuple(_node(p, pattern) for p in parts))
        case pat.Difference(left, right):
            return pat.Difference(_node(left, pattern), _node(right, pattern))
        case pat.Complement(part):
            return pat.Complement(_node(part, pattern))


def _without(expr: Any, pattern: pat.Pattern) -> Any:
    """Replace the quantifiers of an expression, the inner ones first."""
    if not ex.children(expr):
        return expr
    inner = ex.rebuild(expr, lambda e: _without(e, pattern))
    return _formula(inner, pattern) if isinstance(inner, ex.Exists) else inner


def _formula(exists: ex.Exists, pattern: pat.Pattern) -> ex.BoolExpr:
    reason = "it depends on what is known at the call only"
    if ex.is_static(exists):
        try:
            with sets.budget():
                return sets.without_quantifiers(exists, pattern.heads)
        except sets.OverBudget as error:
            reason = str(error)
    extent = ex.sub(exists.high, exists.low)
    if isinstance(extent, ex.Const) and extent.value < MAX_UNROLLED:
        values = (ex.add(exists.low, ex.Const(turn)) for turn in range(extent.value + 1))
        return ex.or_(*(ex.substitute(exists.body, {exists.var: value}) for value in values))
    raise CompileError(
        (
            Diagnostic(
                code="ATT0408",
                message=f"no formula was found for an `exists` of `{pattern.name}`",
                notes=(f"`{_short(ex.show(exists))}`", reason),
                help="write it with `div` and `mod`, or give it a constant range of at most"
                f" {MAX_UNROLLED} values",
            ),
        )
    )


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}..."
