"""Parts in other token orders: the same pairs, tiles as counted, outputs and gradients alike."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.codegen.module import emit_module
from attnc.codegen.triton_parts import distance_lines
from attnc.compiler.counts import count, count_cpu, count_forward
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes import bands as bd
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.cpu_plan import build_cpu
from attnc.compiler.passes.token_order import Part, parts, read_orders, work
from attnc.runtime import reference
from attnc.runtime.aot import compile_plan
from attnc.runtime.lint import lint
from tests import kernels as kn

TEXTS = {
    "dilated": "0 <= q - k < 2048 and (q - k) mod 4 == 0",
    "strided": "k <= q and (q - k < 64 or (q - k) mod 64 == 0)",
    "both_ways": "abs(q - k) < 64 or (q - k) mod 64 == 0",
    "radial": "k <= q and (q - k < 256 or q - k < 1024 and (q - k) mod 4 == 0"
    " or (q - k) mod 16 == 0)",
    "powers": "q == k or is_pow2(q - k)",
    "sink": "k <= q and (k < 3 or (q - k) mod 32 == 0)",
}  # fmt: skip
MODULI = {
    "dilated": [4], "strided": [1, 64], "both_ways": [1, 64], "radial": [1, 4, 16],
    "powers": [1, 64], "sink": [1, 32],
}  # fmt: skip
LENGTHS = ((1, 1), (50, 37), (130, 201), (300, 300), (3, 150), (150, 3))


def parsed(text: str) -> Pattern:
    return attnc.parse(f"pattern p = {{ q -> k : {text} }}").ir


def free(_bands: object, _modulus: int) -> float:
    """Cost nothing: orders that are asked for are not weighed."""
    return 0.0


def together(found: tuple[Part, ...], nq: int, nk: int) -> np.ndarray:
    """How many parts keep each pair. Shape: [nq, nk]."""
    kept = np.zeros((nq, nk), dtype=int)
    for part in found:
        for r in range(min(part.modulus, nq, nk)):
            m = part.modulus
            kept[r::m, r::m] += part.pattern.mask(-(-(nq - r) // m), -(-(nk - r) // m))[0]
    return kept


def test_bands_of_radial_reach():
    """Dense bands claim what they hold; those further out keep their own stride."""
    found, rest = bd.split_off(parsed(TEXTS["radial"]).predicate)
    assert rest == ex.FALSE
    assert [(b.first, b.last, b.step) for b in found] == [
        (0, 255, 1), (256, 1020, 4), (1024, None, 16),
    ]


@pytest.mark.parametrize(
    "text",
    ["k < 4", "q div 8 == k div 8", "k <= q and (q * k) mod 3 == 0", "nq - q == k", "q + k == 9"],
)
def test_no_bands(text):
    """What depends on more than the distance has none."""
    found, rest = bd.split_off(parsed(text).predicate)
    assert found == ()
    assert rest == parsed(text).predicate


@pytest.mark.parametrize("name", TEXTS)
def test_parts_are_the_pattern(name):
    """Every pair of the pattern is in exactly one part; the choice is the one that pays."""
    pattern = parsed(TEXTS[name])
    plan = build_cpu(pattern, Tiling(32, 32), tested=False)
    chosen = [getattr(part, "modulus", 0) for part in plan.parts]
    assert chosen == ([0] if name == "powers" else MODULI[name])  # 0: distances one by one
    found = parts(pattern, tuple(MODULI[name]), free)
    for nq, nk in LENGTHS:
        assert np.array_equal(together(found, nq, nk), pattern.mask(nq, nk)[0].astype(int))


bands = st.builds(
    lambda low, span, step, symmetric: (
        f"{low} <= {'abs(q - k)' if symmetric else 'q - k'} < {low + span}"
        f" and (q - k) mod {step} == 0"
    ),
    st.integers(-40, 80), st.integers(1, 120), st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(bands, min_size=1, max_size=4), st.sampled_from([(2,), (3,), (4, 8), (6,), (12, 4)]),
    st.booleans(), st.integers(1, 90), st.integers(1, 90),
)
def test_random_bands(texts, moduli, sink, nq, nk):
    """Disjoint parts with the pattern as their union, whatever the bands and the orders."""
    pattern = parsed(" or ".join([f"({t})" for t in texts] + ["k < 2"] * sink))
    found, rest = bd.split_off(pattern.predicate)
    union = ex.or_(bd.predicate(found), rest)
    values = {"q": np.arange(nq)[:, None], "k": np.arange(nk)[None, :]}
    kept = pattern.mask(nq, nk)[0]
    assert np.array_equal(np.broadcast_to(ex.evaluate(union, values), kept.shape), kept)
    served = {max(m for m in (1, *moduli) if b.modulus % m == 0) for b in found}
    if not set(moduli) <= served:
        with pytest.raises(ValueError, match="asks for classes of"):
            parts(pattern, moduli, free)
    elif cut := parts(pattern, moduli, free):
        assert np.array_equal(together(cut, nq, nk), kept.astype(int))


@pytest.mark.parametrize("name", TEXTS)
def test_work_is_counted(name):
    """The estimate that orders are chosen by is what the block mask visits, for bands alone."""
    for part in parts(parsed(TEXTS[name]), tuple(MODULI[name]), free):
        if part.rest == ex.FALSE:
            tokens = -(-8192 // part.modulus)
            guess = work(part.bands, part.modulus, Tiling(32, 32))
            plan = build_cpu(part.pattern, Tiling(32, 32), tested=False, orders="natural")
            assert guess.tiles == part.modulus * count(plan.block_mask, tokens, tokens).visited


@pytest.mark.parametrize(
    ("text", "most"),
    [(TEXTS["dilated"], 1.4), (TEXTS["strided"], 2.0), (TEXTS["radial"], 2.0)],
)
def test_little_waste(text, most):
    """At 8192 tokens the executor computes few pairs that the pattern does not keep."""
    counts = count_cpu(build_cpu(parsed(text), Tiling(32, 32), tested=False), 8192, 8192)
    assert counts.pairs_kept == int(sum(
        int(ex_mask) for ex_mask in _kept_by_distance(text, 8192)
    ))  # fmt: skip
    assert counts.pairs_computed <= most * counts.pairs_kept


def _kept_by_distance(text: str, tokens: int) -> list[int]:
    """How many pairs of each distance 0, 1, ... a causal pattern of distances keeps."""
    first_key = parsed(text).mask(tokens, 1)[0][:, 0]
    return [int(kept) * (tokens - d) for d, kept in enumerate(first_key)]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("nq", "nk"), [(70, 70), (131, 67), (33, 140), (5, 1), (0, 4), (4, 0)])
def test_outputs_and_gradients(name, nq, nk):
    """All orders give the same out, lse and gradients, GQA and other strides included."""
    face = attnc.parse(f"pattern p = {{ q -> k : {TEXTS[name]} }}")
    torch.manual_seed(0)
    q = torch.randn(2, nq, 4, 16, dtype=torch.float64).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(2, 2, nk, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for orders in ("natural", tuple(MODULI[name])):
        op = attnc.compile(face, head_dim=16, orders=orders)
        assert bool(op.plan.cpu.parts) is (orders != "natural")
        out, lse = op(q, k, v, return_lse=True)
        loss = (out * torch.arange(out.numel()).view_as(out).cos()).sum()
        loss = loss + lse.masked_fill(lse == -math.inf, 0.0).sum()
        results.append((out, lse, *torch.autograd.grad(loss, (q, k, v))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


FEW = "q - k == 5 or q - k == -3 or q - k == 70 or q - k == 130 or q - k == 190"
KERNELS: dict[str, tuple[str, Any]] = {
    "strided": (TEXTS["strided"].replace("64", "12"), (1, 12)),
    "both_ways": (TEXTS["both_ways"].replace("64", "7"), (1, 7)),
    "sink": (TEXTS["sink"].replace("32", "5"), (5,)),
    "dilated": (TEXTS["dilated"], "auto"), "powers": (TEXTS["powers"], "auto"),
    "both_directions": (FEW, "auto"),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_kernels_of_parts(name, dtype):
    """Each kernel goes on from the rows of those before it; the result is the whole pattern's."""
    text, orders = KERNELS[name]
    pattern = parsed(text)
    plan = build_plan(pattern, head_dim=24, dtype=dtype, orders=orders)
    assert plan.parts
    module = kn.load(emit_module(plan))
    for batch, heads, group, nq, nk in ((2, 2, 2, 70, 45), (1, 1, 1, 131, 131), (1, 2, 1, 5, 140)):
        torch.manual_seed(nq)
        q = torch.randn(batch, nq, heads, 24).transpose(1, 2)
        k, v = (torch.randn(batch, heads // group, nk, 24) for _ in range(2))
        if dtype == "fp16":
            q, k, v = (x.half() for x in (q, k, v))
        out, lse = kn.run(module, q, k, v, 0.3)
        mask = torch.from_numpy(pattern.mask(nq, nk))
        reference.assert_within(out, lse, q, k, v, mask, scale=0.3)


def test_parts_are_tiled_little():
    """At 8192 tokens and sm_90 the kernels compute few pairs that the pattern does not keep."""
    most = {"dilated": 1.4, "strided": 2.0, "radial": 2.0, "powers": 2.0}
    for name, bound in most.items():
        for head_dim in (64, 128):
            plan = build_plan(parsed(TEXTS[name]), head_dim=head_dim)
            counts = count_forward(plan, 8192, 8192)
            natural = count_forward(replace(plan, parts=()), 8192, 8192)
            assert counts.pairs_kept == natural.pairs_kept
            assert counts.pairs_computed <= bound * counts.pairs_kept, name
            assert counts.pairs_computed < natural.pairs_computed / 3


@pytest.mark.parametrize(("name", "parts_of"), [("powers", [0]), ("strided", [1, 64])])
def test_parts_are_clean(name, parts_of):
    """No spills, shared memory within the limit, no serialised wgmma."""
    plan = build_plan(parsed(TEXTS[name]), head_dim=64)
    assert [getattr(part, "modulus", 0) for part in plan.parts] == parts_of
    assert lint(compile_plan(plan), "sm_90") == ()


@pytest.mark.parametrize(
    ("distances", "lines"),
    [
        ((7,), ["distance = 7"]),
        ((0, 1, 2, 4, 8), ["distance = 1 << tl.maximum(it - 1, 0)",
                           "distance = tl.where(it < 1, 0, distance)"]),
        ((-4, -2, 0, 2), ["distance = -4 + 2 * it"]),
    ],
)  # fmt: skip
def test_distances_are_written_as_runs(distances, lines):
    """A loop knows its distance from its number, without a table."""
    assert list(distance_lines(distances)) == lines


def test_half_types_and_single_gradients():
    """bfloat16 stays within its rounding, and only what is wanted is computed."""
    face = attnc.parse(f"pattern p = {{ q -> k : {TEXTS['strided']} }}")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, 16) for _ in range(3))
    op = attnc.compile(face, head_dim=16)
    exact = op(q.double(), k.double(), v.double())
    half = op(*(x.bfloat16() for x in (q, k, v)))
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().max() < 0.03
    k.requires_grad_()
    op(q, k, v).sum().backward()
    assert k.grad is not None
    assert q.grad is None


