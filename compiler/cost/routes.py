"""Routed attention, shapes, device -> what scoring, selecting and attending cost, beside dense.

    score    visible pairs of units, products and softmax, once or (where a norm is reduced) twice
    select   the scores that are left, some operations each
    attend   row-outer: a tile of queries walks the units that some of them selected
             key-outer: a key block walks the queries that selected it; partial results are merged
    kept     what is attended at any rate, as any other pattern

The cheaper loop order is taken. Rates are those of ``rates.py``; densities those of
``route_density.py``. Nothing here was timed by attnc; ``docs/cost.md`` has the errors against
published times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnc.compiler.cost import rates as rate
from attnc.compiler.cost.devices import HBM_SHARE, Device
from attnc.compiler.cost.fits import FITTED_TILE, TRITON_EFFICIENCY
from attnc.compiler.cost.model import Cost, Term
from attnc.compiler.cost.predict import (
    KernelCost,
    Setting,
    device_of,
    predict,
    timed,
    traffic,
)
from attnc.compiler.cost.route_attend import LAUNCH_US, attend, merge
from attnc.compiler.cost.route_density import Expected, Sample, expected
from attnc.compiler.cost.simulate import Rows
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern, Space
from attnc.compiler.ir.route import Grain, Route, TopK
from attnc.compiler.ir.routed import Routed

PLAIN_CLOCKS = 0.0156
"""Clocks of a processor for a score that is only compared: two instructions over 128 lanes."""

SELECT_CLOCKS = 0.125
"""Clocks of a processor for a candidate: four passes of a radix selection, four instructions each
over 128 lanes; assumed."""

@dataclass(frozen=True, slots=True, kw_only=True)
class RouteShare:
    """What one route does: how many units of ``of`` a row selects, and 64 rows together.

    ``loop`` is the order of loops that was cheaper, ``other_us`` what the other one would take.
    """

    name: str
    units: float
    of: int
    union_of_64: float
    density: float
    loop: str
    other_us: float | None
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedPrediction:
    """What a routed attention costs.

    ``density``: the expected part of the base's pairs that is attended. ``dense``: attention to the
    whole base by a vendor's kernel; ``plain_dense_us``: by a plain Triton kernel, as those here.
    ``crossover``: the shortest length, doubled from 1024, from which it is faster than ``dense``
    (None: at none, or lengths are fixed). ``warnings``: why it cannot win here, if so.
    """

    pattern: str
    setting: Setting
    routes: tuple[RouteShare, ...]
    kernels: tuple[KernelCost, ...]
    density: float
    dense: Cost
    plain_dense_us: float
    crossover: int | None
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        from attnc.compiler.cost.route_report import to_text

        return to_text(self)

    @property
    def cost(self) -> Cost:
        """All kernels together."""
        return sum((kernel.cost for kernel in self.kernels), Cost())

    @property
    def time_us(self) -> float:
        """Microseconds of all kernels."""
        return self.cost.time_us

    @property
    def bound_by(self) -> Term:
        """The cause of most of the time."""
        return self.cost.bound_by

    @property
    def speedup_over_dense(self) -> float:
        """How many times longer dense attention to the base takes."""
        return self.dense.time_us / self.time_us if self.time_us else 0.0

    def part_us(self, *stages: str) -> float:
        """Return the microseconds of stages: score, select, attend, merge, kept."""
        return sum(k.cost.time_us for k in self.kernels if k.name.split()[0] in stages)

    def as_dict(self) -> dict[str, object]:
        """Return all of it by name, as ``attnc cost --json`` prints it."""
        from attnc.compiler.cost.route_report import to_json

        return to_json(self)


def route_cost(
    routed: Routed, setting: Setting, samples: Mapping[str, Sample] | None = None,
    *, search: bool = True,
) -> RoutedPrediction:  # fmt: skip
    """Predict the forward of a routed attention on a GPU; nothing is run.

    Args: ``samples`` of selections by the names of routes: needed where a budget depends on the
    data, and measured unions where it does not. ``search``: look for the crossover.
    Raises: ValueError for a backward or a decode step, a device that is not known, a budget that
    only data can say.
    """
    if setting.device == "cpu":
        raise ValueError("the cost of what is chosen by content is modelled on GPUs alone")
    if setting.work != "forward":
        raise ValueError(f"the cost of a routed {setting.work} is not modelled: only its forward")
    device, given = device_of(setting.device), dict(samples or {})
    unknown = given.keys() - {route.name for route in routed.routes}
    if unknown:
        raise ValueError(f"there is no route `{min(unknown)}` in `{routed.name}`")
    causal = is_causal(routed.base)
    kernels, shares, missing = [], [], 1.0
    base_pairs = _base_pairs(setting, causal)
    for route in routed.routes:
        one = _expected(routed, route, setting, causal, given.get(route.name))
        walked, other = attend(route, one, setting, device, causal)
        kernels += [*_choose(route, one, setting, device), *walked]
        density = min(float(one.pairs.sum()) / base_pairs, 1.0) if base_pairs else 0.0
        missing *= 1 - density
        shares.append(RouteShare(
            name=route.name, units=one.units, of=one.key_units, union_of_64=one.union(64),
            density=density, loop=walked[0].plan, other_us=other, measured=one.measured is not None,
        ))  # fmt: skip
    if _keeps_some(routed.kept):
        kept = predict(routed.kept, setting)
        kernels += [replace(k, name=f"kept {k.name}") for k in kept.kernels]
        kernels.append(merge(2, setting, device))
        if base_pairs:
            heads = routed.kept.heads or 1
            missing *= 1 - min(kept.counts.pairs_kept / heads / base_pairs, 1.0)
    dense, plain = dense_of(setting, device, causal), plain_of(setting, device, causal)
    found = RoutedPrediction(
        pattern=routed.name, setting=setting, routes=tuple(shares), kernels=tuple(kernels),
        density=1 - missing, dense=dense, plain_dense_us=plain.time_us, crossover=None,
        warnings=(), assumptions=assumptions(device, shares),
    )  # fmt: skip
    if not search:
        return found
    if routed.base.query_space is not None or routed.base.key_space is not None:
        return with_crossover(found, None)

    def at(n: int) -> RoutedPrediction:
        nq = n if setting.nq == setting.nk else setting.nq
        return route_cost(routed, replace(setting, nq=nq, nk=n), samples, search=False)

    return with_crossover(found, crossover(at))


def is_causal(base: Pattern) -> bool:
    """Whether no key after the query is kept, as far as pairs up to 64 tokens show it.

    A base that reads inputs counts as open: what it keeps is not known here.
    """
    import numpy as np

    if ex.reads(base.predicate) or base.query_space is not None:
        return False
    q, k = np.triu_indices(64, 1)
    return not np.any(ex.evaluate(base.predicate, {
        "q": q, "k": k, "h": np.zeros_like(q), "nq": 64, "nk": 64,
    }))  # fmt: skip


def _keeps_some(kept: Pattern) -> bool:
    return kept.predicate != ex.FALSE


def _expected(
    routed: Routed, route: Route, setting: Setting, causal: bool, sample: Sample | None
) -> Expected:
    shift = setting.nk - setting.nq if routed.base.align == "bottom-right" else 0
    cells = tuple(
        _cells(grain, space, setting)
        for grain, space in (
            (route.query, routed.base.query_space), (route.key, routed.base.key_space),
        )
    )  # fmt: skip
    return expected(
        route, setting.nq, setting.nk, causal=causal, shift=shift, cells=(cells[0], cells[1]),
        sample=sample,
    )  # fmt: skip


def _cells(grain: Grain, space: Space | None, setting: Setting) -> int | None:
    """Return how many cells a side has."""
    if grain.kind != "cell" or space is None or len(space.segments) != 1:
        return None
    values = {"nq": setting.nq, "nk": setting.nk}
    extents = [int(ex.evaluate(e, values)) for e in space.segments[0].extents]
    return math.prod(-(-e // s) for e, s in zip(extents, grain.sizes, strict=True))


def _base_pairs(setting: Setting, causal: bool) -> float:
    nq, nk = setting.nq, setting.nk
    if not causal:
        return float(nq * nk)
    short = max(nk - nq, 0)
    return float(nq * short + min(nq, nk) * (min(nq, nk) + 1) / 2)


# ----------------------------------------------------------------------------- score and select


def selecting_heads(route: Route, setting: Setting) -> int:
    """Return how many heads make a selection of their own."""
    return {"query": setting.heads, "kv": setting.kv_heads, "one": 1}[route.heads]


def _choose(
    route: Route, one: Expected, setting: Setting, device: Device
) -> tuple[KernelCost, ...]:
    """Cost scoring and selecting."""
    heads = setting.batch * setting.heads
    clocks = device.units * device.clock_mhz * TRITON_EFFICIENCY
    width, keys = setting.width_bytes, setting.batch * setting.kv_heads * setting.nk
    queries = heads * min(setting.nq, _scored_queries(route, setting))
    if route.score.kind == "external":
        made, moved, flops = 0.0, int(4 * heads * one.candidates), 0
        plan, matrix_us, plain_us = "given", 0.0, 0.0
    else:
        passes = 2 if route.norm == "softmax" and not _order_is_enough(route) else 1
        made = heads * one.scored * passes
        folded = route.query_rep.size if route.query_rep.kind == "fold" else 1
        flops = int(made * 2 * setting.head_dim * folded)
        soft = rate.ISSUE["forward"] if route.norm == "softmax" else PLAIN_CLOCKS
        soft = max(soft, 1 / device.exponentials) if route.norm == "softmax" else soft
        moved = (keys + queries) * setting.head_dim * width
        plan = f"{made / max(heads, 1):,.0f} scores a head" + (", twice" if passes == 2 else "")
        matrix_us = flops / device.matrix_flops / clocks
        plain_us = made * soft / clocks
    memory = moved / (device.hbm_bytes_us * HBM_SHARE)
    score = Cost(flops=flops, hbm_bytes=moved, row_us=LAUNCH_US)
    if memory > matrix_us + plain_us:
        score = replace(score, hbm_us=memory)
    else:
        score = replace(score, matrix_us=matrix_us, softmax_us=plain_us)
    number = setting.batch * selecting_heads(route, setting) * one.candidates
    chosen = setting.batch * selecting_heads(route, setting) * float(one.selected.sum())
    listed, through = int(4 * chosen), int(8 * number)
    select = Cost(
        hbm_bytes=listed, l2_bytes=through, row_us=LAUNCH_US,
        mask_us=max(number * SELECT_CLOCKS / clocks, listed / (device.hbm_bytes_us * HBM_SHARE)),
    )  # fmt: skip
    return (
        KernelCost(name=f"score {route.name}", plan=plan, rows=int(made), tiles=0,
                   workers=device.units, cost=score),
        KernelCost(name=f"select {route.name}", plan=f"{number:,.0f} candidates",
                   rows=len(one.selected), tiles=0, workers=device.units, cost=select),
    )  # fmt: skip


def _scored_queries(route: Route, setting: Setting) -> int:
    return route.query.sizes[0] if route.query.kind == "last" else setting.nq


def _order_is_enough(route: Route) -> bool:
    """Whether only the order in a row matters, which a softmax leaves as it is."""
    return isinstance(route.select, TopK) and route.compete == "row" and not route.reduce


# ----------------------------------------------------------------------------- beside dense


def dense_of(setting: Setting, device: Device, causal: bool) -> Cost:
    """Cost attention to the whole base by the fit of a vendor's kernel."""
    rates, _ = rate.dense(
        device, setting.head_dim, setting.value_dim, setting.dtype, backward=False
    )
    return _whole(setting, device, causal, FITTED_TILE, FITTED_TILE, rates)


