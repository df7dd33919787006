"""Counts at some lengths -> formulas in n, fitted as quasi-polynomials and verified elsewhere.

The number of pairs of a set that linear arithmetic describes is a quasi-polynomial in n from some
length on: a polynomial for each remainder of n. So three counts give a formula of degree two, and
counts at other lengths refute a wrong one. Nothing is returned that a count contradicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from attnc.compiler.counts import count
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask
from attnc.compiler.ir.pattern import Pattern

DEGREE = 2
MAX_PERIOD = 4096
MAX_LENGTH = 1 << 17
"""Longest sequence that is counted for a formula, in tokens."""

UNSEEN = (3, 4, 5, 7, 11)
"""Lengths beyond those of the fit, in periods, that a formula must also give."""

FAR = (3 << 10, 5 << 11, 9 << 12)
"""Lengths far away that it must also give, in tokens, rounded up to the period."""

CLOSE = 32
"""Lengths that are tried before a shorter start is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """``a * n**2 + b * n + c`` for ``n >= start`` with ``n mod period == 0``, exactly.

    Verified at the lengths ``verified``, none of which it was made of.
    """

    coefficients: tuple[Fraction, Fraction, Fraction]
    period: int
    start: int
    verified: tuple[int, ...]

    def __call__(self, n: int) -> Fraction:
        square, linear, constant = self.coefficients
        return square * n * n + linear * n + constant

    def sympy(self) -> Any:
        """Return it as an expression of sympy in ``n``, factored where that is shorter.

        Raises: ImportError without sympy.
        """
        import sympy

        n = sympy.Symbol("n", integer=True, nonnegative=True)
        square, linear, constant = (
            sympy.Rational(c.numerator, c.denominator) for c in self.coefficients
        )
        plain = square * n**2 + linear * n + constant
        return min((plain, sympy.factor(plain)), key=sympy.count_ops)

    def __str__(self) -> str:
        where = f"n >= {self.start:,}" + ("" if self.period == 1 else f", {self.period} divides n")
        return f"{self.sympy()}   for {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The formulas of a pattern and a tiling; None: no quasi-polynomial of degree two was found."""

    kept: Formula | None
    computed: Formula | None

    @property
    def density(self) -> Any:
        """The part of all pairs that is kept, as n grows, as an expression of sympy."""
        import sympy

        if self.kept is None:
            return None
        n = sympy.Symbol("n", integer=True, nonnegative=True)
        return sympy.limit(self.kept.sympy() / n**2, n, sympy.oo)


def closed_forms(block_mask: BlockMask) -> Forms:
    """Return formulas for pairs kept and computed by all heads of the mask, ``nq == nk == n``.

    Raises: ValueError where counts depend on more than n: data, or extents of a grid.
    """
    pattern = block_mask.pattern
    if not pattern.is_static or pattern.query_space is not None:
        raise ValueError("a formula in n needs a pattern of plain sequences that reads no data")
    side = math.lcm(block_mask.tiling.q, block_mask.tiling.k)

    def counted(n: int) -> tuple[int, int]:
        found = count(block_mask, n, n)
        return found.pairs_kept, found.pairs_computed

    own = _period(pattern)
    steps = [own, math.lcm(own, side)]
    kept = _fit(lambda n: counted(n)[0], [1, *steps], pattern)
    computed = _fit(lambda n: counted(n)[1], [math.lcm(own, side)], pattern)
    return Forms(kept=kept, computed=computed)


def _period(pattern: Pattern) -> int:
    """Return the least common multiple of all that the pattern divides by, 1 beyond a limit."""
    period = 1
    for node in ex.walk(pattern.predicate):
        if isinstance(node, ex.FloorDiv | ex.Mod):
            period = math.lcm(period, node.divisor)
    return period if period <= MAX_PERIOD else 1


def _reach(pattern: Pattern) -> int:
    """Return a length from which on borders should not touch: beyond all numbers it names."""
    numbers = [16]
    for node in ex.walk(pattern.predicate):
        match node:
            case ex.Const(value=value):
                numbers.append(abs(value))
            case ex.FloorDiv(divisor=divisor) | ex.Mod(divisor=divisor):
                numbers.append(divisor)
    return 2 * max(numbers)


def _fit(number: Callable[[int], int], periods: list[int], pattern: Pattern) -> Formula | None:
    """Try periods, from lengths on that grow; the last period is that of the counts."""
    for period in dict.fromkeys(periods):
        start = -(-_reach(pattern) // period) * period
        while 3 * start + max(UNSEEN) * period <= MAX_LENGTH:
            found = _through(number, period, start, periods[-1])
            if found is not None:
                return _from_the_first(found, number)
            start *= 4
    return None


def _through(
    number: Callable[[int], int], period: int, start: int, whole: int
) -> Formula | None:
    """Return the polynomial through three lengths, None where it fails at another.

    A period shorter than the ``whole`` one is tried at lengths all over that.
    """
    xs = [start + i * period for i in range(DEGREE + 1)]
    a, b, c = (Fraction(number(x)) for x in xs)
    square = (c - 2 * b + a) / (2 * period**2)
    linear = (b - a) / period - square * (xs[0] + xs[1])
    constant = a - square * xs[0] ** 2 - linear * xs[0]
    far = {-(-n // period) * period for n in (3 * start, *FAR) if n <= MAX_LENGTH}
    between = range(0, whole, max(whole // CLOSE // period, 1) * period)
    tried = {*(start + i * period for i in UNSEEN), *far, *(3 * start + i for i in between)}
    unseen = sorted(n for n in tried if xs[-1] < n <= MAX_LENGTH)
    formula = Formula(
        coefficients=(square, linear, constant), period=period, start=start,
        verified=tuple(unseen),
    )
    return formula if all(formula(n) == number(n) for n in unseen) else None


def _from_the_first(formula: Formula, number: Callable[[int], int]) -> Formula:
    """Return the formula from the shortest length on that halving finds it right at."""
    start, tried = formula.start, set(formula.verified)
    while start >= 2 * formula.period:
        half = start // 2 // formula.period * formula.period
        step = max((start - half) // CLOSE // formula.period, 1) * formula.period
        between = range(half, start, step)
        if any(formula(n) != number(n) for n in between):
            break
        tried.update(between)
        start = half
    return Formula(
        coefficients=formula.coefficients, period=formula.period, start=start,
        verified=tuple(sorted(tried)),
    )
