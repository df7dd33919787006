"""Expressions <-> integer sets, and questions about patterns.

isl runs under the operation budget of ``account.py``. Past the budget every function here raises
``OverBudget`` and its caller widens, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import islpy as isl

from attnc.compiler.account import (
    CONTEXT,
    OverBudget,
    Spent,
    afford,
    apart,
    budget,
    equal,
    greatest,
    least,
    minus,
    reraise_over_budget,
    spent,
    within,
)
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern

__all__ = ["OverBudget", "Spent", "afford", "apart", "budget", "equal", "greatest", "least",
           "minus", "reraise_over_budget", "spent", "within"]  # fmt: skip

WARNING_SHARE = 4
"""A question that only a warning hangs on gets one part of the budget in so many."""

MAX_LISTED = 64
"""Longest list of members isl is asked about; beyond it the list is widened to its hull."""

MAX_PARTS = 20_000
"""Largest predicate, in parts of its text for isl, that isl is asked about."""

MAX_ROUNDED = 12
"""Most ``div``, ``mod`` and conditionals in one comparison that isl is asked about."""

MAX_NESTED = 40
"""Deepest nest of ``and`` and ``or`` that isl is asked about."""

MAX_DIV_DEPTH = 4
"""Deepest nest of ``div`` and ``mod`` that isl is asked about."""

MAX_TEXT = 1 << 14
"""Longest text of an operand of ``abs`` that isl is asked about."""


# ------------------------------------------------------------------------- expression -> isl


def text(expr: ex.BoolExpr) -> str:
    """Return a predicate in isl's own notation."""
    match expr:
        case ex.Truth(value):
            return "1 = 1" if value else "1 = 0"
        case ex.Compare(op, left, right):
            symbol = {"==": "="}.get(op, op)
            return _lifted([left, right], lambda a, b: f"{a} {symbol} {b}")
        case ex.IsPow2(part):
            values = [1 << e for e in range(ex.POW2_MAX_EXPONENT + 1)]
            return _lifted([part], lambda x: " or ".join(f"{x} = {v}" for v in values))
        case ex.Member(part, members):
            runs = _runs(members)
            return _lifted(
                [part], lambda x: " or ".join(f"({a} <= {x} and {x} <= {b})" for a, b in runs)
            )
        case ex.And(parts):
            return "(" + " and ".join(f"({text(p)})" for p in parts) + ")"
        case ex.Or(parts):
            return "(" + " or ".join(f"({text(p)})" for p in parts) + ")"
        case ex.Not(part):
            return f"(not ({text(part)}))"
        case ex.Exists(var, low, high, body):
            bounds = _lifted([low, high], lambda a, b: f"{a} <= {var} and {var} <= {b}")
            return f"(exists ({var} : ({bounds}) and ({text(body)})))"


def _lifted(parts: list[ex.IntExpr], write: Callable[..., str]) -> str:
    """Write a test of integers; isl has no conditional, so each one becomes a bound variable."""
    bound: list[tuple[str, str]] = []
    test = write(*(_int_text(part, bound) for part in parts))
    if not bound:
        return f"({test})"
    names = ", ".join(name for name, _ in bound)
    return f"(exists ({names} : {' and '.join(rule for _, rule in bound)} and ({test})))"


def _int_text(expr: ex.IntExpr, bound: list[tuple[str, str]]) -> str:
    def go(part: ex.IntExpr) -> str:
        return _int_text(part, bound)

    match expr:
        case ex.Const(value):
            return str(value) if value >= 0 else f"({value})"
        case ex.Var(name):
            return name
        case ex.Add(parts):
            return f"({' + '.join(map(go, parts))})"
        case ex.Scale(factor, part):
            return f"({factor} * {go(part)})"
        case ex.FloorDiv(part, divisor):
            return f"floor({go(part)}/{divisor})"
        case ex.Mod(part, divisor):
            return f"({go(part)} mod {divisor})"
        case ex.Min(parts):
            return f"min({', '.join(map(go, parts))})"
        case ex.Max(parts):
            return f"max({', '.join(map(go, parts))})"
        case ex.Abs(part):
            inner = go(part)
            if len(inner) > MAX_TEXT:  # the text doubles at every level of nested abs
                raise OverBudget("abs of abs of abs ...")
            return f"max({inner}, -({inner}))"
        case ex.Select(condition, then, otherwise):
            name = f"select{len(bound)}_"
            bound.append((name, ""))  # claims the name before the branches claim theirs
            at = len(bound) - 1
            test, yes, no = text(condition), go(then), go(otherwise)
            rule = f"((({test}) and {name} = {yes}) or ((not ({test})) and {name} = {no}))"
            bound[at] = (name, rule)
            return name
        case _:
            raise AssertionError(f"not static: {expr}")


