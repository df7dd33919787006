"""expression -> cheaper expression of the same meaning, under bounds of its variables.

Comparisons that the bounds decide go away, negations move to the leaves, and a comparison of a
query with a key is turned so that each side holds one of them: in a kernel ``k >= q - 255`` costs
one operation a pair, ``q - k <= 255`` two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from attnc.compiler.ir import expr as ex

Ranges: TypeAlias = Mapping[str, tuple[int | None, int | None]]

_TURNED: dict[ex.CompareOp, ex.CompareOp] = {
    "<=": ">=", "<": ">", "==": "==", "!=": "!=", ">": "<", ">=": "<=",
}

MAX_BRANCHES = 4
"""Most conditionals in a sum that is written into their branches: each one doubles the work."""


class Known(ex.Remembered):
    """Ranges, and what was simplified under them: branches repeat each other's parts.

    ``simple``: by identity, since comparing is as slow as simplifying; each with its original,
    which keeps the identity its own. What is simple already stands for itself.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__(ranges)
        self.simple: dict[int, tuple[ex.Expr, Any]] = {}

    def remember(self, expr: ex.Expr, simple: ex.Expr) -> None:
        """Keep what an expression is in simple."""
        self.simple[id(expr)] = expr, simple
        self.simple[id(simple)] = simple, simple


def known(ranges: Ranges) -> Known:
    """Return ranges with a memory, their own if they have one."""
    return ranges if isinstance(ranges, Known) else Known(ranges)


def simplify_int(expr: ex.IntExpr, ranges: Ranges) -> ex.IntExpr:
    """Return an equal integer expression, no dearer."""
    ranges = known(ranges)
    if id(expr) not in ranges.simple:
        simple = _simplify_int(expr, ranges)
        low, high = ex.interval(simple, ranges)
        ranges.remember(expr, ex.Const(low) if low is not None and low == high else simple)
    found: ex.IntExpr = ranges.simple[id(expr)][1]
    return found


def _simplify_int(expr: ex.IntExpr, ranges: Ranges) -> ex.IntExpr:
    match expr:
        case ex.Const() | ex.Var():
            return expr
        case ex.Add(parts):
            return _into_branches(ex.add(*(simplify_int(p, ranges) for p in parts)), ranges)
        case ex.Scale(factor, part):
            return ex.scale(factor, simplify_int(part, ranges))
        case ex.FloorDiv(part, divisor):
            return ex.floordiv(simplify_int(part, ranges), divisor)
        case ex.Mod(part, divisor):
            inner = simplify_int(part, ranges)
            low, high = ex.interval(inner, ranges)
            if low is not None and high is not None and 0 <= low and high < divisor:
                return inner
            return ex.mod(inner, divisor)
        case ex.Min(parts):
            return _into_branches(ex.minimum(*_undominated(parts, ranges, least=True)), ranges)
        case ex.Max(parts):
            return _into_branches(ex.maximum(*_undominated(parts, ranges, least=False)), ranges)
        case ex.Abs(part):
            inner = simplify_int(part, ranges)
            low, high = ex.interval(inner, ranges)
            if low is not None and low >= 0:
                return inner
            if high is not None and high <= 0:
                return ex.scale(-1, inner)
            return ex.absolute(inner)
        case ex.Select(condition, then, otherwise):
            test = simplify_bool(condition, ranges)
            return ex.select(
                test,
                simplify_int(_knowing(then, test), ranges),
                simplify_int(_knowing(otherwise, ex.not_(test)), ranges),
            )
        case ex.Read(name, index):
            return ex.Read(name, tuple(simplify_int(i, ranges) for i in index))
        case ex.Mul(left, right):
            return ex.mul(simplify_int(left, ranges), simplify_int(right, ranges))
        case ex.Quot(part, by):
            return ex.quot(simplify_int(part, ranges), simplify_int(by, ranges))
        case ex.Rem(part, by):
            return ex.rem(simplify_int(part, ranges), simplify_int(by, ranges))


def _into_branches(expr: ex.IntExpr, ranges: Ranges) -> ex.IntExpr:
    """``(a if c else b) + rest`` as ``a + rest if c else b + rest``, where that is shorter."""
    if not isinstance(expr, ex.Add | ex.Min | ex.Max):
        return expr
    if sum(isinstance(e, ex.Select) for e in ex.walk(expr)) > MAX_BRANCHES:
        return expr
    join = {ex.Add: ex.add, ex.Min: ex.minimum, ex.Max: ex.maximum}[type(expr)]
    for place, part in enumerate(expr.parts):
        factor, inner = (part.factor, part.part) if isinstance(part, ex.Scale) else (1, part)
        if not isinstance(inner, ex.Select):
            continue
        rest = (*expr.parts[:place], *expr.parts[place + 1 :])
        then, otherwise = (
            simplify_int(join(ex.scale(factor, branch), *rest), ranges)
            for branch in (inner.then, inner.otherwise)
        )
        test = inner.condition
        moved = ex.select(test, then, otherwise)
        if ex.op_count(moved) < ex.op_count(expr):
            return ex.select(test, _knowing(then, test), _knowing(otherwise, ex.not_(test)))
    return expr


