"""What the kernels of selected pairs have in common: arguments, units of tokens, which pairs count.

A kernel has *rows*, a tile of one side whose sums it keeps, and visits *columns*, tiles of the
other side. Places of tokens are ``<side>_place``, ``[tile]``, and ``<side>_pos``, shaped for a tile
of scores ``[rows, columns]``; ``<side>_there`` says which of them exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnc.codegen.host import passed
from attnc.codegen.kernel_inputs import InputArgument, arguments_of
from attnc.codegen.kernel_terms import known_ranges
from attnc.codegen.predicate import TOKEN_RANGES
from attnc.codegen.simplify import simplify_bool
from attnc.codegen.triton_predicate import TRITON_HELPERS, TritonDialect, pointer_argument
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.route import Grain
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import padded

Letter = Literal["q", "k"]

STRIDES = tuple(f"{x}_{part}" for x in "qkv" for part in ("batch", "head", "row"))
"""Stride arguments, int64, in units of ALIGN elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """An argument of a kernel: its Triton type (``*``: pointer to the dtype of the call), and the
    text that the launch passes."""

    name: str
    kind: str
    passed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of one side, as a kernel finds their tokens.

    ``row``: ``tokens`` in a row each; ``cell``: ``tokens`` at most, listed in ``QOrder`` or
    ``KOrder`` from ``QStarts[unit]`` on; ``whole``: one, of all tokens.
    """

    kind: Literal["row", "cell", "whole"]
    tokens: int = 1


def units(grain: Grain, widen: int = 1) -> Units:
    """Return the units of a grain; so many in a row together where a selection was widened."""
    match grain.kind:
        case "token":
            return Units(kind="row", tokens=widen)
        case "block":
            return Units(kind="row", tokens=grain.sizes[0] * widen)
        case "cell":
            return Units(kind="cell", tokens=math.prod(grain.sizes))
        case _:
            return Units(kind="whole")


class Rest:
    """Which selected pairs count, as text: the predicate of a plan, and what earlier routes took.

    ``once``: lines in front of the loop, ``each``: those for every tile; ``text``: the test of a
    tile of scores, "" where every existing pair counts.
    """

    def __init__(self, plan: RoutedPlan, number: int) -> None:
        self.plan, self.number = plan, number
        base = plan.routed.base
        shared = bool(base.heads and base.kv_heads)
        ranges = {**TOKEN_RANGES, **known_ranges(base)}
        names = {"q": "q_pos", "k": "k_pos", "nq": "nq", "nk": "nk"}
        names["h"] = "kv_head" if shared else "h"
        self.dialect = TritonDialect(names, ranges, {one.name: one for one in base.inputs})
        residual = simplify_bool(plan.rest, ranges)
        self.text = "" if residual == ex.TRUE else self.dialect.boolean(residual)
        loads = self.dialect.loads.values()
        self.read = frozenset(one.name for one in ex.reads(residual))
        self.by_head = "h" in ex.free_vars(residual) or any(
            "h" in ex.free_vars(one) for one in ex.reads(residual)
        )
        self._loads = [(load.side, load.lines) for load in loads]
        self.earlier = [
            (at, route) for at, route in enumerate(plan.routed.routes[: number - 1], start=1)
        ]

    def helpers(self) -> list[str]:
        """Return the functions that the text calls."""
        return [TRITON_HELPERS[name] for name in sorted(self.dialect.helpers)]

    def inputs(self) -> tuple[InputArgument, ...]:
        """Return the arguments for what the predicate reads."""
        return arguments_of(self.plan.routed.base, self.read)

    def arguments(self) -> Iterator[Argument]:
        """Yield the arguments for what the predicate reads, and for tables of earlier routes."""
        for one in self.inputs():
            kind = one.kind
            yield Argument(name=one.argument, kind=kind, passed=passed(one).replace(
                'data["', 'inputs["'
            ))  # fmt: skip
        for at, route in self.earlier:
            yield Argument(name=f"Taken_{at}", kind="*u8", passed=f"taken_{at}")
            for name in ("choosers", "rows", "units"):
                yield Argument(name=f"{name}_{at}", kind="i32", passed=f"{name}_{at}")
            for letter, grain, length in (("q", route.query, "queries"), ("k", route.key, "keys")):
                if grain.kind == "cell":
                    name = f"{letter.upper()}Cell_{at}"
                    yield Argument(name=name, kind="*i32", passed=f"{length}_{at}.unit_of")

    def lines(self, columns: Letter, *, in_loop: bool) -> Iterator[str]:
        """Yield the loads in front of the loop, or those of each tile."""
        for side, lines in self._loads:
            if (side in (columns, "both")) == in_loop:
                yield from lines

    def batches(self) -> Iterator[str]:
        """Yield the lines that find the inputs of a batch item."""
        for given in self.inputs():
            if given.source == "batch":
                yield f"{pointer_argument(given.name)} += b * {given.argument}"

    @property
    def asks(self) -> bool:
        """Whether there are pairs that exist and do not count."""
        return bool(self.text or self.earlier)

    def counts(self, out: Writer) -> str:
        """Print what the test needs for a tile; return its text."""
        parts = [f"({self.text})"] if self.text else []
        shift = self.shift
        for at, route in self.earlier:
            chooser = f"(b * choosers_{at} + h * choosers_{at} // heads)"
            if route.emit == "slashes":
                out.line(f"apart = q_pos{shift} - k_pos")
                place = f"{chooser} * units_{at} + tl.maximum(apart, 0)"
                out.line(
                    f"taken_{at} = tl.load(Taken_{at} + {place}, "
                    f"mask=(apart >= 0) & (apart < units_{at}), other=0)"
                )
            else:
                row = self._unit("q", route.query, route.widen, at)
                unit = self._unit("k", route.key, 1, at)
                out.line(
                    f"taken_{at} = tl.load(Taken_{at} + "
                    f"({chooser} * rows_{at} + {row}) * units_{at} + {unit})"
                )
            parts.append(f"(taken_{at} == 0)")
        return " & ".join(parts)

    @property
    def shift(self) -> str:
        """Return what moves query q to where it stands, as text behind it."""
        return " + (nk - nq)" if self.plan.routed.base.align == "bottom-right" else ""

    def _unit(self, letter: Letter, grain: Grain, widen: int, at: int) -> str:
        """Return the unit of a token of an earlier route; tokens past the end are the last one."""
        own = units(grain, widen)
        place = f"tl.minimum({letter}_pos, n{letter} - 1)"
        if own.kind == "whole":
            return "0"
        if own.kind == "cell":
            return f"tl.load({letter.upper()}Cell_{at} + {place})"
        return place if own.tokens == 1 else f"{place} // {own.tokens}"


def order_arguments(letter: Letter, own: Units, number: int) -> Iterator[Argument]:
    """Yield the arguments that list the tokens of cells."""
    if own.kind == "cell":
        side = {"q": "queries", "k": "keys"}[letter]
        for name in ("order", "starts"):
            argument = f"{letter.upper()}{name.capitalize()}"
            yield Argument(name=argument, kind="*i32", passed=f"{side}_{number}.{name}")


def in_unit(out: Writer, letter: Letter, own: Units, unit: str, offset: str, inside: str) -> None:
    """Print the places of tokens of units: ``offset`` from the first of ``unit``."""
    if own.kind == "cell":
        upper = letter.upper()
        out.line(f"{letter}_first = tl.load({upper}Starts + {unit})")
        out.line(f"{letter}_size = tl.load({upper}Starts + {unit} + 1) - {letter}_first")
        more = f" & ({inside})" if inside else ""
        out.line(f"{letter}_there = ({offset} < {letter}_size){more}")
        place = f"{upper}Order + {letter}_first + {offset}"
        out.line(f"{letter}_place = tl.load({place}, mask={letter}_there, other=0)")
        return
    first = unit if own.tokens == 1 else f"{unit} * {own.tokens}"
    out.line(f"{letter}_place = {first}" + ("" if offset == "0" else f" + {offset}"))
    tests = [test for test in (inside, f"{letter}_place < n{letter}") if test]
    out.line(f"{letter}_there = {' & '.join(f'({t})' for t in tests)}")


def width(dim: int, name: str) -> str:
    """Return the name of a padded head dim, the dim's own where it is a power of two."""
    return name if padded(dim) == dim else f"{name}_PAD"


