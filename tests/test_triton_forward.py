"""The forward kernel, run: numbers against float64, pairs and tiles against the block mask."""

from __future__ import annotations

import ast
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen.host import emit_host
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Piece, Progression, Tiling
from attnc.compiler.passes.build_plan import build_plan
from attnc.dsl.diagnostics import CompileError
from attnc.runtime.reference import assert_within
from tests import kernels as kn
from tests.strategies import patterns

# Small parameters, so that 70 tokens show every piece of a pattern.
ZOO: dict[str, dict[str, Any]] = {
    "a_shape": {"n_init": 3, "n_local": 20},
    "block_local": {"block": 24, "neighbours": 1},
    "causal": {},
    "chunked": {"chunk": 24},
    "dilated": {"reach": 12, "rate": 3},
    "fixed": {"segment": 24, "summary": 5},
    "global_tokens": {"count": 3},
    "logsparse_paper": {},
    "logsparse_restart": {"sub_len": 8},
    "longformer": {"w": 20, "dilation": [1, 2], "global_idx": [0, 40]},
    "longformer_chunks_no_overlap": {"w": 12},
    "longnet": {"segments": [16, 32], "rates": [1, 2], "heads": 2},
    "longnet_branch": {"segment": 16, "rate": 2, "heads": 2},
    "mminference_grid": {"stride": 7, "phase": 2},
    "moa_deploy": {"alpha": 16, "block": 8, "sink": 8},
    "moa_search": {"alpha": 16, "block": 8},
    "power_attention": {"block": 8, "window": 2},
    "power_of_two": {},
    "prefix_lm": {"prefix": 19},
    "s2_attention": {"block": 8, "local_blocks": 2, "vert_stride": 3, "kv_heads": 3},
    "sink": {"size": 5},
    "sliding_window": {"width": 20},
    "sparse_transformer_fixed": {"block": 8, "l": 24, "heads": 2, "num_verts": 2},
    "sparse_transformer_fixed_paper": {"l": 24, "c": 4},
    "sparse_transformer_local": {"l": 20},
    "sparse_transformer_stride": {"l": 9},
    "sparse_transformer_strided_union": {"l": 9},
    "streaming_llm": {"start": 4, "recent": 20},
    "strided": {"stride": 9},
    "tri_shape": {"n_init": 3, "n_local": 20, "n_last": 10},
    "window": {"left": 20, "right": 3},
}
MADE = {
    "causal": kn.causal, "longformer": kn.longformer, "dilated": kn.dilated,
    "per_head": kn.per_head,
}  # fmt: skip


