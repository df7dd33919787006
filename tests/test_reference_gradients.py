"""The dense reference of gradients: scores as the pattern IR defines them, and small steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import attnc
from attnc.runtime.reference import reference, terms
from attnc.runtime.reference_gradients import (
    Backward,
    assert_gradients_within,
    reference_gradients,
)
from tests.test_data_op import TEXTS, inputs_of

N = 19
EVERYTHING = """
    fn bend(s: real) = min(s, exp(-s)) + exp(-abs(s)) + tanh(s)
    score all(input table: real[3, *], input slope: real[4]) heads h: 4 = { q -> k, h :
        (if q > k then log(q - k) else sqrt(abs(k - q)) / 2) * slope[h] - table[h mod 3][q - k]
        + max(0.5, slope[h]) * log(1 + k) }
    attention everything heads h: 4 = softmax(bend(dot) + all, over: { q -> k : k <= q + 1 })
"""


def call_of(text: str, name: str, given: dict[str, Any], n: int = N) -> Backward:
    make = torch.Generator().manual_seed(3)
    q, k, v, grad_out = (torch.randn(2, h, n, 16, generator=make) for h in (4, 2, 2, 4))
    plain = {key: x for key, x in given.items() if key != "extents"}
    return Backward(
        pattern=attnc.parse(text, pattern=name).ir, q=q, k=k, v=v, grad_out=grad_out, inputs=plain,
        grad_lse=torch.randn(2, 4, n, generator=make), extents=given.get("extents"),
    )  # fmt: skip


LEARNED = {"table": torch.randn(3, 9), "slope": torch.tensor([0.5, 1.5, -2.0, 0.0])}


def everything() -> Backward:
    return call_of(EVERYTHING, "everything", LEARNED)


def test_scores_are_those_of_the_pattern() -> None:
    call = everything()
    dot = torch.randn(2, 4, N, N, dtype=torch.float64)
    given = terms(call.pattern, call.q, call.k, call.inputs)
    assert given.score is not None
    arrays = {n: x.double().numpy() for n, x in call.inputs.items()}
    expected = [call.pattern.scores(N, N, arrays, dot=one.numpy()) for one in dot]
    keep = given.mask.broadcast_to(dot.shape)
    found = given.score(dot)[keep]
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected))[keep])


@pytest.mark.parametrize("name", ["window", "everything", *sorted(TEXTS)])
def test_gradients_are_those_of_small_steps(name: str) -> None:
    """The derivative along a random direction, by central differences of the reference."""
    n = 21  # the grid's
    call = everything() if name == "everything" else (
        call_of("pattern window = { q -> k : 0 <= q - k < 4 }", "window", {})
        if name == "window" else call_of(TEXTS[name], name, inputs_of(name, n), n)
    )  # fmt: skip
    names = ["q", "k", "v", *call.learned]
    exact = reference_gradients(call)
    assert list(exact) == names
    start = {"q": call.q, "k": call.k, "v": call.v, **call.inputs}
    start |= {key: start[key].double() for key in names}
    step = {key: torch.randn_like(start[key]) for key in names}

    def loss(by: float) -> torch.Tensor:
        moved = {**start, **{key: start[key] + by * step[key] for key in names}}
        q, k, v = (moved.pop(key) for key in "qkv")
        scale = None if call.pattern.scale is None else float(call.pattern.scale)
        out, lse = reference(q, k, v, terms(call.pattern, q, k, moved, call.extents), scale)
        assert call.grad_lse is not None
        kept = lse.isfinite()
        return (out * call.grad_out).sum() + (lse * call.grad_lse)[kept].sum()

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    along = sum((exact[key] * step[key]).nan_to_num().sum() for key in names)
    torch.testing.assert_close(torch.as_tensor(along), slope, rtol=1e-5, atol=1e-5)


def test_a_wrong_gradient_is_found() -> None:
    call = everything()
    found = list(reference_gradients(call, exact=False).values())
    assert_gradients_within(found, call)
    assert_gradients_within([None, *found[1:]], call)
    for place, one in enumerate(found):
        wrong = one.clone()
        wrong.view(-1)[7 % one.numel()] += 1e-3 * float(max(x.abs().max() for x in found))
        with pytest.raises(AssertionError, match="is off by"):
            assert_gradients_within([*found[:place], wrong, *found[place + 1 :]], call)
    with pytest.raises(AssertionError, match="NaN"):
        assert_gradients_within([found[0] * math.nan, *found[1:]], call)
    halves = replace(call, **{x: getattr(call, x).half() for x in ("q", "k", "v", "grad_out")})
    assert_gradients_within(list(reference_gradients(halves).values()), halves)
