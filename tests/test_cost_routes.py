"""What a routed attention costs: densities beside the oracle, loop orders, warnings, text."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attnc
from attnc.cli import invoke
from attnc.compiler import route_oracle as oracle
from attnc.compiler.cost.predict import Setting
from attnc.compiler.cost.route_density import Sample, expected, union
from attnc.compiler.cost.route_report import explain_text
from attnc.compiler.cost.route_sum import sum_cost
from attnc.compiler.cost.routes import is_causal, route_cost
from attnc.compiler.ir.route import Ratio
from attnc.compiler.ir.routed import Routed
from tests import published_routes as published
from tests.routes import zoo_ir as zoo
from tests.routes.cases import CASES
from tests.routes.data import real

BUDGETED = [
    "moba", "moba_wide", "vmoba", "vmoba_row", "nsa_selected", "infllm_v2", "dsa", "biformer",
    "minference_block", "minference_vertical_slash", "seer_top", "snapkv", "quest", "kinetics",
    "loki", "dma", "sla", "sparsed",
]  # fmt: skip
"""Methods whose budgets say how much they select."""


def setting(tokens: int = 8192, heads: int = 8, **others: Any) -> Setting:
    given = {"nq": tokens, "nk": tokens, "heads": heads, "kv_heads": heads, "device": "h100"}
    return Setting(**{**given, "head_dim": 128, "value_dim": 128, **others})


@pytest.mark.parametrize("name", BUDGETED)
def test_units_are_those_that_the_oracle_selects(name: str) -> None:
    case = CASES[name]
    shape = case.shape()
    q, k, _ = real(shape)
    method: Routed = case()
    inputs = case.inputs(shape, np.random.default_rng(0))
    for route in method.routes:
        found = oracle.relation(method, route, q, k, inputs).sum(-1)
        shift = shape.nk - shape.nq if method.base.align == "bottom-right" else 0
        said = expected(
            route, shape.nq, shape.nk, causal=is_causal(method.base), shift=shift, cells=(8, 8)
        )
        if route.compete == "row":
            assert np.array_equal(found, np.broadcast_to(said.selected, found.shape))
        else:
            assert found.mean() == pytest.approx(said.units, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "error"),
    [("moba", 1e-12), ("moba_wide", 1e-12), ("dsa", 1e-12), ("vmoba_row", 0.03), ("sla", 0.03),
     ("minference_block", 0.05), ("nsa_selected", 0.05), ("minference_vertical_slash", 0.15)],
)  # fmt: skip
def test_pairs_are_those_of_the_mask(name: str, error: float) -> None:
    """Exactly, where the units say it; of columns and blocks in the mean over heads."""
    case = CASES[name]
    shape = case.shape(nq=61, nk=61, b=8)
    q, k, _ = real(shape)
    method = case()
    mask = oracle.mask(method, q, k, case.inputs(shape, np.random.default_rng(0)))
    found = mask.sum((2, 3)).mean()
    causal = is_causal(method.base)
    base = 61 * 62 / 2 if causal else 61 * 61
    missing = 1.0
    for route in method.routes:
        missing *= 1 - expected(route, 61, 61, causal=causal).pairs.sum() / base
    assert (1 - missing) * base == pytest.approx(found, rel=error)


def test_mobas_density_is_half_its_own_block_and_two_others() -> None:
    found = route_cost(zoo.moba(512, 3), setting(65536), search=False)
    last = 65536 - 1024  # from there on two past blocks
    blocks = 128
    pairs = blocks * 512 * 513 / 2 + 512 * 512 + last * 1024
    assert found.density == pytest.approx(pairs / (65536 * 65537 / 2), rel=1e-12)


def test_a_union_of_independent_rows() -> None:
    """The figure of ``dynamic.md``: 16 of 2048 blocks, 64 rows: 809, 50 times the budget."""
    assert union(16, 2048, 64) == pytest.approx(809, abs=1)
    rng = np.random.default_rng(0)
    chosen = np.zeros((50, 64, 2048), dtype=bool)
    for at in np.ndindex(50, 64):
        chosen[at][rng.permutation(2048)[:16]] = True
    assert Sample(chosen).union(64) == pytest.approx(809, rel=0.01)
    assert Sample(chosen).union(1) == 16
    same = np.broadcast_to(chosen[:, :1], chosen.shape)
    assert Sample(same).union(64) == 16


def test_a_sample_is_read_from_the_lists_of_a_selection() -> None:
    index = np.array([[[0, 2, -1], [1, -1, -1]]])
    found = Sample.of_lists(index, np.array([[2, 1]]), 4)
    assert np.array_equal(found.relation[0], [[1, 0, 1, 0], [0, 1, 0, 0]])
    assert found.share == 3 / 8


def test_a_budget_that_data_decides_needs_a_sample() -> None:
    method = zoo.xattention(16, 128)
    with pytest.raises(ValueError, match="depends on the data: give a sample"):
        route_cost(method, setting())
    with pytest.raises(ValueError, match="there is no route `other`"):
        route_cost(method, setting(), {"other": Sample(np.ones((1, 1, 1), bool))})
    half = np.tril(np.ones((64, 64), dtype=bool))
    half[:, ::2] = False
    found = route_cost(method, setting(), {"xattention": Sample(half)}, search=False)
    dense = route_cost(method, setting(), {"xattention": Sample(np.tril(np.ones((64, 64), bool)))})
    assert found.routes[0].measured
    assert 0.45 < found.density < 0.55
    assert found.part_us("attend") < 0.6 * dense.part_us("attend")
    assert dense.density > 0.95


def test_overlap_that_is_measured_changes_the_loop_order() -> None:
    """Rows that choose alike are walked together; rows that do not are gathered for each key."""
    method = zoo.moba(64, 8)
    apart = route_cost(method, setting(16384), search=False)
    relation = np.zeros((1, 16384, 256), dtype=bool)
    relation[:, :, :8] = True
    alike = route_cost(method, setting(16384), {"moba": Sample(relation)}, search=False)
    assert apart.routes[0].loop.startswith("key-outer")
    assert alike.routes[0].loop.startswith("row-outer")
    assert alike.routes[0].union_of_64 == pytest.approx(8)
    assert alike.part_us("attend", "merge") < apart.part_us("attend", "merge")


def test_groups_share_a_row() -> None:
    grouped = setting(32768, 64, kv_heads=4)
    found = route_cost(zoo.nsa_selected(64, 16, (32, 16)), grouped, search=False)
    alone = route_cost(
        zoo.nsa_selected(64, 16, (32, 16)), setting(32768, 64), search=False
    )  # fmt: skip
    assert found.routes[0].loop.startswith("row-outer")
    assert alone.routes[0].loop.startswith("key-outer")
    assert alone.part_us("attend", "merge") > 1.1 * found.part_us("attend", "merge")


def test_every_stage_is_charged_and_costs_add() -> None:
    found = route_cost(zoo.moba(512, 3), setting(16384), search=False)
    stages = {k.name.split()[0] for k in found.kernels}
    assert stages >= {"score", "select", "attend"}
    assert found.time_us == pytest.approx(sum(k.cost.time_us for k in found.kernels))
    scored = next(k for k in found.kernels if k.name == "score moba")
    # Past blocks of each token, 8 heads, two operations for each of 128 channels.
    assert scored.cost.flops == 8 * sum(512 * b for b in range(32)) * 256


def test_what_is_kept_is_charged_and_merged() -> None:
    method = zoo.anchor(128, 16, sink=128)
    relation = np.zeros((1, 64, 8192), dtype=bool)
    relation[..., :400] = True
    found = route_cost(method, setting(), {"anchor": Sample(relation)}, search=False)
    names = [k.name for k in found.kernels]
    assert names == ["score anchor", "select anchor", "attend anchor", "kept forward", "merge"]


@pytest.mark.parametrize("name", [n for n in CASES if isinstance(CASES[n](), Routed)])
def test_every_method_has_a_cost(name: str) -> None:
    case = CASES[name]
    method = case()
    tokens = case.fixed or 2048
    samples = {
        r.name: Sample(np.random.default_rng(0).random((2, 16, 16)) < 0.25) for r in method.routes
    }
    found = route_cost(method, setting(tokens), samples, search=False)
    assert 0 < found.time_us < 1e6
    assert 0 < found.density <= 1
    assert json.loads(json.dumps(found.as_dict()))["time_us"] == found.time_us
    assert str(found)
    assert explain_text(found)


def test_a_route_that_cannot_win_is_said_with_the_crossover() -> None:
    """VMoBA below 33k, MInference at 10k: published as slower than dense there."""
    method = zoo.minference_vertical_slash(64, 1000, 6096, 30, 100)
    at_10k = setting(10240, 32, kv_heads=8, device="a100")
    found = route_cost(method, at_10k)
    assert found.speedup_over_dense < 1
    (said,) = found.warnings
    assert said.startswith("the route cannot win at n = 10,240: it takes")
    assert found.crossover is not None
    assert f"faster from n = {found.crossover:,} on" in said
    assert f"warning  {said}" in str(found)
    beyond = replace(at_10k, nq=found.crossover, nk=found.crossover)
    assert route_cost(method, beyond, search=False).speedup_over_dense > 1
    before = replace(at_10k, nq=found.crossover // 2, nk=found.crossover // 2)
    assert route_cost(method, before, search=False).speedup_over_dense < 1


def test_a_route_that_selects_everything_never_wins() -> None:
    everything = replace(
        zoo.minference_block(64),
        routes=(replace(zoo.minference_block(64).routes[0], select=Ratio(share=Fraction(1))),),
    )
    found = route_cost(everything, setting())
    assert found.crossover is None
    (said,) = found.warnings
    assert "at no length" in said


def test_a_gated_sum_is_its_terms_and_adding_them() -> None:
    """NSA: compressed keys, selected blocks, a window; the first needs its number of keys."""
    method = zoo.nsa(64, 16, (32, 16), 512)
    long = setting(65536, 64, kv_heads=4)
    with pytest.raises(ValueError, match="`nsa` needs the number of keys of `compressed`"):
        sum_cost(method, long)
    with pytest.raises(ValueError, match="`nsa` has no stream of keys `other`"):
        sum_cost(method, long, {"compressed": 4095, "other": 1})
    found = sum_cost(method, long, {"compressed": 4095})
    alone = route_cost(zoo.nsa_selected(64, 16, (32, 16)), long, search=False)
    assert [k.name for k in found.kernels][-1] == "merge"
    assert found.part_us("score", "select", "attend") == pytest.approx(
        alone.part_us("score", "select", "attend")
    )
    assert found.time_us > alone.time_us
    assert found.speedup_over_dense > 1
    assert found.crossover is not None
    assert found.crossover < 65536
    assert str(found)
    assert explain_text(found)


def test_only_a_forward_is_modelled() -> None:
    with pytest.raises(ValueError, match="a routed backward is not modelled"):
        route_cost(zoo.moba(), setting(work="backward"))


def test_published_figures() -> None:
    """The errors that docs/cost.md states; the largest are of kernels that do more than ours."""
    errors = {name: said / known - 1 for name, known, said in published.rows()}
    assert len(errors) == 7
    assert sorted(map(abs, errors.values()))[3] < 0.3
    selected = next(e for n, e in errors.items() if n.startswith("NSA 131k, selected"))
    assert abs(selected) < 0.1


# ------------------------------------------------------------------------------ the public path


def test_cost_of_a_loaded_attention() -> None:
    found = attnc.zoo.moba(block=4096, top=12).cost(
        n=1 << 20, heads=32, head_dim=128, device="h100"
    )
    assert found.speedup_over_dense == pytest.approx(
        published.at(zoo.moba(4096, 12), 1 << 20).speedup_over_dense
    )
    assert found.bound_by == "matrix"
    nsa = attnc.zoo.nsa().cost(n=65536, heads=16, kv_heads=1, streams={"compressed": 4095})
    assert nsa.part_us("score") > 0
    half = np.tril(np.ones((128, 128), dtype=bool))
    half[:, ::2] = False
    heavy = attnc.zoo.xattention().cost(n=16384, samples={"heavy_blocks": Sample(half)})
    assert 0.4 < heavy.density < 0.6


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("moba", {}, "nq must be an integer from 1, got None"),
        ("moba", {"n": 64, "tile": "64x64"}, "`moba` is chosen by content; tile, orders"),
        ("moba", {"n": 64, "work": "decode"}, "the cost of a routed decode is not modelled"),
        ("moba", {"n": 64, "device": "cpu"}, "modelled on GPUs alone"),
        ("moba", {"n": 64, "streams": {"x": 3}}, "`moba` has no stream of keys `x`"),
        ("causal", {"n": 64, "streams": {"x": 3}}, "samples and streams go with"),
        ("xattention", {"n": 64}, "what `heavy_blocks` selects depends on the data"),
    ],
)  # fmt: skip
def test_what_has_no_cost_is_said(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attnc.zoo[name]().cost(**given)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(["cost", "moba", "--shape", "n=4096", "--heads", "8", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "route    nearest_blocks: 2.6 of 8 units a row, expected" in text
    assert "warning  the route cannot win at n = 4,096" in text
    assert "instead  nearest_blocks in the other order of loops" in text
    path = tmp_path / "selection.npy"
    np.save(path, np.tril(np.ones((2, 32, 32), dtype=bool)))
    words = ["xattention", "--shape", "n=4096", "--sample", f"heavy_blocks={path}", "--json"]
    assert invoke(["cost", *words, "--attention-share", "0.5"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["routes"][0]["measured"]
    assert record["end_to_end"] < 2
    assert invoke(["cost", "nsa", "--shape", "n=4096,compressed=255"]) == 0
    assert "a sum of 3 terms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["moba", "--backward"], 2, "--backward is for patterns: of `moba`"),
        (["moba", "--plot", "x.svg"], 2, "--plot is for patterns"),
        (["causal", "--sample", "x=y.npy"], 2, "--sample goes with what is chosen by content"),
        (["moba", "--sample", "x=nowhere.npy"], 2, "nowhere.npy is no .npy file"),
        (["nsa"], 1, "`nsa` needs the number of keys of `compressed`"),
    ],
)
def test_the_command_refuses(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["cost", *words]) == code
    assert said in capsys.readouterr().err
