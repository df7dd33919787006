"""The text forms of the IRs: printed and read back, they are the same objects."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings

from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import BlockMask, Tiling
from attnc.compiler.ir.read import read
from attnc.compiler.ir.show import show
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes.classify import classify
from attnc.dsl.diagnostics import CompileError
from tests.strategies import patterns


@settings(max_examples=60, deadline=None)
@given(text=patterns())
def test_pattern_round_trip(text: str) -> None:
    """``read(show(p)) == p`` for random patterns."""
    try:
        pattern = load_text(text)
    except CompileError:
        assume(False)
    assert read(show(pattern)) == pattern


@pytest.mark.parametrize("name", ["causal", "longformer", "s2_attention", "power_attention"])
def test_block_mask_round_trip(name: str) -> None:
    """``read(show(m)) == m``, runs and strides and widened notes included."""
    mask = classify(load_zoo(name), Tiling(64, 16))
    assert read(show(mask)) == mask


def test_widened_note_survives() -> None:
    """A note is carried through the text."""
    mask = classify(load_zoo("causal"), Tiling(16, 16))
    noted = BlockMask(
        pattern=mask.pattern, tiling=mask.tiling, pieces=mask.pieces, widened=("for a reason",)
    )
    assert read(show(noted)) == noted


def test_verify_finds_a_wrong_piece() -> None:
    """A block mask that lost a piece no longer equals its pattern."""
    mask = classify(load_zoo("causal"), Tiling(16, 16))
    assert verify(mask) == ()
    lost = BlockMask(pattern=mask.pattern, tiling=mask.tiling, pieces=mask.pieces[:1])
    assert [d.code for d in verify(lost)] == ["ATT0901"]


@pytest.mark.parametrize("text", ["", "pattern p", "blocks tile 16x16\npattern p\n  keep x\nodd"])
def test_read_refuses_other_text(text: str) -> None:
    """Text of no known form is refused with a ValueError."""
    with pytest.raises(ValueError, match=r"pattern|line|IR"):
        read(text)
