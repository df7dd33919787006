"""score terms -> source text: float32 for a Triton kernel, the dtype of the call for torch.

A kernel works with powers of two, so its scores come times log2(e): ``times`` folds that factor
into the constants of an expression. What does not change from key to key is computed once, in front
of the loop; sums and products are reordered for that, which moves a float32 result in its last
places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from attnc.codegen.predicate import HostDialect, Level, bracket
from attnc.codegen.simplify import simplify_bool, simplify_int
from attnc.codegen.triton_predicate import TritonDialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.plan import Channels

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

_LARGEST, _LEAST = 3.4028234663852886e38, 1.1754943508222875e-38  # normal numbers of float32


def is_additive(score: sc.RealExpr) -> bool:
    """Return whether a score is the scaled product plus terms that do not depend on it."""
    parts = score.parts if isinstance(score, sc.RealAdd) else (score,)
    rest = [part for part in parts if part != sc.Dot()]
    return len(rest) == len(parts) - 1 and not any(map(_has_dot, rest))


def emit_score(score: sc.RealExpr, dialect: HostDialect, name: str = "_score") -> str:
    """Print a score, or a sink's logit, as a torch function that returns a tensor.

    It computes in the dtype of ``dot``, float64 where that is a plain number. The source expects
    ``predicate.HOST_HELPERS``.
    """
    out = Writer()
    with out.block(f"def {name}(dot, q, k, h, b, nq, nk, data):"):
        out.line('"""The score of a pair before the mask; `dot` is the scaled product."""')
        out.line("dtype = dot.dtype if isinstance(dot, torch.Tensor) else torch.float64")
        out.line(f"return _real({TorchScore(dialect).text(score)}, dtype)")
    return out.text()


def emit_channels(channels: Channels, dialect: HostDialect) -> str:
    """Print what a CPU plan has as channels, as a torch function of lists and of a row's term."""
    out, score = Writer(), TorchScore(dialect)
    with out.block("def _channels(q, k, h, b, nq, nk, data, dtype):"):
        out.line('"""The factors of a query, those of a key, and what is added once a row."""')
        for name, side in (("of_query", channels.of_query), ("of_key", channels.of_key)):
            with out.block(f"{name} = ["):
                for factor in side:
                    out.line(f"_real({score.text(factor)}, dtype),")
            out.line("]")
        out.line(f"return of_query, of_key, _real({score.text(channels.of_row)}, dtype)")
    return out.text()


def times(expr: sc.RealExpr, factor: float = 1.0) -> sc.RealExpr:
    """Return ``factor * expr``, the factor folded into constants; powers and logs of base two."""
    expr = _folded(expr)
    match expr:
        case sc.RealConst(value):
            return sc.RealConst(value * factor)
        case sc.RealAdd(parts):
            return sc.real_add(*(times(part, factor) for part in parts))
        case sc.RealMul(sc.RealConst(value), part) | sc.RealMul(part, sc.RealConst(value)):
            return times(part, factor * value)
        case sc.RealMul(left, right):
            if _same_for_all_keys(right):
                return sc.real_mul(times(left), times(right, factor))
            return sc.real_mul(times(left, factor), times(right))
        case sc.RealDiv(part, sc.RealConst(value)) if value:
            return times(part, factor / value)
        case sc.RealDiv(left, right):
            if _same_for_all_keys(right) and not _same_for_all_keys(left):
                return sc.real_mul(times(left), sc.real_div(sc.RealConst(factor), times(right)))
            return sc.real_div(times(left, factor), times(right))
        case sc.RealCall("exp", (part,)):
            return _scaled(sc.RealCall("exp2", (times(part, LOG2_E),)), factor)
        case sc.RealCall("log", (part,)):
            return _scaled(sc.RealCall("log2", (times(part),)), factor * LN_2)
        case sc.RealCall(function, args):
            return _scaled(sc.RealCall(function, tuple(map(times, args))), factor)
        case sc.RealSelect(condition, then, otherwise):
            return sc.real_select(condition, times(then, factor), times(otherwise, factor))
        case sc.Dot() | sc.FromInt() | sc.RealRead():
            return _scaled(expr, factor)


def _scaled(expr: sc.RealExpr, factor: float) -> sc.RealExpr:
    return expr if _near(factor, 1.0) else sc.RealMul(sc.RealConst(factor), expr)


def _folded(expr: sc.RealExpr) -> sc.RealExpr:
    """Evaluate an expression that depends on nothing; it may be no finite number."""
    if any(isinstance(n, sc.Dot | sc.RealRead | ex.Read | ex.Var) for n in sc.walk(expr)):
        return expr
    return sc.RealConst(float(sc.evaluate(expr, {})))


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-15)


def _has_dot(expr: sc.RealExpr) -> bool:
    return any(isinstance(node, sc.Dot) for node in sc.walk(expr))


