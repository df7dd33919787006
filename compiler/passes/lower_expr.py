"""Checked expression + values of its names -> the expressions of the IR, folded; exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.passes import lower_arithmetic as la
from attnc.compiler.passes import lower_call as lc
from attnc.compiler.passes import lower_loop as ll
from attnc.compiler.passes import lower_table as lt
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env, Fixed, free_vars, from_item, input_names
from attnc.compiler.passes.lower_value import (
    Array,
    Item,
    Logic,
    LowerError,
    Num,
    Position,
    Real,
)
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.source import Span

UNROLL_LIMIT = 4096
"""How many turns of a quantifier are written out."""
WORK_LIMIT = 100_000
"""How many AST nodes lowering visits, unrolled ones each time."""


class NeedsUnroll(Exception):
    """A use of ``var`` is not linear: its binder must write it out, one case per value."""

    def __init__(self, var: str) -> None:
        super().__init__(var)
        self.var = var


class Surroundings(Protocol):
    """What expressions use beside names: patterns, scores, functions, inputs, coordinates."""

    def keeps(self, pair: ast.PairIn, env: Env) -> Logic:
        """Return whether a pattern keeps a pair."""

    def score(self, name: str, call: ast.Call | None, env: Env, span: Span) -> Item | None:
        """Return the value of a score, None where none is called so."""

    def apply(self, call: ast.Call, env: Env) -> Item | None:
        """Return the value of an ``fn``, None where none is called so."""

    def coordinate(self, position: Position, axis: int, env: Env, span: Span) -> Num:
        """Return coordinate number ``axis`` of a position."""

    def holds(self, array: Array, part: Num, env: Env, span: Span) -> Logic:
        """Return whether the last axis of an input has an entry."""

    def unknown(self, names: frozenset[str], span: Span) -> LowerError | None:
        """Return the error for a size that has no value yet, None where none of them is one."""


@dataclass
class ExprLowering:
    """Lowers expressions; ``each`` lists the variables that can be written out, outermost first.

    ``notes`` are the places where a mask leaves integer linear arithmetic.
    """

    work: int = 0
    each: list[str] = field(default_factory=list)
    notes: list[Diagnostic] = field(default_factory=list)
    around: Surroundings | None = None

    def number(self, expr: ast.Expr, env: Env) -> Num:
        value = self.value(expr, env)
        assert isinstance(value, Num), expr
        return value

    def truth(self, expr: ast.Expr, env: Env) -> Logic:
        value = self.value(expr, env)
        assert isinstance(value, Logic), expr
        return value

    def value(self, expr: ast.Expr, env: Env) -> Item:
        """Return what an expression stands for."""
        self.spend(1, expr.span)
        if not env.scoring or "h" not in ex.free_vars(env.head.expr):
            return self._value(expr, env)
        low, high = env.ranges["h"]
        assert low == 0
        assert high is not None
        try:
            return lt.by_head(self._value(expr, env), high + 1, env.head, expr.span)
        except NeedsUnroll as need:
            if need.var != "h":
                raise
            parts = [self._value(expr, env.at_head(head)) for head in range(high + 1)]
            found = lt.per_head(parts, env.head, expr.span)
            if found is None:
                raise
            return found

    def _value(self, expr: ast.Expr, env: Env) -> Item:
        match expr:
            case ast.Number(value=value, text=text):
                whole = value.denominator == 1 and "." not in text
                return lv.const(int(value) if whole else value)
            case ast.Bool(value=value):
                return Logic(ex.Truth(value), 1)
            case ast.Name(name=name):
                return self.name(name, env, expr.span)
            case ast.ListOf(items=items):
                return tuple(self.value(i, env) for i in items)
            case ast.ListFor():
                turns = self.turns(expr.low, expr.high, env)
                return tuple(self.value(expr.body, env.bind(expr.var, lv.const(t))) for t in turns)
            case ast.Index():
                return self.item(expr, env)
            case ast.Attribute(base=base, axis=axis):
                position = env.names[base]
                assert isinstance(position, Position)
                assert position.stretch is not None
                number = position.stretch.axes.index(axis)
                return self.surroundings.coordinate(position, number, env, expr.span)
            case ast.Call():
                return self.call(expr, env)
            case ast.Unary(op="not", operand=operand):
                part = self.truth(operand, env)
                return lv.logic(ex.not_(part.expr), part.size, expr.span)
            case ast.Unary(operand=operand):
                return la.negated(self.value(operand, env), expr.span)
            case ast.Binary():
                return la.arithmetic(self, expr, env)
            case ast.Compare():
                return self.comparison(expr, env)
            case ast.BoolOp():
                return self.junction(expr, env)
            case ast.Quantifier():
                return ll.quantifier(self, expr, env)
            case ast.Reduce():
                return ll.reduce(self, expr, env)
            case ast.IfExpr():
                return self.if_expr(expr, env)
            case ast.Let(name=name, value=bound, body=body):
                return self.value(body, env.bind(name, self.value(bound, env)))
            case ast.PairIn():
                return self.surroundings.keeps(expr, env)

    @property
    def surroundings(self) -> Surroundings:
        assert self.around is not None, "set before anything that needs it is lowered"
        return self.around

    def spend(self, work: int, span: Span) -> None:
        """Count work; refuse a pattern that takes too much."""
        self.work += work
        if self.work > WORK_LIMIT:
            raise LowerError(
                "ATT0312", "the pattern is too large", span,
                label=f"written out it has more than {WORK_LIMIT} parts",
                help="use fewer or shorter quantifiers, or fewer nested references",
            )  # fmt: skip

    def note(self, what: str, span: Span) -> None:
        """Say, once for each place, that a mask leaves integer linear arithmetic."""
        text = "" if span.source is None else span.source.text[span.start : span.stop]
        shown = f"`{' '.join(text.split())}`" if text else what
        found = Diagnostic(
            code="ATT0410", severity="note", span=span, label=what,
            message=f"{shown} is outside integer linear arithmetic",
            help="the mask stays exact; its tiles are found at run time",
        )  # fmt: skip
        if all(d.span != span for d in self.notes):
            self.notes.append(found)

    # -------------------------------------------------------------------- compile-time values

    def compile_time(self, num: Num, span: Span) -> Fraction:
        """Return a number's value; ask its binder to write it out if it varies."""
        value = lv.known(num)
        if value is not None:
            return value
        raise self.not_known(num, span)

    def constant(self, item: Item, span: Span) -> Fixed:
        """Return the value of an item that must be known at compile time."""
        value = from_item(item)
        if value is None:
            raise self.not_known(item, span)
        return value

    def not_known(self, item: Item, span: Span) -> Exception:
        """Return what to raise for an item that is not known at compile time."""
        used = free_vars(item)
        for name in reversed(self.each):
            if name in used:
                return NeedsUnroll(name)
        missing = self.around.unknown(input_names(item), span) if self.around else None
        return missing or LowerError(
            "ATT0306", "a value here must be known at compile time", span,
            label="this depends on positions or lengths",
            help="use numbers, parameters, or variables of quantifiers with constant ends",
        )  # fmt: skip

    def write_out(self, *items: Item, but: str = "") -> None:
        """Ask for the variables of items, ``but`` one, to be written out, where they can be."""
        used = frozenset[str]().union(*map(free_vars, items)) - {but}
        for name in reversed(self.each):
            if name in used:
                raise NeedsUnroll(name)

    def turns(self, low: ast.Expr, high: ast.Expr, env: Env) -> range:
        """Return the values of a loop that is written out."""
        first = self.compile_time(self.number(low, env), low.span)
        last = self.compile_time(self.number(high, env), high.span)
        if last - first >= UNROLL_LIMIT:
            ll.too_long(int(last - first) + 1, UNROLL_LIMIT, low.span.to(high.span))
        return range(int(first), int(last) + 1)

    @contextmanager
    def written_out(self, name: str) -> Iterator[None]:
        """Let ``name`` be a variable that its binder can write out."""
        self.each.append(name)
        try:
            yield
        finally:
            self.each.pop()

    # ------------------------------------------------------------------------- names and lists

    def name(self, name: str, env: Env, span: Span) -> Item:
        match env.names.get(name):
            case Position(number=number):
                return number
            case Array(dims=()) as scalar:
                return element(scalar, span)
            case None:
                score = self.surroundings.score(name, None, env, span) if env.scoring else None
                return name if score is None else score  # else a choice: the name is checked
            case item:
                return item

    def item(self, expr: ast.Index, env: Env) -> Item:
        if isinstance(expr.base, ast.Name):
            position = env.names.get(expr.base.name)
            if isinstance(position, Position):
                axis = self.compile_time(self.number(expr.index, env), expr.index.span)
                return self.surroundings.coordinate(position, int(axis), env, expr.index.span)
        items = self.value(expr.base, env)
        index = self.number(expr.index, env)
        if isinstance(items, Array):
            if not env.scoring:
                # A read may depend on the head: kernels know it, and no quantifier binds it.
                self.write_out(*(Num(i, 1, 1, 1) for i in items.index), index, but="h")
            lv.fits_machine((index,), expr.index.span)
            deeper = Array(
                items.name, items.kind, items.dims, (*items.index, index.expr),
                items.size + index.size,
            )  # fmt: skip
            done = len(deeper.index) == len(deeper.dims)
            return element(deeper, expr.span) if done else deeper
        assert isinstance(items, tuple)
        place = lv.known(index)
        if place is None:
            self.write_out(index)
            return lt.lookup(items, index, env.ranges, expr.span)
        if not 0 <= place < len(items):
            count = f"{len(items)} item{'s' * (len(items) != 1)}"
            last = f"; the last is item {len(items) - 1}" if items else ""
            raise LowerError(
                "ATT0308", f"there is no item {place} in a list of {count}", expr.index.span,
                label=f"this is {place}", help=f"items count from 0{last}",
            )  # fmt: skip
        return items[int(place)]

    def call(self, expr: ast.Call, env: Env) -> Item:
        if lc.is_builtin(expr.function):
            return lc.builtin(self, expr, [self.value(a, env) for a in expr.args], env)
        found = self.surroundings.apply(expr, env)
        if found is None:
            found = self.surroundings.score(expr.function, expr, env, expr.span)
        assert found is not None, "checked: the function is known"
        return found

    # ------------------------------------------------------------------------------ conditions

    def comparison(self, expr: ast.Compare, env: Env) -> Logic:
        values = [self.value(o, env) for o in expr.operands]
        parts = []
        for i, op in enumerate(expr.ops):
            span = expr.operands[i].span.to(expr.operands[i + 1].span)
            parts.append(self.pair(op, values[i], values[i + 1], env, span))
        return parts[0] if len(parts) == 1 else lv.all_of(parts, expr.span)

    def pair(self, op: str, left: Item, right: Item, env: Env, span: Span) -> Logic:
        match op:
            case "in" | "not in":
                found = self.member(left, right, env, span)
                return found if op == "in" else Logic(ex.not_(found.expr), found.size)
            case "!=" if not isinstance(left, Num | Real):
                equal = self.pair("==", left, right, env, span)
                return Logic(ex.not_(equal.expr), equal.size)
        match left, right:
            case str(), str():
                return Logic(ex.Truth(left == right), 1)
            case Logic(a, one), Logic(b, other):
                both, none = ex.and_(a, b), ex.and_(ex.not_(a), ex.not_(b))
                return lv.logic(ex.or_(both, none), 2 * (one + other), span)
            case Num(), Num():
                assert op in ("<=", "<", "==", "!=", ">", ">=")
                return lv.compare(op, left, right, span)  # type: ignore[arg-type]
            case (Num() | Real()), (Num() | Real()):
                return la.compare_reals(op, left, right, env.ranges, span)
        raise AssertionError((op, left, right))

    def member(self, left: Item, right: Item, env: Env, span: Span) -> Logic:
        """Return whether a list, or the last axis of an input, has an item."""
        if isinstance(right, Array):
            assert isinstance(left, Num)
            if not env.scoring:
                self.write_out(left, *(Num(i, 1, 1, 1) for i in right.index), but="h")
            return self.surroundings.holds(right, left, env, span)
        assert isinstance(right, tuple)
        return lv.member(left, right, span) or lv.any_of(
            [self.pair("==", left, item, env, span) for item in right], span
        )

    def junction(self, expr: ast.BoolOp, env: Env) -> Logic:
        """Lower ``and``/``or`` left to right; parts after a deciding constant are not reached."""
        deciding = ex.FALSE if expr.op == "and" else ex.TRUE
        parts: list[Logic] = []
        for part in expr.parts:
            value = self.truth(part, env)
            if value.expr == deciding:
                return value
            parts.append(value)
        return (lv.all_of if expr.op == "and" else lv.any_of)(parts, expr.span)

    def if_expr(self, expr: ast.IfExpr, env: Env) -> Item:
        condition = self.truth(expr.condition, env)
        if isinstance(condition.expr, ex.Truth):
            return self.value(expr.then if condition.expr.value else expr.otherwise, env)
        then, otherwise = self.value(expr.then, env), self.value(expr.otherwise, env)
        match then, otherwise:
            case (Num() | Real()), (Num() | Real()):
                return lt.choose(condition, then, otherwise, expr.span)
            case Logic(a, one), Logic(b, other):
                c = condition.expr
                size = 2 * condition.size + one + other
                chosen = ex.or_(ex.and_(c, a), ex.and_(ex.not_(c), b))
                return lv.logic(chosen, size, expr.span)
        # a list or a choice that differs per head or turn
        raise self.not_known(condition, expr.condition.span)


def element(array: Array, span: Span) -> Item:
    """Return what an input has at its indices."""
    read = ex.Read(array.name, array.index)
    match array.kind:
        case "int":
            return lv.checked(Num(read, 1, array.size, lv.POSITION_BOUND), span)
        case "bool":
            return lv.logic(ex.compare("!=", read, ex.ZERO), array.size, span)
        case "real":
            return lv.real(sc.RealRead(array.name, array.index), array.size, span)
