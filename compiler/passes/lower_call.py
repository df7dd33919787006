"""Calls of the built-in functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_table import step, to_real
from attnc.compiler.passes.lower_value import Item, Logic, LowerError, Num, Real
from attnc.dsl import nodes as ast
from attnc.dsl.source import Span

if TYPE_CHECKING:
    from attnc.compiler.passes.lower_expr import ExprLowering

_REAL: dict[str, sc.RealFunction] = {
    "exp": "exp", "log": "log", "sqrt": "sqrt", "tanh": "tanh", "f32": "f32",
}  # fmt: skip
_OTHERS = frozenset(
    {
        "abs", "min", "max", "clamp", "floor", "ceil", "is_pow2", "bit_length", "bit", "len",
        "fill",
    }
)  # fmt: skip
MAX_ITEMS = 1 << 16
"""How many items a list made by ``fill`` may have."""


def is_builtin(name: str) -> bool:
    """Return whether a function of that name is built in."""
    return name in _REAL or name in _OTHERS


def builtin(lowering: ExprLowering, expr: ast.Call, args: list[Item], env: Env) -> Item:
    """Return the value of a call of a built-in function."""
    span = expr.span
    match expr.function, args:
        case "len", [tuple() as items]:
            return lv.const(len(items))
        case "fill", [Num() as count, item]:
            return _fill(lowering, count, item, expr)
        case _, [tuple() as items]:
            if not items:
                raise LowerError(
                    "ATT0308", f"`{expr.function}` of an empty list", expr.args[0].span,
                    help="put a number beside it: an empty list has no least or greatest item",
                )  # fmt: skip
            args = list(items)
    values = [a for a in args if isinstance(a, Num | Real)]
    if expr.function in _REAL:
        part = to_real(values[0], span)
        return lv.real(sc.real_call(_REAL[expr.function], part.expr), part.size + 1, span)
    nums = [v for v in values if isinstance(v, Num)]
    if len(nums) < len(values):
        return _of_reals(expr.function, [to_real(v, span) for v in values], env, span)
    match expr.function:
        case "abs":
            return lv.absolute(nums[0], span)
        case "min" | "max":
            return lv.extreme(expr.function, nums, span)
        case "clamp":
            return lv.extreme("min", (lv.extreme("max", nums[:2], span), nums[2]), span)
        case "floor":
            return lv.floor(nums[0], span)
        case "ceil":
            return lv.ceil(nums[0], span)
        case "is_pow2":
            test = ex.is_pow2(nums[0].expr)
            if not isinstance(test, ex.Truth):
                lv.fits_machine(nums, span)
            return lv.logic(test, nums[0].size + 1, span)
        case "bit_length":
            return _bit_length(lowering, nums[0], expr, env)
        case "bit":
            return _bit(lowering, nums[0], nums[1], env, span)
    raise AssertionError(expr.function)


def _of_reals(function: str, reals: list[Real], env: Env, span: Span) -> Item:
    size = sum(r.size for r in reals) + 1
    exprs = [r.expr for r in reals]
    match function:
        case "abs":
            return lv.real(sc.real_call("abs", *exprs), size, span)
        case "min" | "max":
            return lv.real(_extreme(function, exprs), size, span)
        case "clamp":
            raised = _extreme("max", exprs[:2])
            return lv.real(_extreme("min", [raised, exprs[2]]), size, span)
        case "floor":
            return step(reals[0], lambda x: lv.const(math.floor(x)), env.ranges, span)
        case "ceil":
            return step(reals[0], lambda x: lv.const(math.ceil(x)), env.ranges, span)
    raise AssertionError(function)


def _extreme(function: str, exprs: list[sc.RealExpr]) -> sc.RealExpr:
    total = exprs[0]
    for expr in exprs[1:]:
        total = sc.real_call("min" if function == "min" else "max", total, expr)
    return total


def _fill(lowering: ExprLowering, count: Num, item: Item, expr: ast.Call) -> Item:
    times = lowering.compile_time(count, expr.args[0].span)
    if not 0 <= times <= MAX_ITEMS:
        raise LowerError(
            "ATT0303", f"a list of {times} items", expr.args[0].span,
            help=f"a list has 0 to {MAX_ITEMS} items",
        )  # fmt: skip
    return (item,) * int(times)


def _bit_length(lowering: ExprLowering, num: Num, expr: ast.Call, env: Env) -> Num:
    """Return how many binary digits a number has: one case for each power of two in reach."""
    value = lv.known(num)
    if value is not None:
        if value < 0:
            raise LowerError(
                "ATT0307", f"`bit_length` of {value}", expr.args[0].span,
                help="only 0 and positive numbers have a bit length",
            )  # fmt: skip
        return lv.const(int(value).bit_length())
    lowering.write_out(num)
    _, high = ex.interval(num.expr, env.ranges)
    top = min(num.bound if high is None else max(high, 0), (1 << 41) - 1).bit_length()
    digits = lv.const(top)
    for exponent in reversed(range(top)):
        below = lv.compare("<", num, lv.const(1 << exponent), expr.span)
        digits = lv.choose(below, lv.const(exponent), digits, expr.span)
    return digits


def _bit(lowering: ExprLowering, num: Num, place: Num, env: Env, span: Span) -> Logic:
    """Return whether a binary digit of a number is 1."""
    known = lv.known(place)
    if known is not None:
        if not 0 <= known <= ex.POW2_MAX_EXPONENT:
            return Logic(ex.FALSE, 1)
        digit = lv.modulo(lv.floor_div(num, 1 << int(known), span), 2, span)
        return lv.compare("==", digit, lv.const(1), span)
    lowering.write_out(place)
    low, high = ex.interval(place.expr, env.ranges)
    first, last = max(low or 0, 0), min(40 if high is None else high, 40)
    cases = []
    for exponent in range(first, last + 1):
        at = lv.compare("==", place, lv.const(exponent), span)
        cases.append(lv.all_of((at, _bit(lowering, num, lv.const(exponent), env, span)), span))
    return lv.any_of(cases, span)
