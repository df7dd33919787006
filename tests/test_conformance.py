"""Published masks, bit for bit: 85 cases of the 23 one-dimensional patterns without inputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent / "conformance"
_spec = importlib.util.spec_from_file_location("conformance_adapter", HERE / "adapter.py")
assert _spec is not None
assert _spec.loader is not None
adapter = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(adapter)

# fmt: off
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("causal_0", "causal", {"n": 16}),
    ("causal_1", "causal", {"n": 33}),
    ("causal_2", "causal", {"n": 64}),
    ("sliding_window_0", "sliding_window", {"n": 64, "width": 8}),
    ("sliding_window_1", "sliding_window", {"n": 64, "width": 8, "count": 'past'}),
    ("sliding_window_2", "sliding_window", {"n": 50, "width": 1}),
    ("sliding_window_3", "sliding_window", {"n": 40, "width": 64}),
    ("sliding_window_4", "sliding_window", {"n": 48, "width": 5, "causal": False}),
    ("sparse_transformer_local_0", "sparse_transformer_local", {"n": 64, "l": 8}),
    ("sparse_transformer_local_1", "sparse_transformer_local", {"n": 64, "l": 8, "paper": True}),
    ("sparse_transformer_local_2", "sparse_transformer_local", {"n": 96, "l": 32}),
    ("sparse_transformer_local_3", "sparse_transformer_local", {"n": 40, "l": 64}),
    ("sparse_transformer_stride_0", "sparse_transformer_stride", {"n": 64, "l": 8}),
    ("sparse_transformer_stride_1", "sparse_transformer_stride", {"n": 100, "l": 7}),
    ("sparse_transformer_stride_2", "sparse_transformer_stride", {"n": 128, "l": 16}),
    ("sparse_transformer_strided_union_0", "sparse_transformer_strided_union", {"n": 64, "l": 8}),
    ("sparse_transformer_strided_union_1", "sparse_transformer_strided_union", {"n": 128, "l": 12}),
    ("sparse_transformer_strided_union_2", "sparse_transformer_strided_union", {
        "n": 64, "l": 8, "paper": True,
    }),
    ("sparse_transformer_fixed_paper_0", "sparse_transformer_fixed_paper", {
        "n": 64, "l": 16, "c": 4,
    }),
    ("sparse_transformer_fixed_paper_1", "sparse_transformer_fixed_paper", {
        "n": 96, "l": 8, "c": 1,
    }),
    ("sparse_transformer_fixed_paper_2", "sparse_transformer_fixed_paper", {
        "n": 100, "l": 16, "c": 16,
    }),
    ("sparse_transformer_fixed_0", "sparse_transformer_fixed", {
        "n": 128, "block": 8, "l": 32, "heads": 4, "num_verts": 4, "vertsize": 1,
    }),
    ("sparse_transformer_fixed_1", "sparse_transformer_fixed", {
        "n": 128, "block": 8, "l": 32, "heads": 4, "num_verts": 2, "vertsize": 2,
    }),
    ("sparse_transformer_fixed_2", "sparse_transformer_fixed", {
        "n": 128, "block": 8, "l": 64, "heads": 2, "num_verts": 1, "vertsize": 2,
    }),
    ("sparse_transformer_fixed_3", "sparse_transformer_fixed", {
        "n": 96, "block": 8, "l": 16, "heads": 2, "num_verts": 2, "vertsize": 1,
    }),
    ("longformer_0", "longformer", {"n": 64, "w": 8}),
    ("longformer_1", "longformer", {"n": 64, "w": 4, "dilation": [1, 1, 2, 3]}),
    ("longformer_2", "longformer", {"n": 64, "w": 8, "global_idx": [0, 1, 40]}),
    ("longformer_3", "longformer", {"n": 64, "w": 4, "dilation": [1, 2], "global_idx": [0]}),
    ("longformer_4", "longformer", {"n": 48, "w": 6, "dilation": [1, 2], "causal": True}),
    ("longformer_chunks_no_overlap_0", "longformer_chunks_no_overlap", {"n": 64, "w": 8}),
    ("longformer_chunks_no_overlap_1", "longformer_chunks_no_overlap", {"n": 60, "w": 10}),
    ("longformer_chunks_no_overlap_2", "longformer_chunks_no_overlap", {"n": 48, "w": 16}),
    ("streaming_llm_0", "streaming_llm", {"n": 64, "start": 4, "recent": 12}),
    ("streaming_llm_1", "streaming_llm", {"n": 64, "start": 0, "recent": 7}),
    ("streaming_llm_2", "streaming_llm", {"n": 40, "start": 4, "recent": 60}),
    ("streaming_llm_3", "streaming_llm", {"n": 80, "start": 1, "recent": 31}),
    ("a_shape_0", "a_shape", {"n": 64, "n_init": 4, "n_local": 16}),
    ("a_shape_1", "a_shape", {"n": 96, "n_init": 8, "n_local": 1}),
    ("a_shape_2", "a_shape", {"n": 64, "n_init": 0, "n_local": 9}),
    ("a_shape_3", "a_shape", {"n": 50, "n_init": 30, "n_local": 40}),
    ("tri_shape_0", "tri_shape", {"n": 64, "n_init": 4, "n_local": 16, "n_last": 10}),
    ("tri_shape_1", "tri_shape", {"n": 64, "n_init": 8, "n_local": 8, "n_last": 1}),
    ("tri_shape_2", "tri_shape", {"n": 32, "n_init": 2, "n_local": 4, "n_last": 100}),
    ("power_attention_0", "power_attention", {"n": 128, "block": 8, "window": 3}),
    ("power_attention_1", "power_attention", {"n": 64, "block": 1, "window": 4}),
    ("power_attention_2", "power_attention", {"n": 128, "block": 4, "window": 5}),
    ("power_attention_3", "power_attention", {"n": 100, "block": 8, "window": 2, "sink_blocks": 2}),
    ("logsparse_paper_0", "logsparse_paper", {"n": 32}),
    ("logsparse_paper_1", "logsparse_paper", {"n": 64}),
    ("logsparse_paper_2", "logsparse_paper", {"n": 100}),
    ("logsparse_restart_0", "logsparse_restart", {"n": 64, "sub_len": 8}),
    ("logsparse_restart_1", "logsparse_restart", {"n": 96, "sub_len": 32}),
    ("logsparse_restart_2", "logsparse_restart", {"n": 64, "sub_len": 64}),
    ("logsparse_restart_3", "logsparse_restart", {"n": 48, "sub_len": 4}),
    ("s2_attention_0", "s2_attention", {
        "n": 128, "block": 8, "local_blocks": 3, "vert_stride": 4, "kv_heads": 4,
    }),
    ("s2_attention_1", "s2_attention", {
        "n": 128, "block": 8, "local_blocks": 2, "vert_stride": 8, "kv_heads": 2, "group": 2,
    }),
    ("s2_attention_2", "s2_attention", {
        "n": 128, "block": 8, "local_blocks": 3, "vert_stride": 4, "kv_heads": 4, "offset": 1,
    }),
    ("s2_attention_3", "s2_attention", {
        "n": 128, "block": 8, "local_blocks": 2, "vert_stride": 8, "kv_heads": 4, "num_dense": 1,
    }),
    ("s2_attention_4", "s2_attention", {
        "n": 128, "block": 8, "local_blocks": 4, "vert_stride": 4, "kv_heads": 1,
        "homogeneous": True,
    }),
    ("prefix_lm_0", "prefix_lm", {"n": 64, "prefix": 10}),
    ("prefix_lm_1", "prefix_lm", {"n": 33, "prefix": 33}),
    ("prefix_lm_2", "prefix_lm", {"n": 20, "prefix": 0}),
    ("mminference_grid_0", "mminference_grid", {"n": 64, "stride": 8}),
    ("mminference_grid_1", "mminference_grid", {"n": 64, "stride": 8, "phase": 3, "phase_q": 5}),
    ("mminference_grid_2", "mminference_grid", {
        "n": 96, "stride": 12, "hline": False, "slash": True,
    }),
    ("mminference_grid_3", "mminference_grid", {
        "n": 64, "stride": 16, "vline": False, "hline": False, "slash": True,
    }),
    ("moa_search_0", "moa_search", {"n": 128, "block": 8, "alpha": 16, "beta": 0.25}),
    ("moa_search_1", "moa_search", {"n": 128, "block": 8, "alpha": 0, "beta": 0.5}),
    ("moa_search_2", "moa_search", {"n": 96, "block": 8, "alpha": 32, "beta": 0.0}),
    ("moa_deploy_0", "moa_deploy", {"n": 128, "alpha": -16, "beta": 1.0, "block": 8, "sink": 8}),
    ("moa_deploy_1", "moa_deploy", {"n": 128, "alpha": 0, "beta": 0.125, "block": 8, "sink": 8}),
    ("moa_deploy_2", "moa_deploy", {"n": 100, "alpha": 16, "beta": 0.25, "block": 8, "sink": 8}),
    ("moa_deploy_3", "moa_deploy", {"n": 128, "alpha": 0, "beta": 0.0, "block": 8, "sink": 16}),
    ("longnet_branch_0", "longnet_branch", {"n": 64, "segment": 16, "rate": 2, "heads": 4}),
    ("longnet_branch_1", "longnet_branch", {"n": 64, "segment": 32, "rate": 4, "heads": 6}),
    ("longnet_branch_2", "longnet_branch", {
        "n": 64, "segment": 32, "rate": 4, "heads": 8, "paper_offset": True,
    }),
    ("longnet_branch_3", "longnet_branch", {
        "n": 48, "segment": 64, "rate": 2, "heads": 2, "causal": False,
    }),
    ("longnet_0", "longnet", {"n": 64, "segments": [16, 64], "rates": [1, 4], "heads": 4}),
    ("longnet_1", "longnet", {"n": 64, "segments": [16, 32, 64], "rates": [1, 2, 4], "heads": 6}),
    ("longnet_2", "longnet", {"n": 96, "segments": [32, 96], "rates": [1, 2], "heads": 2}),
    ("chunked_0", "chunked", {"n": 64, "chunk": 16}),
    ("chunked_1", "chunked", {"n": 50, "chunk": 8, "left_pad": 3}),
    ("chunked_2", "chunked", {"n": 40, "chunk": 16, "left_pad": 17}),
    ("chunked_3", "chunked", {"n": 30, "chunk": 64}),
]
# fmt: on


def test_the_list_is_the_index() -> None:
    index = json.loads((HERE / "static" / "index.json").read_text(encoding="utf-8"))["cases"]
    listed = [(c["file"].removesuffix(".npz"), c["pattern"], c["params"]) for c in index]
    assert listed == CASES
    assert len(CASES) == 85
    assert len({pattern for _, pattern, _ in CASES}) == 23


@pytest.mark.parametrize(("case", "pattern", "params"), CASES, ids=[c[0] for c in CASES])
def test_published_mask(case: str, pattern: str, params: dict[str, Any]) -> None:
    expected = np.load(HERE / "static" / f"{case}.npz")["data"]
    by_oracle = adapter.dense(pattern, params)
    by_ir = adapter.dense_ir(pattern, params)
    assert by_oracle.shape == by_ir.shape == expected.shape
    assert np.array_equal(by_oracle, expected)
    assert np.array_equal(by_ir, expected)
