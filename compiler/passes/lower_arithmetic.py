"""Sums, products, quotients and powers of numbers: integers, exact rationals, reals."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_table import step, to_real
from attnc.compiler.passes.lower_value import Item, Logic, LowerError, Num, Real
from attnc.dsl import nodes as ast
from attnc.dsl.check_numbers import left_spine
from attnc.dsl.source import Span

if TYPE_CHECKING:
    from attnc.compiler.passes.lower_expr import ExprLowering

MAX_EXPONENT = 64
"""Up to which exponent a power of a run-time number is multiplied out."""


def arithmetic(lowering: ExprLowering, expr: ast.Binary, env: Env) -> Num | Real:
    """Return the value of a chain of operations, left to right."""
    first, steps = left_spine(expr)
    terms = [_number(lowering.value(first, env))]
    for op in steps:
        right = _number(lowering.value(op.right, env))
        match op.op:
            case "+":
                terms.append(right)
            case "-":
                terms.append(negated(right, op.span))
            case _:
                terms = [_product(lowering, op, total(terms, op.span), right, env)]
    return total(terms, expr.span)


def _number(item: Item) -> Num | Real:
    assert isinstance(item, Num | Real), item
    return item


def total(terms: list[Num | Real], span: Span) -> Num | Real:
    """Return the sum."""
    if len(terms) == 1:
        return terms[0]
    nums = [t for t in terms if isinstance(t, Num)]
    if len(nums) == len(terms):
        return lv.total(nums, span)
    reals = [to_real(t, span) for t in terms]
    return lv.real(sc.real_add(*(r.expr for r in reals)), sum(r.size for r in reals), span)


def negated(item: Item, span: Span) -> Num | Real:
    """Return ``-x``."""
    part = _number(item)
    if isinstance(part, Num):
        return lv.times(Fraction(-1), part, span)
    return lv.real(sc.real_mul(sc.RealConst(-1.0), part.expr), part.size + 1, span)


def _product(
    lowering: ExprLowering, step_: ast.Binary, left: Num | Real, right: Num | Real, env: Env
) -> Num | Real:
    """Return ``left op right`` for all operations but sums."""
    span, op = step_.span, step_.op
    if op == "**":
        return _power(lowering, step_, left, right, env)
    if isinstance(left, Real) or isinstance(right, Real):
        a, b = to_real(left, span), to_real(right, span)
        make = sc.real_mul if op == "*" else sc.real_div
        return lv.real(make(a.expr, b.expr), a.size + b.size, span)
    if op == "*":
        for one, other in ((left, right), (right, left)):
            factor = lv.known(one)
            if factor is not None:
                return lv.times(factor, other, span, one.whole)
        return _times(lowering, left, right, env, span)
    divisor = lv.known(right)
    if divisor is None:
        return _divide(lowering, step_, left, right, env)
    if op == "mod":
        if divisor <= 0:
            raise LowerError(
                "ATT0307", f"modulus is {divisor}", step_.right.span,
                label="a modulus is 1 or more",
                help="`x mod m` lies in 0..m - 1; give the parameter a range: `in 1..`",
            )  # fmt: skip
        return lv.modulo(left, int(divisor), span)
    if divisor == 0:
        raise LowerError(
            "ATT0307", "division by zero", step_.right.span, label="this is 0",
            help="give the parameter a range: `in 1..`",
        )  # fmt: skip
    if op == "div":
        return lv.floor_div(left, int(divisor), span)
    return lv.times(1 / divisor, left, span, whole=False)


def _times(
    lowering: ExprLowering, left: Num, right: Num, env: Env, span: Span
) -> Num | Real:
    """Return the product of two run-time numbers; in scores a large one is a real."""
    if env.scoring:
        if left.bound * right.bound < lv.POSITION_BOUND:
            return lv.multiply(left, right, span)
        a, b = to_real(left, span), to_real(right, span)
        return lv.real(sc.real_mul(a.expr, b.expr), a.size + b.size, span)
    lowering.write_out(left, right)
    lowering.note("a product of run-time values", span)
    return lv.multiply(left, right, span)


def _divide(
    lowering: ExprLowering, step_: ast.Binary, left: Num, right: Num, env: Env
) -> Num | Real:
    """Return ``left op right`` for a divisor that is known at run time only."""
    span = step_.span
    if step_.op == "/":
        lowering.write_out(right)
        a, b = to_real(left, span), to_real(right, span)
        return lv.real(sc.real_div(a.expr, b.expr), a.size + b.size, span)
    if not env.scoring:
        lowering.write_out(right, left)
        lowering.note(f"`{step_.op}` by a run-time value", span)
    return (lv.quotient if step_.op == "div" else lv.remainder)(left, right, span)


def _power(
    lowering: ExprLowering, step_: ast.Binary, left: Num | Real, right: Num | Real, env: Env
) -> Num | Real:
    span = step_.span
    if isinstance(right, Num):
        exponent = lv.known(right)
        if exponent is None and not env.scoring:
            exponent = lowering.compile_time(right, step_.right.span)
        base = lv.known(left) if isinstance(left, Num) else None
        if exponent is not None and base is not None and exponent.denominator == 1:
            return _exact_power(step_, base, int(exponent), left, right)
        if exponent is not None and exponent.denominator == 1 and right.whole:
            return _repeated(lowering, step_, left, int(exponent), env)
    lowering.write_out(right)
    a, b = to_real(left, span), to_real(right, span)
    if isinstance(a.expr, sc.RealConst) and isinstance(b.expr, sc.RealConst):
        try:
            value = a.expr.value**b.expr.value
        except (OverflowError, ZeroDivisionError):
            value = math.inf
        if not isinstance(value, float) or not math.isfinite(value):
            raise LowerError(
                "ATT0307", "the power is no real number", span,
                help="the base is above 0, and the exponent not too large",
            )  # fmt: skip
        return Real(sc.RealConst(value), 1)
    raised = sc.real_call("exp2", sc.real_mul(b.expr, sc.real_call("log2", a.expr)))
    return lv.real(raised, a.size + b.size + 2, span)


def _exact_power(
    step_: ast.Binary, base: Fraction, exponent: int, left: Num | Real, right: Num
) -> Num:
    assert isinstance(left, Num)
    if exponent < 0 and (right.whole or base == 0):
        raise LowerError(
            "ATT0307", f"exponent is {exponent}", step_.right.span,
            label="an exponent is 0 or more", help="write the quotient: `1 / 2**e`",
        )  # fmt: skip
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if abs(base) not in (0, 1) and bits * abs(exponent) > 2 * lv.CONSTANT_BITS:
        raise LowerError(
            "ATT0311", f"the power has more than {lv.CONSTANT_BITS} binary digits", step_.span,
            help="no position or length is this large",
        )  # fmt: skip
    # 0, 1 and -1 may have any exponent; its parity alone matters
    small = exponent if abs(base) not in (0, 1) else min(exponent, 2 - exponent % 2)
    value = base**small
    return lv.const(int(value) if left.whole and right.whole else Fraction(value))


def _repeated(
    lowering: ExprLowering, step_: ast.Binary, left: Num | Real, exponent: int, env: Env
) -> Num | Real:
    """Multiply a power of a run-time number out: squaring and multiplying."""
    if not 0 <= exponent <= MAX_EXPONENT:
        raise LowerError(
            "ATT0307", f"exponent is {exponent}", step_.right.span,
            label=f"powers of run-time values go from 0 to {MAX_EXPONENT}",
            help="write the quotient: `1 / x**e`" if exponent < 0 else "",
        )  # fmt: skip
    result: Num | Real = lv.const(1)
    square = left
    while exponent:
        if exponent % 2:
            result = _multiply(lowering, result, square, env, step_.span)
        exponent //= 2
        if exponent:
            square = _multiply(lowering, square, square, env, step_.span)
    return result


def _multiply(
    lowering: ExprLowering, left: Num | Real, right: Num | Real, env: Env, span: Span
) -> Num | Real:
    if isinstance(left, Num) and isinstance(right, Num):
        if lv.known(left) == 1:
            return right
        return _times(lowering, left, right, env, span)
    a, b = to_real(left, span), to_real(right, span)
    return lv.real(sc.real_mul(a.expr, b.expr), a.size + b.size, span)


def compare_reals(
    op: str, left: Num | Real, right: Num | Real, ranges: ex.Ranges, span: Span
) -> Logic:
    """Return ``left op right`` where one of them is a real, case by case of its one integer."""
    difference = total([to_real(left, span), negated(to_real(right, span), span)], span)
    assert isinstance(difference, Real)

    def decided(value: float) -> Logic:
        held = {
            "<=": value <= 0, "<": value < 0, "==": value == 0, "!=": value != 0,
            ">": value > 0, ">=": value >= 0,
        }  # fmt: skip
        return Logic(ex.Truth(held[op]), 1)

    found = step(difference, decided, ranges, span)
    assert isinstance(found, Logic)
    return found
