"""Every method beside a reference in loops, written from its definition, not from the primitives.

Selections are equal pair by pair; outputs agree to 1e-12. The reference of a method is what its
paper and its kernels mean; where their fallback differs, ``test_traps.py`` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import attnc
from attnc.compiler import route_oracle as oracle
from attnc.compiler.ir.routed import AnyAttention, Routed
from attnc.compiler.passes.align import aligned
from tests.routes import references as text
from tests.routes import references_vision as vision
from tests.routes.cases import CASES, Shape
from tests.routes.data import QKV, exact, real, tied
from tests.routes.references import Bools, Floats, Inputs, blocks
from tests.routes.test_zoo_routes import SMALL

MASKS: dict[str, Callable[..., Bools]] = {
    "moba": text.moba,
    "moba_wide": partial(text.moba, tokens=5, top_k=2),
    "vmoba": lambda q, k, i: vision.vmoba(q, k, i, blocks(k.shape[1], 8), 3, "head"),
    "vmoba_row": lambda q, k, i: vision.vmoba(q, k, i, blocks(k.shape[1], 8), 3, "row"),
    "vmoba_column": lambda q, k, i: vision.vmoba(q, k, i, blocks(k.shape[1], 8), 9, "column"),
    "vmoba_all": lambda q, k, i: vision.vmoba(q, k, i, blocks(k.shape[1], 8), 3, "all"),
    "vmoba_mass": partial(vision.vmoba_mass, pool="head"),
    "vmoba_mass_row": partial(vision.vmoba_mass, pool="row"),
    "vmoba_cells": lambda q, k, i: vision.vmoba(
        q, k, i, vision.boxes((2, 6, 5), (1, 3, 3)), 2, "row"
    ),
    "biformer": vision.biformer,
    "nsa_selected": text.nsa_selected,
    "nsa_learned": partial(text.nsa_selected, learned=True),
    "infllm_v2": partial(text.nsa_selected, largest=True),
    "dsa": text.dsa,
    "minference_vertical_slash": text.minference_vertical_slash,
    "minference_block": text.minference_block,
    "flexprefill": text.flexprefill,
    "xattention": text.xattention,
    "anchor": text.anchor,
    "seer": text.seer,
    "seer_top": partial(text.seer, top_k=2),
    "snapkv": text.snapkv,
    "snapkv_max": partial(text.snapkv, largest=True),
    "quest": text.quest,
    "kinetics": text.kinetics,
    "loki": text.loki,
    "top_theta": text.top_theta,
    "dma": text.dma,
    "sla": vision.sla,
    "sparge": vision.sparge,
    "sparge_causal": partial(vision.sparge, causal=True),
    "sparsed": vision.sparsed,
    "sparse_vggt": vision.sparse_vggt,
    "sparsifiner": vision.sparsifiner,
}
OUTPUTS: dict[str, Callable[..., Floats]] = {
    "mosa": vision.mosa,
    "mosa_free": partial(vision.mosa, first=0),
    "routing_transformer": vision.routing_transformer,
    "routing_transformer_open": partial(vision.routing_transformer, causal=False),
    "nsa": lambda q, k, v, i: vision.nsa(q, k, v, i, text.nsa_selected(q, k, i)),
}
ROUNDED = {
    "nsa_selected", "nsa_learned", "infllm_v2", "minference_vertical_slash", "flexprefill",
    "sparse_vggt", "xattention", "snapkv", "snapkv_max", "sparge", "sparge_causal", "sparsed",
    "vmoba_mass", "vmoba_mass_row", "moba_wide", "vmoba_cells", "biformer", "sla", "nsa",
    "routing_transformer", "routing_transformer_open",
}  # fmt: skip
"""Methods whose scores are rounded, so that equals may come out apart: no data with ties."""


KINDS: dict[str, Callable[[Shape, int], QKV]] = {"real": real, "exact": exact, "tied": tied}


def item(inputs: Inputs, b: int) -> dict[str, Any]:
    """Return the inputs of one batch item; centroids and thresholds have no batch."""
    return {n: x if n in ("centroids", "theta") else x[b] for n, x in inputs.items()}


def check(
    name: str, shape: Shape, data: QKV, inputs: Inputs, given: AnyAttention | None = None
) -> None:
    """Compare the oracle with the reference of a method; of its IR, if none is ``given``."""
    q, k, v = data
    method: Any = CASES[name]() if given is None else given
    out, lse = oracle.attend(method, q, k, v, inputs)
    for b in range(shape.b):
        if name in OUTPUTS:
            expected = OUTPUTS[name](q[b], k[b], v[b], item(inputs, b))
            assert lse is None
        else:
            mask = MASKS[name](q[b], k[b], item(inputs, b))
            found = oracle.mask(method, q, k, inputs)[b]
            wrong = np.argwhere(found != mask)
            assert not len(wrong), f"{len(wrong)} pairs, first [h, q, k] = {wrong[0]}"
            expected, expected_lse = vision.attention(q[b], k[b], v[b], mask)
            assert lse is not None
            assert np.array_equal(np.isneginf(lse[b]), np.isneginf(expected_lse))
            finite = np.isfinite(expected_lse)
            assert np.abs(lse[b][finite] - expected_lse[finite]).max(initial=0) < 1e-12
        assert np.abs(out[b] - expected).max(initial=0) < 1e-12


def test_every_method_has_a_reference() -> None:
    assert MASKS.keys() | OUTPUTS.keys() == CASES.keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, kind) for n in CASES for kind in (["real"] if n in ROUNDED else KINDS)],
)
def test_the_oracle_is_the_method(name: str, kind: str) -> None:
    shape = CASES[name].shape()
    inputs = CASES[name].inputs(shape, np.random.default_rng(7))
    check(name, shape, KINDS[kind](shape, 3), inputs)


@pytest.mark.parametrize(
    "sizes",
    [{"nq": 1, "nk": 1}, {"nq": 7, "nk": 7}, {"nq": 16, "nk": 16}, {"hkv": 4}, {"hkv": 1, "b": 1}],
    ids=str,
)
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.fixed is None])
def test_at_other_sizes(name: str, sizes: dict[str, int]) -> None:
    sizes = dict(sizes)
    if CASES[name].decode and "nq" in sizes:
        sizes["nq"] = min(sizes["nq"], 3)
    shape = CASES[name].shape(**sizes)
    inputs = CASES[name].inputs(shape, np.random.default_rng(8))
    check(name, shape, real(shape, 5), inputs)


BY_FILE = {"anchor_attention": "anchor", "seer_attention": "seer"}
"""Cases of files with another name."""


@pytest.mark.parametrize("file", SMALL)
def test_the_files_are_the_methods(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attentions of the zoo, as a user gets them, beside the same references."""
    name = BY_FILE.get(file, file)
    found = attnc.zoo[file](**SMALL[file][0]).routed
    assert found is not None
    if CASES[name].decode:
        assert isinstance(found, Routed)
        base, kept = (aligned(p, "bottom-right") for p in (found.base, found.kept))
        found = replace(found, base=base, kept=kept)
    if file == "seer_attention":  # the file keeps the diagonal
        block = np.arange(37) // 8
        own = np.tri(37, dtype=bool) & (block[:, None] == block)
        monkeypatch.setitem(MASKS, "seer", lambda q, k, i: text.seer(q, k, i) | own)
    if file == "nsa":  # its selection scores the keys that it attends to
        learned = partial(text.nsa_selected, learned=True)
        monkeypatch.setitem(OUTPUTS, "nsa", lambda q, k, v, i: vision.nsa(
            q, k, v, i, learned(q, k, {"k_cmp": i["compressed_k"]})
        ))  # fmt: skip
    shape = CASES[name].shape()
    inputs = CASES[name].inputs(shape, np.random.default_rng(9))
    check(name, shape, real(shape, 8), inputs, found)
