"""Score terms and sinks in kernels: against float64, and as text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.codegen.predicate import HOST_HELPERS, TOKEN_RANGES, HostDialect
from attnc.codegen.score import LOG2_E, emit_score, is_additive, times
from attnc.codegen.triton_forward import emit_kernel
from attnc.codegen.triton_predicate import TRITON_HELPERS
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Input, Pattern, Where
from attnc.compiler.ir.plan import ForwardPlan
from tests import kernels as kn
from tests import launches as ln
from tests.test_kernel_inputs import CAUSAL, NQ, H, K, Q, draw, random

DOT = sc.Dot()
AHEAD = sc.FromInt(ex.sub(K, Q))


def const(value: float) -> sc.RealConst:
    return sc.RealConst(value)


def call(function: sc.RealFunction, *args: sc.RealExpr) -> sc.RealExpr:
    return sc.RealCall(function, args)


def table(name: str, *index: ex.IntExpr) -> sc.RealExpr:
    return sc.RealRead(name, index)


def plus(*parts: sc.RealExpr) -> sc.RealExpr:
    return sc.RealAdd(parts)


def scored(plan: ForwardPlan, score: sc.RealExpr | None = None, **fields: Any) -> ForwardPlan:
    """Return the plan of the same pattern with a score and what it reads."""
    pattern = replace(plan.block_mask.pattern, score=score, **fields)
    return replace(plan, block_mask=replace(plan.block_mask, pattern=pattern))


def real(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SLOPE = call("exp2", sc.RealMul(const(-2.0), sc.FromInt(ex.add(H, ex.ONE))))
ALIBI = plus(DOT, sc.RealMul(SLOPE, AHEAD))
SOFTCAP = sc.RealMul(const(2.0), call("tanh", sc.RealDiv(DOT, const(2.0))))
FAR = ex.minimum(ex.absolute(ex.sub(K, Q)), ex.Const(11))
BUCKET = ex.add(ex.select(ex.compare(">", K, Q), ex.Const(12), ex.ZERO), FAR)
COUNT = ex.add(
    *(ex.select(ex.compare("==", ex.mod(ex.sub(Q, K), m), ex.ZERO), ex.ONE, ex.ZERO)
      for m in (2, 3, 5))
)  # fmt: skip
TABLE = Input(name="table", kind="real", dims=(ex.Const(4), ex.Const(24)))
STATIC: dict[str, tuple[sc.RealExpr, tuple[Input, ...], dict[str, Any]]] = {
    "alibi": (ALIBI, (), {}),
    "softcap": (SOFTCAP, (), {}),
    "capped bias": (
        sc.RealMul(const(3.0), call("tanh", sc.RealDiv(ALIBI, const(3.0)))), (), {},
    ),
    "t5 table": (plus(DOT, table("table", H, BUCKET)), (TABLE,), {"table": real(1, 4, 24)}),
    "table of each batch": (
        plus(DOT, table("table", H, BUCKET)), (TABLE,), {"table": real(2, 4, 24)},
    ),
    "log count": (plus(DOT, call("log", call("max", sc.FromInt(COUNT), const(1.0)))), (), {}),
    "by query and key": (
        plus(
            DOT, table("on_q", Q), table("on_k", K),
            sc.RealMul(table("on_q", Q), table("on_k", K)), sc.RealMul(DOT, table("on_q", Q)),
            sc.RealRead("shift"),
        ),
        (
            Input(name="on_q", kind="real", dims=(NQ,)),
            Input(name="on_k", kind="real", dims=(None,)),
            Input(name="shift", kind="real", dims=()),
        ),
        {"on_q": real(2, 45), "on_k": real(1, 40, seed=6), "shift": 0.75},
    ),
    "cases": (
        sc.RealSelect(
            ex.compare("<", ex.mod(ex.add(Q, K), 3), ex.ONE),
            sc.RealDiv(DOT, plus(const(1.5), sc.FromInt(H))),
            plus(sc.RealMul(DOT, const(-0.5)), call("min", call("abs", AHEAD), const(4.0))),
        ), (), {},
    ),
    "roots": (
        plus(
            DOT, call("sqrt", call("abs", AHEAD)), call("floor", sc.RealDiv(AHEAD, const(4.0))),
            call("f32", const(0.1)), call("exp", sc.RealDiv(AHEAD, const(9.0))),
            sc.RealDiv(const(1.0), plus(const(2.0), call("abs", AHEAD))),
        ), (), {},
    ),
    "excluded": (
        plus(DOT, sc.RealSelect(ex.compare("==", K, ex.ONE), const(-np.inf), const(0.0))), (), {},
    ),
    "no product": (sc.RealMul(const(0.1), AHEAD), (), {}),
    "one weight": (const(0.25), (), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", STATIC)
def test_numbers(name: str) -> None:
    """Scores on full and masked tiles, whatever they depend on, agree with float64."""
    score, inputs, values = STATIC[name]
    plan = scored(kn.causal(), score, heads=4, inputs=inputs)
    batch = max([len(v) for v in values.values() if isinstance(v, torch.Tensor)], default=1)
    ln.check(plan, *random(45, 40, batch=batch, heads=4, kv_heads=2), 0.25, values)


@pytest.mark.parametrize("name", ["alibi", "softcap"])
def test_half_precision(name: str) -> None:
    plan = scored(kn.causal(dtype="fp16"), STATIC[name][0], heads=4)
    ln.check(plan, *random(45, 45, heads=4, dtype=torch.float16), 0.25, {})


def test_negative_scale_is_the_callers() -> None:
    """The kernel takes positive scales; a tiny one leaves the bias alone."""
    plan = scored(kn.causal(), ALIBI, heads=4)
    ln.check(plan, *random(33, 33, heads=4), 1e-30, {})


def test_bias_by_distance_in_a_graph() -> None:
    """A table read at an element of another input, under a mask that reads a third."""
    pattern = Pattern(
        name="graph", heads=2,
        inputs=(
            Input(name="distance", kind="int", dims=(NQ, NQ)),
            Input(name="table", kind="real", dims=(ex.Const(2), None)),
            Input(name="doc", kind="int", dims=(NQ,)),
        ),
        body=Where(
            ex.compare("==", ex.Read("doc", (Q,)), ex.Read("doc", (K,)))
        ),
        score=plus(DOT, table("table", H, ex.Read("distance", (Q, K)))),
    )  # fmt: skip
    values = {"distance": draw(9, 1, 40, 40), "table": real(2, 2, 7), "doc": draw(3, 2, 40)}
    plan = ln.data_plan(pattern, Tiling(16, 16), heads=2)
    ln.check(plan, *random(40, 40, batch=2), 0.25, values)
    assert emit_kernel(plan).count("doc_at_k = tl.load") == 1


SINKS = {
    "number": (const(0.5), (), {}),
    "by head": (
        table("sink", H), (Input(name="sink", kind="real", dims=(ex.Const(4),)),),
        {"sink": torch.tensor([[0.5, -3.0, 20.0, -np.inf]])},
    ),
    "by query": (
        plus(table("sink", H), sc.RealDiv(sc.FromInt(Q), const(8.0))),
        (Input(name="sink", kind="real", dims=(ex.Const(4),)),), {"sink": real(2, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("score", [None, ALIBI])
@pytest.mark.parametrize("name", SINKS)
def test_sinks(name: str, score: sc.RealExpr | None) -> None:
    """A sink takes weight and counts in lse; a query with nothing else has out 0, lse the sink."""
    sink, inputs, values = SINKS[name]
    late = ex.and_(CAUSAL, ex.compare(">", K, ex.Const(19)))  # queries up to 19 see no key
    pattern = Pattern(
        name="late", heads=4, body=Where(late), score=score, sink=sink, inputs=inputs
    )
    plan = ln.data_plan(pattern, Tiling(16, 16), heads=4)
    q, k, v = random(45, 45, batch=2, heads=4, kv_heads=2)
    ln.check(plan, q, k, v, 0.25, values)
    if name == "number":
        out, lse = ln.launch(plan, q, k, v, 0.25, values)
        assert not out[:, :, :20].any()
        torch.testing.assert_close(lse[:, :, :20], torch.full((2, 4, 20), 0.5))


def test_a_sink_alone() -> None:
    """A pattern that keeps nothing has its sink all the same."""
    plan = scored(
        kn.plan_of("nothing", ex.FALSE, Tiling(16, 16), []), sink=const(-1.5), heads=None
    )
    out, lse = ln.launch(plan, *random(20, 20), 0.25, {})
    assert not out.any()
    torch.testing.assert_close(lse, torch.full_like(lse, -1.5))


def test_score_of_key_heads() -> None:
    """With masks of key heads the head of a score is a key head too."""
    body = ex.compare("<=", ex.sub(Q, ex.scale(9, H)), K)
    pattern = Pattern(name="groups", heads=2, kv_heads=True, body=Where(body), score=ALIBI,
                      sink=sc.FromInt(H))  # fmt: skip
    plan = ln.data_plan(pattern, Tiling(16, 16), heads=2)
    ln.check(plan, *random(37, 37, heads=6, kv_heads=2), 0.25, {})


def test_text() -> None:
    """What a reader of a kernel sees: factors folded, terms of a head in front of the loop."""
    text = emit_kernel(scored(kn.causal(), ALIBI, heads=4))
    before, loop = text.split("for it in range")
    assert f"term_0 = {LOG2_E} * tl.math.exp2(-2.0 * (h + 1).to(tl.float32))" in before
    assert "s = s * scale_log2 + (k_pos - q_pos).to(tl.float32) * term_0" in loop
    assert "p = tl.math.exp2(s - new_top[:, None])" in loop
    text = emit_kernel(scored(kn.causal(), SOFTCAP))
    before, loop = text.split("for it in range")
    assert "term_0 = scale_log2 * 0.34657359027997264" in before
    assert f"s = {2 * LOG2_E} * _tanh(s * term_0)" in loop
    plain = emit_kernel(kn.causal())
    assert emit_kernel(scored(kn.causal(), DOT)) == plain


def test_tanh() -> None:
    """Right to three units in the last place, from the smallest arguments to the largest."""
    module = kn.load(f"""\
