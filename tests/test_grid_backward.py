"""Backward kernels on boxes of a grid: run against float64, and compiled ahead of time."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from typing import Any

import pytest

from attnc.codegen.host_backward import kernels
from attnc.codegen.triton_backward import Kernel, emit_kernel
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.aot import Artifact, compile_kernel
from attnc.runtime.lint import lint
from tests.test_grid_kernels import CASES
from tests.test_triton_backward import check, random


@pytest.mark.parametrize(("name", "params", "tile"), CASES, ids=[case[0] for case in CASES])
def test_gradients(name: str, params: dict[str, Any], tile: BoxTiling) -> None:
    """Numbers of axes, segments, heads and token orders; query heads share keys."""
    plan = build_plan(
        load_zoo(name, params), head_dim=16, dtype="fp32", tile=tile, backward=True
    )
    assert plan.backward is not None
    assert all(loop.boxes is not None for loop in plan.backward.loops)
    nq, nk = plan.pattern.lengths
    assert nq is not None
    assert nk is not None
    check(plan, random(nq, nk, batch=2, heads=plan.pattern.heads or 2))


def test_unasked() -> None:
    """Where the forward walks boxes the backward does: of as many tokens as its own tiles."""
    plan = build_plan(
        load_zoo("gna", {"shape": [8, 8, 8], "window": [2, 2, 3]}), head_dim=16, dtype="fp32",
        backward=True,
    )  # fmt: skip
    assert plan.forward.boxes is not None
    assert plan.backward is not None
    for loop in plan.backward.loops:
        assert loop.boxes is not None
        assert (loop.boxes.tiling.q, loop.boxes.tiling.k) == (loop.tiling.q, loop.tiling.k)
    check(plan, random(512, 512))


def test_unasked_beside_data() -> None:
    """A grid whose mask reads data keeps tiles of the flat order, in both passes."""
    text = (
        "input doc: int[n]\n"
        "pattern p on grid(y: 8, x: 8) = { q -> k : doc[q] == doc[k] and abs(q.y - k.y) <= 1 }"
    )
    plan = build_plan(load_text(text), head_dim=16, dtype="fp32", backward=True)
    assert plan.backward is not None
    assert all(loop.boxes is None for loop in (plan.forward, *plan.backward.loops))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kernel", ["dq", "dkdv"])
def test_compiled_ahead_of_time(kernel: Kernel, head_dim: int) -> None:
    """A Swin and a 3-D neighbourhood for Hopper: asynchronous wgmma, no spills."""
    video = load_zoo("gna", {"shape": [30, 48, 80], "window": [18, 24, 24]})
    for pattern in (load_zoo("swin", {"shift": 3}), video):
        plan = build_plan(pattern, head_dim=head_dim, backward=True)
        assert plan.backward is not None
        loop = kernels(plan.backward)[kernel]
        assert loop.boxes is not None
        helpers, text = emit_kernel(loop, kernel)
        found = compile_kernel("\n\n".join([*helpers, text]), loop, "sm_90", kernel)
        assert isinstance(found, Artifact)
        assert lint(found, "sm_90") == ()
        assert found.wgmma >= 4
