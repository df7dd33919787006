"""Diagnostics and progress -> the terminal: colour on a terminal only, plain text elsewhere."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import click

from attnc.dsl.diagnostics import Diagnostic, render

INTERNAL_CODE = "ATT0901"
_HEAD_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def colourful() -> bool:
    """Whether stderr may be coloured: a terminal, and neither NO_COLOR nor CI is set."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")


def show_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Print diagnostics on stderr, one blank line between two."""
    for number, diagnostic in enumerate(diagnostics):
        text = render(diagnostic)
        if colourful():
            text = paint(text, diagnostic.severity)
        click.echo(("\n" if number else "") + text, err=True, color=colourful())


def paint(text: str, severity: str) -> str:
    """Return a rendered diagnostic with its head, carets and help line in colour."""
    colour = _HEAD_COLOURS[severity]
    lines = text.split("\n")
    lines[0] = click.style(lines[0], fg=colour, bold=True)
    for number, line in enumerate(lines[1:], 1):
        bar, _, rest = line.partition("|")
        if not bar.strip() and rest.lstrip().startswith("^"):
            lines[number] = f"{bar}|" + click.style(rest, fg=colour)
        elif line.startswith("help:"):
            lines[number] = click.style("help:", fg="green", bold=True) + line[5:]
    return "\n".join(lines)


def show_error(message: str) -> None:
    """Print one line on stderr for what has no place in a source file."""
    head = click.style("error:", fg="red", bold=True) if colourful() else "error:"
    click.echo(f"{head} {message}", err=True, color=colourful())


def show_internal(bug: BaseException) -> None:
    """Print a bug of attnc as a diagnostic: where it broke, and a request to report it."""
    frames = traceback.extract_tb(bug.__traceback__)
    frames_of_attnc = [f for f in frames if f"{os.sep}click{os.sep}" not in f.filename]
    trail = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames_of_attnc[-3:]]
    first_line = (str(bug).splitlines() or [""])[0]
    show_diagnostics(
        [
            Diagnostic(
                code=INTERNAL_CODE,
                message=f"attnc broke: {type(bug).__name__}: {first_line}".rstrip(": "),
                notes=tuple(f"at {where}" for where in reversed(trail)),
                help="this is a bug in attnc, not in your file; report it with the file, the "
                "command and this text",
            )
        ]
    )


class Steps(Protocol):
    """Something that is told which step of long work begins."""

    def step(self, what: str) -> None:
        """Say that the next step, ``what``, begins."""


class _Silent:
    def step(self, what: str) -> None:
        pass


@contextmanager
def progress(total_steps: int) -> Iterator[Steps]:
    """Show a progress bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )
    task = bar.add_task("starting", total=total_steps)

    class Shown:
        begun = False

        def step(self, what: str) -> None:
            bar.update(task, description=what, advance=1 if self.begun else 0)
            self.begun = True

    with bar:
        yield Shown()
