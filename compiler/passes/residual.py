"""Pattern + the tiles of a piece -> the predicate still to be checked inside those tiles.

    causal window 512, diagonal tiles  -->  q >= k        (the left reach cannot bite there)
"""

from __future__ import annotations

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex


def residual(
    pairs: isl.Map, tiles: isl.Map, token_tiles: isl.Map, context: isl.Set, whole: ex.BoolExpr
) -> ex.BoolExpr:
    """Return the cheapest known predicate that equals ``pairs`` on all tokens of ``tiles``.

    Args: ``pairs`` the pattern over tokens, ``tiles`` the piece over tiles, ``token_tiles`` the map
    from a token pair to its tile pair, ``whole`` the pattern's own predicate (the fallback).
    """
    inside = token_tiles.intersect_range(tiles.wrap()).domain()
    known = inside.intersect_params(context)
    wanted = pairs.wrap()
    if sets.within(known, wanted):
        return ex.TRUE
    try:
        left = wanted.gist(known).coalesce()
        names = _token_names(left)
        found = sets.bool_expr(left, lambda kind, i: names[(kind, i)])
    except (sets.OverBudget, isl.Error):
        return whole
    if ex.free_vars(found) & {"NQ", "NK"}:
        return whole
    return found if ex.op_count(found) <= ex.op_count(whole) else whole


def _token_names(space_of: isl.Set) -> dict[tuple[isl.dim_type, int], str]:
    names = {(isl.dim_type.param, i): n for i, n in enumerate(sets.param_names(space_of))}
    for kind in (isl.dim_type.set, isl.dim_type.in_):
        names[(kind, 0)], names[(kind, 1)] = "q", "k"
    return names