def random(
    nq: int, nk: int, *, batch: int = 1, heads: int = 2, kv_heads: int = 1, d: int = 16,
    dv: int = 16, dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Random inputs, the same in every run."""
    rng = torch.Generator().manual_seed(nq * 1000 + nk)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).to(kn.DEVICE, dtype)

    return draw(batch, heads, nq, d), draw(batch, kv_heads, nk, d), draw(batch, kv_heads, nk, dv)


def check(plan: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
    """Run the kernel of a plan and hold it against float64."""
    out, lse = kn.run(kn.load(kn.module_text(plan)), q, k, v, scale)
    mask = torch.from_numpy(plan.block_mask.dense(q.shape[2], k.shape[2]))
    assert_within(out, lse, q, k, v, mask.to(q.device), scale)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    """Masks of plain sequences: pairs attended, tiles visited and masked are the block mask's."""
    plan = build_plan(
        load_zoo(name, ZOO[name]), head_dim=16, value_dim=64, dtype="fp32", tile=Tiling(16, 16)
    ).forward
    kn.assert_agrees(plan, 70, 61)


@settings(max_examples=20, deadline=None)
@given(
    text=patterns(),
    tile=st.sampled_from([Tiling(16, 16), Tiling(32, 16), Tiling(16, 32)]),
    nq=st.integers(1, 80),
    nk=st.integers(1, 64),
)
def test_random_patterns(text: str, tile: Tiling, nq: int, nk: int) -> None:
    """Random patterns, odd lengths: the same agreement, and the pattern's own mask."""
    try:
        pattern = load_text(text)
    except CompileError:
        return
    plan = build_plan(pattern, head_dim=16, value_dim=64, dtype="fp32", tile=tile).forward
    assert (plan.block_mask.dense(nq, nk) == pattern.mask(nq, nk)).all()
    kn.assert_agrees(plan, nq, nk)


@pytest.mark.parametrize("n", [1, 17, 40])
def test_bounds_that_are_shifts(n: int) -> None:
    """A count like ``(nk + 6) >> 4`` is added whole: ``+`` binds tighter than ``>>``."""
    text = "pattern p = { q -> k : k >= n - 9 or q == nq - 1 or (q + k) mod 7 == 0 }"
    options: dict[str, Any] = {"head_dim": 16, "value_dim": 64, "dtype": "fp32"}
    kn.assert_agrees(build_plan(load_text(text), tile=Tiling(16, 16), **options).forward, n, n)


@pytest.mark.parametrize("form", ["ranges", "table"])
@pytest.mark.parametrize("name", MADE)
def test_numbers(name: str, form: str) -> None:
    """Loop and table agree with float64, rows in any order, more queries than keys and fewer."""
    heads = 4 if name == "per_head" else 2
    options = {} if name == "causal" else {"row_order": "sorted"}
    plan = MADE[name](form=form, **options)
    for nq, nk in ((33, 33), (50, 21), (17, 64), (1, 1)):
        check(plan, *random(nq, nk, heads=heads), 0.25)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("form", ["ranges", "table"])
def test_tiles(name: str, form: str) -> None:
    """Loop and table visit the plan's tiles, each once, and mask those of a mask class."""
    kn.assert_agrees(MADE[name](form=form, value_dim=64), 70, 61)


@pytest.mark.parametrize("row_order", ["forward", "reversed", "sorted"])
def test_row_order(row_order: str) -> None:
    """Every launch order covers all rows of several batches and heads."""
    plan = kn.longformer(row_order=row_order)
    check(plan, *random(70, 70, batch=2, heads=4, kv_heads=2), 0.25)
    plan = kn.per_head(row_order=row_order)
    check(plan, *random(40, 40, batch=3, heads=4, kv_heads=2), 0.25)


@pytest.mark.parametrize(("d", "dv"), [(16, 16), (24, 24), (72, 72), (64, 16), (16, 40)])
def test_head_dims(d: int, dv: int) -> None:
    """Head dims that are no power of two, and values wider or narrower than keys."""
    check(kn.causal(head_dim=d, value_dim=dv), *random(35, 35, d=d, dv=dv), d**-0.5)


def test_half_precision() -> None:
    """fp16 in, fp16 out, sums in fp32."""
    plan = kn.longformer(dtype="fp16", head_dim=32)
    q, k, v = random(60, 60, d=32, dv=32, dtype=torch.float16)
    check(plan, q, k, v, 32**-0.5)


def test_strides() -> None:
    """Views of other layouts: [B, N, H, D], one packed qkv, an expanded batch, odd offsets."""
    plan = kn.causal()
    packed = torch.randn(2, 40, 3, 2, 16, device=kn.DEVICE)
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    check(plan, q, k, v, 0.25)
    q, k, v = random(40, 40)
    check(plan, q.expand(3, 2, 40, 16), k.expand(3, 1, 40, 16), v.expand(3, 1, 40, 16), 0.25)
    wide = torch.randn(1, 2, 40, 19, device=kn.DEVICE)
    check(plan, wide[..., 1:17], wide[..., 2:18], wide[..., 3:19], 0.25)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_grouped_heads(heads: int) -> None:
    """Query heads share key heads in groups."""
    for kv_heads in {1, 2, heads} & {h for h in range(1, 7) if heads % h == 0}:
        check(kn.causal(), *random(20, 20, batch=2, heads=heads, kv_heads=kv_heads), 0.25)


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0, 30.0, 1e-30])
def test_scale(scale: float) -> None:
    """Any finite scale, negative and zero too."""
    check(kn.longformer(), *random(40, 40), scale)


def test_empty_rows() -> None:
    """Queries without keys: out 0 and lse -inf, whether their tiles are visited or not."""
    visited = kn.plan_of(
        "some", ex.and_(ex.compare(">", kn.Q, ex.Const(4)), ex.compare("<", kn.K, ex.Const(2))),
        Tiling(16, 16),
        [
            Piece(
                tiles=Progression(base=ex.ZERO, count=ex.ONE),
                residual=ex.and_(
                    ex.compare(">", kn.Q, ex.Const(4)), ex.compare("<", kn.K, ex.Const(2))
                ),
            )
        ],
    )
    check(visited, *random(40, 40), 0.25)
    nothing = kn.plan_of("nothing", ex.FALSE, Tiling(16, 16), [])
    check(nothing, *random(20, 20), 0.25)
    out, lse = kn.run(kn.load(kn.module_text(nothing)), *random(20, 20), 0.25)
    assert not out.any()
    assert torch.isneginf(lse).all()


