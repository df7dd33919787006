"""The cost model: counts are exact, schedules are those of a queue, parts add up to the time."""

from __future__ import annotations

import heapq
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import attnc
from attnc.compiler.cost.alternatives import alternatives
from attnc.compiler.cost.devices import DEVICES, Device
from attnc.compiler.cost.model import TERMS, Cost
from attnc.compiler.cost.predict import Prediction, Setting, end_to_end, predict, work_of
from attnc.compiler.cost.rates import generated, pair_operations, tile_rates
from attnc.compiler.cost.report import levers, to_json, to_text
from attnc.compiler.cost.rows import tiles_by_row
from attnc.compiler.cost.simulate import Rates, Rows, makespan, simulate
from attnc.compiler.cost.sweep import sweep
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.classify import classify
from tests import strategies

WINDOW = "pattern p = { q -> k : 0 <= q - k < 100 }"
DOCUMENTS = "input doc: int[n]\npattern p = { q -> k : k <= q and doc[q] == doc[k] }"


def setting(n: int, **others: Any) -> Setting:
    return Setting(**{"nq": n, "nk": n, "heads": 1, "kv_heads": 1, **others})


# -------------------------------------------------------------------------- costs and devices


def test_costs_add_field_by_field() -> None:
    one = Cost(flops=3, hbm_bytes=5, matrix_us=2.0, mask_us=1.0)
    both = one + Cost(flops=4, l2_bytes=7, matrix_us=1.0, tail_us=0.5)
    assert both == Cost(
        flops=7, hbm_bytes=5, l2_bytes=7, matrix_us=3.0, mask_us=1.0, tail_us=0.5
    )
    assert both.time_us == sum(both.terms.values()) == 4.5
    assert both.bound_by == "matrix"
    assert tuple(both.terms) == TERMS


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_every_number_of_a_device_has_a_source(device: Device) -> None:
    numbers = {f.name for f in fields(Device)} - {"name", "title", "target", "sources"}
    assert set(device.sources) == numbers
    assert all(device.sources.values())


def test_peaks_are_those_of_the_data_sheets() -> None:
    published = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250, "mi300x": 1307}
    for name, tflops in published.items():
        assert DEVICES[name].peak_tflops == pytest.approx(tflops, rel=0.005)


# -------------------------------------------------------------------------------- the schedule


def by_queue(lengths: list[float], workers: int) -> float:
    """Play the queue through, row by row."""
    ends = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=200),
    copies=st.integers(1, 5), workers=st.integers(1, 150),
)
def test_heavy_rows_first_is_played_exactly(
    lengths: list[int], copies: int, workers: int
) -> None:
    """Whole numbers up to 24 are kinds of their own, so nothing is rounded."""
    each = np.array(lengths, dtype=np.float64)
    expected = by_queue(sorted(lengths * copies, reverse=True), workers)
    assert makespan(each, copies, workers) == pytest.approx(expected)


@given(lengths=st.lists(st.floats(0.5, 50), min_size=1, max_size=300), workers=st.integers(1, 99))
def test_nearly_equal_rows_may_be_taken_as_equal(lengths: list[float], workers: int) -> None:
    each = np.array(lengths)
    expected = by_queue(sorted(lengths, reverse=True), workers)
    bound = expected + (max(lengths) - min(lengths)) / 23 * (len(lengths) / workers + 1)
    assert makespan(each, 1, workers) <= bound * (1 + 1e-9)
    assert makespan(each, 1, workers) >= sum(lengths) / workers * (1 - 1e-9)


def test_rows_in_no_order_are_played_as_they_come() -> None:
    lengths = [1.0, 1.0, 1.0, 9.0]
    assert makespan(np.array(lengths), 1, 2, heavy_first=False) == by_queue(lengths, 2) == 10.0
    assert makespan(np.array(lengths), 1, 2) == 9.0


def test_the_parts_of_a_timing_are_disjoint() -> None:
    rows = Rows(tiles=np.array([[2, 4, 6], [1, 0, 3]]), copies=2)
    rates = Rates(tile_us=1.0, row_us=0.5, factors=(1.0, 1.5), workers=1)
    timing = simulate(rows, rates)
    assert (timing.tiles_us, timing.masks_us, timing.rows_us) == (32.0, 4.0, 3.0)
    assert timing.tail_us == 0.0
    assert simulate(Rows(tiles=np.zeros((2, 0), dtype=np.int64)), rates).time_us == 0.0


