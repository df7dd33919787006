"""What the checker knows of an expression: its type, when its value is known, and its unit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from attnc.dsl import nodes as ast


class Time(IntEnum):
    """When a value is known; an operation is known when its latest operand is.

    ``COMPILE``: parameters, numbers, and the sides of inputs. ``EACH``: one compile-time value per
    head or per turn of a quantifier with compile-time ends, so a use that is not linear is written
    out case by case. ``RUN``: positions, lengths, inputs and extents given at the call.
    """

    COMPILE = 0
    EACH = 1
    RUN = 2


@dataclass(frozen=True, slots=True)
class Unit:
    """What an int counts: ``of`` says from where on, such as one segment of a space.

    Units are compared only where ``of`` is the same, or where one of them is a head or a layer.
    """

    sort: str  # "token", "block", "head", "layer", or "axis y"
    of: str = ""

    def clashes(self, other: Unit) -> bool:
        """Whether a comparison of the two says nothing."""
        if self.sort == other.sort:
            return False
        return self.of == other.of or "" in (self.of, other.of)


HEAD, LAYER = Unit("head"), Unit("layer")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type, a time, and a unit where the value has one.

    ``type`` None stands for "an error was reported, stay silent". ``dims`` is set for an input
    that is not indexed yet: the units of the axes left (``type`` is that of its elements).
    """

    type: ast.Type | None
    time: Time
    unit: Unit | None = None
    dims: tuple[Unit | None, ...] = ()

    def plain(self) -> Kind:
        """Return the kind without its unit."""
        return self if self.unit is None else replace(self, unit=None)


INT = ast.Type(kind="int")
BOOL = ast.Type(kind="bool")
RATIONAL = ast.Type(kind="rational")
REAL = ast.Type(kind="real")
BROKEN = Kind(None, Time.COMPILE)
_NUMBERS = ("int", "rational", "real")
_WORDS = {
    "int": "an integer", "bool": "a truth value", "rational": "a rational number",
    "real": "a real number", "list": "a list", "enum": "a choice", "pattern": "a pattern",
}  # fmt: skip


def show_type(type_: ast.Type) -> str:
    """Return a type as it is written in a file."""
    match type_.kind:
        case "list":
            return f"list[{show_type(type_.item)}]" if type_.item else "list"
        case "enum":
            return f"one of {', '.join(type_.choices)}"
        case kind:
            return kind


def describe(type_: ast.Type) -> str:
    """Return a type in words: "an integer", "a list of integers".

    >>> describe(ast.Type(kind="list", item=ast.Type(kind="list", item=INT)))
    'a list of lists of integers'
    """
    if type_.kind == "list" and type_.item is not None:
        item = describe(type_.item)
        if type_.item.kind == "enum":
            return f"a list of {item}"
        first, *rest = item.split(" ", 1)[1].split(" of ", 1)
        return " of ".join(("a list", f"{first}s", *rest))
    if type_.kind == "enum":
        return f"one of {', '.join(f'`{c}`' for c in type_.choices)}"
    return _WORDS[type_.kind]


def is_number(type_: ast.Type) -> bool:
    """Return whether a type is int, rational or real."""
    return type_.kind in _NUMBERS


def of_patterns(type_: ast.Type) -> bool:
    """Return whether a type is pattern, or a list of patterns."""
    while type_.item is not None:
        type_ = type_.item
    return type_.kind == "pattern"


def fits(found: ast.Type, wanted: ast.Type) -> bool:
    """Return whether a value of type ``found`` may stand where ``wanted`` is expected."""
    match found.kind, wanted.kind:
        case ("int", "rational" | "real") | ("rational", "real"):
            return True
        case "list", "list":
            return found.item is None or wanted.item is None or fits(found.item, wanted.item)
        case "enum", "enum":
            return found.choices == wanted.choices
        case a, b:
            return a == b


def join(one: ast.Type, other: ast.Type) -> ast.Type | None:
    """Return the type of "one or the other", or None when they have nothing in common."""
    if fits(one, other):
        return other
    return one if fits(other, one) else None
