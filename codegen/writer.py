"""lines of code -> checked source text.

A small writer that knows indentation and nothing else. Emitted text is deterministic and parsed
once before it leaves, so a slip in an emitter is found here and not in a user's import.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

WIDTH = 100
"""Longest line of emitted code; only what has no bracket to break in is longer."""

_OPEN, _CLOSE = "([{", ")]}"
_BREAKS = (", ", " | ", " & ", " + ", " - ")
"""Where an expression may be broken, the loosest first."""


class Writer:
    """Collect lines at the current indentation."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "") -> None:
        """Add one line, or several where the text has line ends; "" is a blank line.

        A statement that is too long is broken inside its brackets.
        """
        for part in text.split("\n"):
            for broken in fold(part, WIDTH - 4 * self._depth):
                self._lines.append("    " * self._depth + broken if broken else "")

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


def fold(statement: str, room: int) -> list[str]:
    """Break a statement over lines of at most ``room`` characters, where its brackets allow it.

    Comments, comprehensions and texts with a quoted sentence stay as they are.
    """
    plain = not re.search(r"""["'#]|\sfor\s""", re.sub(r'"[\w.-]+"', "", statement))
    if len(statement) <= room or not plain:
        return [statement]
    opens = _widest(statement)
    prefix = re.match(r"return |yield |\w+ \+?= ", statement)
    if prefix and len(_split(statement[prefix.end():])[0]) > 1:
        head, inner, tail = prefix[0] + "(", statement[prefix.end():], ")"
    elif opens:
        start, end = opens
        head, inner, tail = statement[:start + 1], statement[start + 1:end], statement[end:]
    else:
        return [statement]
    return [head, *(f"    {line}" for line in _broken(inner, room - 4)), tail]


def _broken(inner: str, room: int) -> list[str]:
    """Break what stands between brackets: commas end lines, other operators begin them."""
    if len(inner) < room:
        return [inner]
    parts, separator = _split(inner)
    if not separator:
        return fold(inner, room)
    if separator == ", ":
        parts = [f"{part}," for part in parts]
    else:
        parts[1:] = [separator.lstrip() + part for part in parts[1:]]
    lines: list[str] = []
    packs = False  # whether the last line takes more parts
    for part in parts:
        broken = [part] if len(part) <= room else _part(part, separator, room)
        if packs and len(broken) == 1 and len(lines[-1]) + 1 + len(part) <= room:
            lines[-1] += f" {part}"
        else:
            lines += broken
        packs = len(broken) == 1 and separator not in (" | ", " & ")
    return lines


def _part(part: str, separator: str, room: int) -> list[str]:
    """Break one part of a row of them; its operator stays at its first line."""
    if separator == ", ":
        lines = _broken(part.removesuffix(","), room - 1)
        return [*lines[:-1], f"{lines[-1]}{',' * (not lines[-1].endswith(','))}"]
    return fold(part, room)


def _widest(text: str) -> tuple[int, int] | None:
    """Return where the longest outermost bracket opens and closes."""
    found, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in _OPEN:
            start = place if depth == 0 else start
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth == 0:
                found.append((start, place))
    return max(found, key=lambda pair: pair[1] - pair[0], default=None)


def _split(text: str) -> tuple[list[str], str]:
    """Cut at the loosest operator outside of brackets; return the parts and that operator."""
    for separator in _BREAKS:
        parts: list[list[str]] = []
        depth = 0
        for piece in text.split(separator):
            if depth == 0:
                parts.append([])
            parts[-1].append(piece)
            depth += sum(map(piece.count, _OPEN)) - sum(map(piece.count, _CLOSE))
        if len(parts) > 1:
            return [separator.join(part) for part in parts], separator
    return [text], ""