def _same_for_all_keys(expr: sc.RealExpr) -> bool:
    return "k" not in sc.free_vars(expr) and not _has_dot(expr)


def _factors(expr: sc.RealExpr) -> list[sc.RealExpr]:
    if isinstance(expr, sc.RealMul):
        return _factors(expr.left) + _factors(expr.right)
    return [expr]


@dataclass(slots=True)
class TritonScore:
    """Print for a Triton kernel, in float32: ``s`` holds the products of the tile.

    ``lines`` gathers what must stand in front of the loop, ``scale_log2`` and the loads of
    ``dialect`` before it.
    """

    dialect: TritonDialect
    lines: dict[str, str] = field(default_factory=dict)

    def text(self, expr: sc.RealExpr) -> str:
        """Return the text of ``expr`` times log2(e)."""
        return self._real(times(expr, LOG2_E), Level.COMPARE, hoist=True)

    def factor(self, expr: sc.RealExpr) -> str:
        """Return the text of ``expr`` itself."""
        return self._real(times(expr), Level.COMPARE, hoist=True)

    def at_end(self, expr: sc.RealExpr) -> str:
        """Return the text of ``expr`` itself, which is the same for all keys: behind the loop."""
        return self._real(times(expr), Level.COMPARE, hoist=False)

    def once(self, expr: sc.RealExpr) -> str:
        """Return the text of ``expr`` times log2(e), which is the same for all keys."""
        return self._real(times(expr, LOG2_E), Level.COMPARE, hoist=False)

    def _real(self, expr: sc.RealExpr, level: int, *, hoist: bool) -> str:
        if hoist and _same_for_all_keys(expr) and not isinstance(expr, sc.RealConst | sc.RealRead):
            return self._hoisted(self._real(expr, Level.COMPARE, hoist=False))
        match expr:
            case sc.Dot():
                return self._real(sc.RealMul(sc.RealConst(1.0), expr), level, hoist=hoist)
            case sc.RealConst(value):
                return bracket(_float32(value), Level.ATOM if value >= 0 else Level.UNARY, level)
            case sc.FromInt(part):
                simple = simplify_int(part, self.dialect.ranges)
                if isinstance(simple, ex.Const):
                    return self._real(sc.RealConst(float(simple.value)), level, hoist=hoist)
                shown = self.dialect.integer(simple)
                return f"{shown if shown.isidentifier() else f'({shown})'}.to(tl.float32)"
            case sc.RealRead(name, index):
                return self.dialect.read(name, index)
            case sc.RealAdd(parts):
                return bracket(self._joined(list(parts), sc.real_add, hoist), Level.SUM, level)
            case sc.RealMul():
                return bracket(self._product(_factors(expr), hoist), Level.PRODUCT, level)
            case sc.RealDiv(left, right):
                text = self._real(left, Level.PRODUCT, hoist=hoist)
                text += f" / {self._real(right, Level.UNARY, hoist=hoist)}"
                return bracket(text, Level.PRODUCT, level)
            case sc.RealCall(function, args):
                shown = ", ".join(self._real(a, Level.COMPARE, hoist=hoist) for a in args)
                return self._call(function, shown)
            case sc.RealSelect(condition, then, otherwise):
                return self._select(condition, then, otherwise, level, hoist)

    def _select(
        self, condition: ex.BoolExpr, then: sc.RealExpr, otherwise: sc.RealExpr, level: int,
        hoist: bool,
    ) -> str:
        test = simplify_bool(condition, self.dialect.ranges)
        if isinstance(test, ex.Truth):
            return self._real(then if test.value else otherwise, level, hoist=hoist)
        branches = [self._real(b, Level.COMPARE, hoist=hoist) for b in (then, otherwise)]
        return f"tl.where({self.dialect.boolean(test)}, {', '.join(branches)})"

    def _call(self, function: sc.RealFunction, arguments: str) -> str:
        if function == "f32":
            return f"({arguments})"
        if function in ("tanh", "sign"):
            self.dialect.helpers.add(_TRITON[function])
        return f"{_TRITON[function]}({arguments})"

    def _joined(
        self, parts: list[sc.RealExpr], join: Callable[..., sc.RealExpr], hoist: bool
    ) -> str:
        """Print a sum, the terms that are the same for all keys as one."""
        if hoist:
            parts = _together(parts, join)
        texts = [self._real(parts[0], Level.SUM, hoist=hoist)]
        for part in parts[1:]:
            texts.append(self._real(part, Level.PRODUCT, hoist=hoist))
        return " + ".join(texts)

    def _product(self, factors: list[sc.RealExpr], hoist: bool) -> str:
        """Print a product; the scale of the dot product takes its constant factor."""
        dots = [f for f in factors if isinstance(f, sc.Dot)]
        if dots:
            constant = math.prod(f.value for f in factors if isinstance(f, sc.RealConst))
            others = [f for f in factors if not isinstance(f, sc.RealConst)]
            others.remove(sc.Dot())
            scale = "scale_log2" if _near(constant, LOG2_E) else self._hoisted(
                f"scale_log2 * {_float32(constant * LN_2)}"
            )
            return " * ".join(
                ["s", scale, *(self._real(f, Level.UNARY, hoist=hoist) for f in others)]
            )
        if hoist:
            factors = _together(factors, sc.real_mul)
        return " * ".join(self._real(f, Level.UNARY, hoist=hoist) for f in factors)

    def _hoisted(self, text: str) -> str:
        """Compute a value in front of the loop; return its name."""
        if text.isidentifier():
            return text
        return self.lines.setdefault(text, f"term_{len(self.lines)}")


