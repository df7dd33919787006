"""Pattern IR -> CPU plan: strips, parts in other token orders, boxes, or gathered tiles."""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.ir.blockmask import BlockMask, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Channels, CpuDistances, CpuPart, CpuPlan, Segment, Strip
from attnc.compiler.passes.bias_fold import Bias, by_distance, channels
from attnc.compiler.passes.cpu_boxes import build_boxes
from attnc.compiler.passes.cpu_distances import split_distances
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.loops import reachable
from attnc.compiler.passes.strips import strips
from attnc.compiler.passes.token_order import REFERENCE_TOKENS, Orders, Work, parts, work

# What the executor spends beside the pairs of its tiles, in pairs for each query: measured on two
# cores with heads of 64, as ratios to a causal window of 256.
RUN_PAIRS = 32
"""Each run of key tiles is a call of the flash kernel of its own, whose result is merged."""
COPY_PAIRS = 80
"""Classes are copied together, and their results back."""
PART_PAIRS = 40
"""Each part after the first is merged with the rows that stand already."""


def build_cpu(
    pattern: Pattern, tiling: Tiling, *, tested: bool, orders: Orders = "auto",
    bias: Bias = "auto", boxes: bool = False,
) -> CpuPlan:
    """Plan the executor.

    Args: ``tested``: tiles wait for data, here or on the GPU. ``orders``: which token orders the
    parts of a static pattern may take. ``bias``: "add" evaluates score terms pair by pair.
    ``boxes``: whether boxes of a grid may be walked, which "auto" orders alone do.
    Raises: ValueError for orders that the pattern cannot take.
    """
    mask, data, _ = tiles_of(pattern, tiling, tested=tested)
    if boxes and orders == "auto":
        walked = build_boxes(pattern, mask, tested=data is not None)
        if walked is not None:
            return CpuPlan(block_mask=mask, strips=(), data=data, boxes=walked)
    apart = float(PART_PAIRS * REFERENCE_TOKENS)
    if data is None and pattern.score is None and pattern.sink is None:
        left: Pattern | None = pattern
        single: tuple[int, ...] = ()
        if orders == "auto":
            single, left = split_distances(
                pattern, lambda bands, modulus: _cost(work(bands, modulus, tiling)), apart=apart
            )
        own: list[CpuPart | CpuDistances] = []
        if left is not None:
            found = parts(
                left, orders, lambda bands, modulus: _cost(work(bands, modulus, tiling)),
                apart=apart,
            )
            own += [_part(part.modulus, part.pattern, tiling) for part in found]
            own += [_part(1, left, tiling)] if single and not found else []
        own += [CpuDistances(distances=single)] if single else []
        if own:
            return CpuPlan(block_mask=mask, strips=(), parts=tuple(own))
        return CpuPlan(block_mask=mask, strips=_strips(pattern, tiling))
    parts(pattern, orders, lambda *_: 0.0)  # refuse what is asked for in vain
    segments = tuple(
        Segment(tiles=piece.tiles, mask=0 if piece.full else 1)
        for piece in mask.pieces
        if reachable(piece.tiles, tiling)
    )
    return CpuPlan(
        block_mask=mask, strips=(), segments=segments, data=data,
        by_distance="" if bias == "add" else by_distance(pattern),
        channels=None if bias == "add" or data is not None else _channels(pattern, tiling),
    )


def _channels(pattern: Pattern, tiling: Tiling) -> Channels | None:
    """Return the score as channels of q and k, which leaves strips of the mask alone."""
    found = channels(pattern)
    if found is None:
        return None
    return replace(found, strips=_strips(replace(pattern, score=None), tiling))


def _cost(work: Work) -> float:
    """Return what the executor spends on some tiles, in pairs."""
    pairs = work.tiles * work.tiling.k + work.runs * RUN_PAIRS
    pairs += work.rows * (COPY_PAIRS if work.modulus > 1 else 0)
    return pairs * work.tiling.q


def _part(modulus: int, pattern: Pattern, tiling: Tiling) -> CpuPart:
    mask: BlockMask = tiles_of(pattern, tiling, tested=False)[0]
    return CpuPart(modulus=modulus, block_mask=mask, strips=_strips(pattern, tiling))


def _strips(pattern: Pattern, tiling: Tiling) -> tuple[Strip, ...]:
    return tuple(s for s in strips(pattern, tiling) if reachable(s.tiles, tiling))
