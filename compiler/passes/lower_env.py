"""Where an expression stands while it is lowered: names, lengths, bounds, who asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

from attnc.compiler.binding import Value
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_value import Array, Chosen, Item, Logic, Num, Position, Real
from attnc.dsl import nodes as ast
from attnc.dsl.resolve import Module

Fixed: TypeAlias = "int | float | Fraction | bool | str | Chosen | tuple[Fixed, ...]"
"""A compile-time value: those of ``binding.py``, reals, and patterns."""


@dataclass(frozen=True)
class Env:
    """The scope of an expression.

    ``shared`` are the values of the parameters of the file it stands in; ``lengths`` how many
    queries and keys there are where it is evaluated (in a segment: its own); ``ranges`` bounds of
    the variables of the IR; ``head`` the head, a variable or one that is written out; ``above``
    the references that led here. ``scoring``: in a score, where reals may depend on positions.
    """

    module: Module
    names: Mapping[str, Item]
    shared: Mapping[str, Value]
    lengths: tuple[Num, Num]
    ranges: ex.Ranges
    head: Num
    above: tuple[ast.Reference, ...] = ()
    scoring: bool = False

    def bind(self, name: str, item: Item) -> Env:
        """Return the scope with one more name."""
        return replace(self, names={**self.names, name: item})

    def bounded(self, name: str, low: int | None, high: int | None) -> Env:
        """Return the scope with the bounds of a variable of the IR."""
        return replace(self, ranges={**self.ranges, name: (low, high)})

    def at_head(self, head: int) -> Env:
        """Return the scope for one head, written out."""
        number = lv.const(head)
        names = {n: substitute(item, {"h": number.expr}) for n, item in self.names.items()}
        return replace(self, names=names, head=number)


def free_vars(item: Item) -> frozenset[str]:
    """Return the variables of the IR that an item uses."""
    match item:
        case Num() | Logic():
            return ex.free_vars(item.expr)
        case Real():
            return sc.free_vars(item.expr)
        case Position():
            return ex.free_vars(item.number.expr)
        case Array():
            return frozenset[str]().union(*map(ex.free_vars, item.index))
        case tuple():
            return frozenset[str]().union(*map(free_vars, item))
        case _:
            return frozenset()


def input_names(item: Item) -> frozenset[str]:
    """Return the inputs and numbers known at the call that an item reads."""
    match item:
        case Num() | Logic():
            return frozenset(r.name for r in ex.reads(item.expr))
        case Real():
            return sc.reads(item.expr)
        case Array():
            return frozenset((item.name,))
        case tuple():
            return frozenset[str]().union(*map(input_names, item))
        case _:
            return frozenset()


def substitute(item: Item, values: Mapping[str, ex.IntExpr]) -> Item:
    """Return an item with variables of the IR replaced."""
    if not free_vars(item) & values.keys():
        return item
    match item:
        case Num():
            expr = ex.substitute(item.expr, values)
            if isinstance(expr, ex.Const):
                return replace(item, expr=expr, bound=abs(expr.value), size=1)
            return replace(item, expr=expr)
        case Logic():
            truth = ex.substitute(item.expr, values)
            return Logic(truth, 1 if isinstance(truth, ex.Truth) else item.size)
        case Real():
            real = sc.substitute(item.expr, values)
            return Real(real, 1 if isinstance(real, sc.RealConst) else item.size)
        case Position():
            number = substitute(item.number, values)
            assert isinstance(number, Num)
            return replace(item, number=number)
        case Array():
            return replace(item, index=tuple(ex.substitute(i, values) for i in item.index))
        case tuple():
            return tuple(substitute(i, values) for i in item)
        case _:
            return item


def to_item(value: Fixed) -> Item:
    """Return a compile-time value as lowering holds it."""
    match value:
        case bool():
            return Logic(ex.Truth(value), 1)
        case int() | Fraction():
            return lv.const(value)
        case float():
            return Real(sc.RealConst(value), 1)
        case tuple():
            return tuple(to_item(v) for v in value)
        case str() | Chosen():
            return value


def from_item(item: Item) -> Fixed | None:
    """Return the value of an item that is known at compile time, None where it is not."""
    match item:
        case Num():
            value = lv.known(item)
            return int(value) if value is not None and item.whole else value
        case Logic(ex.Truth(truth)):
            return truth
        case Real(sc.RealConst(number)):
            return number
        case tuple():
            values = [from_item(i) for i in item]
            return None if None in values else tuple(values)  # type: ignore[arg-type]
        case str() | Chosen():
            return item
        case _:
            return None
