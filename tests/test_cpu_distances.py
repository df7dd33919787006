"""Distances one by one: chosen where tiles would be nearly empty, and exact in every type."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.codegen import cpu_distances as cd
from attnc.compiler.counts import count_cpu
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import CpuDistances, CpuPart
from attnc.compiler.passes.cpu_plan import build_cpu
from attnc.runtime import reference
from attnc.runtime.reference_gradients import Backward, assert_gradients_within

POWERS = "q == k or is_pow2(q - k)"
WINDOW_AND_POWERS = "k <= q and q - k < 48 or is_pow2(q - k)"
BOTH_WAYS = "q - k == 5 or q - k == -3 or q - k == 70 or q - k == 130 or q - k == 190"
SINK_AND_POWERS = "k < 2 or is_pow2(q - k)"
TEXTS = (POWERS, WINDOW_AND_POWERS, BOTH_WAYS, SINK_AND_POWERS)


def parsed(text: str) -> Pattern:
    return attnc.parse(f"pattern p = {{ q -> k : {text} }}").ir


@pytest.mark.parametrize(
    ("text", "kinds", "near"),
    [
        (POWERS, [CpuDistances], [0, 1, 2, 4, 8, 16, 32, 64]),
        (WINDOW_AND_POWERS, [CpuPart, CpuDistances], [64, 128, 256, 512]),
        (BOTH_WAYS, [CpuDistances], [-3, 5, 70, 130, 190]),
        (SINK_AND_POWERS, [CpuPart, CpuDistances], [1, 2, 4, 8]),
    ],
)
def test_chosen(text: str, kinds: list[type], near: list[int]) -> None:
    """Scattered distances are taken one by one, what lies together is left to tiles."""
    plan = build_cpu(parsed(text), Tiling(32, 32), tested=False)
    assert [type(part) for part in plan.parts] == kinds
    single = plan.parts[-1]
    assert isinstance(single, CpuDistances)
    assert list(single.distances[: len(near)]) == near


@pytest.mark.parametrize(
    "text",
    ["0 <= q - k < 256", "0 <= q - k < 2048 and (q - k) mod 4 == 0", "0 <= q - k < 16",
     "q * q - k == 3", "k < 4"],
)  # fmt: skip
def test_not_chosen(text: str) -> None:
    """Dense and regular bands keep their tiles, and so does what is no distance."""
    plan = build_cpu(parsed(text), Tiling(32, 32), tested=False)
    assert not any(isinstance(part, CpuDistances) for part in plan.parts)


def test_only_when_free() -> None:
    """Orders that are asked for leave no room for single distances."""
    for orders in ("natural", (1, 64)):
        plan = build_cpu(parsed(POWERS), Tiling(32, 32), tested=False, orders=orders)
        assert all(isinstance(part, CpuPart) for part in plan.parts)


@pytest.mark.parametrize("text", TEXTS)
def test_counts(text: str) -> None:
    """The pairs of all parts are those of the pattern; a distance computes no other."""
    pattern = parsed(text)
    plan = build_cpu(pattern, Tiling(32, 32), tested=False)
    for nq, nk in ((1, 1), (70, 45), (200, 331)):
        counts = count_cpu(plan, nq, nk)
        assert counts.pairs_kept == int(pattern.mask(nq, nk).sum())
    if text == POWERS:
        counts = count_cpu(plan, 8192, 8192)
        assert counts.pairs_computed == counts.pairs_kept


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_within_the_error_rule(
    text: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and lse, with grouped heads, unlike lengths and widths, blocks of few rows."""
    pattern = attnc.parse(f"pattern p = {{ q -> k : {text} }}")
    for batch, heads, kv, nq, nk in ((2, 4, 2, 70, 45), (1, 1, 1, 131, 131), (1, 4, 1, 5, 140)):
        torch.manual_seed(nq)
        q = torch.randn(batch, nq, heads, 24).transpose(1, 2).to(dtype)
        k = torch.randn(batch, kv, nk, 24).to(dtype)
        v = torch.randn(batch, nk, kv, 16).to(dtype).transpose(1, 2)
        op = attnc.compile(pattern, head_dim=24, value_dim=16)
        out, lse = op(q, k, v, return_lse=True, scale=0.3)
        mask = torch.from_numpy(pattern.ir.mask(nq, nk))
        reference.assert_within(out, lse, q, k, v, mask, scale=0.3)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("nq", "nk"), [(70, 70), (131, 67), (33, 140), (5, 1), (0, 4), (4, 0)])
