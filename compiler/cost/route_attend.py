"""What a route selects -> the kernels that attend to it, by the cheaper order of loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnc.compiler.cost import rates as rate
from attnc.compiler.cost.devices import HBM_SHARE, Device
from attnc.compiler.cost.model import Cost
from attnc.compiler.cost.predict import KernelCost, Setting, timed, traffic
from attnc.compiler.cost.route_density import Expected
from attnc.compiler.cost.simulate import Rows
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.route import Route

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAUNCH_US = 4.0
"""Microseconds of a launch that nothing hides: scoring, selecting and attending wait in turn."""

TOKENS = (128, 64, 32, 16)
"""Sides of query tiles."""

KEY_TOKENS = 64
"""Keys of a tile, of shorter units fewer."""


def attend(
    route: Route, one: Expected, setting: Setting, device: Device, causal: bool
) -> tuple[list[KernelCost], float | None]:
    """Cost the attention of a route by its cheaper loop order; and what the other would take."""
    name = f"attend {route.name}"
    if route.emit == "members":
        return [_members(name, route, one, setting, device)], None
    if route.query.kind in ("last", "head") or route.emit == "slashes":
        return [_columns(name, route, one, setting, device)], None
    by_row = [_by_row(name, route, one, setting, device)]
    if route.query.kind != "token" or route.key.kind == "token":
        return by_row, None
    tiled = [_by_union(name, route, one, setting, device)]
    by_row = min(by_row, tiled, key=_time)
    by_key = [_by_key(name, route, one, setting, device), merge(one.units, setting, device)]
    best, other = sorted((by_row, by_key), key=_time)
    return best, _time(other)


def _time(kernels: list[KernelCost]) -> float:
    return sum(kernel.cost.time_us for kernel in kernels)


def _walk(
    name: str, plan: str, tile: Tiling, tiles: NDArray[Any], copies: int, setting: Setting,
    device: Device, extra_bytes: int = 0,
) -> KernelCost:  # fmt: skip
    """Cost a kernel whose rows visit so many tiles each. Shape: tiles ``[rows]``."""
    import numpy as np

    rates = rate.tile_rates(
        device, "forward", tile, head_dim=setting.head_dim, value_dim=setting.value_dim,
        dtype=setting.dtype,
    )
    rows = Rows(tiles=np.ceil(tiles).astype(np.int64)[None, :], copies=copies)
    moved, through = traffic("forward", rows.visited * tile.k, setting, device, rates.workers)
    flops = rate.flops_of("forward", setting.head_dim, setting.value_dim)
    cost = timed(
        rows, rates, hbm_bytes=moved + extra_bytes, l2_bytes=through,
        flops=flops * rows.visited * tile.q * tile.k, device=device,
    )
    return KernelCost(
        name=name, plan=f"{plan}, tile {tile}", rows=rows.number, tiles=rows.visited,
        workers=rates.workers, cost=replace(cost, row_us=cost.row_us + LAUNCH_US),
    )


def _side(tokens: float) -> int:
    """Return the side of a query tile for so many rows."""
    return next((side for side in TOKENS if side <= tokens), TOKENS[-1])


def _key_side(one: Expected) -> int:
    """Return the side of a key tile: of units of several tokens, gathered tokens otherwise."""
    if one.unit_tokens <= 1:
        return KEY_TOKENS
    return max(min(1 << int(math.log2(one.unit_tokens)), KEY_TOKENS), 16)


def _tiles(one: Expected, units: Any, side: int) -> Any:
    """Return the key tiles of so many units."""
    import numpy as np

    if one.unit_tokens <= 1:
        return np.ceil(units / side)
    return units * math.ceil(one.unit_tokens / side)


def _by_row(
    name: str, route: Route, one: Expected, setting: Setting, device: Device
) -> KernelCost:
    """Cost rows of one query unit: all its queries, or the heads of a group at one token."""
    import numpy as np

    side = _key_side(one)
    if route.query.kind == "token":
        shared = setting.group if route.heads != "query" else 1
        tile = Tiling(max(1 << (shared - 1).bit_length(), 16), side)
        copies = setting.batch * setting.heads // shared
        return _walk(name, f"row-outer, {shared} heads of a token", tile,
                     _tiles(one, one.selected, side), copies, setting, device)  # fmt: skip
    tokens = one.row_tokens * route.widen
    tile = Tiling(_side(tokens), side)
    per_unit = max(round(tokens / tile.q), 1)
    some = one.selected[:: route.widen]
    rows = np.repeat(_tiles(one, some, side), per_unit)
    return _walk(name, "row-outer, blocks of queries", tile, rows,
                 setting.batch * setting.heads, setting, device)  # fmt: skip


def _by_union(
    name: str, route: Route, one: Expected, setting: Setting, device: Device
) -> KernelCost:
    """Cost tiles of 64 queries (tokens times heads of a group) that walk the union."""
    import numpy as np

    shared = setting.group if route.heads != "query" else 1
    tokens = max(64 // shared, 1)
    side = _key_side(one)
    number = math.ceil(setting.nq / tokens)
    share = one.union(tokens) / max(one.units, 1e-9)
    per_row = one.selected[np.minimum(np.arange(number) * tokens, len(one.selected) - 1)] * share
    copies = setting.batch * setting.heads // shared
    return _walk(name, f"row-outer, union of {tokens} tokens", Tiling(64, side),
                 _tiles(one, np.minimum(per_row, one.key_units), side), copies, setting,
                 device)  # fmt: skip


def _by_key(
    name: str, route: Route, one: Expected, setting: Setting, device: Device
) -> KernelCost:
    """Cost key units that walk the queries which chose them, and write partial results."""
    import numpy as np

    chosen = float(one.selected.sum())
    per_unit = chosen / max(one.key_units, 1)
    tile = Tiling(_side(per_unit), _key_side(one))
    rows = np.full(one.key_units, math.ceil(per_unit / tile.q) * _tiles(one, 1.0, tile.k))
    heads = setting.batch * setting.heads
    gathered = int(heads * chosen) * (setting.head_dim * setting.width_bytes)
    partial = int(heads * chosen) * 4 * (setting.value_dim + 1)
    return _walk(name, "key-outer", tile, rows, heads, setting, device,
                 extra_bytes=gathered + partial)  # fmt: skip


def merge(parts: float, setting: Setting, device: Device) -> KernelCost:
    """Cost reading partial results and writing the merged one: memory alone."""
    rows = setting.batch * setting.heads * setting.nq
    moved = int(rows * (4 * (setting.value_dim + 1) * parts))
    moved += rows * (setting.value_dim * setting.width_bytes + 4)
    return KernelCost(
        name="merge", plan=f"{parts:,.1f} parts a query", rows=rows, tiles=0, workers=device.units,
        cost=Cost(
            hbm_bytes=moved, hbm_us=moved / (device.hbm_bytes_us * HBM_SHARE), row_us=LAUNCH_US
        ),
    )  # fmt: skip


def _columns(
    name: str, route: Route, one: Expected, setting: Setting, device: Device
) -> KernelCost:
    """Cost a selection that serves all queries of a head: columns, blocks or diagonals."""
    import numpy as np

    tile = Tiling(64, KEY_TOKENS)
    rows = np.arange(math.ceil(setting.nq / 64))
    reached = np.minimum((rows + 1) * 64, setting.nk)
    if route.emit == "slashes":
        # Each diagonal crosses two tiles of a row; near ones share theirs.
        of = np.ceil(reached / KEY_TOKENS)
        near = sum(c.count for c in route.keep if c.what == "nearest")
        far = np.maximum(one.units - near, 0) * reached / max(setting.nk, 1)
        tiles = of * (1 - (1 - np.minimum(2 / of, 1)) ** far) + near / KEY_TOKENS + 1
        tiles = np.minimum(tiles, of)
        plan = "row-outer, diagonals"
    else:
        per_query = float(one.pairs.sum()) / max(setting.nq, 1) / max(reached.mean(), 1)
        tiles, plan = np.ceil(per_query * reached / KEY_TOKENS), "row-outer, columns"
    return _walk(name, plan, tile, tiles, setting.batch * setting.heads, setting, device)


def _members(
    name: str, route: Route, one: Expected, setting: Setting, device: Device
) -> KernelCost:
    """Cost members that attend among themselves."""
    import numpy as np

    tile = Tiling(_side(one.row_tokens), KEY_TOKENS)
    per = math.ceil(one.row_tokens / tile.q)
    rows = np.repeat(np.ceil(one.selected / KEY_TOKENS), per)
    return _walk(name, "members", tile, rows, setting.batch * setting.heads, setting, device)
