"""expression -> source text: what the dialects share, and the torch dialect.

The torch dialect works on int64 tensors and Python integers, whose ``//`` and ``%`` floor;
``triton_predicate.py`` has the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from attnc.codegen.simplify import Ranges, known, simplify_bool, simplify_int
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import MAX_LENGTH
from attnc.dsl.diagnostics import CompileError, Diagnostic

MAX_REST = 1023
"""Positions in a tile reach past a length by at most this."""

TOKEN_RANGES: Ranges = {
    "q": (0, MAX_LENGTH + MAX_REST),
    "k": (0, MAX_LENGTH + MAX_REST),
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


def _divided(x, by):
    """`floor(x / by)`, 0 where by is below 1."""
    divisor = by * (by > 0) + (by < 1)
    return x // divisor * (by > 0)


def _remainder(x, by):
    """`x mod by`, never negative, 0 where by is below 1."""
    divisor = by * (by > 0) + (by < 1)
    return x % divisor * (by > 0)


def _read(tensor, b, *index):
    """Elements of an input [B or 1, ...] for batch b at indices that broadcast; outside it 0."""
    place, inside = b if tensor.shape[0] > 1 else 0, True
    for i, side in zip(index, tensor.shape[1:]):
        inside = inside & (i >= 0) & (i < side)
        place = place * side + i * inside
    found = (tensor.flatten() if tensor.numel() else tensor.new_zeros(1))[place]
    if not isinstance(inside, torch.Tensor):
        inside = torch.full((), inside, device=tensor.device)
    return torch.where(inside, found if found.is_floating_point() else found.long(), 0)


def _real(x, dtype):
    """A number or tensor as a tensor of real numbers."""
    return torch.as_tensor(x, dtype=dtype)
'''
"""Functions that torch text may call. A written module holds the block once, in front of both its
users (GPU launch, CPU executor): ``emit_host`` and ``emit_cpu`` do not repeat it."""

_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)


class Level(IntEnum):
    """How tight Python's operators bind; a comparison binds looser than ``|`` and ``&``."""

    COMPARE = 0
    OR = 1
    AND = 2
    SHIFT = 3
    SUM = 4
    PRODUCT = 5
    UNARY = 6
    ATOM = 7


def input_ranges(pattern: Pattern) -> Ranges:
    """Return bounds of what a pattern reads, as ``"name[]"``; numbers come in 32 bits."""
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for given in pattern.inputs:
        if given.kind == "bool":
            ranges[f"{given.name}[]"] = (0, 1)
        elif given.kind == "int" and not given.dims:
            ranges[f"{given.name}[]"] = _INT32
    ranges |= {f"{name}[]": (0, MAX_LENGTH) for name in pattern.extents}
    return ranges | {f"{name}[]": (0, _INT32[1]) for name in pattern.sizes}