def test_like_the_natural_order(text: str, nq: int, nk: int) -> None:
    """Out, lse and gradients are those of tiles, rows without keys included."""
    face = attnc.parse(f"pattern p = {{ q -> k : {text} }}")
    torch.manual_seed(0)
    q = torch.randn(2, nq, 4, 16, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(2, 2, nk, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for orders in ("natural", "auto"):
        op = attnc.compile(face, head_dim=16, orders=orders)
        out, lse = op(q, k, v, return_lse=True)
        loss = (out * torch.arange(out.numel()).view_as(out).cos()).sum()
        loss = loss + lse.masked_fill(lse == -math.inf, 0.0).sum()
        results.append((out, lse, *torch.autograd.grad(loss, (q, k, v))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("text", [POWERS, WINDOW_AND_POWERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_within_the_error_rule(text: str, dtype: torch.dtype) -> None:
    """Those of q, k and v, of out and lse together, with grouped heads."""
    pattern = attnc.parse(f"pattern p = {{ q -> k : {text} }}")
    torch.manual_seed(3)
    q = torch.randn(2, 4, 150, 16).to(dtype).requires_grad_()
    k, v = (torch.randn(2, 2, 140, 16).to(dtype).requires_grad_() for _ in range(2))
    out, lse = attnc.compile(pattern, head_dim=16)(q, k, v, return_lse=True)
    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    grad_lse[lse == -math.inf] = 0.0
    found = torch.autograd.grad((out, lse), (q, k, v), (grad, grad_lse))
    assert_gradients_within(found, Backward(
        pattern=pattern.ir, q=q, k=k, v=v, grad_out=grad, grad_lse=grad_lse,
    ))  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.integers(-60, 90), min_size=1, max_size=7), st.integers(1, 80), st.integers(1, 80),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]), st.integers(1, 40), st.booleans(),
)  # fmt: skip
def test_random_distances(distances, nq, nk, heads, rows, widen):
    """The executor alone, on any distances, in blocks of any size; twice the same bits."""
    torch.manual_seed(nq)
    old = cd._ROWS_AT_ONCE, cd._EXACT_BYTES
    cd._ROWS_AT_ONCE, cd._EXACT_BYTES = rows, (1 << 20) * widen
    try:
        q = torch.randn(2, heads[0], nq, 8)
        k, v = (torch.randn(2, heads[1], nk, 8) for _ in range(2))
        asked = tuple(sorted(distances))
        out, lse = cd._cpu_by_distance(asked, q, k, v, 0.3)
        apart = np.arange(nq)[:, None] - np.arange(nk)
        mask = torch.from_numpy(np.isin(apart, asked))[None]
        reference.assert_within(out, lse, q, k, v, mask, scale=0.3)
        grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
        given_ = (q, k, v, out, lse, grad, grad_lse, 0.3)
        first = cd._cpu_by_distance_backward(asked, *given_, (True, True, True))
        again = cd._cpu_by_distance_backward(asked, *given_, (True, True, True))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        only = cd._cpu_by_distance_backward(asked, *given_, (False, False, True))
        assert only[0] is None
        assert only[1] is None
        assert torch.equal(only[2], first[2])
    finally:
        cd._ROWS_AT_ONCE, cd._EXACT_BYTES = old