def _knowing(expr: ex.IntExpr, fact: ex.BoolExpr) -> ex.IntExpr:
    """Decide the conditions inside an expression that repeat what is known to hold, or deny it."""
    facts = set(fact.parts if isinstance(fact, ex.And) else (fact,))

    def truth(test: ex.BoolExpr) -> ex.BoolExpr:
        if test in facts:
            return ex.TRUE
        if ex.not_(test) in facts:
            return ex.FALSE
        match test:
            case ex.And(parts):
                return ex.and_(*map(truth, parts))
            case ex.Or(parts):
                return ex.or_(*map(truth, parts))
        return test

    def go(part: ex.IntExpr) -> ex.IntExpr:
        match part:
            case ex.Select(condition, then, otherwise):
                return ex.select(truth(condition), go(then), go(otherwise))
            case ex.Add(parts):
                return ex.add(*map(go, parts))
            case ex.Min(parts):
                return ex.minimum(*map(go, parts))
            case ex.Max(parts):
                return ex.maximum(*map(go, parts))
            case ex.Scale(factor, inner):
                return ex.scale(factor, go(inner))
        return part

    return go(expr)


def from_first(
    count: ex.IntExpr, base: ex.IntExpr, name: str, ranges: Ranges
) -> ex.IntExpr:
    """Return a count in which the base of its progression goes by a name, where that is shorter."""
    count, base = simplify_int(count, ranges), simplify_int(base, ranges)
    if isinstance(base, ex.Const | ex.Var):
        return count
    first = ex.Var(name)

    def go(part: ex.IntExpr) -> ex.IntExpr:
        if part == base:
            return first
        match part:
            case ex.Add(parts):
                return ex.add(*map(go, parts))
            case ex.Scale(factor, inner):
                return ex.scale(factor, go(inner))
            case ex.FloorDiv(inner, divisor):
                return ex.floordiv(go(inner), divisor)
            case ex.Mod(inner, divisor):
                return ex.mod(go(inner), divisor)
            case ex.Min(parts):
                return ex.minimum(*map(go, parts))
            case ex.Max(parts):
                return ex.maximum(*map(go, parts))
            case ex.Select(condition, then, otherwise):
                return ex.select(condition, go(then), go(otherwise))
        return part

    return min(count, go(count), ex.sub(ex.add(count, base), first), key=ex.op_count)


def _undominated(
    parts: tuple[ex.IntExpr, ...], ranges: Ranges, *, least: bool
) -> list[ex.IntExpr]:
    """Drop the parts that another part always beats."""
    kept = [simplify_int(p, ranges) for p in parts]
    for part in tuple(kept):
        others = [o for o in kept if o is not part]
        own_low, own_high = ex.interval(part, ranges)
        for other in others:
            low, high = ex.interval(other, ranges)
            beaten = (
                (high is not None and own_low is not None and high <= own_low)
                if least
                else (low is not None and own_high is not None and low >= own_high)
            )
            if beaten:
                kept = others
                break
    return kept


def simplify_bool(expr: ex.BoolExpr, ranges: Ranges) -> ex.BoolExpr:
    """Return an equal truth value, ``Not`` left on ``IsPow2`` and ``Member`` only."""
    ranges = known(ranges)
    if id(expr) not in ranges.simple:
        ranges.remember(expr, _simplify_bool(expr, ranges))
    found: ex.BoolExpr = ranges.simple[id(expr)][1]
    return found


def _simplify_bool(expr: ex.BoolExpr, ranges: Ranges) -> ex.BoolExpr:
    match expr:
        case ex.Truth():
            return expr
        case ex.Compare():
            return _compare(expr, ranges)
        case ex.IsPow2(part):
            inner = simplify_int(part, ranges)
            _, high = ex.interval(inner, ranges)
            return ex.FALSE if high is not None and high <= 0 else ex.is_pow2(inner)
        case ex.Member(part, values):
            inner = simplify_int(part, ranges)
            low, high = ex.interval(inner, ranges)
            possible = [
                v for v in values if (low is None or v >= low) and (high is None or v <= high)
            ]
            return ex.member(inner, possible) if possible else ex.FALSE
        case ex.And(parts):
            return ex.and_(*(simplify_bool(p, ranges) for p in parts))
        case ex.Or(parts):
            return ex.or_(*(simplify_bool(p, ranges) for p in parts))
        case ex.Not(ex.And(parts)):
            return ex.or_(*(simplify_bool(ex.not_(p), ranges) for p in parts))
        case ex.Not(ex.Or(parts)):
            return ex.and_(*(simplify_bool(ex.not_(p), ranges) for p in parts))
        case ex.Not(part):
            inner_bool = simplify_bool(part, ranges)
            negated = ex.not_(inner_bool)
            return simplify_bool(negated, ranges) if isinstance(negated, ex.Compare) else (
                simplify_bool(negated, ranges)
                if isinstance(inner_bool, ex.And | ex.Or)
                else negated
            )
        case ex.Exists():
            raise AssertionError(f"a residual predicate holds no `exists`: {ex.show(expr)}")