def plain_of(setting: Setting, device: Device, causal: bool) -> Cost:
    """Cost the same by a plain Triton kernel, which is what the routed kernels are."""
    rates = rate.tile_rates(
        device, "forward", Tiling(128, 64), head_dim=setting.head_dim,
        value_dim=setting.value_dim, dtype=setting.dtype, operations=(1,),
    )  # fmt: skip
    return _whole(setting, device, causal, 128, 64, rates)


def _whole(
    setting: Setting, device: Device, causal: bool, q: int, k: int, rates: Any
) -> Cost:
    import numpy as np

    rows = np.arange(math.ceil(setting.nq / q))
    all_tiles = math.ceil(setting.nk / k)
    full, masked = np.full(len(rows), all_tiles), np.zeros(len(rows), dtype=np.int64)
    if causal:
        full = np.minimum((rows * q + max(setting.nk - setting.nq, 0)) // k, all_tiles)
        masked = np.minimum(max(q // k, 1), all_tiles - full)
    work = Rows(tiles=np.stack([full, masked]), copies=setting.batch * setting.heads)
    moved, through = traffic("forward", work.visited * k, setting, device, rates.workers)
    flops = rate.flops_of("forward", setting.head_dim, setting.value_dim)
    return timed(
        work, rates, hbm_bytes=moved, l2_bytes=through, flops=flops * work.visited * q * k,
        device=device,
    )


def crossover(at: Callable[[int], RoutedPrediction]) -> int | None:
    """Return the shortest length from which a route is faster than dense, None if there is none.

    Lengths double from 1024, then the last interval is halved to a fortieth.
    """

    def wins(n: int) -> bool:
        found = at(n)
        return found.time_us < found.dense.time_us

    lengths = [1024 << i for i in range(12)]
    ahead = [wins(n) for n in lengths]
    if not ahead[-1]:
        return None
    first = len(ahead) - next((i for i, won in enumerate(reversed(ahead)) if not won), len(ahead))
    if first == 0:
        return lengths[0]
    low, high = lengths[first - 1], lengths[first]
    while high - low > low // 40:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(middle) else (middle, high)
    return high


def with_crossover(found: RoutedPrediction, cross: int | None) -> RoutedPrediction:
    """Return a prediction with its crossover, and the warning of one that cannot win."""
    slower = found.time_us / found.dense.time_us if found.dense.time_us else 0.0
    if slower <= 1:
        return replace(found, crossover=cross)
    then = "at no length up to two million tokens" if cross is None else f"from n = {cross:,} on"
    said = (
        f"the route cannot win at n = {found.setting.nk:,}: it takes {slower:.2f} times as long as "
        f"dense attention; it is faster {then}"
    )
    return replace(found, crossover=cross, warnings=(said,))


def assumptions(device: Device, shares: list[RouteShare]) -> tuple[str, ...]:
    measured = [share.name for share in shares if share.measured]
    said = f"measured for {', '.join(measured)}, else " if measured else ""
    return (
        "kernels: the rates of generated kernels (plain Triton on an H100); routed ones have not "
        f"been timed on {device.title}: published ones were met as docs/cost.md says",
        f"units selected: {said}by the budget; unions of rows as if they chose independently",
        "scores stay in registers until they are reduced; a launch takes "
        f"{LAUNCH_US:.0f} us, a candidate of the selection {SELECT_CLOCKS} clocks",
        "dense: a vendor's kernel that walks the base alone",
    )
