"""Expression -> its type and time; everything wrong with it is reported once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.functions import BUILTINS
from attnc.dsl.kinds import BOOL, BROKEN, INT, RATIONAL, Kind, Time, fits, join, show_type
from attnc.dsl.source import Span
from attnc.dsl.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in scope and, where it is one, the parameter that it reads."""

    kind: Kind
    param: ast.Param | None = None


MAX_FOUND, MAX_SUGGESTIONS, MAX_KNOWN = 100, 20, 500
"""Diagnostics of one file, those with a suggestion, and the names a suggestion is sought among."""

Scope = dict[str, Entry]
LENGTHS: Scope = {name: Entry(Kind(INT, Time.RUN)) for name in ("n", "nq", "nk")}
_WORDS = {
    "int": "an integer", "bool": "a truth value", "rational": "a rational number", "list": "a list",
    "enum": "a choice",
}  # fmt: skip


def describe(type_: ast.Type) -> str:
    """Return a type in words: "an integer", "a list of integers"."""
    if type_.kind == "list" and type_.item is not None:
        return f"a list of {_WORDS[type_.item.kind].split(' ', 1)[1]}s"
    if type_.kind == "enum":
        return f"one of {', '.join(f'`{c}`' for c in type_.choices)}"
    return _WORDS[type_.kind]


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


