"""A chain of operators -> a tree: left to right where it is short, balanced where it is long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnc.dsl import nodes as ast

# A longer chain of + and - becomes a balanced tree, so that a sum of thousands of terms is not
# thousands of levels deep. Shorter ones keep the left-to-right shape that was written. Blocks are
# so much smaller that the left edge of a balanced tree, printed and read again, is a short chain.
LEFT_DEEP_TERMS = 32
BLOCK_TERMS = 8


def chain(operands: Sequence[ast.Expr], signs: Sequence[str]) -> ast.Expr:
    """Return ``a - b + c`` as ``(a - b) + c``, whatever the signs are."""
    left = operands[0]
    for sign, right in zip(signs, operands[1:], strict=True):
        op: Any = sign
        left = ast.Binary(op=op, left=left, right=right, span=left.span.to(right.span))
    return left


def total(terms: Sequence[ast.Expr], signs: Sequence[str]) -> ast.Expr:
    """Return a sum; a long one as a tree of logarithmic depth.

    a - b + c - d  -->  (a - b) + (c - d)
    """
    if len(terms) <= LEFT_DEEP_TERMS:
        return chain(terms, signs)
    minus = [False, *(sign == "-" for sign in signs)]

    def build(start: int, stop: int, flip: bool) -> ast.Expr:
        # The sum of terms[start:stop] where the first counts as plus; flip: the signs are turned.
        if stop - start <= BLOCK_TERMS:
            left = terms[start]
            for i in range(start + 1, stop):
                op: Any = "-" if minus[i] != flip else "+"
                span = left.span.to(terms[i].span)
                left = ast.Binary(op=op, left=left, right=terms[i], span=span)
            return left
        middle = (start + stop) // 2
        first, turned = build(start, middle, flip), minus[middle] != flip
        second = build(middle, stop, minus[middle])
        return ast.Binary(
            op="-" if turned else "+", left=first, right=second, span=first.span.to(second.span)
        )

    return build(0, len(terms), False)
