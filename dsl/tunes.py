"""What a ``tune`` item states: its clauses, and their values as Python has them."""

from __future__ import annotations

from typing import TypeAlias

from attnc.dsl import nodes as ast

Stated: TypeAlias = "str | tuple[int, ...] | tuple[tuple[int, ...], tuple[int, ...]]"
"""A word, numbers, or a box of queries and one of keys."""

LEAST_SIDE, MOST_SIDE = 16, 256
"""Tokens of a side of a tile: powers of two from the one to the other."""

MOST_APART = 1 << 30
"""Tokens of a class cannot stand further apart than the longest sequence is long."""

EXPECTED = {
    "tile": "two sides in tokens, powers of two from 16 to 256, such as `[64, 64]`; on a grid also "
    "two boxes, `[[8, 8], [8, 8]]`, or `boxes`",
    "cpu_tile": "two sides in tokens, powers of two from 16 to 256, such as `[32, 32]`",
    "orders": "`natural`, `auto`, or residue classes, such as `[1, 64]`",
    "bias": "`auto`, `add` or `fold`",
}
"""The clauses, and what each is made of."""


def stated(item: ast.Tune) -> dict[str, Stated]:
    """Return what the clauses say, by name; what ``read`` refuses is left out."""
    found = {clause.name: read(clause) for clause in item.clauses}
    return {name: value for name, value in found.items() if value is not None}


def read(clause: ast.Clause) -> Stated | None:
    """Return the value of a clause, None where it is not one that ``EXPECTED`` describes."""
    word = clause.value.name if isinstance(clause.value, ast.Name) else ""
    whole = _whole(clause.value)
    match clause.name:
        case "tile" | "cpu_tile":
            if whole is not None:
                return whole if len(whole) == 2 and all(map(_is_side, whole)) else None
            if clause.name == "cpu_tile":
                return None
            return word if word == "boxes" else _boxes(clause.value)
        case "orders":
            if whole is not None:
                return whole if whole and all(0 < m <= MOST_APART for m in whole) else None
            return word if word in ("auto", "natural") else None
        case "bias":
            return word if word in ("auto", "add", "fold") else None
    return None


def _whole(expr: ast.Expr) -> tuple[int, ...] | None:
    """Return a list of whole numbers, None for anything else."""
    if not isinstance(expr, ast.ListOf):
        return None
    numbers = [item.value for item in expr.items if isinstance(item, ast.Number)]
    if len(numbers) < len(expr.items) or any(number.denominator > 1 for number in numbers):
        return None
    return tuple(map(int, numbers))


def _boxes(expr: ast.Expr) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return two lists of powers of two, as many in each, None for anything else."""
    if not isinstance(expr, ast.ListOf) or len(expr.items) != 2:
        return None
    query, key = map(_whole, expr.items)
    if not query or not key or len(query) != len(key):
        return None
    return (query, key) if all(map(_is_power, (*query, *key))) else None


def _is_side(number: int) -> bool:
    return LEAST_SIDE <= number <= MOST_SIDE and _is_power(number)


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)