def _compare(expr: ex.Compare, ranges: Ranges) -> ex.BoolExpr:
    left, right = simplify_int(expr.left, ranges), simplify_int(expr.right, ranges)
    difference = ex.sub(left, right)
    decided = _decide(expr.op, difference, ranges)
    if decided is not None:
        return ex.Truth(decided)
    around = _without_abs(expr.op, difference)
    if around is not None:
        return simplify_bool(around, ranges)
    return _apart(expr.op, difference) or _turned(expr.op, left, right, difference)


def _decide(op: ex.CompareOp, difference: ex.IntExpr, ranges: Ranges) -> bool | None:
    """Return the truth of ``difference op 0`` where bounds alone decide it."""
    low, high = ex.interval(difference, ranges)
    below, above = high is not None and high < 0, low is not None and low > 0
    at_most, at_least = high is not None and high <= 0, low is not None and low >= 0
    match op:
        case "<=":
            return True if at_most else False if above else None
        case "<":
            return True if below else False if at_least else None
        case ">=":
            return True if at_least else False if below else None
        case ">":
            return True if above else False if at_most else None
        case "==":
            return False if below or above else True if at_most and at_least else None
        case "!=":
            return True if below or above else False if at_most and at_least else None


def _without_abs(op: ex.CompareOp, difference: ex.IntExpr) -> ex.BoolExpr | None:
    """``|x| + c op 0`` as two comparisons of x, for the four order relations."""
    terms = difference.parts if isinstance(difference, ex.Add) else (difference,)
    constant = sum(t.value for t in terms if isinstance(t, ex.Const))
    rest = [t for t in terms if not isinstance(t, ex.Const)]
    match rest:
        case [ex.Abs(part)]:
            bound, relation = -constant, op
        case [ex.Scale(-1, ex.Abs(part))]:
            bound, relation = constant, _TURNED[op]
        case _:
            return None
    # |part| relation bound
    match relation:
        case "<=" | "<":
            return ex.and_(
                ex.compare(relation, part, ex.Const(bound)),
                ex.compare(_TURNED[relation], part, ex.Const(-bound)),
            )
        case ">" | ">=":
            return ex.or_(
                ex.compare(relation, part, ex.Const(bound)),
                ex.compare(_TURNED[relation], part, ex.Const(-bound)),
            )
        case _:
            return None


def _apart(op: ex.CompareOp, difference: ex.IntExpr) -> ex.BoolExpr | None:
    """``(q - k) mod m == c`` as ``k mod m == (q - c) mod m``: one operation a pair, not three."""
    match difference:
        case ex.Mod(part, divisor):
            rest = 0
        case ex.Add((ex.Mod(part, divisor), ex.Const(value))):
            rest = -value
        case _:
            return None
    terms = part.parts if isinstance(part, ex.Add) else (part,)
    keys = [t for t in terms if "k" in ex.free_vars(t)]
    others = [t for t in terms if "k" not in ex.free_vars(t)]
    mixed = any("q" in ex.free_vars(t) for t in keys)
    asked = any("q" in ex.free_vars(t) for t in others)
    if op not in ("==", "!=") or mixed or not keys or not asked or not 0 <= rest < divisor:
        return None
    turn = -1 if isinstance(keys[0], ex.Scale) and keys[0].factor < 0 else 1
    left = ex.scale(turn, ex.add(*keys))
    right = ex.scale(-turn, ex.add(*others, ex.Const(-rest)))
    return ex.Compare(op, ex.mod(left, divisor), ex.mod(right, divisor))


def _turned(
    op: ex.CompareOp, left: ex.IntExpr, right: ex.IntExpr, difference: ex.IntExpr
) -> ex.BoolExpr:
    """Write a comparison with all terms of the key on the left and the rest on the right."""
    terms = difference.parts if isinstance(difference, ex.Add) else (difference,)
    keys = [t for t in terms if "k" in ex.free_vars(t)]
    rest = [t for t in terms if "k" not in ex.free_vars(t)]
    if not keys or any("q" in ex.free_vars(t) for t in keys):
        return ex.Compare(op, left, right)
    if isinstance(keys[0], ex.Scale) and keys[0].factor < 0:
        return ex.Compare(_TURNED[op], ex.scale(-1, ex.add(*keys)), ex.add(*rest))
    return ex.Compare(op, ex.add(*keys), ex.scale(-1, ex.add(*rest)))
