"""Items: what a file is made of."""

# ruff: noqa: RUF009  (`span()` returns a dataclass field)
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from attnc.dsl.nodes.expr import Expr
from attnc.dsl.nodes.sets import Builder, On, Set, Space
from attnc.dsl.nodes.span import span_field
from attnc.dsl.source import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """``int``, ``bool``, ``rational``, ``real``, ``pattern``, ``list[...]``, ``one of a, b``."""

    kind: Literal["int", "bool", "rational", "real", "pattern", "list", "enum"]
    item: Type | None = None
    choices: tuple[str, ...] = ()
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """``window: int in 1..4096 = 512``: a compile-time value, its bounds (inclusive), its default.

    ``low``/``high`` are None where the range is open (``in 1..``); ``default`` None: must be given.
    """

    name: str
    type: Type
    low: Expr | None = None
    high: Expr | None = None
    default: Expr | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dim:
    """A side of an input: an extent, or ``*`` (``extent`` None): as long as the tensor is."""

    extent: Expr | None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """``input doc: int[n]``: a run-time tensor (no brackets: a number known at the call).

    ``default`` computes it from other inputs: ``input next: int[n] = next_where(types == 0)``.
    """

    name: str
    type: Type
    dims: tuple[Dim, ...] = ()
    default: Expr | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """``heads h: 32`` (query heads) or ``kv_heads g: 8`` (each serves a group of query heads)."""

    var: str
    count: Expr
    kv: bool = False
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """``layers l: 26``: the layer, a compile-time value ``0 .. count - 1``."""

    var: str
    count: Expr
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Require:
    """``require window <= length else "the window must fit"``: a demand on the parameters."""

    condition: Expr
    message: str
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternDef:
    """``pattern p(w: int = 8) on image heads h: 4 = set``; ``doc``: the comment right above it."""

    name: str
    params: tuple[Param | Input, ...]
    heads: Heads | None
    body: Set
    on: On | None = None
    layers: Layers | None = None
    requires: tuple[Require, ...] = ()
    doc: str = field(default="", compare=False)
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceDef:
    """``space video = grid(t: 30, y: 48, x: 80)``."""

    name: str
    space: Space
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class FnParam:
    """``cap: real = 50``: an argument of an ``fn``."""

    name: str
    type: Type
    default: Expr | None = None
    span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fn:
    """``fn softcap(s: real, cap: real = 50) = cap * tanh(s / cap)``."""

    name: str
    params: tuple[FnParam, ...]
    body: Expr
    doc: str = field(default="", compare=False)
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """``score alibi(n: int = 8) heads h: n = { q -> k, h : -slope(h, n) * (q - k) }``.

    ``body.predicate`` is a number (int, rational or real), added to nothing by itself: an
    ``attention`` uses it.
    """

    name: str
    params: tuple[Param | Input, ...]
    heads: Heads | None
    body: Builder
    on: On | None = None
    doc: str = field(default="", compare=False)
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """``attention a = softmax(softcap(dot) + alibi, over: causal, sink: s[h], scale: 1/8)``.

    ``score`` is an expression of ``dot`` (the scaled product of query and key), of scores by name
    and, where ``heads`` are declared, of the head; ``sink`` a logit beside the keys, a number that
    may depend on the head; ``scale`` a compile-time number, 1 / sqrt(D) when absent.
    """

    name: str
    params: tuple[Param | Input, ...]
    heads: Heads | None
    score: Expr
    over: Set
    sink: Expr | None = None
    scale: Expr | None = None
    on: On | None = None
    doc: str = field(default="", compare=False)
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """``keys: block(64)``: one thing that a route says, or a tune."""

    name: str
    value: Expr
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``route moba(block: int = 512) = { queries: token, keys: block(block), ... }``.

    What keys each query sees is chosen by their content; ``docs/language.md`` has the clauses.
    """

    name: str
    params: tuple[Param | Input, ...]
    clauses: tuple[Clause, ...]
    doc: str = field(default="", compare=False)
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Combine:
    """``combine nsa = gate * selected + other * near``: a sum of attentions, each with its gate.

    A name in it that is no attention, pattern or parameter is a gate: an input of the op.
    """

    name: str
    params: tuple[Param | Input, ...]
    body: Expr
    doc: str = field(default="", compare=False)
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """``tune near = { tile: [64, 64], orders: [1, 64] }``: choices of the compiler, stated.

    ``name`` is a pattern or attention of the same file; what is computed stays the same.
    """

    name: str
    clauses: tuple[Clause, ...]
    span: Span = span_field()
    name_span: Span = span_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """``import a, b from "file.attn"``: patterns of another file, relative to this one."""

    names: tuple[str, ...]
    path: str
    span: Span = span_field()


Item: TypeAlias = (
    Import
    | Param
    | Heads
    | PatternDef
    | SpaceDef
    | Input
    | Fn
    | Score
    | Attention
    | Route
    | Combine
    | Tune
)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A whole file: its items in order (comments other than docs are the formatter's alone)."""

    items: tuple[Item, ...]
    span: Span = span_field()
