"""Boxes of queries on a CPU: against float64, out, lse and gradients, and what they compute."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import attnc
from attnc.compiler.counts import count_cpu
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling, rank_of
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import CpuPlan
from attnc.compiler.ir.show import show
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.classify import classify
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.cpu_boxes import _tried
from attnc.runtime.reference import assert_within
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.test_cpu_executor import attended, written

NAMED: dict[str, str] = {
    "window 2-D": "pattern p on grid(y: 12, x: 20) ="
    " { q -> k : abs(q.y - k.y) <= 3 and abs(q.x - k.x) <= 2 }",
    "window 3-D, odd": "pattern p on grid(t: 5, y: 7, x: 9) = { q -> k :"
    " abs(q.t - k.t) <= 1 and abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 2 }",
    "dilated": "pattern p on grid(y: 14, x: 18) = { q -> k : abs(q.y - k.y) <= 4"
    " and abs(q.x - k.x) <= 4 and (q.y - k.y) mod 2 == 0 and (q.x - k.x) mod 2 == 0 }",
    "causal": "pattern p on grid(y: 9, x: 11) = { q -> k : k.y <= q.y and k.x <= q.x }",
    "a row or a column": "pattern p on grid(y: 16, x: 16) = { q -> k : q.y == k.y or q.x == k.x }",
    "blocks": "pattern p on grid(y: 15, x: 21) ="
    " { q -> k : q.y div 5 == k.y div 5 and q.x div 7 == k.x div 7 }",
    "some see nothing": "pattern p on grid(y: 12, x: 12) ="
    " { q -> k : 2 <= q.y - k.y <= 4 and abs(q.x - k.x) <= 1 and q.x >= 3 }",
    "nothing": "pattern p on grid(y: 8, x: 8) = { q -> k : false }",
    "text and video": "space clip = text: grid(i: 10) ++ video: grid(t: 3, y: 6, x: 8)\n"
    "pattern p on clip = { q in video -> k in video : abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 2 }"
    " | { q in text -> k : true } | { q -> k in text : true }",
    "heads": "pattern p on grid(y: 10, x: 12) heads h: 4 ="
    " { q -> k, h : abs(q.y - k.y) <= h and abs(q.x - k.x) <= 3 - h }",
    "box by box": "space image = grid(y: 8, x: 12) tiled [4, 3]\n"
    "pattern p on image = { q -> k : abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 2 }",
}


TILE = Tiling(32, 32)


@cache
def pattern_of(name: str) -> Pattern:
    return load_text(NAMED[name])


@cache
def walking(name: str, box: tuple[int, ...] | None = None) -> CpuPlan:
    """Return a plan on some boxes, or on those that are tried first."""
    pattern = pattern_of(name)
    sides = next(iter(_tried(pattern))) if box is None else box
    boxes = classify_grid(pattern, BoxTiling(sides, (1,) * rank_of(pattern)))
    assert not boxes.widened
    return CpuPlan(block_mask=classify(pattern, TILE), strips=(), boxes=boxes)


def check(
    plan: CpuPlan, *, heads: int = 4, kv: int = 2, batch: int = 2, value_dim: int = 16,
    dtype: torch.dtype = torch.float32, with_lse: bool = False,
) -> None:
    """Compare out, lse and gradients with float64."""
    pattern = plan.block_mask.pattern
    nq, nk = pattern.lengths
    assert nq is not None
    assert nk is not None
    made = torch.Generator().manual_seed(nq)
    shapes = (heads, nq, 16), (kv, nk, 16), (kv, nk, value_dim), (heads, nq, value_dim)
    q, k, v, grad = (torch.randn(batch, *s, generator=made).to(dtype) for s in shapes)
    grad_lse = torch.randn(batch, heads, nq, generator=made) if with_lse else None
    module = written(plan)
    out, lse = module._cpu_forward(q, k, v, 0.3)
    assert out.dtype == q.dtype
    assert_within(out, lse, q, k, v, torch.from_numpy(pattern.mask(nq, nk))[None], 0.3)
    *found, rest = module._cpu_backward(
        q, k, v, out, lse, grad, grad_lse, 0.3, needs=(True, True, True)
    )
    assert rest == []
    assert_gradients_within(found, Backward(
        pattern=pattern, q=q, k=k, v=v, grad_out=grad, grad_lse=grad_lse, scale=0.3,
    ))  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_named_patterns(name: str) -> None:
    """Two query heads on each of k; values wider; one head of k for all; half types."""
    plan = walking(name)
    check(plan, with_lse=True)
    check(plan, value_dim=24, kv=4, dtype=torch.float64)
    check(plan, value_dim=8, kv=1, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "box"),
    [("window 3-D, odd", (1, 3, 5)), ("window 2-D", (1, 20)), ("dilated", (5, 7)),
     ("text and video", (2, 2, 4)), ("box by box", (3, 5)), ("causal", (9, 11))],
)  # fmt: skip
def test_other_boxes(name: str, box: tuple[int, ...]) -> None:
    """Sides that divide nothing, boxes that cross every end, one box for all."""
    check(walking(name, box), with_lse=True)


@pytest.mark.parametrize("name", NAMED)
def test_exactly_the_pattern_is_attended(name: str) -> None:
    """Every kept pair gets a weight above 0, and no other."""
    nq, nk = pattern_of(name).lengths
    assert nq is not None
    assert nk is not None
    assert (attended(walking(name), nq, nk) == pattern_of(name).mask(nq, nk)).all()


def test_strided_inputs_and_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens before heads, and so little at once that each box and head is a call."""
    plan = walking("window 2-D")
    module = written(plan)
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 240, 4, 16, generator=made).transpose(1, 2) for _ in range(3))
    out, lse = module._cpu_forward(q, k, v, 0.3)
    monkeypatch.setitem(module._cpu_forward.__globals__, "_BOX_BYTES", 1)
    for inputs in ((q, k, v), [x.contiguous() for x in (q, k, v)]):
        again, again_lse = module._cpu_forward(*inputs, 0.3)
        torch.testing.assert_close(again, out, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(again_lse, lse, atol=1e-6, rtol=1e-6)


def test_gradients_are_the_same_in_every_run() -> None:
    plan = walking("window 3-D, odd")
    module = written(plan)
    q, k, v, grad = (torch.randn(1, 4, 315, 16) for _ in range(4))
    out, lse = module._cpu_forward(q, k, v, 0.3)
    runs = [
        module._cpu_backward(q, k, v, out, lse, grad, None, 0.3, needs=(True, False, True))
        for _ in range(2)
    ]
    assert runs[0][1] is None
    for at in (0, 2):
        assert torch.equal(runs[0][at], runs[1][at])


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("pattern p on grid(y: 64, x: 128) = { q -> k : abs(q.y - k.y) <= 6"
         " and abs(q.x - k.x) <= 6 }", 3.0),
        ("pattern p on grid(t: 8, y: 32, x: 32) = { q -> k : abs(q.t - k.t) <= 1"
         " and abs(q.y - k.y) <= 3 and abs(q.x - k.x) <= 3 }", 4.0),
        ("pattern p on grid(y: 56, x: 56) = { q -> k : q.y div 7 == k.y div 7"
         " and q.x div 7 == k.x div 7 }", 1.0),
    ],
)  # fmt: skip
def test_pairs_computed_for_each_that_is_needed(text: str, most: float) -> None:
    """The plan visits the keys that some query of a box needs, and has small boxes."""
    plan = build_plan(load_text(text), head_dim=64)
    assert plan.cpu.boxes is not None
    found = count_cpu(plan.cpu, *map(int, plan.pattern.lengths))  # type: ignore[arg-type]
    assert found.pairs_computed <= most * found.pairs_kept
    assert any("on a CPU the executor walks boxes" in note for note in plan.notes)
    assert f"cpu boxes {plan.cpu.boxes.tiling}\n" in show(plan)


