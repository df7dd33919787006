"""Quantifiers, sums and counts: kept where they are linear, else written out turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.expr.text import VARIABLES
from attnc.compiler.passes import lower_arithmetic as la
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env, free_vars, input_names
from attnc.compiler.passes.lower_value import Logic, LowerError, Num, Real
from attnc.dsl import nodes as ast
from attnc.dsl.source import Span

if TYPE_CHECKING:
    from attnc.compiler.passes.lower_expr import ExprLowering

RANGE_LIMIT = 1 << 16
"""How many values a quantifier with constant ends may range over."""


def quantifier(lowering: ExprLowering, expr: ast.Quantifier, env: Env) -> Logic:
    """Keep a linear body under ``Exists``; write any other out over its constant range."""
    from attnc.compiler.passes.lower_expr import NeedsUnroll

    low, high = lowering.number(expr.low, env), lowering.number(expr.high, env)
    first, last = lv.known(low), lv.known(high)
    exists = expr.op == "exists"
    ends = expr.low.span.to(expr.high.span)
    if first is not None and last is not None:
        if first > last:
            return Logic(ex.Truth(not exists), 1)
        if last - first >= RANGE_LIMIT:
            too_long(int(last - first) + 1, RANGE_LIMIT, ends)
    lv.fits_machine((low, high), ends)
    name = _fresh(expr.var, env)
    symbolic = lv.var(name, max(low.bound, high.bound))
    reach = ex.interval(low.expr, env.ranges)[0], ex.interval(high.expr, env.ranges)[1]
    before = len(lowering.notes)
    try:
        with lowering.written_out(name):
            body = lowering.truth(expr.body, env.bind(expr.var, symbolic).bounded(name, *reach))
    except NeedsUnroll as need:
        if need.var != name:
            raise
        del lowering.notes[before:]
        return _unroll(lowering, expr, low, high, env)
    if not ex.is_static(body.expr) or not all(ex.is_static(e.expr) for e in (low, high)):
        return _unroll(lowering, expr, low, high, env)
    inner = body.expr if exists else ex.not_(body.expr)
    size = body.size + low.size + high.size + 1
    if name not in ex.free_vars(inner):
        some = ex.compare("<=", low.expr, high.expr)
        found: ex.BoolExpr = ex.and_(some, inner)
    else:
        found = ex.Exists(name, low.expr, high.expr, inner)
    return lv.logic(found if exists else ex.not_(found), size, expr.span)


def _unroll(
    lowering: ExprLowering, expr: ast.Quantifier, low: Num, high: Num, env: Env
) -> Logic:
    exists = expr.op == "exists"
    parts = []
    for turn in _turns(lowering, expr, low, high):
        part = lowering.truth(expr.body, env.bind(expr.var, turn))
        if part.expr == ex.Truth(exists):
            return part
        parts.append(part)
    return (lv.any_of if exists else lv.all_of)(parts, expr.span)


def _turns(
    lowering: ExprLowering, expr: ast.Quantifier | ast.Reduce, low: Num, high: Num
) -> Sequence[Num]:
    """Return the values of a loop that is written out; its ends are a constant apart."""
    from attnc.compiler.passes.lower_expr import UNROLL_LIMIT

    extent = lv.total((high, lv.times(lv.MINUS_ONE, low, expr.span)), expr.span)
    distance = lv.known(extent)
    if distance is None:
        for end, part in ((low, expr.low), (high, expr.high)):
            lowering.compile_time(end, part.span)
    assert distance is not None
    count = int(distance) + 1
    if count > UNROLL_LIMIT:
        too_long(count, UNROLL_LIMIT, expr.low.span.to(expr.high.span))
    return [lv.total((low, lv.const(turn)), expr.span) for turn in range(count)]


def reduce(lowering: ExprLowering, expr: ast.Reduce, env: Env) -> Num | Real:
    """Write a sum, or a count of conditions that hold, out turn by turn."""
    low, high = lowering.number(expr.low, env), lowering.number(expr.high, env)
    lowering.write_out(low, high)
    terms: list[Num | Real] = [lv.const(0)]
    for turn in _turns(lowering, expr, low, high):
        inner = env.bind(expr.var, turn)
        if expr.op == "count":
            held = lowering.truth(expr.body, inner)
            terms.append(lv.choose(held, lv.const(1), lv.const(0), expr.span))
        else:
            term = lowering.value(expr.body, inner)
            assert isinstance(term, Num | Real)
            terms.append(term)
    return la.total(terms, expr.span)


def too_long(turns: int, limit: int, span: Span) -> NoReturn:
    """Raise that a range has too many values."""
    why = "" if limit == RANGE_LIMIT else " because its variable is not used linearly"
    raise LowerError(
        "ATT0310", "the range of a quantifier is too long", span,
        label=f"{turns} values, at most {limit} are possible{why}",
        help="say it without the quantifier, with `div` and `mod`",
    )  # fmt: skip


def _fresh(wanted: str, env: Env) -> str:
    """Return a name for a bound variable that nothing in reach has."""
    taken = set(VARIABLES) | {"n"}
    for item in env.names.values():
        taken |= free_vars(item) | input_names(item)
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    return name