# -------------------------------------------------------------------------------------- counts


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(text=strategies.patterns(), n=st.integers(1, 150))
def test_counts_are_those_of_the_dense_mask(text: str, n: int) -> None:
    pattern = load_text(text)
    given = setting(n, heads=pattern.heads or 1, kv_heads=pattern.heads or 1, orders="natural")
    found = predict(pattern, given)
    mask = pattern.mask(n, n)
    assert found.counts.pairs_kept == int(mask.sum())
    tile = build_plan(pattern, head_dim=64).forward.tiling
    heads, full, some = pattern.heads or 1, 0, 0
    for h in range(heads):
        for top in range(0, n, tile.q):
            for left in range(0, n, tile.k):
                part = mask[h, top : top + tile.q, left : left + tile.k]
                full += bool(part.all())
                some += bool(part.any())
    visited = found.counts.full + found.counts.partial
    if classify(pattern, tile).widened:  # past its budget: fewer are full, more are visited
        assert found.counts.full <= full <= some <= visited
    else:
        assert (found.counts.full, visited) == (full, some)


@pytest.mark.parametrize(
    ("text", "tile", "form"),
    [
        (WINDOW, None, "ranges"),
        ("pattern p = { q -> k : exists e in 0..16 : q - k == 2**e }", (16, 16), "table"),
        ("pattern p heads h: 4 = { q -> k, h : k <= q and q - k < 64 * (h + 1) }", None, "ranges"),
        ("space s = grid(y: 30, x: 40)\n"
         "pattern p on s = { q -> k : abs(q.y - k.y) <= 4 and abs(q.x - k.x) <= 4 }",
         "boxes", "table"),
    ],
)  # fmt: skip
def test_rows_hold_the_tiles_that_a_kernel_visits(text: str, tile: Any, form: str) -> None:
    pattern = load_text(text)
    asked = Tiling(*tile) if isinstance(tile, tuple) else tile
    plan = build_plan(pattern, head_dim=64, tile=asked).forward
    assert plan.form == form
    n = pattern.lengths[0] or 1000
    tiles = tiles_by_row(plan, n, n, {})
    sides = plan.tiling if plan.boxes is None else plan.boxes.tiling
    shown = (sides.query, sides.key) if isinstance(sides, BoxTiling) else (sides.q, sides.k)
    blocks = attnc.parse(text).blocks(n, tile=shown)
    assert int(tiles.sum()) == blocks.visited
    assert int(tiles[1:].sum()) == blocks.masked


def test_tiles_found_at_the_call_are_counted_from_the_data() -> None:
    pattern = load_text(DOCUMENTS)
    ids = np.repeat(np.arange(10), 100)
    found = predict(pattern, setting(1000), {"doc": ids, "nk": 1000})
    assert found.counts.pairs_kept == 10 * 100 * 101 // 2
    one_document = predict(pattern, setting(1000), {"doc": ids * 0, "nk": 1000})
    assert one_document.kernels[0].tiles > 2 * found.kernels[0].tiles