def constants(out: Writer, plan: RoutedPlan, bq: int, bk: int) -> None:
    """Print the tile and the head dims."""
    out.line(f"BQ: tl.constexpr = {bq}  # queries a tile")
    out.line(f"BK: tl.constexpr = {bk}  # keys a tile")
    for name, dim, what in (
        ("D", plan.head_dim, "q and k"), ("DV", plan.value_dim, "v and out")
    ):  # fmt: skip
        out.line(f"{name}: tl.constexpr = {dim}  # head dim of {what}")
        if padded(dim) != dim:
            out.line(f"{name}_PAD: tl.constexpr = {padded(dim)}")


def signature(out: Writer, name: str, given: list[Argument], constexprs: list[str]) -> None:
    """Print the head of a kernel."""
    fixed = [f'"{a.name}"' for a in given if not a.kind.startswith("*") and a.kind != "fp32"]
    out.call("@triton.jit(do_not_specialize=[", fixed, "])")
    names = [
        a.name if a.kind.startswith("*") or a.kind == "fp32" else f"{a.name}: tl.int{a.kind[1:]}"
        for a in given
    ]
    out.call(f"def {name}(", [*names, *(f"{c}: tl.constexpr" for c in constexprs)], "):")


def wait(out: Writer, plan: RoutedPlan, last: str) -> None:
    """Print a use of the last product of an iteration, which Hopper has to wait for.

    In flight across iterations it may make the assembler serialise all products (C7515).
    """
    if plan.target == "sm_90" and plan.dtype != "fp32":
        out.comment("Always so, but not known to be: the product ends with its iteration.")
        out.line(f"{last} = tl.where(group > 0, {last}, 0.0)")
