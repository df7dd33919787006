"""Published patterns on grids: by default their GPU kernels walk boxes, and no tile is tested."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from typing import Any

import pytest
import torch

from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes.build_plan import build_plan
from tests.kernels import DEVICE, load, module_text, run

SYMBOLIC: tuple[tuple[str, dict[str, Any]], ...] = (
    ("axial_col", {}), ("axial_row", {}), ("criss_cross", {}), ("crossformer_lda", {}),
    ("crossformer_sda", {}), ("cswin", {"heads": 4}), ("davit_spatial", {}),
    ("gna", {"shape": [64, 64], "window": [7, 7]}),
    ("gna", {"shape": [30, 48, 80], "window": [18, 24, 24]}), ("gna_packed", {}),
    ("halonet", {}), ("maxvit_block", {}), ("maxvit_grid", {}), ("radial_paper", {}), ("sta", {}),
    ("svg_spatial", {}), ("svg_temporal", {}), ("swattention", {}), ("swattention_local", {}),
    ("swin", {}), ("swin", {"shift": 3}), ("videofactory_swap_assumed", {}),
)  # fmt: skip


@pytest.mark.parametrize(("name", "params"), SYMBOLIC)
def test_default_plans_are_symbolic_and_exact(name: str, params: dict[str, Any]) -> None:
    """All but rows of an image, which flat tiles serve as well, walk boxes."""
    plan = build_plan(load_zoo(name, params), head_dim=64)
    forward = plan.forward
    assert forward.form != "data"
    assert (forward.boxes is None) is (name == "axial_row")
    assert not (forward.boxes or forward.block_mask).widened
    said = [note for note in plan.notes if "boxes of a grid" in note]
    assert len(said) == (forward.boxes is not None)


def test_a_tile_of_two_sides_is_flat() -> None:
    """So are the kernels of its backward; unasked those of both passes may walk boxes."""
    swin = load_zoo("swin", {"h": 28, "w": 21, "window": 7, "shift": 3})
    for tile in (Tiling(64, 64), None):
        plan = build_plan(swin, head_dim=64, tile=tile, backward=True)
        assert plan.backward is not None
        loops = plan.forward, *plan.backward.loops
        assert all((loop.boxes is None) == (tile is not None) for loop in loops)
        assert verify(plan) == ()


def test_flat_tiles_where_boxes_do_not_serve() -> None:
    """What couples axes for good, what reads data, and open extents."""
    for text in (
        "pattern p on grid(y: 16, x: 16) = { q -> k : q.y + q.x <= k.y + k.x }",
        "input doc: int[n]\npattern p on grid(y: 16, x: 16) ="
        " { q -> k : q.y == k.y and doc[q] == doc[k] }",
        "pattern p on grid(y: rows, x: 16) = { q -> k : q.x == k.x }",
    ):
        assert build_plan(load_text(text), head_dim=64).forward.boxes is None, text


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("swin", {"h": 20, "w": 20, "window": 5, "shift": 2}),
        ("gna", {"shape": [16, 20], "window": [3, 5]}),
        ("cswin", {"h": 18, "w": 16, "heads": 4}),
    ],
)  # fmt: skip
def test_kernels_of_default_plans(name: str, params: dict[str, Any]) -> None:
    """The boxes that were chosen attend to the pattern."""
    pattern = load_zoo(name, params)
    plan = build_plan(pattern, head_dim=16, dtype="fp32").forward
    assert plan.boxes is not None
    nq, nk = pattern.lengths
    assert nq is not None
    assert nk is not None
    made = torch.Generator().manual_seed(len(name))
    heads = pattern.heads or 2
    q, k, v = (torch.randn(1, heads, nq, 16, generator=made).to(DEVICE) for _ in range(3))
    out, lse = run(load(module_text(plan)), q, k, v, 0.25)
    kept = torch.from_numpy(pattern.mask(nq, nk))[None].to(DEVICE)
    scores = (q.double() @ k.double().mT * 0.25).masked_fill(~kept, -torch.inf)
    assert (out - scores.softmax(-1) @ v.double()).abs().max() < 2e-6
    assert torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-5)
