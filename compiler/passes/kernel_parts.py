"""Pattern IR -> parts of the GPU's forward: tiles of residue classes, or distances one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import MAX_LENGTH, DistancePart, ForwardPlan, TilePart
from attnc.compiler.passes.bands import Band, split_off
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.loops import build_loop
from attnc.compiler.passes.tiles import TileChoice, padded
from attnc.compiler.passes.token_order import (
    REFERENCE_TOKENS,
    Orders,
    Work,
    can_reorder,
    parts,
    work,
)

# What a kernel spends beside the pairs of its tiles, in pairs. Weighed by reason (loads from L2
# and instructions of each tile, fill of a pipeline for each row), not measured on a GPU yet.
TILE_PAIRS = 1024
"""Each tile, whatever its shape."""
ROW_PAIRS = 48
"""Each row of tiles, for each of its queries."""
PART_PAIRS = 48
"""Each part after the first, for each query: its rows are read and written once more."""
SMALL_TILE = 8192
"""Tiles of fewer pairs reuse what they load less; each halving costs a tenth."""

MAX_DISTANCES = 32
"""More keys a query than these, at ``REFERENCE_TOKENS``, are better multiplied as tiles."""

WASTE = 4
"""So many computed pairs for each that is kept make single distances the better way."""

HELD = 4096
"""Elements of q, k, v and out that a program of single distances holds of each."""


def build_parts(
    pattern: Pattern, choices: tuple[TileChoice, ...], whole: ForwardPlan, *, orders: Orders,
) -> tuple[TilePart | DistancePart, ...]:
    """Cut the forward of a static pattern into parts; empty: it runs as ``whole``.

    A part that needs a table of tiles keeps the pattern whole, also where its order was asked for.
    Args: ``choices`` are the tiles of the target, best first.
    Raises: ValueError for orders that the pattern cannot take.
    """
    if orders == "auto":
        single = _distances(pattern, whole)
        if single is not None:
            return (single,)

    @cache
    def best(bands: tuple[Band, ...], modulus: int) -> tuple[float, TileChoice]:
        found = ((_cost(work(bands, modulus, c.tiling)), -i) for i, c in enumerate(choices))
        cost, at = min(found, key=lambda one: one[0])
        return cost, choices[-at]

    cut = parts(
        pattern, orders, lambda bands, modulus: best(bands, modulus)[0],
        apart=PART_PAIRS * REFERENCE_TOKENS,
    )
    made = []
    for part in cut:
        choice = choices[0] if not part.bands else best(part.bands, part.modulus)[1]
        mask, data, _ = tiles_of(part.pattern, choice.tiling, tested=False)
        loop = build_loop(
            ForwardPlan, mask, data, choice, head_dim=whole.head_dim, value_dim=whole.value_dim,
            dtype=whole.dtype, target=whole.target,
        )
        if loop.row_order == "sorted":  # by tiles of one length; classes have two
            loop = replace(loop, row_order="reversed")
        if loop.form != "ranges":
            return ()
        made.append(TilePart(modulus=part.modulus, loop=loop))
    return tuple(made)


def _distances(pattern: Pattern, whole: ForwardPlan) -> DistancePart | None:
    """Return the pattern as single distances, where those are few and tiles would waste much."""
    if not can_reorder(pattern):
        return None
    bands, rest = split_off(pattern.predicate)
    if not bands or rest != ex.FALSE or any(None in (b.first, b.last) for b in bands):
        return None
    total: list[int] = []
    for band in bands:
        assert band.first is not None
        assert band.last is not None
        last = min(band.last, MAX_LENGTH - 1)
        if (last - band.first) // band.step > MAX_DISTANCES:
            return None
        total += range(max(band.first, 1 - MAX_LENGTH), last + 1, band.step)
    seen = [d for d in total if abs(d) < REFERENCE_TOKENS]
    kept = sum(REFERENCE_TOKENS - abs(d) for d in seen)
    visited = work(bands, 1, whole.tiling)
    if len(seen) > MAX_DISTANCES or visited.tiles * visited.tiling.q * visited.tiling.k < (
        WASTE * kept
    ):
        return None
    wide = max(padded(whole.head_dim), padded(whole.value_dim))
    return DistancePart(distances=tuple(sorted(total)), rows=max(16, HELD // wide), warps=4)


def _cost(work: Work) -> float:
    """Return what a kernel spends on some tiles, in pairs."""
    pairs = work.tiling.q * work.tiling.k
    halvings = max(0, (SMALL_TILE // pairs).bit_length() - 1)
    each = pairs * (1 + 0.1 * halvings) + TILE_PAIRS
    return work.tiles * each + work.rows * work.tiling.q * ROW_PAIRS
