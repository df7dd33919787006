"""Every example of docs/language.md compiles, or fails with the code that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc.compiler.driver import check_file, check_text
from attnc.dsl.formatter import format_file
from attnc.dsl.functions import BUILTINS, TRANSFORMS
from attnc.dsl.scanner import RESERVED
from tests import markdown

PAGE = Path(__file__).parents[1] / "docs" / "language.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [block for block in markdown.blocks(TEXT) if block.kind == "attn"]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}")
def test_example(block, tmp_path):
    if "file" in block.options:  # it imports two patterns of its neighbour
        parts = "pattern near(w: int) = { q -> k : 0 <= q - k < w }\npattern far = strided\n"
        (tmp_path / "parts.attn").write_text(parts, encoding="utf-8")
        (tmp_path / "page.attn").write_text(block.text, encoding="utf-8")
        found = check_file(tmp_path / "page.attn")
    else:
        found = check_text(block.text)
    failed = {d.code for d in found if d.severity == "error"}
    warned = {d.code for d in found if d.severity == "warning"}
    if "error" in block.options:
        assert failed == {block.options["error"]}
        return
    assert not failed, [d.message for d in found]
    if "warning" in block.options:
        assert warned == {block.options["warning"]}


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if "error" not in b.options], ids=lambda block: f"line{block.line}"
)
def test_example_is_in_the_standard_layout(block):
    assert format_file(block.text) == block.text


def test_the_page_names_every_function_and_every_reserved_word():
    functions = TEXT.partition("### Functions")[2].partition("### Lists")[0]
    for name in BUILTINS:
        assert f"`{name}(" in functions
    functions = TEXT.partition("### Computed inputs")[2].partition("## 8.")[0]
    for transform in TRANSFORMS.values():
        assert f"`{transform.usage}`" in functions
    words = TEXT.partition("These words are reserved: `")[2].partition("`")[0].split()
    assert sorted(words) == sorted(RESERVED)
