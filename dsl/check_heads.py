"""A union of sets for ranges of heads -> the ranges that overlap in part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from attnc.dsl import nodes as ast
from attnc.dsl.source import Span

_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}


@dataclass(frozen=True, slots=True)
class HeadRange:
    """The heads ``low..high`` that a set speaks of, both ends included, and where that is."""

    low: float
    high: float
    span: Span


def overlaps(union: ast.SetUnion) -> Iterator[tuple[HeadRange, HeadRange]]:
    """Yield pairs of parts whose ranges of heads share some heads while neither holds the other.

    ``{ q -> k, h : h < 8 } | { q -> k, h : h >= 7 }`` shares head 7. Only ranges between written
    numbers are seen. A range inside another one adds to it, and is meant.
    """
    found = [r for r in map(head_range, union.parts) if r is not None]
    found.sort(key=lambda r: (r.low, r.high))
    for before, after in zip(accumulate(found, _farther), found[1:], strict=False):
        if before.low < after.low <= before.high < after.high:
            yield before, after


def _farther(one: HeadRange, other: HeadRange) -> HeadRange:
    return one if one.high >= other.high else other


def head_range(part: ast.Set) -> HeadRange | None:
    """Return the heads a set is limited to by numbers, None where it is not."""
    match part:
        case ast.Builder(head=str(head), predicate=predicate):
            low, high = _limits(predicate, head)
        case ast.SetIntersection(parts=parts):
            inner = [r for r in map(head_range, parts) if r is not None]
            low = max((r.low for r in inner), default=0)
            high = min((r.high for r in inner), default=math.inf)
        case _:
            return None
    if (low, high) == (0, math.inf):
        return None
    return HeadRange(low, high, part.span)


def _limits(predicate: ast.Expr, head: str) -> tuple[float, float]:
    """Return the least and the greatest head that the comparisons of a conjunction allow."""
    low, high = 0.0, math.inf
    conjuncts = (
        predicate.parts
        if isinstance(predicate, ast.BoolOp) and predicate.op == "and"
        else (predicate,)
    )
    for part in conjuncts:
        if not isinstance(part, ast.Compare):
            continue
        for left, op, right in zip(part.operands, part.ops, part.operands[1:], strict=False):
            match left, op, right:
                case ast.Name(name=name), "<" | "<=" | ">" | ">=" | "==", ast.Number(value=value):
                    sign: str = op
                case ast.Number(value=value), "<" | "<=" | ">" | ">=" | "==", ast.Name(name=name):
                    sign = _FLIPPED[op]
                case _:
                    continue
            if name != head:
                continue
            if sign in (">", ">=", "=="):
                low = max(low, math.floor(value) + 1 if sign == ">" else math.ceil(value))
            if sign in ("<", "<=", "=="):
                high = min(high, math.ceil(value) - 1 if sign == "<" else math.floor(value))
    return low, high
