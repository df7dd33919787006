"""Gradients of learned inputs of a score, by kernels: run against float64, compiled for GPUs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from attnc.codegen import learned_sums
from attnc.codegen.host_backward import emit_backward, kernels
from attnc.codegen.learned import Way, learned
from attnc.codegen.triton_backward import emit_kernel
from attnc.codegen.triton_learned import LEARNED_HELPERS
from attnc.compiler.driver import load_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.plan import TARGETS, Plan, Target
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.aot import compile_kernel
from attnc.runtime.lint import lint
from tests.test_triton_backward import assert_within, draw, gradients, module_of, plan_of, random


def ways(plan: Plan) -> list[Way]:
    """Return how what a score learns is added up."""
    assert plan.backward is not None
    assert plan.backward.learned is not None
    return [one.way for one in learned(plan.backward.learned)]


def check(
    plan: Plan, tensors: dict[str, torch.Tensor], *, nq: int = 40, nk: int = 40, batch: int = 1,
    heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:  # fmt: skip
    """Hold the gradients of a pattern against float64; return those of its real inputs."""
    inputs = random(nq, nk, batch=batch, heads=heads, kv_heads=kv_heads, dtype=dtype)
    needs = (True,) * 3 + tuple(one.kind == "real" for one in plan.pattern.inputs)
    found = gradients(module_of(plan), inputs, 0.25, [*tensors.values()], [], [], needs=needs)
    own = [g for g in found[3] if g is not None]
    assert_within([*found[:3], *own], plan, inputs, **tensors)
    return own


T5 = "attention a(input table: real[4, 32]) = softmax(dot + t5_bias(4, table), over: causal)"
OF_HEAD = """
score bias(input rate: real[4]) heads h: 4 = { q -> k, h : -rate[h] * abs(q - k) }
attention a = softmax(dot + bias, over: { q -> k : abs(q - k) <= 20 })
"""
OF_QUERY = """
score bias(input weight: real[4, n]) heads h: 4 = { q -> k, h : weight[h][q] * (k mod 3) }
attention a = softmax(dot + bias, over: causal)
"""
OF_KEY = """
score bias(input weight: real[n]) = { q -> k : weight[k] }
attention a = softmax(dot + bias, over: { q -> k : k <= q and q - k < 20 })
"""
OF_PAIR = """
attention a(input distance: int[n, n], input table: real[4, 6]) =
    softmax(dot + graphormer_bias(4, distance, table), over: causal)
"""
CAPPED = """
score bias(input table: real[4, 9], input gate: real[4]) heads h: 4 =
    { q -> k, h : gate[h] * table[h][min(max(k - q + 4, 0), 8)] + table[h][0] }
attention a = softmax(softcap(dot + bias, 2), over: causal)
"""


def distances(n: int) -> torch.Tensor:
    """Return a distance of each pair, one of them beyond the table."""
    return torch.randint(0, 7, (n, n), generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[str, list[Way], dict[str, torch.Tensor]]] = {
    "t5": (T5, ["diagonal"], {"table": draw(4, 32)}),
    "of each head": (OF_HEAD, ["row"], {"rate": draw(4)}),
    "of each query": (OF_QUERY, ["row"], {"weight": draw(4, 40)}),
    "of each key": (OF_KEY, ["column"], {"weight": draw(40)}),
    "of each pair": (OF_PAIR, ["pair"], {"distance": distances(40), "table": draw(4, 6)}),
    "inside a softcap": (
        CAPPED, ["row", "diagonal", "row"], {"table": draw(4, 9), "gate": draw(4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_ways(name: str) -> None:
    """Each way to add up, over both batches, query heads sharing keys."""
    text, expected, tensors = CASES[name]
    plan = plan_of(text)
    assert sorted(ways(plan)) == sorted(expected)
    check(plan, tensors, batch=2)


@pytest.mark.parametrize("tile", [Tiling(16, 32), Tiling(64, 16), Tiling(32, 32)])
def test_tiles(tile: Tiling) -> None:
    """Diagonals of tiles of unequal sides, and lengths that do not fit."""
    check(plan_of(T5, tile), {"table": draw(4, 32)}, nq=70, nk=53)
    check(plan_of(T5, tile), {"table": draw(4, 32)}, nq=1, nk=19)


def test_half_precision() -> None:
    """fp16 in, a table in float32 and its gradient too."""
    (grad,) = check(plan_of(T5, dtype="fp16"), {"table": draw(4, 32)}, dtype=torch.float16)
    assert grad.dtype == torch.float32


def test_one_table_for_each_batch() -> None:
    """Tables with a batch dimension get gradients of their own, along diagonals and in rows."""
    check(plan_of(T5), {"table": draw(2, 4, 32)}, batch=2)
    check(plan_of(OF_HEAD), {"rate": draw(2, 4)}, batch=2)


def test_heads_of_keys() -> None:
    """Where a pattern speaks of heads of keys, query heads that share them add to one element."""
    plan = plan_of("""
