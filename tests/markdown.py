"""Markdown goldens: fenced blocks in, fenced blocks out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence, its text, and where both stand in the file."""

    kind: str
    options: dict[str, str]
    text: str
    start: int
    stop: int
    line: int


def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, in order; ``kind key=value`` is their head."""
    found = []
    for match in _FENCE.finditer(document):
        kind, *words = match["info"].split() or [""]
        options = dict(word.partition("=")[::2] for word in words)
        line = document.count("\n", 0, match.start()) + 1
        span = match.span("text")
        found.append(Block(kind, options, match["text"], *span, line))
    return found


def check(path: Path, expected: list[tuple[Block, str]], update: bool) -> None:
    """Compare blocks with what came out, or rewrite them in the file."""
    document = path.read_text(encoding="utf-8")
    if update:
        for block, text in sorted(expected, key=lambda pair: -pair[0].start):
            document = document[: block.start] + text + document[block.stop :]
        path.write_text(document, encoding="utf-8")
        return
    for block, text in expected:
        assert text == block.text, f"{path.name}:{block.line} differs (--update-golden rewrites it)"
