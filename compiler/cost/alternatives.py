"""Pattern, setting -> what each tile that the compiler may take would cost, the best first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnc.compiler.cost.model import MEANING, TERMS
from attnc.compiler.cost.predict import AnyTiling, Prediction, Setting, device_of
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import rank_of
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes import tiles
from attnc.compiler.passes.grid_tiles import choose

CPU_TILES = (Tiling(32, 32), Tiling(64, 32), Tiling(64, 64), Tiling(128, 64))

FLAT_TOKENS = 8192
"""Longest grid whose flat tiles are tried, in tokens: where they wait for data, pairs are counted.
"""

Predict = Callable[[Pattern, Setting, Mapping[str, Any]], Prediction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A tile, its time, and what makes it slower than the chosen one (or faster)."""

    tile: str
    time_us: float
    why: str


def alternatives(
    pattern: Pattern, setting: Setting, given: Mapping[str, Any], chosen: Prediction,
    predict: Predict,
) -> tuple[Alternative, ...]:
    """Predict the forward for every tile of the target's table, and in the natural order.

    On a grid the tiles are boxes as large.
    """
    asked: list[AnyTiling] = []
    if setting.device == "cpu":
        asked += CPU_TILES
    else:
        target = device_of(setting.device).target
        rows = tiles.candidates(target, setting.head_dim, setting.value_dim, setting.dtype)
        on_grid = rank_of(pattern) > 1 and None not in pattern.lengths and pattern.is_static
        if on_grid:
            asked += [choose(pattern, row.tiling).tiling for row in rows]
        if not on_grid or max(setting.nq, setting.nk) <= FLAT_TOKENS:
            asked += [row.tiling for row in rows]
    settings = [replace(setting, tile=tile) for tile in asked]
    if setting.orders == "auto":
        settings.append(replace(setting, orders="natural"))
    if setting.bias == "auto" and pattern.score is not None:
        settings.append(replace(setting, bias="add"))
    found: list[Alternative] = []
    for other_setting in settings:
        other = predict(pattern, other_setting, given)
        plan = "; ".join(kernel.plan for kernel in other.kernels)
        known = [one.tile for one in found]
        if plan in ("; ".join(kernel.plan for kernel in chosen.kernels), *known):
            continue
        found.append(Alternative(tile=plan, time_us=other.time_us, why=_why(chosen, other)))
    return tuple(sorted(found, key=lambda one: one.time_us))


def _why(chosen: Prediction, other: Prediction) -> str:
    """Say what changes most between two predictions."""
    mine, theirs = chosen.cost.terms, other.cost.terms
    term = max(TERMS, key=lambda t: abs(theirs[t] - mine[t]))
    change = theirs[term] - mine[term]
    what = f"{change:+,.0f} us for {MEANING[term]}"
    pairs = other.counts.pairs_computed / max(chosen.counts.pairs_computed, 1)
    if abs(pairs - 1) >= 0.02:
        what += f", {pairs:.2f} times the pairs"
    return what
