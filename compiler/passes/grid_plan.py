"""Plan of a kernel + boxes of a grid -> the plan of the kernel that walks boxes.

The kernel reads its tiles from a table that the device makes of the pieces; token positions follow
from the number of a tile.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.gridmask import GridMask, pairs_of
from attnc.compiler.passes.coordinates import in_coordinates
from attnc.compiler.passes.loops import Kernel

MAX_MASKS = 4
"""More mask classes than this become one: the whole predicate."""


def on_boxes(loop: Kernel, boxes: GridMask) -> Kernel:
    """Return the plan on boxes of as many tokens as the tiles that were planned.

    Masks read coordinates; the last one, ``true``, is for full tiles that cross the end of an axis.
    """
    masks = list(dict.fromkeys(piece.residual for piece in boxes.pieces if not piece.full))
    if len(masks) > MAX_MASKS:
        masks = [_whole(boxes)]
    if any(extent % side for _, _, _, keys in pairs_of(boxes)
           for extent, side in zip(keys.extents, keys.box, strict=True)):  # fmt: skip
        masks.append(ex.TRUE)
    return replace(
        loop, boxes=boxes, segments=(), masks=tuple(masks), form="table", data=None,
        row_order="forward" if _even(boxes) else "sorted",
    )


def _whole(boxes: GridMask) -> ex.BoolExpr:
    """Return the pattern in coordinates, or where several segments are masked as it is."""
    masked = {(p.queries, p.keys) for p in boxes.pieces if not p.full}
    if len(masked) > 1:
        return boxes.pattern.predicate
    ((i, j),) = masked
    return in_coordinates(boxes.pattern.predicate, boxes.queries[i], boxes.keys[j])


def _even(boxes: GridMask) -> bool:
    """Whether all rows of a head visit equally many tiles."""
    import numpy as np

    heads = boxes.pattern.heads or 1
    in_row = np.zeros((heads, boxes.tiles()[0]), dtype=np.int64)
    for piece in boxes.pieces:
        part = boxes.queries[piece.queries]
        number = np.ones((heads, *part.grid), dtype=np.int64)
        for row in boxes.rows(piece):
            number = number * row.count
        flat = number.reshape(heads, -1)
        in_row[:, part.first_tile : part.first_tile + flat.shape[1]] += flat
    return bool((in_row == in_row[:, :1]).all() and (in_row == in_row[:1]).all())