@dataclass(slots=True)
class Printer:
    """What the dialects share: precedence, junctions, sums, tests for membership."""

    names: Mapping[str, str]
    ranges: Ranges

    def __post_init__(self) -> None:
        self.ranges = known(self.ranges)  # what one text simplifies the next need not

    def name(self, name: str, value: ex.IntExpr) -> str:
        """Make a name for a value that the text holds; return it."""
        self.names = {**self.names, name: name}
        self.ranges = known({**self.ranges, name: ex.interval(value, self.ranges)})
        return name

    def integer(self, expr: ex.IntExpr) -> str:
        """Return the text of an integer expression, simplified under the ranges."""
        _check_size(expr)
        return _checked(self._wide_or_not(simplify_int(expr, self.ranges), Level.COMPARE))

    def boolean(self, expr: ex.BoolExpr) -> str:
        """Return the text of a truth value, simplified; ``True``/``False`` where it is decided."""
        _check_size(expr)
        return _checked(self._bool(simplify_bool(expr, self.ranges), Level.COMPARE))

    def _bool(self, expr: ex.BoolExpr, level: int) -> str:
        match expr:
            case ex.Truth(value):
                return str(value)
            case ex.Compare(op, left, right):
                wide = self._needs_wide(left) or self._needs_wide(right)
                left_text = self._int(left, Level.SUM, wide)
                text = f"{left_text} {op} {self._int(right, Level.SUM, wide)}"
                return bracket(text, Level.COMPARE, level)
            case ex.IsPow2(part):
                return self._is_pow2(part, negated=False, level=level)
            case ex.Not(ex.IsPow2(part)):
                return self._is_pow2(part, negated=True, level=level)
            case ex.Member(part, values):
                return self._member(part, values, negated=False, level=level)
            case ex.Not(ex.Member(part, values)):
                return self._member(part, values, negated=True, level=level)
            case ex.And(parts):
                text = _chain(" & ", [self._bool(p, Level.SHIFT) for p in parts])
                return bracket(text, Level.AND, level)
            case ex.Or(parts):
                text = _chain(" | ", [self._bool(p, Level.SHIFT) for p in parts])
                return bracket(text, Level.OR, level)
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
        text = self._int(first, Level.SUM, wide)
        for part in parts:
            if part is first:
                continue
            negative = isinstance(part, ex.Scale | ex.Const) and _sign(part) < 0
            shown = self._int(ex.scale(-1, part) if negative else part, Level.PRODUCT, wide)
            text += f" - {shown}" if negative else f" + {shown}"
        return text

    def _fits(self, expr: ex.IntExpr, limits: tuple[int, int]) -> bool:
        low, high = ex.interval(expr, self.ranges)
        return low is not None and high is not None and limits[0] <= low and high <= limits[1]

    def _check_64(self, expr: ex.IntExpr) -> None:
        """Refuse what may leave 64 bits; terms that an input makes unbounded wrap, as in NumPy."""
        if not self._fits(expr, _INT64) and (self._bounded(expr) or ex.is_static(expr)):
            raise CompileError((_too_large(expr),))

    def _bounded(self, expr: ex.IntExpr) -> bool:
        return None not in ex.interval(expr, self.ranges)

    def _wide_or_not(self, expr: ex.IntExpr, level: int) -> str:
        return self._int(expr, level, self._needs_wide(expr))

    def _needs_wide(self, expr: ex.IntExpr) -> bool:
        raise NotImplementedError

    def _int(self, expr: ex.IntExpr, level: int, wide: bool) -> str:
        raise NotImplementedError

    def _is_pow2(self, part: ex.IntExpr, *, negated: bool, level: int) -> str:
        name = self._pow2_name()
        text = f"{name}({self._wide_or_not(part, Level.COMPARE)})"
        own = Level.ATOM
        _, high = ex.interval(part, self.ranges)
        if high is None or high > 1 << ex.POW2_MAX_EXPONENT:
            cap = self._int(part, Level.SUM, True)
            text, own = f"{text} & ({cap} <= {1 << ex.POW2_MAX_EXPONENT})", Level.AND
        if negated:
            text, own = f"{bracket(text, own, Level.OR)} == 0", Level.COMPARE
        return bracket(text, own, level)

    def _pow2_name(self) -> str:
        raise NotImplementedError


