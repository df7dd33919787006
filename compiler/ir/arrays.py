"""Formulas of computed inputs: whole-array expressions with a NumPy and a device form.

``next_where(types == 0)``: evaluated by NumPy in the oracle and by torch in the written module.
Sides broadcast as in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnc.compiler.ir import expr as ex


@dataclass(frozen=True, slots=True)
class ArrayInput:
    """Another input, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class ArrayConst:
    """An integer; truth values are 0 and 1."""

    value: int


@dataclass(frozen=True, slots=True)
class ArrayOp:
    """Element by element; ``div`` and ``mod`` floor, ``not`` has one part."""

    op: Literal[
        "+", "-", "*", "div", "mod", "==", "!=", "<", "<=", ">", ">=", "and", "or", "not"
    ]
    parts: tuple[ArrayExpr, ...]


Transform = Literal[
    "next_where", "prefix_sum", "differences", "repeat", "khop", "merge_ranges", "members"
]


@dataclass(frozen=True, slots=True)
class ArrayCall:
    """A transform of whole arrays (``transforms.py`` says what each does)."""

    function: Transform
    args: tuple[ArrayExpr, ...]


@dataclass(frozen=True, slots=True)
class BlockCount:
    """For each block of ``block_q`` by ``block_k`` tokens: whether enough of its pairs are kept.

    Shape: ``[heads or 1, ceil(nq / block_q), ceil(nk / block_k)]``, truth values. ``density``: the
    kept share of the existing pairs is compared, ``share * denominator op threshold``; otherwise
    the number of kept pairs is, with denominator 1.
    """

    predicate: ex.BoolExpr
    block_q: int
    block_k: int
    op: Literal[">", ">="]
    threshold: int
    denominator: int
    density: bool


ArrayExpr: TypeAlias = ArrayInput | ArrayConst | ArrayOp | ArrayCall | BlockCount
