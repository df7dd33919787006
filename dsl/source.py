"""Where text came from: files, spans, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Source:
    """One piece of ``.attn`` text and the name that diagnostics show for it."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """Return line ``number`` (from 1) without its line end, or "" past the end."""
        lines = _lines(self.text)
        return lines[number - 1] if 0 < number <= len(lines) else ""


@lru_cache(maxsize=8)
def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also splits at form feeds and U+2028, which the scanner does not.
    return LINE_END.split(text.removeprefix("\ufeff"))


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``stop`` (half open) of a source; line and column count from 1."""

    source: Source | None
    start: int
    stop: int
    line: int
    column: int

    def to(self, last: Span) -> Span:
        """Return the span from the start of this one to the end of ``last``."""
        return Span(self.source, self.start, max(self.stop, last.stop), self.line, self.column)


UNKNOWN = Span(None, 0, 0, 0, 0)
