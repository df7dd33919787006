"""Decode steps: the last rows of the op, on a CPU and by the kernels in the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc.codegen.triton_decode import KERNEL, emit_decode_kernels, parameters
from attnc.compiler.passes.build_decode import build_decode
from attnc.runtime import aot
from attnc.runtime.lint import SHARED_LIMIT_BYTES
from attnc.runtime.reference import error_bound, reference, terms
from tests import test_zoo as zoo
from tests.kernels import DEVICE, skip_without_interpreter

SIDES = ["cpu", "kernel"]
CROSS = {
    "agent_collect", "agent_spread", "combiner_axial_rowmajor", "combiner_fixed", "combiner_logn",
    "flamingo", "swattention", "tree_mask", "video_ccam_assumed",
}
"""Queries and keys are not tokens of one sequence."""
BY_LENGTH = {"bigbird", "vertical_slash", "vertical_slash_kernel"}
"""What they compute from their inputs changes with the length."""


def compiled(pattern: attnc.Pattern, **options: Any) -> Any:
    given = {"head_dim": 16, "dtype": "fp32", "cache": False, **options}
    return attnc.compile(pattern, **given)


def step_of(op: Any, side: str) -> Callable[..., Any]:
    """Return the step of an op on a CPU, or by its kernels; both return out and lse."""
    if side == "cpu":
        return lambda *given, **named: op.decode(*given, return_lse=True, **named)
    skip_without_interpreter()
    module = op.decode.__globals__

    def run(
        q: Any, k: Any, v: Any, lengths: Any, /, block_table: Any = None, scale: Any = None,
        extents: Any = None, **inputs: Any,
    ) -> Any:
        given: tuple[Any, ...] = ()
        if "_arguments" in module:
            named = {one.name: inputs.get(one.name) for one in module["_INPUTS"]}
            given = module["_arguments"](q, k, named, extents)
            given = ([None if t is None else t.to(DEVICE) for t in given[0]], *given[1:])
        there = [None if t is None else t.to(DEVICE) for t in (q, k, v, lengths, block_table)]
        scale = q.shape[3] ** -0.5 if scale is None else scale
        return tuple(t.cpu() for t in module["_gpu_decode"](*there, scale, *given))

    return run


def close(
    found: Any, op: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **inputs: Any
) -> None:
    """Check a step of one item against the last rows of float64 attention over ``k``, ``v``."""
    out, lse = found
    steps, tokens = q.shape[2], k.shape[2]
    whole = torch.zeros(1, q.shape[1], tokens, q.shape[3], dtype=q.dtype)
    whole[:, :, max(0, tokens - steps) :] = q[:, :, max(0, steps - tokens) :]
    extents = inputs.pop("extents", None)
    given = terms(op._ir, whole, k, inputs, extents)
    out64, lse64 = reference(whole, k, v, given)
    bound = error_bound(whole, k, v, given)
    rows = slice(max(0, tokens - steps), tokens)
    there = slice(max(0, steps - tokens), steps)
    empty = torch.isneginf(lse64[:, :, rows])
    assert torch.equal(torch.isneginf(lse[:, :, there]), empty)
    assert not out[:, :, there][empty].any()
    assert not out[:, :, : there.start].any()
    assert (out[:, :, there] - out64[:, :, rows]).abs().max() <= bound.out
    gap = (lse[:, :, there] - lse64[:, :, rows])[~empty]
    assert gap.numel() == 0 or gap.abs().max() <= bound.lse


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", sorted({*zoo.OPS} - CROSS - BY_LENGTH))
def test_zoo(name: str, side: str) -> None:
    """A step is the last rows of the op, for one query and several."""
    pattern, _, tokens, inputs = zoo.example(name)
    op = compiled(pattern)
    step = step_of(op, side)
    for steps in (1, 5):
        q, (_, k, v) = zoo.tensors(pattern, steps, tokens)[0], zoo.tensors(pattern, tokens, tokens)
        renamed = {f"{n}_" if n == "lengths" else n: x for n, x in inputs.items()}
        found = step(q, k, v, torch.tensor([tokens]), **(renamed if side == "cpu" else inputs))
        close(found, op, q, k, v, **inputs)


@pytest.mark.parametrize("name", sorted((CROSS | BY_LENGTH) - {"flamingo"}))
def test_patterns_without_a_step_say_why(name: str) -> None:
    pattern, _, _, _ = zoo.example(name)
    with pytest.raises(ValueError, match=r"has no decode step: .*(spaces?|length)"):
        _ = compiled(pattern).decode


def paged(
    k: torch.Tensor, v: torch.Tensor, page: int, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay caches out in shuffled pages; pages behind a length have the number -1."""
    items, heads, capacity, _ = k.shape
    most = -(-capacity // page)
    order = torch.randperm(items * most, generator=torch.Generator().manual_seed(3))
    table = order.view(items, most).to(torch.int32)
    pages = []
    for x in (k, v):
        filled = torch.nn.functional.pad(x, (0, 0, 0, most * page - capacity))
        parts = filled.view(items, heads, most, page, -1).transpose(1, 2).flatten(0, 1)
        found = torch.empty_like(parts)
        found[order] = parts
        pages.append(found)
    dead = torch.arange(most) * page >= lengths[:, None]
    return pages[0], pages[1], table.masked_fill(dead, -1)


SINK_WINDOW = "pattern p = { q -> k : k <= q and (k < 4 or q - k < 20) }"


@pytest.mark.parametrize("page", [None, 16, 24])
@pytest.mark.parametrize("steps", [1, 3, 16])
@pytest.mark.parametrize("side", SIDES)
def test_unequal_lengths(side: str, steps: int, page: int | None) -> None:
    """Lengths 0 and 1, shorter than the step, and the whole cache, in one batch; heads in groups.

    Pages lie anywhere, and those behind a length do not exist.
    """
    op = compiled(attnc.parse(SINK_WINDOW), value_dim=24)
    lengths = torch.tensor([0, 1, 2, 17, 64, 100], dtype=torch.int64 if page else torch.int32)
    q, k = random(6, 6, steps, 16), random(6, 2, 100, 16, seed=1)
    v = random(6, 2, 100, 24, seed=2)
    step = step_of(op, side)
    if page is None:
        out, lse = step(q, k, v, lengths)
    else:
        *caches, table = paged(k, v, page, lengths)
        out, lse = step(q, *caches, lengths, block_table=table)
    for b, n in enumerate(lengths.tolist()):
        one = slice(b, b + 1)
        if n:
            close((out[one], lse[one]), op, q[one], k[one, :, :n], v[one, :, :n])
        else:
            assert not out[b].any()
            assert torch.isneginf(lse[b]).all()


@pytest.mark.parametrize("side", SIDES)
def test_one_step_serves_growing_lengths(side: str) -> None:
    """Generation, token by token, equals the op over the whole sequence."""
    op = compiled(attnc.parse(SINK_WINDOW))
    step = step_of(op, side)
    q, k, v = (random(1, 2, 40, 16, seed=s) for s in range(3))
    whole = op(q, k, v)
    for n in range(1, 41):
        out, _ = step(q[:, :, n - 1 : n], k, v, torch.tensor([n]))
        torch.testing.assert_close(out, whole[:, :, n - 1 : n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        SINK_WINDOW,
        "pattern p = { q -> k : k <= q and (q - k) mod 37 == 0 }",
        "input doc: int[n]\npattern p = { q -> k : k <= q and q - k < 90 and doc[q] == doc[k] }",
    ],
)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("side", SIDES)
def test_dead_keys_are_never_read(side: str, steps: int, text: str) -> None:
    """NaN in every dead entry of the cache, behind the length too, reaches nothing."""
    pattern = attnc.parse(text)
    op = compiled(pattern)
    tokens = 150
    inputs = {"doc": torch.arange(200) // 23} if "doc" in text else {}
    live = pattern.mask(tokens, inputs={n: x[:tokens].numpy() for n, x in inputs.items()})
    live = live[0, tokens - steps :].any(0)
    q = random(1, 4, steps, 16)
    k, v = (random(1, 2, 200, 16, seed=s) for s in (1, 2))
    poisoned = [x.clone() for x in (k, v)]
    for x in poisoned:
        x[:, :, :tokens][:, :, ~live] = torch.nan
        x[:, :, tokens:] = torch.nan
    found = step_of(op, side)(q, *poisoned, torch.tensor([tokens]), **inputs)
    inputs = {n: x[:tokens] for n, x in inputs.items()}
    close(found, op, q, k[:, :, :tokens], v[:, :, :tokens], **inputs)


def test_window_in_a_million_tokens() -> None:
    """The tiles of a step are those of the window and the sink, wherever the query stands."""
    op = compiled(attnc.parse("pattern p = { q -> k : k <= q and (k < 4 or q - k < 256) }"))
    module = op.decode.__globals__
    n, side = 2**20, module["_STEP"].k
    for at in (n - 1, n // 2 + 7):
        tiles = 0
        bounds = (at // module["_STEP"].q, 0, at + 1, at + 1, at // 16 + 1, at // side + 1)
        for _, count, *_ in module["_segments"](*bounds):
            tiles += int(count)
        assert tiles <= 256 // side + 3
    q, cache = random(1, 1, 1, 16), torch.full((1, 1, n, 16), torch.nan)
    cache[:, :, :4] = cache[:, :, n - 256 :] = 1.0
    for side_name in SIDES:
        out, _ = step_of(op, side_name)(q, cache, cache, torch.tensor([n]))
        torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("side", SIDES)
def test_inputs_end_with_the_sequence(side: str) -> None:
    """An input as long as the cache reads as nothing past the sequence, as in the op."""
    pattern = attnc.parse("input doc: int[n]\npattern p = { q -> k : k <= q and doc[k + 1] == 0 }")
    op = compiled(pattern)
    q, k, v = random(2, 2, 1, 16), random(2, 2, 40, 16, seed=1), random(2, 2, 40, 16, seed=2)
    doc = torch.ones(2, 40, dtype=torch.int64)
    out, lse = step_of(op, side)(q, k, v, torch.tensor([7, 40]), doc=doc)
    for b, n in enumerate((7, 40)):
        one = slice(b, b + 1)
        given = doc[one, :n]
        close((out[one], lse[one]), op, q[one], k[one, :, :n], v[one, :, :n], doc=given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_on_a_cpu(dtype: torch.dtype) -> None:
    op = compiled(attnc.parse(SINK_WINDOW))
    q, k, v = (random(1, 2, n, 16, seed=n).to(dtype) for n in (2, 50, 50))
    close(op.decode(q, k, v, torch.tensor([50]), return_lse=True), op, q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", [
    "pattern p = { q -> k : k <= q }",
    "pattern p = { q -> k : k <= q and (q - k < 64 or k mod 3 == 0) }",
])  # fmt: skip
def test_long_rows_are_read_in_portions(text: str, dtype: torch.dtype) -> None:
    """Live keys in several portions, of caches that are converted and that are not."""
    op = compiled(attnc.parse(text))
    op.decode.__globals__.update(_KEYS_AT_ONCE=100, _PAIRS_AT_ONCE=300, _LEAST_CONVERTED=64)
    for steps in (1, 5):
        q, k, v = (random(1, 2, n, 16, seed=n).to(dtype) for n in (steps, 700, 700))
        found = op.decode(q, k, v, torch.tensor([700]), return_lse=True)
        close(found, op, q, k, v)


def test_negative_scale_and_strides() -> None:
    """Caches as [B, N, H, D] views; a scale below 0."""
    op = compiled(attnc.parse(SINK_WINDOW))
    q, k, v = random(1, 4, 2, 16), *(random(1, 50, 2, 16, seed=s).transpose(1, 2) for s in (1, 2))
    lengths = torch.tensor([50])
    ours, theirs = (step_of(op, side)(q, k, v, lengths, scale=-0.5) for side in SIDES)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours[0], step_of(op, "cpu")(-q, k, v, lengths, scale=0.5)[0])


def given(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "q": random(2, 4, 1, 16), "k_cache": random(2, 2, 20, 16),
        "v_cache": random(2, 2, 20, 16), "lengths": torch.tensor([3, 20]),
    }  # fmt: skip
    return base | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"q": random(2, 4, 17, 16)}, "q has 17 queries, a step takes 1 to 16"),
        ({"q": random(2, 4, 1, 8)}, r"q must be \[B, Hq, T, 16\]"),
        ({"q": random(2, 3, 1, 16)}, "heads of q must be a multiple"),
        ({"k_cache": random(3, 2, 20, 16)}, "v_cache is .* but k_cache is"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths must be int32 or int64"),
        ({"lengths": torch.tensor([3, 21])}, r"lengths\[1\] is 21; there is room for 20 tokens"),
        ({"block_table": torch.tensor([[0], [2]])}, "block_table names page 2"),
        ({"block_table": torch.zeros(3, 1, dtype=torch.int32)}, "block_table must be"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"v_cache": random(2, 2, 20, 16).double()}, "v_cache has dtype"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], words: str) -> None:
    decode = compiled(attnc.parse("pattern p = { q -> k : k <= q }")).decode
    with pytest.raises(ValueError, match=words):
        decode(**given(**changes))


