"""``attnc cost``: what it prints, what it refuses, and that it loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnc
from attnc.cli import invoke

WANTED = {
    "pairs_kept", "pairs_computed", "tiles_full", "tiles_partial", "tiles_total", "flops",
    "hbm_bytes", "time_us", "speedup_over_dense", "bound_by", "plan",
}


def record(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert invoke(["cost", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_has_exact_counts(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(
        capsys, "longformer", "--shape", "n=300", "--heads", "8", "--kv-heads", "2", "--batch", "3",
        "--head-dim", "128", "--device", "h100",
    )
    assert set(found) >= WANTED
    mask = attnc.zoo.longformer().mask(300)
    assert found["pairs_kept"] == int(mask.sum())
    assert found["flops"] == found["pairs_computed"] * 4 * 128 * 8 * 3
    assert found["tiles_total"] == (
        found["tiles_full"] + found["tiles_partial"] + found["tiles_empty"]
    )
    assert (found["device"], found["kv_heads"]) == ("h100", 2)


def test_the_table_says_what_binds_and_what_is_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["cost", "longformer", "--explain", "--attention-share", "0.5"]) == 0
    text = capsys.readouterr().out
    for word in ("pairs", "dense", "bound by", "next", "assumed", "lever", "instead", "whole"):
        assert f"\n{word} " in text
    assert "not yet timed on NVIDIA H200 SXM" in text


def test_a_decode_step_and_a_backward(capsys: pytest.CaptureFixture[str]) -> None:
    step = record(capsys, "streaming_llm", "--decode", "--shape", "n=1000000", "--queries", "2")
    assert step["work"] == "decode"
    assert step["pairs_kept"] < 2 * 10000
    back = record(capsys, "streaming_llm", "--backward")
    assert [line.partition(":")[0] for line in back["plan"]] == ["prepare", "dq", "dkdv"]


def test_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "causal", "--formula", "--tile", "64x64")
    assert found["formula_kept"] == "n*(n + 1)/2   for n >= 1"
    assert found["formula_computed"] == "n*(n + 64)/2   for n >= 64, 64 divides n"
    assert found["density"] == "1/2"


def test_a_plot_shows_the_crossover(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cost.svg"
    found = record(capsys, "longformer", "--shape", "n=8192", "--plot", str(path))
    drawn = path.read_text(encoding="utf-8")
    assert drawn.lstrip().startswith("<?xml")
    assert "</svg>" in drawn
    assert found["crossover"] is None or 128 <= found["crossover"] <= 8192


def test_data_is_read_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.npy"
    np.save(ids, np.repeat(np.arange(4), 50))
    found = record(capsys, "document", "-I", f"doc_ids={ids}", "-D", "causal=true")
    assert found["pairs_kept"] == 4 * 50 * 51 // 2
    assert (found["nq"], found["nk"]) == (200, 200)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["causal", "--device", "tpu"], "is not one of"),
        (["causal", "--backward", "--decode"], "has no backward"),
        (["causal", "--queries", "2"], "goes with --decode"),
        (["causal", "--shape", "nq=8"], "add nk="),
        (["causal", "--attention-share", "2"], "0<=x<=1"),
        (["causal", "--batch", "0"], "1<=x"),
        ([], "Missing argument"),
    ],
)
def test_wrong_usage_is_exit_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["cost", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["causal", "--heads", "6", "--kv-heads", "4"], "ATT0406"),
        (["causal", "--tile", "24x64"], "ATT0406"),
        (["swin", "--formula"], "plain sequences"),
        (["swin", "--plot", "swin.svg"], "is not free"),
        (["causal", "--plot", "causal.nothing"], "ATT0406"),
        (["s2_attention", "--heads", "5"], "ATT0505"),
        (["document", "--shape", "n=64"], "ATT0510"),
        (["agent_collect", "--decode"], "has no decode step"),
    ],
)
def test_what_cannot_be_predicted_is_exit_1(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(["cost", *words]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("error", "busy"), [(0.1, False), (0.4, True)])
def test_measuring_needs_no_file(
    error: float, busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from attnc.compiler.cost import machine
    from attnc.runtime import calibrate

    prices = machine.Prices(microseconds=(1.0,) * 7, error=error, worst=0.5)
    found = machine.Calibration(
        machine={"cpu": "test"}, prices={("strips", "bf16"): prices, ("dense", "bf16"): prices}
    )
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(calibrate, "calibrate", lambda step: found)
    assert invoke(["cost", "--calibrate"]) == 0
    out, err = capsys.readouterr()
    assert f"strips bf16: {error:.0%} off in the median" in out
    assert ("busy" in err) == busy
    assert record(capsys, "causal", "--device", "cpu", "--shape", "n=256")["device"] == "cpu"


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys\nfrom attnc.cli import invoke\n"
        "assert invoke(['cost', 'longformer', '--explain', '--backward']) == 0\n"
        "heavy = {'torch', 'triton', 'sympy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
