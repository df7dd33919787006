"""expression -> Triton source text.

32-bit arithmetic unless interval analysis says that a term needs 64 bits, and never ``//`` or ``%``
on an operand that may be negative (Triton truncates there, the language floors). Elements of inputs
are loaded ahead of the text that uses them, each once, by lines that ``loads`` gathers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from attnc.codegen.predicate import Level, Printer, bracket, literal, nest
from attnc.codegen.simplify import simplify_int
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Input

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
    "_quotient": '''\
@triton.jit
def _quotient(x, by):
    """`floor(x / by)`, 0 where by is below 1 (`//` truncates below zero)."""
    divisor = tl.maximum(by, 1)
    rest = x % divisor
    floor = (x - tl.where(rest < 0, rest + divisor, rest)) // divisor
    return tl.where(by > 0, floor, 0)
''',
    "_rest": '''\
@triton.jit
def _rest(x, by):
    """`x mod by`, never negative, 0 where by is below 1 (`%` truncates below zero)."""
    divisor = tl.maximum(by, 1)
    rest = x % divisor
    return tl.where(by > 0, tl.where(rest < 0, rest + divisor, rest), 0)
''',
    "_tanh": '''\
@triton.jit
def _tanh(x):
    """`tanh(x)`, right to a few units in the last place of float32: a polynomial below 0.625."""
    square = x * x
    near = (-0.00570498872745 * square + 0.0206390887954) * square - 0.0537397155531
    near = ((near * square + 0.133314422036) * square - 0.333332819422) * square * x + x
    far = 1.0 - 2.0 / (tl.math.exp2(x * 2.8853900817779268) + 1.0)
    return tl.where(square < 0.390625, near, far)
''',
    "_sign": '''\
@triton.jit
def _sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)
''',
    "_is_pow2": '''\
@triton.jit
def _is_pow2(x):
    """Whether x is 1, 2, 4, ..."""
    return (x > 0) & ((x & (x - 1)) == 0)
''',
}
"""Functions that Triton text may call; ``TritonDialect.helpers`` says which it does."""

MAX_SIDE = 2**31
"""Sides of inputs are shorter."""

_INT32 = (-(2**31), 2**31 - 1)


Element: TypeAlias = tuple[str, tuple[ex.IntExpr, ...]]
"""An input and the indices of one element of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The lines that load an element under a name, and which positions it depends on."""

    name: str
    lines: tuple[str, ...]
    side: Literal["none", "q", "k", "both"]

    @property
    def in_loop(self) -> bool:
        """Whether it differs between keys."""
        return self.side in ("k", "both")


def pointer_argument(name: str) -> str:
    """Return the kernel's argument that holds an input tensor."""
    return f"In_{name}"


def batch_argument(name: str) -> str:
    """Return the kernel's argument with the batch stride of an input, in elements; 0: shared."""
    return f"Batch_{name}"


def side_argument(name: str, place: int) -> str:
    """Return the kernel's argument with the length of a side of an input."""
    return f"Side_{place}_{name}"


def number_argument(name: str) -> str:
    """Return the kernel's argument with a number known at the call: input, extent or size."""
    return f"Given_{name}"


