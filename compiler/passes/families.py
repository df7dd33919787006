"""Sets of key tiles that differ by constants only  ->  one set with a parameter.

    4 qb - 16 <= kb <= 4 qb - 13  and  4 qb - 32 <= kb <= 4 qb - 29   -->
    4 qb - 16 - shift <= kb <= 4 qb - 13 - shift, with shift = 0 and shift = 16

What is proved of the one set holds for each of them. Powers of two leave forty such sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import islpy as isl

from attnc.compiler import account, sets

SHIFT = "shift"
"""The parameter; no variable of the IRs is called so."""

LEAST_MEMBERS = 4
"""In fewer sets nothing is gained."""

COLUMNS = (isl.dim_type.cst, isl.dim_type.param, isl.dim_type.set, isl.dim_type.div)

Rows = tuple[tuple[int, ...], ...]
"""Constraints: for each its constant, then its coefficients in the order of ``COLUMNS``."""


@dataclass(frozen=True, slots=True)
class Family:
    """``tiles`` with the parameter ``SHIFT`` at each of ``shifts`` (by index) is that member."""

    tiles: isl.Set
    context: isl.Set
    shifts: dict[int, int]


def families(parts: Sequence[isl.Set], context: isl.Set) -> list[Family]:
    """Return the families among basic sets over the same space; isl proves each member.

    ``context``: where the sets count; that of a family also bounds its parameter.
    """
    alike: dict[tuple[object, ...], list[tuple[int, Rows, Rows]]] = {}
    for i, part in enumerate(parts):
        basics = part.get_basic_sets()
        if len(basics) == 1:
            equal = _rows(basics[0].equalities_matrix(*COLUMNS))
            above = _rows(basics[0].inequalities_matrix(*COLUMNS))
            shape = tuple(tuple(row[1:] for row in rows) for rows in (equal, above))
            alike.setdefault((part.dim(isl.dim_type.param), *shape), []).append((i, equal, above))
    found = []
    for members in alike.values():
        family = _family(parts, members, context) if len(members) >= LEAST_MEMBERS else None
        if family is not None:
            found.append(family)
    return found


def _rows(matrix: isl.Mat) -> Rows:
    """Return the rows of a matrix in a fixed order of their coefficients."""
    columns = range(matrix.cols())
    rows = (
        tuple(sets.whole(matrix.get_element_val(i, j)) for j in columns)
        for i in range(matrix.rows())
    )
    return tuple(sorted(rows, key=lambda row: (row[1:], row[0])))


def _family(
    parts: Sequence[isl.Set], members: list[tuple[int, Rows, Rows]], context: isl.Set
) -> Family | None:
    """Return the family of sets of one shape, None where they do not lie along one line."""
    constants = [[row[0] for row in (*equal, *above)] for _, equal, above in members]
    away = [[c - first for c, first in zip(cs, constants[0], strict=True)] for cs in constants]
    unit = gcd(*away[-1])
    if not unit:
        return None
    step = [a // unit for a in away[-1]]
    at = next(i for i, s in enumerate(step) if s)
    shifts = [line[at] // step[at] for line in away]
    if any(line != [n * s for s in step] for line, n in zip(away, shifts, strict=True)):
        return None
    first, equal, above = members[0]
    names = [*sets.param_names(parts[first]), SHIFT]
    space = sets.read_set(f"[{', '.join(names)}] -> {{ [kb] }}").get_space()
    columns = len((*equal, *above)[0]) + 1
    tiles = isl.BasicSet.from_constraint_matrices(
        space,
        _matrix(equal, step[: len(equal)], len(names), columns),
        _matrix(above, step[len(equal) :], len(names), columns),
        *COLUMNS,
    )
    last = len(names) - 1
    whole = tiles.to_set().compute_divs()
    for (i, _, _), shift in zip(members, shifts, strict=True):
        one = whole.fix_val(isl.dim_type.param, last, sets.val(shift))
        if not sets.equal(one.project_out(isl.dim_type.param, last, 1), parts[i]):
            return None
    low, high = min(shifts), max(shifts)
    wider = context.intersect_params(
        sets.read_set(f"[{', '.join(names)}] -> {{ : {low} <= {SHIFT} <= {high} }}")
    )
    return Family(
        whole, wider, {i: shift for (i, _, _), shift in zip(members, shifts, strict=True)}
    )


def _matrix(rows: Rows, step: list[int], params: int, columns: int) -> isl.Mat:
    """Return constraints with the new parameter, the last of ``params``, as a matrix."""
    wide = [(*row[:params], by, *row[params:]) for row, by in zip(rows, step, strict=True)]
    matrix = isl.Mat.alloc(account.CONTEXT, len(wide), columns)
    for i, row in enumerate(wide):
        for j, value in enumerate(row):
            matrix = matrix.set_element_val(i, j, sets.val(value))
    return matrix
