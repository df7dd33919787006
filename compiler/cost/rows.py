"""Loop plan + lengths -> tiles of each mask class in each row, as the kernel visits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.gridmask import GridMask
from attnc.compiler.ir.plan import LoopPlan
from attnc.compiler.passes.data_tiles import tile_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def tiles_by_row(
    loop: LoopPlan, nq: int, nk: int, given: Mapping[str, Any]
) -> NDArray[np.int64]:
    """Count the tiles of each mask class that the rows of a kernel visit.

    Shape: ``[classes, heads or 1, rows]``; class 0 is walked without a mask. Lengths are those of
    the loop's own pattern: of a transposed one, keys first.
    Memory in proportion to the rows; where data decides, to the visited tiles.
    """
    if loop.boxes is not None:
        return _of_boxes(loop.boxes, loop.masks)
    if loop.form == "data":
        return _of_data(loop, nq, nk, given)
    import numpy as np

    tiles_q, tiles_k = loop.block_mask.tiles_at(nq, nk)
    heads = loop.block_mask.pattern.heads or 1
    found = np.zeros((len(loop.masks) + 1, heads, tiles_q), dtype=np.int64)
    values = {
        "qb": np.arange(tiles_q, dtype=np.int64)[None, :],
        "h": np.arange(heads, dtype=np.int64)[:, None],
        "nq": nq, "nk": nk, "NQ": tiles_q, "NK": tiles_k,
    }
    for segment in loop.segments:
        found[segment.mask] += np.maximum(np.asarray(ex.evaluate(segment.tiles.count, values)), 0)
    return found


def _of_boxes(boxes: GridMask, masks: tuple[ex.BoolExpr, ...]) -> NDArray[np.int64]:
    """Count boxes; where pieces have more checks than the kernel has masks, they share the first.

    Full boxes across the end of an axis count as full.
    """
    import numpy as np

    heads = boxes.pattern.heads or 1
    found = np.zeros((len(masks) + 1, heads, boxes.tiles()[0]), dtype=np.int64)
    for piece in boxes.pieces:
        kind = 0
        if not piece.full:
            kind = masks.index(piece.residual) + 1 if piece.residual in masks else 1
        part = boxes.queries[piece.queries]
        number = np.ones((heads, *part.grid), dtype=np.int64)
        for row in boxes.rows(piece):
            number = number * row.count
        flat = number.reshape(heads, -1)
        found[kind, :, part.first_tile : part.first_tile + flat.shape[1]] += flat
    return found


def _of_data(
    loop: LoopPlan, nq: int, nk: int, given: Mapping[str, Any]
) -> NDArray[np.int64]:
    import numpy as np

    assert loop.data is not None
    table = tile_table(loop.block_mask, loop.data, nq, nk, given)
    row = np.repeat(np.arange(len(table.starts) - 1), np.diff(table.starts))
    rows = len(table.starts) - 1
    kinds = [
        np.bincount(row[table.entries & 7 == kind], minlength=rows)
        for kind in range(len(loop.masks) + 1)
    ]
    shape = (len(kinds), table.heads, rows // table.heads)
    heads = loop.block_mask.pattern.heads or 1
    return np.stack(kinds).reshape(shape).repeat(heads // table.heads, axis=1)
