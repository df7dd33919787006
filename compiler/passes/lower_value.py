"""The values lowering computes with: exact rationals and reals over the IR, sized and bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.source import Span

if TYPE_CHECKING:
    from attnc.compiler.passes.lower_space import Stretch
    from attnc.dsl.resolve import Definition

POSITION_BOUND = 1 << 31
"""Positions and lengths stay below this; every intermediate result must then fit 64 bits."""
MACHINE_BOUND = (1 << 63) - 1
CONSTANT_BITS = 4096
"""How many binary digits a compile-time number may have."""
MAX_SIZE = 50_000
"""How many nodes one lowered expression may have when it is written out as a tree."""


class LowerError(Exception):
    """One diagnostic on its way to the set whose lowering it stopped."""

    def __init__(
        self, code: str, message: str, span: Span, *, label: str = "", help: str = ""
    ) -> None:
        self.diagnostic = Diagnostic(
            code=code, message=message, span=span, label=label, help=help
        )
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Num:
    """``expr / den`` with ``den >= 1`` and ``|expr| <= bound`` for all legal positions.

    ``whole``: its type is int; a rational may still have an integer's value.
    """

    expr: ex.IntExpr
    den: int
    size: int
    bound: int
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Logic:
    """A truth value."""

    expr: ex.BoolExpr
    size: int


@dataclass(frozen=True, slots=True)
class Real:
    """A real number."""

    expr: sc.RealExpr
    size: int


@dataclass(frozen=True, slots=True)
class Position:
    """A query or a key: its number, and the stretch of tokens that gives it coordinates."""

    number: Num
    stretch: Stretch | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """An input with the indices given so far; ``dims`` are all its sides."""

    name: str
    kind: Literal["int", "bool", "real"]
    dims: tuple[ex.IntExpr | None, ...]
    index: tuple[ex.IntExpr, ...] = ()
    size: int = 1


@dataclass(frozen=True, slots=True)
class Chosen:
    """A pattern with its arguments: the value of a parameter of type ``pattern``."""

    definition: Definition
    given: tuple[tuple[str, Item], ...]


Item: TypeAlias = "Num | Logic | Real | Position | Array | Chosen | str | tuple[Item, ...]"
"""What a name or an expression stands for; a str is an enum choice, a tuple a list."""


def const(value: int | Fraction) -> Num:
    """Return a compile-time number; a Fraction is of type rational."""
    exact = Fraction(value)
    top, whole = exact.numerator, isinstance(value, int)
    return Num(ex.Const(top), exact.denominator, 1, abs(top), whole)


def var(name: str, bound: int) -> Num:
    """Return a variable whose absolute value is at most ``bound``."""
    return Num(ex.Var(name), 1, 1, bound)


MINUS_ONE = Fraction(-1)


def checked(num: Num, span: Span) -> Num:
    """Return a number, or refuse one that is too large to write out."""
    return _make(num.expr, num.den, num.size, num.bound, span, num.whole)


def fitted(item: Item, kind: str, span: Span) -> Item:
    """Return an argument in the form its parameter keeps it: a number given for a real widens."""
    from attnc.compiler.passes.lower_table import to_real

    if kind == "real" and isinstance(item, Num):
        return to_real(item, span)
    if kind == "rational" and isinstance(item, Num):
        return replace(item, whole=False)
    return item


def read(name: str) -> Num:
    """Return a number that is known at the call: an extent, or the side of an input."""
    return Num(ex.Read(name), 1, 1, POSITION_BOUND)


def known(num: Num) -> Fraction | None:
    """Return the value of a compile-time number, or None where it depends on positions."""
    return Fraction(num.expr.value, num.den) if isinstance(num.expr, ex.Const) else None


def _make(
    expr: ex.IntExpr, den: int, size: int, bound: int, span: Span, whole: bool = True
) -> Num:
    """Return a number in lowest terms; refuse what no machine could evaluate."""
    if size > MAX_SIZE:
        raise LowerError(
            "ATT0312", "the expression is too large", span,
            label=f"written out it has more than {MAX_SIZE} parts",
            help="a `let` that is used twice counts twice; simplify the formula",
        )  # fmt: skip
    if bound.bit_length() > CONSTANT_BITS or den.bit_length() > CONSTANT_BITS:
        raise LowerError(
            "ATT0311", f"the number has more than {CONSTANT_BITS} binary digits", span,
            help="no position or length is this large",
        )  # fmt: skip
    if den > 1:
        common = math.gcd(den, _content(expr))
        if common > 1:
            # bound may be loose, so round it up
            expr, den, bound = _divide(expr, common), den // common, -(-bound // common)
    if isinstance(expr, ex.Const):
        return Num(expr, den, 1, abs(expr.value), whole)
    return Num(expr, den, size, bound, whole)


def _content(expr: ex.IntExpr) -> int:
    """Return the greatest common divisor of the coefficients of a linear form."""
    match expr:
        case ex.Const(value):
            return abs(value)
        case ex.Scale(factor, _):
            return abs(factor)
        case ex.Add(parts):
            return math.gcd(*map(_content, parts))
        case _:
            return 1


def _divide(expr: ex.IntExpr, divisor: int) -> ex.IntExpr:
    """Divide a linear form by a divisor of its content."""
    match expr:
        case ex.Const(value):
            return ex.Const(value // divisor)
        case ex.Scale(factor, part):
            return ex.scale(factor // divisor, part)
        case ex.Add(parts):
            return ex.add(*(_divide(p, divisor) for p in parts))
    raise AssertionError(expr)


def _common(nums: Sequence[Num], span: Span) -> tuple[list[Num], int]:
    """Return the numbers over one denominator, and that denominator."""
    den = math.lcm(*(n.den for n in nums))
    if den.bit_length() > CONSTANT_BITS:
        _make(ex.ONE, den, 1, 1, span)
    return [
        n if n.den == den
        else Num(ex.scale(den // n.den, n.expr), den, n.size, n.bound * (den // n.den), n.whole)
        for n in nums
    ], den


def total(nums: Sequence[Num], span: Span) -> Num:
    """Return the sum."""
    level, den = _common(nums, span)
    size, bound = sum(n.size for n in level), sum(n.bound for n in level)
    if size > MAX_SIZE:
        return _make(ex.ZERO, den, size, bound, span)
    whole = all(n.whole for n in nums)
    return _make(ex.add(*(n.expr for n in level)), den, size, bound, span, whole)


def times(factor: Fraction, num: Num, span: Span, whole: bool = True) -> Num:
    """Return ``factor * num``; ``whole``: the factor is of type int."""
    bound = num.bound * abs(factor.numerator)
    if bound.bit_length() > CONSTANT_BITS:
        return _make(ex.ZERO, 1, 1, bound, span)
    expr = ex.scale(factor.numerator, num.expr)
    den = num.den * factor.denominator
    return _make(expr, den, num.size + 1, bound, span, whole and num.whole)


def floor(num: Num, span: Span) -> Num:
    """Return the floor."""
    if num.den == 1:
        return replace(num, whole=True)
    return floor_div(Num(num.expr, 1, num.size, num.bound), num.den, span)


def ceil(num: Num, span: Span) -> Num:
    """Return the ceiling."""
    raised = total((num, const(Fraction(num.den - 1, num.den))), span)
    return floor(raised, span)


def floor_div(num: Num, divisor: int, span: Span) -> Num:
    """Return ``num div divisor`` for an integer and a divisor that is not 0."""
    bound = num.bound
    match num.expr:
        # floor((floor(x / a) + c) / b) == floor((x + a c) / (a b)): a chain stays one node deep
        case ex.FloorDiv(part, inner) if divisor > 0:
            expr = ex.floordiv(part, inner * divisor)
        case ex.Add((ex.FloorDiv(part, inner), ex.Const(value))) if divisor > 0:
            expr = ex.floordiv(ex.add(part, ex.Const(inner * value)), inner * divisor)
            bound = (bound + abs(value) + 1) * inner
        case _:
            expr = ex.floordiv(num.expr, divisor)
    _fits(replace(num, bound=bound), expr, span)
    return _make(expr, 1, num.size + 1, num.bound // abs(divisor) + 1, span)


def modulo(num: Num, divisor: int, span: Span) -> Num:
    """Return ``num mod divisor`` for an integer and ``divisor > 0``."""
    expr = ex.mod(num.expr, divisor)
    _fits(num, expr, span)
    return _make(expr, 1, num.size + 1, divisor - 1, span)


def _fits(num: Num, result: ex.IntExpr, span: Span) -> None:
    if not isinstance(result, ex.Const):
        fits_machine([num], span)


def fits_machine(nums: Iterable[Num], span: Span) -> None:
    """Refuse numbers that positions below 2**31 can push past 64 bits."""
    if sum(n.bound for n in nums) > MACHINE_BOUND:
        raise LowerError(
            "ATT0311", "the numbers here can exceed 64 bits", span,
            label="with positions up to 2**31",
            help="use smaller constants; no two positions are 2**31 apart",
        )  # fmt: skip


def multiply(left: Num, right: Num, span: Span) -> Num:
    """Return the product of two run-time numbers: outside integer linear arithmetic."""
    size, bound = left.size + right.size + 1, left.bound * right.bound
    expr = ex.mul(left.expr, right.expr) if size <= MAX_SIZE else ex.ZERO
    return _make(expr, left.den * right.den, size, bound, span, left.whole and right.whole)


def quotient(num: Num, by: Num, span: Span) -> Num:
    """Return ``num div by`` for a run-time divisor."""
    fits_machine((num, by), span)
    return _make(ex.quot(num.expr, by.expr), 1, num.size + by.size + 1, num.bound + 1, span)


def remainder(num: Num, by: Num, span: Span) -> Num:
    """Return ``num mod by`` for a run-time divisor."""
    fits_machine((num, by), span)
    return _make(ex.rem(num.expr, by.expr), 1, num.size + by.size + 1, by.bound, span)


def extreme(kind: str, nums: Sequence[Num], span: Span) -> Num:
    """Return the least (``kind`` "min") or greatest ("max") of the numbers."""
    level, den = _common(nums, span)
    size = 1 + sum(n.size for n in level)
    pick = ex.minimum if kind == "min" else ex.maximum
    expr = pick(*(n.expr for n in level)) if size <= MAX_SIZE else ex.ZERO
    whole = all(n.whole for n in nums)
    return _make(expr, den, size, max(n.bound for n in level), span, whole)


def absolute(num: Num, span: Span) -> Num:
    """Return ``|num|``."""
    return _make(ex.absolute(num.expr), num.den, num.size + 1, num.bound, span, num.whole)


def choose(condition: Logic, then: Num, otherwise: Num, span: Span) -> Num:
    """Return ``if condition then ... else ...``."""
    (a, b), den = _common((then, otherwise), span)
    size = 1 + condition.size + a.size + b.size
    expr = ex.select(condition.expr, a.expr, b.expr) if size <= MAX_SIZE else ex.ZERO
    return _make(expr, den, size, max(a.bound, b.bound), span, then.whole and otherwise.whole)


def compare(op: ex.CompareOp, left: Num, right: Num, span: Span) -> Logic:
    """Return ``left op right``, multiplied out to integers."""
    (a, b), _ = _common((left, right), span)
    result = ex.compare(op, a.expr, b.expr)
    if not isinstance(result, ex.Truth):
        fits_machine((a, b), span)
    return logic(result, a.size + b.size, span)


def logic(expr: ex.BoolExpr, size: int, span: Span) -> Logic:
    """Return a truth value, or refuse one that is too large to write out."""
    if isinstance(expr, ex.Truth):
        return Logic(expr, 1)
    _make(ex.ZERO, 1, size, 0, span)
    return Logic(expr, size)


def real(expr: sc.RealExpr, size: int, span: Span) -> Real:
    """Return a real number, or refuse one that is too large to write out."""
    if isinstance(expr, sc.RealConst):
        return Real(expr, 1)
    _make(ex.ZERO, 1, size, 0, span)
    return Real(expr, size)


def any_of(parts: Sequence[Logic], span: Span) -> Logic:
    """Return the disjunction; tests of one value against constants gather into one ``in``."""
    size = sum(p.size for p in parts)
    logic(ex.Compare("<=", ex.ZERO, ex.ZERO), size, span)
    return logic(gather(ex.or_(*(p.expr for p in parts))), size, span)


def all_of(parts: Sequence[Logic], span: Span) -> Logic:
    """Return the conjunction."""
    size = sum(p.size for p in parts)
    logic(ex.Compare("<=", ex.ZERO, ex.ZERO), size, span)
    return logic(ex.and_(*(p.expr for p in parts)), size, span)


def member(left: Item, items: tuple[Item, ...], span: Span) -> Logic | None:
    """Return ``left in items`` where all items are compile-time numbers, else None."""
    if not isinstance(left, Num):
        return None
    values = [known(i) if isinstance(i, Num) else None for i in items]
    scaled = [v * left.den for v in values if v is not None]
    if len(scaled) < len(items):
        return None
    whole = [v.numerator for v in scaled if v.denominator == 1]
    result = ex.member(left.expr, whole)
    if not isinstance(result, ex.Truth):
        fits_machine([left], span)
        fits_machine([const(max(map(abs, whole)))], span)
    return logic(result, left.size + len(whole), span)


POWERS = tuple(1 << e for e in range(ex.POW2_MAX_EXPONENT + 1))


def gather(expr: ex.BoolExpr) -> ex.BoolExpr:
    """Write ``x == 1 or x == 2 or x == 4`` as ``x in [1, 2, 4]``, all the powers as is_pow2."""
    if not isinstance(expr, ex.Or):
        return expr
    tested = [_tested(part) for part in expr.parts]
    listed: dict[ex.IntExpr, set[int]] = {}
    for test in tested:
        if test is not None:
            listed.setdefault(test[0], set()).update(test[1])
    many = {left for left, values in listed.items() if len(values) > 2}
    if not many:
        return expr
    parts: list[ex.BoolExpr] = []
    for part, test in zip(expr.parts, tested, strict=True):
        if test is None or test[0] not in many:
            parts.append(part)
        elif test[0] in listed:
            parts.append(_member(test[0], listed.pop(test[0])))
    return ex.or_(*parts)


def _tested(part: ex.BoolExpr) -> tuple[ex.IntExpr, tuple[int, ...]] | None:
    """Read ``q == k + 4`` as "``q - k`` is one of 4"; None where the part is no such test."""
    match part:
        case ex.Member(left, values):
            return left, values
        case ex.Compare("==", left, ex.Const(value)):
            return left, (value,)
        case ex.Compare("==", left, right):
            match ex.sub(left, right):
                case ex.Add((*terms, ex.Const(value))):
                    return ex.add(*terms), (-value,)
                case difference:
                    return difference, (0,)
    return None


def _member(part: ex.IntExpr, values: Iterable[int]) -> ex.BoolExpr:
    rest = set(values)
    if rest.issuperset(POWERS):
        return ex.or_(ex.is_pow2(part), ex.member(part, rest.difference(POWERS)))
    return ex.member(part, rest)
