"""Diagnostics: values that say what is wrong, where, and what to write instead."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from attnc.dsl.source import LINE_END, UNKNOWN, Span

Severity = Literal["error", "warning", "note"]

TAB_COLUMNS = 4
MAX_SHOWN_LINES = 4
MAX_SHOWN_DIAGNOSTICS = 50
MAX_SHOWN_COLUMNS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding: code ``ATTxxxx``, message (lowercase, no full stop), smallest span, help."""

    code: str
    message: str
    severity: Severity = "error"
    span: Span = field(default=UNKNOWN, compare=False)
    label: str = ""
    notes: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """What ``attnc explain`` tells about a code: an example that raises it, one that does not."""

    code: str
    title: str
    what: str
    why: str
    example: str
    instead: str


class CompileError(Exception):
    """Carries the diagnostics that stopped a compilation; ``str()`` is the rendered text."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        shown = "\n\n".join(render(d) for d in self.diagnostics[:MAX_SHOWN_DIAGNOSTICS])
        more = len(self.diagnostics) - MAX_SHOWN_DIAGNOSTICS
        return shown if more <= 0 else f"{shown}\n\n... and {more} more"


def render(diagnostic: Diagnostic) -> str:
    """Return the plain text of a diagnostic, in rustc's anatomy.

    Carets count terminal columns: wide characters take two, combining ones none, a tab four. A
    span over several lines shows the first few; a very long line is cut around the span.
    """
    d = diagnostic
    lines = [f"{d.severity}[{d.code}]: {d.message}"]
    if d.span.source is not None:
        lines += _excerpt(d.span, d.label)
    margin = lines[1].index("-->") if len(lines) > 1 else 0
    lines += [f"{' ' * margin} = note: {note}" for note in d.notes]
    if d.help:
        lines.append(f"help: {d.help}")
    return "\n".join(_printable(line) for line in lines)


def _excerpt(span: Span, label: str) -> list[str]:
    assert span.source is not None
    rows = _rows(span)
    pad = " " * len(str(rows[-1][0]))
    result = [f"{pad}--> {span.source.name}:{span.line}:{span.column}", f"{pad} |"]
    for number, start, stop in rows[:MAX_SHOWN_LINES]:
        text, before, width = _cut(span.source.line(number), start, stop)
        result.append(f"{str(number).rjust(len(pad))} | {text}".rstrip())
        result.append(f"{pad} | {' ' * before}{'^' * width}")
    if len(rows) > MAX_SHOWN_LINES:
        result.append(f"{pad} | ... to line {rows[-1][0]}")
    if label:
        result[-1] += f" {label}"
    return result


def _rows(span: Span) -> list[tuple[int, int, int]]:
    """Return line number, first and last column (from 0, half open) for each line of a span."""
    assert span.source is not None
    pieces = LINE_END.split(span.source.text[span.start : span.stop])
    rows = [(span.line, span.column - 1, span.column - 1 + max(1, len(pieces[0])))]
    for number, piece in enumerate(pieces[1:], span.line + 1):
        if piece.strip():
            rows.append((number, len(piece) - len(piece.lstrip()), len(piece.rstrip())))
    return rows


def _cut(text: str, start: int, stop: int) -> tuple[str, int, int]:
    """Return the line as shown, the columns before the carets, and how many carets."""
    if len(text) > MAX_SHOWN_COLUMNS:
        first = max(0, start - MAX_SHOWN_COLUMNS // 2)
        last = min(len(text), first + MAX_SHOWN_COLUMNS)
        head, tail = "..." if first else "", "..." if last < len(text) else ""
        stop = min(stop, last)
        shown = head + _expand(text[first:last]) + tail
        return shown, len(head) + _columns(text[first:start]), max(1, _columns(text[start:stop]))
    return _expand(text), _columns(text[:start]), max(1, _columns(text[start:stop]))


def _expand(text: str) -> str:
    return text.replace("\t", " " * TAB_COLUMNS)


def _columns(text: str) -> int:
    """Return how many terminal columns a text takes.

    >>> _columns("ab"), _columns("\\u4e2d"), _columns("e\\u0301"), _columns("\\t")
    (2, 2, 1, 4)
    """
    if text.isascii():
        return len(text) + (TAB_COLUMNS - 1) * text.count("\t")
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else TAB_COLUMNS if c == "\t"
        else 1
        for c in text
    )  # fmt: skip


def _printable(line: str) -> str:
    """Return the line with what a terminal would obey, or cannot encode, replaced."""
    if line.isascii() and line.isprintable():
        return line
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in line
    )
