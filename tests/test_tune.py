"""``tune`` items: what a file states is compiled, unless a call or a flag says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc.cli import invoke
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling

STRIDED = """
pattern strided = { q -> k : k <= q and (q - k < 16 or (q - k) mod 16 == 0) }
tune strided = { tile: [64, 32], cpu_tile: [16, 16], orders: [1, 16] }
"""
NEAR = """
pattern near on grid(y: 16, x: 16) = { q -> k : abs(q.y - k.y) <= 2 and abs(q.x - k.x) <= 2 }
tune near = { tile: [[4, 16], [8, 4]] }
"""
BIASED = """
attention alibi = softmax(dot + alibi_bias(4), over: causal)
tune alibi = { bias: add }
"""


def test_what_a_file_states_is_compiled() -> None:
    op = attnc.compile(attnc.parse(STRIDED), head_dim=16)
    assert [getattr(part, "modulus", 0) for part in op.plan.cpu.parts] == [1, 16]
    assert op.plan.forward.tiling == Tiling(64, 32)
    assert op.plan.cpu.tiling == Tiling(16, 16)
    near = attnc.compile(attnc.parse(NEAR), head_dim=16).plan.forward
    assert near.boxes is not None
    assert near.boxes.tiling == BoxTiling((4, 16), (8, 4))
    assert attnc.compile(attnc.parse(BIASED), head_dim=16).plan.forward.fold is None


def test_a_call_comes_first() -> None:
    op = attnc.compile(
        attnc.parse(STRIDED), head_dim=16, tile=(128, 64), cpu_tile=(32, 32), orders="natural"
    )
    assert op.plan.forward.tiling == Tiling(128, 64)
    assert op.plan.cpu.tiling == Tiling(32, 32)
    assert not op.plan.parts
    assert not op.plan.cpu.parts


def test_costs_are_those_of_the_choice() -> None:
    pattern = attnc.parse(STRIDED)
    stated, natural = pattern.cost(8192), pattern.cost(8192, orders="natural")
    assert stated.setting.orders == (1, 16)
    assert stated.setting.tile == Tiling(64, 32)
    assert stated.pairs_computed < natural.pairs_computed / 3


@pytest.mark.parametrize("text", [STRIDED, NEAR, BIASED])
def test_outputs_stay_the_same(text: str) -> None:
    """A tune changes no output and no gradient, beyond the order of sums."""
    made = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 4, 256, 16, generator=made, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    results = []
    for one in (text, "\n".join(line for line in text.splitlines() if "tune" not in line)):
        out = attnc.compile(attnc.parse(one), head_dim=16)(q, k, v)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for one_result, other in zip(*results, strict=True):
        torch.testing.assert_close(one_result, other, atol=1e-10, rtol=1e-10)


def test_in_other_files_it_says_nothing(tmp_path: Path) -> None:
    """A tune belongs to the item it names, not to what uses that item."""
    (tmp_path / "near.attn").write_text(NEAR)
    (tmp_path / "user.attn").write_text(
        'import near from "near.attn"\npattern user on grid(y: 16, x: 16) = near\n'
    )
    assert attnc.load(tmp_path / "near.attn").tuned == {"tile": ((4, 16), (8, 4))}
    assert attnc.load(tmp_path / "user.attn").tuned == {}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert invoke([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags come before the file, and say so in all verbs that plan."""
    path = tmp_path / "strided.attn"
    path.write_text(STRIDED)
    plan = run(capsys, "emit", str(path), "--stage", "plan")["text"]
    assert "in classes of 16" in plan
    assert "tile 64x32" in plan
    plan = run(capsys, "emit", str(path), "--stage", "plan", "--orders", "natural")["text"]
    assert "in classes of" not in plan
    assert "tile 64x32" in plan
    cpu = run(capsys, "emit", str(path), "--target", "cpu", "--tile", "32x32")
    assert cpu["tile"] == "32x32"
    assert run(capsys, "emit", str(path), "--target", "cpu")["tile"] == "16x16"
    written = run(capsys, "compile", str(path), "-o", str(tmp_path), "--tile", "128x32")
    assert written["tile"] == "128x32"
    cost = run(capsys, "cost", str(path), "--orders", "auto", "--tile", "64x64")
    assert all("tile 64x64" in line for line in cost["plan"] if "tile" in line)
