"""Every example runs: its script, and its pattern through the command."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnc.cli import invoke

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(p.parent for p in (ROOT / "examples").glob("*/*.attn"))
TRAINING = ("passkey", "train_lm")
"""Examples that train models for minutes and draw a plot; ``--quick`` only looks at the script."""
PLOTS = importlib.util.find_spec("matplotlib") is not None


def test_every_example_has_its_parts() -> None:
    assert len(FOLDERS) >= 8
    for folder in FOLDERS:
        parts = {f"{folder.name}.attn", "run.py", "README.md"}
        if folder.name in TRAINING:
            parts.add(plot := f"{folder.name}.svg")
            assert f"]({plot})" in (folder / "README.md").read_text(encoding="utf-8")
        assert {p.name for p in folder.iterdir() if p.name != "__pycache__"} == parts


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_script(folder: Path, tmp_path: Path) -> None:
    """The scripts compare with dense attention themselves and exit 1 where they differ."""
    args = ["--tokens", "300"] + (["--synthetic"] if folder.name == "longformer" else [])
    if folder.name in TRAINING:
        args = ["--quick", *(["--plot", "plot.svg"] if PLOTS else [])]
    done = subprocess.run(
        [sys.executable, str(folder / "run.py"), *args], capture_output=True, timeout=300,
        cwd=tmp_path, env={**os.environ, "ATTNC_CACHE_DIR": str(tmp_path / "cache")}, check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "error " in done.stdout.decode()
    assert (tmp_path / "plot.svg").exists() == (PLOTS and folder.name in TRAINING)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_pattern_checks_without_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", "--deny-warnings", str(folder / f"{folder.name}.attn")]) == 0
    assert capsys.readouterr().err == ""


def test_the_main_job_on_the_pretrained_model(capsys: pytest.CaptureFixture[str]) -> None:
    from attnc.runtime.inputs import have_model

    if not have_model():
        pytest.skip('needs pip install "attnc[examples]"')
    path = str(ROOT / "examples" / "longformer" / "longformer.attn")
    assert invoke(["run", path, "-D", "window=64", "--shape", "n=700", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "MiniLM-L6 layer 5 on declaration.txt" in out
    assert "all 700 queries" in out
