"""The AST of an ``.attn`` file: what was written, with spans.

Three sums: ``Expr`` (numbers and truth values), ``Set`` (sets of (query, key) pairs) and ``Item``
(what a file is made of). Spans never take part in comparisons, so two files that differ in layout
alone have equal ASTs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from attnc.dsl.nodes.expr import (
    Attribute,
    Binary,
    Bool,
    BoolOp,
    Call,
    Compare,
    Expr,
    IfExpr,
    Index,
    Let,
    ListFor,
    ListOf,
    Name,
    Number,
    PairIn,
    Quantifier,
    Reduce,
    Unary,
)
from attnc.dsl.nodes.items import (
    Attention,
    Clause,
    Combine,
    Dim,
    File,
    Fn,
    FnParam,
    Heads,
    Import,
    Input,
    Item,
    Layers,
    Param,
    PatternDef,
    Require,
    Route,
    Score,
    SpaceDef,
    Tune,
    Type,
)
from attnc.dsl.nodes.sets import (
    Argument,
    Axis,
    Builder,
    Grid,
    On,
    PatternValue,
    Reference,
    Rounded,
    Segment,
    SegmentName,
    Set,
    SetComplement,
    SetDifference,
    SetIf,
    SetIndex,
    SetIntersection,
    SetUnion,
    Space,
    UnionOver,
)

if TYPE_CHECKING:
    from typing_extensions import assert_never  # typing.assert_never is 3.11; we support 3.10
else:

    def assert_never(value: object) -> None:
        raise AssertionError(value)


__all__ = [
    "Argument",
    "Attention",
    "Attribute",
    "Axis",
    "Binary",
    "Bool",
    "BoolOp",
    "Builder",
    "Call",
    "Clause",
    "Combine",
    "Compare",
    "Dim",
    "Expr",
    "File",
    "Fn",
    "FnParam",
    "Grid",
    "Heads",
    "IfExpr",
    "Import",
    "Index",
    "Input",
    "Item",
    "Layers",
    "Let",
    "ListFor",
    "ListOf",
    "Name",
    "Node",
    "Number",
    "On",
    "PairIn",
    "Param",
    "PatternDef",
    "PatternValue",
    "Quantifier",
    "Reduce",
    "Reference",
    "Require",
    "Rounded",
    "Route",
    "Score",
    "Segment",
    "SegmentName",
    "Set",
    "SetComplement",
    "SetDifference",
    "SetIf",
    "SetIndex",
    "SetIntersection",
    "SetUnion",
    "Space",
    "SpaceDef",
    "Tune",
    "Type",
    "Unary",
    "UnionOver",
    "children",
    "walk",
]

Node: TypeAlias = (
    Expr
    | Set
    | Argument
    | Item
    | Type
    | File
    | SegmentName
    | Axis
    | Grid
    | Segment
    | Space
    | On
    | Dim
    | Layers
    | Require
    | FnParam
    | Clause
)


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes right below one, in the order they were written."""
    match node:
        case Number() | Bool() | Name() | Import() | Attribute():
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
        case Unary(operand=part) | Argument(value=part) | Heads(count=part) | Layers(count=part):
            return (part,)
        case Builder(query_segment=query_segment, key_segment=key_segment, predicate=part):
            return (*_some(query_segment, key_segment), part)
        case Binary(left=left, right=right):
            return (left, right)
        case SetDifference(left=first, right=second):
            return (first, second)
        case SetComplement(part=only):
            return (only,)
        case (
            Quantifier(low=low, high=high, body=body)
            | Reduce(low=low, high=high, body=body)
            | ListFor(low=low, high=high, body=body)
        ):
            return (low, high, body)
        case UnionOver(low=low, high=high, body=united):
            return (low, high, united)
        case PairIn(query=query, key=key, pattern=pattern):
            return (query, key, pattern)
        case SetIndex(index=index):
            return (index,)
        case Rounded(part=rounded, block_q=block_q, block_k=block_k, threshold=threshold):
            return (rounded, block_q, *_some(block_k, threshold))
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
        case PatternDef(params=params, on=on, heads=heads, layers=layers, body=kept):
            return (*params, *_some(on, heads, layers), *node.requires, kept)
        case Require(condition=condition):
            return (condition,)
        case Score(params=params, on=on, heads=heads, body=built):
            return (*params, *_some(on, heads), built)
        case Attention(params=params, on=on, heads=heads, score=score, over=over):
            return (*params, *_some(on, heads), score, over, *_some(node.sink, node.scale))
        case Route(params=params, clauses=clauses):
            return (*params, *clauses)
        case Tune(clauses=clauses):
            return clauses
        case Clause(value=value):
            return (value,)
        case Combine(params=params, body=body):
            return (*params, body)
        case Fn(params=arguments, body=body):
            return (*arguments, body)
        case FnParam(type=kind, default=default):
            return _some(kind, default)
        case Input(type=kind, dims=dims, default=default):
            return (kind, *dims, *_some(default))
        case Dim(extent=extent) | SegmentName(index=extent):
            return _some(extent)
        case Axis(extent=side):
            return (side,)
        case Grid(axes=axes, shape=shape, tile=tile):
            return (*axes, *_some(shape, tile))
        case Segment(low=least, high=most, grid=grid):
            return _some(least, most, grid)
        case Space(segments=segments):
            return segments
        case SpaceDef(space=space):
            return (space,)
        case On(query=queries, key=keys):
            return _some(queries, keys)
        case File(items=written):
            return written
    assert_never(node)


def _some(*nodes: Node | None) -> tuple[Node, ...]:
    return tuple(n for n in nodes if n is not None)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it, parents first, without recursion."""
    stack: list[Node] = [node]
    while stack:
        here = stack.pop()
        yield here
        stack.extend(reversed(children(here)))
