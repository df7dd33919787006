"""Expressions -> the same relation read from its other side: queries and keys exchanged.

    k <= q and q - k < nk   -->   q <= k and k - q < nq
    max(qb - 3, 0)          -->   max(kb - 3, 0)

Doing it twice changes nothing.
"""

from __future__ import annotations

from typing import TypeVar

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.arrays import ArrayExpr
from attnc.compiler.ir.score import RealExpr

AnyExpr = TypeVar("AnyExpr", ex.IntExpr, ex.BoolExpr)

_OTHER = {
    "q": "k", "qb": "kb", "nq": "nk", "NQ": "NK",
    "k": "q", "kb": "qb", "nk": "nq", "NK": "NQ",
}  # fmt: skip
"""The name of the same thing on the other side; coordinates have the number of an axis behind."""

_LENGTHS: dict[str, ex.IntExpr] = {"nq": ex.Var("nk"), "nk": ex.Var("nq")}


def transposed(expr: AnyExpr) -> AnyExpr:
    """Exchange positions, tiles and lengths of the two sides; heads and inputs stay."""
    found: AnyExpr = ex.substitute(expr, _values(ex.free_vars(expr)))
    return found


def transposed_score(score: RealExpr) -> RealExpr:
    """Do the same for what the softmax runs over."""
    found: RealExpr = sc.substitute(score, _values(sc.free_vars(score)))
    return found


def transposed_formula(formula: ArrayExpr) -> ArrayExpr:
    """Rewrite the formula of an input for exchanged lengths: its value stays the same."""
    return ar.substitute(formula, _LENGTHS)


def _values(names: frozenset[str]) -> dict[str, ex.IntExpr]:
    found: dict[str, ex.IntExpr] = {}
    for name in names:
        side, line, axis = name.partition("_")
        if side in _OTHER and (axis.isdecimal() or not line):
            found[name] = ex.Var(f"{_OTHER[side]}{line}{axis}")
    return found
