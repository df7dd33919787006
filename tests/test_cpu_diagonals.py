"""Score terms of q - k on a CPU: evaluated once for each distance, the same as pair by pair."""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.codegen.module import emit_module
from attnc.compiler.passes.bias_fold import by_distance
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime import reference
from tests import kernels as kn

ALIBI = "score s heads h: 4 = { q -> k, h : (k - q) / 2**(h + 1) }\n"
SLOPES = "input slope: real[4]\nscore s heads h: 4 = { q -> k, h : slope[h] * abs(q - k) }\n"
TABLE = (
    "input table: real[4, 20]\n"
    "score s heads h: 4 = { q -> k, h : table[h][max(0, min(q - k, 19))] }\n"
)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": (ALIBI, {}),
    "slopes": (SLOPES, {"slope": torch.tensor([-0.5, 0.25, -0.03, 1.0])}),
    "table": (TABLE, {"table": torch.randn(4, 20, generator=torch.Generator().manual_seed(1))}),
}
KEEPS = {
    "causal": ("k <= q", "all"),
    "window": ("abs(q - k) < 70", "all"),
    "ahead": ("0 <= k - q < 50", "all"),
    "every third": ("k <= q and (q - k) mod 3 == 0", "all"),
    "sink": ("k < 3 or 0 <= q - k < 40", "score"),
    "blocks": ("q div 48 == k div 48", "score"),
}
LENGTHS = ((1, 1), (70, 45), (131, 131), (64, 300), (300, 64))


def pattern_of(name: str, keep: str) -> attnc.Pattern:
    text = f"{HEADS[name][0]}attention p = softmax(dot + s, over: {{ q -> k : {KEEPS[keep][0]} }})"
    return attnc.parse(text)


def module_of(pattern: attnc.Pattern, **changed: int) -> ModuleType:
    """Write a module; ``changed`` are limits of its executor."""
    module = kn.load(emit_module(build_plan(pattern.ir, head_dim=16)))
    for limit, value in changed.items():
        assert hasattr(module, limit)
        setattr(module, limit, value)
    return module


@pytest.mark.parametrize("keep", KEEPS)
def test_what_depends_on_the_distance(keep: str) -> None:
    assert by_distance(pattern_of("alibi", keep).ir) == KEEPS[keep][1]


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ("dot + log(1 + abs(q - k))", "all"),
        ("dot + 0.5 * (2 * k - q)", ""),
        ("dot + 0.5 * k", ""),
        ("softcap(dot + 0.5 * (k - q), 30)", ""),
    ],
)
def test_what_does_not(terms: str, found: str) -> None:
    added = terms.removeprefix("dot + ").removeprefix("softcap(dot + ").removesuffix(", 30)")
    text = f"score s = {{ q -> k : {added} }}\nattention p = softmax("
    text += "softcap(dot + s, 30)" if "softcap" in terms else "dot + s"
    assert by_distance(attnc.parse(f"{text}, over: causal)").ir) == found


def test_it_can_be_refused() -> None:
    """``bias="add"`` evaluates pair by pair."""
    plan = build_plan(attnc.zoo.alibi(heads=2).ir, head_dim=16, bias="add")
    assert plan.cpu.by_distance == ""
    assert build_plan(attnc.zoo.alibi(heads=2).ir, head_dim=16).cpu.by_distance == "all"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("keep", KEEPS)
def test_within_the_error_rule(name: str, keep: str) -> None:
    """Grouped heads, unlike and ragged lengths, single and half precision."""
    pattern = pattern_of(name, keep)
    op = attnc.compile(pattern, head_dim=16)
    for (nq, nk), dtype in itertools.product(LENGTHS, (torch.float32, torch.bfloat16)):
        torch.manual_seed(nq)
        q = torch.randn(2, 4, nq, 16).to(dtype)
        k, v = (torch.randn(2, 2, nk, 16).to(dtype) for _ in range(2))
        out, lse = op(q, k, v, return_lse=True, **HEADS[name][1])
        terms = reference.terms(pattern.ir, q, k, HEADS[name][1])
        reference.assert_within(out, lse, q, k, v, terms)


