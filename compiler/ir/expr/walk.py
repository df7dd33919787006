"""Walking and rewriting expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from attnc.compiler.ir.expr.fold import (
    absolute,
    add,
    and_,
    compare,
    floordiv,
    is_pow2,
    maximum,
    member,
    minimum,
    mod,
    mul,
    not_,
    or_,
    quot,
    rem,
    scale,
    select,
)
from attnc.compiler.ir.expr.nodes import (
    Abs,
    Add,
    And,
    Compare,
    Const,
    Exists,
    Expr,
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
    Read,
    Rem,
    Scale,
    Select,
    Truth,
    Var,
)

_CHILDREN: Mapping[type, Callable[[Any], tuple[Expr, ...]]] = {
    **dict.fromkeys((Add, Min, Max, And, Or), lambda e: e.parts),
    **dict.fromkeys((Scale, FloorDiv, Mod, Member, Abs, IsPow2, Not), lambda e: (e.part,)),
    **dict.fromkeys((Compare, Mul), lambda e: (e.left, e.right)),
    **dict.fromkeys((Quot, Rem), lambda e: (e.part, e.by)),
    Read: lambda e: e.index,
    Select: lambda e: (e.condition, e.then, e.otherwise),
    Exists: lambda e: (e.low, e.high, e.body),
    **dict.fromkeys((Const, Var, Truth), lambda _: ()),
}
"""The sub-expressions by class: walks are much of the compiler's time, and a look-up is short."""


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct sub-expressions, in order."""
    return _CHILDREN[type(expr)](expr)


def walk(expr: Expr) -> Iterator[Expr]:
    """Yield the expression and all its descendants, parents first, without recursion."""
    stack = [expr]
    while stack:
        node = stack.pop()
        yield node
        stack += _CHILDREN[type(node)](node)[::-1]


def free_vars(expr: Expr) -> frozenset[str]:
    """Return the names of the variables used and not bound by an ``Exists`` inside."""
    names: set[str] = set()
    stack = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, Var):
            names.add(node.name)
        elif isinstance(node, Exists):
            names |= free_vars(node.body) - {node.var}
            stack += (node.low, node.high)
        else:
            stack += _CHILDREN[type(node)](node)
    return frozenset(names)


def reads(expr: Expr) -> tuple[Read, ...]:
    """Return the distinct reads of run-time inputs, in the order they stand."""
    return tuple(dict.fromkeys(node for node in walk(expr) if isinstance(node, Read)))


def is_static(expr: Expr) -> bool:
    """Return whether an expression is linear in positions and lengths and reads no input.

    isl holds what is static; everything else is evaluated at run time (the materialised path).
    """
    return not any(isinstance(node, Read | Mul | Quot | Rem) for node in walk(expr))


def relevant_side(expr: Expr) -> Literal["none", "q", "k", "both"]:
    """Return which positions the value depends on; heads and lengths belong to neither side."""
    used: set[str] = set()
    stack = [expr]
    while stack and len(used) < 2:
        node = stack.pop()
        if isinstance(node, Var):
            used |= {node.name} & {"q", "k"}
        elif isinstance(node, Exists):
            used |= free_vars(node) & {"q", "k"}
        else:
            stack += _CHILDREN[type(node)](node)
    if len(used) == 2:
        return "both"
    return "q" if "q" in used else "k" if used else "none"


def op_count(expr: Expr) -> int:
    """Return how many operations evaluate the expression: the measure of "cheaper"."""
    total = 0
    for node in walk(expr):
        match node:
            case Const() | Var() | Truth():
                pass
            case Add(parts) | Min(parts) | Max(parts) | And(parts) | Or(parts):
                total += len(parts) - 1
            case IsPow2():
                total += 3
            case Member(_, members):
                total += 2 * len(members)
            case _:
                total += 1
    return total


def substitute(expr: Any, values: Mapping[str, IntExpr]) -> Any:
    """Return the expression with variables replaced, folded again on the way up."""
    match expr:
        case Var(name):
            return values.get(name, expr)
        case Exists(var, low, high, body):
            inner = {n: v for n, v in values.items() if n != var}
            taken = frozenset[str]().union(*map(free_vars, inner.values()))
            name, count = var, 1
            while name in taken or (name != var and name in free_vars(body)):
                name, count = f"{var}_{count + 1}", count + 1  # no value's variable is bound here
            if name != var:
                inner[var] = Var(name)
            return Exists(
                name, substitute(low, values), substitute(high, values), substitute(body, inner)
            )
        case _:
            return rebuild(expr, lambda e: substitute(e, values))


def rebuild(expr: Any, go: Callable[[Any], Any]) -> Any:
    """Return the expression with each direct sub-expression replaced, folded again."""
    match expr:
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
        case Mul(left, right):
            return mul(go(left), go(right))
        case Quot(part, by):
            return quot(go(part), go(by))
        case Rem(part, by):
            return rem(go(part), go(by))
        case Read(name, index):
            return Read(name, tuple(map(go, index)))
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
        case Exists(_, low, high, body):
            return replace(expr, low=go(low), high=go(high), body=go(body))
        case _:
            return expr
