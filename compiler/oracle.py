"""Checked AST -> dense mask: the definition that every later form must equal.

Written apart from lowering on purpose, as the language reads: lengths are numbers, positions are
NumPy arrays, heads and quantifiers are loops, rationals are Python fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from attnc.compiler.binding import Value, bind, fit
from attnc.dsl import nodes as ast
from attnc.dsl.check import arguments
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.limits import deep_recursion
from attnc.dsl.resolve import Definition, Module

if TYPE_CHECKING:
    from numpy.typing import NDArray

Env = Mapping[str, Any]


def dense(
    definition: Definition, given: Mapping[str, Value], nq: int, nk: int
) -> NDArray[np.bool_]:
    """Return the mask of a checked pattern: true where query q may see key k.

    Shape: ``[heads or 1, nq, nk]``.
    """
    with deep_recursion():
        shared = _bind(definition.module.params, given, {})
        scope = _Scope(definition, shared, _bind(definition.pattern.params, given, shared), nq, nk)
        heads = scope.head_count() or 1
        mask = np.zeros((heads, nq, nk), dtype=np.bool_)
        for head in range(heads):
            mask[head] = scope.set(definition.pattern.body, head)
    return mask


def _bind(
    params: tuple[ast.Param, ...], given: Mapping[str, Value], env: Mapping[str, Value]
) -> dict[str, Value]:
    wrong: list[Diagnostic] = []
    bound = bind(params, given, env, evaluate, wrong.append)
    if wrong:
        raise CompileError(wrong)
    return bound


class _Scope:
    """One pattern with its parameter values, at one pair of lengths."""

    def __init__(
        self,
        definition: Definition,
        shared: dict[str, Value],
        values: dict[str, Value],
        nq: int,
        nk: int,
    ) -> None:
        self.definition, self.shared, self.values = definition, shared, values
        self.nq, self.nk = nq, nk
        lengths = {"n": nk, "nk": nk, "nq": nq}
        self.env: Env = {**lengths, **values}
        clause = definition.pattern.heads or definition.module.heads
        self.declared = None if clause is None else evaluate(clause.count, values)

    def set(self, part: ast.Set, head: int) -> NDArray[np.bool_]:
        """Return which pairs a set keeps for one head. Shape: ``[nq, nk]``."""
        match part:
            case ast.Builder():
                env = {
                    **self.env,
                    part.query: np.arange(self.nq, dtype=np.int64)[:, None],
                    part.key: np.arange(self.nk, dtype=np.int64)[None, :],
                }
                if part.head is not None:
                    env[part.head] = 0 if self.declared == 1 else head
                kept = evaluate(part.predicate, env)
                return np.broadcast_to(np.asarray(kept, dtype=np.bool_), (self.nq, self.nk))
            case ast.Reference():
                inner = self.used(part)
                return inner.set(inner.definition.pattern.body, head)
            case ast.SetUnion(parts=parts):
                total = self.set(parts[0], head)
                for other in parts[1:]:
                    total = total | self.set(other, head)
                return total
            case ast.SetIntersection(parts=parts):
                total = self.set(parts[0], head)
                for other in parts[1:]:
                    total = total & self.set(other, head)
                return total
            case ast.SetDifference(left=left, right=right):
                return self.set(left, head) & ~self.set(right, head)
            case ast.SetComplement(part=inner_part):
                return ~self.set(inner_part, head)
            case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
                return self.set(then if evaluate(condition, self.env) else otherwise, head)

    def used(self, reference: ast.Reference) -> _Scope:
        """Return the scope of a referenced pattern: its arguments evaluated here."""
        caller: Module = self.definition.module
        target = caller.find(reference.name)
        assert target is not None
        params, own = arguments(target, caller), target.pattern.params
        given: dict[str, Value] = {}
        for position, argument in enumerate(reference.args):
            param = params[argument.name] if argument.name else own[position]
            given[param.name] = fit(evaluate(argument.value, self.env), param.type)
        shared = self.shared
        if target.module is not caller:
            shared = _bind(target.module.params, given, {})
        return _Scope(target, shared, _bind(own, given, shared), self.nq, self.nk)

    def head_count(self) -> int | None:
        """Return how many heads the pattern tells apart, None where all are the same."""
        if self.definition.pattern.heads is not None:
            return None if self.declared == 1 else self.declared
        return self._heads_of(self.definition.pattern.body)

    def _heads_of(self, part: ast.Set) -> int | None:
        match part:
            case ast.Builder(head=head):
                return None if head is None or self.declared == 1 else self.declared
            case ast.Reference():
                return self.used(part).head_count()
            case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
                return self._heads_of(then if evaluate(condition, self.env) else otherwise)
            case ast.SetUnion(parts=parts) | ast.SetIntersection(parts=parts):
                inside = parts
            case ast.SetDifference(left=left, right=right):
                inside = (left, right)
            case ast.SetComplement(part=inner):
                inside = (inner,)
        found = (self._heads_of(p) for p in inside)
        return next((heads for heads in found if heads is not None), None)


# ------------------------------------------------------------------------------- expressions


def evaluate(expr: ast.Expr, env: Env) -> Any:
    """Return the value of a checked expression.

    Integers are Python ints or int64 arrays; rationals are Fractions or object arrays of them.
    """
    match expr:
        case ast.Number(value=value):
            return int(value) if value.denominator == 1 else value
        case ast.Bool(value=value):
            return value
        case ast.Name(name=name):
            return env.get(name, name)  # not in scope: the choice of that name
        case ast.ListOf(items=items):
            return tuple(evaluate(i, env) for i in items)
        case ast.Index(base=base, index=index):
            return evaluate(base, env)[evaluate(index, env)]
        case ast.Call(function=function, args=args):
            return _call(function, [evaluate(a, env) for a in args])
        case ast.Unary(op="not", operand=operand):
            return np.logical_not(evaluate(operand, env))
        case ast.Unary(operand=operand):
            return -evaluate(operand, env)
        case ast.Binary(op=op, left=left, right=right):
            return _ARITHMETIC[op](evaluate(left, env), evaluate(right, env))
        case ast.Compare(operands=operands, ops=ops):
            values = [evaluate(o, env) for o in operands]
            held: Any = True
            for sign, one, other in zip(ops, values[:-1], values[1:], strict=True):
                held = np.logical_and(held, _compare(sign, one, other))
            return held
        case ast.BoolOp(op=op, parts=parts):
            return _junction(op, parts, env)
        case ast.Quantifier():
            return _quantifier(expr, env)
        case ast.IfExpr(condition=condition, then=then, otherwise=otherwise):
            chosen = evaluate(condition, env)
            if np.ndim(chosen) == 0:
                return evaluate(then if chosen else otherwise, env)
            return np.where(chosen, evaluate(then, env), evaluate(otherwise, env))
        case ast.Let(name=name, value=bound, body=body):
            return evaluate(body, {**env, name: evaluate(bound, env)})


def _divide(x: Any, y: Any) -> Any:
    return x * (1 / Fraction(y))


def _power(x: Any, y: Any) -> Any:
    return x**y


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": _divide,
    "div": lambda x, y: x // int(y),  # both Python and NumPy floor
    "mod": lambda x, y: x % int(y),
    "**": _power,
}


def _each(function: Callable[[Any], int], x: Any) -> Any:
    """Apply an integer-valued function of rationals to a number or an array of them."""
    if np.ndim(x) == 0:
        return function(x)
    return x if x.dtype != object else np.vectorize(function, otypes=[np.int64])(x)


def _call(function: str, args: list[Any]) -> Any:
    first = args[0]
    match function:
        case "abs":
            return abs(first)
        case "min" | "max":
            pick = _least if function == "min" else _greatest
            items = list(first) if isinstance(first, tuple) else args
            result = items[0]
            for item in items[1:]:
                result = pick(result, item)
            return result
        case "clamp":
            return _least(_greatest(first, args[1]), args[2])
        case "floor":
            return _each(math.floor, first)
        case "ceil":
            return _each(math.ceil, first)
        case "is_pow2":
            return np.isin(first, [2**e for e in range(41)])
        case "bit_length":
            return int(first).bit_length()
        case "len":
            return len(first)
    raise AssertionError(function)


def _least(x: Any, y: Any) -> Any:
    return min(x, y) if np.ndim(x) == np.ndim(y) == 0 else np.where(x <= y, x, y)


def _greatest(x: Any, y: Any) -> Any:
    return max(x, y) if np.ndim(x) == np.ndim(y) == 0 else np.where(x >= y, x, y)


def _compare(op: str, x: Any, y: Any) -> Any:
    match op:
        case "in" | "not in":
            found: Any = False
            for item in y:
                found = np.logical_or(found, x == item)
            return found if op == "in" else np.logical_not(found)
        case "==":
            return x == y
        case "!=":
            return x != y
        case "<":
            return x < y
        case "<=":
            return x <= y
        case ">":
            return x > y
        case ">=":
            return x >= y
    raise AssertionError(op)


def _junction(op: str, parts: tuple[ast.Expr, ...], env: Env) -> Any:
    """Left to right: a part after one that decides alone is not read (it may divide by zero)."""
    deciding = op == "or"
    join = np.logical_or if deciding else np.logical_and
    total: Any = not deciding
    for part in parts:
        value = evaluate(part, env)
        if np.ndim(value) == 0 and bool(value) == deciding:
            return deciding
        total = join(total, value)
    return total


def _quantifier(expr: ast.Quantifier, env: Env) -> Any:
    """Loop over the values; ends that differ from pair to pair exclude a value where it is out."""
    low, high = evaluate(expr.low, env), evaluate(expr.high, env)
    exists = expr.op == "exists"
    total: Any = not exists
    if np.size(low) == 0 or np.size(high) == 0:
        return total
    for value in range(int(np.min(low)), int(np.max(high)) + 1):
        inside = np.logical_and(low <= value, value <= high)
        held = evaluate(expr.body, {**env, expr.var: value})
        if exists:
            total = np.logical_or(total, np.logical_and(inside, held))
        else:
            total = np.logical_and(total, np.logical_or(np.logical_not(inside), held))
    return total
