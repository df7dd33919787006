"""Torch forms of the transforms of input arrays: equal to the NumPy forms, which define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnc
from attnc.codegen import transforms as forms
from attnc.codegen.inputs import transform_text, transforms_used
from attnc.compiler.transforms import TRANSFORMS
from attnc.runtime.reference import assert_within, terms


def random_arguments(name: str, seed: int, size: int) -> list[Any]:
    """Make arguments of a transform, arrays and numbers."""
    rng = np.random.default_rng(seed)
    match name:
        case "next_where":
            return [rng.random((2, size)) < 0.3]
        case "prefix_sum" | "differences":
            return [rng.integers(-5, 9, (3, size))]
        case "sums_between":
            return [rng.integers(-5, 9, (2, size))]
        case "transpose":
            return [rng.integers(0, 9, (2, size, 3))]
        case "repeat":
            return [rng.integers(0, 4, size)]
        case "khop":
            return [rng.random((size, size)) < 1.5 / (size + 1), int(rng.integers(0, 5))]
        case "members":
            return [rng.integers(-2, size + 2, (2, 5)), size]
        case "merge_ranges":
            lists = rng.integers(-1, size, (2, 4)), rng.integers(-1, size + 3, (2, 5))
            return [*lists, int(rng.integers(1, 9)), size]
    raise AssertionError(f"no arguments are made for {name}")


def as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 20))
def test_equal_to_the_numpy_form(name: str, seed: int, size: int) -> None:
    arguments = random_arguments(name, seed, size)
    expected = TRANSFORMS[name](*arguments)
    given = [*map(as_tensor, arguments)]
    if name == "repeat":
        given.append(len(expected))
        assert torch.equal(forms._repeat(given[0], None), torch.from_numpy(expected))
    found = getattr(forms, f"_{name}")(*given)
    assert found.dtype == torch.from_numpy(expected).dtype
    assert torch.equal(found, torch.from_numpy(expected))


def test_repeat_beyond_its_counts_stays_in_bounds_on_a_device() -> None:
    """Where nothing is asked of the device, places beyond all counts belong to no item."""
    counts = torch.tensor([2, 0, 1]).to("meta")
    assert forms._repeat(counts, 5).shape == (5,)


def test_modules_hold_only_the_transforms_they_use() -> None:
    text = "pattern p(input c: int[m], input d: int[n] = repeat(c)) = { q -> k : d[q] == d[k] }"
    pattern = attnc.parse(text).ir
    assert transforms_used(pattern) == ["_repeat"]
    source = attnc.compile(attnc.parse(text), head_dim=16, cache=False).source
    assert transform_text("_repeat") in source
    assert "_khop" not in source


@pytest.mark.parametrize(
    "rule", ["count >= 20", "count > 0", "density >= 1/4", "density > 1/2", "any", "all"]
)
def test_rounded_blocks(rule: str) -> None:
    """Counts of pairs in blocks, computed at the call; with a head and data in them."""
    text = f"""
        pattern p(input doc: int[n]) heads h: 2 =
            blocks({{ q -> k, h : doc[q] == doc[k] and q - k <= 9 + h }}, 16, 8, {rule})
    """
    pattern = attnc.parse(text)
    op = attnc.compile(pattern, head_dim=16, cache=False)
    n = 45
    doc = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(3))
    q, k, v = torch.randn(3, 2, 2, n, 16).unbind()
    out, lse = op(q, k, v, doc=doc, return_lse=True)
    expected = terms(pattern.ir, q, k, {"doc": doc})
    assert torch.equal(expected.mask[0], pattern.mask(n, inputs={"doc": doc}))
    assert_within(out, lse, q, k, v, expected)
