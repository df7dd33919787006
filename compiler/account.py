"""A question to isl -> its answer, or ``OverBudget``: what isl may spend, counted in operations.

Most questions take milliseconds, but integer projection has no bound. isl counts its operations
(allocations), which are the same on every machine: a budget of them, unlike a clock, lets two runs
end alike. They do not all weigh alike, however: where sets have divs, comparing them and taking
their ends is integer programming, and an operation there can take a hundred times longer. Such
questions are asked through this module; each has a small limit of its own, and what it spends
counts several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import islpy as isl

Relation = TypeVar("Relation", isl.Set, isl.Map)

BUDGET_OPERATIONS = 2_000_000
"""isl operations one question may take: milliseconds for most, under a second for the worst."""

FEW_DIVS = 4
"""Most divs in each part of a set that integer programming is mostly quick about."""

FEW_OPERATIONS = 240_000
"""isl operations one hard question about sets of one div may take; of two the half, and so on."""

HARD_OPERATIONS = 14_000
"""isl operations a hard question about more divs may take for each part of its sets."""

MOST_PARTS = 6
"""More parts than these add nothing to what such a question may take."""

HARD_WEIGHT = 2
"""What an operation of a hard question counts in the budget."""

CONTEXT = isl.Context()
"""The one context of isl: it holds the budget."""
CONTEXT.set_on_error(isl.on_error.CONTINUE)

_share = 1
"""What part of a whole budget the one that runs is: one in so many."""


class OverBudget(Exception):
    """A question to isl has no answer within its budget, or none that can be used."""


class Spent(OverBudget):
    """The budget ended: the same question in other words would mostly end likewise."""


@contextmanager
def budget(
    operations: int = BUDGET_OPERATIONS, *, share: int = 1, gone: int = 0
) -> Iterator[None]:
    """Run isl under an operation budget, or a part of it; budgets do not nest.

    ``gone``: what was spent of it beforehand.
    Raises: Spent when it ends, OverBudget for any other refusal of isl.
    """
    global _share
    assert not CONTEXT.get_max_operations(), "an isl budget inside another"
    afford(gone, operations, share=share)
    _share = share
    CONTEXT.reset_operations()
    CONTEXT.set_max_operations(max(operations // share - gone, 1))
    try:
        yield
    except isl.Error as error:
        if _over_limit(error):
            raise Spent(f"more than {operations // share:,} isl operations") from None
        raise OverBudget(f"isl: {error}") from None
    finally:
        CONTEXT.set_max_operations(0)
        CONTEXT.reset_operations()


def afford(gone: int, operations: int = BUDGET_OPERATIONS, *, share: int = 1) -> None:
    """Raise Spent if a budget, or a part of it, would have ended."""
    if gone >= operations // share:
        raise Spent(f"more than {operations // share:,} isl operations")


def reraise_over_budget(error: isl.Error) -> None:
    """Raise Spent if that is what an isl error means; otherwise return."""
    if _over_limit(error):
        raise Spent("isl's operation budget is spent") from None


def _over_limit(error: isl.Error) -> bool:
    # A result that isl gave up on is NULL, and surfaces as a null-pointer error one call later;
    # inside its reader it surfaces as a syntax error.
    text = str(error).lower()
    return "number of operations exceeded" in text or "null" in text or "syntax" in text


# ------------------------------------------------------------------------- hard questions


def minus(left: Relation, right: Relation) -> Relation:
    """Return ``left - right``."""
    with _hard(left, right):
        return left.subtract(right)


def within(left: Relation, right: Relation) -> bool:
    """Return whether ``left`` lies in ``right``."""
    with _hard(left, right):
        return bool(left.is_subset(right))


def apart(left: Relation, right: Relation) -> bool:
    """Return whether two sets have nothing in common."""
    with _hard(left, right):
        return bool(left.is_disjoint(right))


def equal(left: isl.Set, right: isl.Set) -> bool:
    """Return whether two sets are the same."""
    with _hard(left, right):
        return bool(left.is_equal(right))


def least(of: isl.Set) -> isl.PwAff:
    """Return the least value of the first dimension. Raises: isl.Error where there is none."""
    with _hard(of):
        return of.dim_min(0)


def greatest(of: isl.Set) -> isl.PwAff:
    """Return the greatest value of the first dimension. Raises: isl.Error where there is none."""
    with _hard(of):
        return of.dim_max(0)


@contextmanager
def _hard(*sets: isl.Set | isl.Map) -> Iterator[None]:
    """Limit a question about sets with divs, and count it several times."""
    left = CONTEXT.get_max_operations()
    parts, divs = map(max, zip(*map(_parts_and_divs, sets), strict=True))
    if not left or not divs:
        yield
        return
    left -= _spent(left)
    most = HARD_OPERATIONS * min(parts, MOST_PARTS)
    if divs <= FEW_DIVS:
        most = FEW_OPERATIONS // divs
    _allow(min(left, most // _share))
    try:
        yield
    finally:
        _allow(left - HARD_WEIGHT * _spent(left))


def _allow(operations: int) -> None:
    CONTEXT.reset_operations()
    CONTEXT.set_max_operations(max(operations, 1))


def _parts_and_divs(of: isl.Set | isl.Map) -> tuple[int, int]:
    """Return the number of basic sets, and the most divs in one."""
    parts = of.get_basic_sets() if isinstance(of, isl.Set) else of.get_basic_maps()
    return len(parts), max((part.dim(isl.dim_type.div) for part in parts), default=0)


def spent() -> int:
    """Return how many operations were spent of the budget that runs."""
    limit = CONTEXT.get_max_operations()
    most = _spent(limit)
    least = most // 2
    while least + 1 < most:
        middle = (least + most) // 2
        least, most = (least, middle) if _lasts(middle) else (middle, most)
    CONTEXT.set_max_operations(limit)
    return most


def _spent(limit: int) -> int:
    """Return how many operations were spent, rounded up to a power of two.

    isl keeps the count to itself: what is sought is the least limit that does not bite.
    """
    low, high = 6, max((limit - 1).bit_length(), 6)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _lasts(1 << middle) else (middle + 1, high)
    return 1 << low


def _lasts(limit: int) -> bool:
    """Whether fewer operations than a limit were spent."""
    CONTEXT.set_max_operations(limit)
    try:
        isl.Val.int_from_si(CONTEXT, 2)
    except isl.Error:
        return False
    return True