kv_heads g: 2
score bias(input table: real[2, 9]) =
    { q -> k, g : table[g][min(max(k - q + 4, 0), 8)] }
attention a = softmax(dot + bias, over: { q -> k, g : k <= q + g })
""")
    assert plan.pattern.kv_heads
    check(plan, {"table": draw(2, 9)})


SWIN = """
attention a(input table: real[2, 7, 7]) =
    softmax(dot + swin_bias(8, 12, 4, 2, table), over: swin(8, 12, 4, 2))
"""


@pytest.mark.parametrize("tile", [Tiling(16, 16), BoxTiling((4, 4), (4, 8))])
def test_grids(tile: Tiling | BoxTiling) -> None:
    """Offsets on a grid, over tiles of the flat order and over boxes."""
    plan = build_plan(load_text(SWIN), head_dim=16, dtype="fp32", tile=tile, backward=True)
    assert ways(plan) == ["pair"]
    check(plan, {"table": draw(2, 7, 7)}, nq=96, nk=96, heads=2, kv_heads=1)


def test_found_at_the_call() -> None:
    """Tiles that the data of a call decides."""
    text = """
input doc: int[n]
attention a(input table: real[4, 32]) =
    softmax(dot + t5_bias(4, table), over: { q -> k : k <= q and doc[q] == doc[k] })
