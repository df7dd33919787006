"""Cases of the routed methods: IR, the inputs it reads, the lengths it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnc.compiler.ir.route import TopK
from attnc.compiler.ir.routed import AnyAttention
from tests.routes.zoo_ir import (
    anchor,
    biformer,
    dma,
    dsa,
    flexprefill,
    infllm_v2,
    kinetics,
    loki,
    minference_block,
    minference_vertical_slash,
    moba,
    mosa,
    nsa,
    nsa_selected,
    quest,
    routing_transformer,
    seer,
    sla,
    snapkv,
    sparge,
    sparse_vggt,
    sparsed,
    sparsifiner,
    top_theta,
    vmoba,
    vmoba_cells,
    vmoba_mass,
    xattention,
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a call."""

    b: int = 2
    hq: int = 4
    hkv: int = 2
    nq: int = 37
    nk: int = 37
    d: int = 8
    dv: int = 8


Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A method: its IR, and the inputs it reads at a shape.

    ``fixed``: its tokens are as many as its grid has. ``decode``: its queries are the last ones.
    """

    make: Callable[..., AnyAttention]
    inputs: Callable[[Shape, np.random.Generator], Inputs] = lambda shape, rng: {}
    args: dict[str, Any] = field(default_factory=dict)
    fixed: int | None = None
    decode: bool = False

    def __call__(self) -> Any:
        return self.make(**self.args)

    def shape(self, **sizes: int) -> Shape:
        """Return a shape it is meant for."""
        if self.fixed is not None:
            sizes |= {"nq": self.fixed, "nk": self.fixed}
        elif self.decode:
            sizes.setdefault("nq", 1)
        return Shape(**sizes)


def whole(rng: np.random.Generator, *shape: int, reach: int = 3) -> Any:
    """Draw small integers, whose sums of products are exact in float32."""
    return rng.integers(-reach, reach + 1, shape).astype(np.float64)


def _index(s: Shape, rng: np.random.Generator) -> Inputs:
    return {
        "q_index": whole(rng, s.b, 3, s.nq, 4), "k_index": whole(rng, s.b, 1, s.nk, 4),
        "w_index": whole(rng, s.b, s.nq, 3),
    }  # fmt: skip


def _gate(s: Shape, rng: np.random.Generator) -> Inputs:
    return {"gate": whole(rng, s.b, s.hq, -(-s.nq // 8), -(-s.nk // 8))}


def _gates(s: Shape, rng: np.random.Generator) -> Inputs:
    windows = max((s.nk - 4) // 2 + 1, 0)
    gates = {f"gate_{x}": rng.random((s.b, s.hq, s.nq)) for x in "csw"}
    return gates | {
        "compressed_k": rng.normal(size=(s.b, s.hkv, windows, s.d)),
        "compressed_v": rng.normal(size=(s.b, s.hkv, windows, s.dv)),
    }


def _pca(s: Shape, rng: np.random.Generator) -> Inputs:
    return {"q_pca": whole(rng, s.b, s.hq, s.nq, 3), "k_pca": whole(rng, s.b, s.hkv, s.nk, 3)}


def _low(s: Shape, rng: np.random.Generator) -> Inputs:
    return {"q_low": whole(rng, s.b, s.hq, s.nq, 2), "k_low": whole(rng, s.b, s.hkv, s.nk, 2)}


def _router(s: Shape, rng: np.random.Generator) -> Inputs:
    order = [[rng.permutation(s.nk) for _ in range(s.hq)] for _ in range(s.b)]
    return {"router": (np.array(order) + 1) / 64}


def _compressed(s: Shape, rng: np.random.Generator) -> Inputs:
    return {"k_cmp": rng.normal(size=(s.b, s.hkv, max((s.nk - 4) // 2 + 1, 0), s.d))}


CASES: dict[str, Case] = {
    "moba": Case(moba),
    "moba_wide": Case(moba, args={"tokens": 5, "top": 2}),
    "vmoba": Case(vmoba),
    "vmoba_row": Case(vmoba, args={"compete": "row"}),
    "vmoba_column": Case(vmoba, args={"compete": "column", "top": 9}),
    "vmoba_all": Case(vmoba, args={"compete": "all"}),
    "vmoba_mass": Case(vmoba_mass),
    "vmoba_mass_row": Case(vmoba_mass, args={"compete": "row"}),
    "vmoba_cells": Case(vmoba_cells, fixed=60),
    "biformer": Case(biformer, fixed=48),
    "routing_transformer": Case(
        routing_transformer, lambda s, rng: {"centroids": whole(rng, s.hq, 3, s.d)}
    ),
    "routing_transformer_open": Case(
        routing_transformer, lambda s, rng: {"centroids": whole(rng, s.hq, 3, s.d)},
        {"causal": False},
    ),
    "nsa_selected": Case(nsa_selected),
    "nsa_learned": Case(nsa_selected, _compressed, {"learned": True}),
    "nsa": Case(nsa, _gates),
    "infllm_v2": Case(infllm_v2),
    "dsa": Case(dsa, _index),
    "minference_vertical_slash": Case(minference_vertical_slash),
    "minference_block": Case(minference_block),
    "flexprefill": Case(flexprefill),
    "xattention": Case(xattention),
    "anchor": Case(anchor),
    "mosa": Case(mosa, _router),
    "mosa_free": Case(mosa, _router, {"first": 0}),
    "seer": Case(seer, _gate),
    "seer_top": Case(seer, _gate, {"select": TopK(count=2)}),
    "snapkv": Case(snapkv),
    "snapkv_max": Case(snapkv, args={"op": "max"}),
    "quest": Case(quest, decode=True),
    "kinetics": Case(kinetics, decode=True),
    "loki": Case(loki, _pca),
    "top_theta": Case(top_theta, lambda s, rng: {"theta": np.linspace(0.1, 1.1, s.hq)}),
    "dma": Case(dma, lambda s, rng: {"bias": whole(rng, s.b, s.hkv, 1, s.nk)}),
    "sla": Case(sla),
    "sparge": Case(sparge),
    "sparge_causal": Case(sparge, args={"visible": "reached"}),
    "sparsed": Case(sparsed),
    "sparse_vggt": Case(sparse_vggt),
    "sparsifiner": Case(sparsifiner, _low),
}  # fmt: skip
