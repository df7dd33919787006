"""The one expression language below the AST: integers and truth values, constants folded.

Every later form (pattern IR, residual predicates, loop bounds of the plan) uses it, so codegen
prints one language only. Integers are unbounded here; ``//`` and ``mod`` floor, also below zero.

Variables are plain names. At token level: ``q`` and ``k`` (positions), ``h`` (query head), ``nq``
and ``nk`` (lengths). At tile level: ``qb``, ``kb`` (tiles), ``NQ``, ``NK`` (how many), beside ``h``,
``nq`` and ``nk``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POW2_MAX_EXPONENT = 40
"""``IsPow2`` holds for 2**0 .. 2**40 and for nothing else."""


@dataclass(frozen=True, slots=True)
class Const:
    """An integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Var:
    """A variable, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Add:
    """The sum of the parts."""

    parts: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """``factor * part``."""

    factor: int
    part: IntExpr


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """``floor(part / divisor)``, ``divisor > 0``."""

    part: IntExpr
    divisor: int


@dataclass(frozen=True, slots=True)
class Mod:
    """``part - divisor * floor(part / divisor)``, ``divisor > 0``: never negative."""

    part: IntExpr
    divisor: int


@dataclass(frozen=True, slots=True)
class Min:
    """The least of the parts."""

    parts: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Max:
    """The greatest of the parts."""

    parts: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Abs:
    """``|part|``."""

    part: IntExpr


@dataclass(frozen=True, slots=True)
class Select:
    """``then`` where the condition holds, else ``otherwise``."""

    condition: BoolExpr
    then: IntExpr
    otherwise: IntExpr


IntExpr: TypeAlias = Const | Var | Add | Scale | FloorDiv | Mod | Min | Max | Abs | Select
CompareOp = Literal["<=", "<", "==", "!=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Truth:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """``left op right``."""

    op: CompareOp
    left: IntExpr
    right: IntExpr


@dataclass(frozen=True, slots=True)
class IsPow2:
    """``part`` is one of 1, 2, 4, ..., 2**40."""

    part: IntExpr


@dataclass(frozen=True, slots=True)
class Member:
    """``part`` is one of ``values`` (sorted, distinct)."""

    part: IntExpr
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class And:
    """Every part holds."""

    parts: tuple[BoolExpr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part holds."""

    parts: tuple[BoolExpr, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: BoolExpr


@dataclass(frozen=True, slots=True)
class Exists:
    """Some integer ``low <= var <= high`` satisfies the body; every use of ``var`` is linear.

    Only the pattern IR holds it: classification eliminates it (isl), residuals never show it.
    """

    var: str
    low: IntExpr
    high: IntExpr
    body: BoolExpr


BoolExpr: TypeAlias = Truth | Compare | IsPow2 | Member | And | Or | Not | Exists
Expr: TypeAlias = IntExpr | BoolExpr

TRUE, FALSE = Truth(True), Truth(False)
ZERO, ONE = Const(0), Const(1)

# ------------------------------------------------------------------- constructors that fold


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
    if isinstance(part, Add):
        return add(*(scale(factor, p) for p in part.parts))
    return add(Scale(factor, part))


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
    rest = list(dict.fromkeys(p for p in flat if not isinstance(p, Const)))
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


# ---------------------------------------------------------------------------------- walking


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct sub-expressions, in order."""
    match expr:
        case Add(parts) | Min(parts) | Max(parts) | And(parts) | Or(parts):
            return parts
        case Scale(_, part) | FloorDiv(part, _) | Mod(part, _) | Member(part, _):
            return (part,)
        case Abs(part) | IsPow2(part) | Not(part):
            return (part,)
        case Compare(_, left, right):
            return (left, right)
        case Select(condition, then, otherwise):
            return (condition, then, otherwise)
        case Exists(_, low, high, body):
            return (low, high, body)
        case _:
            return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Yield the expression and all its descendants, parents first, without recursion."""
    stack = [expr]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(children(node)))


