"""The backward kernels, run: gradients against float64, by the definition of attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attnc.codegen.data import emit_tiles, needs_table
from attnc.codegen.host import emit_host
from attnc.codegen.host_backward import emit_backward
from attnc.codegen.inputs import emit_inputs
from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.slopes import emit_sink_slopes
from attnc.codegen.tile_test import host_dialect
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.plan import Plan
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests import kernels as kn
from tests.test_triton_forward import ZOO

TILE = Tiling(16, 16)
WINDOW = "pattern window = { q -> k : k <= q and q - k < 20 }"


def plan_of(text: str, tile: Tiling | None = TILE, **options: Any) -> Plan:
    """Plan a text, backward too."""
    settings = {"head_dim": 16, "dtype": "fp32", **options}
    return build_plan(load_text(text), tile=tile, backward=True, **settings)


def module_of(plan: Plan) -> Any:
    """Load what a written module holds of both passes on a GPU."""
    head = "from __future__ import annotations\n\nimport triton\nimport triton.language as tl\n"
    tiles = emit_tiles(plan.cpu) if needs_table(plan) else ""
    dialect = host_dialect({i.name: i.kind for i in plan.pattern.inputs}, plan.pattern.heads)
    sink = plan.pattern.sink
    sinks = "" if sink is None else emit_sink_slopes(sink, dialect, kv_heads=False)
    return kn.load("\n\n".join([
        head, 'NAME = "pattern"', HOST_HELPERS, emit_inputs(plan.pattern), tiles,
        emit_host(plan.forward), emit_kernel(plan.forward), sinks, emit_backward(plan),
    ]))  # fmt: skip


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Return random numbers, the same in every run."""
    rng = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=rng).to(kn.DEVICE, dtype)


