"""Kept part of a routed attention -> torch source of the anchors that scores are compared with."""

from __future__ import annotations

from attnc.codegen.cpu import emit_rows
from attnc.codegen.tile_test import host_dialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.route import Route
from attnc.compiler.ir.routed import Routed
from attnc.compiler.passes.data_form import tiles_of

TILE = Tiling(64, 64)
"""Queries and keys that are looked at together."""


def emit_anchors(routed: Routed, route: Route) -> str:
    """Print ``_anchors_<route>(q, k, inputs)``: ``[B, Hq, query units]``, -inf without kept keys.

    The mean over the queries of a unit of the largest scaled product with a kept key. Key tiles
    that the kept part does not touch are not looked at.
    """
    out, kept, name = Writer(), routed.kept, route.name
    mask, _, _ = tiles_of(kept, TILE)
    pieces = []
    for number, piece in enumerate(mask.pieces):
        own = f"_anchor_tiles_{name}_{number}"
        emit_rows(out, own, piece.tiles, kept.heads, f"Kept key tiles, piece {number + 1}")
        pieces.append(f"({own}, {piece.tiles.period}, {piece.tiles.run})")
    dialect = host_dialect({i.name: i.kind for i in kept.inputs}, kept.heads)
    with out.block(f"def _anchor_keeps_{name}(q, k, h, b, nq, nk, data):"):
        out.line('"""Whether a pair is attended at any rate."""')
        out.line(f"return {dialect.boolean(kept.predicate)}")
    out.line()
    out.line()
    factor = "1.0" if route.score.scale is None else "q.shape[3] ** -0.5"
    if route.score.scale not in (None, "head_dim"):
        factor = repr(float(route.score.scale))
    if route.score.divisor != 1:
        factor += f" / {route.score.divisor}"
    tokens = route.query.sizes[0] if route.query.kind == "block" else 1
    with out.block(f"def _anchors_{name}(q, k, inputs):"):
        out.line('"""Return the mean of the largest kept products of each query unit."""')
        out.line(f"pieces = [{', '.join(pieces)}]")
        out.line(f"given = (pieces, _anchor_keeps_{name}, {kept.heads is not None}, inputs)")
        out.line(f"return _anchors(q, k, {factor}, {tokens}, *given)")
    return out.text().rstrip()
