"""Separable score terms: what is folded, why not, and the same numbers as pair by pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Input, Pattern
from attnc.compiler.ir.plan import BiasFold
from attnc.compiler.passes.bias_fold import FREE, fold_bias, pair_terms, read_bias
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.aot import compile_plan
from attnc.runtime.lint import lint
from tests import kernels as kn
from tests import launches as ln
from tests.test_kernel_inputs import NQ, H, K, Q, random
from tests.test_scores import DOT, const, plus, real, scored, table

Q0 = ex.Var("q0")
AHEAD = sc.FromInt(ex.sub(K, Q))
APART = sc.FromInt(ex.absolute(ex.sub(Q, K)))
ON_Q = Input(name="on_q", kind="real", dims=(NQ,))
ON_K = Input(name="on_k", kind="real", dims=(None,))


def pattern_of(text: str) -> Pattern:
    return attnc.parse(text).ir


def folded(score: str, keep: str = "k <= q", dtype: str = "bf16", head: str = "") -> object:
    text = f"{head}\nscore s heads h: 4 = {{ q -> k, h : {score} }}\n"
    pattern = pattern_of(f"{text}attention p = softmax(dot + s, over: {{ q -> k : {keep} }})")
    return fold_bias(pattern, 128, dtype, "auto")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("score", "keep", "loop", "row"),
    [
        ("0.5 * (k - q)", "k <= q", "(real(k - q0) / 2.0)", "(real(-q + q0) / 2.0)"),
        ("-0.5 * abs(q - k)", "k <= q", "(real(-q0 + k) / 2.0)", None),
        ("-0.5 * abs(q - k)", "k >= q", "(real(q0 - k) / 2.0)", None),
        ("h * (k - q) / 8", "q - k < 9 and k <= q", "((real(h) * real(k - q0)) / 8.0)", None),
        ("0.25 * (k - 2 * q + 7)", "k <= q", "(real(k - 2 * q0 + 7) / 4.0)", None),
        ("log(q + 1) + k", "k <= q", "real(k)", "log(real(q + 1))"),
    ],
)
def test_what_is_folded(score: str, keep: str, loop: str, row: str | None) -> None:
    """Linear terms are taken at the middle query; what a query adds to all keys joins its lse."""
    found = folded(score, keep)
    assert isinstance(found, BiasFold)
    assert sc.show(found.score) == f"(dot + {loop})"
    assert row is None or sc.show(found.of_row) == row
    assert pair_terms(found.score) == 0


@pytest.mark.parametrize(
    ("score", "keep"),
    [
        ("-0.5 * abs(q - k)", "abs(q - k) < 8"),  # the sign is open
        ("min(q - k, 9) * 0.5", "k <= q"),
        ("0.001 * (q - k) * (q - k)", "k <= q"),
        ("k * 0.5", "k <= q"),  # nothing of the query
        ("400 * (k - q)", "k <= q"),  # too steep
    ],
)
def test_what_is_not(score: str, keep: str) -> None:
    """Terms of pairs stay, and so do those that would be rounded."""
    assert folded(score, keep) is None


def test_steepness_is_bounded_by_type() -> None:
    """Half a tile moves scores by 32: nothing beside the rounding of a half type, much in fp32."""
    assert folded("0.5 * (k - q)", dtype="fp16") is not None
    assert folded("0.5 * (k - q)", dtype="fp32") is None
    assert folded("0.03125 * (k - q)", dtype="fp32") is not None
    assert FREE["fp32"] < 32 < FREE["fp16"]


def test_slopes_of_the_call_are_added() -> None:
    """Nothing bounds them."""
    assert folded("slope[h] * (k - q)", head="input slope: real[4]") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pattern p = { q -> k : k <= q }", "it has no score"),
        ("attention p = softmax(dot + t5_bias(4), over: causal)", "no term is separable"),
        ("attention p = softmax(softcap(dot + alibi_bias(4), 30), over: causal)", "not added"),
    ],
)
def test_asked_in_vain(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_plan(pattern_of(text), head_dim=64, bias="fold")


def test_choices() -> None:
    """The plan folds where that leaves fewer operations, says so, and can be told not to."""
    alibi = attnc.zoo.alibi(heads=8).ir
    plan = build_plan(alibi, head_dim=64)
    assert plan.forward.fold is not None
    assert any("once a row" in note for note in plan.notes)
    assert build_plan(alibi, head_dim=64, bias="add").forward.fold is None
    assert pair_terms(alibi.score) == 3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bias must be 'auto', 'add' or 'fold'"):
        read_bias("fast")
    with pytest.raises(ValueError, match="bias must be"):
        attnc.compile(attnc.zoo.alibi(heads=8), bias="fast")


def test_cost_lists_the_other_way() -> None:
    """The simulator knows what is added for each pair."""
    alibi = attnc.zoo.alibi(heads=8)
    chosen, added = (alibi.cost(n=8192, device="h200", bias=bias) for bias in ("auto", "add"))
    assert "biases folded" in chosen.kernels[0].plan
    assert "biases folded" not in added.kernels[0].plan
    assert chosen.time_us < added.time_us


def check(score: sc.RealExpr, values: dict[str, object], dtype: str, side: int = 45) -> None:
    """Compare kernels that fold and that add with float64, by the error rule."""
    inputs = tuple(one for one in (ON_Q, ON_K) if one.name in values)
    plan = scored(kn.causal(dtype=dtype), score, heads=4, inputs=inputs)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    given_ = random(side, side, heads=4, kv_heads=2, dtype=kind)
    for bias in ("add", "fold"):
        fold = fold_bias(plan.block_mask.pattern, 16, dtype, bias)  # type: ignore[arg-type]
        assert (fold is None) is (bias == "add")
        ln.check(replace(plan, fold=fold), *given_, 0.25, values)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_far_apart(dtype: str) -> None:
    """Positions a million apart are subtracted as integers."""
    far = sc.FromInt(ex.scale(20000, ex.sub(K, Q)))
    check(plus(DOT, sc.RealMul(const(1e-5), far)), {}, dtype)
    shifted = sc.FromInt(ex.add(ex.sub(K, Q), ex.Const(-1_000_000)))
    check(plus(DOT, sc.RealMul(const(2.0**-10), shifted)), {}, dtype)


def test_a_query_that_adds_minus_infinity() -> None:
    """It has no key: out 0, lse -inf."""
    on_q = real(1, 45)
    on_q[0, 7] = -np.inf
    check(plus(DOT, table("on_q", Q)), {"on_q": on_q}, "fp32")


def slopes(by_head: bool, size: float) -> sc.RealExpr:
    if not by_head:
        return const(size)
    return sc.RealDiv(const(size), sc.FromInt(ex.add(H, ex.ONE)))


linear = st.builds(
    lambda a, b, c: sc.FromInt(ex.add(ex.scale(a, Q), ex.scale(b, K), ex.Const(c))),
    st.sampled_from([-2, -1, 1]), st.integers(-2, 2), st.integers(-50, 50),
)  # fmt: skip
terms = st.one_of(
    st.builds(
        lambda by_head, size, part: sc.RealMul(slopes(by_head, size), part),
        st.booleans(), st.floats(-0.1, 0.1), st.one_of(linear, st.sampled_from([AHEAD, APART])),
    ),
    st.sampled_from([
        table("on_q", Q), table("on_k", K), sc.RealMul(table("on_q", Q), table("on_k", K)),
        sc.RealMul(const(0.05), sc.RealCall("min", (APART, const(6.0)))),
    ]),
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.lists(terms, min_size=1, max_size=4), st.sampled_from(["fp32", "fp16"]))
def test_random_separable_scores(parts, dtype):
    """Forced to fold or to add, a kernel keeps the error rule."""
    values = {"on_q": real(1, 45), "on_k": real(1, 45, seed=6)}
    first = sc.RealMul(const(0.0625), AHEAD)
    check(plus(DOT, first, *parts), values, dtype)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_clean(target, head_dim):
    """No spills, shared memory within the limit, no serialised wgmma."""
    plan = build_plan(attnc.zoo.alibi(heads=8).ir, head_dim=head_dim, target=target)
    assert plan.forward.fold is not None
    assert lint(compile_plan(plan), target) == ()


def test_tile_of_the_plan() -> None:
    """The middle query is that of the tile that was asked for."""
    plan = build_plan(attnc.zoo.alibi(heads=2).ir, head_dim=16, tile=Tiling(32, 16))
    assert plan.forward.fold is not None
    assert sc.free_vars(plan.forward.fold.score) == {"k", "q0", "h"}