def free_vars(expr: Expr) -> frozenset[str]:
    """Return the names of the variables used and not bound by an ``Exists`` inside."""
    if isinstance(expr, Exists):
        outer = free_vars(expr.low) | free_vars(expr.high)
        return outer | (free_vars(expr.body) - {expr.var})
    if isinstance(expr, Var):
        return frozenset((expr.name,))
    return frozenset().union(*(free_vars(c) for c in children(expr)))


def op_count(expr: Expr) -> int:
    """Return how many operations evaluate the expression: the measure of "cheaper"."""
    return sum(
        len(node.parts) - 1 if isinstance(node, Add | Min | Max | And | Or)
        else 3 if isinstance(node, IsPow2)
        else 2 * len(node.values) if isinstance(node, Member)
        else 1
        for node in walk(expr)
        if not isinstance(node, Const | Var | Truth)
    )


def substitute(expr: Any, values: Mapping[str, IntExpr]) -> Any:
    """Return the expression with variables replaced, folded again on the way up."""
    def go(e: Any) -> Any:
        return substitute(e, values)

    match expr:
        case Var(name):
            return values.get(name, expr)
        case Add(parts):
            return add(*map(go, parts))
        case Scale(factor, part):
            return scale(factor, go(part))
        case FloorDiv(part, divisor):
            return floordiv(go(part), divisor)
        case Mod(part, divisor):
            return mod(go(part), divisor)
        case Min(parts):
            return minimum(*map(go, parts))
        case Max(parts):
            return maximum(*map(go, parts))
        case Abs(part):
            return absolute(go(part))
        case Select(condition, then, otherwise):
            return select(go(condition), go(then), go(otherwise))
        case Compare(op, left, right):
            return compare(op, go(left), go(right))
        case IsPow2(part):
            return is_pow2(go(part))
        case Member(part, members):
            return member(go(part), members)
        case And(parts):
            return and_(*map(go, parts))
        case Or(parts):
            return or_(*map(go, parts))
        case Not(part):
            return not_(go(part))
        case Exists(var, low, high, body):
            inner = {n: v for n, v in values.items() if n != var}
            return replace(expr, low=go(low), high=go(high), body=substitute(body, inner))
        case _:
            return expr


# ------------------------------------------------------------------------------- evaluation


def evaluate(expr: Expr, values: Mapping[str, Any]) -> Any:
    """Evaluate with NumPy int64 arrays or plain integers for the variables (they broadcast).

    Returns: an integer array for an ``IntExpr``, a boolean array for a ``BoolExpr`` (NumPy scalars
    or Python values where nothing broadcasts). This is the definition of every node.
    """
    import numpy as np

    def go(e: Expr) -> Any:
        match e:
            case Const(value) | Truth(value):
                return value
            case Var(name):
                return values[name]
            case Add(parts):
                total = go(parts[0])
                for part in parts[1:]:
                    total = total + go(part)
                return total
            case Scale(factor, part):
                return factor * go(part)
            case FloorDiv(part, divisor):
                return go(part) // divisor
            case Mod(part, divisor):
                return go(part) % divisor
            case Min(parts):
                return _fold(np.minimum, [go(p) for p in parts])
            case Max(parts):
                return _fold(np.maximum, [go(p) for p in parts])
            case Abs(part):
                return np.abs(go(part))
            case Select(condition, then, otherwise):
                return np.where(go(condition), go(then), go(otherwise))
            case Compare(op, left, right):
                return _COMPARE[op](go(left), go(right))
            case IsPow2(part):
                x = np.asarray(go(part))
                return (x > 0) & (x <= 1 << POW2_MAX_EXPONENT) & ((x & (x - 1)) == 0)
            case Member(part, members):
                return np.isin(go(part), np.asarray(members))
            case And(parts):
                return _fold(np.logical_and, [go(p) for p in parts])
            case Or(parts):
                return _fold(np.logical_or, [go(p) for p in parts])
            case Not(part):
                return np.logical_not(go(part))
            case Exists(var, low, high, body):
                return _exists(var, go(low), go(high), body, values)
        raise AssertionError(e)

    return go(expr)


