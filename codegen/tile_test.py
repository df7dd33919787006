"""predicate -> torch source of its test of whole tiles, by interval arithmetic.

    doc[q] == doc[k]  -->  query[0]: least and greatest doc[q] in the tile, key[0]: of doc[k]
                           may hold: q1_low <= k1_high & q1_high >= k1_low
                           must hold: q1_low == k1_high & q1_high == k1_low

What ``compiler/passes/tile_test.py`` computes, as text: both give the same bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from attnc.codegen.predicate import TOKEN_RANGES, HostDialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.passes.sides import KEY, QUERY, split
from attnc.compiler.passes.tile_test import MAX_BOX

Pair: TypeAlias = tuple[str, str]
"""Texts: least and greatest value of a number; "may" and "must" of a condition."""

_NAMES = {n: n for n in ("q", "k", "h", "nq", "nk")}


def host_dialect(kinds: Mapping[str, str], heads: int | None) -> HostDialect:
    """Return the printer of predicates and terms; ``kinds`` are those of the inputs."""
    ranges = {**TOKEN_RANGES, "h": (0, heads - 1 if heads else 0)}
    ranges |= {f"{name}[]": (0, 1) for name, kind in kinds.items() if kind == "bool"}
    return HostDialect(_NAMES, ranges)


class TileTest:
    """One emission: the terms of both sides, the lines of the test, what it asks of whole inputs.

    Without a predicate nothing is asked: every tile may hold a kept pair, none must keep all.
    """

    def __init__(
        self, predicate: ex.BoolExpr | None, kinds: Mapping[str, str], heads: int | None
    ) -> None:
        self.dialect = host_dialect(kinds, heads)
        self.kinds = kinds
        self.sides = split(ex.TRUE if predicate is None else predicate)
        self.lines: list[str] = []
        self.prepared: dict[str, str] = {}
        self._known: dict[ex.Expr, Pair] = {}
        self._count = 0
        self.answer = ("True", "False") if predicate is None else self._bool(self.sides.test)

    def emit(self, out: Writer) -> None:
        """Print ``_query_terms``, ``_key_terms``, ``_prepare`` and ``_tile_test``."""
        for side, variable, terms in (
            ("query", "q", self.sides.query), ("key", "k", self.sides.key)
        ):
            with out.block(f"def _{side}_terms({variable}, h, b, nq, nk, data):"):
                out.line(f'"""What the test of a tile asks of a {side} alone."""')
                out.call("return [", [self.dialect.integer(term) for term in terms], "]")
            out.line()
            out.line()
        with out.block("def _prepare(data):"):
            out.line('"""Add what the test of a tile asks of whole inputs."""')
            added = [f'"{name}": {text}' for name, text in self.prepared.items()]
            out.call("return {", ["**data", *added], "}")
        out.line()
        out.line()
        with out.block("def _tile_test(query, key, h, b, nq, nk, data):"):
            out.line('"""Whether a tile may hold a kept pair, and whether it must keep every pair.')
            out.line()
            out.line("query, key: the least and the greatest value of each term in the tile.")
            out.line('"""')
            for side, letter, terms in (
                ("query", "q", self.sides.query), ("key", "k", self.sides.key)
            ):
                for number, term in enumerate(terms):
                    out.comment(f"{letter}{number}: {ex.show(term)}")
                    out.line(f"{letter}{number}_low, {letter}{number}_high = {side}[{number}]")
            for line in self.lines:
                out.line(line)
            out.line(f"return {self.answer[0]}, {self.answer[1]}")
        out.line()
        out.line()

    def _bind(self, what: str, text: str) -> str:
        """Give a text a name."""
        self._count += 1
        self.lines.append(f"{what}_{self._count} = {text}")
        return f"{what}_{self._count}"

    def _bound(self, low: str, high: str) -> Pair:
        return self._bind("low", low), self._bind("high", high)

    def _outcome(self, may: str, must: str) -> Pair:
        return self._bind("may", may), self._bind("must", must)

    # ------------------------------------------------------------------------ conditions

    def _bool(self, expr: ex.BoolExpr) -> Pair:
        if expr not in self._known:
            self._known[expr] = self._condition(expr)
        return self._known[expr]

    def _condition(self, expr: ex.BoolExpr) -> Pair:
        if isinstance(expr, ex.Truth):
            return str(expr.value), str(expr.value)
        if not _has_terms(expr):
            return (self._bind("known", self.dialect.boolean(expr)),) * 2
        match expr:
            case ex.Compare(op, left, right):
                return self._compared(op, self._int(left), self._int(right))
            case ex.Not(part):
                may, must = self._bool(part)
                return self._outcome(f"{must} ^ True", f"{may} ^ True")
            case ex.And(parts) | ex.Or(parts):
                sign = " & " if isinstance(expr, ex.And) else " | "
                pairs = [self._bool(part) for part in parts]
                return self._outcome(
                    sign.join(may for may, _ in pairs), sign.join(must for _, must in pairs)
                )
            case ex.IsPow2(part):
                return self._listed([1 << i for i in range(ex.POW2_MAX_EXPONENT + 1)], part)
            case ex.Member(part, values):
                return self._listed(list(values), part)
        raise AssertionError(f"not without quantifiers: {ex.show(expr)}")

    def _listed(self, values: list[int], part: ex.IntExpr) -> Pair:
        low, high = self._int(part)
        count = self._bind("count", f"_listed_in({low}, {high}, {values})")
        return self._outcome(f"{count} > 0", f"{count} == {high} - {low} + 1")

    def _compared(self, op: ex.CompareOp, left: Pair, right: Pair) -> Pair:
        (a, b), (c, d) = left, right
        match op:
            case "<=" | "<":
                return self._outcome(f"{a} {op} {d}", f"{b} {op} {c}")
            case ">=" | ">":
                return self._outcome(f"{b} {op} {c}", f"{a} {op} {d}")
            case "==":
                return self._outcome(
                    f"({a} <= {d}) & ({b} >= {c})", f"({a} == {d}) & ({b} == {c})"
                )
            case "!=":
                return self._outcome(
                    f"({a} != {d}) | ({b} != {c})", f"({a} > {d}) | ({b} < {c})"
                )

    # --------------------------------------------------------------------------- numbers

    def _int(self, expr: ex.IntExpr) -> Pair:
        if expr not in self._known:
            self._known[expr] = self._number(expr)
        return self._known[expr]

    def _number(self, expr: ex.IntExpr) -> Pair:
        if isinstance(expr, ex.Const):
            return (f"({expr.value})" if expr.value < 0 else str(expr.value),) * 2
        if isinstance(expr, ex.Var) and expr.name.startswith((QUERY, KEY)):
            letter = "q" if expr.name.startswith(QUERY) else "k"
            name = letter + expr.name.removeprefix(QUERY).removeprefix(KEY)
            return f"{name}_low", f"{name}_high"
        if not _has_terms(expr):
            return (self._bind("known", self.dialect.integer(expr)),) * 2
        match expr:
            case ex.Add(parts):
                lows, highs = zip(*map(self._int, parts), strict=True)
                return self._bound(" + ".join(lows), " + ".join(highs))
            case ex.Scale(factor, part):
                low, high = self._int(part) if factor > 0 else reversed(self._int(part))
                times = f" * {factor}" if factor > 0 else f" * ({factor})"
                return self._bound(f"{low}{times}", f"{high}{times}")
            case ex.FloorDiv(part, divisor):
                low, high = self._int(part)
                return self._bound(f"{low} // {divisor}", f"{high} // {divisor}")
            case ex.Mod(part, divisor):
                return self._remainder(self._int(part), str(divisor), "True")
            case ex.Min(parts) | ex.Max(parts):
                function = "_least" if isinstance(expr, ex.Min) else "_greatest"
                lows, highs = zip(*map(self._int, parts), strict=True)
                return self._bound(_nested(function, *lows), _nested(function, *highs))
            case ex.Abs(part):
                low, high = self._int(part)
                return self._bound(
                    _nested("_greatest", low, f"-{high}", "0"), f"_greatest(-{low}, {high})"
                )
            case ex.Select(condition, then, otherwise):
                may, must = self._bool(condition)
                (a, b), (c, d) = self._int(then), self._int(otherwise)
                return self._bound(
                    f"_choose({must}, {a}, _choose({may}, _least({a}, {c}), {c}))",
                    f"_choose({must}, {b}, _choose({may}, _greatest({b}, {d}), {d}))",
                )
            case ex.Mul(left, right):
                ends = [f"{x} * {y}" for x in self._int(left) for y in self._int(right)]
                return self._bound(_nested("_least", *ends), _nested("_greatest", *ends))
            case ex.Quot(part, by):
                return self._quotient(self._int(part), self._int(by))
            case ex.Rem(part, by):
                least, most = self._int(by)
                top = self._bind("by", f"_greatest({most}, 1)")
                low, high = self._remainder(self._int(part), top, f"({least} == {most})")
                return low, self._bind("high", f"_choose({most} < 1, 0, {high})")
            case ex.Read(name, index):
                return self._element(name, index)
        raise AssertionError(ex.show(expr))

    def _remainder(self, part: Pair, by: str, sure: str) -> Pair:
        """Bound ``part mod by``; where not ``sure``, ``by`` is only the largest divisor."""
        low, high = part
        same = self._bind("same", f"({low} // {by} == {high} // {by}) & {sure}")
        within = f"({low} >= 0) & ({high} < {by})"
        return self._bound(
            f"_choose({same}, {low} % {by}, 0)",
            f"_choose({same}, {high} % {by}, _choose({within}, {high}, {by} - 1))",
        )

    def _quotient(self, part: Pair, by: Pair) -> Pair:
        """Bound ``floor(part / by)``, which is 0 where ``by`` is below 1."""
        least, most = by
        divisors = [self._bind("by", f"_greatest({end}, 1)") for end in by]
        ends = [f"{x} // {y}" for x in part for y in divisors]
        low, high = self._bound(_nested("_least", *ends), _nested("_greatest", *ends))
        low, high = self._bound(
            f"_choose({least} < 1, _least({low}, 0), {low})",
            f"_choose({least} < 1, _greatest({high}, 0), {high})",
        )
        return self._bound(
            f"_choose({most} < 1, 0, {low})", f"_choose({most} < 1, 0, {high})"
        )

    def _element(self, name: str, index: tuple[ex.IntExpr, ...]) -> Pair:
        """Bound an element whose place depends on side terms."""
        pairs = [self._int(i) for i in index]
        box = ", ".join(f"({low}, {high})" for low, high in pairs)
        loose = tuple(axis for axis, part in enumerate(index) if _has_terms(part))
        if self.kinds[name] == "bool" and len(loose) <= MAX_BOX:
            asked = f"{name} counted along {', '.join(map(str, loose))}"
            self.prepared[asked] = f'_counted(data["{name}"], {loose})'
            count = self._bind("count", f'_count_in(data["{asked}"], b, [{box}], {loose})')
            cells = " * ".join(f"({pairs[i][1]} - {pairs[i][0]} + 1)" for i in loose)
            return self._bound(f"({count} == {cells}) * 1", f"({count} > 0) * 1")
        asked = f"extremes of {name}"
        self.prepared[asked] = f'_extremes(data["{name}"])'
        both = self._bind("both", f'_element(data["{name}"], b, [{box}], data["{asked}"])')
        return f"{both}[0]", f"{both}[1]"


def _has_terms(expr: ex.Expr) -> bool:
    return any(name.startswith((QUERY, KEY)) for name in ex.free_vars(expr))


def _nested(function: str, *texts: str) -> str:
    text = texts[0]
    for other in texts[1:]:
        text = f"{function}({text}, {other})"
    return text
