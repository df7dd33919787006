"""Tiles of the published masks that read data or that isl gives up on: counted, pair by pair."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnc.api import Pattern
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.data_form import tiles_of
from attnc.dsl import nodes as ast
from attnc.dsl.resolve import stdlib

_spec = importlib.util.spec_from_file_location(
    "conformance_cases", Path(__file__).parent / "test_conformance.py"
)
assert _spec is not None
assert _spec.loader is not None
conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conformance)

TILE = Tiling(32, 16)


def reads(pattern: str) -> bool:
    """Whether a published pattern has inputs."""
    return any(isinstance(param, ast.Input) for param in stdlib(pattern).pattern.params)


ONE_OF_EACH = {case[1]: case for case in conformance.MASKS if stdlib(case[1]).pattern.on}
CASES = [
    case for case in conformance.MASKS if reads(case[1]) or case is ONE_OF_EACH.get(case[1])
]
"""All masks that read inputs, and one of each pattern with a space."""


@pytest.mark.parametrize(("case", "name", "params"), CASES, ids=[case[0] for case in CASES])
def test_published_tiles(case: str, name: str, params: dict[str, Any]) -> None:
    """The block mask keeps the published pairs; full, partial and empty tiles are counted."""
    expected = conformance.published(case)
    expected = expected if expected.ndim == 3 else expected[None]
    loaded, length = conformance.adapter._loaded(name, params)
    pattern = Pattern(loaded)
    blocks = pattern.blocks(length, tile=(TILE.q, TILE.k))
    assert (blocks.dense().numpy() == expected).all()
    assert blocks.pairs_kept == expected.sum()
    tiles = [
        head[i : i + TILE.q, j : j + TILE.k]
        for head in expected
        for i in range(0, head.shape[0], TILE.q)
        for j in range(0, head.shape[1], TILE.k)
    ]
    full, empty = sum(t.all() for t in tiles), sum(not t.any() for t in tiles)
    assert blocks.visited >= len(tiles) - empty
    if blocks.exact or tiles_of(pattern.ir, TILE)[1] is not None:
        assert (blocks.full, blocks.empty) == (full, empty)


def test_sorted_ids_visit_only_what_is_kept() -> None:
    """Of all candidates below the diagonal, the tiles of 16 documents are left."""
    from attnc import zoo

    blocks = zoo.document(doc_ids=np.repeat(np.arange(16), 256)).blocks(tile=(64, 64))
    assert blocks.exact
    assert (blocks.visited, blocks.masked) == (16 * 10, 16 * 4)