def test_space_bounds_the_cache() -> None:
    """A grid decodes by position, and holds no more of them than it has."""
    pattern = attnc.parse(
        "space image = grid(y: 4, x: 5)\n"
        "pattern p on image = { q -> k : k <= q and abs(q.x - k.x) <= 1 }"
    )
    op = compiled(pattern)
    q, k, v = random(1, 2, 1, 16), random(1, 2, 20, 16, seed=1), random(1, 2, 20, 16, seed=2)
    whole = torch.zeros(1, 2, 20, 16)
    whole[:, :, 12] = q[:, :, 0]
    expected = op(whole, k, v)[:, :, 12:13]
    for side in SIDES:
        out, _ = step_of(op, side)(q, k, v, torch.tensor([13]))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="room for 21 tokens, but the space of the pattern has 20"):
        op.decode(q, random(1, 2, 21, 16), random(1, 2, 21, 16), torch.tensor([3]))


@pytest.mark.parametrize("is_paged", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_compiles_clean_for_hopper(head_dim: int, is_paged: bool, tmp_path: Path) -> None:
    """No spills, and shared memory that several programs find room for."""
    plan = build_decode(
        attnc.parse(SINK_WINDOW).ir, head_dim=head_dim, value_dim=head_dim, dtype="bf16",
        target="sm_90",
    )
    path = tmp_path / "kernel.py"
    path.write_text(aot.kernel_source(emit_decode_kernels(plan)), encoding="utf-8")
    constexprs = {"PAGED": is_paged, "ROWS": 16, "ALIGN": 8}
    types = {n: f"*{plan.dtype}" if kind == "*" else kind for n, kind in parameters(plan)}
    job: dict[str, object] = {
        "path": str(path), "name": KERNEL, "constexprs": constexprs,
        "signature": {**types, **dict.fromkeys(constexprs, "constexpr")},
        "aligned": [n for n, kind in parameters(plan) if kind.startswith("*")],
        "target": ("cuda", 90, 32),
        "options": {"num_warps": plan.warps, "num_stages": plan.stages},
    }
    (found,) = aot.ask_worker([job])["results"]
    assert "error" not in found
    assert found["spill_bytes"] == 0
    assert found["shared_bytes"] <= SHARED_LIMIT_BYTES["sm_90"] // 2


def test_registered_op() -> None:
    """opcheck passes, torch.compile traces it whole, a gradient is refused."""
    decode = compiled(attnc.parse(SINK_WINDOW)).decode
    arguments = given()
    torch.library.opcheck(
        decode.__globals__["_op"], (*arguments.values(), None, 0.25),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip
    traced = torch.compile(decode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(**arguments), decode(**arguments))
    arguments["q"].requires_grad_()
    with pytest.raises(RuntimeError, match="has no backward"):
        decode(**arguments)
    with torch.no_grad():
        assert decode(**arguments).shape == (2, 4, 1, 16)
