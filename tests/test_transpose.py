"""The inverse of a pattern, and the key-tile view of its block mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attnc.compiler.counts import count
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.plan import TARGETS, DataTiles, Target
from attnc.compiler.ir.transpose import transposed
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes.build_backward import build_backward
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.data_tiles import count as count_tested
from attnc.compiler.passes.data_tiles import tile_table
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.hull import candidates as candidates_of
from attnc.compiler.passes.hull import core
from attnc.compiler.passes.tiles import TileChoice, padded
from attnc.compiler.passes.tiles_backward import OF_KEYS, Pass, candidates, held
from attnc.dsl.diagnostics import CompileError
from attnc.runtime.lint import SHARED_LIMIT_BYTES
from tests.strategies import patterns
from tests.test_data_tiles import TILINGS, arrays, by_token, conditions, pattern_of
from tests.test_zoo import OPS, example

LENGTHS = st.integers(1, 150)
TILES = st.sampled_from([Tiling(16, 16), Tiling(32, 16), Tiling(16, 64)])


def turned(mask: NDArray[Any]) -> NDArray[Any]:
    """Exchange queries and keys. Shape: ``[heads, nq, nk] -> [heads, nk, nq]``."""
    return mask.transpose(0, 2, 1)


@settings(max_examples=30, deadline=None)
@given(text=patterns(), tiling=TILES, nq=LENGTHS, nk=LENGTHS)
def test_key_tiles_of_random_patterns(text: str, tiling: Tiling, nq: int, nk: int) -> None:
    """The block mask of the inverse is the dense mask turned, with the same tiles and pairs."""
    try:
        pattern = load_text(text)
    except CompileError:
        assume(False)
    inverse = pattern.transposed()
    assert inverse.transposed() == pattern
    kept = pattern.mask(nq, nk)
    assert (inverse.mask(nk, nq) == turned(kept)).all()
    own = cl.classify(pattern, tiling)
    of_keys = cl.classify(eliminate(pattern).transposed(), Tiling(tiling.k, tiling.q))
    assert (of_keys.dense(nk, nq) == turned(kept)).all()
    if own.exact and of_keys.exact:
        assert count(own, nq, nk) == count(of_keys, nk, nq)


@pytest.mark.parametrize("name", OPS)
def test_twice_is_once(name: str) -> None:
    """Every zoo pattern comes back from its inverse: spaces, inputs, scores and sinks too."""
    pattern, nq, nk, given_inputs = example(name)
    ir = pattern.ir
    inverse = ir.transposed()
    assert verify(inverse) == ()
    assert inverse.transposed() == ir
    assert (inverse.heads, inverse.lengths) == (ir.heads, ir.lengths[::-1])
    assert [i.name for i in inverse.inputs] == [i.name for i in ir.inputs]
    data = {name: np.asarray(value) for name, value in given_inputs.items()}
    assert (inverse.mask(nk, nq, data) == turned(ir.mask(nq, nk, data))).all()
    if ir.score is not None:
        assert (inverse.scores(nk, nq, data) == turned(ir.scores(nq, nk, data))).all()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["longformer", "bigbird", "s2_attention", "document", "swin"])
def test_backward_plans(name: str, dtype: Any) -> None:
    """All loops of a backward are sound, at the tiles of the table and at one that was asked for.

    Ranges, tables and loops of data are among them.
    """
    pattern, *_ = example(name)
    options: dict[str, Any] = {"head_dim": 64, "dtype": dtype, "cpu_tile": Tiling(64, 64)}
    for tile in (None, Tiling(32, 16)):
        plan = build_plan(pattern.ir, tile=tile, backward=True, **options)
        assert verify(plan) == ()
        assert plan.backward is not None
        if tile is not None:
            assert plan.backward.dq.tiling == tile
            assert plan.backward.dkdv.tiling == Tiling(tile.k, tile.q)
        assert replace(plan, backward=None) == build_plan(pattern.ir, tile=tile, **options)


@pytest.mark.parametrize("name", ["document", "block_mask", "bigbird", "document_prefix_lm"])
def test_tables_of_key_tiles(name: str) -> None:
    """Tables of data for the key tiles hold all kept pairs; full tiles keep every pair."""
    pattern, nq, nk, given_inputs = example(name)
    plan = build_plan(pattern.ir, head_dim=64, tile=Tiling(32, 16), backward=True)
    assert plan.backward is not None
    loop = plan.backward.dkdv
    assert loop.data is not None
    data = {name: np.asarray(value) for name, value in given_inputs.items()}
    inverse = loop.block_mask.pattern
    table = tile_table(loop.block_mask, loop.data, nk, nq, inverse.given(nk, nq, data))
    visited, full = by_token(table, loop.tiling, nk, nq)
    kept = turned(pattern.ir.mask(nq, nk, data))
    assert 0 < kept.sum() < kept.size
    assert (kept <= visited).all()
    assert (full <= kept).all()


@settings(max_examples=50, deadline=None)
@given(
    predicate=conditions(), nq=st.integers(1, 90), nk=st.integers(1, 90), tiling=TILINGS,
    seed=st.integers(0, 99),
)
def test_key_tiles_of_random_data(
    predicate: ex.BoolExpr, nq: int, nk: int, tiling: Tiling, seed: int
) -> None:
    """Tiles of the inverse that are tested pair by pair are those of the pattern, turned."""
    pattern, data = pattern_of(predicate), arrays(seed, nq, nk)
    counts = []
    for one, sides, lengths in (
        (pattern, tiling, (nq, nk)),
        (pattern.transposed(), Tiling(tiling.k, tiling.q), (nk, nq)),
    ):
        test = DataTiles(predicate=one.predicate, core=core(one.predicate), refine=True)
        counts.append(count_tested(candidates_of(one, sides), test, *lengths, data))
    own, of_keys = counts
    assert own.pairs_kept == pattern.mask(nq, nk, data).sum()
    assert own == of_keys


def test_boxes_of_keys() -> None:
    """Boxes of a grid are exchanged as well, and cover the pattern where both are alike."""
    for text in ("abs(q.y - k.y) <= 3 and k.x <= q.x", "abs(q.y - k.y) <= 3"):
        pattern = load_text(
            f"space g = grid(y: 11, x: 16)\npattern p on g = {{ q -> k : {text} }}\n"
        )
        tile = BoxTiling((4, 4), (2, 16))
        plan = build_plan(pattern, head_dim=64, tile=tile, backward=True)
        assert verify(plan) == ()
        assert plan.backward is not None
        dq, dkdv = (loop.boxes for loop in plan.backward.loops)
        assert dq == plan.forward.boxes
        assert dkdv is not None
        assert dkdv.tiling == BoxTiling(tile.key, tile.query)
        assert (dkdv.dense() == turned(pattern.mask(176, 176))).all()


def test_passes_of_their_own() -> None:
    """dV and dK may be made one after the other, each with the tile it was given."""
    forward = build_plan(load_zoo("causal"), head_dim=128).forward
    choices = tuple(TileChoice(q, k, 8, 2) for q, k in ((64, 32), (32, 64), (128, 16)))
    backward = build_backward(forward, choices=choices)
    assert backward.dk is not None
    assert [loop.tiling for loop in backward.loops] == [
        Tiling(64, 32), Tiling(64, 32), Tiling(16, 128),
    ]


@pytest.mark.parametrize("head_dim", [16, 64, 72, 96, 128, 160, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_tiles_of_every_head_dim(target: Target, head_dim: int) -> None:
    """Every kernel has tiles for every target, head dim and dtype, and they fit in memory.

    Two operands of rows stay, and two of the loop are loaded ``stages`` at a time.
    """
    for kernel in get_args(Pass):
        for dtype, item_bytes in (("bf16", 2), ("fp32", 4)):
            (*choices,) = candidates(kernel, target, head_dim, head_dim, dtype)
            last = choices[-1]
            sides = last.q, last.k
            rows, columns = sides[::-1] if kernel in OF_KEYS else sides
            tokens = rows + columns * last.stages
            shared = 2 * tokens * padded(head_dim) * item_bytes
            assert shared <= SHARED_LIMIT_BYTES[target]
            assert held(kernel, head_dim, head_dim)(last) <= 32 * last.warps * 200


def test_inputs_and_scores() -> None:
    """Computed inputs keep their values, scores and masks are turned, at two lengths."""
    pattern = load_text(
        "input doc: int[nk]\n"
        "input reach: int[2]\n"
        "input bias: real[nq]\n"
        "input zeros: int[nk + 1] = prefix_sum(doc == 0)\n"
        "pattern kept heads h: 2 =\n"
        "    { q -> k, h : zeros[k] <= q + reach[h] }\n"
        "  & blocks({ q -> k : k <= q and doc[k] == 1 }, 8, 4, density > 1 / 3)\n"
        "score far = { q -> k : bias[q] - k }\n"
        "attention p heads h: 2 = softmax(dot + far, over: kept)\n",
        pattern="p",
    )
    rng = np.random.default_rng(0)
    given_inputs = {
        "doc": rng.integers(0, 3, 33), "reach": np.array([2, -4]), "bias": rng.random(50),
    }
    kept = pattern.mask(50, 33, given_inputs)
    inverse = pattern.transposed()
    assert 0 < kept.sum() < kept.size
    assert (inverse.mask(33, 50, given_inputs) == turned(kept)).all()
    scores = pattern.scores(50, 33, given_inputs)
    assert (inverse.scores(33, 50, given_inputs) == turned(scores)).all()


def test_tile_names() -> None:
    """Bounds of tiles are exchanged like positions, and bound names never meet free ones."""
    bound = ex.minimum(ex.Var("qb"), ex.sub(ex.Var("NK"), ex.ONE))
    assert ex.show(transposed(bound)) == "min(kb, NQ - 1)"
    some = ex.Exists("k_2", ex.ZERO, ex.Var("nk"), ex.compare("==", ex.Var("q"), ex.Var("k_2")))
    assert ex.show(transposed(some)) == "(exists k_2 in 0..nq : k == k_2)"
