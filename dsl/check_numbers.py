"""Arithmetic and comparisons: their types, when they are known, and the units they speak of."""

from __future__ import annotations

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import Scope, latest
from attnc.dsl.check_call import CallChecker
from attnc.dsl.kinds import (
    BOOL,
    BROKEN,
    INT,
    RATIONAL,
    REAL,
    Kind,
    Time,
    Unit,
    describe,
    fits,
    is_number,
    join,
    show_type,
)  # fmt: skip
from attnc.dsl.source import Span


def left_spine(expr: ast.Expr) -> tuple[ast.Expr, list[ast.Binary]]:
    """Split ``a + b - c ...`` into its first operand and the operations, first to last.

    Long sums are deep on the left; every walker takes them in a loop, so that a thousand terms
    need no thousand stack frames.
    """
    steps: list[ast.Binary] = []
    while isinstance(expr, ast.Binary):
        steps.append(expr)
        expr = expr.left
    return expr, steps[::-1]


class NumberChecker(CallChecker):
    """Types sums, products, quotients and comparisons."""

    def spine(self, expr: ast.Binary, scope: Scope) -> Kind:
        first, steps = left_spine(expr)
        left_expr, kind = first, self.expr(first, scope)
        for step in steps:
            kind = self.binary(step, left_expr, kind, scope)
            left_expr = step
        return kind

    def binary(self, expr: ast.Binary, left_expr: ast.Expr, left: Kind, scope: Scope) -> Kind:
        """Check ``left op right``; the left operand has been checked already."""
        right = self.expr(expr.right, scope)
        wanted = INT if expr.op in ("div", "mod") else REAL
        for part, kind in ((left_expr, left), (expr.right, right)):
            if kind.type is not None and not fits(kind.type, wanted):
                help_ = (
                    "round it with `floor(...)` or `ceil(...)`"
                    if is_number(kind.type)
                    else "turn it into a number with `if ... then 1 else 0`"
                    if kind.type == BOOL
                    else ""
                )
                needed = "an integer" if wanted == INT else "a number"
                return self.error(
                    "ATT0301", f"`{expr.op}` needs {needed}, found {describe(kind.type)}",
                    part.span, label=f"this has type {show_type(kind.type)}", help=help_,
                )  # fmt: skip
        if left.type is None or right.type is None:
            return BROKEN
        time = max(left.time, right.time)
        type_ = join(left.type, right.type)
        assert type_ is not None
        if expr.op == "/":
            if right.time == Time.RUN and type_ != REAL and not self.scoring:
                return self.error(
                    "ATT0304", "the divisor of `/` is known only at run time", expr.right.span,
                    label="this depends on positions or lengths",
                    help="multiply both sides by it, or divide with `div`",
                )  # fmt: skip
            exact = right.time != Time.RUN and type_ != REAL
            type_ = RATIONAL if exact else REAL
        elif expr.op == "**":
            type_ = self.power(expr, left, right)
            if type_ is None:
                return BROKEN
        kind = self.real(type_, time, expr)
        return kind if kind.type is None else Kind(kind.type, time, _unit(expr.op, left, right))

    def power(self, expr: ast.Binary, left: Kind, right: Kind) -> ast.Type | None:
        """Return the type of a power, or report one that no kernel computes."""
        assert left.type is not None
        if right.time == Time.RUN and not self.scoring:
            self.error(
                "ATT0304", "a power with an exponent that is known only at run time", expr.span,
                label="this depends on positions or lengths",
                help="for powers of two write `is_pow2(x)`, or `exists e in 0..40 : x == 2**e`",
            )  # fmt: skip
            return None
        if right.time == Time.RUN or right.type != INT:
            return REAL
        return left.type

    # -------------------------------------------------------------------------- comparisons

    def compare(self, expr: ast.Compare, scope: Scope) -> Kind:
        after_in = {i + 1 for i, op in enumerate(expr.ops) if op in ("in", "not in")}
        kinds: list[Kind | None] = [
            None if _bare(o, scope) else (self.raw if i in after_in else self.expr)(o, scope)
            for i, o in enumerate(expr.operands)
        ]
        enum = next((e for k in kinds if k and (e := _enum(k.type)) is not None), None)
        done = [
            k or self.expr(o, scope, ast.Type(kind="list", item=enum)
                           if isinstance(o, ast.ListOf) else enum)
            for o, k in zip(expr.operands, kinds, strict=True)
        ]  # fmt: skip
        for i, op in enumerate(expr.ops):
            left, right = done[i], done[i + 1]
            where = expr.operands[i].span.to(expr.operands[i + 1].span)
            if left.type is None or right.type is None:
                continue
            if op in ("in", "not in"):
                if not self.member(op, left, right, expr.operands[i + 1], where):
                    return BROKEN
                continue
            comparable = (
                join(left.type, right.type) is not None
                and left.type.kind not in ("list", "pattern")
                if op in ("==", "!=")
                else is_number(left.type) and is_number(right.type)
            )
            if not comparable:
                return self._mismatch(op, left.type, right.type, where)
            if REAL in (left.type, right.type):
                time = max(left.time, right.time)
                if self.real(REAL, time, expr).type is None:
                    return BROKEN
            self.units(left.unit, right.unit, where)
        return latest(BOOL, done)

    def member(self, op: str, left: Kind, right: Kind, items: ast.Expr, where: Span) -> bool:
        """Check ``left in right``; return whether it is right."""
        assert left.type is not None
        assert right.type is not None
        if right.dims:
            if len(right.dims) == 1 and right.type == INT and left.type == INT:
                return True
            help_ = (
                "index all axes but the last: `k in verticals[h]`" if len(right.dims) > 1
                else "index lists hold ints"
            )  # fmt: skip
            self.error(
                "ATT0316", f"`{op}` looks for an int in one list of an int input", items.span,
                label=f"this has {len(right.dims)} axes of type {show_type(right.type)}"
                if len(right.dims) > 1 else f"this has type {show_type(right.type)}", help=help_,
            )  # fmt: skip
            return False
        if right.type.kind != "list":
            self.error(
                "ATT0301", f"expected a list after `{op}`, found {describe(right.type)}",
                items.span,
                help=f"test a pair: `(q, k) {op} ...`" if right.type.kind == "pattern"
                else "for one value write `==`",
            )  # fmt: skip
            return False
        if right.type.item is not None and join(left.type, right.type.item) is None:
            self._mismatch(op, left.type, right.type, where)
            return False
        return True

    def units(self, left: Unit | None, right: Unit | None, where: Span) -> None:
        """Warn of a comparison of tokens with blocks, heads, or another axis."""
        if left is None or right is None or not left.clashes(right):
            return
        self.error(
            "ATT0322", f"{in_words(left)} is compared with {in_words(right)}", where,
            severity="warning", label="these count different things",
            help="divide or multiply one side; if it is meant, compare the difference with 0",
        )  # fmt: skip

    def _mismatch(self, op: str, left: ast.Type, right: ast.Type, span: Span) -> Kind:
        return self.error(
            "ATT0301", f"`{op}` cannot compare {describe(left)} with {describe(right)}", span,
            help="compare numbers with numbers" if op not in ("==", "!=", "in", "not in") else "",
        )  # fmt: skip


