"""Kernels of the zoo's grids, inputs and scores, run against float64 at small sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attnc.compiler.driver import load_zoo, zoo_names
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.build_plan import build_plan
from tests import launches as ln
from tests.test_kernel_inputs import random
from tests.test_triton_forward import ZOO

RNG = np.random.default_rng(11)
IMAGE = {"h": 6, "w": 7}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "agent_collect": ({"agents": 5, "tokens": 40}, {}),
    "agent_spread": ({"agents": 5, "tokens": 40}, {}),
    "aki_mma": (
        {}, {"img_start": 3, "txt_start": 12, "txt_end": 30, "pad": RNG.random(40) < 0.9}
    ),
    "alibi": ({"heads": 3}, {}),
    "alibi_2d_bias": ({"side": 6, "heads": 2}, {}),
    "alibi_bias": ({"heads": 3}, {}),
    "alibi_slopes": ({"heads": 3}, {}),
    "axial_col": (IMAGE, {}),
    "axial_row": (IMAGE, {}),
    "bigbird": ({"block": 8, "heads": 2}, {"rand": RNG.integers(0, 5, (2, 3, 2))}),
    "block_attention": ({}, {"lengths": np.array([9, 14, 17])}),
    "block_diffusion": ({"n": 20, "block": 4}, {}),
    "block_mask": ({"block": 8, "heads": 2}, {"keep": RNG.random((2, 5, 5)) < 0.4}),
    "combiner_axial_rowmajor": ({"rows": 5, "cols": 6}, {}),
    "combiner_fixed": ({"n": 40, "seg": 7}, {}),
    "combiner_logn": ({"n": 32}, {}),
    "criss_cross": (IMAGE, {}),
    "crossformer_lda": ({"h": 8, "w": 8, "g": 4, "interval": 2}, {}),
    "crossformer_sda": ({"h": 6, "w": 6, "g": 3}, {}),
    "cswin": ({"h": 6, "w": 8, "stripe": 2, "heads": 2}, {}),
    "davit_spatial": ({"h": 6, "w": 6, "window": 3}, {}),
    "document": ({}, {"doc_ids": np.sort(RNG.integers(0, 4, 40))}),
    "document_prefix_lm": ({}, {"offsets": np.array([0, 9, 25, 40]),
                                "prefixes": np.array([2, 5, 1])}),
    "flamingo": ({"per_image": 8}, {"intervals": np.array([[0, 9], [9, 30], [9, 40], [30, 40],
                                                            [0, 40]])}),
    "gna": ({"shape": [6, 8], "window": [3, 5], "stride": [1, 2]}, {}),
    "gna_packed": ({"documents": [[4, 5], [3, 6]], "window": [3, 3]}, {}),
    "graph_khop": ({"hops": 2}, {"adj": RNG.random((40, 40)) < 0.05}),
    "graphormer_bias": (
        {"heads": 2},
        {"distance": RNG.integers(0, 5, (40, 40)), "table": RNG.standard_normal((2, 5))},
    ),
    "halonet": ({"h": 8, "w": 8, "block": 4, "halo": 1}, {}),
    "longnet_attention": ({"segments": [16, 32], "rates": [1, 2], "heads": 2}, {}),
    "longnet_multiplicity": ({"segments": [16, 32], "rates": [1, 2], "heads": 2}, {}),
    "match_attention": ({**IMAGE, "window": 3}, {"centre": RNG.integers(0, 7, (42, 2))}),
    "maxvit_block": ({"h": 6, "w": 6, "p": 3}, {}),
    "maxvit_grid": ({"h": 6, "w": 6, "g": 3}, {}),
    "mminference_boundary": ({}, {"modality": RNG.integers(-1, 2, 40)}),
    "nats": ({"heads": 2, "window": 6}, {"types": RNG.integers(0, 3, (2, 40))}),
    "ppma_bias": (
        {}, {"row_decay": -RNG.random((5, 6)), "col_decay": -RNG.random((5, 6))},
    ),
    "radial": ({"frames": 4, "s": 16, "block": 4}, {}),
    "radial_paper": ({"frames": 5, "s": 8}, {}),
    "radial_tokens": ({"frames": 4, "s": 12, "block": 4}, {}),
    "rmt_decay_bias": ({"h": 5, "w": 6, "heads": 2}, {}),
    "sta": ({"canvas": [4, 4, 4], "tile": [2, 2, 2], "kernel": [[1, 1, 1]], "text": 6}, {}),
    "svg_spatial": ({"frames": 4, "s": 9, "prompt": 5}, {}),
    "svg_temporal": ({"frames": 4, "s": 9, "prompt": 5, "reach": 2}, {}),
    "swattention": ({**IMAGE, "pooled": 4}, {}),
    "swattention_local": (IMAGE, {}),
    "swin": ({"h": 6, "w": 6, "window": 3, "shift": 1}, {}),
    "swin_bias": (
        {"h": 6, "w": 6, "window": 3, "heads": 2}, {"table": RNG.standard_normal((2, 5, 5))},
    ),
    "t5_bias": ({"heads": 2}, {"table": RNG.standard_normal((2, 32))}),
    "t5_bucket": ({"n_q": 40, "n_k": 33}, {}),
    "tree_mask": ({"past": 20, "nodes": 9}, {"subtree_end": RNG.integers(1, 10, 9)}),
    "vertical_slash": (
        {"heads": 2}, {"verticals": RNG.integers(-1, 40, (2, 4)),
                       "slashes": RNG.integers(-1, 40, (2, 3))},
    ),
    "vertical_slash_kernel": (
        {"block": 8}, {"verticals": np.array([0, 3, 17]), "slashes": np.array([11, 2, 0])},
    ),
    "video_ccam_assumed": ({"num_query": 40, "frames": 4, "per_frame": 9}, {}),
    "videofactory_swap_assumed": ({"canvas": [2, 4, 6], "window": [1, 2, 3]}, {}),
}  # fmt: skip
ELSEWHERE = {"softcap", "interleaved_layers", "radial_blocks", "mqa", "gqa", "sqa"}
"""A function, masks that are here by another name, and a mask of blocks that `radial` has."""


def test_every_pattern_has_a_kernel_that_ran() -> None:
    assert {*CASES, *ZOO, *ELSEWHERE} == {*zoo_names()}


@pytest.mark.parametrize("name", CASES)
def test_zoo(name: str) -> None:
    """Out and lse agree with float64; what the plan calls full or empty is."""
    params, arrays = CASES[name]
    pattern = load_zoo(name, params)
    plan = build_plan(pattern, head_dim=16, dtype="fp32", tile=Tiling(16, 16)).forward
    nq, nk = (40 if length is None else length for length in pattern.lengths)
    if name == "ppma_bias":
        nq = nk = 30
    heads = pattern.heads or 2
    q, k, v = random(nq, nk, heads=heads, kv_heads=heads if pattern.kv_heads else 1)
    ln.check(plan, q, k, v, 0.25, ln.from_arrays(pattern, nq, nk, arrays))
