"""Forward plan -> the kernels of its backward, over the pattern and over its inverse.

    queries see keys          dQ: a loop over key tiles for each query tile, as in the forward; so
                              what learned inputs of the score get
    keys are seen by queries  dK and dV: a loop over query tiles for each key tile

The second is the block mask of ``pattern.transposed()``: symbolic like the first.
"""

from __future__ import annotations

from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import BackwardPlan, ForwardPlan, LoopPlan
from attnc.compiler.ir.score_derivative import derivative
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.grid_plan import on_boxes
from attnc.compiler.passes.grid_tiles import better
from attnc.compiler.passes.loops import build_loop
from attnc.compiler.passes.tiles import TileChoice, asked, default
from attnc.compiler.passes.tiles_backward import OF_KEYS, Pass, candidates, held


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
    own = eliminate(forward.block_mask.pattern)
    passes += ("learned",) if _learns(own) else ()
    chosen = (*choices, *(_choice(forward, one, tile) for one in passes[len(choices) :]))
    inverse = own.transposed()
    sides = [
        (inverse, Tiling(choice.k, choice.q)) if one in OF_KEYS else (own, choice.tiling)
        for one, choice in zip(passes, chosen, strict=True)
    ]
    tested = forward.data is not None or any(tiles_of(*side)[1] for side in sides)
    loops: dict[Pass, LoopPlan] = {}
    for one, (pattern, tiling), choice in zip(passes, sides, chosen, strict=True):
        mask, data, _ = tiles_of(pattern, tiling, tested=tested)
        loop = build_loop(
            LoopPlan, mask, data, choice, head_dim=forward.head_dim, value_dim=forward.value_dim,
            dtype=forward.dtype, target=forward.target,
        )
        if forward.boxes is not None:
            boxes = (
                better(pattern, tiling, mask, tested=data is not None) if tile is None
                else classify_grid(pattern, _turned(forward.boxes.tiling, inverse=one in OF_KEYS))
            )
            loop = loop if boxes is None else on_boxes(loop, boxes)
        loops[one] = loop
    return BackwardPlan(
        dq=loops["dq"], dkdv=loops["dkdv"] if "dkdv" in loops else loops["dv"],
        dk=loops.get("dk"), learned=loops.get("learned"),
    )  # fmt: skip


def _learns(pattern: Pattern) -> bool:
    """Whether the score changes with an element of an input."""
    return pattern.score is not None and any(
        one.index for one, _ in derivative(pattern.score).reads
    )


def _turned(boxes: BoxTiling, *, inverse: bool) -> BoxTiling:
    """Return boxes with the side of the rows first."""
    return BoxTiling(boxes.key, boxes.query) if inverse else boxes


def _choice(forward: ForwardPlan, kernel: Pass, tile: Tiling | None) -> TileChoice:
    """Return the tile of a kernel: the one that was asked for, or the best of its table."""
    dims = forward.head_dim, forward.value_dim
    choices = candidates(kernel, forward.target, *dims, forward.dtype)
    if tile is not None:
        return asked(choices, tile, tile.k if kernel in OF_KEYS else tile.q, forward.target)
    pattern = forward.block_mask.pattern
    return default(choices, pattern, held(kernel, *dims), backward=True)
