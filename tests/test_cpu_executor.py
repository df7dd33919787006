"""The CPU executor against float64, against the block mask, and through the kernel's traps."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.codegen import cpu_executor, cpu_schedule
from attnc.codegen.cpu import emit_cpu, pasted
from attnc.compiler.counts import count
from attnc.compiler.driver import load_text, load_zoo, loaded_zoo, zoo_names
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import CpuPlan, Strip
from attnc.compiler.passes.classify import classify
from attnc.compiler.passes.cpu_tiles import choose
from attnc.compiler.passes.strips import strips
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError
from attnc.runtime.reference import assert_within
from tests.strategies import patterns

TILE = Tiling(32, 32)
NAMED: dict[str, str] = {
    "all": "pattern p = { q -> k : true }",
    "none": "pattern p = { q -> k : false }",
    "causal": "pattern p = { q -> k : k <= q }",
    "causal_right": "pattern p = { q -> k : nk - k >= nq - q }",
    "window": "pattern p = { q -> k : 0 <= q - k < 100 }",
    "narrow": "pattern p = { q -> k : abs(q - k) <= 5 }",
    "sink_window": "pattern p = { q -> k : k <= q and (k < 4 or q - k < 64) }",
    "dilated": "pattern p = { q -> k : 0 <= q - k <= 90 and (q - k) mod 3 == 0 }",
    "strided": "pattern p = { q -> k : k <= q and (q - k) mod 128 == 0 }",
    "fixed": "pattern p = { q -> k : k <= q and (q - k < 40 or k div 32 mod 4 >= 2) }",
    "block": "pattern p = { q -> k : q div 64 == k div 64 }",
    "block_causal": "pattern p = { q -> k : k <= q and q div 50 == k div 50 }",
    "global": "pattern p = { q -> k : abs(q - k) <= 20 or q < 3 or k < 3 or k == nk - 1 }",
    "anti": "pattern p = { q -> k : q + k <= 150 }",
    "holes": "pattern p = { q -> k : k <= q and q mod 7 != 3 and k mod 64 >= 40 }",
    "powers": "pattern p = { q -> k : exists e in 0..7 : q - k == 2**e }",
    "head_reach": "pattern p heads h: 4 = { q -> k, h : 0 <= q - k < 17 + 32 * h }",
    "head_shift": "pattern p heads h: 4 = { q -> k, h : q div 32 == k div 32 + h }",
    "head_stride": "pattern p heads h: 4 = { q -> k, h : k <= q and (k div 32 + h) mod 4 == 0 }",
}
LENGTHS = [(1, 1), (2, 2), (31, 33), (200, 77), (77, 200), (520, 520)]


@cache
def plan_of(text: str, tiling: Tiling = TILE) -> CpuPlan:
    pattern = load_text(text)
    return CpuPlan(block_mask=classify(pattern, tiling), strips=strips(pattern, tiling))


@cache
def written(plan: CpuPlan) -> SimpleNamespace:
    """Run the emitted text, as a written module does."""
    namespace: dict[str, Any] = {"__name__": "written", "torch": torch}
    exec("from __future__ import annotations\n" + emit_cpu(plan), namespace)
    return SimpleNamespace(**namespace)


def inputs(
    plan: CpuPlan, nq: int, nk: int, *, heads: int = 4, kv: int = 2, batch: int = 2,
    dim: int = 16, value_dim: int = 16, dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(nq * 1000 + nk)
    heads = plan.block_mask.pattern.heads or heads
    q = torch.randn(batch, heads, nq, dim).to(dtype)
    k = torch.randn(batch, min(kv, heads), nk, dim).to(dtype)
    v = torch.randn(batch, min(kv, heads), nk, value_dim).to(dtype)
    return q, k, v, torch.from_numpy(plan.block_mask.pattern.mask(nq, nk))[None]


def check(plan: CpuPlan, nq: int, nk: int, **shape: Any) -> None:
    q, k, v, mask = inputs(plan, nq, nk, **shape)
    out, lse = written(plan)._cpu_forward(q, k, v, 0.3)
    assert out.dtype == q.dtype
    assert_within(out, lse, q, k, v, mask, 0.3)


def attended(plan: CpuPlan, nq: int, nk: int) -> np.ndarray:
    """The pairs with a weight above 0: equal scores, V = identity."""
    heads = plan.block_mask.pattern.heads or 1
    q, k = torch.zeros(1, heads, nq, 2).double(), torch.zeros(1, 1, nk, 2).double()
    out, _ = written(plan)._cpu_forward(q, k, torch.eye(nk).double()[None, None], 1.0)
    weights: np.ndarray = out[0].numpy() > 0
    return weights


def walked(plan: CpuPlan, nq: int, nk: int) -> tuple[np.ndarray, np.ndarray, int]:
    """How often the calls visit each tile, where they mask something, how many pairs they compute.

    Shape: two ``[heads or 1, NQ, NK]``.
    """
    module = written(plan)
    heads = plan.block_mask.pattern.heads or 1
    tiles_q, tiles_k = plan.block_mask.tiles_at(nq, nk)
    visits, masked = np.zeros((2, heads, tiles_q, tiles_k), int)
    pairs = 0
    schedule = module._schedule(module._CPU_TILES, nq, nk)
    for batch in schedule.batches:
        for call in batch.calls:
            in_batch = range(heads) if batch.heads is None else batch.heads
            pairs += len(in_batch) * call.spans * call.stack * call.queries * call.keys
            for i in range(call.spans):
                kept, _ = module._mask(
                    schedule, call, batch.keys, in_batch[0], nq, nk, i, 1, torch.float32
                )
                at = torch.arange(call.keys) + call.first_key + i * call.key_step
                where = at if batch.keys.positions is None else batch.keys.positions[at]
                for row in range(call.stack):
                    first = call.first_query + i * call.query_step + row * call.stack_step
                    assert first % plan.tiling.q == 0
                    for kb in (where // plan.tiling.k).unique().tolist():
                        for head in in_batch:
                            spot = head, first // plan.tiling.q, kb
                            visits[spot] += 1
                            if kept is not None:
                                tile = kept[0, -1][:, where // plan.tiling.k == kb]
                                masked[spot] = bool((tile < 0).any())
    return visits, masked, pairs


def full_tiles(plan: CpuPlan, nq: int, nk: int) -> np.ndarray:
    """The tiles all of whose existing pairs are kept, from the dense mask."""
    holes = ~plan.block_mask.pattern.mask(nq, nk)
    for axis, side in ((1, plan.tiling.q), (2, plan.tiling.k)):
        holes = np.logical_or.reduceat(holes, np.arange(0, holes.shape[axis], side), axis=axis)
    return ~holes


@pytest.mark.parametrize("name", NAMED)
def test_named_patterns(name: str) -> None:
    """Against float64, at lengths below, at and above the tile, q and k lengths different."""
    for nq, nk in LENGTHS:
        check(plan_of(NAMED[name]), nq, nk)


@pytest.mark.parametrize("name", NAMED)
def test_visits_what_the_block_mask_says(name: str) -> None:
    """Each tile of the block mask once, no other; masked where an existing pair is not kept."""
    plan = plan_of(NAMED[name])
    for nq, nk in ((391, 200), (777, 777)):
        visits, masked, pairs = walked(plan, nq, nk)
        counts = count(plan.block_mask, nq, nk)
        assert ((plan.block_mask.grid(nq, nk) >= 0) == visits).all()
        assert ((visits > 0) & ~full_tiles(plan, nq, nk) == masked).all()
        assert pairs == counts.pairs_computed


def test_calls_are_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel computes as many pairs as the schedule lists, and reads the keys it names."""
    plan = plan_of(NAMED["sink_window"])
    module = written(plan)
    seen: list[tuple[int, int]] = []
    q, k, v, _ = inputs(plan, 300, 300, heads=2, kv=2, batch=1)

    def spy(*args: Any, **kwargs: Any) -> Any:
        queries, keys = args[0], args[1]
        seen.append((queries.shape[:3].numel() * keys.shape[2], keys.storage_offset() // 16))
        return cpu_executor._flash(*args, **kwargs)

    monkeypatch.setitem(module._cpu_attention.__globals__, "_flash", spy)
    module._cpu_forward(q, k, v, 0.25)
    calls = [c for b in module._schedule(module._CPU_TILES, 300, 300).batches for c in b.calls]
    assert sum(pairs for pairs, _ in seen) == 2 * count(plan.block_mask, 300, 300).pairs_computed
    assert [at for _, at in seen] == [call.first_key for call in calls]


@settings(max_examples=30, deadline=None)
@given(
    text=patterns(), nq=st.integers(1, 200), nk=st.integers(1, 200),
    tiling=st.sampled_from([Tiling(32, 32), Tiling(16, 16), Tiling(32, 16), Tiling(16, 64)]),
)
def test_random_patterns(text: str, nq: int, nk: int, tiling: Tiling) -> None:
    """V = identity shows the pattern's mask; the tiles walked are those of the block mask."""
    try:
        plan = plan_of(text, tiling)
    except CompileError:
        assume(False)
    assert (attended(plan, nq, nk) == plan.block_mask.pattern.mask(nq, nk)).all()
    visits, _, _ = walked(plan, nq, nk)
    assert visits.max(initial=0) <= 1
    if plan.block_mask.exact:
        assert ((plan.block_mask.grid(nq, nk) >= 0) == visits).all()


@pytest.mark.parametrize("name", ["longformer", "streaming_llm", "block_local", "s2_attention"])
def test_zoo(name: str) -> None:
    """Patterns of the zoo with their own parameters, long enough to fold, stack and gather."""
    pattern = load_zoo(name)
    plan = CpuPlan(block_mask=classify(pattern, TILE), strips=strips(pattern, TILE))
    for nq, nk in ((3, 3), (1100, 1100)):
        check(plan, nq, nk, batch=1)


@pytest.mark.parametrize("name", zoo_names())
def test_zoo_visits(name: str) -> None:
    """Over the stdlib: tiles visited, tiles masked, pairs computed are the block mask's.

    Patterns that read inputs, have scores or wait for sizes take the gathered executor.
    """
    try:
        if not isinstance(loaded_zoo(name).named.item, ast.PatternDef):
            return
        pattern = load_zoo(name)
    except CompileError:  # a size or a layer is not known
        return
    if not pattern.is_static or pattern.score is not None or pattern.inputs:
        return
    plan = CpuPlan(block_mask=classify(pattern, TILE), strips=strips(pattern, TILE))
    visits, masked, pairs = walked(plan, 300, 270)
    assert ((plan.block_mask.grid(300, 270) >= 0) == visits).all()
    assert ((visits > 0) & ~full_tiles(plan, 300, 270) == masked).all()
    assert pairs == count(plan.block_mask, 300, 270).pairs_computed


@pytest.mark.parametrize("name", ["causal", "block", "fixed", "strided", "block_causal"])
def test_long_rows(name: str) -> None:
    """Rows of unequal length run stacked, gathered keys too; results merge."""
    plan = plan_of(NAMED[name])
    check(plan, 2100, 2100, heads=1, kv=1, batch=1)
    module = written(plan)
    stacked = [
        call.stack
        for batch in module._schedule(module._CPU_TILES, 2100, 2100).batches
        for call in batch.calls
    ]
    assert (max(stacked) > 1) == (name in ("causal", "fixed"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["window", "sink_window", "fixed", "head_stride"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    """Outputs in the dtype of q, sums at least in fp32."""
    plan = plan_of(NAMED[name])
    check(plan, 333, 333, dtype=dtype, dim=64, value_dim=64)
    q, k, v, _ = inputs(plan, 40, 40, dtype=dtype)
    _, lse = written(plan)._cpu_forward(q, k, v, 1.0)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("dim", "value_dim"), [(16, 40), (40, 16), (24, 24), (80, 80), (1, 3)])
def test_kernel_refuses_unequal_widths(dim: int, value_dim: int) -> None:
    """Widths of q and v may differ, and need not be multiples of anything."""
    check(plan_of(NAMED["sink_window"]), 150, 150, dim=dim, value_dim=value_dim)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_shared_key_heads(heads: int, kv: int) -> None:
    """Grouped and multi-query heads, with one mask and with a mask per head."""
    check(plan_of(NAMED["sink_window"]), 150, 150, heads=heads, kv=kv, batch=3)
    if heads == 4:
        check(plan_of(NAMED["head_stride"]), 150, 150, kv=kv, batch=3)


@pytest.mark.parametrize("name", ["sink_window", "fixed", "head_reach"])
def test_strides(name: str) -> None:
    """Views of [B, N, H, D], slices, a batch expanded from one."""
    plan = plan_of(NAMED[name])
    q, k, v, mask = inputs(plan, 150, 150, kv=4)
    forms = [
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        [torch.cat([x, x], -1)[..., :16] for x in (q, k, v)],
        [torch.cat([x, x], 2)[:, :, ::2][:, :, :150] for x in (q, k, v)],
        [x[:1].expand(3, -1, -1, -1) for x in (q, k, v)],
        [q, k[:, :1].expand(-1, 4, -1, -1), v[:, :1].expand(-1, 4, -1, -1)],
        [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)],
    ]
    for form in forms:
        before = [x.clone() for x in form]
        out, lse = written(plan)._cpu_forward(*form, 0.25)
        assert out.is_contiguous()
        assert_within(out, lse, *form, mask, 0.25)
        assert all(torch.equal(a, b) for a, b in zip(before, form, strict=True))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_kernel_dies_of_length_0(shape: tuple[int, int]) -> None:
    """Lengths of 0, and an empty batch, never reach the kernel."""
    nq, nk = shape
    plan = plan_of(NAMED["window"])
    q, k, v, _ = inputs(plan, nq, nk)
    out, lse = written(plan)._cpu_forward(q, k, v, 1.0)
    assert out.shape == q.shape
    assert not out.any()
    assert (lse == -math.inf).all()
    out, lse = written(plan)._cpu_forward(*(x[:0] for x in inputs(plan, 9, 9)[:3]), 1.0)
    assert out.shape[0] == lse.shape[0] == 0


def hand_made(keep: Any, rows: Any = None, **settings: Any) -> cpu_schedule._CpuTiles:
    """One strip over all tiles, or over those that ``rows`` gives."""
    strip = cpu_schedule._Strip(
        rows=rows or (lambda qb, h, nq, nk, NQ, NK: (0, NK)), keep=keep, **settings
    )
    return cpu_schedule._CpuTiles(q=32, k=32, heads=None, strips=(strip,))


@pytest.mark.parametrize("shift", [None, (1, 0)])
def test_kernel_says_lse_0_for_a_row_without_keys(shift: tuple[int, int] | None) -> None:
    """Rows without keys inside a call: out 0, lse -inf, alone and merged with another result."""

    def keep(q: Any, k: Any, h: int, nq: int, nk: int) -> Any:
        return (q % 32 >= 5) & (k >= 0)

    q, k, v = (torch.randn(1, 2, 128, 16) for _ in range(3))
    mask = keep(torch.arange(128)[:, None], torch.arange(128)[None], 0, 128, 128)
    tiles = hand_made(keep, shift=shift)
    out, lse = cpu_executor._cpu_attention(tiles, q, k, v, 0.25)
    assert_within(out, lse, q, k, v, mask, 0.25)
    # Two strips over the same rows: half of the keys each.
    halves = [
        tiles.strips[0]._replace(
            rows=lambda qb, h, nq, nk, NQ, NK, at=at: (at, 2),
        )
        for at in (0, 2)
    ]
    out, lse = cpu_executor._cpu_attention(tiles._replace(strips=tuple(halves)), q, k, v, 0.25)
    assert_within(out, lse, q, k, v, mask, 0.25)


def test_first_keys_masked_over_the_kernels_own_block() -> None:
    """The kernel walks 512 keys at a time; a row may keep none of the first ones."""
    q, k, v = (torch.randn(1, 1, 64, 16) for _ in range(3))
    k, v = (x.repeat(1, 1, 20, 1) for x in (k, v))
    mask = torch.arange(1280)[None] >= 700 + torch.arange(64)[:, None]
    tiles = hand_made(lambda q, k, h, nq, nk: k >= 700 + q, shift=(1, 1))
    out, lse = cpu_executor._cpu_attention(tiles, q, k, v, 0.25)
    assert_within(out, lse, q, k, v, mask, 0.25)


def test_large_scores_merge_without_overflow() -> None:
    """Two results whose scores lie hundreds apart."""
    plan = plan_of(NAMED["sink_window"])
    q, k, v, mask = inputs(plan, 200, 200)
    k[:, :, :4] *= 40
    out, lse = written(plan)._cpu_forward(q, k, v, 2.0)
    assert_within(out, lse, q, k, v, mask, 2.0)


def test_masks_are_not_carried_over_a_missing_row() -> None:
    """A shift is a proof from row to row: rows on both sides of a gap have masks of their own."""

    def rows(qb: Any, h: Any, nq: int, nk: int, NQ: int, NK: int) -> Any:
        return qb, torch.where(qb % 2 == 0, 1, 0)

    def keep(q: Any, k: Any, h: int, nq: int, nk: int) -> Any:
        return k % 64 <= q // 32  # no row has a neighbour, so any shift is "proved"

    q, k, v = (torch.randn(1, 1, 256, 16) for _ in range(3))
    i, j = torch.arange(256)[:, None], torch.arange(256)[None]
    mask = keep(i, j, 0, 256, 256) & (i // 32 == j // 32) & (i // 32 % 2 == 0)
    out, lse = cpu_executor._cpu_attention(hand_made(keep, rows, shift=(1, 1)), q, k, v, 0.25)
    assert_within(out, lse, q, k, v, mask, 0.25)


def test_masks_before_shift_from_are_their_own() -> None:
    """Rows below ``shift_from`` never share the mask of the rows above it."""

    def rows(qb: Any, h: Any, nq: int, nk: int, NQ: int, NK: int) -> Any:
        return qb, qb >= 0

    def keep(q: Any, k: Any, h: int, nq: int, nk: int) -> Any:
        return (k < 40) | (k % 32 < 9)

    q, k, v = (torch.randn(1, 1, 256, 16) for _ in range(3))
    i, j = torch.arange(256)[:, None], torch.arange(256)[None]
    mask = keep(i, j, 0, 256, 256) & (i // 32 == j // 32)
    tiles = hand_made(keep, rows, shift=(1, 1), shift_from=2)
    out, lse = cpu_executor._cpu_attention(tiles, q, k, v, 0.25)
    assert_within(out, lse, q, k, v, mask, 0.25)


@pytest.mark.parametrize(("period", "run", "many"), [(3, 2, 9), (2, 1, 12), (7, 3, 4), (4, 4, 8)])
def test_runs_with_gaps(period: int, run: int, many: int) -> None:
    """Hand-built plan: runs of tiles with gaps, one by one or gathered by residue class."""
    tiles = Progression(
        base=ex.mod(ex.Var("qb"), 2), count=ex.minimum(ex.Var("qb"), ex.Const(many)),
        period=period, run=run,
    )
    piece = Piece(tiles=tiles, residual=ex.compare("!=", ex.mod(ex.Var("k"), 5), ex.ZERO))
    mask = BlockMask(
        pattern=Pattern(name="p", heads=None, body=Where(ex.TRUE)), tiling=Tiling(16, 16),
        pieces=(piece,),
    )
    plan = CpuPlan(
        block_mask=mask, strips=(Strip(tiles=tiles, residual=piece.residual, shift=None),)
    )
    nq, nk = 330, 16 * (period * many + 2) - 5
    q, k, v, _ = inputs(plan, nq, nk)
    out, lse = written(plan)._cpu_forward(q, k, v, 0.25)
    assert_within(out, lse, q, k, v, torch.from_numpy(mask.dense(nq, nk))[None], 0.25)


def test_warm_calls_are_few() -> None:
    """Python work follows the groups of rows: the same for 16 times the tokens."""
    module = written(plan_of(NAMED["window"]))
    few, many = (
        sum(len(b.calls) for b in module._schedule(module._CPU_TILES, n, n).batches)
        for n in (4096, 65536)
    )
    assert few == many <= 6
    causal = written(plan_of(NAMED["causal"]))
    batches = causal._schedule(causal._CPU_TILES, 16384, 16384).batches
    assert sum(len(b.calls) for b in batches) <= 16384 // 256 + 24


def test_schedules_and_masks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length works, few are remembered; masks beyond the budget are made again."""
    plan = plan_of(NAMED["holes"])
    module = written(plan)
    for n in range(1, 20):
        check(plan, n, n, batch=1)
    info = module._schedule.cache_info()
    assert info.currsize <= info.maxsize == 64
    check(plan, 300, 300)
    assert module._Masks.held_bytes > 0
    module._schedule.cache_clear()
    assert module._Masks.held_bytes == 0, "masks go with their schedules"
    for limit in ("_KEPT_MASK_BYTES", "_ALL_MASK_BYTES"):
        with monkeypatch.context() as patch:
            patch.setitem(module._cpu_attention.__globals__, limit, 10_000)
            check(plan, 300, 300)
            masks = module._schedule(module._CPU_TILES, 300, 300).masks.found.values()
            held = sum(mask.nbytes for mask, _ in masks if mask is not None)
            assert held == module._Masks.held_bytes <= 10_000
        module._schedule.cache_clear()


def test_default_device_does_not_matter() -> None:
    """Index arithmetic stays on the CPU."""
    plan = plan_of(NAMED["strided"])
    written(plan)._schedule.cache_clear()
    with torch.device("meta"):
        out, _ = written(plan)._cpu_forward(*(torch.ones(1, 1, 300, 16, device="cpu"),) * 3, 1.0)
    assert out.device.type == "cpu"
    torch.testing.assert_close(out, torch.ones_like(out))


def test_pasted_verbatim() -> None:
    """A written module holds the executor as it stands in the repository."""
    text = emit_cpu(plan_of(NAMED["window"]))
    _, body = pasted()
    assert body in text
    for module in (cpu_schedule, cpu_executor):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert source.partition("# --- cut: ")[2].partition("\n")[2].strip() in text


def test_tile_choice() -> None:
    """The tile that plans take when the user names none."""
    assert choose(load_text(NAMED["window"])) == Tiling(32, 32)


_PEAK = """
import resource, sys, torch
from attnc.codegen import cpu_executor, cpu_schedule
def rows(qb, h, nq, nk, NQ, NK):
    base = (qb - 8).clamp(min=0)
    return base, qb + 1 - base
strip = cpu_schedule._Strip(
    rows, lambda q, k, h, nq, nk: (k <= q) & (q - k < 256), shift=(1, 1)
)
tiles = cpu_schedule._CpuTiles(q=32, k=32, heads=None, strips=(strip,))
for n in (1024, 65536):
    q, k, v = (torch.randn(1, 1, n, 64) for _ in range(3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu_executor._cpu_attention(tiles, q, k, v, 0.125)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_at_64k_tokens() -> None:
    """A window at 64k tokens (q, k, v of 16 MiB each) needs its output and little more."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    result = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 64
