"""Boxes of grids against dense masks: exact at random sizes, or they say that they are widened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.cli import invoke
from attnc.compiler.counts_grid import count_grid
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import Counts, Progression, Tiling
from attnc.compiler.ir.gridmask import BoxTiling, GridMask
from attnc.compiler.ir.read import read
from attnc.compiler.ir.show import show
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes import classify_grid as cg
from attnc.compiler.passes.axis_sets import Axis, AxisSets
from attnc.compiler.passes.axis_tables import AxisTables
from attnc.compiler.passes.grid_tiles import choose

SIDES = st.sampled_from([1, 2, 4, 8])
SMALL = st.integers(1, 5)


def dense_counts(mask: GridMask) -> Counts:
    """Count by looking at every pair: the slow definition of ``count_grid``."""
    kept = mask.pattern.mask(*mask.pattern.lengths)  # type: ignore[arg-type]
    grid = mask.grid()
    tile_q, tile_k = (
        np.concatenate([
            part.first_tile + np.ravel_multi_index(
                [at // side for at, side in zip(part.coordinates(), part.box, strict=True)],
                part.grid,
            )
            for part in parts if part.tokens
        ])
        for parts in (mask.queries, mask.keys)
    )  # fmt: skip
    full = partial = computed = 0
    for seen, row in zip(grid, kept, strict=True):
        at = np.ix_(tile_q, tile_k)
        there, all_pairs = np.zeros(seen.shape, int), np.zeros(seen.shape, int)
        np.add.at(there, at, row)
        np.add.at(all_pairs, at, 1)
        full += int((there == all_pairs).sum())
        partial += int(((there > 0) & (there < all_pairs)).sum())
        computed += int(all_pairs[seen >= 0].sum())
    masked = sum(int((grid == i).sum()) for i, p in enumerate(mask.pieces) if not p.full)
    return Counts(
        full=full, partial=partial, empty=grid.size - full - partial,
        visited=int((grid >= 0).sum()), masked=masked, pairs_kept=int(kept.sum()),
        pairs_computed=computed,
    )


def _images() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    sides = {"h": st.integers(1, 18), "w": st.integers(1, 18)}
    named = {
        "swin": {"window": st.integers(1, 8), "shift": st.integers(0, 4)},
        "maxvit_block": {"p": st.integers(1, 8)},
        "crossformer_sda": {"g": SMALL},
        "crossformer_lda": {"g": SMALL, "interval": SMALL},
        "axial_row": {},
        "axial_col": {},
        "criss_cross": {},
        "cswin": {"stripe": SMALL, "heads": st.just(2)},
        "halonet": {"block": SMALL, "halo": st.integers(0, 3)},
    }
    return st.one_of(*(
        st.tuples(st.just(name), st.fixed_dictionaries({**sides, **params}))
        for name, params in named.items()
    ))  # fmt: skip


@st.composite
def _gna(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    rank = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, (40, 14, 7)[rank - 1])) for _ in range(rank)]
    dilation = [draw(st.integers(1, min(3, side))) for side in shape]
    window = [draw(st.integers(1, s // d)) for s, d in zip(shape, dilation, strict=True)]
    return "gna", {
        "shape": shape, "window": window, "dilation": dilation,
        "stride": [draw(st.integers(1, w)) for w in window],
        "causal": [draw(st.booleans()) for _ in shape],
        "extra_keys": draw(st.sampled_from([0, 0, 5])),
        "edge": draw(st.sampled_from(["shift", "mask"])),
    }


def _videos() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.one_of(
        st.tuples(st.just("radial_tokens"), st.fixed_dictionaries({
            "frames": st.integers(1, 9), "s": st.integers(1, 24), "block": SMALL,
        })),
        st.tuples(st.just("svg_spatial"), st.fixed_dictionaries({
            "frames": st.integers(1, 6), "s": st.integers(1, 20),
            "prompt": st.sampled_from([0, 7]), "reach": st.integers(0, 2),
        })),
    )  # fmt: skip


def _exact(name: str, params: dict[str, Any], query: list[int], key: list[int]) -> None:
    pattern = load_zoo(name, params)
    mask = cg.classify_grid(pattern, BoxTiling(tuple(query), tuple(key)))
    assert mask.exact, mask.widened
    kept = pattern.mask(*pattern.lengths)  # type: ignore[arg-type]
    assert (mask.dense() == kept).all()
    assert count_grid(mask) == dense_counts(mask)
    assert read(show(mask)) == mask


@settings(max_examples=40, deadline=None)
@given(case=_images(), query=st.lists(SIDES, min_size=2, max_size=2),
       key=st.lists(SIDES, min_size=2, max_size=2))  # fmt: skip
def test_images(case: tuple[str, dict[str, Any]], query: list[int], key: list[int]) -> None:
    """Published patterns on images: exact for all sizes and boxes, and counted exactly."""
    _exact(*case, query, key)


@settings(max_examples=40, deadline=None)
@given(case=_gna(), sides=st.lists(SIDES, min_size=6, max_size=6))
def test_neighbourhoods(case: tuple[str, dict[str, Any]], sides: list[int]) -> None:
    """Neighbourhoods of one to three axes, with strides, dilations, causal axes, more keys."""
    rank = len(case[1]["shape"])
    _exact(*case, sides[:rank], sides[3 : 3 + rank])


@settings(max_examples=25, deadline=None)
@given(case=_videos(), query=st.lists(SIDES, min_size=2, max_size=2),
       key=st.lists(SIDES, min_size=2, max_size=2))  # fmt: skip
def test_videos(case: tuple[str, dict[str, Any]], query: list[int], key: list[int]) -> None:
    """Unions of products that touch, and text beside the frames."""
    _exact(*case, query, key)


ATOMS = (
    "abs(q.x - k.x) <= 3 * h + 1", "q.y == k.y", "h == 1", "k.y <= q.y", "q >= k",
    "q.x div 3 == k.x div 3", "abs(q - k) <= 9", "k.x mod 4 == h", "q.y + k.y < 9", "k < 3",
    "not (q.x == k.x)", "max(q.y - k.y, q.x - k.x) <= 2", "q.x in [1, 4, 7]",
    "(if h < 2 then q.y else q.x) <= (if h < 2 then k.y else k.x)",
)  # fmt: skip

CONDITIONS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(condition=CONDITIONS, extents=st.tuples(st.integers(1, 12), st.integers(1, 14)),
       sides=st.lists(SIDES, min_size=4, max_size=4))  # fmt: skip
def test_random_conditions(condition: str, extents: tuple[int, int], sides: list[int]) -> None:
    """Whatever is said of axes, heads and flat positions: the same mask, the same pairs."""
    pattern = load_text(
        f"pattern p on grid(y: {extents[0]}, x: {extents[1]}) heads h: 3 ="
        f" {{ q -> k, h : {condition} }}"
    )
    mask = cg.classify_grid(pattern, BoxTiling(tuple(sides[:2]), tuple(sides[2:])))
    assert not verify(mask)
    counted, dense = count_grid(mask), dense_counts(mask)
    assert counted == dense if mask.exact else counted.pairs_kept == dense.pairs_kept


def test_token_order() -> None:
    """Tokens that stand tile by tile keep their coordinates."""
    for text in (0, 6):
        params = {"canvas": [6, 9], "tile": [2, 3], "kernel": [[3, 3]], "text": text}
        _exact("sta", params, [2, 4], [4, 2])


COUPLED = (
    ("q >= k", True),
    ("abs(q - k) <= 20", True),
    ("q != k and q - k < 30", True),
    ("q == k + 3", True),
    ("abs(q.y - k.y) + abs(q.x - k.x) <= 3", True),
    ("max(abs(q.y - k.y), abs(q.x - k.x)) <= 2 and not (q.y == k.y and q.x == k.x)", True),
    ("q.y == k.x", True),
    ("q >= k and (if q.y < 4 then q.x <= k.x else q.x >= k.x)", True),
    ("q div 7 == k div 7", False),
    ("q mod 4 == k mod 4 and abs(q.y - k.y) <= 1", False),
)


@pytest.mark.parametrize(("condition", "exact"), COUPLED)
def test_conditions_between_axes(condition: str, exact: bool) -> None:
    """Flat positions and sums over axes come apart; what does not is widened and still right."""
    pattern = load_text(f"pattern p on grid(y: 9, x: 17) = {{ q -> k : {condition} }}")
    mask = cg.classify_grid(pattern, BoxTiling((4, 4), (2, 8)))
    assert mask.exact is exact
    assert not verify(mask)
    counted = count_grid(mask)
    assert counted.pairs_kept == pattern.mask(153, 153).sum()
    if exact:
        assert counted == dense_counts(mask)


def test_a_condition_between_axes_keeps_the_others() -> None:
    """What couples axes is masked; the tiles that other conditions exclude are not visited."""
    pattern = load_text(
        "pattern p on grid(y: 64, x: 64) ="
        " { q -> k : q mod 9 == k mod 9 and q.y div 8 == k.y div 8 }"
    )
    mask = cg.classify_grid(pattern, BoxTiling((8, 8), (8, 8)))
    assert mask.widened
    assert count_grid(mask).visited == 64 * 8


def test_a_large_neighbourhood() -> None:
    """30 x 48 x 80 tokens are 13 billion pairs; the tiles are a few products of intervals."""
    pattern = load_zoo("gna", {"shape": [30, 48, 80], "window": [18, 24, 24]})
    mask = cg.classify_grid(pattern, BoxTiling((4, 4, 8), (4, 4, 8)))
    counted = count_grid(mask)
    assert mask.exact
    assert len(mask.pieces) < 12
    assert counted.pairs_kept == 30 * 48 * 80 * 18 * 24 * 24
    assert counted.full + counted.partial + counted.empty == (8 * 12 * 10) ** 2
    strided = load_zoo(
        "gna", {"shape": [32, 48, 80], "window": [16, 24, 24], "stride": [16, 8, 8]}
    )
    aligned = count_grid(cg.classify_grid(strided, BoxTiling((4, 8, 8), (4, 8, 8))))
    assert aligned.partial == 0
    assert aligned.pairs_computed == aligned.pairs_kept


@pytest.mark.parametrize("frames", [18, 30])
def test_radial_video(frames: int) -> None:
    """Radial attention at the sizes of video models, symbolically: no widening, pairs counted."""
    pattern = load_zoo("radial_tokens", {"frames": frames, "s": 3840})
    mask = cg.classify_grid(pattern, BoxTiling((1, 128), (1, 128)))
    counted = count_grid(mask)
    assert mask.exact
    gaps = np.abs(np.arange(frames)[:, None] - np.arange(frames))
    reach = {d: 3840 if d <= 1 else max(128, int(4096 / 2 ** d.bit_length() / 5)) for d in
             range(frames)}  # fmt: skip
    pairs = {d: sum(min(3839, y + r) - max(0, y - r) + 1 for y in range(3840))
             for d, r in reach.items()}  # fmt: skip
    kept = sum(pairs[int(d)] for row in gaps for j, d in enumerate(row) if j)
    assert counted.pairs_kept == kept + frames * 3840 * 3840


AXIS = Axis(queries=21, keys=26, side_q=4, side_k=2, heads=2)


@pytest.mark.parametrize(
    "condition",
    ["abs(q - k) <= 5", "k mod 6 < 2", "h == 0 and k <= q or h == 1 and q div 4 == k div 4",
     "k == 2 * q or k < 2", "k < 0"],
)  # fmt: skip
def test_both_engines_agree(condition: str) -> None:
    """Sets and tables of an axis: the same tiles, and progressions that hold just these."""
    pattern = load_text(f"pattern p heads h: 2 = {{ q -> k, h : {condition} }}")
    by_table, by_set = AxisTables(AXIS), AxisSets(AXIS)
    tiles = by_table.tiles(by_table.pairs(pattern.predicate))
    pieces = by_set.split(by_set.tiles(by_set.pairs(pattern.predicate)))
    for progressions in ([p for p, _ in pieces], [p for p, _ in by_table.split(tiles)]):
        assert (_table_of(progressions) == tiles).all()
    hull = _table_of([by_table.hull(tiles)])
    assert (hull >= tiles).all()
    assert (_table_of([by_set.hull(by_set.tiles(by_set.pairs(pattern.predicate)))]) == hull).all()


def _table_of(progressions: list[Progression]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    from attnc.compiler.ir import expr as ex

    found = np.zeros((AXIS.heads or 1, AXIS.rows, AXIS.columns), dtype=bool)
    for h, qb in np.ndindex(found.shape[:2]):
        for one in progressions:
            base, count = (int(ex.evaluate(e, {"qb": qb, "h": h})) for e in (one.base, one.count))
            for i in range(max(count, 0)):
                column = base + one.period * (i // one.run) + i % one.run
                assert not found[h, qb, column], "a tile twice"
                found[h, qb, column] = True
    return found


def test_long_axes_go_by_sets() -> None:
    """An axis of many positions is never written out, and its masks are the same."""
    text = "pattern p on grid(y: 3, x: 40000) = { q -> k : q.y == k.y and abs(q.x - k.x) <= 100 }"
    mask = cg.classify_grid(load_text(text), BoxTiling((1, 64), (1, 64)))
    assert mask.exact
    assert count_grid(mask).pairs_kept == 3 * (40000 * 201 - 100 * 101)


def test_an_engine_that_gives_up_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets that refuse an axis leave it to tables, and the other way round."""
    from attnc.compiler import sets

    def refused(*_: object) -> object:
        raise sets.OverBudget("refused")

    for first, limit in ((AxisSets, 0), (AxisTables, 1 << 40)):
        monkeypatch.setattr(cg, "SHORT_PAIRS", limit)
        monkeypatch.setattr(first, "split", refused)
        cg._classify.cache_clear()
        _exact("swin", {"h": 9, "w": 11, "window": 4, "shift": 2}, [4, 4], [2, 8])
        monkeypatch.undo()


