"""Every zoo file at small, odd sizes, forward and backward: the CPU executor and the kernels."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import attnc
from attnc.compiler.driver import zoo_names
from attnc.runtime.reference import assert_within
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests import test_zoo as zoo
from tests.kernels import skip_without_interpreter
from tests.launches import from_arrays
from tests.test_triton_forward import ZOO
from tests.test_zoo_kernels import CASES

N = 53
NAMES = sorted({*zoo_names()} - {"softcap"})  # a function of scores
DTYPES = (torch.float64, torch.bfloat16, torch.float16)
QUICK = {
    "agent_spread", "alibi_bias", "bigbird", "combiner_fixed", "cswin", "document", "flamingo",
    "gna", "graph_khop", "longnet_multiplicity", "nats", "sta", "swin", "swin_bias", "t5_bias",
    "vertical_slash",
}  # fmt: skip
"""Their kernels run in the default ring, those of plain sequences in test_triton_backward.py."""
LONG = {"radial", "radial_blocks"}
"""They take seconds to plan; radial_tokens is their kin."""


@cache
def case(name: str) -> tuple[attnc.Pattern, int, int, dict[str, Any]]:
    """Return a pattern, both lengths and the inputs of a call, tensors in float64 or int."""
    if name in ZOO:
        return attnc.zoo[name](**ZOO[name]), N, N, {}
    if name not in CASES:
        return zoo.example(name)
    params, arrays = CASES[name]
    pattern = attnc.zoo[name](**params)
    nq, nk = (40 if length is None else length for length in pattern.ir.lengths)
    if name == "ppma_bias":
        nq = nk = 30
    given = from_arrays(pattern.ir, nq, nk, arrays)
    declared = {one.name for one in pattern.ir.inputs}
    return pattern, nq, nk, {n: x for n, x in given.items() if n in declared}


@cache
def compiled(name: str) -> Any:
    return attnc.compile(case(name)[0], head_dim=16, dtype="fp32", tile=(16, 16), cache=False)


def call_of(name: str, dtype: torch.dtype) -> Backward:
    """Draw the tensors of a call and gradients of its results."""
    pattern, nq, nk, inputs = case(name)
    heads = pattern.ir.heads or 2
    make = torch.Generator().manual_seed(nq + nk)
    q, k, v, grad_out = (
        torch.randn(1, heads, n, 16, generator=make).to(dtype) for n in (nq, nk, nk, nq)
    )
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return Backward(
        pattern=pattern.ir, q=q, k=k, v=v, grad_out=grad_out,
        grad_lse=torch.randn(1, heads, nq, generator=make).to(real),
        inputs={
            n: x.to(real) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for n, x in inputs.items()
        },
    )  # fmt: skip


def on_a_cpu(name: str, dtype: torch.dtype) -> None:
    call = call_of(name, dtype)
    q, k, v = (t.clone().requires_grad_() for t in (call.q, call.k, call.v))
    given = {
        n: x.clone().requires_grad_() if n in call.learned else x for n, x in call.inputs.items()
    }
    learned = [given[n] for n in call.learned]
    out, lse = compiled(name)(q, k, v, return_lse=True, **given)
    forward_within(out.detach(), lse.detach(), call)
    found = torch.autograd.grad((out, lse), (q, k, v, *learned), (call.grad_out, call.grad_lse))
    assert_gradients_within(found, call)


def forward_within(out: torch.Tensor, lse: torch.Tensor, call: Backward) -> None:
    given = call.terms(call.q, call.k, call.inputs)
    assert_within(out, lse, call.q, call.k, call.v, given, call.factor)


@pytest.mark.parametrize(
    "name", [n if n not in LONG else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_cpu(name: str) -> None:
    """In float32, and in one of the other dtypes in turns."""
    on_a_cpu(name, torch.float32)
    on_a_cpu(name, DTYPES[NAMES.index(name) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_cpu_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    on_a_cpu(name, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_kernels_in_the_interpreter(name: str, dtype: torch.dtype) -> None:
    """The same module, its Triton kernels instead of the CPU executor."""
    skip_without_interpreter()
    call = call_of(name, dtype)
    module = SimpleNamespace(**compiled(name)._function.__globals__)
    extra: tuple[Any, ...] = ()
    if hasattr(module, "_arguments"):
        known = {one.name: call.inputs.get(one.name) for one in module._INPUTS}
        extra = module._arguments(call.q, call.k, known, None)
    tensors = (call.q, call.k, call.v)
    scale = 0.25 if call.factor is None else call.factor
    out, lse = torch.empty_like(call.q), torch.empty(call.q.shape[:3])
    module._gpu_forward(*tensors, scale, out, lse, *extra)
    forward_within(out, lse, call)
    inputs = [one.name in call.learned for one in getattr(module, "_INPUTS", ()) if one.shape]
    *found, given = module._gpu_backward(
        *tensors, out, lse, call.grad_out, call.grad_lse, scale, *extra,
        needs=[True] * 3 + inputs,
    )  # fmt: skip
    learned = [g for g, wanted in zip(given, inputs, strict=True) if wanted]
    assert_gradients_within([*found, *learned], call)