@dataclass(slots=True)
class TritonDialect(Printer):
    """Print for a Triton kernel: scalars and tensors of int32 (int64 where a term needs it).

    ``names`` maps variables to the kernel's names; every variable must hold a Triton value, not a
    constexpr. ``helpers`` gathers the names of the ``TRITON_HELPERS`` that the text calls,
    ``loads`` what must stand in front of it, in order.
    """

    inputs: Mapping[str, Input] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)
    loads: dict[Element, Load] = field(default_factory=dict)
    named: int = 0  # elements loaded under a number: no two share one

    _FUNCTION: ClassVar[dict[type, str]] = {ex.Min: "tl.minimum", ex.Max: "tl.maximum"}

    def tile(self, expr: ex.IntExpr, level: Level = Level.COMPARE) -> str:
        """Return the text of a tile number or count: as ``integer``, brought back to 32 bits.

        Args: ``level``: how tight the text must bind where it stands.
        """
        simple = simplify_int(expr, self.ranges)
        if self._needs_wide(simple):
            return f"({self._int(simple, Level.COMPARE, True)}).to(tl.int32)"
        return self._int(simple, level, False)

    def _needs_wide(self, expr: ex.IntExpr) -> bool:
        """Whether some intermediate value of a term may leave 32 bits."""
        wide = False
        stack: list[ex.Expr] = [expr]
        while stack:
            node = stack.pop()
            if isinstance(node, ex.Select):  # its condition is a term of its own
                stack += [node.then, node.otherwise]
            elif isinstance(node, ex.Read):  # and so is an index
                continue
            elif isinstance(node, ex.Mod) and _wraps(node):
                pass
            else:
                stack += ex.children(node)
            if not self._fits(node, _INT32) and not self._as_given(node):  # type: ignore[arg-type]
                self._check_64(node)  # type: ignore[arg-type]
                wide = True
        return wide

    def _as_given(self, node: ex.Expr) -> bool:
        """Whether a value is no larger than elements of an input, whose dtype holds it."""
        held = ex.FloorDiv | ex.Mod | ex.Min | ex.Max | ex.Select | ex.Quot | ex.Rem
        return isinstance(node, held) and not self._bounded(node)

    def _int(self, expr: ex.IntExpr, level: int, wide: bool) -> str:
        match expr:
            case ex.Const(value):
                return bracket(str(value), Level.ATOM if value >= 0 else Level.UNARY, level)
            case ex.Var(name):
                return f"{self.names[name]}.to(tl.int64)" if wide else self.names[name]
            case ex.Add(parts):
                return bracket(self._sum(parts, wide), Level.SUM, level)
            case ex.Scale(-1, part):
                return bracket(f"-{self._int(part, Level.UNARY, wide)}", Level.UNARY, level)
            case ex.Scale(factor, part):
                text = f"{self._int(part, Level.PRODUCT, wide)} * {literal(factor)}"
                return bracket(text, Level.PRODUCT, level)
            case ex.FloorDiv(part, divisor):
                return self._quotient(part, divisor, level, wide)
            case ex.Mod(part, divisor):
                return self._rest(part, divisor, level, wide)
            case ex.Min(parts) | ex.Max(parts):
                function = self._FUNCTION[type(expr)]
                return nest(function, [self._int(p, Level.COMPARE, wide) for p in parts])
            case ex.Abs(part):
                return f"tl.abs({self._int(part, Level.COMPARE, wide)})"
            case ex.Select(condition, then, otherwise):
                branches = f"{self._int(then, Level.COMPARE, wide)}, "
                branches += self._int(otherwise, Level.COMPARE, wide)
                return f"tl.where({self._bool(condition, Level.COMPARE)}, {branches})"
            case ex.Mul(left, right):
                text = f"{self._int(left, Level.PRODUCT, wide)} * "
                return bracket(text + self._int(right, Level.UNARY, wide), Level.PRODUCT, level)
            case ex.Quot(part, by) | ex.Rem(part, by):
                function = "_quotient" if isinstance(expr, ex.Quot) else "_rest"
                self.helpers.add(function)
                shown = [self._int(p, Level.COMPARE, wide) for p in (part, by)]
                return f"{function}({', '.join(shown)})"
            case ex.Read(name, index):
                text = self.read(name, index)
                return f"{text}.to(tl.int64)" if wide else text
        raise AssertionError(expr)

    def read(self, name: str, index: tuple[ex.IntExpr, ...]) -> str:
        """Return the name of an element of an input, loaded once, or of a number."""
        if not index:
            return number_argument(name)
        sides = self._sides(name)
        if any(self._outside(place, side) for place, side in zip(index, sides, strict=True)):
            return f"tl.cast(0, {'tl.float32' if self._kind(name) == 'real' else 'tl.int32'})"
        element = name, index
        if element not in self.loads:
            self.loads[element] = self._load(name, index)
        return self.loads[element].name

    def _outside(self, place: ex.IntExpr, side: str) -> bool:
        """Whether an index lies outside of its side whatever the variables are."""
        low, high = ex.interval(place, self.ranges)
        most = int(side) if side.isdigit() else MAX_SIDE
        return (high is not None and high < 0) or (low is not None and low >= most)

    def _load(self, name: str, index: tuple[ex.IntExpr, ...]) -> Load:
        texts = [self.integer(place) for place in index]
        if len(index) == 1 and isinstance(index[0], ex.Var):
            held = self.names[index[0].name]
            variable = f"{name}_at_{held[0] if held.endswith('_pos') else index[0].name}"
        else:
            variable = f"{name}_at_{self.named}"
            self.named += 1
        lines, offset, guard = self._place(name, index, texts, variable)
        where = f"{pointer_argument(name)} + {offset}"
        given = ", ".join([where, f"mask={guard}", "other=0"] if guard else [where])
        kind = {"int": "", "bool": ".to(tl.int32)", "real": ".to(tl.float32)"}
        lines.append(f"{variable} = tl.load({given}){kind[self._kind(name)]}")
        return Load(
            name=variable, lines=tuple(lines), side=ex.relevant_side(ex.Read(name, index))
        )

    def place(
        self, name: str, index: tuple[ex.IntExpr, ...], variable: str
    ) -> tuple[list[str], str, str]:
        """Return where an element of an input is: lines, its offset, the test that it is inside.

        The test is "" where all indices are. ``variable`` begins the names in the lines.
        """
        return self._place(name, index, [self.integer(place) for place in index], variable)

    def _place(
        self, name: str, index: tuple[ex.IntExpr, ...], texts: list[str], variable: str
    ) -> tuple[list[str], str, str]:
        sides = self._sides(name)
        lines, places = [], []
        inside: list[str] = []
        shapes: set[bool] = set()  # of the tests: scalar or not
        for i, (text, place, side) in enumerate(zip(texts, index, sides, strict=True)):
            if not text.isidentifier() and not text.isdigit():
                lines.append(f"{variable}_{i} = {text}")
                text = f"{variable}_{i}"
            places.append(text)
            low, high = ex.interval(place, self.ranges)
            tests = [f"{text} >= 0"] * (low is None or low < 0)
            if not side.isdigit() or high is None or high >= int(side):
                tests.append(f"{text} < {side}")
            if tests:
                shapes.add(ex.relevant_side(place) == "none")
            inside += tests
        guard = inside[0] if len(inside) == 1 else " & ".join(f"({test})" for test in inside)
        if len(shapes) == 2:
            guard = f"({guard}) != 0"  # a scalar test beside a tensor's: integers, interpreted
        return lines, _flat(places, sides), guard

    def _kind(self, name: str) -> Literal["int", "bool", "real"]:
        return self.inputs[name].kind

    def _sides(self, name: str) -> list[str]:
        """Return the texts of the sides: numbers, lengths, or arguments of the kernel."""
        sides = []
        for i, side in enumerate(self.inputs[name].dims):
            match side:
                case ex.Const(value):
                    sides.append(str(value))
                case ex.Var("nq" | "nk" as length):
                    sides.append(self.names[length])
                case _:
                    sides.append(side_argument(name, i))
        return sides

    def _quotient(self, part: ex.IntExpr, divisor: int, level: int, wide: bool) -> str:
        if _is_power(divisor):  # an arithmetic shift floors
            text = f"{self._int(part, Level.UNARY, wide)} >> {divisor.bit_length() - 1}"
            return bracket(text, Level.SHIFT, level)
        if self._negative_possible(part):
            self.helpers.add("_floor_div")
            return f"_floor_div({self._int(part, Level.COMPARE, wide)}, {divisor})"
        text = f"{self._int(part, Level.PRODUCT, wide)} // {divisor}"
        return bracket(text, Level.PRODUCT, level)

    def _rest(self, part: ex.IntExpr, divisor: int, level: int, wide: bool) -> str:
        if _is_power(divisor):  # two's complement: the low bits are the floored rest
            # 32 bits may wrap around.
            text = f"{self._int(part, Level.UNARY, wide)} & {divisor - 1}"
            return bracket(text, Level.AND, level)
        if self._negative_possible(part):
            self.helpers.add("_floor_mod")
            return f"_floor_mod({self._int(part, Level.COMPARE, wide)}, {divisor})"
        text = f"{self._int(part, Level.PRODUCT, wide)} % {divisor}"
        return bracket(text, Level.PRODUCT, level)

    def _negative_possible(self, part: ex.IntExpr) -> bool:
        low, _ = ex.interval(part, self.ranges)
        return low is None or low < 0

    def _pow2_name(self) -> str:
        self.helpers.add("_is_pow2")
        return "_is_pow2"


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


def _flat(places: list[str], sides: list[str]) -> str:
    """Return a row-major offset, in 64 bits unless the sides are known and small."""
    small = all(s.isdigit() for s in sides) and math.prod(map(int, sides)) < 2**31
    if len(places) == 1:
        return places[0]
    text = places[0] if small else f"tl.cast({places[0]}, tl.int64)"
    for count, (place, side) in enumerate(zip(places[1:], sides[1:], strict=True)):
        text = f"({text}) * {side} + {place}" if count else f"{text} * {side} + {place}"
    return text