def _runs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return members as ranges of consecutive values. Raises: OverBudget past ``MAX_LISTED``."""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    if len(runs) > MAX_LISTED:
        raise OverBudget(f"a list of {len(values)} members in {len(runs)} runs")
    return runs


def _checked(predicate: ex.BoolExpr) -> str:
    """Return the text of a predicate that isl may be asked about.

    Raises: OverBudget for what isl's operation count does not bound: many ``div`` in one place.
    """
    if _text_parts(predicate) > MAX_PARTS:
        raise OverBudget(f"a predicate of over {MAX_PARTS:,} parts")
    if _nested(predicate) > MAX_NESTED:
        raise OverBudget(f"more than {MAX_NESTED} `and` and `or` inside each other")
    for test in ex.walk(predicate):
        if isinstance(test, ex.Compare | ex.IsPow2 | ex.Member):
            rounded = sum(isinstance(e, ex.FloorDiv | ex.Mod | ex.Select) for e in ex.walk(test))
            if rounded > MAX_ROUNDED:
                raise OverBudget(f"{rounded} `div`, `mod` and `if` in one comparison")
    if _div_depth(predicate) > MAX_DIV_DEPTH:
        raise OverBudget(f"more than {MAX_DIV_DEPTH} `div` and `mod` inside each other")
    return text(predicate)


def _text_parts(expr: ex.Expr) -> int:
    """Return how many parts the text has: that of a condition, or inside ``abs``, stands twice."""
    sizes = [_text_parts(child) for child in ex.children(expr)]
    match expr:
        case ex.Select():
            return 1 + sizes[0] + sum(sizes)
        case ex.Abs():
            return 1 + 2 * sizes[0]
        case _:
            return 1 + sum(sizes)


def _nested(expr: ex.Expr) -> int:
    below = max((_nested(child) for child in ex.children(expr)), default=0)
    return below + isinstance(expr, ex.And | ex.Or)


def _div_depth(expr: ex.Expr) -> int:
    below = max((_div_depth(child) for child in ex.children(expr)), default=0)
    return below + isinstance(expr, ex.FloorDiv | ex.Mod)


def params_of(*exprs: ex.Expr, without: frozenset[str] = frozenset()) -> list[str]:
    """Return the names used that are not set dimensions, in a fixed order."""
    used = frozenset().union(*(ex.free_vars(e) for e in exprs))
    return sorted(used - without)


def pair_map(predicate: ex.BoolExpr, params: list[str], domain: str) -> isl.Map:
    """Return ``[params] -> { [q] -> [k] : domain and predicate }``."""
    test = _checked(predicate)
    source = f"[{', '.join(params)}] -> {{ [q] -> [k] : {domain} and ({test}) }}"
    return isl.Map.read_from_str(CONTEXT, source)


def param_names(of: isl.Set | isl.Map) -> list[str]:
    """Return the names of the parameters, in order; every parameter of ours has one."""
    named = (of.get_dim_name(isl.dim_type.param, i) for i in range(of.dim(isl.dim_type.param)))
    return [name or "" for name in named]


def read_map(source: str) -> isl.Map:
    """Parse isl text to a map, in the context that holds the budget."""
    return isl.Map.read_from_str(CONTEXT, source)


def read_set(source: str) -> isl.Set:
    """Parse isl text to a set, in the context that holds the budget."""
    return isl.Set.read_from_str(CONTEXT, source)


# ------------------------------------------------------------------------- isl -> expression


def val(value: int) -> isl.Val:
    """Return an integer as an isl value."""
    return isl.Val.int_from_si(CONTEXT, value)


def whole(value: isl.Val) -> int:
    """Return an isl value as an integer.

    Raises: OverBudget for what is none: isl answers "not a number" where its budget ran out.
    """
    if not value.is_int():
        raise OverBudget("isl has no number here")
    return int(value.get_num_si())  # not to_python: it prints, which the budget may forbid


def nonzero(value: isl.Val) -> bool:
    """Whether an isl value is a number other than zero. Raises: OverBudget for what is none."""
    if not value.is_rat():
        raise OverBudget("isl has no number here")
    return not value.is_zero()


def int_expr(aff: isl.Aff, names: Callable[[isl.dim_type, int], str]) -> ex.IntExpr:
    """Return the floor of a quasi-affine function as an expression; ``names`` names its dimensions.

    A denominator that is left over divides exactly wherever an integer function is defined.
    """
    denominator = whole(aff.get_denominator_val())
    terms: list[ex.IntExpr] = [ex.Const(_times(aff.get_constant_val(), denominator))]
    for kind in (isl.dim_type.param, isl.dim_type.in_):
        for i in range(aff.dim(kind)):
            factor = _times(aff.get_coefficient_val(kind, i), denominator)
            if factor:
                terms.append(ex.scale(factor, ex.Var(names(kind, i))))
    for i in range(aff.dim(isl.dim_type.div)):
        factor = _times(aff.get_coefficient_val(isl.dim_type.div, i), denominator)
        if factor:
            terms.append(ex.scale(factor, int_expr(aff.get_div(i), names)))
    return ex.floordiv(gather_mod(ex.add(*terms)), denominator)


def _times(value: isl.Val, denominator: int) -> int:
    """Return a multiple of a fraction that is whole."""
    if not nonzero(value):
        return 0
    return int(value.get_num_si()) * denominator // whole(value.get_den_val())


def gather_mod(total: ex.IntExpr) -> ex.IntExpr:
    """Write ``m*x - m*c*floor(x / c)`` as ``m * (x mod c)``, term by term."""
    if not isinstance(total, ex.Add):
        return total
    for term in total.parts:
        match term:
            case ex.Scale(factor, ex.FloorDiv(inner, divisor)) if factor % divisor == 0:
                multiple = -factor // divisor
                rest = ex.sub(ex.sub(total, term), ex.scale(multiple, inner))
                better = ex.add(rest, ex.scale(multiple, ex.mod(inner, divisor)))
                if ex.op_count(better) < ex.op_count(total):
                    return gather_mod(better)
            case _:
                pass
    return total


def bool_expr(union: isl.Set, names: Callable[[isl.dim_type, int], str]) -> ex.BoolExpr:
    """Return a set as a predicate over its parameters and dimensions, divs made explicit.

    Raises: OverBudget if an existential variable has no explicit form.
    """
    parts: list[ex.BoolExpr] = []
    for basic in union.compute_divs().get_basic_sets():
        parts.append(_conjunction(basic, names))
    return ex.or_(*parts) if parts else ex.FALSE


def _conjunction(
    basic: isl.BasicSet, names: Callable[[isl.dim_type, int], str]
) -> ex.BoolExpr:
    conditions: list[ex.BoolExpr] = []
    for constraint in basic.get_constraints():
        if constraint.is_div_constraint():
            continue
        aff = constraint.get_aff()
        if not has_known_divs(aff):
            raise OverBudget("an existential variable without an explicit form")
        op: ex.CompareOp = "==" if constraint.is_equality() else ">="
        conditions.append(balanced(op, int_expr(aff, names)))
    return ex.and_(*conditions)


def has_known_divs(aff: isl.Aff) -> bool:
    """Return whether all existential variables that a function uses have an explicit form."""
    return all(
        aff.get_div(i).get_denominator_val().is_pos()
        for i in range(aff.dim(isl.dim_type.div))
        if nonzero(aff.get_coefficient_val(isl.dim_type.div, i))
    )


def balanced(op: ex.CompareOp, total: ex.IntExpr) -> ex.BoolExpr:
    """Return ``total op 0`` as a reader would write it: ``q >= k`` for ``q - k >= 0``."""
    match total:
        case ex.Scale(-1, ex.Mod() as inner) | (ex.Mod() as inner) if op == "==":
            return ex.compare("==", _turned(inner), ex.ZERO)
        case _:
            pass
    left: list[ex.IntExpr] = []
    right: list[ex.IntExpr] = []
    for term in total.parts if isinstance(total, ex.Add) else (total,):
        negative = isinstance(term, ex.Scale | ex.Const) and (
            (term.factor if isinstance(term, ex.Scale) else term.value) < 0
        )
        (right if negative else left).append(ex.scale(-1, term) if negative else term)
    return ex.compare(op, ex.add(*left), ex.add(*right))


def _turned(remainder: ex.Mod) -> ex.IntExpr:
    """Return a remainder that is tested against zero with its first term positive."""
    part = remainder.part
    first = part.parts[0] if isinstance(part, ex.Add) else part
    if isinstance(first, ex.Scale) and first.factor < 0:
        return ex.mod(ex.scale(-1, part), remainder.divisor)
    return remainder


def piecewise(
    function: isl.PwAff, names: Callable[[isl.dim_type, int], str]
) -> Iterator[ex.IntExpr]:
    """Yield guesses at a piecewise quasi-affine function, the simplest first.

    Each agrees with one of its pieces everywhere; only the last, a chain of conditionals, is
    certain. The caller proves the guess it takes.
    """
    pieces = function.coalesce().get_pieces()
    values = [int_expr(aff, names) for _, aff in pieces]
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        yield distinct[0]
        return
    yield ex.maximum(*distinct)
    yield ex.minimum(*distinct)
    total = values[-1]
    for (domain, _), value in zip(reversed(pieces[:-1]), reversed(values[:-1]), strict=True):
        total = ex.select(bool_expr(domain.gist(function.domain()), names), value, total)
    yield total


def without_quantifiers(exists: ex.Exists, heads: int | None) -> ex.BoolExpr:
    """Return a formula without bound variables, equal for all positions and lengths.

    Raises: OverBudget, also where some variable has no explicit form.
    """
    names = params_of(exists)
    legal = [f"{name} >= 0" for name in names if name in ("q", "k", "nq", "nk")]
    if "h" in names:
        legal.append(f"0 <= h < {heads}")
    known = read_set(f"[{', '.join(names)}] -> {{ : {' and '.join(legal) or '1 = 1'} }}")
    found = read_set(f"[{', '.join(names)}] -> {{ : {_checked(exists)} }}").intersect(known)
    # The divs of a projection are explicit only once they are computed; gist drops what is known.
    formula = found.compute_divs().coalesce().gist(known)
    return bool_expr(formula, lambda _, i: names[i])


# ------------------------------------------------------------------- questions about patterns


def is_empty(pattern: Pattern) -> bool:
    """Return whether the pattern keeps no pair at any length (False where isl cannot tell)."""
    try:
        with budget(share=WARNING_SHARE):
            return bool(_self_attention(pattern).is_empty())
    except OverBudget:
        return False


def empty_row(pattern: Pattern) -> tuple[int, int] | None:
    """Return ``(query, length)``: the first query that sees no key, at the least such length.

    Decided for self-attention (``nq == nk``), over all heads. None: every query sees a key at every
    length, or isl could not tell within its budget.
    """
    try:
        with budget(share=WARNING_SHARE):
            kept = _self_attention(pattern)
            rows = read_set(f"[{', '.join(_self_params(pattern))}] -> {{ [q] : 0 <= q < nk }}")
            if pattern.heads is not None:
                heads = read_set(f"[h] -> {{ : 0 <= h < {pattern.heads} }}")
                rows = rows.intersect_params(heads)
            missing = minus(rows, kept.domain())
            if missing.is_empty():
                return None
            # The length becomes the first dimension, and any head will do.
            count = missing.dim(isl.dim_type.param)
            at = missing.find_dim_by_name(isl.dim_type.param, "nk")
            missing = missing.move_dims(isl.dim_type.set, 0, isl.dim_type.param, at, 1)
            if count > 1:
                missing = missing.project_out(isl.dim_type.param, 0, count - 1)
            length = missing.dim_min_val(0)
            query = missing.fix_val(isl.dim_type.set, 0, length).dim_min_val(1)
            return whole(query), whole(length)
    except OverBudget:
        return None


def _self_params(pattern: Pattern) -> list[str]:
    return ["nk", *(["h"] if pattern.heads is not None else [])]


def _self_attention(pattern: Pattern) -> isl.Map:
    predicate = ex.substitute(pattern.predicate, {"nq": ex.Var("nk")})
    domain = "0 <= q < nk and 0 <= k < nk"
    if pattern.heads is not None:
        domain += f" and 0 <= h < {pattern.heads}"
    return pair_map(predicate, _self_params(pattern), domain)
