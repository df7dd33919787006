"""The AST of an ``.attn`` file: what was written, with spans.

Three sums: ``Expr`` (numbers and truth values), ``Set`` (sets of (query, key) pairs) and ``Item``
(what a file is made of). Spans never take part in comparisons, so two files that differ in layout
alone have equal ASTs.
"""

# ruff: noqa: RUF009  (`_span()` returns a dataclass field)
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

from attnc.dsl.source import UNKNOWN, Span

if TYPE_CHECKING:
    from typing_extensions import assert_never  # typing.assert_never is 3.11; we support 3.10
else:

    def assert_never(value: object) -> None:
        raise AssertionError(value)


def _span() -> Span:
    return field(default=UNKNOWN, compare=False, repr=False)


# ---------------------------------------------------------------------------------------- Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """``12`` or ``0.25``: an exact rational (a decimal literal is read exactly)."""

    value: Fraction
    text: str = field(default="", compare=False)
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bool:
    """``true`` or ``false``."""

    value: bool
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """``window``: a parameter, a coordinate, a length, a bound variable, or an enum choice."""

    name: str
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """``[1, 2, 4]``: a list of compile-time values."""

    items: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """``rates[i]``: item ``i`` (from 0) of a list parameter."""

    base: Expr
    index: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``abs(q - k)``: a built-in function of ``functions.py``."""

    function: str
    args: tuple[Expr, ...]
    span: Span = _span()
    name_span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary:
    """``-x`` or ``not x``."""

    op: Literal["-", "not"]
    operand: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """``x + y``, ``-``, ``*``, ``/`` (exact rational), ``div`` and ``mod`` (floored), ``**``."""

    op: Literal["+", "-", "*", "/", "div", "mod", "**"]
    left: Expr
    right: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """``a <= b < c``: every neighbouring pair holds; ``len(operands) == len(ops) + 1``."""

    operands: tuple[Expr, ...]
    ops: tuple[Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"], ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoolOp:
    """``a and b and c`` or ``a or b or c``."""

    op: Literal["and", "or"]
    parts: tuple[Expr, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantifier:
    """``exists e in lo..hi : body`` (or ``forall``), both ends included; empty when ``lo > hi``."""

    op: Literal["exists", "forall"]
    var: str
    low: Expr
    high: Expr
    body: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class IfExpr:
    """``if c then x else y``."""

    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Let:
    """``let d = q - k in body``."""

    name: str
    value: Expr
    body: Expr
    span: Span = _span()


Expr: TypeAlias = (
    Number | Bool | Name | ListOf | Index | Call | Unary | Binary | Compare | BoolOp | Quantifier
    | IfExpr | Let
)

# ----------------------------------------------------------------------------------------- Set


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """``{ q -> k, h : predicate }``: the pairs that satisfy a predicate; ``head`` is optional."""

    query: str
    key: str
    head: str | None
    predicate: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """``8`` or ``left: 8`` in a pattern reference."""

    name: str | None
    value: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``window(left: 8)`` or ``causal``: another pattern of this file, an import, or the stdlib."""

    name: str
    args: tuple[Argument, ...]
    span: Span = _span()
    name_span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUnion:
    """``a | b | c``."""

    parts: tuple[Set, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIntersection:
    """``a & b & c``."""

    parts: tuple[Set, ...]
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDifference:
    """``a - b``: in ``a`` and not in ``b``."""

    left: Set
    right: Set
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetComplement:
    """``~a``: all pairs of existing tokens that are not in ``a``."""

    part: Set
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIf:
    """``if c then a else b``: the condition is known at compile time (parameters only)."""

    condition: Expr
    then: Set
    otherwise: Set
    span: Span = _span()


Set: TypeAlias = (
    Builder | Reference | SetUnion | SetIntersection | SetDifference | SetComplement | SetIf
)

# ---------------------------------------------------------------------------------------- Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """``int``, ``bool``, ``rational``, ``list[int]`` (or of another scalar), ``one of a, b``."""

    kind: Literal["int", "bool", "rational", "list", "enum"]
    item: Type | None = None
    choices: tuple[str, ...] = ()
    span: Span = _span()


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
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """``heads h: 32``: the head variable and how many heads there are."""

    var: str
    count: Expr
    span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternDef:
    """``pattern p(w: int = 8) heads h: 4 = set``; ``doc`` is the comment block right above it."""

    name: str
    params: tuple[Param, ...]
    heads: Heads | None
    body: Set
    doc: str = field(default="", compare=False)
    span: Span = _span()
    name_span: Span = _span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """``import a, b from "file.attn"``: patterns of another file, relative to this one."""

    names: tuple[str, ...]
    path: str
    span: Span = _span()


Item: TypeAlias = Import | Param | Heads | PatternDef


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A whole file: its items in order (comments other than docs are the formatter's alone)."""

    items: tuple[Item, ...]
    span: Span = _span()


Node: TypeAlias = Expr | Set | Argument | Item | Type | File


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes right below one, in the order they were written."""
    match node:
        case Number() | Bool() | Name() | Import():
            return ()
        case ListOf(items=parts) | BoolOp(parts=parts) | Compare(operands=parts):
            return parts
        case SetUnion(parts=sets) | SetIntersection(parts=sets):
            return sets
        case Call(args=args):
            return args
        case Reference(args=arguments):
            return arguments
        case Index(base=base, index=index):
            return (base, index)
        case Unary(operand=part) | Argument(value=part) | Heads(count=part):
            return (part,)
        case Builder(predicate=part):
            return (part,)
        case Binary(left=left, right=right):
            return (left, right)
        case SetDifference(left=first, right=second):
            return (first, second)
        case SetComplement(part=only):
            return (only,)
        case Quantifier(low=low, high=high, body=body):
            return (low, high, body)
        case IfExpr(condition=condition, then=then, otherwise=otherwise):
            return (condition, then, otherwise)
        case SetIf(condition=condition, then=kept, otherwise=rest):
            return (condition, kept, rest)
        case Let(value=value, body=body):
            return (value, body)
        case Type(item=item):
            return () if item is None else (item,)
        case Param(type=kind, low=least, high=most, default=default):
            return tuple(x for x in (kind, least, most, default) if x is not None)
        case PatternDef(params=params, heads=heads, body=kept):
            return (*params, *(() if heads is None else (heads,)), kept)
        case File(items=written):
            return written
    assert_never(node)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it, parents first, without recursion."""
    stack: list[Node] = [node]
    while stack:
        here = stack.pop()
        yield here
        stack.extend(reversed(children(here)))
