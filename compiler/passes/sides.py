"""predicate -> what depends on the query alone, what on the key alone, and the test that is left.

    doc[q] == doc[k] and q - k < window[h]
      -->  query_0 = doc[q], query_1 = q; key_0 = doc[k], key_1 = k
           query_0 == key_0 and query_1 < key_1 + window[h]

The terms are evaluated once for each position, the test for each tile (on their least and greatest
values there) or for each pair of positions. Conditions are terms of value 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from attnc.compiler.ir import expr as ex

QUERY, KEY = "query_", "key_"
"""How the names of terms start; the numbers behind count from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """A predicate taken apart.

    ``query[i]`` is the term ``query_i``: an expression without ``k``; ``key[i]`` without ``q``.
    ``test`` has neither ``q`` nor ``k``: it speaks of terms, of ``h``, of lengths and of inputs.
    Substituting the terms gives the predicate back.
    """

    query: tuple[ex.IntExpr, ...]
    key: tuple[ex.IntExpr, ...]
    test: ex.BoolExpr


@lru_cache(maxsize=64)
def split(predicate: ex.BoolExpr) -> Sides:
    """Take a predicate apart, each term as large as it gets.

    Comparisons are solved first: all that depends on the query alone is gathered in one term, and
    all that depends on the key alone in one other.
    """
    terms = _Terms()
    test = terms.condition(predicate)
    return Sides(query=tuple(terms.query), key=tuple(terms.key), test=test)


class _Terms:
    """The terms found so far, in order, each once."""

    def __init__(self) -> None:
        self.query: dict[ex.IntExpr, ex.IntExpr] = {}
        self.key: dict[ex.IntExpr, ex.IntExpr] = {}

    def _named(self, term: ex.IntExpr) -> ex.IntExpr:
        side, start = (self.query, QUERY) if _side(term) == "q" else (self.key, KEY)
        return side.setdefault(term, ex.Var(f"{start}{len(side)}"))

    def integer(self, expr: ex.IntExpr) -> ex.IntExpr:
        """Return an integer with its terms named."""
        match _side(expr):
            case "none":
                return expr
            case "q" | "k":
                return self._named(expr)
        if isinstance(expr, ex.Add):
            groups = _by_side(expr.parts)
            single = [self.integer(ex.add(*groups[side])) for side in ("q", "k") if groups[side]]
            return ex.add(*single, *groups["none"], *map(self.integer, groups["both"]))
        if isinstance(expr, ex.Select):
            then, otherwise = self.integer(expr.then), self.integer(expr.otherwise)
            return ex.select(self.condition(expr.condition), then, otherwise)
        rebuilt: ex.IntExpr = ex.rebuild(expr, self.integer)
        return rebuilt

    def condition(self, expr: ex.BoolExpr) -> ex.BoolExpr:
        """Return a condition with its terms named."""
        match _side(expr):
            case "none":
                return expr
            case "q" | "k":
                return ex.compare("==", self._named(ex.select(expr, ex.ONE, ex.ZERO)), ex.ONE)
        match expr:
            case ex.And(parts) | ex.Or(parts):
                join = ex.and_ if isinstance(expr, ex.And) else ex.or_
                groups = _by_side(parts)
                single = [join(*groups[side]) for side in ("q", "k") if groups[side]]
                return join(*groups["none"], *map(self.condition, (*single, *groups["both"])))
            case ex.Not(part):
                return ex.not_(self.condition(part))
            case ex.Compare(op, left, right):
                return self._comparison(op, ex.sub(left, right))
            case ex.IsPow2(part):
                return ex.is_pow2(self.integer(part))
            case ex.Member(part, values):
                return ex.member(self.integer(part), values)
            case _:
                raise AssertionError(f"not without quantifiers: {expr}")

    def _comparison(self, op: ex.CompareOp, total: ex.IntExpr) -> ex.BoolExpr:
        """Return ``total op 0`` with the query's part on the left and the key's on the right."""
        groups = _by_side(total.parts if isinstance(total, ex.Add) else (total,))
        if _leads_with_minus([*groups["q"], *groups["both"], *groups["k"]]):
            return self._comparison(_TURNED[op], ex.scale(-1, total))
        own, other = ex.add(*groups["q"]), ex.scale(-1, ex.add(*groups["k"]))
        left = ex.add(*map(self.integer, (own, *groups["both"])))
        return ex.compare(op, left, ex.sub(self.integer(other), ex.add(*groups["none"])))


_TURNED: dict[ex.CompareOp, ex.CompareOp] = {
    "<=": ">=", "<": ">", "==": "==", "!=": "!=", ">": "<", ">=": "<=",
}


def _leads_with_minus(parts: list[Any]) -> bool:
    return isinstance(parts[0], ex.Scale) and parts[0].factor < 0


def _side(expr: ex.Expr) -> str:
    return ex.relevant_side(expr)


def _by_side(parts: tuple[ex.Expr, ...]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {"q": [], "k": [], "none": [], "both": []}
    for part in parts:
        groups[_side(part)].append(part)
    return groups
