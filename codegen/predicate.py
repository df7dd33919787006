"""expression -> Triton or torch source text.

Two dialects of one printer. The Triton dialect prints 32-bit arithmetic unless interval analysis
says that a term needs 64 bits, and never ``//`` or ``%`` on an operand that may be negative (Triton
truncates there, the language floors). The torch dialect works on int64 tensors and Python integers,
whose ``//`` and ``%`` floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from attnc.codegen.simplify import Ranges, simplify_bool, simplify_int
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.plan import MAX_LENGTH
from attnc.dsl.diagnostics import CompileError, Diagnostic

TOKEN_RANGES: Ranges = {
    # Positions reach past the lengths by at most the rest of a last tile.
    "q": (0, MAX_LENGTH + 1023),
    "k": (0, MAX_LENGTH + 1023),
    "h": (0, 2**20),
    "nq": (0, MAX_LENGTH),
    "nk": (0, MAX_LENGTH),
}
TILE_RANGES: Ranges = {
    "qb": (0, MAX_LENGTH // 16),
    "kb": (0, MAX_LENGTH // 16),
    "h": (0, 2**20),
    "nq": (0, MAX_LENGTH),
    "nk": (0, MAX_LENGTH),
    "NQ": (0, MAX_LENGTH // 16),
    "NK": (0, MAX_LENGTH // 16),
}

MAX_CHAIN = 64
"""Longest chain of operators printed without brackets."""

MAX_BRACKETS = 180
"""Deepest nest of brackets in printed text: Python reads no more than 200."""

MAX_OPERATIONS = 20_000
"""Largest expression printed; Triton would compile a longer one for minutes."""

TRITON_HELPERS: dict[str, str] = {
    "_floor_mod": '''\
@triton.jit
def _floor_mod(x, divisor: tl.constexpr):
    """`x mod divisor`, never negative (`%` truncates below zero)."""
    rest = x % divisor
    return tl.where(rest < 0, rest + divisor, rest)
''',
    "_floor_div": '''\
@triton.jit
def _floor_div(x, divisor: tl.constexpr):
    """`floor(x / divisor)` (`//` truncates below zero)."""
    rest = x % divisor
    return (x - tl.where(rest < 0, rest + divisor, rest)) // divisor
''',
    "_is_pow2": '''\
@triton.jit
def _is_pow2(x):
    """Whether x is 1, 2, 4, ..."""
    return (x > 0) & ((x & (x - 1)) == 0)
''',
}
"""Functions that Triton text may call; ``TritonDialect.helpers`` says which it does."""

HOST_HELPERS = '''\
def _least(a, b):
    """The smaller of two numbers, element by element where one is a tensor."""
    if isinstance(a, torch.Tensor):
        return torch.minimum(a, b) if isinstance(b, torch.Tensor) else a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, torch.Tensor) else min(a, b)


def _greatest(a, b):
    """The larger of two numbers, element by element where one is a tensor."""
    if isinstance(a, torch.Tensor):
        return torch.maximum(a, b) if isinstance(b, torch.Tensor) else a.clamp(min=b)
    return b.clamp(min=a) if isinstance(b, torch.Tensor) else max(a, b)


def _choose(condition, then, otherwise):
    """`then` where the condition holds, else `otherwise`."""
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, then, otherwise)
    return then if condition else otherwise


def _is_power_of_two(x):
    """Whether x is 1, 2, 4, ..."""
    return (x > 0) & ((x & (x - 1)) == 0)
'''
"""Functions that torch text may call. A written module holds the block once, in front of both its
users (GPU launch, CPU executor): ``emit_host`` and ``emit_cpu`` do not repeat it."""

_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)

# Python's precedence: a comparison binds looser than | and &.
_COMPARE, _OR, _AND, _SHIFT, _SUM, _PRODUCT, _UNARY, _ATOM = range(8)


@dataclass(slots=True)
class _Printer:
    """What the dialects share: precedence, junctions, sums, tests for membership."""

    names: Mapping[str, str]
    ranges: Ranges

    def name(self, name: str, value: ex.IntExpr) -> str:
        """Make a name for a value that the text holds; return it."""
        self.names = {**self.names, name: name}
        self.ranges = {**self.ranges, name: ex.interval(value, self.ranges)}
        return name

    def integer(self, expr: ex.IntExpr) -> str:
        """Return the text of an integer expression, simplified under the ranges."""
        _check_size(expr)
        return _checked(self._wide_or_not(simplify_int(expr, self.ranges), _COMPARE))

    def boolean(self, expr: ex.BoolExpr) -> str:
        """Return the text of a truth value, simplified; ``True``/``False`` where it is decided."""
        _check_size(expr)
        return _checked(self._bool(simplify_bool(expr, self.ranges), _COMPARE))

    def _bool(self, expr: ex.BoolExpr, level: int) -> str:
        match expr:
            case ex.Truth(value):
                return str(value)
            case ex.Compare(op, left, right):
                wide = self._needs_wide(left) or self._needs_wide(right)
                left_text = self._int(left, _SUM, wide)
                text = f"{left_text} {op} {self._int(right, _SUM, wide)}"
                return _bracket(text, _COMPARE, level)
            case ex.IsPow2(part):
                return self._is_pow2(part, negated=False, level=level)
            case ex.Not(ex.IsPow2(part)):
                return self._is_pow2(part, negated=True, level=level)
            case ex.Member(part, values):
                return self._member(part, values, negated=False, level=level)
            case ex.Not(ex.Member(part, values)):
                return self._member(part, values, negated=True, level=level)
            case ex.And(parts):
                text = _chain(" & ", [self._bool(p, _SHIFT) for p in parts])
                return _bracket(text, _AND, level)
            case ex.Or(parts):
                text = _chain(" | ", [self._bool(p, _SHIFT) for p in parts])
                return _bracket(text, _OR, level)
        raise AssertionError(f"not a residual predicate: {ex.show(expr)}")

    def _member(
        self, part: ex.IntExpr, values: tuple[int, ...], *, negated: bool, level: int
    ) -> str:
        tests: list[ex.BoolExpr] = []
        for first, step, count in progressions(values):
            last = first + step * (count - 1)
            if count == 1:
                tests.append(ex.Compare("==", part, ex.Const(first)))
                continue
            bounds: tuple[ex.BoolExpr, ...] = (
                ex.Compare(">=", part, ex.Const(first)),
                ex.Compare("<=", part, ex.Const(last)),
            )
            if step > 1:
                rest = ex.mod(ex.sub(part, ex.Const(first)), step)
                bounds += (ex.Compare("==", rest, ex.ZERO),)
            tests.append(ex.and_(*bounds))
        whole = ex.or_(*tests)
        return self._bool(
            simplify_bool(ex.not_(whole) if negated else whole, self.ranges), level
        )

    def _sum(self, parts: tuple[ex.IntExpr, ...], wide: bool) -> str:
        if len(parts) > MAX_CHAIN:
            half = len(parts) // 2
            return f"({self._sum(parts[:half], wide)}) + ({self._sum(parts[half:], wide)})"
        # A leading minus reads badly: begin with a term that is added, where there is one.
        first = next(
            (p for p in parts if not (isinstance(p, ex.Scale | ex.Const) and _sign(p) < 0)),
            parts[0],
        )
        text = self._int(first, _SUM, wide)
        for part in parts:
            if part is first:
                continue
            negative = isinstance(part, ex.Scale | ex.Const) and _sign(part) < 0
            shown = self._int(ex.scale(-1, part) if negative else part, _PRODUCT, wide)
            text += f" - {shown}" if negative else f" + {shown}"
        return text

    def _fits(self, expr: ex.IntExpr, limits: tuple[int, int]) -> bool:
        low, high = ex.interval(expr, self.ranges)
        return low is not None and high is not None and limits[0] <= low and high <= limits[1]

    def _check_64(self, expr: ex.IntExpr) -> None:
        if not self._fits(expr, _INT64):
            raise CompileError((_too_large(expr),))

    def _wide_or_not(self, expr: ex.IntExpr, level: int) -> str:
        return self._int(expr, level, self._needs_wide(expr))

    def _needs_wide(self, expr: ex.IntExpr) -> bool:
        raise NotImplementedError

    def _int(self, expr: ex.IntExpr, level: int, wide: bool) -> str:
        raise NotImplementedError

    def _is_pow2(self, part: ex.IntExpr, *, negated: bool, level: int) -> str:
        name = self._pow2_name()
        text = f"{name}({self._wide_or_not(part, _COMPARE)})"
        own = _ATOM
        _, high = ex.interval(part, self.ranges)
        if high is None or high > 1 << ex.POW2_MAX_EXPONENT:
            cap = self._wide_or_not(part, _SUM)
            text, own = f"{text} & ({cap} <= {1 << ex.POW2_MAX_EXPONENT})", _AND
        if negated:
            text, own = f"{_bracket(text, own, _OR)} == 0", _COMPARE
        return _bracket(text, own, level)

    def _pow2_name(self) -> str:
        raise NotImplementedError


@dataclass(slots=True)
class TritonDialect(_Printer):
    """Print for a Triton kernel: scalars and tensors of int32 (int64 where a term needs it).

    ``names`` maps variables to the kernel's names; every variable must hold a Triton value, not a
    constexpr. ``helpers`` gathers the names of the ``TRITON_HELPERS`` that the text calls.
    """

    helpers: set[str] = field(default_factory=set)

    _FUNCTION: ClassVar[dict[type, str]] = {ex.Min: "tl.minimum", ex.Max: "tl.maximum"}

    def tile(self, expr: ex.IntExpr) -> str:
        """Return the text of a tile number or count: as ``integer``, brought back to 32 bits."""
        simple = simplify_int(expr, self.ranges)
        if self._needs_wide(simple):
            return f"({self._int(simple, _COMPARE, True)}).to(tl.int32)"
        return self._int(simple, _COMPARE, False)

    def _needs_wide(self, expr: ex.IntExpr) -> bool:
        """Whether some intermediate value of a term may leave 32 bits."""
        wide = False
        stack: list[ex.Expr] = [expr]
        while stack:
            node = stack.pop()
            if isinstance(node, ex.Select):  # its condition is a term of its own
                stack += [node.then, node.otherwise]
            elif isinstance(node, ex.Mod) and _wraps(node):
                pass
            else:
                stack += ex.children(node)
            if not self._fits(node, _INT32):  # type: ignore[arg-type]
                self._check_64(node)  # type: ignore[arg-type]
                wide = True
        return wide

    def _int(self, expr: ex.IntExpr, level: int, wide: bool) -> str:
        match expr:
            case ex.Const(value):
                return _bracket(str(value), _ATOM if value >= 0 else _UNARY, level)
            case ex.Var(name):
                return f"{self.names[name]}.to(tl.int64)" if wide else self.names[name]
            case ex.Add(parts):
                return _bracket(self._sum(parts, wide), _SUM, level)
            case ex.Scale(-1, part):
                return _bracket(f"-{self._int(part, _UNARY, wide)}", _UNARY, level)
            case ex.Scale(factor, part):
                text = f"{self._int(part, _PRODUCT, wide)} * {_literal(factor)}"
                return _bracket(text, _PRODUCT, level)
            case ex.FloorDiv(part, divisor):
                return self._quotient(part, divisor, level, wide)
            case ex.Mod(part, divisor):
                return self._rest(part, divisor, level, wide)
            case ex.Min(parts) | ex.Max(parts):
                function = self._FUNCTION[type(expr)]
                return _nest(function, [self._int(p, _COMPARE, wide) for p in parts])
            case ex.Abs(part):
                return f"tl.abs({self._int(part, _COMPARE, wide)})"
            case ex.Select(condition, then, otherwise):
                branches = f"{self._int(then, _COMPARE, wide)}, "
                branches += self._int(otherwise, _COMPARE, wide)
                return f"tl.where({self._bool(condition, _COMPARE)}, {branches})"
        raise AssertionError(expr)

    def _quotient(self, part: ex.IntExpr, divisor: int, level: int, wide: bool) -> str:
        if _is_power(divisor):  # an arithmetic shift floors
            text = f"{self._int(part, _UNARY, wide)} >> {divisor.bit_length() - 1}"
            return _bracket(text, _SHIFT, level)
        if self._negative_possible(part):
            self.helpers.add("_floor_div")
            return f"_floor_div({self._int(part, _COMPARE, wide)}, {divisor})"
        text = f"{self._int(part, _PRODUCT, wide)} // {divisor}"
        return _bracket(text, _PRODUCT, level)

    def _rest(self, part: ex.IntExpr, divisor: int, level: int, wide: bool) -> str:
        if _is_power(divisor):  # two's complement: the low bits are the floored rest
            text = f"{self._int(part, _UNARY, wide)} & {divisor - 1}"  # 32 bits may wrap around
            return _bracket(text, _AND, level)
        if self._negative_possible(part):
            self.helpers.add("_floor_mod")
            return f"_floor_mod({self._int(part, _COMPARE, wide)}, {divisor})"
        text = f"{self._int(part, _PRODUCT, wide)} % {divisor}"
        return _bracket(text, _PRODUCT, level)

    def _negative_possible(self, part: ex.IntExpr) -> bool:
        low, _ = ex.interval(part, self.ranges)
        return low is None or low < 0

    def _pow2_name(self) -> str:
        self.helpers.add("_is_pow2")
        return "_is_pow2"


@dataclass(slots=True)
class HostDialect(_Printer):
    """Print for torch int64 tensors and Python integers, beside ``HOST_HELPERS``."""

    _FUNCTION: ClassVar[dict[type, str]] = {ex.Min: "_least", ex.Max: "_greatest"}

    def _needs_wide(self, expr: ex.IntExpr) -> bool:
        for node in ex.walk(expr):
            if isinstance(node, ex.Add | ex.Scale | ex.Const):
                self._check_64(node)
        return False

    def _int(self, expr: ex.IntExpr, level: int, wide: bool) -> str:
        match expr:
            case ex.Const(value):
                return _bracket(str(value), _ATOM if value >= 0 else _UNARY, level)
            case ex.Var(name):
                return self.names[name]
            case ex.Add(parts):
                return _bracket(self._sum(parts, wide), _SUM, level)
            case ex.Scale(-1, part):
                return _bracket(f"-{self._int(part, _UNARY, wide)}", _UNARY, level)
            case ex.Scale(factor, part):
                text = f"{self._int(part, _PRODUCT, wide)} * {_literal(factor)}"
                return _bracket(text, _PRODUCT, level)
            case ex.FloorDiv(part, divisor):
                text = f"{self._int(part, _PRODUCT, wide)} // {divisor}"
                return _bracket(text, _PRODUCT, level)
            case ex.Mod(part, divisor):
                text = f"{self._int(part, _PRODUCT, wide)} % {divisor}"
                return _bracket(text, _PRODUCT, level)
            case ex.Min(parts) | ex.Max(parts):
                function = self._FUNCTION[type(expr)]
                return _nest(function, [self._int(p, _COMPARE, wide) for p in parts])
            case ex.Abs(part):
                return f"abs({self._int(part, _COMPARE, wide)})"
            case ex.Select(condition, then, otherwise):
                branches = f"{self._int(then, _COMPARE, wide)}, "
                branches += self._int(otherwise, _COMPARE, wide)
                return f"_choose({self._bool(condition, _COMPARE)}, {branches})"
        raise AssertionError(expr)

    def _pow2_name(self) -> str:
        return "_is_power_of_two"


def progressions(values: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Cut sorted distinct integers into maximal arithmetic progressions, greedily.

    Returns: ``(first, step, count)`` each; a progression of two is given as two of one.
    """
    found: list[tuple[int, int, int]] = []
    i = 0
    while i < len(values):
        j = i + 1
        if j < len(values):
            step = values[j] - values[i]
            while j + 1 < len(values) and values[j + 1] - values[j] == step:
                j += 1
            if j - i >= 2 or step == 1:
                found.append((values[i], step, j - i + 1))
                i = j + 1
                continue
        found.append((values[i], 1, 1))
        i += 1
    return found


