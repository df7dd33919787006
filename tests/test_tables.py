"""Tables of tiles built at a call, by torch: equal to the compiler's own."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen import data as emitted
from attnc.codegen import tables
from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.writer import Writer
from attnc.compiler.driver import load_text
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Input, Pattern
from attnc.compiler.ir.plan import CpuPlan, DataTiles, Segment
from attnc.compiler.passes import data_tiles as dt
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.hull import candidates, core
from tests.test_data_tiles import (
    HEADS,
    LENGTHS,
    NK,
    TILINGS,
    H,
    K,
    Q,
    arrays,
    conditions,
    doc,
    flag,
)
from tests.test_data_tiles import pattern_of as bare_pattern_of

INPUTS = (
    Input(name="doc", kind="int", dims=(None,)),
    Input(name="near", kind="bool", dims=(None, None)),
    Input(name="slash", kind="bool", dims=(None, None)),
    Input(name="reach", kind="int", dims=(None, None)),
    Input(name="phase", kind="int", dims=()),
)


def pattern_of(predicate: ex.BoolExpr) -> Pattern:
    bare = bare_pattern_of(predicate)
    return Pattern(name="p", heads=bare.heads, body=bare.body, inputs=INPUTS)


def data_plan(predicate: ex.BoolExpr, tiling: Tiling, *, refine: bool = False) -> CpuPlan:
    """Make the CPU plan of a predicate that reads data."""
    mask = candidates(pattern_of(predicate), tiling)
    return CpuPlan(
        block_mask=mask, strips=(),
        segments=tuple(Segment(tiles=p.tiles, mask=0 if p.full else 1) for p in mask.pieces),
        data=DataTiles(predicate=mask.pattern.predicate, core=core(predicate), refine=refine),
    )


def written(plan: CpuPlan) -> SimpleNamespace:
    """Run the emitted text, as a written module does."""
    namespace: dict[str, Any] = {"__name__": "written", "torch": torch}
    out = Writer()
    emitted.emit_candidates(out, "_cpu_segments", plan.segments, plan.block_mask.pattern.heads)
    refine = plan.data is not None and plan.data.refine
    emitted.emit_rules(out, "_CPU_RULES", plan, refine=refine)
    for text in (HOST_HELPERS, emitted.emit_tiles(plan), out.text()):
        exec("from __future__ import annotations\n" + text, namespace)
    return SimpleNamespace(**namespace)


def as_tensors(data: dict[str, Any]) -> dict[str, Any]:
    """Return inputs as an op passes them: with a batch dimension."""
    return {n: x if isinstance(x, int) else torch.from_numpy(x)[None] for n, x in data.items()}


def rows(starts: Any, entries: Any) -> list[list[int]]:
    """Return the entries of each row, sorted."""
    ends = list(map(int, starts))
    return [sorted(map(int, entries[a:b])) for a, b in itertools.pairwise(ends)]


@settings(max_examples=120, deadline=None)
@given(
    predicate=conditions(), nq=LENGTHS, nk=LENGTHS, tiling=TILINGS, seed=st.integers(0, 99),
    refine=st.booleans(),
)
def test_equal_to_the_tables_of_the_compiler(
    predicate: ex.BoolExpr, nq: int, nk: int, tiling: Tiling, seed: int, refine: bool
) -> None:
    plan, data = data_plan(predicate, tiling, refine=refine), arrays(seed, nq, nk)
    assert plan.data is not None
    expected = dt.tile_table(plan.block_mask, plan.data, nq, nk, data)
    module = written(plan)
    found = module._tile_table(
        module._CPU_RULES, nq, nk, 1, as_tensors(data), torch.device("cpu")
    )
    heads = expected.heads if found.heads > 1 else 1
    assert rows(expected.starts, expected.entries)[: heads * -(-nq // tiling.q)] == rows(
        found.starts, found.entries
    )


PACKED = ex.and_(ex.compare("<=", K, Q), ex.compare("==", doc(Q), doc(K)))


@pytest.mark.parametrize("refine", [False, True])
def test_a_batch_has_rows_of_its_own(refine: bool) -> None:
    module = written(data_plan(PACKED, Tiling(16, 16), refine=refine))
    docs = torch.tensor([[0] * 20 + [1] * 30, list(range(50)), [7] * 50])
    device = torch.device("cpu")
    found = module._tile_table(module._CPU_RULES, 50, 50, 3, {"doc": docs}, device)
    alone = [
        module._tile_table(module._CPU_RULES, 50, 50, 1, {"doc": d[None]}, device) for d in docs
    ]
    assert (found.batch, found.heads) == (3, 1)
    expected = [row for one in alone for row in rows(one.starts, one.entries)]
    assert rows(found.starts, found.entries) == expected


def test_bounded_chunks_give_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into portions of a few candidates, positions and pairs, nothing changes."""
    data = as_tensors(arrays(3, 90, 100))
    either = ex.or_(PACKED, flag("slash", H, ex.sub(Q, K)))
    module = written(data_plan(either, Tiling(16, 8), refine=True))
    arguments = (module._CPU_RULES, 90, 100, 1, data, torch.device("cpu"))
    whole = module._tile_table(*arguments)
    scope = module._tile_table.__globals__
    for name, value in (
        ("_AT_ONCE", {"cpu": 7}), ("_PAIRS_AT_ONCE", 300), ("_POSITIONS_AT_ONCE", 40)
    ):
        monkeypatch.setitem(scope, name, value)
    cut = module._tile_table(*arguments)
    assert torch.equal(whole.starts, cut.starts)
    assert torch.equal(whole.entries, cut.entries)


