"""Published masks, biases, counts and tables: bit for bit where they are exact."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError
from attnc.dsl.resolve import stdlib, stdlib_module, stdlib_names

HERE = Path(__file__).parent / "conformance"
_spec = importlib.util.spec_from_file_location("conformance_adapter", HERE / "adapter.py")
assert _spec is not None
assert _spec.loader is not None
adapter = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(adapter)

STATIC = json.loads((HERE / "static" / "index.json").read_text(encoding="utf-8"))["cases"]
GNA = json.loads((HERE / "gna" / "index.json").read_text(encoding="utf-8"))
GNA_PARAMS = ("shape", "documents", "window", "stride", "dilation", "causal", "extra_keys")


def gna_params(case: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a neighbourhood case."""
    return {name: case[name] for name in GNA_PARAMS if name in case}


def is_sequence(pattern: str, params: dict[str, Any]) -> bool:
    """Return whether a case is a pattern on plain sequences, without inputs and layers."""
    if pattern not in stdlib_module(pattern).own.patterns or "n" not in params:
        return False
    item = stdlib(pattern).pattern
    reads = any(isinstance(param, ast.Input) for param in item.params)
    return item.on is None and item.layers is None and not reads


Case = tuple[str, str, dict[str, Any]]
GRIDS: list[Case] = [
    (c["key"], "gna" if c["kind"] == "grid" else "gna_packed", gna_params(c)) for c in GNA["cases"]
]
CASES: list[Case] = [*((c["id"], c["pattern"], c["params"]) for c in STATIC), *GRIDS]
MASKS: list[Case] = [
    *((c["id"], c["pattern"], c["params"]) for c in STATIC if c["kind"] == "mask"), *GRIDS
]  # fmt: skip
SEQUENCES = [c for c in MASKS if is_sequence(c[1], c[2])]
"""Masks of one-dimensional patterns without inputs and layers."""


def published(case: str) -> NDArray[Any]:
    """Return the published array of a case."""
    file = HERE / "static" / f"{case}.npz"
    with np.load(file if file.exists() else HERE / "gna" / "masks.npz") as stored:
        found: NDArray[Any] = stored["data" if file.exists() else case]
        return found


def test_the_index_is_whole() -> None:
    assert (len(STATIC), len(GNA["cases"]), len(GNA["rejected"])) == (218, 105, 16)
    assert len({c[1] for c in CASES}) == 65
    assert len({c[1] for c in SEQUENCES}) == 23


def test_the_zoo_has_every_published_pattern() -> None:
    assert {c[1] for c in CASES} - set(stdlib_names()) == set()


@pytest.mark.parametrize(("case", "pattern", "params"), CASES, ids=[c[0] for c in CASES])
def test_published(case: str, pattern: str, params: dict[str, Any]) -> None:
    expected = published(case)
    found = adapter.dense(pattern, params)
    assert found.shape == expected.shape
    assert found.dtype.kind == expected.dtype.kind
    if pattern == "ppma_bias":  # sums of costs, whose order is not published
        np.testing.assert_array_max_ulp(found, expected, maxulp=4)
    else:
        assert np.array_equal(found, expected)


ITEMS = [c for c in CASES if c[1] not in stdlib_module(c[1]).own.fns]


@pytest.mark.parametrize(("case", "pattern", "params"), ITEMS, ids=[c[0] for c in ITEMS])
def test_published_from_the_ir(case: str, pattern: str, params: dict[str, Any]) -> None:
    expected = published(case)
    found = adapter.dense_ir(pattern, params)
    assert found.shape == expected.shape
    if expected.dtype.kind == "f":  # the IR folds constants, each to the nearest float64
        np.testing.assert_array_max_ulp(found.astype(np.float64), expected, maxulp=4)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("case", GNA["rejected"], ids=[c["tag"] for c in GNA["rejected"]])
def test_what_natten_refuses(case: dict[str, Any]) -> None:
    # A window of 1, a full causal window, tile shapes: limits of its kernels, not of the mask.
    names = {"kernel_size": "window", "is_causal": "causal"}
    rank = len(case["shape"])
    params: dict[str, Any] = {"shape": case["shape"]}
    for name, value in case["args"].items():
        if not name.endswith("tile_shape"):
            listed = value if isinstance(value, list) else [value] * rank
            params[names.get(name, name)] = listed
    allowed = {
        "window-1", "window-1-one-axis", "length-1-axis", "causal-full-window-on-flex",
        "only-q-tile", "unsupported-tile",
    }  # fmt: skip
    if case["tag"] in allowed:
        mask = adapter.dense("gna", params)
        assert mask.any(axis=1).all()
        return
    with pytest.raises(CompileError) as refused:
        adapter.dense("gna", params)
    assert {d.code for d in refused.value.diagnostics} <= {"ATT0301", "ATT0303", "ATT0315"}
