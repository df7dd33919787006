"""Forward plan -> the kernels of its backward, over the pattern and over its inverse.

    queries see keys          dQ: a loop over key tiles for each query tile, as in the forward
    keys are seen by queries  dK and dV: a loop over query tiles for each key tile

The second is the block mask of ``pattern.transposed()``: symbolic like the first.
"""

from __future__ import annotations

from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.plan import BackwardPlan, ForwardPlan, LoopPlan
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.grid_plan import on_boxes
from attnc.compiler.passes.grid_tiles import better
from attnc.compiler.passes.loops import build_loop
from attnc.compiler.passes.tiles import TileChoice, asked, default
from attnc.compiler.passes.tiles_backward import Pass, candidates, held


def build_backward(
    forward: ForwardPlan,
    tile: Tiling | None = None,
    *,
    choices: tuple[TileChoice, ...] = (),
) -> BackwardPlan:
    """Plan the kernels that go with a forward kernel.

    They walk boxes of a grid where the forward does: with a ``tile`` the same boxes, else those of
    as many tokens as their own tiles, where they are better.
    Args: ``tile`` overrides the tile of all of them; ``choices`` sets each: of dQ, of dK and dV, or
    with three of dQ, dV and dK, the last two in passes of their own. Sides are queries by keys.
    """
    passes: tuple[Pass, ...] = ("dq", "dv", "dk") if len(choices) == 3 else ("dq", "dkdv")
    chosen = choices or tuple(_choice(forward, one, tile) for one in passes)
    own = eliminate(forward.block_mask.pattern)
    inverse = own.transposed()
    sides = [
        (own, chosen[0].tiling),
        *((inverse, Tiling(choice.k, choice.q)) for choice in chosen[1:]),
    ]
    tested = forward.data is not None or any(tiles_of(*side)[1] for side in sides)
    loops: list[LoopPlan] = []
    for (pattern, tiling), choice in zip(sides, chosen, strict=True):
        mask, data, _ = tiles_of(pattern, tiling, tested=tested)
        loop = build_loop(
            LoopPlan, mask, data, choice, head_dim=forward.head_dim, value_dim=forward.value_dim,
            dtype=forward.dtype, target=forward.target,
        )
        if forward.boxes is not None:
            boxes = (
                better(pattern, tiling, mask, tested=data is not None) if tile is None
                else classify_grid(pattern, _turned(forward.boxes.tiling, inverse=bool(loops)))
            )
            loop = loop if boxes is None else on_boxes(loop, boxes)
        loops.append(loop)
    return BackwardPlan(dq=loops[0], dkdv=loops[1], dk=loops[2] if len(loops) == 3 else None)


def _turned(boxes: BoxTiling, *, inverse: bool) -> BoxTiling:
    """Return boxes with the side of the rows first."""
    return BoxTiling(boxes.key, boxes.query) if inverse else boxes


def _choice(forward: ForwardPlan, kernel: Pass, tile: Tiling | None) -> TileChoice:
    """Return the tile of a kernel: the one that was asked for, or the best of its table."""
    dims = forward.head_dim, forward.value_dim
    choices = candidates(kernel, forward.target, *dims, forward.dtype)
    if tile is not None:
        return asked(choices, tile, tile.q if kernel == "dq" else tile.k, forward.target)
    return default(choices, forward.block_mask.pattern, held(kernel, *dims))
