"""Constructors that fold constants: expressions are made through these, never by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attnc.compiler.ir.expr.nodes import (
    FALSE,
    POW2_MAX_EXPONENT,
    TRUE,
    ZERO,
    Abs,
    Add,
    And,
    BoolExpr,
    Compare,
    CompareOp,
    Const,
    FloorDiv,
    IntExpr,
    IsPow2,
    Max,
    Member,
    Min,
    Mod,
    Mul,
    Not,
    Or,
    Quot,
    Rem,
    Scale,
    Select,
    Truth,
)


def add(*parts: IntExpr) -> IntExpr:
    """Return the sum, with equal terms gathered and the constant last."""
    coefficients: dict[IntExpr, int] = {}
    constant = 0
    stack: list[tuple[int, IntExpr]] = [(1, p) for p in reversed(parts)]
    while stack:
        factor, part = stack.pop()
        match part:
            case Const(value):
                constant += factor * value
            case Add(inner):
                stack += [(factor, p) for p in reversed(inner)]
            case Scale(scale, inner_part):
                stack.append((factor * scale, inner_part))
            case _:
                coefficients[part] = coefficients.get(part, 0) + factor
    terms: list[IntExpr] = [
        part if factor == 1 else Scale(factor, part)
        for part, factor in coefficients.items()
        if factor
    ]
    if constant or not terms:
        terms.append(Const(constant))
    return terms[0] if len(terms) == 1 else Add(tuple(terms))


def scale(factor: int, part: IntExpr) -> IntExpr:
    """Return ``factor * part``."""
    if factor == 0:
        return ZERO
    match part:
        case Const(value):
            return Const(factor * value)
        case Add(parts):
            return add(*(scale(factor, p) for p in parts))
        case Scale(inner, of):
            return scale(factor * inner, of)
        case _:
            return part if factor == 1 else Scale(factor, part)


def sub(left: IntExpr, right: IntExpr) -> IntExpr:
    """Return ``left - right``."""
    return add(left, scale(-1, right))


def floordiv(part: IntExpr, divisor: int) -> IntExpr:
    """Return ``floor(part / divisor)``; a negative divisor is turned around."""
    if divisor < 0:
        return floordiv(scale(-1, part), -divisor)
    if divisor == 1:
        return part
    if isinstance(part, Min | Max):  # floor is monotone
        kind = minimum if isinstance(part, Min) else maximum
        return kind(*(floordiv(p, divisor) for p in part.parts))
    whole, rest = _split_multiples(part, divisor)
    match rest:
        case Const(value):
            return add(whole, Const(value // divisor))
        case Add((Min(inner) | Max(inner) as extreme, Const() as offset)):
            kind = minimum if isinstance(extreme, Min) else maximum
            return add(whole, floordiv(kind(*(add(p, offset) for p in inner)), divisor))
    return add(whole, FloorDiv(rest, divisor))


def mod(part: IntExpr, divisor: int) -> IntExpr:
    """Return ``part mod divisor`` for ``divisor > 0``."""
    if divisor == 1:
        return ZERO
    _, rest = _split_multiples(part, divisor)
    return Const(rest.value % divisor) if isinstance(rest, Const) else Mod(rest, divisor)


def mul(left: IntExpr, right: IntExpr) -> IntExpr:
    """Return ``left * right``; a constant factor stays linear."""
    for one, other in ((left, right), (right, left)):
        match one:
            case Const(value):
                return scale(value, other)
            case Scale(factor, part):
                return scale(factor, mul(part, other))
    return Mul(left, right)


def quot(part: IntExpr, by: IntExpr) -> IntExpr:
    """Return ``floor(part / by)``, 0 where ``by`` is below 1."""
    if isinstance(by, Const):
        return floordiv(part, by.value) if by.value > 0 else ZERO
    return ZERO if part == ZERO else Quot(part, by)


def rem(part: IntExpr, by: IntExpr) -> IntExpr:
    """Return ``part mod by``, 0 where ``by`` is below 1."""
    if isinstance(by, Const):
        return mod(part, by.value) if by.value > 0 else ZERO
    return ZERO if part == ZERO else Rem(part, by)


def _split_multiples(part: IntExpr, divisor: int) -> tuple[IntExpr, IntExpr]:
    """Return ``(whole, rest)`` with ``part == divisor * whole + rest``, term by term."""
    whole: list[IntExpr] = []
    rest: list[IntExpr] = []
    for term in part.parts if isinstance(part, Add) else (part,):
        match term:
            case Const(value):
                whole.append(Const(value // divisor))
                rest.append(Const(value % divisor))
            case Scale(factor, inner) if factor % divisor == 0:
                whole.append(scale(factor // divisor, inner))
            case _:
                rest.append(term)
    return add(*whole), add(*rest)


def minimum(*parts: IntExpr) -> IntExpr:
    """Return the least part; constants fold into one."""
    return _extreme(Min, min, parts)


def maximum(*parts: IntExpr) -> IntExpr:
    """Return the greatest part; constants fold into one."""
    return _extreme(Max, max, parts)


def _extreme(
    kind: type[Min] | type[Max], pick: Callable[[Iterable[int]], int], parts: tuple[IntExpr, ...]
) -> IntExpr:
    flat: list[IntExpr] = []
    for part in parts:
        flat += part.parts if isinstance(part, kind) else (part,)
    constants = [p.value for p in flat if isinstance(p, Const)]
    rest: list[IntExpr] = list(dict.fromkeys(p for p in flat if not isinstance(p, Const)))
    if constants:
        rest.append(Const(pick(constants)))
    return rest[0] if len(rest) == 1 else kind(tuple(rest))


def absolute(part: IntExpr) -> IntExpr:
    """Return ``|part|``."""
    return Const(abs(part.value)) if isinstance(part, Const) else Abs(part)


def select(condition: BoolExpr, then: IntExpr, otherwise: IntExpr) -> IntExpr:
    """Return ``then`` or ``otherwise``; a known condition or equal branches fold."""
    if isinstance(condition, Truth):
        return then if condition.value else otherwise
    return then if then == otherwise else Select(condition, then, otherwise)


def compare(op: CompareOp, left: IntExpr, right: IntExpr) -> BoolExpr:
    """Return ``left op right``; decided at once when the difference is a constant."""
    difference = sub(left, right)
    if isinstance(difference, Const):
        d = difference.value
        decided = {
            "<=": d <= 0, "<": d < 0, "==": d == 0, "!=": d != 0, ">": d > 0, ">=": d >= 0,
        }
        return Truth(decided[op])
    return Compare(op, left, right)


def is_pow2(part: IntExpr) -> BoolExpr:
    """Return the test for 1, 2, 4, ..., 2**40."""
    if isinstance(part, Const):
        v = part.value
        return Truth(0 < v <= 1 << POW2_MAX_EXPONENT and v & (v - 1) == 0)
    return IsPow2(part)


def member(part: IntExpr, values: Iterable[int]) -> BoolExpr:
    """Return the test ``part in values``; up to two values become comparisons."""
    distinct = tuple(sorted(set(values)))
    if isinstance(part, Const):
        return Truth(part.value in distinct)
    if len(distinct) <= 2:
        return or_(*(compare("==", part, Const(v)) for v in distinct))
    return Member(part, distinct)


def and_(*parts: BoolExpr) -> BoolExpr:
    """Return the conjunction: flat, without repetitions, false when any part is."""
    return _junction(And, TRUE, FALSE, parts)


def or_(*parts: BoolExpr) -> BoolExpr:
    """Return the disjunction: flat, without repetitions, true when any part is."""
    return _junction(Or, FALSE, TRUE, parts)


def _junction(
    kind: type[And] | type[Or], neutral: Truth, absorbing: Truth, parts: tuple[BoolExpr, ...]
) -> BoolExpr:
    seen: dict[BoolExpr, None] = {}
    for part in parts:
        for inner in part.parts if isinstance(part, kind) else (part,):
            if inner == absorbing:
                return absorbing
            if inner != neutral:
                seen[inner] = None
    flat = tuple(seen)
    if not flat:
        return neutral
    return flat[0] if len(flat) == 1 else kind(flat)


_NEGATED: dict[CompareOp, CompareOp] = {
    "<=": ">", "<": ">=", "==": "!=", "!=": "==", ">": "<=", ">=": "<",
}


def not_(part: BoolExpr) -> BoolExpr:
    """Return the negation; comparisons turn around, double negation goes."""
    match part:
        case Truth(value):
            return Truth(not value)
        case Compare(op, left, right):
            return Compare(_NEGATED[op], left, right)
        case Not(inner):
            return inner
        case _:
            return Not(part)
