"""Pattern IR -> the distances that the CPU executor takes one by one, and what is left.

    q - k < 64 or is_pow2(q - k)   -->   distances 64, 128, 256, ..., and q - k < 64
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import MAX_LENGTH
from attnc.compiler.passes.bands import Band, predicate, split_off
from attnc.compiler.passes.token_order import (
    GAIN,
    REFERENCE_TOKENS,
    Cost,
    can_reorder,
    cheapest,
)

DISTANCE_PAIRS = 12
"""What a query spends on one key by itself, in pairs of a tile: measured on one core, heads of 64,
45 to 50 ns beside 4.5 ns of a causal window of 256 (bfloat16: 49 and 4.1)."""

MAX_DISTANCES = 64
"""No more distances than these are written down."""


def split_distances(
    pattern: Pattern, cost: Cost, *, apart: float
) -> tuple[tuple[int, ...], Pattern | None]:
    """Choose the distances to take one by one, by what parts cost at ``REFERENCE_TOKENS``.

    Returns: the distances, ascending (empty: none is better so), and the rest of the pattern (None:
    nothing is left).
    """
    if not can_reorder(pattern):
        return (), pattern
    bands, rest = split_off(pattern.predicate)
    least = cheapest(bands, rest, cost, apart=apart)[0]
    if bands:
        least = min(least, GAIN * cost(bands, 1))
    best: tuple[tuple[int, ...], tuple[Band, ...]] | None = None
    for single in _choices(bands):
        distances = sorted(d for band in single for d in _distances(band))
        near = sum(abs(d) < REFERENCE_TOKENS for d in distances)
        left = tuple(band for band in bands if band not in single)
        total = float(DISTANCE_PAIRS * near * REFERENCE_TOKENS)
        total += apart if left or rest != ex.FALSE else 0.0
        total += cheapest(left, rest, cost, apart=apart)[0]
        if total < least:
            least, best = total, (tuple(distances), left)
    if best is None:
        return (), pattern
    body = ex.or_(predicate(best[1]), rest)
    return best[0], None if body == ex.FALSE else replace(pattern, body=Where(body), warnings=())


def _choices(bands: tuple[Band, ...]) -> Iterator[tuple[Band, ...]]:
    """Yield bands to take apart: all that are short, and those of one distance."""
    short = tuple(band for band in bands if _number(band) <= MAX_DISTANCES)
    lone = tuple(band for band in short if _number(band) <= 1)
    for found in dict.fromkeys((short, lone)):
        if 0 < sum(map(_number, found)) <= MAX_DISTANCES:
            yield found


def _number(band: Band) -> int:
    """Return how many distances a band has within ``MAX_LENGTH``, or one more than may be."""
    if band.first is None or band.last is None:
        return MAX_DISTANCES + 1
    return len(_distances(band))


def _distances(band: Band) -> range:
    assert band.first is not None
    assert band.last is not None
    low = band.first + max(0, -(-(1 - MAX_LENGTH - band.first) // band.step)) * band.step
    return range(low, min(band.last, MAX_LENGTH - 1) + 1, band.step)
