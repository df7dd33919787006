"""The zoo's attentions by content: the same IR as is built by hand, compiled, and right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import attnc
from attnc.compiler import driver
from attnc.compiler.ir.routed import AnyAttention, Combined, Routed
from attnc.compiler.route_oracle import attend
from tests.routes import zoo_ir
from tests.routes.cases import CASES, Shape

SMALL: dict[str, tuple[dict[str, Any], AnyAttention]] = {
    "moba": ({"block": 8, "top": 3}, zoo_ir.moba()),
    "vmoba": ({"block": 8, "top": 3}, zoo_ir.vmoba()),
    "vmoba_mass": ({"block": 8, "tau": "1/2"}, zoo_ir.vmoba_mass()),
    "vmoba_cells": (
        {"t": 2, "y": 6, "x": 5, "ct": 1, "cy": 3, "cx": 3, "top": 2}, zoo_ir.vmoba_cells()
    ),
    "biformer": ({"y": 6, "x": 8, "ry": 3, "rx": 2, "top": 3}, zoo_ir.biformer()),
    "routing_transformer": ({"clusters": 3, "width": 8}, zoo_ir.routing_transformer()),
    "nsa": ({"kernel": 4, "stride": 2, "block": 8, "top": 4, "near": 12}, zoo_ir.nsa()),
    "infllm_v2": (
        {"kernel": 4, "stride": 2, "block": 8, "top": 4, "recent": 2}, zoo_ir.infllm_v2()
    ),
    "dsa": ({"top": 8}, zoo_ir.dsa()),
    "minference_vertical_slash": (
        {"last": 6, "columns": 5, "slashes": 6, "first": 2, "nearest": 3},
        zoo_ir.minference_vertical_slash(),
    ),
    "minference_block": ({"block": 8, "top": 3}, zoo_ir.minference_block()),
    "flexprefill": ({"last": 8, "gamma": "4/5", "first": 8}, zoo_ir.flexprefill()),
    "xattention": ({"block": 8, "stride": 4, "tau": "3/4"}, zoo_ir.xattention()),
    "anchor_attention": ({"block": 4, "step": 2, "theta": 1, "sink": 3}, zoo_ir.anchor()),
    "mosa": ({"top": 9, "first": 1}, zoo_ir.mosa()),
    "quest": ({"page": 4, "top": 3}, zoo_ir.quest()),
    "kinetics": ({"page": 4, "top": 3}, zoo_ir.kinetics()),
    "seer_attention": ({"block": 8, "threshold": "3/16"}, zoo_ir.seer(keep=True)),
    "snapkv": ({"last": 5, "top": 12, "smooth": 5}, zoo_ir.snapkv()),
    "loki": ({"top": 8}, zoo_ir.loki()),
    "top_theta": ({}, zoo_ir.top_theta()),
    "dma": ({"top": 8}, zoo_ir.dma()),
    "sla": ({"block": 8, "share": "1/3"}, zoo_ir.sla()),
    "sparge": ({"queries": 16, "keys": 8, "mass": "1/2"}, zoo_ir.sparge()),
    "sparsed": ({"block": 8, "share": "2/5"}, zoo_ir.sparsed()),
    "sparse_vggt": (
        {"queries": 16, "keys": 8, "share": "1/3", "tau": "7/8"}, zoo_ir.sparse_vggt()
    ),
    "sparsifiner": ({}, zoo_ir.sparsifiner()),
}
ALIKE = {"nsa": "nsa_learned"}  # cases of the same method under another name


def alike(routed: Routed) -> tuple[Any, ...]:
    """Return what two attentions have in common that do the same: routes but for names."""
    plain = [
        replace(route, name="", causal=None, refresh=1, source_text="") for route in routed.routes
    ]
    sizes = (5, 7), (8, 8), (48, 48), (60, 60)
    masks = []
    for nq, nk in sizes:
        if routed.base.lengths in ((None, None), (nq, nk)):
            masks += [p.mask(nq, nk).tobytes() for p in (routed.base, routed.kept)]
    roles = sorted((one.name, one.role) for one in routed.inputs)
    return plain, masks, roles


def test_every_method_is_here() -> None:
    assert {*SMALL} == {*driver.zoo_routes()} == {*attnc.zoo.routes}


@pytest.mark.parametrize("name", SMALL)
def test_the_files_say_what_is_built_by_hand(name: str) -> None:
    params, expected = SMALL[name]
    found = attnc.zoo[name](**params).routed
    if name in ("quest", "kinetics"):  # these are aligned when they are compiled
        from attnc.compiler.passes.align import aligned

        assert isinstance(found, Routed)
        found = replace(
            found, base=aligned(found.base, "bottom-right"),
            kept=aligned(found.kept, "bottom-right"),
        )
    if isinstance(expected, Combined):
        assert isinstance(found, Combined)
        gates = [(term.gate, term.keys) for term in found.terms]
        assert gates == [(term.gate, term.keys) for term in expected.terms]
        expected = zoo_ir.nsa_selected(learned=True)
        found = found.terms[1].attention
        assert isinstance(found, Routed)
        inputs = [replace(one, name="k_cmp") for one in found.inputs]
        rep = replace(found.routes[0].key_rep, input="k_cmp")
        routes = (replace(found.routes[0], key_rep=rep),)
        found = replace(found, inputs=tuple(inputs), routes=routes)
    assert isinstance(found, Routed)
    assert isinstance(expected, Routed)
    assert alike(found) == alike(expected)


def test_a_gated_sum_is_that_of_its_terms(tmp_path: Any) -> None:
    """Native sparse attention, through the public path, beside float64; its modules by import."""
    params, _ = SMALL["nsa"]
    pattern = attnc.zoo.nsa(**params)
    op = attnc.compile(pattern, head_dim=16, dtype="fp32", folder=tmp_path / "nsa_ops", cache=False)
    shape = Shape(d=16, dv=16)
    rng = np.random.default_rng(4)
    q, k, v = (
        rng.normal(size=(shape.b, heads, 37, 16)) for heads in (shape.hq, shape.hkv, shape.hkv)
    )
    inputs = CASES["nsa"].inputs(shape, rng)
    given = {name: torch.tensor(x) for name, x in inputs.items()}
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = op(*tensors, **given)
    expected, _ = attend(pattern.routed, q, k, v, inputs)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-9)
    out.sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in tensors)
    import importlib
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        module = importlib.import_module("nsa_ops.nsa")
        again = module.op(*tensors, **given)
    finally:
        sys.path.remove(str(tmp_path))
    assert torch.equal(again, out)
    with pytest.raises(ValueError, match="gate_c is missing"):
        op(*tensors)
    with pytest.raises(ValueError, match=r"the gate gate_c has the shape"):
        op(*tensors, **{**given, "gate_c": torch.ones(3)})


def test_an_op_by_content_from_python() -> None:
    """`select` alone, its result given again, and under `torch.compile`."""
    op = attnc.compile(attnc.zoo.moba(block=8, top=3), head_dim=16, dtype="fp32")
    q, k, v = (torch.randn(2, heads, 40, 16) for heads in (4, 2, 2))
    out = op(q, k, v)
    selection = op.select(q, k)
    index, count = selection["nearest_blocks"]
    assert index.shape == (2, 4, 40, 3)
    assert count.max() == 3
    assert torch.equal(op(q, k, v, selection=selection), out)
    compiled = torch.compile(op, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(q, k, v), out)
    with pytest.raises(ValueError, match="index of the selection of nearest_blocks"):
        op(q[:, :, :8], k, v, selection=selection)
    with pytest.raises(ValueError, match="there is no input `gate`"):
        op(q, k, v, gate=q)
    bad = k.clone()
    bad[0, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        op(q, bad, v)


@pytest.mark.parametrize("sides", [(0, 8), (8, 0)])
def test_no_tokens(sides: tuple[int, int]) -> None:
    op = attnc.compile(attnc.zoo.moba(block=8, top=3), head_dim=16, dtype="fp32")
    nq, nk = sides
    out, lse = op(
        torch.randn(1, 2, nq, 16), torch.randn(1, 2, nk, 16), torch.randn(1, 2, nk, 16),
        return_lse=True,
    )
    assert out.shape == (1, 2, nq, 16)
    assert not out.any()
    assert (lse == -np.inf).all()


def test_what_is_chosen_by_content_has_no_mask() -> None:
    for name in ("moba", "nsa"):
        pattern = attnc.zoo[name]()
        for ask in (lambda p: p.mask(16), lambda p: p.blocks(16), lambda p: p.ir):
            with pytest.raises(attnc.CompileError, match="ATT0336"):
                ask(pattern)
