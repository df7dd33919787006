"""Pattern IR + a tiling -> which tiles are full, partial and empty, as relations of isl.

With R the pattern, D all pairs of the padded grid, T the map from a pair of tokens to its tiles:
``nonempty = T(R)``, ``holes = T(D - R)``, ``full = nonempty - holes``, and ``partial`` is both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern


@dataclass(frozen=True)
class Relations:
    """A pattern projected on one tiling: relations ``{ [qb] -> [kb] }`` and what they came from.

    ``operations``: what isl took to project it.
    """

    pairs: isl.Map
    token_tiles: isl.Map
    nonempty: isl.Map
    full: isl.Map
    partial: isl.Map
    context: isl.Set
    operations: int


def project(pattern: Pattern, tiling: Tiling) -> Relations:
    """Return the nonempty tiles alone (``full`` empty, ``partial`` all of them).

    Raises: OverBudget.
    """
    predicate = pattern.predicate
    params = ["NK", *sets.params_of(predicate, without=frozenset({"q", "k"}))]
    if "nq" in params:
        params.append("NQ")
    conditions = ["NK >= 1"]
    if "nk" in params:
        conditions.append(f"{tiling.k} * (NK - 1) < nk <= {tiling.k} * NK")
    if "nq" in params:
        conditions.append(f"NQ >= 1 and {tiling.q} * (NQ - 1) < nq <= {tiling.q} * NQ")
    if "h" in params:
        conditions.append(f"0 <= h < {pattern.heads}")
    head = f"[{', '.join(params)}]"
    rows = f"0 <= q < {tiling.q} * NQ" if "nq" in params else "0 <= q"
    domain = f"{rows} and 0 <= k < {tiling.k} * NK"
    context = sets.read_set(f"{head} -> {{ : {' and '.join(conditions)} }}")
    pairs = sets.pair_map(predicate, params, domain).intersect_params(context)
    token_tiles = sets.read_map(
        f"{head} -> {{ [[q] -> [k]] -> [[qb] -> [kb]] :"
        f" 0 <= q - {tiling.q} qb < {tiling.q} and 0 <= k - {tiling.k} kb < {tiling.k} }}"
    )
    nonempty = _tiles(pairs, token_tiles)
    empty = isl.Map.empty(nonempty.get_space())
    around = _row_context(context)
    return Relations(pairs, token_tiles, nonempty, empty, nonempty, around, sets.spent())


def _row_context(context: isl.Set) -> isl.Set:
    """Return the context with ``qb >= 0`` (and below NQ where NQ is known)."""
    wider = context.insert_dims(isl.dim_type.param, 0, 1).set_dim_name(isl.dim_type.param, 0, "qb")
    names = sets.param_names(wider)
    bound = "0 <= qb < NQ" if "NQ" in names else "0 <= qb"
    return wider.intersect(sets.read_set(f"[{', '.join(names)}] -> {{ : {bound} }}"))


def _tiles(pairs: isl.Map, token_tiles: isl.Map) -> isl.Map:
    return pairs.wrap().apply(token_tiles).unwrap().coalesce()


def relations(pattern: Pattern, tiling: Tiling) -> Relations:
    """Return the exact relations of all classes. Raises: OverBudget."""
    return refined(project(pattern, tiling), tiling)


def refined(found: Relations, tiling: Tiling) -> Relations:
    """Tell full tiles from partial ones, where all are partial so far. Raises: OverBudget."""
    names = sets.param_names(found.pairs)
    rows = f"0 <= q < {tiling.q} * NQ" if "NQ" in names else "0 <= q"
    legal = sets.pair_map(ex.TRUE, names, f"{rows} and 0 <= k < {tiling.k} * NK")
    full = found.full
    if _may_be_full(found.pairs, tiling):
        legal = sets.minus(legal.intersect_params(found.pairs.params()), found.pairs)
        holes = _tiles(legal, found.token_tiles)
        full = sets.minus(found.nonempty, holes).coalesce()
    else:
        holes = _tiles(legal, found.token_tiles)
    partial = found.nonempty.intersect(holes).coalesce()
    return replace(found, full=full, partial=partial)


def _may_be_full(pairs: isl.Map, tiling: Tiling) -> bool:
    """Return False only if no tile is full: none keeps its first query's first two keys."""
    if tiling.k == 1:
        return True
    at = [
        sets.read_map(f"{{ [{axis}] -> [{axis}b] : {axis} = {side} {axis}b + {offset} }}")
        for axis, side, offset in (("q", tiling.q, 0), ("k", tiling.k, 0), ("k", tiling.k, 1))
    ]
    rows = pairs.apply_domain(at[0])
    try:
        return not sets.apart(rows.apply_range(at[1]), rows.apply_range(at[2]))
    except isl.Error:  # hard to tell, and not needed
        return True
