"""Checked expression + values of its names -> ``expr.py``, folded; exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

from attnc.compiler.binding import Value
from attnc.compiler.ir import expr as ex
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_value import Item, Logic, LowerError, Num
from attnc.dsl import nodes as ast
from attnc.dsl.check_expr import left_spine
from attnc.dsl.source import Span

Env = Mapping[str, Item]
UNROLL_LIMIT = 4096
"""How many turns of a quantifier are written out."""
RANGE_LIMIT = 1 << 16
"""How many values a quantifier with constant ends may range over."""
WORK_LIMIT = 100_000
"""How many AST nodes lowering visits, unrolled ones each time."""
RESERVED = frozenset({"q", "k", "h", "n", "nq", "nk", "qb", "kb", "NQ", "NK"})


class NeedsUnroll(Exception):
    """A use of ``var`` is not linear: its binder must write it out, one case per value."""

    def __init__(self, var: str) -> None:
        super().__init__(var)
        self.var = var


@dataclass
class ExprLowering:
    """Lowers expressions; ``each`` lists the variables that can be written out, outermost first."""

    work: int = 0
    each: list[str] = field(default_factory=list)

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
        match expr:
            case ast.Number(value=value):
                return lv.const(value)
            case ast.Bool(value=value):
                return Logic(ex.Truth(value), 1)
            case ast.Name(name=name):
                return env.get(name, name)  # a checked name that is not in scope is a choice
            case ast.ListOf(items=items):
                return tuple(self.value(i, env) for i in items)
            case ast.Index():
                return self.item(expr, env)
            case ast.Call():
                return self.call(expr, env)
            case ast.Unary(op="not", operand=operand):
                part = self.truth(operand, env)
                return lv.logic(ex.not_(part.expr), part.size, expr.span)
            case ast.Unary(operand=operand):
                return lv.times(Fraction(-1), self.number(operand, env), expr.span)
            case ast.Binary():
                return self.arithmetic(expr, env)
            case ast.Compare():
                return self.comparison(expr, env)
            case ast.BoolOp():
                return self.junction(expr, env)
            case ast.Quantifier():
                return self.quantifier(expr, env)
            case ast.IfExpr():
                return self.if_expr(expr, env)
            case ast.Let(name=name, value=bound, body=body):
                return self.value(body, {**env, name: self.value(bound, env)})

    def spend(self, work: int, span: Span) -> None:
        """Count work; refuse a pattern that takes too much."""
        self.work += work
        if self.work > WORK_LIMIT:
            raise LowerError(
                "ATT0312", "the pattern is too large", span,
                label=f"written out it has more than {WORK_LIMIT} parts",
                help="use fewer or shorter quantifiers, or fewer nested references",
            )  # fmt: skip

    def compile_time(self, num: Num, span: Span) -> Fraction:
        """Return a number's value; ask its binder to write it out if it varies."""
        value = lv.known(num)
        if value is not None:
            return value
        used = ex.free_vars(num.expr)
        for name in reversed(self.each):
            if name in used:
                raise NeedsUnroll(name)
        raise LowerError(
            "ATT0306", "a value here must be known at compile time", span,
            label="this depends on positions or lengths",
            help="use numbers, parameters, or variables of quantifiers with constant ends",
        )  # fmt: skip

    def arithmetic(self, expr: ast.Binary, env: Env) -> Num:
        first, steps = left_spine(expr)
        sum_ = [self.number(first, env)]
        for step in steps:
            right = self.number(step.right, env)
            match step.op:
                case "+":
                    sum_.append(right)
                case "-":
                    sum_.append(lv.times(Fraction(-1), right, step.span))
                case _:
                    sum_ = [self.product(step, lv.total(sum_, step.span), right)]
        return lv.total(sum_, expr.span) if len(sum_) > 1 else sum_[0]

    def product(self, step: ast.Binary, left: Num, right: Num) -> Num:
        """Return ``left op right`` for the operations that need a compile-time operand."""
        span = step.span
        match step.op:
            case "*":
                for one, other in ((left, right), (right, left)):
                    factor = lv.known(one)
                    if factor is not None:
                        return lv.times(factor, other, span)
                return lv.times(self.compile_time(self._finite(left, right), span), right, span)
            case "**":
                return self.power(step, left, right)
            case "/":
                divisor = self.compile_time(right, step.right.span)
                self._nonzero(divisor, step)
                return lv.times(1 / divisor, left, span)
            case "div":
                divisor = self.compile_time(right, step.right.span)
                self._nonzero(divisor, step)
                return lv.floor_div(left, int(divisor), span)
        modulus = self.compile_time(right, step.right.span)
        if modulus <= 0:
            raise LowerError(
                "ATT0307", f"modulus is {modulus}", step.right.span,
                label="a modulus is 1 or more",
                help="`x mod m` lies in 0..m - 1; give the parameter a range: `in 1..`",
            )  # fmt: skip
        return lv.modulo(left, int(modulus), span)

    def _finite(self, left: Num, right: Num) -> Num:
        """Return the factor all of whose variables can be written out."""
        return left if ex.free_vars(left.expr) <= set(self.each) else right

    @staticmethod
    def _nonzero(divisor: Fraction, step: ast.Binary) -> None:
        if divisor == 0:
            raise LowerError(
                "ATT0307", "division by zero", step.right.span, label="this is 0",
                help="give the parameter a range: `in 1..`",
            )  # fmt: skip

    def power(self, step: ast.Binary, left: Num, right: Num) -> Num:
        exponent = self.compile_time(right, step.right.span)
        base = self.compile_time(left, step.left.span)
        if exponent < 0:
            raise LowerError(
                "ATT0307", f"exponent is {exponent}", step.right.span,
                label="an exponent is 0 or more", help="write the quotient: `1 / 2**e`",
            )  # fmt: skip
        if abs(base) > 1 and int(base).bit_length() * exponent > 2 * lv.CONSTANT_BITS:
            raise LowerError(
                "ATT0311", f"the power has more than {lv.CONSTANT_BITS} binary digits", step.span,
                help="no position or length is this large",
            )  # fmt: skip
        # 0, 1 and -1 may have any exponent; its parity alone matters
        small = int(exponent) if abs(base) > 1 else min(int(exponent), 2 - int(exponent) % 2)
        return lv.const(int(base) ** small)

    def item(self, expr: ast.Index, env: Env) -> Item:
        items = self.value(expr.base, env)
        assert isinstance(items, tuple)
        index = self.compile_time(self.number(expr.index, env), expr.index.span)
        if not 0 <= index < len(items):
            count = f"{len(items)} item{'s' * (len(items) != 1)}"
            last = f"; the last is item {len(items) - 1}" if items else ""
            raise LowerError(
                "ATT0308", f"there is no item {index} in a list of {count}", expr.index.span,
                label=f"this is {index}", help=f"items count from 0{last}",
            )  # fmt: skip
        return items[int(index)]

    def call(self, expr: ast.Call, env: Env) -> Item:
        args = [self.value(a, env) for a in expr.args]
        if expr.function == "len":
            assert isinstance(args[0], tuple)
            return lv.const(len(args[0]))
        if isinstance(args[0], tuple):
            if not args[0]:
                raise LowerError(
                    "ATT0308", f"`{expr.function}` of an empty list", expr.args[0].span,
                    help="put a number beside it: an empty list has no least or greatest item",
                )  # fmt: skip
            args = list(args[0])
        nums = [a for a in args if isinstance(a, Num)]
        match expr.function:
            case "abs":
                return lv.absolute(nums[0], expr.span)
            case "min" | "max":
                return lv.extreme(expr.function, nums, expr.span)
            case "clamp":
                raised = lv.extreme("max", nums[:2], expr.span)
                return lv.extreme("min", (raised, nums[2]), expr.span)
            case "floor":
                return lv.floor(nums[0], expr.span)
            case "ceil":
                return lv.ceil(nums[0], expr.span)
            case "is_pow2":
                test = ex.is_pow2(nums[0].expr)
                if not isinstance(test, ex.Truth):
                    lv.fits_machine(nums, expr.span)
                return lv.logic(test, nums[0].size + 1, expr.span)
            case "bit_length":
                value = self.compile_time(nums[0], expr.args[0].span)
                if value < 0:
                    raise LowerError(
                        "ATT0307", f"`bit_length` of {value}", expr.args[0].span,
                        help="only 0 and positive numbers have a bit length",
                    )  # fmt: skip
                return lv.const(int(value).bit_length())
        raise AssertionError(expr.function)

    def comparison(self, expr: ast.Compare, env: Env) -> Logic:
        values = [self.value(o, env) for o in expr.operands]
        parts = []
        for i, op in enumerate(expr.ops):
            span = expr.operands[i].span.to(expr.operands[i + 1].span)
            parts.append(self.pair(op, values[i], values[i + 1], span))
        return parts[0] if len(parts) == 1 else lv.all_of(parts, expr.span)

    def pair(self, op: str, left: Item, right: Item, span: Span) -> Logic:
        match op:
            case "in" | "not in":
                assert isinstance(right, tuple)
                found = lv.member(left, right, span) or lv.any_of(
                    [self.pair("==", left, item, span) for item in right], span
                )
                return found if op == "in" else Logic(ex.not_(found.expr), found.size)
            case "!=" if not isinstance(left, Num):
                equal = self.pair("==", left, right, span)
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
        raise AssertionError((op, left, right))

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
            case Num(), Num():
                return lv.choose(condition, then, otherwise, expr.span)
            case Logic(a, one), Logic(b, other):
                c = condition.expr
                size = 2 * condition.size + one + other
                chosen = ex.or_(ex.and_(c, a), ex.and_(ex.not_(c), b))
                return lv.logic(chosen, size, expr.span)
        # a list or a choice that differs per head or turn
        for name in reversed(self.each):
            if name in ex.free_vars(condition.expr):
                raise NeedsUnroll(name)
        raise AssertionError(expr)

    @contextmanager
    def written_out(self, name: str) -> Iterator[None]:
        """Let ``name`` be a variable that its binder can write out."""
        self.each.append(name)
        try:
            yield
        finally:
            self.each.pop()

    def quantifier(self, expr: ast.Quantifier, env: Env) -> Logic:
        """Keep a linear body under ``Exists``; write any other out over its constant range."""
        low, high = self.number(expr.low, env), self.number(expr.high, env)
        first, last = lv.known(low), lv.known(high)
        exists = expr.op == "exists"
        ends = expr.low.span.to(expr.high.span)
        constant = first is not None and last is not None
        if first is not None and last is not None:
            if first > last:
                return Logic(ex.Truth(not exists), 1)
            if last - first >= RANGE_LIMIT:
                self._too_long(int(last - first) + 1, RANGE_LIMIT, ends)
        lv.fits_machine((low, high), ends)
        name = self._fresh(expr.var, env)
        symbolic = lv.var(name, max(low.bound, high.bound))
        try:
            with self.written_out(name):
                body = self.truth(expr.body, {**env, expr.var: symbolic})
        except NeedsUnroll as need:
            if need.var != name:
                raise
            if not constant:
                for end, part in ((low, expr.low), (high, expr.high)):
                    self.compile_time(end, part.span)
            assert first is not None
            assert last is not None
            return self.unroll(expr, range(int(first), int(last) + 1), env)
        inner = body.expr if exists else ex.not_(body.expr)
        size = body.size + low.size + high.size + 1
        if name not in ex.free_vars(inner):
            some = ex.compare("<=", low.expr, high.expr)
            found: ex.BoolExpr = ex.and_(some, inner)
        else:
            found = ex.Exists(name, low.expr, high.expr, inner)
        return lv.logic(found if exists else ex.not_(found), size, expr.span)

    def unroll(self, expr: ast.Quantifier, turns: Sequence[int], env: Env) -> Logic:
        if len(turns) > UNROLL_LIMIT:
            self._too_long(len(turns), UNROLL_LIMIT, expr.low.span.to(expr.high.span))
        exists = expr.op == "exists"
        parts = []
        for turn in turns:
            part = self.truth(expr.body, {**env, expr.var: lv.const(turn)})
            if part.expr == ex.Truth(exists):
                return part
            parts.append(part)
        return (lv.any_of if exists else lv.all_of)(parts, expr.span)

    @staticmethod
    def _too_long(turns: int, limit: int, span: Span) -> None:
        why = "" if limit == RANGE_LIMIT else " because its variable is not used linearly"
        raise LowerError(
            "ATT0310", "the range of a quantifier is too long", span,
            label=f"{turns} values, at most {limit} are possible{why}",
            help="say it without the quantifier, with `div` and `mod`",
        )  # fmt: skip

    @staticmethod
    def _fresh(wanted: str, env: Env) -> str:
        """Return a name for a bound variable that no other variable in reach has."""
        taken = set(RESERVED)
        for value in env.values():
            if isinstance(value, Num):
                taken |= ex.free_vars(value.expr)
            elif isinstance(value, Logic):
                taken |= ex.free_vars(value.expr)
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}_{count}", count + 1
        return name


def to_item(value: Value) -> Item:
    """Return a parameter's value as lowering holds it."""
    match value:
        case bool():
            return Logic(ex.Truth(value), 1)
        case int() | Fraction():
            return lv.const(value)
        case tuple():
            return tuple(to_item(v) for v in value)
        case _:
            return value


def from_item(item: Item) -> Value:
    """Return the value of a compile-time expression that was lowered."""
    match item:
        case Num():
            value = lv.known(item)
            assert value is not None
            return int(value) if value.denominator == 1 else value
        case Logic(ex.Truth(truth)):
            return truth
        case tuple():
            return tuple(from_item(i) for i in item)
        case str():
            return item
    raise AssertionError(item)
