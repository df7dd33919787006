"""Inputs of the AST -> run-time tensors of the IR, given or computed."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_expr import ExprLowering, element
from attnc.compiler.passes.lower_value import Array, Item, Logic, LowerError, Num
from attnc.dsl import nodes as ast
from attnc.dsl.source import Span

TRANSFORMS = get_args(ar.Transform)


class InputLowering:
    """Gathers the inputs of a pattern and of all it uses; one name, one tensor."""

    def __init__(self, exprs: ExprLowering) -> None:
        self.exprs = exprs
        self.found: dict[str, pat.Input] = {}

    def declare(self, one: ast.Input, env: Env) -> Array:
        """Return an input by name; where it has a formula, the sizes of ``env`` are in it."""
        assert one.type.kind in ("int", "bool", "real"), "the grammar has no other"
        dims = tuple(
            None if d.extent is None else self.exprs.number(d.extent, env).expr for d in one.dims
        )
        formula = None if one.default is None else self.formula(one.default, env)
        declared = pat.Input(name=one.name, kind=one.type.kind, dims=dims, formula=formula)
        return self.array(self.add(declared, one.span))

    @staticmethod
    def array(one: pat.Input) -> Array:
        """Return an input as expressions see it."""
        return Array(one.name, one.kind, one.dims)

    def add(self, one: pat.Input, span: Span) -> pat.Input:
        """Take in an input; a computed one that is new gets a name of its own."""
        name, count = one.name, 1
        while name in self.found and self.found[name] != replace(one, name=name):
            if one.formula is None:
                other = self.found[name]
                if other.formula is None and (other.kind, len(other.dims)) == (
                    one.kind, len(one.dims),
                ):  # fmt: skip
                    return other
                raise LowerError(
                    "ATT0301", f"input `{one.name}` is declared in two ways", span,
                    help="inputs of one name are one tensor: rename one of them, or pass another"
                    " input as an argument",
                )  # fmt: skip
            count += 1
            name = f"{one.name}_{count}"
        self.found[name] = replace(one, name=name)
        return self.found[name]

    def fix(self, name: str, axis: int, side: ex.IntExpr) -> None:
        """Give a name to a side of an input that was declared ``*``."""
        dims = list(self.found[name].dims)
        dims[axis] = side
        self.found[name] = replace(self.found[name], dims=tuple(dims))

    # ------------------------------------------------------------------------------ formulas

    def formula(self, expr: ast.Expr, env: Env) -> ar.ArrayExpr:
        """Return the formula of a computed input: operations on whole arrays."""
        match expr:
            case ast.Call(function=function, args=args) if function in TRANSFORMS:
                parts = tuple(self.formula(a, env) for a in args)
                return ar.ArrayCall(function, parts)  # type: ignore[arg-type]
            case ast.Binary(op="+" | "-" | "*" | "div" | "mod" as op, left=left, right=right):
                both = (self.formula(left, env), self.formula(right, env))
                return self._numbers(expr, env) or ar.ArrayOp(op, both)
            case ast.Compare(operands=operands, ops=ops):
                sides = [self.formula(o, env) for o in operands]
                tests = [
                    ar.ArrayOp(op, (sides[i], sides[i + 1]))  # type: ignore[arg-type]
                    for i, op in enumerate(ops)
                ]
                return tests[0] if len(tests) == 1 else ar.ArrayOp("and", tuple(tests))
            case ast.BoolOp(op=joined, parts=conditions):
                return ar.ArrayOp(joined, tuple(self.formula(p, env) for p in conditions))
            case ast.Unary(op="not", operand=operand):
                return ar.ArrayOp("not", (self.formula(operand, env),))
            case ast.Unary(operand=operand):
                negative = ar.ArrayOp("-", (ar.ArrayConst(0), self.formula(operand, env)))
                return self._numbers(expr, env) or negative
        return self._leaf(expr, env)

    def _numbers(self, expr: ast.Expr, env: Env) -> ar.ArrayExpr | None:
        """Return an operation on numbers alone as one number."""
        names = [n.name for n in ast.walk(expr) if isinstance(n, ast.Name)]
        if any(isinstance(env.names.get(n), Array | tuple) for n in names) or any(
            isinstance(n, ast.Call) and n.function in TRANSFORMS for n in ast.walk(expr)
        ):
            return None
        return self._leaf(expr, env)

    def _leaf(self, expr: ast.Expr, env: Env) -> ar.ArrayExpr:
        item: Item = env.names.get(expr.name, "") if isinstance(expr, ast.Name) else ""
        if isinstance(item, Array) and item.dims:
            return ar.ArrayInput(item.name)
        match self.exprs.value(expr, env):
            case Num(expr=ex.Const(value), den=1):
                return ar.ArrayConst(value)
            case Num(expr=number, den=1):
                return ar.ArrayNumber(number)
            case Logic(expr=ex.Truth(truth)):
                return ar.ArrayConst(int(truth))
            case Array() as array if not array.index:
                return ar.ArrayInput(array.name)
        raise LowerError(
            "ATT0306", "a computed input is made of whole inputs and whole numbers", expr.span,
            help="use transforms, arithmetic and comparisons of inputs without indices",
        )  # fmt: skip

    # ---------------------------------------------------------------------------- membership

    def holds(self, array: Array, part: Num, env: Env, span: Span) -> Logic:
        """Return ``part in lists[i]``: a read of a computed table of what is in each list."""
        reach = _reach(part.expr, env)
        if reach is None or part.den != 1:
            raise LowerError(
                "ATT0306", "a value here must have bounds that are known", span,
                label="this is read from an input",
                help="look positions up in lists of an input: `k in lists[h]`",
            )  # fmt: skip
        size = ex.maximum(ex.add(reach[1], ex.ONE), ex.ZERO)
        sides = (*array.dims[:-1], size)
        formula = ar.ArrayCall("members", (ar.ArrayInput(array.name), ar.ArrayNumber(size)))
        table = self.add(
            pat.Input(name=f"{array.name}_members", kind="bool", dims=sides, formula=formula), span
        )
        index = (*array.index, part.expr)
        found = element(Array(table.name, "bool", sides, index, array.size + part.size), span)
        assert isinstance(found, Logic)
        return found

    def used(self, roots: frozenset[str], sizes: frozenset[str]) -> tuple[pat.Input, ...]:
        """Return the inputs that are read, and those that say a size that is; given ones first."""
        kept: set[str] = set()
        wanted = set(roots)
        while wanted - kept:
            name = (wanted - kept).pop()
            kept.add(name)
            one = self.found.get(name)
            if one is not None and one.formula is not None:
                wanted |= ar.needs(one.formula)
        read = [one for name, one in self.found.items() if name in kept]
        named = {name for one in read for name in _sizes(one)}
        for name in sorted((kept & sizes) - named):
            teller = next((o for o in self.found.values() if name in _sizes(o)), None)
            if teller is not None:
                read.append(teller)
        given = [one for one in read if one.formula is None]
        waiting = [one for one in read if one.formula is not None]
        computed: list[pat.Input] = []
        while waiting:  # what a formula needs comes before it
            names = {one.name for one in waiting}
            ready = [o for o in waiting if o.formula and not ar.needs(o.formula) & names]
            assert ready, "checked: an input is not computed from itself"
            computed += ready
            waiting = [o for o in waiting if o not in ready]
        return (*given, *computed)


def _sizes(one: pat.Input) -> tuple[str, ...]:
    """Return the sizes that the sides of an input define."""
    found = (pat.size_of(side) for side in one.dims if side is not None)
    return tuple(size[0] for size in found if size is not None)


def _reach(expr: ex.IntExpr, env: Env) -> tuple[ex.IntExpr, ex.IntExpr] | None:
    """Return the least and greatest value of an expression of positions, by its lengths."""

    def go(part: ex.IntExpr) -> tuple[ex.IntExpr, ex.IntExpr] | None:
        match part:
            case ex.Const() | ex.Var("nq" | "nk"):
                return part, part
            case ex.Var("q" | "k" as side):
                length = env.lengths[0 if side == "q" else 1].expr
                return ex.ZERO, ex.sub(length, ex.ONE)
            case ex.Var(name):
                low, high = env.ranges.get(name, (None, None))
                return None if low is None or high is None else (ex.Const(low), ex.Const(high))
            case ex.Add(parts) | ex.Min(parts) | ex.Max(parts):
                pairs = [go(p) for p in parts]
                if any(p is None for p in pairs):
                    return None
                kind = {ex.Add: ex.add, ex.Min: ex.minimum, ex.Max: ex.maximum}[type(part)]
                ends = [p for p in pairs if p is not None]
                return kind(*(e[0] for e in ends)), kind(*(e[1] for e in ends))
            case ex.Scale(factor, inner):
                pair = go(inner)
                if pair is None:
                    return None
                low_, high_ = pair if factor > 0 else pair[::-1]
                return ex.scale(factor, low_), ex.scale(factor, high_)
            case ex.FloorDiv(inner, divisor):
                pair = go(inner)
                if pair is None:
                    return None
                return ex.floordiv(pair[0], divisor), ex.floordiv(pair[1], divisor)
            case ex.Mod(_, divisor):
                return ex.ZERO, ex.Const(divisor - 1)
            case ex.Abs(inner):
                pair = go(inner)
                if pair is None:
                    return None
                return ex.ZERO, ex.maximum(pair[1], ex.scale(-1, pair[0]))
            case ex.Select(_, then, otherwise):
                a, b = go(then), go(otherwise)
                if a is None or b is None:
                    return None
                return ex.minimum(a[0], b[0]), ex.maximum(a[1], b[1])
        return None

    return go(expr)
