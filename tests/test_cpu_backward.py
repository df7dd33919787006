"""The CPU executor's backward against float64, at odd lengths, for every kind of plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.codegen import cpu_windows
from attnc.compiler.driver import load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.plan import CpuPlan
from attnc.compiler.passes.classify import classify
from attnc.compiler.passes.strips import strips
from attnc.dsl.diagnostics import CompileError
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.strategies import patterns
from tests.test_cpu_executor import LENGTHS, NAMED, TILE, inputs, plan_of, written

ALL = (True, True, True)


def backward(
    plan: CpuPlan, q: Any, k: Any, v: Any, grad_out: Any, grad_lse: Any = None,
    needs: tuple[bool, ...] = ALL,
) -> Any:
    module = written(plan)
    out, lse = module._cpu_forward(q, k, v, 0.3)
    return module._cpu_backward(q, k, v, out, lse, grad_out, grad_lse, 0.3, needs=needs)


def assert_within(
    found: Any, plan: CpuPlan, q: Any, k: Any, v: Any, grad_out: Any, grad_lse: Any = None
) -> None:
    assert_gradients_within(found, Backward(
        pattern=plan.block_mask.pattern, q=q, k=k, v=v, grad_out=grad_out, grad_lse=grad_lse,
        scale=0.3,
    ))  # fmt: skip


def check(plan: CpuPlan, nq: int, nk: int, *, with_lse: bool = False, **shape: Any) -> None:
    q, k, v, _ = inputs(plan, nq, nk, **shape)
    grad_out = torch.randn(*q.shape[:3], v.shape[3]).to(q.dtype)
    grad_lse = torch.randn(q.shape[:3]) if with_lse else None
    *found, rest = backward(plan, q, k, v, grad_out, grad_lse)
    assert rest == []
    assert all(x.dtype == q.dtype and x.is_contiguous() for x in found)
    assert_within(found, plan, q, k, v, grad_out, grad_lse)


@pytest.mark.parametrize("name", NAMED)
def test_named_patterns(name: str) -> None:
    """At lengths below, at and above the tile, q and k lengths different, heads grouped."""
    for nq, nk in LENGTHS:
        check(plan_of(NAMED[name]), nq, nk)


@pytest.mark.parametrize("name", ["window", "sink_window", "holes", "head_stride", "fixed"])
def test_gradient_of_lse(name: str) -> None:
    """Also with value dims narrower and wider than the head dim, and beside rows without keys."""
    for value_dim in (16, 8, 40):
        check(plan_of(NAMED[name]), 150, 131, with_lse=True, value_dim=value_dim)


@settings(max_examples=25, deadline=None)
@given(
    text=patterns(), nq=st.integers(1, 150), nk=st.integers(1, 150),
    tiling=st.sampled_from([Tiling(32, 32), Tiling(16, 16), Tiling(32, 16), Tiling(16, 64)]),
)
def test_random_patterns(text: str, nq: int, nk: int, tiling: Tiling) -> None:
    try:
        plan = plan_of(text, tiling)
    except CompileError:
        assume(False)
    check(plan, nq, nk, dtype=torch.float64, with_lse=nq % 2 == 0, kv=1)


@pytest.mark.parametrize("name", ["longformer", "streaming_llm", "block_local", "s2_attention"])
def test_zoo(name: str) -> None:
    """Patterns of the zoo with their own parameters, long enough to fold, stack and gather."""
    pattern = load_zoo(name)
    plan = CpuPlan(block_mask=classify(pattern, TILE), strips=strips(pattern, TILE))
    for nq, nk in ((3, 3), (1100, 1100)):
        check(plan, nq, nk, batch=1)


@pytest.mark.parametrize("name", ["causal", "fixed", "strided"])
def test_long_rows(name: str) -> None:
    """Stacked rows, and keys gathered by residue class."""
    check(plan_of(NAMED[name]), 2100, 2100, heads=2, kv=1, batch=1)


@pytest.mark.parametrize("text", [
    "pattern p = { q -> k : 0 <= q - k < 256 }",
    "pattern p = { q -> k : k < 200 }",
    "pattern p = { q -> k : abs(q div 64 - k div 64) <= 6 and abs(q mod 64 - k mod 64) <= 6 }",
])  # fmt: skip
def test_spans_with_nearly_the_same_keys_stack(text: str) -> None:
    """Those that are left over run as they are, and no span is lost."""
    plan = plan_of(text)
    module = written(plan)
    seen = []
    for nq, nk in ((1000, 1000), (1063, 1090)):
        check(plan, nq, nk, with_lse=True, batch=1, heads=2, kv=1)
        batches = module._schedule(module._CPU_TILES, nq, nk).batches
        seen += [call for batch in batches for call in batch.calls]
    parts = [part for call in seen for part, _ in module._taller(call)]
    assert any(part.stack > 1 for part in parts)
    assert len(parts) > len(seen)  # spans left over
    assert sum(p.spans * p.stack for p in parts) == sum(c.spans * c.stack for c in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["all", "window", "sink_window", "fixed", "head_stride"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    check(plan_of(NAMED[name]), 333, 333, dtype=dtype, dim=64, value_dim=64)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_shared_key_heads(heads: int, kv: int) -> None:
    """The gradients of a key's head are sums over the heads of its group."""
    for batch in (1, 3):
        check(plan_of(NAMED["sink_window"]), 150, 150, heads=heads, kv=kv, batch=batch)
        if heads == 4:
            check(plan_of(NAMED["head_stride"]), 150, 150, kv=kv, batch=batch)


