"""Products of progressions -> a table of tiles, by torch: which boxes of keys each box visits.

``codegen/boxes.py`` pastes what stands below the cut line, verbatim, into the written modules whose
kernels walk boxes of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# --- cut: box tables ---


class _Boxes(NamedTuple):
    """A piece: for each box of queries a product of progressions of boxes of keys."""

    rows: tuple[int, ...]  # boxes of queries along each axis
    first_row: int  # number of the first of them
    columns: tuple[int, ...]  # boxes of keys along each axis
    first_column: int
    whole: tuple[int, ...]  # those of them that do not cross the end of the axis
    tiles: Callable[..., Any]  # h, coordinates of the row -> base, count, period, run of each axis
    mask: int  # mask class of its tiles
    crossing: int  # that of tiles that cross an end


def _box_table(
    pieces: tuple[_Boxes, ...], heads: int, rows: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where rows start, int64 ``[heads * rows + 1]``, and entries ``tile * 8 + mask class``.

    Waits for the device once for each piece: the exact size of the table.
    """
    found_rows, found = [], []
    for piece in pieces:
        shape = (heads, *piece.rows)
        h, *at = torch.meshgrid(
            *(torch.arange(side, device=device) for side in shape), indexing="ij"
        )
        number = torch.ones_like(h).flatten()
        axes = []
        for base, count, period, run in piece.tiles(h, *at):
            base, count = ((x + torch.zeros_like(h)).flatten() for x in (base, count))
            count = count.clamp(min=0)
            axes.append((base, count, period, run))
            number *= count
        total = int(number.sum())
        row = torch.arange(number.numel(), device=device)
        owner = torch.repeat_interleave(row, number, output_size=total)
        i = torch.arange(total, device=device) - (number.cumsum(0) - number)[owner]
        tile, step = torch.full_like(i, piece.first_column), 1
        crosses = torch.zeros_like(i, dtype=torch.bool)
        for axis in range(len(axes) - 1, -1, -1):
            base, count, period, run = axes[axis]
            width = count[owner]
            place, i = i % width, i // width
            place = base[owner] + period * (place // run) + place % run
            crosses |= place >= piece.whole[axis]
            tile += step * place
            step *= piece.columns[axis]
        own = row.numel() // heads
        found_rows.append(owner // own * rows + piece.first_row + owner % own)
        found.append(tile * 8 + torch.where(crosses, piece.crossing, piece.mask))
    none = torch.zeros(0, dtype=torch.int64, device=device)
    all_rows, entries = torch.cat([none, *found_rows]), torch.cat([none, *found])
    in_row = torch.bincount(all_rows, minlength=heads * rows)
    starts = torch.nn.functional.pad(in_row.cumsum(0), (1, 0))
    return starts, entries[all_rows.argsort(stable=True)].to(torch.int32)