_COMPARE: dict[CompareOp, Callable[[Any, Any], Any]] = {
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _fold(ufunc: np.ufunc, parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = ufunc(total, part)
    return total


def _exists(
    var: str, low: Any, high: Any, body: BoolExpr, values: Mapping[str, Any]
) -> NDArray[np.bool_]:
    import numpy as np

    first, last = int(np.min(low)), int(np.max(high))
    found: Any = np.False_
    for i in range(first, last + 1):
        inside = np.logical_and(np.less_equal(low, i), np.greater_equal(high, i))
        found = np.logical_or(found, inside & evaluate(body, {**values, var: i}))
    return np.asarray(found)


def interval(
    expr: IntExpr, ranges: Mapping[str, tuple[int | None, int | None]]
) -> tuple[int | None, int | None]:
    """Return bounds of an expression given bounds of its variables (None: unbounded)."""
    match expr:
        case Const(value):
            return value, value
        case Var(name):
            return ranges.get(name, (None, None))
        case Add(parts):
            pairs = [interval(p, ranges) for p in parts]
            lows, highs = [p[0] for p in pairs], [p[1] for p in pairs]
            return _sum_or_none(lows), _sum_or_none(highs)
        case Scale(factor, part):
            low, high = interval(part, ranges)
            ends = (low, high) if factor > 0 else (high, low)
            return tuple(None if e is None else factor * e for e in ends)  # type: ignore[return-value]
        case FloorDiv(part, divisor):
            low, high = interval(part, ranges)
            return (
                None if low is None else low // divisor,
                None if high is None else high // divisor,
            )
        case Mod(_, divisor):
            return 0, divisor - 1
        case Min(parts) | Max(parts):
            pairs = [interval(p, ranges) for p in parts]
            some_low = [p[0] for p in pairs if p[0] is not None]
            some_high = [p[1] for p in pairs if p[1] is not None]
            if isinstance(expr, Min):
                low = min(some_low) if len(some_low) == len(pairs) else None
                return low, min(some_high, default=None)
            high = max(some_high) if len(some_high) == len(pairs) else None
            return max(some_low, default=None), high
        case Abs(part):
            low, high = interval(part, ranges)
            ends2 = [abs(e) for e in (low, high) if e is not None]
            least = 0 if low is None or high is None or low <= 0 <= high else min(ends2)
            if low is not None and low >= 0:
                least = low
            return least, (max(ends2) if len(ends2) == 2 else None)
        case Select(_, then, otherwise):
            (a, b), (c, d) = interval(then, ranges), interval(otherwise, ranges)
            return (
                None if a is None or c is None else min(a, c),
                None if b is None or d is None else max(b, d),
            )


def tidy(expr: IntExpr, ranges: Mapping[str, tuple[int | None, int | None]]) -> IntExpr:
    """Return an equal expression without the operations that ``interval`` shows to do nothing."""
    def go(part: IntExpr) -> IntExpr:
        return tidy(part, ranges)

    match expr:
        case Add(parts):
            return add(*map(go, parts))
        case Scale(factor, part):
            return scale(factor, go(part))
        case FloorDiv(part, divisor) | Mod(part, divisor):
            inner = go(part)
            low, high = interval(inner, ranges)
            if low is not None and high is not None and low // divisor == high // divisor:
                quotient = Const(low // divisor)
                if isinstance(expr, FloorDiv):
                    return quotient
                return sub(inner, scale(divisor, quotient))
            return floordiv(inner, divisor) if isinstance(expr, FloorDiv) else mod(inner, divisor)
        case Min(parts) | Max(parts):
            kind = minimum if isinstance(expr, Min) else maximum
            return kind(*_undominated([go(p) for p in parts], ranges, isinstance(expr, Min)))
        case Select(condition, then, otherwise):
            return select(condition, go(then), go(otherwise))
        case _:
            return expr


def _undominated(
    parts: list[IntExpr], ranges: Mapping[str, tuple[int | None, int | None]], least: bool
) -> list[IntExpr]:
    """Drop parts that another part always beats (ties keep the earlier one)."""
    kept = list(dict.fromkeys(parts))
    for part in list(kept):
        for other in kept:
            if other is part:
                continue
            low, _ = interval(sub(part, other) if least else sub(other, part), ranges)
            if low is not None and low >= 0:
                kept.remove(part)
                break
    return kept


def _sum_or_none(values: list[int | None]) -> int | None:
    return None if any(v is None for v in values) else sum(v for v in values if v is not None)


# --------------------------------------------------------------------------------- printing

_LEVEL = {"or": 1, "and": 2, "not": 3, "compare": 4, "sum": 5, "product": 6, "atom": 8}


def show(expr: Expr) -> str:
    """Return the expression in the syntax of the language; ``read.py`` parses it back."""
    return _show(expr)[0]


def _show(expr: Expr) -> tuple[str, int]:
    def at(e: Expr, level: int) -> str:
        text, own = _show(e)
        return text if own >= level else f"({text})"

    match expr:
        case Const(value):
            return str(value), _LEVEL["atom"] if value >= 0 else _LEVEL["sum"]
        case Truth(value):
            return ("true" if value else "false"), _LEVEL["atom"]
        case Var(name):
            return name, _LEVEL["atom"]
        case Add(parts):
            text = at(parts[0], _LEVEL["sum"])
            for part in parts[1:]:
                shown = at(part, _LEVEL["sum"])
                text += f" - {shown[1:]}" if shown.startswith("-") else f" + {shown}"
            return text, _LEVEL["sum"]
        case Scale(-1, part):
            return f"-{at(part, _LEVEL['atom'])}", _LEVEL["sum"]
        case Scale(factor, part):
            level = _LEVEL["product"] if factor > 0 else _LEVEL["sum"]
            return f"{factor} * {at(part, _LEVEL['atom'])}", level
        case FloorDiv(part, divisor):
            return f"{at(part, _LEVEL['atom'])} div {divisor}", _LEVEL["product"]
        case Mod(part, divisor):
            return f"{at(part, _LEVEL['atom'])} mod {divisor}", _LEVEL["product"]
        case Min(parts):
            return f"min({', '.join(map(show, parts))})", _LEVEL["atom"]
        case Max(parts):
            return f"max({', '.join(map(show, parts))})", _LEVEL["atom"]
        case Abs(part):
            return f"abs({show(part)})", _LEVEL["atom"]
        case Select(condition, then, otherwise):
            return f"(if {show(condition)} then {show(then)} else {show(otherwise)})", 8
        case Compare(op, left, right):
            text = f"{at(left, _LEVEL['sum'])} {op} {at(right, _LEVEL['sum'])}"
            return text, _LEVEL["compare"]
        case IsPow2(part):
            return f"is_pow2({show(part)})", _LEVEL["atom"]
        case Member(part, values):
            listed = ", ".join(map(str, values))
            return f"{at(part, _LEVEL['sum'])} in [{listed}]", _LEVEL["compare"]
        case And(parts):
            return " and ".join(at(p, _LEVEL["not"]) for p in parts), _LEVEL["and"]
        case Or(parts):
            return " or ".join(at(p, _LEVEL["and"]) for p in parts), _LEVEL["or"]
        case Not(part):
            return f"not {at(part, _LEVEL['atom'])}", _LEVEL["not"]
        case Exists(var, low, high, body):
            return f"(exists {var} in {show(low)}..{show(high)} : {show(body)})", 8
    raise AssertionError(expr)
