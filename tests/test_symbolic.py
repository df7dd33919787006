"""Published patterns without data are solved, not evaluated: no table of pairs, nothing widened."""

from __future__ import annotations

import pytest

from attnc.compiler.driver import load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.passes.classify_grid import classify_grid
from attnc.compiler.passes.data_form import tiles_of

SEQUENCES = (
    "sparse_transformer_strided_union", "sparse_transformer_fixed", "longformer", "streaming_llm",
    "a_shape", "tri_shape", "power_attention", "logsparse_paper", "logsparse_restart", "moa_deploy",
    "s2_attention", "longnet", "chunked", "halonet", "axial_row", "axial_col", "criss_cross",
)  # fmt: skip
GRIDS = (
    "swin", "maxvit_block", "maxvit_grid", "crossformer_sda", "crossformer_lda", "cswin", "gna",
    "radial_tokens",
)  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str) -> None:
    mask, data, _ = tiles_of(load_zoo(name, {}), Tiling(64, 64))
    assert data is None
    assert mask.exact


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_known_extents(name: str) -> None:
    pattern = load_zoo(name, {})
    space = pattern.query_space
    assert space is not None
    side = (4,) * len(space.segments[0].extents)
    assert classify_grid(pattern, BoxTiling(side, side)).exact