def test_no_tokens() -> None:
    """Empty batch, no queries, no keys: nothing is launched, results are zeros and -inf."""
    module = kn.load(kn.module_text(kn.causal()))
    for batch, nq, nk in ((0, 4, 4), (1, 0, 4), (1, 4, 0)):
        q, k, v = random(nq, nk, batch=batch)
        out, lse = kn.run(module, q, k, v, 0.25)
        assert not out.any()
        assert torch.isneginf(lse).all()


def test_too_long() -> None:
    """A length past 2**30 is refused before the launch."""
    module = kn.load(kn.module_text(kn.causal()))
    q = torch.zeros(1, 1, 1, 16, device=kn.DEVICE)
    long = torch.zeros(1, 1, 1, 16, device=kn.DEVICE).expand(1, 1, 2**30 + 1, 16)
    with pytest.raises(ValueError, match="takes up to 1073741824"):
        module._gpu_forward(q, long, long, 1.0, torch.zeros_like(q), torch.zeros(1, 1, 1))


def test_extreme_scores() -> None:
    """Scores of +-1e4 neither overflow nor lose a row."""
    q, k, v = random(40, 40)
    check(kn.causal(), q * 100, k * 100, v, 1.0)


def test_schedule_is_built_once() -> None:
    """A second call with the same lengths builds nothing; the store is bounded."""
    module = kn.load(kn.module_text(kn.per_head(form="table", row_order="sorted")))
    built: list[tuple[int, int]] = []
    build = module._gpu_build_schedule

    def counted(nq: int, nk: int, device: torch.device) -> Any:
        built.append((nq, nk))
        return build(nq, nk, device)

    module._gpu_build_schedule = counted
    for _ in range(3):
        kn.run(module, *random(20, 20, heads=4), 0.25)
    assert built == [(20, 20)]
    for nq in range(1, 60):
        module._gpu_schedule(counted, nq, 20, torch.device(kn.DEVICE))
    assert len(module._GPU_SCHEDULES) == 32


def test_schedule_is_built_in_a_thread_of_its_own() -> None:
    """What a later CUDA graph reads is no memory of the caller's graph, nor under its modes."""
    module = kn.load(kn.module_text(kn.per_head(form="table", row_order="sorted")))
    seen: list[object] = []
    build = module._gpu_build_schedule

    def watched(*lengths: Any) -> Any:
        seen.append(threading.get_ident())
        assert not torch.is_inference_mode_enabled()
        return build(*lengths)

    module._gpu_build_schedule = watched
    with torch.inference_mode(), torch.device("meta"):
        order, row_start, entries = module._gpu_schedule(watched, 100, 90, torch.device(kn.DEVICE))
    assert seen
    assert threading.get_ident() not in seen
    for tensor in (order, row_start, entries):
        assert tensor.device.type == kn.DEVICE
        assert not tensor.is_inference()


def test_table_is_exact() -> None:
    """The table holds one entry for each visited tile, no more, with its mask class."""
    plan = kn.longformer(form="table")
    module = kn.load(kn.module_text(plan))
    build = module._gpu_build_schedule
    row_start, entries = module._gpu_schedule(build, 100, 90, torch.device(kn.DEVICE))
    grid = plan.block_mask.grid(100, 90)[0]
    assert entries.dtype == torch.int32
    assert len(entries) == (grid >= 0).sum()
    for qb, row in enumerate(grid):
        found = {int(e) for e in entries[row_start[qb] : row_start[qb + 1]]}
        assert found == {
            kb * 8 + plan.segments[piece].mask for kb, piece in enumerate(row) if piece >= 0
        }


def test_where_the_interpreter_breaks() -> None:
    """Only the pair of versions that breaks is left out."""
    assert kn.broken("3.6.0", "2.4.1")
    assert kn.broken("3.6.0", "2.10.0")
    assert not kn.broken("3.6.0", "2.3.5")
    assert not kn.broken("3.7.0", "2.5.0")
    assert not kn.broken("3.10.0", "2.4.0")


def test_source_is_python_and_deterministic() -> None:
    """The same plan prints the same text, which parses and names its masks."""
    plan = kn.longformer(head_dim=72)
    text = emit_kernel(plan)
    assert text == emit_kernel(plan)
    ast.parse(text)
    ast.parse(emit_host(plan))
    assert "# mask 3: k <= q" in text
    assert max(len(line) for line in text.splitlines()) <= 100