@pytest.mark.parametrize("keep", ["causal", "window", "every third"])
@pytest.mark.parametrize(("table_bytes", "group"), [(0, 2), (1 << 26, 1)])
def test_tall_rows(keep: str, table_bytes: int, group: int) -> None:
    """Rows that are walked as one, with and without a table, in several portions."""
    pattern = pattern_of("alibi", keep)
    module = module_of(pattern, _LONG_ROW=2, _TABLE_BYTES=table_bytes, _KEYS_AT_ONCE=128)
    seen: list[int] = []
    long = module._long_stretches

    def watched(*given: Any) -> Any:
        for part in long(*given):
            seen.append(part.stack)
            yield part

    module._long_stretches = watched
    for nq, nk in ((800, 800), (800, 790), (790, 830), (1, 40)):
        torch.manual_seed(nq)
        q = torch.randn(1, 4, nq, 16)
        k, v = (torch.randn(1, 4 // group, nk, 16) for _ in range(2))
        out, lse = module._cpu_forward(q, k, v, 0.25)
        terms = reference.terms(pattern.ir, q, k, {})
        reference.assert_within(out, lse, q, k, v, terms, scale=0.25)
    assert (8 in seen) is (keep != "window")


@pytest.mark.parametrize(
    ("name", "keep"),
    [("alibi", "causal"), ("slopes", "window"), ("table", "sink"), ("table", "every third"),
     ("slopes", "blocks")],
)  # fmt: skip
def test_like_pair_by_pair(name: str, keep: str) -> None:
    """Out, lse and all gradients, those of slopes and tables too."""
    pattern = pattern_of(name, keep)
    given_ = {n: x.double().requires_grad_() for n, x in HEADS[name][1].items()}
    for nq, nk in LENGTHS[1:]:
        torch.manual_seed(0)
        q = torch.randn(2, nq, 4, 16, dtype=torch.float64).transpose(1, 2).requires_grad_()
        k, v = (torch.randn(2, 4, nk, 16, dtype=torch.float64, requires_grad=True) for _ in "kv")
        results = []
        for bias in ("add", "auto"):
            op = attnc.compile(pattern, head_dim=16, bias=bias)
            out, lse = op(q, k, v, return_lse=True, **given_)
            loss = (out * torch.arange(out.numel()).view_as(out).cos()).sum()
            loss = loss + lse.masked_fill(lse == -math.inf, 0.0).sum()
            grads = torch.autograd.grad(loss, (q, k, v, *given_.values()))
            results.append((out, lse, *grads))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def test_entries_that_exclude() -> None:
    """A table that holds -inf leaves queries without keys."""
    pattern = pattern_of("table", "window")
    table = torch.zeros(4, 20)
    table[1] = -math.inf
    table[2, :19] = -math.inf
    op = attnc.compile(pattern, head_dim=16)
    q, k, v = (torch.randn(1, 4, 60, 16) for _ in range(3))
    out, lse = op(q, k, v, return_lse=True, table=table)
    assert (lse[0, 1] == -math.inf).all()
    assert (out[0, 1] == 0).all()
    assert (lse[0, 2, :19] == -math.inf).all()
    assert lse[0, 2, 19:].isfinite().all()
    reference.assert_within(out, lse, q, k, v, reference.terms(pattern.ir, q, k, {"table": table}))


def test_far_apart() -> None:
    """At distances of a million a slope is as exact as next door."""
    text = "score s = { q -> k : (k - q + 1000000) * 1.5 / 1000000 }\n"
    pattern = attnc.parse(f"{text}attention p = softmax(dot + s, over: causal)")
    assert by_distance(pattern.ir) == "all"
    q, k, v = (torch.randn(1, 2, 200, 16) for _ in range(3))
    out, lse = attnc.compile(pattern, head_dim=16)(q, k, v, return_lse=True)
    reference.assert_within(out, lse, q, k, v, reference.terms(pattern.ir, q, k, {}))


@settings(max_examples=10, deadline=None)
@given(
    st.integers(-40, 40), st.integers(1, 90), st.integers(1, 4), st.integers(1, 150),
    st.integers(1, 150), st.floats(0.01, 1), st.booleans(),
)  # fmt: skip
def test_random_bands(low, span, step, nq, nk, slope, tall):
    """Any band of distances and slope, forced to be tall or not, keeps the error rule."""
    pattern = attnc.parse(
        f"score s = {{ q -> k : {slope:.6f} * abs(q - k) }}\nattention p = softmax(dot + s, over: "
        f"{{ q -> k : {low} <= q - k < {low + span} and (q - k) mod {step} == 0 }})"
    )
    module = module_of(pattern, _LONG_ROW=1 if tall else 99, _STACKED_LONG=2)
    torch.manual_seed(nq)
    q = torch.randn(1, 2, nq, 16)
    k, v = (torch.randn(1, 2, nk, 16) for _ in range(2))
    out, lse = module._cpu_forward(q, k, v, 0.25)
    reference.assert_within(
        out, lse, q, k, v, reference.terms(pattern.ir, q, k, {}), scale=0.25
    )
