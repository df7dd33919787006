"""``bench/cpu_backward.py``: what it times are the gradients of the patterns."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))  # as for a script
    return importlib.import_module("cpu_backward")


def test_a_training_step_is_measured(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every case of a short length, its gradients compared with those of a dense mask."""
    monkeypatch.setattr(bench, "peak_mib", lambda *given: 1.5)
    checked = []
    monkeypatch.setattr(
        bench, "check",
        lambda *given, check=bench.check: (check(*given), checked.append(given[1])),
    )  # fmt: skip
    path = tmp_path / "results.json"
    words = "bench --tokens 128 --turns 1 --heads 2 --head-dim 16 --clock cpu --json"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(path)])
    assert bench.main() == 0
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["case"] for row in rows] == checked == [*bench.CASES]
    for row in rows:
        halves = [row[f"{s}_{h}_ms"] for s in ("attnc", "dense") for h in ("forward", "backward")]
        assert row["over_dense"] == pytest.approx(sum(halves[2:]) / sum(halves[:2]))
        assert row["dense"] == ("dense" if row["case"] == "window_2d" else "dense_causal")
    assert capsys.readouterr().out.count("fp32") == len(rows)


def test_wrong_gradients_are_seen(bench: ModuleType) -> None:
    step = bench.Step("window", 512, "fp32", 1, 16)
    bench.check(step, "window", 512, "fp32")
    with pytest.raises(AssertionError, match="dilated 512 fp32: dq differs by"):
        bench.check(step, "dilated", 512, "fp32")
