"""``bench/gpu.py``: all of it that needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import attnc

ROOT = Path(__file__).resolve().parents[1]
CAUSAL = attnc.parse("pattern causal = { q -> k : k <= q }").ir
PER_HEAD = attnc.parse("pattern p heads h: 2 = { q -> k, h : q - k == h or k == 0 }").ir


@pytest.fixture(scope="module")
def gpu_bench() -> ModuleType:
    sys.path.insert(0, str(ROOT / "bench"))  # as for a script
    spec = importlib.util.spec_from_file_location("gpu_bench", ROOT / "bench" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_bench"] = module
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


def test_the_gpu_bench_says_that_there_is_no_gpu(
    gpu_bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main([]) == 0
    assert "no NVIDIA GPU here" in capsys.readouterr().out


def test_the_gpu_bench_refuses_unknown_parts(gpu_bench: ModuleType) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu_bench.main(["--parts", "check,windw"])
    assert stop.value.code == 2


def test_the_gpu_bench_covers_every_example(gpu_bench: ModuleType) -> None:
    names = [job.pattern for job in gpu_bench.check_jobs()]
    assert {str(p.relative_to(ROOT)) for p in ROOT.glob("examples/*/*.attn")} <= {*names}
    assert {*attnc.zoo} <= {*names}
    assert {case.part for case in gpu_bench.cases()} < {*gpu_bench.PARTS} == {*gpu_bench.SHARES}


def test_the_flex_mask_is_the_pattern(gpu_bench: ModuleType) -> None:
    """The peer must be timed on the very same mask."""
    n = 200
    seen = set()
    for case in gpu_bench.cases():
        if case.label in seen:
            continue
        seen.add(case.label)
        pattern = case.job().load()
        h, q, k = torch.meshgrid(
            torch.arange(pattern.heads or 1), torch.arange(n), torch.arange(n), indexing="ij"
        )
        kept = gpu_bench.mask_mod(pattern, n)(torch.tensor(0), h, q, k)
        assert torch.equal(kept, torch.from_numpy(pattern.mask(n, n))), case.label


def test_cases_within_causal_are_within_causal(gpu_bench: ModuleType) -> None:
    for case in gpu_bench.cases():
        above = torch.from_numpy(case.job().load().mask(150, 150)).triu(1)
        assert bool(above.any()) != case.causal, case.label


def test_flops_count_kept_pairs_of_all_heads(gpu_bench: ModuleType) -> None:
    case = gpu_bench.Case(part="dense", pattern="causal", batch=2, heads=3, tokens=8, head_dim=16)
    assert gpu_bench.flops(36, case, CAUSAL) == 4 * 36 * 16 * 2 * 3
    assert gpu_bench.flops(36, case, PER_HEAD) == 4 * 36 * 16 * 2


def test_the_table_shows_ratios(gpu_bench: ModuleType) -> None:
    row = {
        "label": "window", "batch": 1, "heads": 2, "tokens": 64, "head_dim": 32, "density": 0.25,
        "ms": {"attnc": 2.0, "cudnn": 5.0}, "tflops": {"attnc": 100.0}, "cudnn_is": "causal",
        "verified": True,
    }  # fmt: skip
    head, line = gpu_bench.table([row]).splitlines()
    assert head.split("  ")[0] == "case"
    assert "2.50x" in line
    assert "25.00%" in line


WITHOUT_THE_COMPILER = """
import sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lark", "islpy", "click", "rich"):
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
import torch
from gpu_cases import cases, compiled
from attnc.runtime import trial

for case in cases():
    if case.part == "patterns" and case.tokens == 16384:
        made = compiled(case.job(), Path(sys.argv[1]))
        q, k, v = (torch.randn(1, made.ir.heads or 2, 300, case.head_dim) for _ in range(3))
        assert trial.verify(made.ir, made.op(q, k, v), q, k, v).right, case.label
        print(case.label, made.tile, made.pairs)
"""


def test_modules_written_here_load_where_no_compiler_is(
    gpu_bench: ModuleType, tmp_path: Path
) -> None:
    """``--prepare`` writes all that ``--modules`` needs, counts included."""
    assert gpu_bench.main(["--parts", "patterns", "--prepare", str(tmp_path)]) == 0
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_COMPILER, str(tmp_path)], cwd=ROOT / "bench",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    case = next(c for c in gpu_bench.cases() if c.part == "patterns")
    assert gpu_bench.compiled(case.job(), None).pairs == gpu_bench.compiled(
        case.job(), tmp_path
    ).pairs


def test_parts_share_the_time(gpu_bench: ModuleType) -> None:
    """No part takes the time of a later one; the last ends when all must."""
    names = [*gpu_bench.PARTS]
    found = gpu_bench.deadlines(names, 100.0, 450.0)
    assert [part for part, _ in found] == names
    ends = [end for _, end in found]
    assert ends == sorted(ends)
    assert ends[0] > 100
    assert ends[-1] == 550
    assert gpu_bench.deadlines(["check"], 0.0, 60.0) == [("check", 60.0)]


def test_a_run_goes_on_after_a_failure(
    gpu_bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What fails is reported as wrong, the JSON holds all, the table comes last, the exit is 1."""

    def run_case(case: Any, deadline: float, modules: Path | None) -> dict[str, Any]:
        if case.pattern == "causal":
            raise RuntimeError("out of\nmemory")
        return {
            "label": case.label, "batch": 1, "heads": 2, "tokens": 64, "head_dim": 32,
            "density": 0.5, "ms": {"attnc": 2.0}, "tflops": {"attnc": 1.0}, "verified": True,
        }

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine = {"date": "2026-01-01T00:00:00+00:00", "device": "GPU X"}
    monkeypatch.setattr(gpu_bench, "machine", lambda: machine)
    monkeypatch.setattr(gpu_bench, "run_case", run_case)
    assert gpu_bench.main(["--parts", "dense", "-o", str(tmp_path)]) == 1
    shown = capsys.readouterr().out.splitlines()
    table = next(i for i, line in enumerate(shown) if line.startswith("case "))
    assert len(shown) == table + 1 + 4
    assert any("wrong: causal(): RuntimeError: out of memory" in line for line in shown)
    (written,) = tmp_path.iterdir()
    rows = json.loads(written.read_text())["parts"]["dense"]
    assert [row["verified"] for row in rows] == [True, False, False, False]
    assert gpu_bench.main(["--parts", "dense", "-o", str(tmp_path), "--seconds", "-1"]) == 0
