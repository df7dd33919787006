"""Tiles of patterns that read data: hull and core, side terms, interval tests, tables, counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attnc.compiler.counts import count
from attnc.compiler.driver import load_zoo
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Grid, Input, Pattern, Space, Where
from attnc.compiler.ir.plan import DataTiles
from attnc.compiler.ir.show import show, show_tiles
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes import data_tiles as dt
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.data_form import tiles_of
from attnc.compiler.passes.hull import Known, candidates, core, hull, is_plain
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


def conditions() -> st.SearchStrategy[ex.BoolExpr]:
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
@given(predicate=conditions(), nq=LENGTHS, nk=LENGTHS, tiling=TILINGS, seed=st.integers(0, 99))
def test_tables_of_random_predicates(
    predicate: ex.BoolExpr, nq: int, nk: int, tiling: Tiling, seed: int
) -> None:
    """Kept pairs are visited, full tiles keep all; refined tiles and counts are exact."""
    pattern, data = pattern_of(predicate), arrays(seed, nq, nk)
    kept = pattern.mask(nq, nk, data)
    mask = candidates(pattern, tiling)
    assert (mask.dense(nq, nk, data) == kept).all()
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
@given(
    predicate=conditions(), known=st.sampled_from([ex.is_static, is_plain]), nq=LENGTHS,
    nk=LENGTHS, seed=st.integers(0, 99),
)
def test_hull_and_core_lie_around(
    predicate: ex.BoolExpr, known: Known, nq: int, nk: int, seed: int
) -> None:
    """Core implies the predicate, the predicate implies the hull, whatever the data is."""
    outer, inner = hull(predicate, known), core(predicate, known)
    assert known(outer)
    assert known(inner)
    data = arrays(seed, nq, nk)
    kept = pattern_of(predicate).mask(nq, nk, data)
    assert (pattern_of(outer).mask(nq, nk) | ~kept).all()
    assert (kept | ~pattern_of(inner).mask(nq, nk)).all()
    if known(predicate):
        assert outer == inner == predicate


@settings(max_examples=150, deadline=None)
@given(predicate=conditions(), seed=st.integers(0, 99))
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


# ------------------------------------------------------------------------------- single patterns


def test_hull_takes_min_max_and_if_apart() -> None:
    """A bound that is the least of a known and a read one leaves the known one to isl."""
    until = ex.compare("<=", K, ex.minimum(Q, doc(Q)))
    assert hull(until) == ex.compare("<=", K, Q)
    assert core(until) == ex.FALSE
    assert core(ex.not_(until)) == ex.compare(">", K, Q)
    wide = ex.select(ex.compare("==", doc(Q), ex.ONE), ex.Const(30), ex.Const(4))
    assert hull(ex.compare("<", ex.sub(Q, K), wide)) == ex.or_(
        ex.compare("<", ex.sub(Q, K), ex.Const(30)), ex.compare("<", ex.sub(Q, K), ex.Const(4))
    )


def test_sorted_documents_are_told_apart_by_bounds() -> None:
    """Inside a window, sorted ids leave nothing to evaluate: tiles are exact as they are."""
    same = ex.compare("==", doc(Q), doc(K))
    near = ex.and_(same, ex.compare("<", ex.absolute(ex.sub(Q, K)), ex.Const(100)))
    mask, tiles, _ = tiles_of(pattern_of(near), Tiling(32, 32))
    assert tiles is not None
    assert not tiles.refine
    ids = {"doc": np.repeat(np.arange(16), 64)}
    counted = dt.count(mask, tiles, 1024, 1024, ids)
    assert (counted.visited, counted.masked) == (counted.full + counted.partial, counted.partial)
    assert counted.full == 64  # a document has 2 by 2 tiles


def test_the_core_is_full_whatever_the_data_says() -> None:
    """Sinks that everyone sees are full tiles before any data is there."""
    pattern = pattern_of(ex.or_(ex.compare("<", K, ex.Const(32)), flag("near", Q, K)))
    mask = candidates(pattern, Tiling(16, 16))
    assert [piece.full for piece in mask.pieces] == [True, False]
    assert show_tiles(mask.pieces[0].tiles) == "kb in 0 .. min(NK - 1, 1)"


def test_text_beside_a_grid_is_full_before_any_test() -> None:
    """Where isl gives up on a grid, the ends of its segments still tell full tiles apart."""
    pattern = load_zoo("svg_temporal")  # 33 frames of 1350 tokens, and 226 of text
    mask = candidates(pattern, Tiling(64, 64))
    assert len(mask.widened) == 3
    assert [piece.full for piece in mask.pieces] == [True, False]
    tiles, text = 700, 3  # one more row of tiles begins in the video
    counts = [mask.rows(piece, 44776, 44776)[1].sum() for piece in mask.pieces]
    full = text * tiles + (tiles - text) * text
    assert counts == [full, tiles * tiles - full]


@pytest.mark.parametrize(
    ("predicate", "refined", "words"),
    [
        (ex.compare("==", doc(Q), doc(K)), False, "`doc[q]` reads `doc`"),
        (ex.compare("<", ex.sub(Q, K), PHASE), False, "`phase` is a number known then"),
        (flag("near", Q, K), False, "`near[q][k]` reads `near`"),
        (ex.compare("==", doc(ex.sub(Q, K)), ex.ZERO), True, "`doc[q - k]` depends on"),
        (
            ex.compare("<", ex.mul(ex.sub(Q, K), ex.sub(Q, K)), ex.Const(9)), True,
            "`(q - k) * (q - k)` is a product",
        ),
        (
            ex.compare("==", ex.rem(ex.sub(Q, K), PHASE), ex.ZERO), True,
            "`(q - k) mod phase` depends on query and key at once",
        ),
    ],
)  # fmt: skip
def test_plans_say_why_they_wait_for_data(
    predicate: ex.BoolExpr, refined: bool, words: str
) -> None:
    """The form is "data", both executors have candidates, and the note names the cause."""
    inputs = (
        Input(name="doc", kind="int", dims=(NQ,)), Input(name="near", kind="bool", dims=(NQ, NK)),
        Input(name="phase", kind="int", dims=()),
    )
    pattern = replace(pattern_of(predicate), inputs=inputs)
    plan = build_plan(pattern, head_dim=64)
    assert verify(plan) == ()
    assert plan.forward.form == "data"
    assert plan.forward.masks == (predicate,)
    for part in (plan.forward, plan.cpu):
        assert part.data is not None
        assert part.data.refine is refined
        assert [segment.mask for segment in part.segments] == [1]
    assert plan.cpu.strips == ()
    assert any(words in note for note in plan.notes), plan.notes
    assert f"open ones {'evaluated' if refined else 'masked'}" in show(plan)


def test_score_terms_alone_wait_for_nothing() -> None:
    """A static pattern with a score keeps its ranges; the executor gets its tiles, not strips."""
    pattern = replace(
        pattern_of(ex.compare("<=", K, Q)), score=sc.RealAdd((sc.Dot(), sc.FromInt(ex.sub(K, Q))))
    )
    plan = build_plan(pattern, head_dim=64)
    assert plan.forward.form == "ranges"
    assert (plan.forward.data, plan.cpu.data, plan.cpu.strips) == (None, None, ())
    assert [segment.mask for segment in plan.cpu.segments] == [0, 1]
    assert verify(plan) == ()


def test_a_grid_that_isl_gives_up_on_is_tested_instead() -> None:
    """Past the budget, tiles of a grid are told apart at given lengths, and the mask stays."""
    far = ex.floordiv(ex.add(*(ex.mod(ex.add(Q, ex.scale(i, K)), i + 2) for i in range(14))), 3)
    near = ex.compare("<=", ex.absolute(ex.sub(ex.floordiv(Q, 8), ex.floordiv(K, 8))), ex.ONE)
    pattern = pattern_of(ex.and_(ex.compare("<", far, ex.Const(9)), near))
    sides = (ex.Const(12), ex.Const(8))
    space = Space(segments=(Grid(name="image", axes=("y", "x"), extents=sides),))
    assert tiles_of(pattern, Tiling(16, 16))[1] is None, "a plain sequence keeps its wide ranges"
    on_grid = replace(pattern, query_space=space, key_space=space)
    mask, tiles, why = tiles_of(on_grid, Tiling(16, 16))
    assert mask.widened
    assert tiles is not None
    assert "isl gave up" in why[0]
    kept = on_grid.mask(96, 96)
    counted = dt.count(mask, tiles, 96, 96, {})
    assert counted.pairs_kept == kept.sum()
    assert counted.visited < counted.total
    visited, _ = by_token(dt.tile_table(mask, tiles, 96, 96, {}), Tiling(16, 16), 96, 96)
    assert (visited | ~kept).all()
    plan = build_plan(on_grid, head_dim=64)
    assert verify(plan) == ()
    assert (plan.forward.form, plan.cpu.strips) == ("data", ())


def test_a_fixed_length_that_isl_gives_up_on_is_tested_instead() -> None:
    """Radial attention on blocks: its tables are counted at its one length."""
    pattern = load_zoo("radial_blocks", {"n": 4096, "frames": 4, "s": 1000})
    plan = build_plan(pattern, head_dim=64)
    assert verify(plan) == ()
    assert plan.forward.data is not None
    assert plan.cpu.data is not None
    kept = pattern.mask(32, 32)
    assert dt.count(plan.cpu.block_mask, plan.cpu.data, 32, 32, {}).pairs_kept == kept.sum()


def test_tests_of_a_static_pattern_agree_with_isl() -> None:
    """Where one executor tests tiles the other does, too: the counts are those of the pieces."""
    static = load_zoo("causal")
    mask, tiles, _ = tiles_of(static, Tiling(16, 16), tested=True)
    assert tiles is not None
    assert [piece.full for piece in mask.pieces] == [True, False]
    assert dt.count(mask, tiles, 70, 90, {}) == count(mask, 70, 90)


def test_nothing_waits_where_the_hull_is_empty() -> None:
    """A pattern that no data can make keep a pair has no tiles to test."""
    never = ex.and_(ex.compare("<", K, ex.ZERO), ex.compare("==", doc(Q), doc(K)))
    mask, tiles, why = tiles_of(pattern_of(ex.and_(never, ex.compare(">", K, Q))), Tiling(16, 16))
    assert (mask.pieces, tiles, why) == ((), None, ())
    assert count(mask, 70, 90).empty == count(mask, 70, 90).total == 30
    plan = build_plan(pattern_of(ex.and_(ex.FALSE, never)), head_dim=64)
    assert (plan.forward.form, plan.forward.segments) == ("ranges", ())


def test_no_tokens_no_rows() -> None:
    """Lengths of zero have no tile; a row may be empty."""
    pattern = pattern_of(ex.compare("==", doc(Q), doc(K)))
    mask = candidates(pattern, Tiling(16, 16))
    tiles = DataTiles(predicate=pattern.predicate, core=ex.FALSE, refine=False)
    for nq, nk, rows in ((0, 40, 0), (40, 0, 3), (0, 0, 0)):
        table = dt.tile_table(mask, tiles, nq, nk, {"doc": np.zeros(40, dtype=np.int64)})
        assert table.starts.tolist() == [0] * (rows + 1)
        assert not len(table.entries)
        assert dt.count(mask, tiles, nq, nk, {"doc": np.zeros(40)}).total == 0


def test_tables_are_made_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few candidates and pairs are looked at together, the table is the same."""
    predicate = ex.or_(ex.compare("==", doc(Q), doc(K)), ex.compare("<", K, ex.Const(3)))
    pattern, data = pattern_of(predicate), arrays(1, 90, 100)
    mask = candidates(pattern, Tiling(8, 4))
    tiles = DataTiles(predicate=predicate, core=ex.FALSE, refine=True)
    whole = dt.tile_table(mask, tiles, 90, 100, data)
    monkeypatch.setattr(dt, "CHUNK_TILES", 7)
    monkeypatch.setattr(dt, "CHUNK_PAIRS", 40)
    chunked = dt.tile_table(mask, tiles, 90, 100, data)
    assert (whole.starts == chunked.starts).all()
    assert (whole.entries == chunked.entries).all()
