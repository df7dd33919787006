"""Gradients of what scores and sinks read in packed sequences: made by kernels, as on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnc.codegen.learned import Way, learned
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.build_plan import build_plan
from tests.kernels import DEVICE, skip_without_interpreter
from tests.test_varlen import CROSS, LEARNED, SELF, compiled, packed, random, starts

RATES = """
input rate: real[4]
input far: real[3]
score bias heads h: 4 = { q -> k, h : rate[h] * (k - q) + far[(n - 1 - k) div 8] }
attention p heads h: 4 = softmax(dot + bias, over: { q -> k : k <= q })
"""


@pytest.mark.parametrize(
    ("text", "shapes", "align", "way"),
    [
        (LEARNED, {"table": (4, 9), "logit": (4,)}, "top-left", "diagonal"),
        (LEARNED, {"table": (4, 9), "logit": (4,)}, "bottom-right", "pair"),
        (RATES, {"rate": (4,), "far": (3,)}, "top-left", "row"),
    ],
    ids=["along_diagonals", "by_pairs", "in_rows_and_columns"],
)
def test_gradients_of_inputs_by_kernels(
    text: str, shapes: dict[str, tuple[int, ...]], align: Any, way: Way
) -> None:
    """Those of sinks and of what scores read, as on a CPU: the sums over all sequences."""
    skip_without_interpreter()
    op = compiled(text, align=align)
    tile = Tiling(16, 16)
    plan = build_plan(op._aligned, head_dim=16, dtype="fp32", tile=tile, backward=True).backward
    assert plan is not None
    assert plan.learned is not None
    assert way in [one.way for one in learned(plan.learned, packed=True)]
    q, k, v, grad_out, grad_lse = packed(SELF, CROSS)
    given = {n: random(*shape, seed=5).requires_grad_() for n, shape in shapes.items()}
    cu = starts(SELF), starts(CROSS)
    out, lse = op.varlen(q, k, v, *cu, return_lse=True, **given)
    loss = (out * grad_out).sum() + (lse * grad_lse).where(lse > -torch.inf, 0).sum()
    expected = torch.autograd.grad(loss, list(given.values()))
    there = [x.detach().to(DEVICE) for x in (q, k, v, out, lse, grad_out, grad_lse)]
    inputs = [x.detach().to(DEVICE) for x in given.values()]
    backward = op.varlen.__globals__["_gpu_backward"]
    rest = [0.25, *(x.to(DEVICE) for x in cu), inputs, [], []]
    *_, found = backward(*there, *rest, needs=[False] * 3 + [True] * len(inputs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)