def test_more_than_a_cache_of_classes():
    """Classes that do not fit together run in several rounds."""
    face = attnc.parse("pattern p = { q -> k : k <= q and (q - k) mod 8 == 0 }")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 8, 4100, 64) for _ in range(3))
    natural = attnc.compile(face, orders="natural")
    assert (attnc.compile(face, orders=(8,))(q, k, v) - natural(q, k, v)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("text", "orders", "said"),
    [
        (TEXTS["strided"], (1, 7), "asks for classes of 7"),
        ("q div 8 == k div 8", (8,), "asks for classes of 8"),
    ],
)
def test_refused(text, orders, said):
    """Orders that serve no part of the pattern are refused, not ignored."""
    with pytest.raises(ValueError, match=said):
        build_plan(parsed(text), head_dim=16, orders=orders)


def test_refused_where_masks_differ_by_head():
    face = attnc.zoo.longformer(w=4, dilation=[1, 2]).ir
    with pytest.raises(ValueError, match="heads, scores, spaces or inputs"):
        build_plan(face, head_dim=16, orders=(2,))


@pytest.mark.parametrize("given_orders", ["1,x", (), (0,), [True], 4, "", "1,,2", "9999999999"])
def test_unreadable_orders(given_orders):
    with pytest.raises(ValueError, match="orders must be 'auto', 'natural' or"):
        read_orders(given_orders)


def test_readable_orders():
    assert read_orders("64,1") == read_orders([1, 64, 64]) == (1, 64)
    assert read_orders("auto") == "auto"


def test_cost_of_parts():
    """The simulator runs the parts in turn: far less work than the natural order predicts."""
    face = attnc.parse(f"pattern p = {{ q -> k : {TEXTS['strided']} }}")
    cost = face.cost(n=8192, heads=16, head_dim=64, device="h200")
    assert [kernel.name for kernel in cost.kernels] == ["part 1", "part 2"]
    natural = face.cost(n=8192, heads=16, head_dim=64, device="h200", orders="natural")
    assert natural.pairs_kept == cost.pairs_kept
    assert natural.time_us > 3 * cost.time_us
    powers = attnc.parse(f"pattern p = {{ q -> k : {TEXTS['powers']} }}")
    (single,) = powers.cost(n=8192, heads=16, head_dim=64, device="h200").kernels
    assert "31 distances" in single.plan