def test_flat_tiles_where_they_serve_as_well_or_are_asked_for() -> None:
    """Rows of an image, scores, a tile of two sides, the natural order, open extents."""
    window = pattern_of("window 2-D")
    assert build_plan(window, head_dim=16).cpu.boxes is not None
    for plan in (
        build_plan(window, head_dim=16, orders="natural"),
        build_plan(window, head_dim=16, cpu_tile=TILE),
        build_plan(load_zoo("axial_row"), head_dim=16),
        build_plan(load_text("pattern p on grid(y: n, x: 8) = { q -> k : q.x == k.x }"),
                   head_dim=16),
        build_plan(load_text("pattern p on grid(y: 16, x: 16) ="
                             " { q -> k : q.y + q.x <= k.y + k.x }"), head_dim=16),
    ):  # fmt: skip
        assert plan.cpu.boxes is None


@pytest.mark.parametrize("name", ["swin", "halonet", "cswin"])
def test_plans_of_the_zoo(name: str) -> None:
    """What is chosen unasked is sound, and attends to the pattern."""
    params: dict[str, Any] = {
        "swin": {"h": 20, "w": 20, "window": 5, "shift": 2},
        "cswin": {"h": 40, "w": 24, "heads": 4},
    }.get(name, {})  # fmt: skip
    plan = build_plan(load_zoo(name, params), head_dim=16, backward=True)
    assert plan.cpu.boxes is not None
    assert verify(plan) == ()
    if name != "halonet":
        check(plan.cpu, heads=4, kv=4, batch=1)


def test_an_op_on_boxes_equals_one_on_flat_tiles() -> None:
    """Through the whole op, with gradients."""
    q, k, v = (torch.randn(1, 2, 240, 16, requires_grad=True) for _ in range(3))
    found = []
    for orders in ("auto", "natural"):
        op = attnc.compile(attnc.parse(NAMED["window 2-D"]), head_dim=16, dtype=torch.float32,
                           orders=orders)
        assert (op.plan.cpu.boxes is None) is (orders == "natural")
        out = op(q, k, v)
        found.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
