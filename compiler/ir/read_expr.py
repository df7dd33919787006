"""Text -> expressions of the IR: the inverse of their ``show`` functions."""

from __future__ import annotations

from typing import Any

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.expr.text import VARIABLES
from attnc.dsl import nodes as ast
from attnc.dsl.parser import parse_expression


def integer(text: str) -> ex.IntExpr:
    """Parse an integer expression; a bare name that is no variable is a number read at the call."""
    return integer_of(parse_expression(text))


def predicate(text: str) -> ex.BoolExpr:
    """Parse a predicate; a bare name that is no variable is a number read at the call."""
    return truth_of(parse_expression(text))


def formula(text: str) -> ar.ArrayExpr:
    """Parse the formula of a computed input, ``blocks(...)`` apart."""
    return array_of(parse_expression(text))


def score(text: str) -> sc.RealExpr:
    """Parse a score."""
    return real_of(parse_expression(text))


def number_of(node: ast.Expr) -> int:
    """Read a whole number."""
    value = integer_of(node)
    if not isinstance(value, ex.Const):
        raise ValueError(f"not a number: {node}")
    return value.value


def integer_of(node: ast.Expr) -> ex.IntExpr:
    """Read an integer expression."""
    match node:
        case ast.Number():
            return ex.Const(int(node.value))
        case ast.Name(name=name):
            return ex.Var(name) if name in VARIABLES else ex.Read(name)
        case ast.Call(function="scalar", args=(ast.Name(name=name),)):
            return ex.Read(name)
        case ast.Index():
            return ex.Read(*_indices(node))
        case ast.Unary(op="-"):
            return ex.scale(-1, integer_of(node.operand))
        case ast.Binary(op="+"):
            return ex.add(integer_of(node.left), integer_of(node.right))
        case ast.Binary(op="-"):
            return ex.sub(integer_of(node.left), integer_of(node.right))
        case ast.Binary(op="*", left=ast.Number() | ast.Unary()):
            factor = integer_of(node.left)
            assert isinstance(factor, ex.Const)
            return ex.scale(factor.value, integer_of(node.right))
        case ast.Binary(op="*"):
            return ex.mul(integer_of(node.left), integer_of(node.right))
        case ast.Binary(op="div"):
            return ex.quot(integer_of(node.left), integer_of(node.right))
        case ast.Binary(op="mod"):
            return ex.rem(integer_of(node.left), integer_of(node.right))
        case ast.Call(function="min" | "max" | "abs"):
            args = [integer_of(a) for a in node.args]
            if node.function == "abs":
                return ex.absolute(args[0])
            return (ex.minimum if node.function == "min" else ex.maximum)(*args)
        case ast.IfExpr():
            then, otherwise = integer_of(node.then), integer_of(node.otherwise)
            return ex.select(truth_of(node.condition), then, otherwise)
        case _:
            raise ValueError(f"not an integer expression of the IR: {node}")


def truth_of(node: ast.Expr) -> ex.BoolExpr:
    """Read a predicate."""
    match node:
        case ast.Bool():
            return ex.Truth(node.value)
        case ast.Compare(ops=("in",), operands=(part, ast.ListOf() as listed)):
            values = [integer_of(item) for item in listed.items]
            return ex.member(integer_of(part), [v.value for v in values if isinstance(v, ex.Const)])
        case ast.Compare():
            pairs = zip(node.operands, node.ops, node.operands[1:], strict=False)
            return ex.and_(*(ex.compare(op, integer_of(a), integer_of(b)) for a, op, b in pairs))  # type: ignore[arg-type]
        case ast.BoolOp():
            return (ex.and_ if node.op == "and" else ex.or_)(*map(truth_of, node.parts))
        case ast.Unary(op="not"):
            return ex.not_(truth_of(node.operand))
        case ast.Call(function="is_pow2"):
            return ex.is_pow2(integer_of(node.args[0]))
        case ast.Quantifier(op="exists"):
            body = _bound(truth_of(node.body), node.var)
            return ex.Exists(node.var, integer_of(node.low), integer_of(node.high), body)
        case _:
            raise ValueError(f"not a predicate of the IR: {node}")


def _bound(expr: Any, name: str) -> Any:
    """Turn the reads of a name that a quantifier binds into its variable."""
    if expr == ex.Read(name):
        return ex.Var(name)
    return ex.rebuild(expr, lambda e: _bound(e, name)) if ex.children(expr) else expr


def array_of(node: ast.Expr) -> ar.ArrayExpr:
    match node:
        case ast.Name(name=name):
            return ar.ArrayInput(name)
        case ast.Number() | ast.Unary(op="-"):
            return ar.ArrayConst(number_of(node))
        case ast.Unary(op="not"):
            return ar.ArrayOp("not", (array_of(node.operand),))
        case ast.BoolOp():
            return ar.ArrayOp(node.op, tuple(map(array_of, node.parts)))
        case ast.Binary() | ast.Compare(ops=(_,)):
            parts = node.operands if isinstance(node, ast.Compare) else (node.left, node.right)
            op = node.ops[0] if isinstance(node, ast.Compare) else node.op
            return ar.ArrayOp(op, tuple(map(array_of, parts)))  # type: ignore[arg-type]
        case ast.Call(function="number"):
            return ar.ArrayNumber(integer_of(node.args[0]))
        case ast.Call():
            return ar.ArrayCall(node.function, tuple(map(array_of, node.args)))  # type: ignore[arg-type]
        case _:
            raise ValueError(f"not a formula of the IR: {node}")


def real_of(node: ast.Expr) -> sc.RealExpr:
    match node:
        case ast.Name(name="dot"):
            return sc.Dot()
        case ast.Name(name=name) | ast.Call(function="scalar", args=(ast.Name(name=name),)):
            return sc.RealRead(name)
        case ast.Number(value=value):
            return sc.RealConst(float(value))
        case ast.Unary(op="-", operand=ast.Number(value=value)):
            return sc.RealConst(-float(value))
        case ast.Index():
            name, index = _indices(node)
            return sc.RealRead(name, index)
        case ast.Binary(op="+"):
            return sc.real_add(real_of(node.left), real_of(node.right))
        case ast.Binary(op="*"):
            return sc.RealMul(real_of(node.left), real_of(node.right))
        case ast.Binary(op="/"):
            return sc.RealDiv(real_of(node.left), real_of(node.right))
        case ast.Call(function="real"):
            return sc.FromInt(integer_of(node.args[0]))
        case ast.Call():
            return sc.RealCall(node.function, tuple(map(real_of, node.args)))  # type: ignore[arg-type]
        case ast.IfExpr():
            then, otherwise = real_of(node.then), real_of(node.otherwise)
            return sc.RealSelect(truth_of(node.condition), then, otherwise)
        case _:
            raise ValueError(f"not a score of the IR: {node}")


def _indices(node: ast.Index) -> tuple[str, tuple[ex.IntExpr, ...]]:
    index: list[ex.IntExpr] = []
    base: ast.Expr = node
    while isinstance(base, ast.Index):
        index.append(integer_of(base.index))
        base = base.base
    if not isinstance(base, ast.Name):
        raise ValueError(f"not an input: {base}")
    return base.name, tuple(reversed(index))
