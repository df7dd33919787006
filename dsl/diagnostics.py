"""Diagnostics: values that say what is wrong, where, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from attnc.dsl.source import UNKNOWN, Span

Severity = Literal["error", "warning", "note"]


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


class CompileError(Exception):
    """Carries the diagnostics that stopped a compilation; ``str()`` is the rendered text."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(render(d) for d in self.diagnostics))


def render(diagnostic: Diagnostic) -> str:
    """Return the plain text of a diagnostic, in the form of STYLE 2.12 (rustc's anatomy)."""
    d = diagnostic
    lines = [f"{d.severity}[{d.code}]: {d.message}"]
    span = d.span
    if span.source is not None:
        number = str(span.line)
        pad = " " * len(number)
        text = span.source.line(span.line).replace("\t", " ")
        width = max(1, min(span.stop - span.start, len(text) - span.column + 1))
        caret = " " * (span.column - 1) + "^" * width + (f" {d.label}" if d.label else "")
        lines.append(f"{pad}--> {span.source.name}:{span.line}:{span.column}")
        lines += [f"{pad} |", f"{number} | {text}".rstrip(), f"{pad} | {caret}"]
        lines += [f"{pad} = note: {note}" for note in d.notes]
    else:
        lines += [f" = note: {note}" for note in d.notes]
    if d.help:
        lines.append(f"help: {d.help}")
    return "\n".join(lines)
