"""lines of code -> checked source text.

A small writer that knows indentation and nothing else. Emitted text is deterministic and parsed
once before it leaves, so a slip in an emitter is found here and not in a user's import.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

WIDTH = 100
"""Longest line of emitted code; only indivisible expressions are longer."""


class Writer:
    """Collect lines at the current indentation."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "") -> None:
        """Add one line, or several where the text has line ends; "" is a blank line."""
        for part in text.split("\n"):
            self._lines.append("    " * self._depth + part if part else "")

    def comment(self, text: str) -> None:
        """Add a comment, wrapped to the line width."""
        room = max(40, WIDTH - 4 * self._depth - 2)
        for paragraph in text.split("\n"):
            wrapped = textwrap.wrap(paragraph, room, break_long_words=False) or [""]
            for part in wrapped:
                self.line(f"# {part}".rstrip())

    def call(self, head: str, arguments: list[str], tail: str = ")") -> None:
        """Add ``head(arguments)``, broken over lines where one line is too short.

        ``head`` includes the opening bracket and ``tail`` the closing one.
        """
        whole = f"{head}{', '.join(arguments)}{tail}"
        if 4 * self._depth + len(whole) <= WIDTH:
            self.line(whole)
            return
        self.line(head)
        with self.indented():
            for part in textwrap.wrap(
                ", ".join(a.replace(" ", "\0") for a in arguments) + ",",
                max(40, WIDTH - 4 * self._depth),
                break_long_words=False,
                break_on_hyphens=False,
            ):
                self.line(part.replace("\0", " "))
        self.line(tail)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Add ``head`` and indent what follows."""
        self.line(head)
        with self.indented():
            yield

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Indent what follows."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def text(self) -> str:
        """Return the source, ending in one newline.

        Raises: SyntaxError if it is not Python: an error of the emitter, never of the user.
        """
        source = "\n".join(self._lines).strip("\n") + "\n"
        ast.parse(source)
        return source
