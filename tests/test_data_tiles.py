"""Tiles of patterns that read data: hull and core, side terms, interval tests, tables, counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import DataTiles
from attnc.compiler.passes import data_tiles as dt
from attnc.compiler.passes.hull import candidates, core, hull
from attnc.compiler.passes.sides import KEY, QUERY, split

Q, K, H, NQ, NK = map(ex.Var, ("q", "k", "h", "nq", "nk"))
PHASE = ex.Read("phase")
HEADS = 2


def doc(index: ex.IntExpr) -> ex.IntExpr:
    return ex.Read("doc", (index,))


def flag(name: str, *index: ex.IntExpr) -> ex.BoolExpr:
    return ex.compare("==", ex.Read(name, index), ex.ONE)


# ------------------------------------------------------------------------------ random predicates


def _integers() -> st.SearchStrategy[ex.IntExpr]:
    leaves = st.sampled_from(
        [Q, K, H, NK, PHASE, doc(Q), doc(K), ex.sub(Q, K), ex.Read("reach", (H, Q))]
    ) | st.integers(-9, 40).map(ex.Const)
    return st.recursive(
        leaves,
        lambda part: st.one_of(
            st.builds(ex.add, part, part),
            st.builds(ex.sub, part, part),
            st.builds(ex.scale, st.integers(-3, 3), part),
            st.builds(ex.floordiv, part, st.integers(1, 9)),
            st.builds(ex.mod, part, st.integers(1, 9)),
            st.builds(ex.minimum, part, part),
            st.builds(ex.maximum, part, part),
            st.builds(ex.absolute, part),
            st.builds(ex.mul, part, part),
            st.builds(ex.quot, part, part),
            st.builds(ex.rem, part, part),
            st.builds(lambda part: doc(part), part),
            st.builds(
                lambda left, right, a, b: ex.select(ex.compare("<", left, right), a, b),
                part, part, part, part,
            ),
        ),
        max_leaves=4,
    )


def _conditions() -> st.SearchStrategy[ex.BoolExpr]:
    value = _integers()
    atoms = st.one_of(
        st.builds(
            ex.compare, st.sampled_from(("<", "<=", "==", "!=", ">=", ">")), value, value
        ),
        st.builds(ex.compare, st.just("<="), st.just(K), st.just(Q)),
        st.builds(lambda i, j: flag("near", i, j), value, value),
        st.builds(lambda i: flag("slash", H, i), value),
        st.builds(ex.is_pow2, value),
        st.builds(ex.member, value, st.lists(st.integers(-5, 40), min_size=3, max_size=6)),
    )
    return st.recursive(
        atoms,
        lambda part: st.one_of(
            st.builds(ex.and_, part, part),
            st.builds(ex.or_, part, part),
            st.builds(ex.not_, part),
        ),
        max_leaves=4,
    )


def pattern_of(predicate: ex.BoolExpr) -> Pattern:
    heads = HEADS if "h" in ex.free_vars(predicate) else None
    return Pattern(name="p", heads=heads, body=Where(predicate))


def arrays(seed: int, nq: int, nk: int) -> dict[str, Any]:
    """Inputs that the random predicates read; sides differ from the lengths on purpose."""
    rng = np.random.default_rng(seed)
    n = max(nq, nk)
    return {
        "doc": np.sort(rng.integers(-3, 9, n + 2)) if seed % 2 else rng.integers(-3, 40, n),
        "near": rng.random((nq, nk)) < rng.choice([0.02, 0.5, 0.98]),
        "slash": rng.random((HEADS, max(1, nk - 3))) < 0.2,
        "reach": rng.integers(0, 50, (HEADS, nq)),
        "phase": int(rng.integers(-2, 6)),
    }


LENGTHS = st.integers(1, 100)
TILINGS = st.sampled_from([Tiling(16, 16), Tiling(32, 16), Tiling(16, 64), Tiling(8, 4)])


def by_token(
    table: dt.TileTable, tiling: Tiling, nq: int, nk: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pairs lie in visited, and which in full tiles. Shape: ``[heads, nq, nk]``."""
    tiles_q, tiles_k = -(-nq // tiling.q), -(-nk // tiling.k)
    grid = np.full((table.heads * tiles_q, tiles_k), -1)
    for row, (start, stop) in enumerate(zip(table.starts, table.starts[1:], strict=False)):
        kb, classes = np.divmod(table.entries[start:stop], 8)
        assert len(set(kb.tolist())) == len(kb), "a tile stands twice in a row"
        grid[row, kb] = classes
    grid = grid.reshape(table.heads, tiles_q, tiles_k)
    grid = grid.repeat(tiling.q, axis=1)[:, :nq].repeat(tiling.k, axis=2)[:, :, :nk]
    return grid >= 0, grid == dt.FULL


@settings(max_examples=150, deadline=None)
@given(predicate=_conditions(), nq=LENGTHS, nk=LENGTHS, tiling=TILINGS, seed=st.integers(0, 99))
def test_tables_of_random_predicates(
    predicate: ex.BoolExpr, nq: int, nk: int, tiling: Tiling, seed: int
) -> None:
    """Kept pairs are visited, full tiles keep all; refined tiles and counts are exact."""
    pattern, data = pattern_of(predicate), arrays(seed, nq, nk)
    kept = pattern.mask(nq, nk, data)
    mask = candidates(pattern, tiling)
    for refine in (False, True):
        tiles = DataTiles(predicate=predicate, core=core(predicate), refine=refine)
        table = dt.tile_table(mask, tiles, nq, nk, data)
        visited, full = by_token(table, tiling, nq, nk)
        assert (visited | ~kept).all()
        assert (kept | ~full).all()
        counted = dt.count(mask, tiles, nq, nk, data)
        assert counted.pairs_kept == kept.sum()
        heads = kept.shape[0] // table.heads
        assert counted.visited == heads * len(table.entries)
        assert counted.masked == heads * int((table.entries % 8 == dt.PARTIAL).sum())
        assert counted.pairs_computed == heads * visited.sum()
        blocks = [
            kept[h, i : i + tiling.q, j : j + tiling.k]
            for h in range(kept.shape[0])
            for i in range(0, nq, tiling.q)
            for j in range(0, nk, tiling.k)
        ]
        assert counted.full == sum(bool(block.all()) for block in blocks)
        assert counted.empty == sum(not block.any() for block in blocks)
        assert counted.total == len(blocks)
        if refine:
            assert (counted.visited, counted.masked) == (
                counted.full + counted.partial, counted.partial
            )


@settings(max_examples=150, deadline=None)
@given(predicate=_conditions(), nq=LENGTHS, nk=LENGTHS, seed=st.integers(0, 99))
def test_hull_and_core_lie_around(
    predicate: ex.BoolExpr, nq: int, nk: int, seed: int
) -> None:
    """Core implies the predicate, the predicate implies the hull, whatever the data is."""
    outer, inner = hull(predicate), core(predicate)
    assert ex.is_static(outer)
    assert ex.is_static(inner)
    data = arrays(seed, nq, nk)
    kept = pattern_of(predicate).mask(nq, nk, data)
    assert (pattern_of(outer).mask(nq, nk) | ~kept).all()
    assert (kept | ~pattern_of(inner).mask(nq, nk)).all()
    if ex.is_static(predicate):
        assert outer == inner == predicate


@settings(max_examples=150, deadline=None)
@given(predicate=_conditions(), seed=st.integers(0, 99))
def test_side_terms_substitute_back(predicate: ex.BoolExpr, seed: int) -> None:
    """Terms depend on one side, the test on terms alone; together they are the predicate."""
    sides = split(predicate)
    assert all(ex.relevant_side(term) == "q" for term in sides.query)
    assert all(ex.relevant_side(term) == "k" for term in sides.key)
    assert ex.relevant_side(sides.test) == "none"
    terms = {f"{QUERY}{i}": term for i, term in enumerate(sides.query)}
    terms |= {f"{KEY}{i}": term for i, term in enumerate(sides.key)}
    data = arrays(seed, 20, 30)
    again = pattern_of(ex.substitute(sides.test, terms)).mask(20, 30, data)
    assert (again == pattern_of(predicate).mask(20, 30, data)).all()