import triton
import triton.language as tl


{TRITON_HELPERS["_tanh"]}

@triton.jit
def evaluate(Out, X):
    i = tl.arange(0, 1024)
    tl.store(Out + i, _tanh(tl.load(X + i)))
""")
    for largest in (1e-30, 1e-3, 0.7, 3.0, 40.0):
        x = torch.linspace(-largest, largest, 1024, device=kn.DEVICE)
        found = torch.empty_like(x)
        module.evaluate[(1,)](found, x)
        want = torch.tanh(x.double())
        assert ((found.double() - want).abs() <= 3 * 2**-23 * want.abs()).all()


def test_additive() -> None:
    """Only the product itself, once, plus other terms."""
    assert is_additive(DOT)
    assert is_additive(ALIBI)
    assert is_additive(plus(const(1.0), DOT))
    for score in (SOFTCAP, plus(DOT, DOT), plus(DOT, SOFTCAP), const(0.0),
                  sc.RealMul(DOT, const(2.0))):  # fmt: skip
        assert not is_additive(score)


NUMBERS = st.sampled_from([-2.0, -0.5, 0.25, 1.0, 1.5, 3.0])
SCORES = st.recursive(
    st.one_of(
        st.just(DOT), NUMBERS.map(const), st.sampled_from([Q, K, H, ex.sub(Q, K)]).map(sc.FromInt),
        st.sampled_from([table("row", K), table("row", ex.sub(Q, K)), sc.RealRead("phase")]),
    ),
    lambda part: st.one_of(
        st.builds(sc.RealAdd, st.lists(part, min_size=2, max_size=3).map(tuple)),
        st.builds(sc.RealMul, part, part),
        st.builds(sc.RealDiv, part, part),
        st.builds(
            call, st.sampled_from(["exp", "log", "sqrt", "tanh", "abs", "floor", "f32"]), part
        ),
        st.builds(call, st.sampled_from(["min", "max"]), part, part),
        st.builds(sc.RealSelect, st.just(CAUSAL), part, part),
    ),
    max_leaves=6,
)  # fmt: skip
PLACE: dict[str, Any] = {
    "q": np.arange(9)[:, None], "k": np.arange(7)[None, :], "h": 2, "nq": 9, "nk": 7,
}  # fmt: skip
ROW = np.linspace(-1, 1, 5)
PRODUCT = np.random.default_rng(3).standard_normal((9, 7))


@settings(max_examples=200, deadline=None)
@given(score=SCORES, factor=NUMBERS)
def test_factors_fold(score: sc.RealExpr, factor: float) -> None:
    """An expression times a number, powers and logs of base two, has that value."""
    inputs = {"row": ROW, "phase": 1.25}
    with np.errstate(all="ignore"):
        want = np.asarray(factor * sc.evaluate(score, PLACE, inputs, PRODUCT))
        found = np.asarray(sc.evaluate(times(score, factor), PLACE, inputs, PRODUCT))
    assume(np.isfinite(want).all() and (np.abs(want) < 1e6).all())
    assume("floor" not in sc.show(score) and "f32" not in sc.show(score))
    found, want = np.broadcast_arrays(found, want)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(score=SCORES)
def test_torch_text(score: sc.RealExpr) -> None:
    """The torch function of a score gives the same in float64, a tensor whatever it holds."""
    known: dict[str, Any] = {"torch": torch}
    exec(HOST_HELPERS, known)
    exec(emit_score(score, HostDialect({n: n for n in PLACE}, TOKEN_RANGES)), known)
    place = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in PLACE.items()}
    data = {"row": torch.from_numpy(ROW)[None], "phase": 1.25}
    found = known["_score"](torch.from_numpy(PRODUCT), b=0, data=data, **place)
    want = np.asarray(sc.evaluate(score, PLACE, {"row": ROW, "phase": 1.25}, PRODUCT))
    assert found.dtype == torch.float64
    assume(np.isfinite(want).all())
    np.testing.assert_allclose(found.numpy(), np.broadcast_to(want, found.shape), rtol=1e-9)
