"""What the checker knows of an expression: its type, and when its value is known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from attnc.dsl import nodes as ast


class Time(IntEnum):
    """When a value is known; an operation is known when its latest operand is.

    ``COMPILE``: parameters and numbers. ``EACH``: one compile-time value per head or per turn of a
    quantifier with compile-time ends, so a use that is not linear is written out case by case.
    ``RUN``: positions and lengths.
    """

    COMPILE = 0
    EACH = 1
    RUN = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """A type and a time; ``type`` None stands for "an error was reported, stay silent"."""

    type: ast.Type | None
    time: Time


INT = ast.Type(kind="int")
BOOL = ast.Type(kind="bool")
RATIONAL = ast.Type(kind="rational")
BROKEN = Kind(None, Time.COMPILE)


def show_type(type_: ast.Type) -> str:
    """Return a type as it is written in a file."""
    match type_.kind:
        case "list":
            return f"list[{show_type(type_.item)}]" if type_.item else "list"
        case "enum":
            return f"one of {', '.join(type_.choices)}"
        case kind:
            return kind


def fits(found: ast.Type, wanted: ast.Type) -> bool:
    """Return whether a value of type ``found`` may stand where ``wanted`` is expected."""
    match found.kind, wanted.kind:
        case "int", "rational":
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
