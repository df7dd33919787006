"""Expressions: numbers and truth values."""

# ruff: noqa: RUF009  (`span()` returns a dataclass field)
from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

from attnc.dsl.nodes.span import span_field
from attnc.dsl.source import Span

if TYPE_CHECKING:
    from attnc.dsl.nodes.sets import PatternValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """``12`` or ``0.25``: an exact rational (a decimal literal is read exactly)."""

    value: Fraction
    text: str = field(default="", compare=False)
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bool:
    """``true`` or ``false``."""

    value: bool
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """``window``: a parameter, a coordinate, a length, a bound variable, or an enum choice."""

    name: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """``[1, 2, 4]``: a list of compile-time values."""

    items: tuple[Expr, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """``rates[i]``: item ``i`` (from 0) of a list parameter."""

    base: Expr
    index: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``abs(q - k)``: a built-in of ``functions.py`` or an ``fn``.

    Where a pattern or a score is expected, a call is a reference to one: ``a_shape(n_init: 4)``.
    ``names`` has one entry for each argument; only references and fns take named ones.
    """

    function: str
    args: tuple[Expr, ...]
    names: tuple[str | None, ...] = ()
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary:
    """``-x`` or ``not x``."""

    op: Literal["-", "not"]
    operand: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """``x + y``, ``-``, ``*``, ``/`` (exact rational), ``div`` and ``mod`` (floored), ``**``."""

    op: Literal["+", "-", "*", "/", "div", "mod", "**"]
    left: Expr
    right: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """``a <= b < c``: every neighbouring pair holds; ``len(operands) == len(ops) + 1``."""

    operands: tuple[Expr, ...]
    ops: tuple[Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"], ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoolOp:
    """``a and b and c`` or ``a or b or c``."""

    op: Literal["and", "or"]
    parts: tuple[Expr, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantifier:
    """``exists e in lo..hi : body`` (or ``forall``), both ends included; empty when ``lo > hi``."""

    op: Literal["exists", "forall"]
    var: str
    low: Expr
    high: Expr
    body: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class IfExpr:
    """``if c then x else y``."""

    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Let:
    """``let d = q - k in body``."""

    name: str
    value: Expr
    body: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """``q.y``: the coordinate of a position along the axis of that name."""

    base: str
    axis: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairIn:
    """``(q - 1, k) in causal``: whether another pattern keeps a pair (``negated``: ``not in``).

    A pair outside that pattern's spaces is not in it.
    """

    query: Expr
    key: Expr
    pattern: PatternValue
    negated: bool = False
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce:
    """``sum i in lo..hi : value`` or ``count i in lo..hi : condition``, both ends included."""

    op: Literal["sum", "count"]
    var: str
    low: Expr
    high: Expr
    body: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFor:
    """``[for i in lo..hi : value]``: a list, one item for each integer of the range."""

    var: str
    low: Expr
    high: Expr
    body: Expr
    span: Span = span_field()


Expr: TypeAlias = (
    Number
    | Bool
    | Name
    | ListOf
    | Index
    | Call
    | Unary
    | Binary
    | Compare
    | BoolOp
    | Quantifier
    | IfExpr
    | Let
    | Attribute
    | PairIn
    | Reduce
    | ListFor
)
