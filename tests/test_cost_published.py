"""The cost model beside published numbers: every error that docs/cost.md states is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import attnc
from attnc.compiler.cost.fits import DENSE_FITS
from attnc.compiler.cost.nattensim import Neighbourhood
from tests import markdown
from tests import published_costs as published

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cost.md"


def errors(name: str) -> list[float]:
    return [abs(said / known - 1) for _, known, said in published.TABLES[name]()]


def test_all_but_one_of_nattensims_numbers_are_reproduced() -> None:
    """The other is a window of its own stride, 30 x 40 x 40, which other boxes explain."""
    off = [case for case, known, said in published.nattensim() if abs(said - known) > 0.016]
    assert off == ["HunyuanVideo 30x40x40 stride 30x40x40"]


def test_the_points_of_cudnn_are_met_within_two_percent() -> None:
    assert len(errors("cudnn")) == 10
    assert max(errors("cudnn")) < 0.02


@pytest.mark.parametrize(
    ("table", "fit"), [("cudnn", 0), ("cudnn-backward", 1), ("cudnn-window", 2)]
)
def test_fits_state_their_errors(table: str, fit: int) -> None:
    assert max(errors(table)) <= DENSE_FITS[fit].error <= max(errors(table)) + 0.002


def test_the_fit_of_another_device_states_its_error() -> None:
    on_b200 = [abs(said / known - 1) for name, known, said in published.natten_dense()
               if name.startswith("b200")]  # fmt: skip
    fit = next(fit for fit in DENSE_FITS if fit.device == "b200")
    assert max(on_b200) <= fit.error <= max(on_b200) + 0.002


def test_the_rates_of_generated_kernels_hold_beyond_their_fit() -> None:
    """Other batches, lengths and head dims than those that gave the efficiency."""
    assert max(errors("triton")) < 0.017
    assert max(errors("triton-others")) < 0.065


def test_nattens_kernel_is_predicted_within_nine_percent() -> None:
    found = errors("natten")
    assert len(found) == 7
    assert max(found) < 0.09
    assert sorted(found)[3] < 0.056


def test_plans_of_a_cpu_are_ranked() -> None:
    """What bench/cost.py wrote: tiles and token orders, most of which no price was fitted to."""
    rows = list(published.cpu())
    assert len(rows) == 20
    assert json.loads(published.RANKED.read_text(encoding="utf-8"))["rank_correlation"] >= 0.9


@pytest.mark.parametrize(
    ("shape", "window", "stride", "box"),
    [
        ((30, 48, 80), (18, 24, 24), (1, 1, 1), ((4, 8, 8), (2, 8, 8))),
        ((30, 48, 80), (18, 24, 24), (16, 8, 8), ((4, 8, 8), (2, 8, 8))),
        ((64, 64), (9, 12), (3, 4), ((16, 8), (8, 16))),
    ],
)
def test_the_zoos_neighbourhoods_have_the_same_worst_tile(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...],
    box: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    """Counted from the pattern's text by the compiler, and from the windows by arithmetic."""
    pattern = attnc.zoo.gna(shape=list(shape), window=list(window), stride=list(stride))
    one = Neighbourhood(
        shape=shape, window=window, stride=stride, query_tile=box[0], key_tile=box[1]
    )
    found = pattern.cost(tile=box)
    assert found.worst_tile_speedup == pytest.approx(one.speedup)
    assert found.kernels[0].tiles == int(one.rows().sum())


def test_key_tiles_that_begin_at_the_window_are_never_more() -> None:
    """Dynamic tiling: a window of 24 needs 3 tiles of 8 wherever it lies, and 4 at fixed places."""
    sides = {
        "shape": (96,), "window": (24,), "stride": (1,), "query_tile": (1,), "key_tile": (8,)
    }  # fmt: skip
    assert Neighbourhood(**sides).speedup == 12 / 4  # type: ignore[arg-type]
    assert Neighbourhood(**sides, tiling="dynamic").speedup == 12 / 3  # type: ignore[arg-type]


def test_strides_dilation_and_causal_axes() -> None:
    causal = Neighbourhood(
        shape=(64,), window=(16,), stride=(1,), query_tile=(8,), key_tile=(8,), causal=(True,)
    )
    assert causal.rows().tolist() == [1, 2, *[3] * 6]
    assert not causal.block_sparse
    dilated = Neighbourhood(
        shape=(64,), window=(16,), stride=(16,), query_tile=(16,), key_tile=(16,), dilation=(4,)
    )
    assert dilated.rows().tolist() == [1, 1, 1, 1]
    blocked = Neighbourhood(
        shape=(64,), window=(16,), stride=(16,), query_tile=(16,), key_tile=(16,)
    )
    assert blocked.block_sparse
    assert blocked.flop_speedup == blocked.speedup == 4


@pytest.mark.parametrize(
    ("sides", "says"),
    [
        ({"window": (40,)}, "a window of 40 is wider than 32"),
        ({"stride": (9,)}, "a stride of 9 does not fit window 8"),
        ({"key_tile": (8, 8)}, "one number for each axis"),
    ],
)
def test_windows_that_cannot_be_are_refused(sides: dict[str, object], says: str) -> None:
    usual = {
        "shape": (32,), "window": (8,), "stride": (1,), "query_tile": (8,), "key_tile": (8,)
    }  # fmt: skip
    with pytest.raises(ValueError, match=says):
        Neighbourhood(**{**usual, **sides})  # type: ignore[arg-type]


def test_the_page_states_the_errors_of_today(update_golden: bool) -> None:
    found = markdown.blocks(PAGE.read_text(encoding="utf-8"))
    tables = [block for block in found if block.kind == "errors"]
    assert {block.options["of"] for block in tables} == set(published.TABLES)
    expected = [(block, published.text(block.options["of"])) for block in tables]
    markdown.check(PAGE, expected, update_golden)
