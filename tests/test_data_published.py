"""Tiles of published masks and of random texts that read data: what is kept, counted by pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.api import Pattern
from attnc.compiler import driver
from attnc.compiler.counts import count
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.data_form import tiles_of
from attnc.dsl import nodes as ast
from attnc.dsl.resolve import stdlib
from tests.strategies_data import Case, cases

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


@settings(max_examples=40, deadline=None)
@given(
    case=cases(),
    tiling=st.sampled_from([Tiling(4, 4), Tiling(16, 8), Tiling(2, 16)]),
)
def test_random_patterns(case: Case, tiling: Tiling) -> None:
    """Texts with spaces, inputs, pairs and blocks: the tiles hold what the oracle keeps."""
    loaded = driver.loaded_text(case.text, None, case.inputs)
    meaning = loaded(case.nq, case.nk, extents=case.extents)
    nq, nk, data = loaded.data(case.nq, case.nk, extents=case.extents)
    mask, tests, _ = tiles_of(loaded.ir, tiling)
    assert (mask.dense(nq, nk, data) == meaning).all()
    counted = count(mask, nq, nk, tests, data)
    assert counted.pairs_kept == meaning.sum()
    needed = sum(
        bool(head[i : i + tiling.q, j : j + tiling.k].any())
        for head in meaning
        for i in range(0, nq, tiling.q)
        for j in range(0, nk, tiling.k)
    )
    assert counted.visited >= needed
    if tests is not None:
        assert counted.full + counted.partial == needed


def test_sorted_ids_visit_only_what_is_kept() -> None:
    """Of all candidates below the diagonal, the tiles of 16 documents are left."""
    from attnc import zoo

    blocks = zoo.document(doc_ids=np.repeat(np.arange(16), 256)).blocks(tile=(64, 64))
    assert blocks.exact
    assert (blocks.visited, blocks.masked) == (16 * 10, 16 * 4)