def test_refused_engines_widen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both give up, each row visits the hull of its tiles: more tiles, the same mask."""
    from attnc.compiler import sets

    def refused(*_: object) -> object:
        raise sets.OverBudget("refused")

    for engine in (AxisSets, AxisTables):
        monkeypatch.setattr(engine, "split", refused)
    cg._classify.cache_clear()
    pattern = load_zoo("swin", {"h": 9, "w": 11, "window": 4})
    mask = cg.classify_grid(pattern, BoxTiling((4, 4), (2, 8)))
    assert len(mask.widened) == 2
    assert not verify(mask)
    for engine in (AxisSets, AxisTables):
        monkeypatch.setattr(engine, "hull", refused)
    cg._classify.cache_clear()
    mask = cg.classify_grid(pattern, BoxTiling((4, 4), (2, 8)))
    assert len(mask.widened) == 3
    assert not verify(mask)
    cg._classify.cache_clear()


def test_the_api() -> None:
    """``Pattern.blocks`` takes boxes, as tuples or as text; the view is that of plain tiles."""
    swin = attnc.zoo.swin(h=12, w=10, window=4)
    blocks = swin.blocks(tile=((4, 4), (4, 2)))
    assert blocks.tile == (16, 8)
    assert blocks.full == 3 * 2 * 2 + 3 * 1
    assert blocks.exact
    assert (blocks.dense() == swin.mask()).all()
    assert swin.blocks(tile="4x4,4x2").counts == blocks.counts
    assert "4x4,4x2" in repr(blocks)


@pytest.mark.parametrize(
    ("pattern", "tile", "message"),
    [
        ("swin", ((4, 4), (4, 3)), "powers of two"),
        ("swin", ((4, 4),), "two boxes"),
        ("swin", "4x4,4xa", "two boxes"),
        ("swin", ((4, 4, 4), (4, 4)), "`swin` has 2 axes, and the box of tile 4x4x4,4x4 3"),
    ],
)
def test_boxes_that_do_not_fit(pattern: str, tile: Any, message: str) -> None:
    """A wrong box is refused with what was expected."""
    with pytest.raises(ValueError, match=message):
        attnc.zoo[pattern]().blocks(tile=tile)


def test_patterns_without_boxes() -> None:
    """No grid, open extents, or data: the reason is named."""
    with pytest.raises(ValueError, match="`causal` has no grid"):
        attnc.zoo.causal().blocks(64, tile=((4, 4), (4, 4)))
    open_grid = attnc.parse("pattern p on grid(y, x: 4) = { q -> k : q.x == k.x }")
    with pytest.raises(ValueError, match="known only at the call"):
        open_grid.blocks(64, tile=((4, 4), (4, 4)), extents={"y": 16})
    text = "pattern p(input doc: int[n]) on grid(y: 4, x: 4) = { q -> k : doc[q] == doc[k] }"
    with pytest.raises(ValueError, match="wait for data"):
        attnc.parse(text).blocks(tile=((4, 4), (4, 4)), inputs={"doc": [0] * 16})


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """``emit --tile`` with boxes prints them with their counts; only for grids, only as blocks."""
    swin = ["emit", "swin", "-D", "h=12", "-D", "w=10", "-D", "window=4", "--tile", "4x4,4x2"]
    assert invoke(swin) == 0
    text = capsys.readouterr().out
    assert "full    kb_0 in qb_0 .. qb_0 by kb_1 in " in text
    assert "# at n=120: " in text
    assert invoke(["emit", "axial_row", "--tile", "boxes"]) == 0
    assert "blocks tile 2x64,2x64" in capsys.readouterr().out
    for words, message in (
        (("causal", "--tile", "4x4,4x4"), "`causal` has no grid"),
        (("causal", "--tile", "boxes"), "`causal` has no grid"),
        (("swin", "--tile", "4x4,4x4", "--stage", "plan", "--target", "cpu"), "walks no boxes"),
        (("swin", "--tile", "4x4,4x4", "--shape", "n=5"), "3136 queries, not 5"),
        (("swin", "--tile", "4x5,4x4"), "sides are powers of two"),
    ):
        assert invoke(["emit", *words]) in (1, 2)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "params", "longest"),
    [
        ("gna", {"shape": [30, 48, 80], "window": [18, 24, 24]}, 8),
        ("axial_row", {}, 64),
        ("radial_tokens", {"frames": 6, "s": 256, "block": 16}, 128),
        ("sta", {"canvas": [12, 16], "tile": [4, 4], "kernel": [[3, 3]]}, 16),
    ],
)
def test_chosen_boxes(name: str, params: dict[str, Any], longest: int) -> None:
    """The boxes chosen hold the tokens asked for, and none of a plain tile's shape is better."""
    pattern = load_zoo(name, params)
    mask = choose(pattern, Tiling(128, 128))
    assert (mask.tiling.q, mask.tiling.k) == (128, 128)
    assert max(mask.tiling.query) <= longest
    rank = len(mask.tiling.query)
    row = (1,) * (rank - 1) + (128,)
    rows = count_grid(cg.classify_grid(pattern, BoxTiling(row, row)))
    assert count_grid(mask).visited <= rows.visited
