"""Kernels of selected pairs beside the oracle, under Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings

from attnc.compiler.ir.routed import Combined
from tests.routes import zoo_ir as zoo
from tests.routes.cases import CASES
from tests.routes.compiled import compiled, op_of
from tests.routes.data import real
from tests.routes.executors import call_of, check_gradients, check_output
from tests.routes.kernel_op import by_kernels
from tests.routes.strategies import attentions, shapes
from tests.routes.test_executors import made

WITHOUT = {"routing_transformer", "routing_transformer_open", "mosa", "mosa_free"}
"""Members have no kernels."""

NAMES = [
    name for name, case in CASES.items()
    if name not in WITHOUT and not isinstance(case(), Combined)
]  # fmt: skip

FEW = ["moba", "biformer", "nsa_selected", "minference_vertical_slash", "anchor", "kinetics"]
"""One of each way to walk: by keys, cells, grouped heads, lists and diagonals, tokens, decode."""


def check(op: Any, method: Any, call: Any) -> None:
    """Compare what comes out, and its gradients."""
    with by_kernels(op):
        check_output(op, method, call)
        check_gradients(op, method, call)


@pytest.mark.parametrize("name", FEW)
def test_kernels(name: str) -> None:
    method, call = made(name, d=16, dv=16, b=1, hq=2, hkv=1)
    check(op_of(name), method, call)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FEW])
def test_kernels_of_every_method(name: str) -> None:
    method, call = made(name, d=16, dv=16)
    check(op_of(name), method, call)


@pytest.mark.parametrize("name", ["moba", "minference_block"])
def test_half_precision(name: str) -> None:
    method, call = made(name, torch.float16, d=16, dv=16, b=1, hq=2, hkv=1, nk=21)
    check(op_of(name), method, call)


WIDER = {
    "moba_16": (zoo.moba(16, 3), {"nq": 100, "nk": 100}),
    "moba_32": (zoo.moba(32, 3), {"nq": 100, "nk": 100, "hkv": 1}),
    "moba_48": (zoo.moba(48, 2), {"nq": 100, "nk": 100}),
    "moba_many_heads": (zoo.moba(16, 2), {"hq": 18, "hkv": 2, "nq": 33, "nk": 33}),
    "nsa_16": (zoo.nsa_selected(16, 3), {"hq": 8, "hkv": 2, "nq": 70, "nk": 70}),
    "blocks_16": (zoo.minference_block(16, 3), {"nq": 90, "nk": 90}),
    "blocks_64": (zoo.minference_block(64, 2), {"nq": 150, "nk": 150}),
    "other_lengths": (zoo.minference_block(16, 2), {"nq": 21, "nk": 75}),
    "vmoba_16": (zoo.vmoba(16, 2), {"nq": 50, "nk": 60}),
    "cells_of_20": (zoo.biformer(11, 9, (4, 5), 2), {"nq": 99, "nk": 99}),
    "decode_16": (zoo.quest(16, 3), {"nq": 3, "nk": 100}),
}  # fmt: skip
"""Units of a tile and more, that tiles cut evenly and that they do not; ragged ends."""


@pytest.mark.parametrize("name", ["moba_16", "nsa_16", "blocks_64", "moba_48"])
def test_units_as_wide_as_tiles(name: str) -> None:
    _wider(name, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDER)
@pytest.mark.parametrize("dims", [(16, 32), (24, 20)], ids=str)
def test_units_as_wide_as_tiles_in_other_dims(name: str, dims: tuple[int, int]) -> None:
    _wider(name, *dims)


def _wider(name: str, d: int, dv: int) -> None:
    method, sizes = WIDER[name]
    shape = replace(CASES["moba"].shape(b=1, hq=2, hkv=1), d=d, dv=dv, **sizes)
    call = call_of(real(shape, 3), {}, torch.float32)
    check(compiled(method, d, dv), method, call)


def test_negative_and_zero_scale() -> None:
    method, call = made("moba", d=16, dv=16, b=1, hq=2, hkv=1, nq=21, nk=21)
    op = op_of("moba")
    with by_kernels(op):
        for scale in (-0.5, 0.0):
            check_output(op, method, call, scale=scale)


def test_strided_tensors() -> None:
    call = made("minference_block", d=16, dv=16, b=1)[1]
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (call.q, call.k, call.v)]
    other = replace(call, q=apart[0], k=apart[1], v=apart[2])
    op = op_of("minference_block")
    with by_kernels(op):
        expected = op(call.q, call.k, call.v)
        assert torch.equal(op(other.q, other.k, other.v), expected)


def test_two_runs_agree_in_every_bit() -> None:
    call = made("moba", d=16, dv=16, b=1, hq=2, hkv=1, nq=21, nk=21)[1]
    op = op_of("moba")
    leaves = [x.requires_grad_() for x in (call.q, call.k, call.v)]
    with by_kernels(op):
        runs = [torch.autograd.grad(op(*leaves).square().sum(), leaves) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_a_query_that_selects_nothing() -> None:
    call = made("minference_block", d=16, dv=16, b=1)[1]
    op = op_of("minference_block")
    ((name, (index, count)),) = op.select(call.q, call.k).items()
    index[:, :, 1], count[:, :, 1] = -1, 0
    with by_kernels(op):
        out, lse = op(call.q, call.k, call.v, selection={name: (index, count)}, return_lse=True)
    assert (out[:, :, 8:16] == 0).all()
    assert (lse[:, :, 8:16] == -np.inf).all()
    assert lse[:, :, :8].isfinite().all()


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(attentions(), shapes())
def test_any_route(method: Any, shape: Any) -> None:
    call = call_of(real(shape), {}, torch.float32)
    check(compiled(method, shape.d, shape.dv), method, call)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(attentions(), shapes())
def test_any_route_widely(method: Any, shape: Any) -> None:
    call = call_of(real(shape), {}, torch.float32)
    check(compiled(method, shape.d, shape.dv), method, call)
