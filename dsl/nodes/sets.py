"""Sets of (query, key) pairs, and the spaces their positions live in."""

# ruff: noqa: RUF009  (`span()` returns a dataclass field)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnc.dsl.nodes.expr import Expr
from attnc.dsl.nodes.span import span_field
from attnc.dsl.source import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentName:
    """``video`` or ``levels[i]``: a segment of a space; ``index`` picks one of a family."""

    name: str
    index: Expr | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """``{ q -> k, h : predicate }``: the pairs that satisfy a predicate; ``head`` is optional.

    ``{ q in video -> k in text : ... }`` restricts to one segment of a space; positions and
    coordinates then count from the start of that segment.
    """

    query: str
    key: str
    head: str | None
    predicate: Expr
    query_segment: SegmentName | None = None
    key_segment: SegmentName | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """``8`` or ``left: 8`` in a pattern reference."""

    name: str | None
    value: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``window(left: 8)`` or ``causal``: another pattern of this file, an import, or the stdlib."""

    name: str
    args: tuple[Argument, ...]
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUnion:
    """``a | b | c``."""

    parts: tuple[Set, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIntersection:
    """``a & b & c``."""

    parts: tuple[Set, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDifference:
    """``a - b``: in ``a`` and not in ``b``."""

    left: Set
    right: Set
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetComplement:
    """``~a``: all pairs of existing tokens that are not in ``a``."""

    part: Set
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIf:
    """``if c then a else b``: the condition is known at compile time (parameters only)."""

    condition: Expr
    then: Set
    otherwise: Set
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIndex:
    """``masks[i]``: an item of a parameter of type ``list[pattern]``."""

    name: str
    index: Expr
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnionOver:
    """``union over i in lo..hi : a``: the union of one set for each integer (compile time)."""

    var: str
    low: Expr
    high: Expr
    body: Set
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """``blocks(a, 64, any)``: whole blocks, those in which enough pairs of ``a`` are kept.

    A block is ``block_q`` by ``block_k`` tokens (one size: square). ``rule`` "any" and "all" have
    no threshold; "count" and "density" compare (``op``) the kept pairs, or their share of the
    existing pairs of the block, with ``threshold``.
    """

    part: Set
    block_q: Expr
    block_k: Expr | None
    rule: Literal["any", "all", "count", "density"]
    op: Literal[">", ">="] | None = None
    threshold: Expr | None = None
    span: Span = span_field()


Set: TypeAlias = (
    Builder
    | Reference
    | SetUnion
    | SetIntersection
    | SetDifference
    | SetComplement
    | SetIf
    | SetIndex
    | UnionOver
    | Rounded
)
PatternValue: TypeAlias = Reference | SetIndex
"""What names one pattern: where a pair is tested."""

# --------------------------------------------------------------------------------------- Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """``y: 48``; ``extent`` a bare name that is nothing else declares a symbolic extent.

    ``grid(y, x)`` is short for ``grid(y: y, x: x)``.
    """

    name: str
    extent: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """``grid(t: 30, y: 48, x: 80)``: row-major, the last axis fastest.

    ``grid(*shape)``: ``axes`` is empty and ``shape`` a list of extents; coordinates are ``q[0]``,
    ``q[1]``, ... ``tile`` (a list, one side for each axis): tokens stand tile by tile.
    """

    axes: tuple[Axis, ...] = ()
    shape: Expr | None = None
    tile: Expr | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """``video: grid(...)``, a named ``space``, or a family ``levels[i in lo..hi]: grid(...)``."""

    name: str | None
    grid: Grid | None
    var: str | None = None
    low: Expr | None = None
    high: Expr | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """``a ++ b``: segments one after the other."""

    segments: tuple[Segment, ...]
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class On:
    """``on video`` (queries and keys), ``on image -> image ++ pooled`` (queries, then keys)."""

    query: Space
    key: Space | None = None
    span: Span = span_field()
