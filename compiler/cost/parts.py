"""Parts of a forward -> what their kernels cost, one after the other."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from attnc.compiler.cost import rates as rate
from attnc.compiler.cost.devices import Device
from attnc.compiler.cost.fits import TRITON_ROW_US
from attnc.compiler.cost.predict import KernelCost, Setting, timed, traffic
from attnc.compiler.cost.rows import tiles_by_row
from attnc.compiler.cost.simulate import Rates, Rows
from attnc.compiler.ir.plan import DistancePart, Plan, TilePart
from attnc.compiler.passes.tiles import padded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLAIN_OPERATIONS = 6
"""Instructions for an element of K and V where no matrix unit helps: load, widen, multiply, add."""


def part_kernels(plan: Plan, setting: Setting, device: Device) -> list[KernelCost]:
    """Cost the kernels of the parts of a plan; later ones also read and write rows of sums."""
    found = []
    between = setting.batch * setting.heads * setting.nq * (setting.value_dim * 4 + 4)
    for number, part in enumerate(plan.parts, start=1):
        extra = between * ((number > 1) + (number < len(plan.parts)))
        if isinstance(part, TilePart):
            found.append(_of_classes(number, part, setting, device, extra))
        else:
            found.append(_of_distances(number, part, setting, device, extra))
    return found


def worst_row(plan: Plan, setting: Setting) -> int:
    """Return the most keys that a query meets in all parts, in tiles of the natural order."""
    keys = 0
    for part in plan.parts:
        if isinstance(part, TilePart):
            nq, nk = (-(-n // part.modulus) for n in (setting.nq, setting.nk))
            tiles = tiles_by_row(part.loop, nq, nk, {}).sum(0)
            keys += int(tiles.max(initial=0)) * part.loop.tiling.k
        else:
            keys += sum(-setting.nk < d < setting.nq for d in part.distances)
    return -(-keys // plan.forward.tiling.k)


def _of_classes(
    number: int, part: TilePart, setting: Setting, device: Device, extra: int
) -> KernelCost:
    import numpy as np

    loop, sides, m = part.loop, part.loop.tiling, part.modulus
    ends = sorted({0, setting.nq % m, setting.nk % m, m})
    rows_of: list[NDArray[np.int64]] = []
    for first, stop in pairwise(ends):
        nq, nk = (max(0, -(-(n - first) // m)) for n in (setting.nq, setting.nk))
        own = tiles_by_row(loop, nq, nk, {})[:, 0]  # [classes of masks, rows]
        rows_of.append(np.tile(own, (1, stop - first)))
    rows = Rows(tiles=np.concatenate(rows_of, axis=1), copies=setting.batch * setting.heads)
    rates = rate.generated(device, loop, "forward")
    moved = traffic("forward", rows.visited * sides.k, setting, device, rates.workers)
    pairs = rows.visited * sides.q * sides.k
    cost = timed(
        rows, rates, hbm_bytes=moved[0] + extra, l2_bytes=moved[1] + extra,
        flops=pairs * rate.flops_of("forward", setting.head_dim, setting.value_dim), device=device,
    )
    return KernelCost(
        name=f"part {number}", plan=f"classes of {m}, tile {sides}, {loop.warps} warps, "
        f"{loop.stages} stages", rows=rows.number, tiles=rows.visited, workers=rates.workers,
        cost=cost,
    )


def _of_distances(
    number: int, part: DistancePart, setting: Setting, device: Device, extra: int
) -> KernelCost:
    """Cost single distances: K and V come through the cache anew for each of them."""
    import numpy as np

    first = np.arange(-(-setting.nq // part.rows))[None, :] * part.rows
    last = np.minimum(first + part.rows, setting.nq) - 1
    distances = np.asarray(part.distances)[:, None]
    seen = (last >= distances) & (first - distances < setting.nk)
    rows = Rows(
        tiles=seen.sum(0, dtype=np.int64)[None, :], copies=setting.batch * setting.heads
    )
    dims = padded(setting.head_dim) + padded(setting.value_dim)
    elements = part.rows * dims
    busy = elements * PLAIN_OPERATIONS / 128 / device.clock_mhz  # 128 lanes a processor
    cache = 0.0
    if device.l2_bytes_us is not None:
        cache = elements * setting.width_bytes * device.units / device.l2_bytes_us
    rates = Rates(
        tile_us=max(busy, cache), row_us=TRITON_ROW_US, factors=(1.0,), workers=device.units,
        shares=(0.0, 0.0, 1.0) if cache > busy else (1.0, 0.0, 0.0),
    )
    moved = traffic("forward", rows.visited * part.rows, setting, device, rates.workers)
    pairs = rows.visited * part.rows
    cost = timed(
        rows, rates, hbm_bytes=moved[0] + extra, l2_bytes=moved[1] + extra,
        flops=pairs * rate.flops_of("forward", setting.head_dim, setting.value_dim), device=device,
    )
    return KernelCost(
        name=f"part {number}", plan=f"{len(part.distances)} distances, {part.rows} queries at a "
        f"time, {part.warps} warps", rows=rows.number, tiles=rows.visited, workers=rates.workers,
        cost=cost,
    )