"""
    doc = torch.arange(40) // 13
    plan = plan_of(text)
    given = {one.name: {"doc": doc, "table": draw(4, 32)}[one.name] for one in plan.pattern.inputs}
    check(plan, given)


def test_a_sink_that_is_read_by_the_score_too() -> None:
    """What both bring is added up."""
    plan = plan_of(
        "score bias(input rate: real[4]) heads h: 4 = { q -> k, h : rate[h] * (k - q) }\n"
        "attention a(input rate: real[4]) heads h: 4 = "
        "softmax(dot + bias(rate), over: { q -> k : k + 3 < q and q - k < 20 }, sink: rate[h])"
    )
    check(plan, {"rate": draw(4)})


def test_a_sink_without_keys() -> None:
    """The log-sum-exp is the sink: its gradient is what arrives there."""
    module = module_of(plan_of(
        "attention a(input sink: real[4]) heads h: 4 = softmax(dot, over: causal, sink: sink[h])"
    ))  # fmt: skip
    q, k, v, grad_out, grad_lse = random(7, 0, heads=4)
    sink = draw(4)
    lse = sink[None, :, None].expand(1, 4, 7).contiguous()
    *found, (grad,) = module._gpu_backward(
        q, k, v, torch.zeros_like(grad_out), lse, grad_out, grad_lse, 0.25, [sink], [], [],
        needs=[True] * 4,
    )
    assert torch.allclose(grad, grad_lse.sum((0, 2)))
    assert not any(g.any() for g in found)


def test_the_same_in_every_bit() -> None:
    """However many copies of the sums there are, and so whoever adds first."""
    module, inputs, table = module_of(plan_of(T5)), random(70, 70, heads=4), draw(4, 32)
    results = []
    for copies in (1, 3, 32):
        module._LEARNED_COPIES = copies
        results.append(gradients(module, inputs, 0.25, [table], [], [], needs=(True,) * 4)[3][0])
    assert all(torch.equal(results[0], one) for one in results[1:])


def test_pasted_text() -> None:
    """The sums stand in written modules as they are here."""
    body = Path(learned_sums.__file__).read_text(encoding="utf-8").partition("# --- cut")[2]
    assert body.partition("\n")[2].strip() in emit_backward(plan_of(T5))


def test_only_where_needed() -> None:
    """Other gradients come alone, and that of a table too."""
    module, inputs, table = module_of(plan_of(T5)), random(20, 20, heads=4), draw(4, 32)
    *found, (grad,) = gradients(module, inputs, 0.25, [table], [], [], needs=(True,) * 3 + (False,))
    assert grad is None
    assert all(torch.isfinite(g).all() for g in found)
    *found, (grad,) = gradients(module, inputs, 0.25, [table], [], [], needs=(False,) * 3 + (True,))
    assert found == [None] * 3
    assert grad.any()


def test_numbers_far_from_one() -> None:
    """Gradients of any size; queries without keys add nothing whatever arrives at them."""
    text = T5.replace("causal", "{ q -> k : k + 5 <= q }")
    module, table = module_of(plan_of(text)), draw(4, 32)
    q, k, v, grad_out, grad_lse = random(40, 40, heads=4)

    def table_gradient(factor: float) -> torch.Tensor:
        inputs = (q, k, v, grad_out * factor, grad_lse * factor)
        found = gradients(module, inputs, 0.25, [table], [], [], needs=(False,) * 3 + (True,))
        grad: torch.Tensor = found[3][0]
        return grad

    plain = table_gradient(1.0)
    for exponent in (-100, 60):
        scaled = table_gradient(2.0**exponent)
        assert torch.allclose(scaled * 2.0**-exponent, plain, rtol=1e-6, atol=1e-7)
    grad_out[:, :, :5], grad_lse[:, :, :5] = 1e30, math.nan
    assert torch.equal(table_gradient(1.0), plain)
    grad_out[0, 0, 30, 0] = math.inf
    assert table_gradient(1.0).isnan().all()


COMPILED = {
    "diagonal": "attention a(input table: real[8, 32]) = "
    "softmax(dot + t5_bias(8, table), over: causal)",
    "row": OF_HEAD.replace("4", "8"),
    "column": OF_KEY,
    "pair": OF_PAIR.replace("4", "8"),
    "boxes": "attention a(input table: real[3, 13, 13]) = "
    "softmax(dot + swin_bias(56, 56, 7, 3, table), over: swin(56, 56, 7, 3))",
}


def assert_clean(name: str, target: Target, head_dim: int, *, measure: bool = False) -> None:
    """Compile the kernel of a pattern at the tile the plan picks; nothing is wrong with it."""
    plan = build_plan(load_text(COMPILED[name]), head_dim=head_dim, target=target, backward=True)
    assert plan.backward is not None
    loop = kernels(plan.backward)["learned"]
    helpers, text = emit_kernel(loop, "learned")
    if measure:  # the switch is compiled as off
        assert "if MEASURE:" in text
        text = text.replace("if MEASURE:", "if not MEASURE:")
    source = "\n\n".join([*helpers, LEARNED_HELPERS, text])
    found = compile_kernel(source, loop, target, "learned")
    assert lint(found, target) == ()
    assert found.wgmma >= 8 or target != "sm_90"


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", COMPILED)
def test_hopper(name: str, head_dim: int) -> None:
    """No spills, shared memory in the limit, asynchronous wgmma."""
    assert_clean(name, "sm_90", head_dim)


@pytest.mark.parametrize("target", TARGETS)
def test_the_pass_that_finds_the_largest_slope(target: Target) -> None:
    """It is compiled too, and has no more to hold than the other."""
    assert_clean("row", target, 64, measure=True)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("target", TARGETS)
def test_targets(name: str, target: Target, head_dim: int) -> None:
    """The same on every target."""
    assert_clean(name, target, head_dim)