@dataclass(slots=True)
class HostDialect(Printer):
    """Print for torch int64 tensors and Python integers, beside ``HOST_HELPERS``.

    What is read stands in a dict ``data`` (``names["doc[]"]`` says otherwise): numbers, and
    tensors ``[B or 1, ...]``. With tensors the text also uses ``b``, the batch: a tensor, or 0.
    """

    _FUNCTION: ClassVar[dict[type, str]] = {ex.Min: "_least", ex.Max: "_greatest"}

    def _needs_wide(self, expr: ex.IntExpr) -> bool:
        for node in ex.walk(expr):
            if isinstance(node, ex.Add | ex.Scale | ex.Const | ex.Mul):
                self._check_64(node)
        return False

    def _int(self, expr: ex.IntExpr, level: int, wide: bool) -> str:
        match expr:
            case ex.Const(value):
                return bracket(str(value), Level.ATOM if value >= 0 else Level.UNARY, level)
            case ex.Var(name):
                return self.names[name]
            case ex.Add(parts):
                return bracket(self._sum(parts, wide), Level.SUM, level)
            case ex.Scale(-1, part):
                return bracket(f"-{self._int(part, Level.UNARY, wide)}", Level.UNARY, level)
            case ex.Scale(factor, part):
                text = f"{self._int(part, Level.PRODUCT, wide)} * {literal(factor)}"
                return bracket(text, Level.PRODUCT, level)
            case ex.FloorDiv(part, divisor):
                text = f"{self._int(part, Level.PRODUCT, wide)} // {divisor}"
                return bracket(text, Level.PRODUCT, level)
            case ex.Mod(part, divisor):
                text = f"{self._int(part, Level.PRODUCT, wide)} % {divisor}"
                return bracket(text, Level.PRODUCT, level)
            case ex.Min(parts) | ex.Max(parts):
                function = self._FUNCTION[type(expr)]
                return nest(function, [self._int(p, Level.COMPARE, wide) for p in parts])
            case ex.Abs(part):
                return f"abs({self._int(part, Level.COMPARE, wide)})"
            case ex.Select(condition, then, otherwise):
                branches = f"{self._int(then, Level.COMPARE, wide)}, "
                branches += self._int(otherwise, Level.COMPARE, wide)
                return f"_choose({self._bool(condition, Level.COMPARE)}, {branches})"
            case ex.Mul(left, right):
                text = f"{self._int(left, Level.PRODUCT, wide)} * "
                return bracket(text + self._int(right, Level.UNARY, wide), Level.PRODUCT, level)
            case ex.Quot(part, by) | ex.Rem(part, by):
                name = "_divided" if isinstance(expr, ex.Quot) else "_remainder"
                shown = [self._int(p, Level.COMPARE, wide) for p in (part, by)]
                return f"{name}({', '.join(shown)})"
            case ex.Read(name, index):
                return self.read(name, index)
        raise AssertionError(expr)

    def read(self, name: str, index: tuple[ex.IntExpr, ...]) -> str:
        """Return the text of an element of an input, or of a number known at the call."""
        given = self.names.get(f"{name}[]", f'data["{name}"]')
        if not index:
            return given
        places = [self._int(i, Level.COMPARE, False) for i in index]
        return f"_read({', '.join([given, self.names.get('b', 'b'), *places])})"

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


def bracket(text: str, own: int, level: int) -> str:
    return text if own >= level else f"({text})"


def _chain(sign: str, texts: list[str]) -> str:
    """Join operands; a long chain in halves, since Python reads a chain as a nest as deep."""
    if len(texts) <= MAX_CHAIN:
        return sign.join(texts)
    half = len(texts) // 2
    return f"({_chain(sign, texts[:half])}){sign}({_chain(sign, texts[half:])})"


def nest(function: str, texts: list[str]) -> str:
    """Combine operands by a function of two; many of them in halves, so that depth stays low."""
    if len(texts) > MAX_CHAIN // 8:
        half = len(texts) // 2
        texts = [nest(function, texts[:half]), nest(function, texts[half:])]
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


def literal(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"


def _sign(term: ex.Scale | ex.Const) -> int:
    return term.factor if isinstance(term, ex.Scale) else term.value


def _too_large(expr: ex.IntExpr) -> Diagnostic:
    return Diagnostic(
        code="ATT0407",
        message=f"`{ex.show(expr)}` may leave 64-bit integers",
        notes=(f"positions and lengths go up to {MAX_LENGTH}",),
        help="use smaller factors, or divide both sides of the comparison",
    )
