"""Block masks in small: `tests/ir/*.md` show what the compiler makes of a pattern, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc.compiler.driver import load_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.show import show
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes.classify import classify
from tests import markdown

FILES = sorted((Path(__file__).parent / "ir").glob("*.md"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_block_masks(path: Path, update_golden: bool) -> None:
    """Each block is what is printed; each block mask is sound and not widened."""
    pattern: Pattern | None = None
    expected = []
    for block in markdown.blocks(path.read_text(encoding="utf-8")):
        if block.kind == "attn":
            pattern = load_text(block.text)
            continue
        assert pattern is not None
        if block.kind == "pattern":
            expected.append((block, show(pattern) + "\n"))
        elif block.kind == "blocks":
            mask = classify(pattern, Tiling(*map(int, block.options["tile"].split("x"))))
            assert mask.exact
            assert verify(mask) == ()
            expected.append((block, show(mask) + "\n"))
    assert expected
    markdown.check(path, expected, update_golden)
