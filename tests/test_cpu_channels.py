"""Score terms that are products of query and key, as channels of both, on a CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.compiler.ir import score as sc
from attnc.compiler.passes.bias_fold import MAX_CHANNELS, channels
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime import reference

INPUTS = "input a: real[4, n]\ninput b: real[n]\ninput c: real[n]\ninput d: real[4]\n"
TERMS = [
    "a[h][q] * b[k]", "c[k]", "0.5 * a[h][q]", "d[h] * c[q] * b[k] / 2", "log(q + 1) * b[k]",
    "d[h] * c[k]", "h / 8",
]  # fmt: skip
KEEPS = ["k <= q", "abs(q - k) < 50", "k < 3 or 0 <= q - k < 40"]


def pattern_of(score: str, keep: str, sink: str = "") -> attnc.Pattern:
    return attnc.parse(
        f"{INPUTS}score s heads h: 4 = {{ q -> k, h : {score} }}\n"
        f"attention p = softmax(dot + s, over: {{ q -> k : {keep} }}{sink})"
    )


def values(pattern: attnc.Pattern, n: int, batch: int = 0) -> dict[str, torch.Tensor]:
    """Draw what the terms of a pattern read, for each item of a batch or for all."""
    made = torch.Generator().manual_seed(n)
    own = (batch,) if batch else ()
    drawn = {
        "a": torch.randn(*own, 4, n, generator=made), "b": torch.randn(*own, n, generator=made),
        "c": torch.randn(n, generator=made), "d": torch.randn(4, generator=made),
    }  # fmt: skip
    return {one.name: drawn[one.name] for one in pattern.ir.inputs}


@pytest.mark.parametrize(
    ("score", "of_query", "of_key", "row"),
    [
        ("a[h][q] * b[k]", ["a[h][q]"], ["b[k]"], "0.0"),
        ("c[k] + a[h][q] + b[k]", ["1.0"], ["(c[k] + b[k])"], "a[h][q]"),
        ("d[h] * c[k] + h / 8", ["d[h]"], ["c[k]"], "(real(h) / 8.0)"),
    ],
)
def test_what_becomes_channels(
    score: str, of_query: list[str], of_key: list[str], row: str
) -> None:
    """Terms of the key share a channel, those of the query alone need none."""
    found = build_plan(pattern_of(score, "k <= q").ir, head_dim=16).cpu.channels
    assert found is not None
    assert [*map(sc.show, found.of_query)] == of_query
    assert [*map(sc.show, found.of_key)] == of_key
    assert sc.show(found.of_row) == row
    assert found.strips


@pytest.mark.parametrize(
    ("score", "sink"),
    [
        ("0.5 * (k - q)", ""),  # by distance
        ("b[k] * (k - q)", ""),  # a factor of both
        ("a[h][k]", ""),  # a key of each head
        ("c[k]", ", sink: 0.0"),
        ("c[k] + " + " + ".join(f"(q + {i}) * b[k]" for i in range(MAX_CHANNELS)), ""),
    ],
)
def test_what_does_not(score: str, sink: str) -> None:
    assert channels(pattern_of(score, "k <= q", sink).ir) is None


def test_it_can_be_refused() -> None:
    assert build_plan(pattern_of("c[k]", "k <= q").ir, head_dim=16, bias="add").cpu.channels is None


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_within_the_error_rule(keep: str, dtype: torch.dtype) -> None:
    """Inputs of each item, grouped heads, a narrower value; half types go pair by pair."""
    pattern = pattern_of(" + ".join(TERMS), keep)
    op = attnc.compile(pattern, head_dim=16, value_dim=24)
    for n, group, batch in ((1, 1, 0), (70, 2, 2), (131, 4, 0), (200, 1, 0)):
        q = torch.randn(2, 4, n, 16).to(dtype)
        k, v = (torch.randn(2, 4 // group, n, width).to(dtype) for width in (16, 24))
        out, lse = op(q, k, v, return_lse=True, **values(pattern, n, batch))
        terms = reference.terms(pattern.ir, q, k, values(pattern, n, batch))
        reference.assert_within(out, lse, q, k, v, terms)


def attend(pattern: attnc.Pattern, bias: str, **given: Any) -> tuple[torch.Tensor, ...]:
    """Run one way to add terms, with gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 90, 16, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    op = attnc.compile(pattern, head_dim=16, bias=bias)
    out, lse = op(q, k, v, return_lse=True, **given)
    loss = (out * torch.arange(out.numel()).view_as(out).cos()).sum() + lse.cos().sum()
    learned = [x for x in given.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    return out, lse, *torch.autograd.grad(loss, (q, k, v, *learned))


def test_gradients_are_those_of_pairs() -> None:
    """Of q, k, v and of what is learned: the backward adds pair by pair, from the lse."""
    pattern = pattern_of("a[h][q] * b[k] + d[h] * c[k] + c[q]", "k <= q")
    given_ = {n: x.double().requires_grad_() for n, x in values(pattern, 90).items()}
    for one, other in zip(
        attend(pattern, "auto", **given_), attend(pattern, "add", **given_), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def test_large_terms_that_cancel() -> None:
    """Terms of a million for all keys of a query are rounded as in the sum of a pair."""
    pattern = pattern_of("a[h][q] * b[k] + c[k]", "abs(q - k) < 50")
    given_ = values(pattern, 131)
    given_["a"], given_["b"] = given_["a"] * 1000, given_["b"] * 1000
    q, k, v = (torch.randn(1, 4, 131, 16) for _ in range(3))
    out, lse = attnc.compile(pattern, head_dim=16)(q, k, v, return_lse=True, **given_)
    reference.assert_within(out, lse, q, k, v, reference.terms(pattern.ir, q, k, given_))


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_elements_that_exclude(name: str) -> None:
    """An infinite element goes pair by pair: out 0 and lse -inf where nothing is left."""
    score = "a[h][q] + c[k]" if name == "a" else "a[h][q] * b[k] + c[k]"
    pattern = pattern_of(score, "abs(q - k) < 5")
    given_ = values(pattern, 60)
    given_["a"] = given_["a"].abs() + 1
    given_[name][..., 20:40] = -math.inf
    q, k, v = (torch.randn(1, 4, 60, 16) for _ in range(3))
    out, lse = attnc.compile(pattern, head_dim=16)(q, k, v, return_lse=True, **given_)
    assert (lse[:, :, 30] == -math.inf).all()
    assert (out[:, :, 30] == 0).all()
    reference.assert_within(out, lse, q, k, v, reference.terms(pattern.ir, q, k, given_))


@pytest.mark.parametrize("scale", [1e-30, 0.0, 3.0])
def test_scales(scale: float) -> None:
    """A scale by which nothing can be divided leaves the terms to pairs."""
    pattern = pattern_of("a[h][q] * b[k]", "k <= q")
    q, k, v = (torch.randn(1, 4, 70, 16) for _ in range(3))
    out, lse = attnc.compile(pattern, head_dim=16)(
        q, k, v, return_lse=True, scale=scale, **values(pattern, 70)
    )
    terms = reference.terms(pattern.ir, q, k, values(pattern, 70))
    reference.assert_within(out, lse, q, k, v, terms, scale=scale)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from(TERMS), min_size=1, max_size=4, unique=True), st.sampled_from(KEEPS),
    st.integers(1, 150),
)  # fmt: skip
def test_random_separable_scores(terms, keep, n):
    """Channels and pairs keep the error rule, whatever is added up."""
    pattern = pattern_of(" + ".join(terms), keep)
    torch.manual_seed(n)
    q, k, v = (torch.randn(1, 4, n, 16) for _ in range(3))
    for bias in ("auto", "add"):
        op = attnc.compile(pattern, head_dim=16, bias=bias)
        out, lse = op(q, k, v, return_lse=True, **values(pattern, n))
        reference.assert_within(
            out, lse, q, k, v, reference.terms(pattern.ir, q, k, values(pattern, n))
        )
