"""This machine's prices: fitted from measured calls, read back, and used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import attnc
from attnc.compiler.cost import machine
from attnc.compiler.cost.predict import Setting
from attnc.compiler.driver import load_text
from attnc.compiler.passes.build_plan import build_plan
from attnc.costs import calibration_path

PRICES = (40.0, 5.0, 0.5, 2e-4, 1e-5, 1e-4, 1e-4)
DOCUMENTS = "input doc: int[n]\npattern p = { q -> k : doc[q] == doc[k] }"


def setting(n: int, **others: object) -> Setting:
    given = {"nq": n, "nk": n, "heads": 2, "kv_heads": 2, "dtype": "fp32", "device": "cpu"}
    return Setting(**{**given, **others})  # type: ignore[arg-type]


def calibration(*dtypes: str) -> machine.Calibration:
    prices = machine.Prices(microseconds=PRICES, error=0.1, worst=0.3)
    executors: tuple[machine.Executor, ...] = ("strips", "gathered", "dense")
    return machine.Calibration(
        machine={"cpu": "test"}, prices={(e, dtype): prices for e in executors for dtype in dtypes}
    )


def test_prices_are_found_again() -> None:
    """Times made of known prices give these prices back, and no error."""
    generator = np.random.default_rng(0)
    work = generator.random((24, 7)) * np.array([0, 9, 1e3, 1e6, 1e8, 1e6, 1e5])
    work[:, 0] = 1
    found = machine.fit_prices(work, work @ np.array(PRICES))
    assert found.microseconds == pytest.approx(PRICES, rel=1e-6)
    assert found.worst < 1e-6
    assert found(work[3]) == pytest.approx(float(work[3] @ np.array(PRICES)))


def test_nothing_costs_less_than_nothing() -> None:
    generator = np.random.default_rng(1)
    work = generator.random((12, 7))
    times = work @ np.array([1, 0, 0, 2, 0, -0.1, 0])
    found = machine.fit_prices(work, times)
    assert min(found.microseconds) >= 0
    assert found.worst > 0


def test_work_is_that_of_the_tiles() -> None:
    """A causal window of 64 in tiles of 32: three tiles a row, two and one in the first rows."""
    plan = build_plan(load_text("pattern p = { q -> k : 0 <= q - k <= 64 }"), head_dim=64).cpu
    work = machine.work_of(plan, setting(320, batch=3), {})
    rows, pairs = 10 * 6, (3 * 10 - 3) * 32 * 32 * 6
    assert work.tolist() == [1, 3, rows, pairs, pairs * 128, pairs, 3 * 2 * 320 * 128]
    dense = machine.dense_work(setting(320, batch=3))
    assert dense[3] == 320 * 320 * 6


def test_data_decides_the_work() -> None:
    pattern = load_text(DOCUMENTS)
    plan = build_plan(pattern, head_dim=64).cpu
    assert machine.executor_of(plan) == "gathered"
    ids = np.repeat(np.arange(4), 64)
    work = machine.work_of(plan, setting(256), pattern.given(256, 256, {"doc": ids}))
    assert work[3] == 4 * 64 * 64 * 2
    assert work[5] == 0  # all tiles are full


def test_a_calibration_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(calibration("fp32", "bf16").text(), encoding="utf-8")
    assert machine.read_calibration(path) == calibration("fp32", "bf16")


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"machine": {}, "prices": {"a": {}}}'])
def test_another_file_is_no_calibration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is no calibration"):
        machine.read_calibration(path)


def test_this_machine_is_predicted_once_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    pattern = attnc.zoo.window(left=255)
    with pytest.raises(ValueError, match="attnc cost --calibrate"):
        pattern.cost(n=4096, device="cpu", dtype="fp32")
    calibration_path().write_text(calibration("fp32").text(), encoding="utf-8")
    found = pattern.cost(n=4096, heads=4, device="cpu", dtype="fp32")
    assert found.counts.pairs_kept == pattern.blocks(4096).pairs_kept
    assert found.kernels[0].name == "strips"
    assert found.speedup_over_dense > 4
    assert found.worst_row == 9
    own = Setting(nq=4096, nk=4096, heads=4, kv_heads=4, dtype="fp32", device="cpu")
    work = machine.work_of(build_plan(pattern.ir, head_dim=64).cpu, own, {})
    assert found.time_us == pytest.approx(float(work @ np.array(PRICES)))
    data = attnc.parse(DOCUMENTS).cost(inputs={"doc": [0] * 64}, device="cpu", dtype="fp32")
    assert data.kernels[0].name == "gathered"
    for options, says in (
        ({"dtype": "bf16"}, "no prices for bf16"),
        ({"work": "backward"}, "knows the forward"),
        ({"tile": "boxes"}, "walks no boxes"),
    ):
        with pytest.raises(ValueError, match=says):
            pattern.cost(**{"n": 64, "device": "cpu", "dtype": "fp32", **options})


def test_parts_in_other_orders_are_counted_in_them() -> None:
    """Every 64th key: classes of 64 tokens, in which the pattern is causal."""
    text = "pattern p = { q -> k : k <= q and (q - k) mod 64 == 0 }"
    found = machine.predict_cpu(load_text(text), setting(4096), {}, calibration("fp32"))
    assert found.counts.pairs_kept == 64 * (64 * 65 // 2)
    assert found.waste < 1.6


def test_measuring_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from attnc.runtime import calibrate

    monkeypatch.setattr(calibrate, "_SHAPES", ((64, 1, 16), (96, 2, 16)))
    monkeypatch.setattr(calibrate, "_DENSE_SHAPES", ((64, 1, 16), (96, 2, 16)))
    monkeypatch.setattr(calibrate, "_STATIC", calibrate._STATIC[:2])
    monkeypatch.setattr(calibrate, "_GATHERED", calibrate._GATHERED[-2:])
    monkeypatch.setattr(calibrate, "DTYPES", {"fp32": torch.float32})
    steps: list[str] = []
    found = calibrate.calibrate(steps.append)
    assert steps == ["measuring fp32"]
    assert set(found.prices) == {(e, "fp32") for e in ("strips", "gathered", "dense")}
    assert all(sum(prices.microseconds) > 0 for prices in found.prices.values())