def _together(
    parts: list[sc.RealExpr], join: Callable[..., sc.RealExpr]
) -> list[sc.RealExpr]:
    """Join the parts that are the same for all keys into one, at the end."""
    fixed = [p for p in parts if _same_for_all_keys(p)]
    if len(fixed) < 2:
        return parts
    whole = fixed[0]
    for part in fixed[1:]:
        whole = join(whole, part)
    return [*(p for p in parts if not _same_for_all_keys(p)), whole]


def _float32(value: float) -> str:
    """Return a literal that Triton reads as float32: larger ones are inf, smaller ones 0."""
    if abs(value) > _LARGEST:
        value = math.copysign(math.inf, value)
    if not math.isfinite(value):
        return f'float("{value}")'
    return repr(0.0 if abs(value) < _LEAST else value)


_TRITON: dict[sc.RealFunction, str] = {
    "exp": "tl.exp",
    "exp2": "tl.math.exp2",
    "log": "tl.log",
    "log2": "tl.math.log2",
    "sqrt": "tl.sqrt",
    "tanh": "_tanh",
    "abs": "tl.abs",
    "min": "tl.minimum",
    "max": "tl.maximum",
    "floor": "tl.floor",
    "sign": "_sign",
}


@dataclass(frozen=True, slots=True)
class TorchScore:
    """Print for torch, beside ``HOST_HELPERS``: ``dot`` holds scaled products.

    The text uses ``dtype``, what to compute in, and the names of ``dialect``.
    """

    dialect: HostDialect

    def text(self, expr: sc.RealExpr) -> str:
        """Return the text of an expression: a tensor, a Python number where it is constant."""
        return self._real(expr, Level.COMPARE)

    def _real(self, expr: sc.RealExpr, level: int) -> str:
        expr = _folded(expr)
        match expr:
            case sc.Dot():
                return "dot"
            case sc.RealConst(value):
                if not math.isfinite(value):
                    return f'float("{value}")'
                return bracket(repr(value), Level.ATOM if value >= 0 else Level.UNARY, level)
            case sc.FromInt(part):
                return f"_real({self.dialect.integer(part)}, dtype)"
            case sc.RealRead(name, index):
                return f"_real({self.dialect.read(name, index)}, dtype)"
            case sc.RealAdd(parts):
                texts = [self._real(parts[0], Level.SUM)]
                texts += [self._real(part, Level.PRODUCT) for part in parts[1:]]
                return bracket(" + ".join(texts), Level.SUM, level)
            case sc.RealMul(left, right) | sc.RealDiv(left, right):
                sign = "*" if isinstance(expr, sc.RealMul) else "/"
                text = f"{self._real(left, Level.PRODUCT)} {sign} {self._real(right, Level.UNARY)}"
                return bracket(text, Level.PRODUCT, level)
            case sc.RealCall(function, args):
                shown = [self._real(a, Level.COMPARE) for a in args]
                if function == "f32":
                    return f"_real(_real({shown[0]}, torch.float32), dtype)"
                return f"{_TORCH[function]}({', '.join(shown)})"
            case sc.RealSelect(condition, then, otherwise):
                folded = [_folded(b) for b in (then, otherwise)]
                branches = [self._real(b, Level.COMPARE) for b in folded]
                if all(isinstance(b, sc.RealConst) for b in folded):
                    branches[0] = f"_real({branches[0]}, dtype)"
                return f"_choose({self.dialect.boolean(condition)}, {', '.join(branches)})"


_TORCH: dict[sc.RealFunction, str] = {
    "exp": "torch.exp",
    "exp2": "torch.exp2",
    "log": "torch.log",
    "log2": "torch.log2",
    "sqrt": "torch.sqrt",
    "tanh": "torch.tanh",
    "abs": "torch.abs",
    "min": "_least",
    "max": "_greatest",
    "floor": "torch.floor",
    "sign": "torch.sign",
}