def random(
    nq: int, nk: int, *, batch: int = 1, heads: int = 2, kv_heads: int = 1, d: int = 16,
    dv: int = 16, dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Return q, k, v and gradients of out and lse."""
    return (
        draw(batch, heads, nq, d, dtype=dtype), draw(batch, kv_heads, nk, d, dtype=dtype, seed=1),
        draw(batch, kv_heads, nk, dv, dtype=dtype, seed=2),
        draw(batch, heads, nq, dv, dtype=dtype, seed=3), draw(batch, heads, nq, seed=4),
    )  # fmt: skip


def gradients(
    module: Any, inputs: tuple[torch.Tensor, ...], scale: float, *extra: Any,
    needs: tuple[bool, ...] = (True,) * 3, with_lse: bool = True,
) -> Any:
    """Run both passes of a module."""
    kn.skip_without_interpreter()
    q, k, v, grad_out, grad_lse = inputs
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], device=q.device)
    module._gpu_forward(q, k, v, scale, out, lse, *extra)
    given = grad_lse if with_lse else None
    return module._gpu_backward(
        q, k, v, out, lse, grad_out, given, scale, *extra, needs=list(needs)
    )


def assert_within(
    found: Any, plan: Plan, inputs: tuple[torch.Tensor, ...], scale: float = 0.25,
    **given: torch.Tensor,
) -> None:
    """Hold gradients of q, k, v and what is learned against float64."""
    q, k, v, grad_out, *grad_lse = inputs
    assert_gradients_within(found, Backward(
        pattern=plan.pattern, q=q, k=k, v=v, grad_out=grad_out, scale=scale, inputs=given,
        grad_lse=grad_lse[0] if grad_lse else None,
    ))  # fmt: skip


def check(plan: Plan, inputs: tuple[torch.Tensor, ...], scale: float = 0.25) -> None:
    """Hold the gradients of a pattern without inputs against float64."""
    assert_within(gradients(module_of(plan), inputs, scale)[:3], plan, inputs, scale)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    """Masks of plain sequences, an odd length, one head of keys for all."""
    plan = build_plan(
        load_zoo(name, ZOO[name]), head_dim=16, dtype="fp32", tile=TILE, backward=True
    )
    heads = plan.pattern.heads or 2
    kv_heads = heads if plan.pattern.kv_heads else 1
    check(plan, random(53, 53, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("lengths", [(1, 1), (33, 21), (17, 50), (16, 32)])
def test_lengths(lengths: tuple[int, int]) -> None:
    """More queries than keys and fewer, tiles that fit and that do not."""
    check(plan_of(WINDOW), random(*lengths))
    check(plan_of("pattern all = { q -> k : k < 12 }"), random(*lengths))


@pytest.mark.parametrize("form", ["ranges", "table"])
@pytest.mark.parametrize("order", ["forward", "reversed", "sorted"])
def test_forms(form: Any, order: Any) -> None:
    """Loops and tables, rows in any order, masks of each head too."""
    for text, heads in (
        (WINDOW, None), ("heads h: 4\npattern a = { q -> k, h : abs(q - k) <= 9 * h }", 4)
    ):
        plan = plan_of(text)
        assert plan.backward is not None
        loops = {
            name: replace(getattr(plan.backward, name), form=form, row_order=order)
            for name in ("dq", "dkdv")
        }
        plan = replace(plan, backward=replace(plan.backward, **loops))
        check(plan, random(40, 40, batch=2, heads=heads or 2, kv_heads=2))


@pytest.mark.parametrize("tile", [Tiling(16, 32), Tiling(32, 16), Tiling(64, 16)])
def test_tiles(tile: Tiling) -> None:
    """Tiles of unequal sides."""
    check(plan_of(WINDOW, tile), random(70, 70))


@pytest.mark.parametrize(("d", "dv"), [(16, 16), (24, 40), (72, 72), (80, 80), (64, 16), (16, 32)])
def test_head_dims(d: int, dv: int) -> None:
    """Head dims that are no power of two, and values wider or narrower than keys."""
    check(plan_of(WINDOW, head_dim=d, value_dim=dv), random(35, 35, d=d, dv=dv), d**-0.5)


def test_half_precision() -> None:
    """fp16 in and out, sums in fp32."""
    plan = plan_of(WINDOW, head_dim=32, dtype="fp16")
    check(plan, random(60, 60, d=32, dv=32, dtype=torch.float16), 32**-0.5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (6, 1)])
def test_grouped_heads(heads: int, kv_heads: int) -> None:
    """Query heads that share keys add to the same gradients."""
    check(plan_of(WINDOW), random(20, 20, batch=2, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0, 30.0])
def test_scale(scale: float) -> None:
    """Any finite scale, negative and zero too."""
    check(plan_of(WINDOW), random(30, 30), scale)


def test_empty_rows() -> None:
    """Queries without keys get gradient 0, and give none, whatever arrives at them."""
    plan = plan_of("pattern some = { q -> k : q > 4 and k < 2 }")
    q, k, v, grad_out, grad_lse = random(40, 40)
    grad_out[:, :, :5], grad_lse[:, :, :5] = 1e30, torch.nan
    dq, dk, dv = gradients(module_of(plan), (q, k, v, grad_out, grad_lse), 0.25)[:3]
    assert not dq[:, :, :5].any()
    assert not dk[:, :, 2:].any()
    assert not dv[:, :, 2:].any()
    grad_out[:, :, :5], grad_lse[:, :, :5] = 0, 0
    assert_within((dq, dk, dv), plan, (q, k, v, grad_out, grad_lse))
    nothing = plan_of("pattern nothing = { q -> k : q < 0 }")
    for gradient in gradients(module_of(nothing), random(20, 20), 0.25)[:3]:
        assert not gradient.any()


def test_no_tokens() -> None:
    """Empty batch, no queries, no keys: gradients are zeros, and nothing is launched."""
    module = module_of(plan_of(WINDOW))
    for batch, nq, nk in ((0, 4, 4), (1, 0, 4), (1, 4, 0)):
        inputs = random(nq, nk, batch=batch)
        for gradient, x in zip(gradients(module, inputs, 0.25)[:3], inputs, strict=False):
            assert gradient.shape == x.shape
            assert not gradient.any()


def test_strides() -> None:
    """Views of other layouts, gradients that are one number for all, odd offsets."""
    plan = plan_of(WINDOW)
    packed = draw(2, 40, 3, 2, 16)
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    one = draw(1).expand(2, 2, 40, 16)[..., :1].repeat(1, 1, 1, 16)
    check(plan, (q, k, v, one[:, :, :1].expand(2, 2, 40, 16), draw(1).expand(2, 2, 40)))
    wide = draw(1, 2, 40, 19)
    views = wide[..., 1:17], wide[..., 2:18], wide[..., 3:19], wide[..., :16]
    check(plan, (*views, draw(40, 2, 1).permute(2, 1, 0)))


def test_what_is_needed() -> None:
    """Only gradients that are wanted come back; without a gradient of the log-sum-exp too."""
    plan = plan_of(WINDOW)
    module, inputs = module_of(plan), random(30, 30)
    whole = gradients(module, inputs, 0.25, with_lse=False)
    assert_within(whole[:3], plan, inputs[:4])
    for place in range(3):
        needs = tuple(i == place for i in range(3))
        found = gradients(module, inputs, 0.25, needs=needs, with_lse=False)
        assert [x is not None for x in found[:3]] == list(needs)
        assert torch.equal(found[place], whole[place])


def test_two_passes() -> None:
    """dV and dK in passes of their own are those of one pass."""
    plan = plan_of(WINDOW)
    assert plan.backward is not None
    check(replace(plan, backward=replace(plan.backward, dk=plan.backward.dkdv)), random(50, 40))


DOCUMENTS = "input doc: int[n]\npattern p = { q -> k : k <= q and doc[q] == doc[k] }"


@pytest.mark.parametrize("batches", [1, 2])
def test_documents(batches: int) -> None:
    """Tiles found at the call, for queries and for keys: documents, shared by the batch or not."""
    plan = plan_of(DOCUMENTS)
    doc = torch.randint(0, 4, (batches, 45), generator=torch.Generator().manual_seed(1))
    doc = doc.sort(1).values.to(kn.DEVICE)
    inputs = random(45, 45, batch=2)
    found = gradients(module_of(plan), inputs, 0.25, [doc], [], [], needs=(True,) * 3 + (False,))
    assert_within(found[:3], plan, inputs, doc=doc)


def test_softcap() -> None:
    """The chain rule through a score that is no sum."""
    plan = plan_of(
        "attention a = softmax(softcap(dot, 2), over: { q -> k : k <= q and q - k < 20 })"
    )
    check(plan, random(40, 40), 1.0)


def test_alibi() -> None:
    """A bias of each head moves the weights and nothing else."""
    plan = plan_of("attention a = softmax(dot + alibi_bias(4), over: causal)")
    check(plan, random(40, 40, heads=4, kv_heads=2))


def test_sinks() -> None:
    """A learned logit beside the keys gets its gradient; rows that see nothing else too."""
    plan = plan_of(
        "attention a(input sink: real[4]) heads h: 4 = "
        "softmax(dot, over: { q -> k : k + 3 < q and q - k < 20 }, sink: sink[h])"
    )
    sink = draw(4)
    inputs = random(40, 40, batch=2, heads=4, kv_heads=2)
    found = gradients(module_of(plan), inputs, 0.25, [sink], [], [], needs=(True,) * 4)
    assert_within([*found[:3], *found[3]], plan, inputs, sink=sink)