@pytest.mark.parametrize("places", [0, 1 << 24], ids=["counted", "a place each"])
@pytest.mark.parametrize("refine", [False, True])
def test_the_forms_for_a_gpu_give_the_same_table(
    monkeypatch: pytest.MonkeyPatch, refine: bool, places: int
) -> None:
    """What a GPU runs, on the CPU: with a place for each candidate, and counted first."""
    either = ex.or_(PACKED, flag("slash", H, ex.sub(Q, K)))
    module = written(data_plan(either, Tiling(16, 8), refine=refine))
    data = as_tensors(arrays(5, 90, 100))
    cpu = module._tile_table(module._CPU_RULES, 90, 100, 1, data, torch.device("cpu"))
    scope = module._tile_table.__globals__
    monkeypatch.setitem(scope, "_PLACES", places)
    monkeypatch.setitem(scope, "_COLLECTED", ())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    found = module._tile_table(module._CPU_RULES, 90, 100, 1, data, torch.device("cpu"))
    assert rows(cpu.starts, cpu.entries) == rows(found.starts, found.entries)
    assert cpu.heads == found.heads == HEADS


def test_a_table_of_unknown_size_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = written(data_plan(PACKED, Tiling(16, 16)))
    monkeypatch.setitem(module._tile_table.__globals__, "_PLACES", 3)
    monkeypatch.setitem(module._tile_table.__globals__, "_COLLECTED", ())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"10 candidate tiles: .* a CUDA graph cannot wait"):
        module._tile_table(
            module._CPU_RULES, 50, 50, 1, as_tensors(arrays(0, 50, 50)), torch.device("cpu")
        )


def test_memory_follows_the_visited_tiles() -> None:
    """A window and same document: 64 times the tokens, 64 times the entries, nothing squared."""
    near = ex.and_(PACKED, ex.compare("<", ex.sub(Q, K), ex.Const(64)))
    module = written(data_plan(near, Tiling(32, 32)))
    sizes = []
    for n in (1 << 12, 1 << 18):
        docs = (torch.arange(n) // 100)[None]
        table = module._tile_table(module._CPU_RULES, n, n, 1, {"doc": docs}, torch.device("cpu"))
        sizes.append(len(table.entries))
    assert sizes[1] <= 64 * (sizes[0] + 10)


def test_static_candidates_are_all_visited() -> None:
    """Without data, classes are those of the segments."""
    causal = ex.compare("<=", K, ex.sub(NK, ex.sub(NK, Q)))
    mask = candidates(pattern_of(causal), Tiling(16, 16))
    segments = tuple(Segment(tiles=p.tiles, mask=0 if p.full else 1) for p in mask.pieces)
    module = written(CpuPlan(block_mask=mask, strips=(), segments=segments))
    found = module._tile_table(module._CPU_RULES, 40, 40, 1, {}, torch.device("cpu"))
    assert rows(found.starts, found.entries) == [[1], [0, 9], [0, 8, 17]]


def test_rows_of_equal_candidates_are_cut_whole() -> None:
    counts = torch.tensor([3, 0, 9, 2, 2, 0])
    assert list(tables._portions(counts, 4)) == [(0, 2, 3), (2, 3, 9), (3, 6, 4)]
    assert np.array_equal(counts, [3, 0, 9, 2, 2, 0])


def test_a_table_that_reads_no_data_is_kept() -> None:
    """It is built once for each pair of lengths, for all batches and heads of inputs."""
    causal = ex.and_(ex.compare("<=", K, Q), ex.compare("==", ex.mod(ex.sub(Q, K), 5), ex.ZERO))
    module = written(data_plan(causal, Tiling(16, 16)))
    device = torch.device("cpu")
    assert module._CPU_RULES.extents == ()
    first = module._tile_table(module._CPU_RULES, 50, 50, 1, {}, device)
    bias = {"bias": torch.zeros(3, 2)}
    assert module._tile_table(module._CPU_RULES, 50, 50, 3, bias, device) is first
    assert first.batch == 1
    assert module._tile_table(module._CPU_RULES, 50, 40, 1, {}, device) is not first
    with torch.inference_mode():
        made = module._tile_table(module._CPU_RULES, 40, 40, 1, {}, device)
    assert not made.entries.is_inference()
    for n in range(1, 2 * tables._KEPT_TABLES):
        module._tile_table(module._CPU_RULES, n, n, 1, {}, device)
    assert len(module._tile_table.__globals__["_TABLES"]) == tables._KEPT_TABLES


def test_a_table_of_extents_is_kept_for_each_extent() -> None:
    """Open extents are part of what it is kept for; what is read by position is never kept."""
    ir = load_text("pattern p on grid(y: rows, x: cols) = { q -> k : q.y == k.y }")
    module = written(build_plan(ir, head_dim=16, tile=Tiling(16, 16)).cpu)
    assert module._CPU_RULES.extents == ("cols",)
    device = torch.device("cpu")
    found = [
        module._tile_table(module._CPU_RULES, 64, 64, 1, {"rows": 64 // c, "cols": c}, device)
        for c in (32, 64, 32)
    ]
    assert found[0] is found[2]
    assert found[0] is not found[1]
    assert len(found[0].entries) < len(found[1].entries)
    assert written(data_plan(PACKED, Tiling(16, 16)))._CPU_RULES.extents is None


def test_kept_tables_in_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built while a graph is captured; what it reads stays."""
    module = written(data_plan(ex.compare("<=", K, Q), Tiling(16, 16)))
    scope = module._tile_table.__globals__
    rules, device = module._CPU_RULES, torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call the op once with these lengths"):
        module._tile_table(rules, 50, 50, 1, {}, device)
    table = module._Table(torch.zeros(1), torch.zeros(0), 1, 1)
    scope["_TABLES"][(rules, 50, 50, device)] = table
    assert module._tile_table(rules, 50, 50, 1, {}, device) is table
    assert scope["_PINNED_TABLES"] == [table]