def _bracket(text: str, own: int, level: int) -> str:
    return text if own >= level else f"({text})"


def _chain(sign: str, texts: list[str]) -> str:
    """Join operands; a long chain in halves, since Python reads a chain as a nest as deep."""
    if len(texts) <= MAX_CHAIN:
        return sign.join(texts)
    half = len(texts) // 2
    return f"({_chain(sign, texts[:half])}){sign}({_chain(sign, texts[half:])})"


def _nest(function: str, texts: list[str]) -> str:
    """Combine operands by a function of two; many of them in halves, so that depth stays low."""
    if len(texts) > MAX_CHAIN // 8:
        half = len(texts) // 2
        texts = [_nest(function, texts[:half]), _nest(function, texts[half:])]
    text = texts[0]
    for other in texts[1:]:
        text = f"{function}({text}, {other})"
    return text


def _check_size(expr: ex.Expr) -> None:
    if ex.op_count(expr) > MAX_OPERATIONS:
        raise CompileError((_too_complex(f"more than {MAX_OPERATIONS:,} operations"),))


def _checked(text: str) -> str:
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > MAX_BRACKETS:
        raise CompileError((_too_complex(f"more than {MAX_BRACKETS} brackets in each other"),))
    return text


def _too_complex(reason: str) -> Diagnostic:
    return Diagnostic(
        code="ATT0409",
        message=f"a check of the kernel takes {reason}",
        help="write the condition in a shorter form, with `div`, `mod` and fewer alternatives",
    )


def _literal(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"


def _is_power(value: int) -> bool:
    return value & (value - 1) == 0


def _wraps(rest: ex.Mod) -> bool:
    """Whether ``x mod 2**n`` comes out right when x wraps around at 32 bits: x is a polynomial."""
    return _is_power(rest.divisor) and rest.divisor < 2**31 and all(
        isinstance(node, ex.Add | ex.Var)
        or (isinstance(node, ex.Const) and abs(node.value) < 2**31)
        or (isinstance(node, ex.Scale) and abs(node.factor) < 2**31)
        for node in ex.walk(rest.part)
    )


def _sign(term: ex.Scale | ex.Const) -> int:
    return term.factor if isinstance(term, ex.Scale) else term.value


def _too_large(expr: ex.IntExpr) -> Diagnostic:
    return Diagnostic(
        code="ATT0407",
        message=f"`{ex.show(expr)}` may leave 64-bit integers",
        notes=(f"positions and lengths go up to {MAX_LENGTH}",),
        help="use smaller factors, or divide both sides of the comparison",
    )
