"""Kernels on boxes of a grid: interpreted against dense attention, and compiled ahead of time."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from typing import Any

import pytest
import torch

import attnc
from attnc.codegen import box_tables
from attnc.codegen.host import emit_host
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.driver import load_zoo
from attnc.compiler.ir.gridmask import BoxTiling, GridMask
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.aot import Artifact, compile_kernels
from attnc.runtime.lint import lint
from tests.kernels import DEVICE, load, module_text, run

CASES: tuple[tuple[str, dict[str, Any], BoxTiling], ...] = (
    ("swin", {"h": 12, "w": 10, "window": 4, "shift": 2}, BoxTiling((4, 4), (4, 8))),
    ("gna", {"shape": [6, 7, 9], "window": [3, 4, 5], "extra_keys": 3},
     BoxTiling((2, 2, 4), (2, 4, 4))),
    ("cswin", {"h": 9, "w": 8, "heads": 4}, BoxTiling((4, 4), (4, 4))),
    ("sta", {"canvas": [6, 8], "tile": [2, 2], "kernel": [[3, 3], [1, 3]], "text": 5},
     BoxTiling((4, 4), (2, 8))),
    ("criss_cross", {"h": 10, "w": 10}, BoxTiling((4, 4), (4, 4))),
    ("halonet", {"h": 16, "w": 8, "block": 4, "halo": 1}, BoxTiling((4, 4), (4, 4))),
    ("svg_spatial", {"frames": 4, "s": 20, "prompt": 9}, BoxTiling((2, 8), (2, 8))),
    ("axial_row", {"h": 4, "w": 12}, BoxTiling((4, 4), (1, 16))),
)  # fmt: skip


@pytest.mark.parametrize(("name", "params", "tile"), CASES, ids=[case[0] for case in CASES])
def test_kernels_attend_to_the_pattern(name: str, params: dict[str, Any], tile: BoxTiling) -> None:
    """Tiles cross the ends of axes, segments, heads and token orders; keys are shared by heads."""
    pattern = load_zoo(name, params)
    plan = build_plan(pattern, head_dim=16, dtype="fp32", tile=tile).forward
    nq, nk = pattern.lengths
    assert nq is not None
    assert nk is not None
    heads = pattern.heads or 2
    made = torch.Generator().manual_seed(len(name))
    q = torch.randn(2, heads, nq, 16, generator=made).to(DEVICE)
    k, v = (torch.randn(2, 1, nk, 16, generator=made).to(DEVICE) for _ in range(2))
    out, lse = run(load(module_text(plan)), q, k, v, 0.25)
    kept = torch.from_numpy(pattern.mask(nq, nk))[None].to(DEVICE)
    scores = (q.double() @ k.double().mT * 0.25).masked_fill(~kept, -torch.inf)
    expected = scores.softmax(-1).nan_to_num() @ v.double()
    assert (out - expected).abs().max() < 2e-6
    assert torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-5)


@pytest.mark.parametrize(("name", "params", "tile"), CASES, ids=[case[0] for case in CASES])
def test_the_table_holds_the_pieces(name: str, params: dict[str, Any], tile: BoxTiling) -> None:
    """The host's table has each visited tile once, in its row, under the mask it needs."""
    plan = build_plan(load_zoo(name, params), head_dim=16, tile=tile).forward
    boxes = plan.boxes
    assert isinstance(boxes, GridMask)
    module = load(module_text(plan))
    schedule = module._gpu_build_schedule(*boxes.pattern.lengths, torch.device("cpu"))
    starts, entries = schedule[-2:]
    grid = torch.from_numpy(boxes.grid()).long()
    heads, rows, columns = grid.shape
    table = torch.full((heads * rows, columns), -1, dtype=torch.int64)
    row = torch.repeat_interleave(torch.arange(heads * rows), starts.diff())
    table[row, (entries >> 3).long()] = (entries & 7).long()
    assert len(row) == (table >= 0).sum()
    assert ((table >= 0) == (grid.view(-1, columns) >= 0)).all()
    full = torch.tensor([*(piece.full for piece in boxes.pieces), False])[grid.view(-1, columns)]
    crosses = table == len(plan.masks) if "true" in _shown(plan) else torch.zeros_like(full)
    assert ((table == 0) == (full & ~crosses)).all()
    if plan.row_order == "sorted":
        in_order = starts.diff()[schedule[0].long()]
        assert (in_order.diff() <= 0).all()


def _shown(plan: Any) -> list[str]:
    from attnc.compiler.ir import expr as ex

    return [ex.show(mask) for mask in plan.masks]


@pytest.mark.parametrize("tile", [((4, 4), (4, 4)), "boxes"])
def test_the_op(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, tile: Any) -> None:
    """``attnc.compile`` takes boxes; on a CPU the op runs its executor, with the same result."""
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    pattern = attnc.zoo.halonet(h=16, w=8, block=4, halo=1)
    op = attnc.compile(pattern, head_dim=16, dtype="fp32", tile=tile)
    q = torch.randn(1, 2, 128, 16)
    kept = pattern.mask()
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=kept)
    assert (op(q, q, q) - expected).abs().max() < 1e-5


def test_a_pattern_without_pairs() -> None:
    """No box is visited: out is 0, lse -inf."""
    pattern = attnc.parse("pattern p on grid(y: 4, x: 8) = { q -> k : q.y > k.y + 5 }").ir
    plan = build_plan(pattern, head_dim=16, dtype="fp32", tile=BoxTiling((4, 4), (4, 4))).forward
    q = torch.randn(1, 1, 32, 16, device=DEVICE)
    out, lse = run(load(module_text(plan)), q, q, q, 0.25)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_pasted_text() -> None:
    """The table's builder stands in written modules as it is tested here."""
    from pathlib import Path

    plan = build_plan(load_zoo(*CASES[0][:2]), head_dim=16, tile=CASES[0][2]).forward
    body = Path(box_tables.__file__).read_text(encoding="utf-8").partition("# --- cut")[2]
    assert body.partition("\n")[2].strip() in emit_host(plan)


def test_compiled_ahead_of_time() -> None:
    """A Swin and a 3-D neighbourhood kernel for Hopper: no spills, asynchronous wgmma."""
    jobs = []
    for head_dim in (64, 128):
        swin = build_plan(load_zoo("swin", {"shift": 3}), head_dim=head_dim,
                          tile=BoxTiling((8, 8), (8, 8)))  # fmt: skip
        video = load_zoo("gna", {"shape": [30, 48, 80], "window": [18, 24, 24]})
        gna = build_plan(video, head_dim=head_dim, tile=BoxTiling((4, 4, 8), (2, 4, 8)))
        jobs += [(emit_kernel(plan.forward), plan.forward, "sm_90") for plan in (swin, gna)]
    for found in compile_kernels(jobs):  # type: ignore[arg-type]
        assert isinstance(found, Artifact), found
        assert lint(found, "sm_90") == ()
        assert found.wgmma >= 4