class ExprChecker:
    """Types expressions; a broken part is ``BROKEN`` and raises no second error."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []
        self.used: set[int] = set()
        self.head_name: str | None = None

    def error(
        self, code: str, message: str, span: Span, *, label: str = "", help: str = ""
    ) -> Kind:
        if len(self.found) < MAX_FOUND:
            self.found.append(
                Diagnostic(code=code, message=message, span=span, label=label, help=help)
            )
        return BROKEN

    def suggest(self, name: str, known: Iterable[str]) -> str:
        """Return "did you mean ...?", or "" where nothing is near or the search would take long."""
        # One letter is near any other; guessing from it would mislead.
        if len(name) < 2 or len(self.found) > MAX_SUGGESTIONS:
            return ""
        return did_you_mean(name, islice(known, MAX_KNOWN))

    def need(self, expr: ast.Expr, scope: Scope, wanted: ast.Type) -> Kind:
        """Check that an expression has a type; return BROKEN after a report."""
        kind = self.expr(expr, scope, wanted)
        if kind.type is None or fits(kind.type, wanted):
            return kind
        help_ = ""
        if kind.type.kind == "rational" and wanted.kind == "int":
            help_ = "round it with `floor(...)` or `ceil(...)`, or divide with `div`"
        elif wanted.kind == "bool" and kind.type.kind in ("int", "rational"):
            help_ = "compare it with something: `... == 0`"
        elif wanted.kind in ("int", "rational") and kind.type.kind == "bool":
            help_ = "turn it into a number with `if ... then 1 else 0`"
        elif wanted.kind == "list" and wanted.item and fits(kind.type, wanted.item):
            help_ = "a list of one item is written in brackets: `[...]`"
        return self.error(
            "ATT0301", f"expected {describe(wanted)}, found {describe(kind.type)}", expr.span,
            label=f"this has type {show_type(kind.type)}", help=help_,
        )  # fmt: skip

    def known(self, expr: ast.Expr, kind: Kind, what: str, help: str = "") -> None:
        """Report an expression that must be a compile-time value and is not."""
        if kind.type is not None and kind.time != Time.COMPILE:
            self.error(
                "ATT0306", f"{what} must be known at compile time", expr.span,
                label="this depends on positions, lengths or heads",
                help=help or "use parameters and numbers only",
            )  # fmt: skip

    def expr(self, expr: ast.Expr, scope: Scope, expect: ast.Type | None = None) -> Kind:
        """Return the kind of an expression; ``expect`` only tells what a bare word may mean."""
        match expr:
            case ast.Number(value=value):
                return Kind(INT if value.denominator == 1 else RATIONAL, Time.COMPILE)
            case ast.Bool():
                return Kind(BOOL, Time.COMPILE)
            case ast.Name():
                return self.name(expr, scope, expect)
            case ast.ListOf():
                return self.list_of(expr, scope, expect)
            case ast.Index():
                return self.index(expr, scope)
            case ast.Call():
                return self.call(expr, scope)
            case ast.Unary(op="not", operand=operand):
                return self.need(operand, scope, BOOL)
            case ast.Unary(operand=operand):
                return self.need(operand, scope, RATIONAL)
            case ast.Binary():
                first, steps = left_spine(expr)
                left_expr, kind = first, self.expr(first, scope)
                for step in steps:
                    kind = self.binary(step, left_expr, kind, scope)
                    left_expr = step
                return kind
            case ast.Compare():
                return self.compare(expr, scope)
            case ast.BoolOp(parts=parts):
                return _latest(BOOL, [self.need(p, scope, BOOL) for p in parts])
            case ast.Quantifier():
                return self.quantifier(expr, scope)
            case ast.IfExpr():
                return self.if_expr(expr, scope, expect)
            case ast.Let(name=name, value=value, body=body):
                inner = {**scope, name: Entry(self.expr(value, scope))}
                return self.expr(body, inner, expect)

    def name(self, expr: ast.Name, scope: Scope, expect: ast.Type | None) -> Kind:
        entry = scope.get(expr.name)
        if entry is not None:
            if entry.param is not None:
                self.used.add(id(entry.param))
            return entry.kind
        choices: tuple[str, ...] = ()
        if expect is not None and expect.kind == "enum":
            if expr.name in expect.choices:
                return Kind(expect, Time.COMPILE)
            choices = expect.choices
        help_ = self.suggest(expr.name, chain(choices, scope))
        if expr.name == self.head_name:
            help_ = f"bind the head in the set: `{{ q -> k, {expr.name} : ... }}`"
        elif choices and not help_:
            help_ = f"write one of {', '.join(f'`{c}`' for c in choices)}"
        elif expr.name in BUILTINS:
            help_ = f"`{expr.name}` is a function: `{BUILTINS[expr.name].usage}`"
        return self.error(
            "ATT0201", f"there is nothing called `{expr.name}` here", expr.span,
            help=help_ or "declare a parameter, or use a coordinate or the length `n`",
        )  # fmt: skip

    def list_of(self, expr: ast.ListOf, scope: Scope, expect: ast.Type | None) -> Kind:
        item = expect.item if expect is not None and expect.kind == "list" else None
        kinds = [self.expr(part, scope, item) for part in expr.items]
        common: ast.Type | None = None
        for part, kind in zip(expr.items, kinds, strict=True):
            if kind.type is None:
                return BROKEN
            if kind.type.kind == "list":
                return self.error("ATT0301", "a list cannot hold lists", part.span)
            merged = kind.type if common is None else join(common, kind.type)
            if merged is None:
                assert common is not None
                return self.error(
                    "ATT0301",
                    f"a list holds one type: expected {describe(common)}, "
                    f"found {describe(kind.type)}",
                    part.span,
                )
            common = merged
        time = max((k.time for k in kinds), default=Time.COMPILE)
        return Kind(ast.Type(kind="list", item=common or item), time)

    def index(self, expr: ast.Index, scope: Scope) -> Kind:
        base = self.expr(expr.base, scope)
        index = self.need(expr.index, scope, INT)
        if base.type is None or index.type is None:
            return BROKEN
        if base.type.kind != "list":
            return self.error(
                "ATT0301", f"expected a list, found {describe(base.type)}", expr.base.span,
                help="only lists have items: declare it as `list[int]`",
            )  # fmt: skip
        if index.time == Time.RUN:
            return self.error(
                "ATT0306", "a list index must be known at compile time", expr.index.span,
                label="this depends on positions or lengths",
                help="index by the head, by a parameter, or by the variable of "
                "`exists i in 0..len(items) - 1 : ...`",
            )  # fmt: skip
        return Kind(base.type.item, max(base.time, index.time))

    def call(self, expr: ast.Call, scope: Scope) -> Kind:
        builtin = BUILTINS.get(expr.function)
        where = expr.name_span if expr.name_span.source else expr.span
        if builtin is None:
            for arg in expr.args:
                self.expr(arg, scope)
            return self.error(
                "ATT0208", f"there is no function `{expr.function}`", where,
                help=self.suggest(expr.function, BUILTINS)
                or f"the functions are {', '.join(f'`{b}`' for b in BUILTINS)}",
            )  # fmt: skip
        count = len(expr.args)
        if count < builtin.least or (builtin.most is not None and count > builtin.most):
            least = f"{builtin.least} argument{'s' * (builtin.least != 1)}"
            return self.error(
                "ATT0302",
                f"`{builtin.name}` takes {'at least ' * (builtin.most is None)}{least}, "
                f"found {count}",
                where,
                help=f"write `{builtin.usage}`",
            )
        match builtin.name:
            case "len":
                kind = self.expr(expr.args[0], scope)
                if kind.type is None or kind.type.kind == "list":
                    return Kind(kind.type and INT, Time.COMPILE)
                return self.error(
                    "ATT0301", f"expected a list, found {describe(kind.type)}", expr.args[0].span
                )
            case "min" | "max" if count == 1:
                return self.extreme_of_list(expr, scope)
            case "is_pow2":
                return _latest(BOOL, [self.need(expr.args[0], scope, INT)])
            case "bit_length":
                kind = self.need(expr.args[0], scope, INT)
                if kind.time == Time.RUN and kind.type is not None:
                    return self.error(
                        "ATT0306", "`bit_length` needs a value that is known at compile time",
                        expr.args[0].span,
                        help="for a position write `exists e in 0..40 : 2**e <= x and "
                        "x < 2**(e + 1) and ...`",
                    )  # fmt: skip
                return kind
        kinds = [self.need(arg, scope, RATIONAL) for arg in expr.args]
        if any(k.type is None for k in kinds):
            return BROKEN
        integral = builtin.name in ("floor", "ceil") or all(k.type == INT for k in kinds)
        return _latest(INT if integral else RATIONAL, kinds)

    def extreme_of_list(self, expr: ast.Call, scope: Scope) -> Kind:
        kind = self.expr(expr.args[0], scope)
        if kind.type is None:
            return BROKEN
        item = kind.type.item if kind.type.kind == "list" else None
        if item is not None and fits(item, RATIONAL):
            return Kind(item, kind.time)
        if kind.type.kind == "list":
            return self.error("ATT0301", "expected a list of numbers", expr.args[0].span)
        return self.error(
            "ATT0302", f"`{expr.function}` of one number is that number", expr.span,
            help=f"give two or more numbers, or a list: `{expr.function}(x, y)`",
        )  # fmt: skip

    def binary(self, expr: ast.Binary, left_expr: ast.Expr, left: Kind, scope: Scope) -> Kind:
        """Check ``left op right``; the left operand has been checked already."""
        right = self.expr(expr.right, scope)
        wanted = INT if expr.op in ("div", "mod", "**") else RATIONAL
        for part, kind in ((left_expr, left), (expr.right, right)):
            if kind.type is not None and not fits(kind.type, wanted):
                help_ = "round it with `floor(...)` or `ceil(...)`" if fits(kind.type, RATIONAL) \
                    else "turn it into a number with `if ... then 1 else 0`" \
                    if kind.type == BOOL else ""
                return self.error(
                    "ATT0301", f"`{expr.op}` needs {describe(wanted)}, found "
                    f"{describe(kind.type)}", part.span,
                    label=f"this has type {show_type(kind.type)}", help=help_,
                )  # fmt: skip
        if left.type is None or right.type is None:
            return BROKEN
        time = max(left.time, right.time)
        match expr.op:
            case "*" if left.time == right.time == Time.RUN:
                return self.error(
                    "ATT0304", "a product of two values that are known only at run time",
                    expr.span, label="this is not linear in positions and lengths",
                    help="multiply by a number, a parameter, or a variable of `exists` with "
                    "constant ends",
                )  # fmt: skip
            case "/" | "div" | "mod" if right.time == Time.RUN:
                word = "modulus" if expr.op == "mod" else "divisor"
                return self.error(
                    "ATT0304", f"the {word} of `{expr.op}` is known only at run time",
                    expr.right.span, label="this depends on positions or lengths",
                    help=f"use a number or a parameter as the {word}",
                )  # fmt: skip
            case "**" if time == Time.RUN:
                return self.error(
                    "ATT0304", "a power of a value that is known only at run time", expr.span,
                    label="this is not linear in positions and lengths",
                    help="for powers of two write `is_pow2(x)`, or `exists e in 0..40 : "
                    "x == 2**e`",
                )  # fmt: skip
        if expr.op == "/" or RATIONAL in (left.type, right.type):
            return Kind(RATIONAL, time)
        return Kind(INT, time)

    def compare(self, expr: ast.Compare, scope: Scope) -> Kind:
        kinds: list[Kind | None] = [
            None if self._bare(o, scope) else self.expr(o, scope) for o in expr.operands
        ]
        enum = next((e for k in kinds if k and (e := _enum(k.type)) is not None), None)
        done = [
            k or self.expr(o, scope, ast.Type(kind="list", item=enum)
                           if isinstance(o, ast.ListOf) else enum)
            for o, k in zip(expr.operands, kinds, strict=True)
        ]  # fmt: skip
        for i, op in enumerate(expr.ops):
            left, right = done[i].type, done[i + 1].type
            if left is None or right is None:
                continue
            where = expr.operands[i].span.to(expr.operands[i + 1].span)
            if op in ("in", "not in"):
                if right.kind != "list":
                    self.error(
                        "ATT0301", f"expected a list after `{op}`, found {describe(right)}",
                        expr.operands[i + 1].span, help="for one value write `==`",
                    )  # fmt: skip
                    return BROKEN
                if right.item is not None and join(left, right.item) is None:
                    return self._mismatch(op, left, right, where)
            elif op in ("==", "!="):
                if join(left, right) is None or left.kind == "list":
                    return self._mismatch(op, left, right, where)
            elif not (fits(left, RATIONAL) and fits(right, RATIONAL)):
                return self._mismatch(op, left, right, where)
        return _latest(BOOL, done)

    def _mismatch(self, op: str, left: ast.Type, right: ast.Type, span: Span) -> Kind:
        return self.error(
            "ATT0301", f"`{op}` cannot compare {describe(left)} with {describe(right)}", span,
            help="compare numbers with numbers" if op not in ("==", "!=") else "",
        )  # fmt: skip

    @staticmethod
    def _bare(expr: ast.Expr, scope: Scope) -> bool:
        """Return whether an operand is a word, or a list of words, not in scope: a choice."""
        match expr:
            case ast.Name(name=name):
                return name not in scope
            case ast.ListOf(items=items):
                return any(isinstance(i, ast.Name) and i.name not in scope for i in items)
            case _:
                return False

    def quantifier(self, expr: ast.Quantifier, scope: Scope) -> Kind:
        low, high = (self.need(e, scope, INT) for e in (expr.low, expr.high))
        ends = max(low.time, high.time)
        var = Kind(INT, Time.RUN if ends == Time.RUN else Time.EACH)
        body = self.need(expr.body, {**scope, expr.var: Entry(var)}, BOOL)
        if None in (low.type, high.type, body.type):
            return BROKEN
        time = max(ends, body.time)
        if time == Time.EACH and not any(e.kind.time == Time.EACH for e in scope.values()):
            time = Time.COMPILE  # only its own variable varies, and that is bound here
        return Kind(BOOL, time)

    def if_expr(self, expr: ast.IfExpr, scope: Scope, expect: ast.Type | None) -> Kind:
        condition = self.need(expr.condition, scope, BOOL)
        then, otherwise = (self.expr(e, scope, expect) for e in (expr.then, expr.otherwise))
        if then.type is None or otherwise.type is None or condition.type is None:
            return BROKEN
        common = join(then.type, otherwise.type)
        if common is None:
            return self.error(
                "ATT0301",
                f"`then` is {describe(then.type)} and `else` is {describe(otherwise.type)}",
                expr.span, help="both branches need one type",
            )  # fmt: skip
        if common.kind in ("list", "enum") and condition.time == Time.RUN:
            return self.error(
                "ATT0306", f"a condition that chooses {describe(common)} must be known at compile "
                "time", expr.condition.span,
            )  # fmt: skip
        return _latest(common, [condition, then, otherwise])


def _latest(type_: ast.Type, kinds: list[Kind]) -> Kind:
    """Return ``type_`` at the time the last of the parts is known, broken if any part is."""
    if any(k.type is None for k in kinds):
        return BROKEN
    return Kind(type_, max((k.time for k in kinds), default=Time.COMPILE))


def _enum(type_: ast.Type | None) -> ast.Type | None:
    if type_ is not None and type_.kind == "list":
        type_ = type_.item
    return type_ if type_ is not None and type_.kind == "enum" else None
