"""Inputs: their sides, and the formulas of those that are computed from others."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import LENGTHS, Entry, Scope
from attnc.dsl.check_call import show_input
from attnc.dsl.check_space import SpaceChecker
from attnc.dsl.functions import TRANSFORMS, Transform
from attnc.dsl.kinds import (
    BOOL,
    HEAD,
    INT,
    LAYER,
    REAL,
    Kind,
    Time,
    Unit,
    describe,
    fits,
    is_number,
    join,
)  # fmt: skip

_TOKEN = Unit("token")


@dataclass(frozen=True, slots=True)
class _Array:
    """The elements of a formula of whole arrays, and its number of axes; type None: reported."""

    type: ast.Type | None
    axes: int


_BROKEN = _Array(None, 0)


class InputChecker(SpaceChecker):
    """Checks inputs."""

    def inputs(
        self,
        inputs: tuple[ast.Input, ...],
        scope: Scope,
        heads: ast.Heads | None,
        layers: ast.Layers | None = None,
    ) -> None:
        """Check inputs and bring them into scope, the sides that they name first."""
        for declared in inputs:
            for dim in declared.dims:
                for node in ast.walk(dim):
                    if isinstance(node, ast.Name) and node.name not in scope:
                        scope[node.name] = Entry(Kind(INT, Time.COMPILE))
        for declared in inputs:
            if declared.type.kind not in ("int", "bool", "real"):
                self.error(
                    "ATT0301", f"an input cannot hold {describe(declared.type)}", declared.span,
                    help="inputs hold int, bool or real elements",
                )  # fmt: skip
            units = tuple(self.dim(d, scope, heads, layers) for d in declared.dims)
            kind = Kind(declared.type, Time.RUN, dims=units)
            if declared.default is not None:
                self.computed(declared, scope)
            scope[declared.name] = Entry(kind, declared)

    def dim(
        self, dim: ast.Dim, scope: Scope, heads: ast.Heads | None, layers: ast.Layers | None
    ) -> Unit | None:
        """Check a side of an input; return what its axis counts, where that is known."""
        extent = dim.extent
        if extent is None:
            return None
        kind = self.need(extent, scope, INT)
        if not isinstance(extent, ast.Name) or kind.type is None:
            return None
        if heads is not None and (extent == heads.count or extent.name == "heads"):
            return HEAD
        if layers is not None and (extent == layers.count or extent.name == "layers"):
            return LAYER
        length = LENGTHS.get(extent.name)
        return _TOKEN if length is not None and scope[extent.name] is length else None

    # -------------------------------------------------------------------- formulas of arrays

    def computed(self, declared: ast.Input, scope: Scope) -> None:
        """Check the formula of a computed input: its elements and its axes."""
        assert declared.default is not None
        found = self.array(declared.default, scope)
        if found.type is None:
            return
        if not fits(found.type, declared.type):
            self.error(
                "ATT0301", f"expected elements that are {declared.type.kind}, found "
                f"{found.type.kind}", declared.default.span,
                help="compare numbers to get truth values: `types == 0`"
                if declared.type == BOOL else "declare the input with that type",
            )  # fmt: skip
        elif found.axes not in (0, len(declared.dims)):
            self.error(
                "ATT0314", f"expected {_axes(len(declared.dims))}, found {_axes(found.axes)}",
                declared.default.span, label=f"`{declared.name}` is {show_input(declared)}",
                help="declare one side for each axis",
            )  # fmt: skip

    def array(self, expr: ast.Expr, scope: Scope) -> _Array:
        """Check a formula of whole arrays."""
        match expr:
            case ast.Number() | ast.Bool():
                kind = self.expr(expr, scope)
                return _Array(kind.type, 0)
            case ast.Name():
                kind = self.raw(expr, scope)
                if kind.type is not None and kind.type.kind in ("list", "enum", "pattern"):
                    return self.no_array(expr, f"this has type {kind.type.kind}")
                return _Array(kind.type, len(kind.dims))
            case ast.Call(function=name) if name in TRANSFORMS:
                return self.transform(expr, TRANSFORMS[name], scope)
            case ast.Unary(op=op, operand=operand):
                wanted = BOOL if op == "not" else REAL
                return self.element(self.array(operand, scope), wanted, expr)
            case ast.BoolOp(parts=operands):
                found = [self.array(o, scope) for o in operands]
                return self.joined(found, BOOL, BOOL, expr)
            case ast.Compare(operands=operands, ops=(op,)) if op not in ("in", "not in"):
                found = [self.array(o, scope) for o in operands]
                wanted = BOOL if all(f.type == BOOL for f in found) else REAL
                return self.joined(found, wanted, BOOL, expr)
            case ast.Binary(op="+" | "-" | "*" | "div" | "mod"):
                wanted = INT if expr.op in ("div", "mod") else REAL
                found = [self.array(expr.left, scope), self.array(expr.right, scope)]
                return self.joined(found, wanted, None, expr)
            case _:
                return self.no_array(expr, "")

    def no_array(self, expr: ast.Expr, label: str) -> _Array:
        self.error(
            "ATT0314", "the formula of an input works on whole arrays", expr.span, label=label,
            help="use inputs, numbers, `+ - * div mod`, comparisons, `and`, `or`, `not`, and "
            f"{', '.join(f'`{t}`' for t in TRANSFORMS)}",
        )  # fmt: skip
        return _BROKEN

    def element(self, found: _Array, wanted: ast.Type, expr: ast.Expr) -> _Array:
        if found.type is None or fits(found.type, wanted):
            return found
        self.error(
            "ATT0301", f"expected elements that are {'numbers' if wanted == REAL else wanted.kind},"
            f" found {found.type.kind}", expr.span,
            help="compare numbers to get truth values: `types == 0`" if wanted == BOOL
            else "truth values combine with `and`, `or`, `not`",
        )  # fmt: skip
        return _BROKEN

    def joined(
        self, parts: list[_Array], wanted: ast.Type, result: ast.Type | None, expr: ast.Expr
    ) -> _Array:
        """Return the array of an operation element by element."""
        parts = [self.element(p, wanted, expr) for p in parts]
        common = parts[0].type
        for part in parts[1:]:
            if common is None or part.type is None:
                return _BROKEN
            common = join(common, part.type)
        return _Array(common and (result or common), max(p.axes for p in parts))

    def transform(self, expr: ast.Call, transform: Transform, scope: Scope) -> _Array:
        """Check a call of a transform."""
        if len(expr.args) != len(transform.args):
            self.error(
                "ATT0302", f"`{transform.name}` takes {len(transform.args)} "
                f"argument{'s' * (len(transform.args) != 1)}, found {len(expr.args)}",
                expr.name_span, help=f"write `{transform.usage}`",
            )  # fmt: skip
            return _BROKEN
        parts = [self.array(a, scope) for a in expr.args]
        if any(p.type is None for p in parts):
            return _BROKEN
        for part, least, arg in zip(parts, transform.args, expr.args, strict=True):
            assert part.type is not None
            if (part.axes < least) if least else part.axes:
                wanted = f"at least {_axes(least)}" if least else "a number"
                self.error(
                    "ATT0314", f"`{transform.name}` needs {wanted} here, found {_axes(part.axes)}",
                    arg.span, help=f"write `{transform.usage}`: {transform.meaning}",
                )  # fmt: skip
                return _BROKEN
        first = parts[0].type
        assert first is not None
        flags = transform.name in ("next_where", "khop")
        if flags != (first == BOOL) and transform.name not in ("transpose", "prefix_sum"):
            self.error(
                "ATT0301", f"`{transform.name}` needs {'truth values' if flags else 'numbers'}, "
                f"found {first.kind}", expr.args[0].span,
                help="compare: `types == 0`" if flags and is_number(first) else "",
            )  # fmt: skip
            return _BROKEN
        result = ast.Type(kind=transform.result) if transform.result else first
        if transform.name == "prefix_sum" and first == BOOL:
            result = INT  # it counts
        return _Array(result, parts[0].axes + transform.more)


def _axes(count: int) -> str:
    return f"{count} ax{'e' if count != 1 else 'i'}s" if count else "a number"