def test_the_backward_walks_the_inverse() -> None:
    """A row of keys walks the query tiles of all query heads of its key head."""
    pattern = load_text("pattern p = { q -> k : 0 <= q - k < 100 or k < 1 }")
    own = setting(1024, heads=8, kv_heads=2, batch=3, work="backward")
    found = predict(pattern, own)
    assert [kernel.name for kernel in found.kernels] == ["prepare", "dq", "dkdv"]
    plan = build_plan(pattern, head_dim=64, backward=True).backward
    assert plan is not None
    sides = plan.dkdv.tiling
    mask = pattern.mask(1024, 1024)[0].T
    tiles = mask.reshape(1024 // sides.q, sides.q, 1024 // sides.k, sides.k).any((1, 3))
    assert found.kernels[2].tiles == int(tiles.sum()) * 8 * 3
    assert found.kernels[2].rows == 1024 // sides.q * 2 * 3
    assert found.kernels[1].rows == 1024 // plan.dq.tiling.q * 8 * 3


def test_masks_of_query_heads_share_the_rows_of_their_key_head() -> None:
    pattern = load_text("pattern p heads h: 4 = { q -> k, h : k <= q and q - k < 64 * (h + 1) }")
    plan = build_plan(pattern, head_dim=64, backward=True)
    assert plan.backward is not None
    tiles = tiles_by_row(plan.backward.dkdv, 512, 512, {})
    own = setting(512, heads=4, kv_heads=2)
    rows = work_of("dkdv", plan.backward.dkdv, tiles, own)
    assert rows.visited == int(tiles.sum())
    assert rows.number == 2 * tiles.shape[2]
    assert work_of("forward", plan.forward, tiles, own).number == 4 * tiles.shape[2]


def test_a_decode_step_reads_live_keys_alone() -> None:
    pattern = load_text("pattern p = { q -> k : k <= q and (k < 4 or q - k < 100) }")
    own = setting(4096, heads=8, kv_heads=2, head_dim=64, work="decode")
    found = predict(pattern, own)
    assert found.counts.pairs_kept == 104
    step, merge = found.kernels
    keys_bytes = 2 * 104 * (64 + 64) * 2
    splits = int(step.plan.split()[-2])
    parts = 8 * splits * 4 * 65
    assert step.cost.hbm_bytes == keys_bytes + 8 * 64 * 2 + parts
    assert merge.cost.hbm_bytes == parts + 8 * 64 * 2
    longer = predict(pattern, setting(1 << 20, heads=8, kv_heads=2, work="decode"))
    assert longer.speedup_over_dense > 3 * found.speedup_over_dense
    wide = predict(pattern, setting(4096, work="decode", queries=3))
    assert wide.counts.pairs_kept == 3 * 104


def test_a_pattern_without_a_decode_step_says_why() -> None:
    with pytest.raises(ValueError, match="different spaces"):
        predict(load_zoo("agent_collect"), setting(64, work="decode"))


@pytest.mark.parametrize(
    ("body", "operations"),
    [
        ("k <= q", 1),
        ("q div 64 == k div 64", 1),
        ("k + 3 <= q and q - k < 90", 4),
        ("k < 4 and q > 9", 1),
        ("k < 4", 0),
        ("q - k < 64 or (q - k) mod 64 == 0", 5),
    ],
)
def test_what_a_row_or_a_column_decides_alone_is_free(body: str, operations: int) -> None:
    """A difference that is asked for twice counts once."""
    predicate = load_text(f"pattern p = {{ q -> k : {body} }}").predicate
    assert pair_operations(predicate) == operations


def test_a_search_needs_no_plan() -> None:
    """Rates of a tile and tiles of its rows are all that a simulation takes."""
    loop = build_plan(load_text(WINDOW), head_dim=128).forward
    device = DEVICES["h200"]
    own = tile_rates(
        device, "forward", loop.tiling, head_dim=128, value_dim=128, dtype="bf16",
        operations=tuple(map(pair_operations, loop.masks)),
    )
    assert own == generated(device, loop, "forward")
    bare = tile_rates(
        device, "forward", loop.tiling, head_dim=128, value_dim=128, dtype="bf16"
    )
    assert (bare.tile_us, bare.factors) == (own.tile_us, (1.0,))


# ----------------------------------------------------------------------------------- the whole


def of(text: str, n: int = 8192, **others: Any) -> Prediction:
    return predict(load_text(text), setting(n, heads=16, kv_heads=16, head_dim=128,
                                            value_dim=128, **others))  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_less_work_takes_less_time_on_every_device(device: str) -> None:
    narrow = of(WINDOW, device=device)
    wide = of(WINDOW.replace("100", "2000"), device=device)
    full = of("pattern p = { q -> k : true }", device=device)
    assert narrow.time_us < wide.time_us < full.time_us
    assert narrow.speedup_over_dense > wide.speedup_over_dense > full.speedup_over_dense
    for one in (narrow, wide, full):
        assert one.time_us == pytest.approx(sum(k.cost.time_us for k in one.kernels))
        assert one.tflops < DEVICES[device].peak_tflops


def test_flops_and_bytes_are_those_of_the_call() -> None:
    found = of("pattern p = { q -> k : true }", 1024, batch=2)
    pairs = 1024 * 1024 * 16 * 2
    assert found.cost.flops == 4 * 128 * pairs
    q_k_v_out = 4 * 1024 * 16 * 2 * 128 * 2
    assert found.cost.hbm_bytes == q_k_v_out + 1024 * 16 * 2 * 4


def test_keys_beyond_the_cache_come_from_memory_again() -> None:
    """All keys and values of a head fit 50 MB up to 100k tokens of 128 + 128 in bf16."""
    text = "pattern p = { q -> k : true }"
    small, large = of(text, 65536), of(text, 262144)
    assert small.cost.hbm_bytes * 4 < large.cost.hbm_bytes
    assert large.cost.l2_bytes == 16 * small.cost.l2_bytes


def test_few_rows_leave_processors_idle() -> None:
    found = predict(load_text("pattern p = { q -> k : true }"), setting(512))
    assert found.cost.bound_by == "tail"
    assert "split the longest" in levers(found)[0].text


def test_amdahl() -> None:
    assert end_to_end(2.0, 0.5) == pytest.approx(4 / 3)
    assert end_to_end(7.0, 0.0) == 1.0
    assert end_to_end(7.0, 1.0) == pytest.approx(7.0)


def test_alternatives_are_other_plans_in_order() -> None:
    pattern = load_zoo("longformer")
    own = setting(8192, heads=8, kv_heads=8)
    chosen = predict(pattern, own)
    others = alternatives(pattern, own, {}, chosen, predict)
    assert len(others) >= 2
    assert chosen.kernels[0].plan not in [one.tile for one in others]
    assert [one.time_us for one in others] == sorted(one.time_us for one in others)


def test_alternatives_on_a_grid_are_boxes_as_large() -> None:
    pattern = load_zoo("gna", {"shape": [16, 32, 32], "window": [4, 8, 8]})
    own = setting(16 * 32 * 32, heads=8, kv_heads=8)
    chosen = predict(pattern, own)
    others = alternatives(pattern, own, {}, chosen, predict)
    assert others
    assert all("," in one.tile.split()[1].rstrip(",") for one in others)
    assert all(one.why for one in others)


def test_the_crossover_lies_where_sparse_begins_to_win() -> None:
    pattern = load_text("pattern p = { q -> k : 0 <= q - k < 3000 }")

    def at(n: int) -> Prediction:
        return predict(pattern, setting(n, heads=64, kv_heads=64, head_dim=128, value_dim=128))

    found = sweep(at, 16384)
    assert found.crossover is not None
    assert at(found.crossover).speedup_over_dense > 1
    assert at(found.crossover - 128).speedup_over_dense <= 1
    assert found.lengths[-1] == 16384


def test_text_and_json_tell_the_same() -> None:
    found = of(WINDOW)
    record, text = to_json(found), to_text(found)
    for name in (
        "pairs_kept", "pairs_computed", "tiles_full", "tiles_partial", "tiles_total", "flops",
        "hbm_bytes", "time_us", "speedup_over_dense", "bound_by", "plan",
    ):
        assert name in record
    for number in (found.counts.pairs_kept, found.counts.pairs_computed, found.counts.total):
        assert f"{number:,}" in text
    assert str(found) == text
    assert found.as_dict() == record
    for name in ("time_us", "bound_by", "pairs_kept", "pairs_computed", "speedup_over_dense"):
        assert getattr(found, name) == record[name]


# ------------------------------------------------------------------------------ from Python


def test_a_pattern_tells_its_cost() -> None:
    pattern = attnc.zoo.longformer(w=256)
    found = pattern.cost(n=16384, heads=32, kv_heads=8, head_dim=128, device="h100")
    assert found.counts.pairs_kept == pattern.blocks(16384).pairs_kept
    assert found.setting.group == 4
    assert found.speedup_over_dense > 5
    assert pattern.cost(n=4096, work="backward").time_us > pattern.cost(n=4096).time_us


def test_costs_of_data_need_the_data() -> None:
    pattern = attnc.parse(DOCUMENTS)
    found = pattern.cost(inputs={"doc": [0, 0, 1, 1]})
    assert found.counts.pairs_kept == 6
    with pytest.raises(attnc.CompileError, match="ATT0510"):
        pattern.cost(n=4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "tpu"}, "device must be one of a100"),
        ({"heads": 6, "kv_heads": 4}, "6 heads are no multiple of 4"),
        ({"heads": 0}, "heads must be an integer from 1, got 0"),
        ({"work": "sideways"}, "work must be forward, backward or decode"),
        ({"head_dim": 512}, "head_dim must be an integer from 16 to 256"),
        ({"tile": (24, 64)}, "24 tokens"),
        ({"work": "decode", "queries": 40}, "1 to 16 queries"),
        ({"batch": -1}, "batch must be an integer from 1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        attnc.zoo.causal().cost(n=64, **options)


def test_a_pattern_of_key_heads_has_their_number() -> None:
    text = "pattern p kv_heads h: 2 = { q -> k, h : k <= q and q - k < 64 * (h + 1) }"
    pattern = attnc.parse(text)
    found = pattern.cost(n=256, heads=8)
    assert (found.setting.heads, found.setting.kv_heads) == (8, 2)
    with pytest.raises(ValueError, match="2 KV heads"):
        pattern.cost(n=256, heads=8, kv_heads=4)