def in_words(unit: Unit) -> str:
    """Return a unit in words: "a token position", "a coordinate along `y`"."""
    sort, _, axis = unit.sort.partition(" ")
    match sort:
        case "token":
            return "a token position"
        case "axis":
            return f"a coordinate along `{axis}`"
        case "block":
            return f"a block number along `{axis}`" if axis else "a block number"
        case _:
            return f"a {sort} index"


def _unit(op: str, left: Kind, right: Kind) -> Unit | None:
    """Return the unit of a result: positions move by plain numbers, and ``div`` makes blocks."""
    match op:
        case "+" if left.unit is None or right.unit is None:
            return left.unit or right.unit
        case "-" if right.unit is None:
            return left.unit
        case "div" if left.unit is not None and right.time != Time.RUN and right.unit is None:
            sort, _, axis = left.unit.sort.partition(" ")
            if sort in ("token", "axis"):
                return Unit(f"block {axis}".rstrip(), left.unit.of)
    return None


def _bare(expr: ast.Expr, scope: Scope) -> bool:
    """Return whether an operand is a word, or a list of words, not in scope: a choice."""
    match expr:
        case ast.Name(name=name):
            return name not in scope
        case ast.ListOf(items=items):
            return any(isinstance(i, ast.Name) and i.name not in scope for i in items)
        case _:
            return False


def _enum(type_: ast.Type | None) -> ast.Type | None:
    if type_ is not None and type_.kind == "list":
        type_ = type_.item
    return type_ if type_ is not None and type_.kind == "enum" else None
