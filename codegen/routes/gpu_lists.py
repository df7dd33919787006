"""What kernels of selected pairs read beside selections, pasted into written modules.

Made by torch on the device of the selections; nothing waits for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

# --- cut: lists ---


class _GpuCells(NamedTuple):
    """The cells of a grid: their tokens one cell after the other, int32."""

    order: torch.Tensor  # [tokens]
    starts: torch.Tensor  # [cells + 1]
    unit_of: torch.Tensor  # [tokens], the cell of each


def _gpu_cells(cell: torch.Tensor, cells: int) -> _GpuCells:
    """Return the cells, from the cell of each token."""
    order = cell.argsort(stable=True)
    every = torch.arange(cells + 1, device=cell.device)
    starts = torch.searchsorted(cell[order].contiguous(), every)
    return _GpuCells(order.to(torch.int32), starts.to(torch.int32), cell.to(torch.int32))


def _gpu_taken(index: torch.Tensor, units: int) -> torch.Tensor:
    """Return what a route selected as truth values. Shape: uint8 ``[B, H', rows, units]``."""
    taken = torch.zeros((*index.shape[:3], units + 1), dtype=torch.uint8, device=index.device)
    taken.scatter_(3, torch.where(index >= 0, index, units).long(), 1)
    return taken[..., :units].contiguous()


class _GpuSlashes(NamedTuple):
    """Pairs of tiles that a selected distance reaches, by how many tiles they lie apart.

    Queries' tile less keys' tile runs from ``1 - NK`` to ``NQ - 1``; ``counted[d]`` of those below
    ``d + 1 - NK`` are in ``apart``, which lists them in order.
    """

    apart: torch.Tensor  # int32 [B, H', NQ + NK - 1]
    counted: torch.Tensor  # int32 [B, H', NQ + NK]


def _gpu_slashes(taken: torch.Tensor, nq: int, nk: int, side: int, shift: int) -> _GpuSlashes:
    """Return the tile pairs of some distances: uint8 ``[B, H', 1, nk]``; a tile has one side."""
    b, choosers = taken.shape[:2]
    tiles = -(-nq // side), -(-nk // side)
    apart = torch.arange(1 - tiles[1], tiles[0], device=taken.device)
    least = (apart * side + shift - (side - 1)).clamp(0, nk)
    stop = (apart * side + shift + side).clamp(0, nk)
    before = torch.nn.functional.pad(taken[:, :, 0].cumsum(-1, dtype=torch.int32), (1, 0))
    reached = before[..., stop] > before[..., least]
    counted = torch.nn.functional.pad(reached.cumsum(-1, dtype=torch.int32), (1, 0))
    listed = torch.zeros((b, choosers, len(apart) + 1), dtype=torch.int32, device=taken.device)
    slot = torch.where(reached, counted[..., :-1], len(apart)).long()
    listed.scatter_(2, slot, apart.to(torch.int32).expand(reached.shape))
    return _GpuSlashes(listed[..., :-1].contiguous(), counted.contiguous())


class _GpuChosen(NamedTuple):
    """The rows that chose each key unit: ``row * room + slot``, one unit after the other, int32."""

    pairs: torch.Tensor  # [B, H', rows * room]
    starts: torch.Tensor  # [B, H', units + 1]


def _gpu_chosen(index: torch.Tensor, units: int) -> _GpuChosen:
    """Return who chose each unit, rows in order."""
    flat = index.flatten(2)
    by_unit = torch.where(flat >= 0, flat, units).sort(dim=-1, stable=True)
    every = torch.arange(units + 1, dtype=torch.int32, device=index.device)
    every = every.expand(*flat.shape[:2], -1).contiguous()
    starts = torch.searchsorted(by_unit.values, every, out_int32=True)
    return _GpuChosen(by_unit.indices.to(torch.int32), starts)


class _GpuTiles(NamedTuple):
    """Tiles of the rows that chose each key unit; a tile beyond the last has unit -1. int32."""

    unit: torch.Tensor  # [B, H', tiles]
    first: torch.Tensor  # [B, H', tiles], where its pairs begin


def _gpu_tiles(chosen: _GpuChosen, side: int) -> _GpuTiles:
    """Cut the rows that chose each unit into tiles: as many for every head as may be needed."""
    sizes = chosen.starts.diff(dim=-1)
    tiles = (sizes + (side - 1)) // side
    ends = tiles.cumsum(-1)
    units = sizes.shape[-1]
    most = units + chosen.pairs.shape[-1] // side
    at = torch.arange(most, device=sizes.device).expand(*sizes.shape[:2], -1).contiguous()
    unit = torch.searchsorted(ends, at, right=True)
    own = unit.clamp(max=units - 1)
    begin = chosen.starts.gather(2, own) + (at - (ends - tiles).gather(2, own)) * side
    inside = unit < units
    return _GpuTiles(
        torch.where(inside, unit, -1).to(torch.int32), torch.where(inside, begin, 0).to(torch.int32)
    )


def _gpu_shares(choosers: int, heads: int, kv_heads: int) -> int:
    """Return how many query heads share both their selection and their keys."""
    return heads // max(choosers, kv_heads)


def _gpu_nothing(q: torch.Tensor, v: torch.Tensor, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the results of queries that see no key."""
    out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=dtype)
    return out, q.new_full(q.shape[:3], float("-inf"), dtype=torch.float32)
