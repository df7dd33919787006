"""Pattern IR -> plan of a decode step: some last queries of a sequence against its cache.

The step runs over the tiles that its rows visit and asks the whole predicate of each key, before it
is read: dead keys cost arithmetic and no memory traffic. So full tiles and partial ones go
together, and tiles of data are not told apart beforehand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Space, Where, size_of
from attnc.compiler.ir.plan import ForwardPlan, Segment, Target
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.loops import MAX_SEGMENTS, reachable
from attnc.compiler.passes.strips import strips
from attnc.compiler.passes.tiles import DType, padded

MAX_QUERIES = 16
"""Most queries of a step: they lie in two query tiles at most."""

_LENGTHS = (ex.Var("nq"), ex.Var("nk"))


def why_not(pattern: Pattern) -> str | None:
    """Return why a pattern has no decode step, None where it has one.

    A step knows the cache, not the length: what is read must not change as a sequence grows.
    """
    if _axes(pattern.query_space) != _axes(pattern.key_space):
        return "its queries and keys stand in different spaces"
    if pattern.query_space is not None:
        length = pattern.query_space.length
        known = {*pattern.extents, *(i.name for i in pattern.inputs if not i.dims)}
        if ex.free_vars(length) or any(r.name not in known for r in ex.reads(length)):
            return "the length of its space is not known beforehand"
        return None
    long = {i.name for i in pattern.inputs if any(side in _LENGTHS for side in i.dims)}
    for one in pattern.inputs:
        if any(_reads_length(side) and side not in _LENGTHS for side in one.dims):
            return f"a side of {one.name} follows from the length of the sequence"
        if one.formula is not None and any(map(_depends, ar.walk(one.formula))):
            return f"{one.name} is computed from the length of the sequence"
    for score in (pattern.score, pattern.sink):
        for node in sc.walk(score) if score is not None else ():
            if isinstance(node, sc.RealRead | ex.Read) and node.name in long and not all(
                isinstance(place, ex.Var | ex.Const) for place in node.index
            ):
                return f"its score reads {node.name} beside the positions of query and key"
    return None


def build_decode(
    pattern: Pattern, *, head_dim: int, value_dim: int, dtype: DType, target: Target
) -> ForwardPlan:
    """Decide how a decode step walks the keys; the plan's one mask is the whole predicate.

    Row ``qb`` has the query tile of the true positions; the lengths are those of the sequence so
    far, or of the space. Inputs as long as the sequence may be longer.
    Units: tiles of 16 queries, by as many keys as load well.
    """
    pattern = _guarded(eliminate(pattern))
    wide = max(padded(head_dim), padded(value_dim)) * (2 if dtype == "fp32" else 1)
    tiling = Tiling(MAX_QUERIES, 64 if wide <= 128 else 32)
    mask, data, _ = tiles_of(pattern, tiling)
    tiles = [p.tiles for p in mask.pieces] if data else [s.tiles for s in strips(pattern, tiling)]
    tiles = [one for one in tiles if reachable(one, tiling)]
    if len(tiles) > MAX_SEGMENTS:
        tiles = [covering(tiles)]
    return ForwardPlan(
        block_mask=mask, segments=tuple(Segment(tiles=one, mask=1) for one in tiles),
        masks=(pattern.predicate,), form="ranges", row_order="forward", head_dim=head_dim,
        value_dim=value_dim, dtype=dtype, target=target, warps=4, stages=2 if wide > 256 else 3,
    )


def covering(tiles: list[Progression]) -> Progression:
    """Cover all progressions: what lies between is asked, and not read."""
    end = ex.Var("NK")
    some = [ex.compare(">", one.count, ex.ZERO) for one in tiles]
    first = ex.minimum(
        *(ex.select(test, one.base, end) for test, one in zip(some, tiles, strict=True))
    )
    behind = ex.maximum(
        *(ex.select(test, _end(one), ex.ZERO) for test, one in zip(some, tiles, strict=True))
    )
    return Progression(base=first, count=ex.sub(behind, first))


def _end(tiles: Progression) -> ex.IntExpr:
    """Return the tile behind the last one of a progression that is not empty."""
    last = ex.sub(tiles.count, ex.ONE)
    run = ex.scale(tiles.period, ex.floordiv(last, tiles.run))
    return ex.add(tiles.base, run, ex.mod(last, tiles.run), ex.ONE)


def _guarded(pattern: Pattern) -> Pattern:
    """Let inputs be as long as the cache: past the sequence they read as nothing.

        doc[k + 1]   -->   doc[if k + 1 < nk then k + 1 else -1]
    """
    long = {i.name: i for i in pattern.inputs if any(side in _LENGTHS for side in i.dims)}
    if pattern.query_space is not None or not long:
        return pattern

    def go(expr: Any) -> Any:
        found = ex.rebuild(expr, go) if ex.children(expr) else expr
        if not isinstance(found, ex.Read) or found.name not in long:
            return found
        sides = long[found.name].dims
        return replace(found, index=tuple(map(_inside, found.index, sides)))

    inputs = tuple(
        replace(i, dims=tuple(None if side in _LENGTHS else side for side in i.dims))
        for i in pattern.inputs
    )
    return replace(pattern, body=Where(go(pattern.predicate)), inputs=inputs)


def _inside(place: ex.IntExpr, side: ex.IntExpr | None) -> ex.IntExpr:
    if side not in _LENGTHS or place in (ex.Var("q"), ex.Var("k")):
        return place
    assert side is not None
    return ex.select(ex.compare("<", place, side), place, ex.Const(-1))


def _axes(space: Space | None) -> list[tuple[ex.IntExpr, ...]] | None:
    """Return the sides of the segments that have tokens."""
    if space is None:
        return None
    return [one.extents for one in space.segments if ex.ZERO not in one.extents]


def _reads_length(side: ex.IntExpr | None) -> bool:
    return side is not None and size_of(side) is None and bool(ex.free_vars(side))


def _depends(node: ar.ArrayExpr) -> bool:
    """Whether a part of a formula changes as the sequence grows."""
    return isinstance(node, ar.BlockCount) or (
        isinstance(node, ar.ArrayNumber) and bool(ex.free_vars(node.part))
    )