def test_strides() -> None:
    """Views of [B, N, H, D], slices, expanded batches and heads, an expanded gradient."""
    plan = plan_of(NAMED["sink_window"])
    q, k, v, _ = inputs(plan, 150, 150, kv=4)
    grad_out = torch.randn(2, 4, 150, 16)
    forms = [
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, grad_out)],
        [torch.cat([x, x], -1)[..., :16] for x in (q, k, v, grad_out)],
        [x[:1].expand(3, -1, -1, -1) for x in (q, k, v, grad_out)],
        [q, k[:, :1].expand(-1, 4, -1, -1), v[:, :1].expand(-1, 4, -1, -1), grad_out],
        [q, k, v, torch.ones(()).expand(2, 4, 150, 16)],
    ]
    for form in forms:
        before = [x.clone() for x in form]
        *found, _ = backward(plan, *form)
        assert_within(found, plan, *form)
        assert all(torch.equal(a, b) for a, b in zip(before, form, strict=True))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_length_0(shape: tuple[int, int]) -> None:
    """No keys, no queries, no batch: gradients of the right shape, all 0."""
    plan = plan_of(NAMED["window"])
    q, k, v, _ = inputs(plan, *shape)
    *found, _ = backward(plan, q, k, v, torch.ones_like(q))
    assert [x.shape for x in found] == [q.shape, k.shape, v.shape]
    assert not any(x.any() for x in found)
    q, k, v, _ = (x[:0] for x in inputs(plan, 9, 9))
    *found, _ = backward(plan, q, k, v, torch.ones_like(q))
    assert [x.shape for x in found] == [q.shape, k.shape, v.shape]


def test_rows_without_keys_have_no_gradient() -> None:
    """Whatever the gradients of their results are: infinite ones of lse too."""
    plan = plan_of("pattern p = { q -> k : q mod 40 >= 7 and 0 <= q - k < 30 and k >= 20 }")
    q, k, v, mask = inputs(plan, 130, 130)
    empty = ~mask.any(3).expand(2, 4, -1)
    grad_lse = torch.randn(2, 4, 130).masked_fill(empty, torch.inf)
    grad_out = torch.randn(2, 4, 130, 16)
    dq, dk, dv, _ = backward(plan, q, k, v, grad_out, grad_lse)
    assert not dq[empty].any()
    assert not dk[:, :, :7].any()
    assert_within((dq, dk, dv), plan, q, k, v, grad_out, grad_lse)


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, True)])
def test_what_is_not_wanted_is_none(needs: tuple[bool, bool, bool]) -> None:
    plan = plan_of(NAMED["window"])
    q, k, v, _ = inputs(plan, 100, 100)
    grad_out = torch.randn_like(q)
    *whole, _ = backward(plan, q, k, v, grad_out)
    *found, _ = backward(plan, q, k, v, grad_out, None, needs)
    for some, expected, wanted in zip(found, whole, needs, strict=True):
        assert torch.equal(some, expected) if wanted else some is None


@pytest.mark.parametrize("name", ["window", "global", "causal", "strided"])
def test_two_runs_are_equal(name: str) -> None:
    plan = plan_of(NAMED[name])
    q, k, v, _ = inputs(plan, 900, 900)
    one, two = (backward(plan, q, k, v, torch.ones_like(q))[:3] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("share_bytes", [1, 1 << 15, 1 << 40])
@pytest.mark.parametrize("name", ["window", "global", "fixed"])
def test_portions_do_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, name: str, share_bytes: int
) -> None:
    plan = plan_of(NAMED[name])
    where = written(plan)._run_backward.__globals__
    monkeypatch.setitem(where, "_SHARE_BYTES", share_bytes)
    check(plan, 400, 380)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("step", [0, 8, 12, 32, 40])
@pytest.mark.parametrize("shared", [False, True])
def test_windows_are_added(count: int, step: int, shared: bool) -> None:
    """Windows that overlap, touch and leave gaps; heads that share their keys."""
    part = torch.randn(3, count, 32, 4, dtype=torch.float64)
    whole = torch.randn(3, 220, 4, dtype=torch.float64)
    if shared:
        whole = whole[:1].expand(3, -1, -1)
    expected = whole[:1].clone() if shared else whole.clone()
    for i in range(count):
        window = part[:, i].sum(0) if shared else part[:, i]
        expected[:, 7 + i * step : 39 + i * step] += window
    cpu_windows._add_windows(whole, part, 7, step)
    torch.testing.assert_close(whole[:1] if shared else whole, expected)
