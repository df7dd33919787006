"""``attnc check``: .attn files -> diagnostics."""

from __future__ import annotations

from typing import Any

import click

from attnc.cli import EXIT_INPUT
from attnc.cli.options import DefineType, json_option, read_defines
from attnc.dsl.diagnostics import Diagnostic


@click.command(
    epilog="Examples: `attnc check longformer.attn`, `attnc check p.attn --pattern local -D w=8`, "
    "`cat p.attn | attnc check -`.",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--pattern", "pattern_name", metavar="NAME",
              help="Check one pattern of the file only.")
@click.option("-D", "defines", type=DefineType(), multiple=True, callback=read_defines,
              help="Set a parameter of the pattern; may be repeated.")
@click.option("--deny-warnings", is_flag=True, help="Exit 1 on a warning, too.")
@json_option
def command(
    files: tuple[str, ...],
    pattern_name: str | None,
    defines: dict[str, str],
    deny_warnings: bool,
    as_json: bool,
) -> int | None:
    """Check FILEs (paths, `-` for stdin, or zoo names) and print diagnostics on stderr.

    Every pattern of a file is checked with its default parameters; --pattern and -D check one
    pattern with the parameters given.
    """
    from attnc.cli.terminal import show_diagnostics

    found: list[Diagnostic] = []
    for file in files:
        found += diagnose(file, pattern_name, defines)
    show_diagnostics(found)
    errors = sum(d.severity == "error" for d in found)
    warnings = sum(d.severity == "warning" for d in found)
    if as_json:
        import json

        click.echo(json.dumps([as_record(d) for d in found], indent=2))
    elif not errors:
        note = f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
        click.echo(f"{len(files)} file{'s' * (len(files) > 1)} checked, no errors{note}")
    return EXIT_INPUT if errors or (warnings and deny_warnings) else None


def diagnose(
    file: str, pattern_name: str | None, defines: dict[str, str]
) -> tuple[Diagnostic, ...]:
    """Return all that is wrong with one FILE."""
    from pathlib import Path

    from attnc.cli.inputs import no_such_file, read_source, refuse_pattern_name
    from attnc.compiler import driver
    from attnc.dsl.diagnostics import CompileError

    try:
        if file == "-":
            source = read_source("-")
            return driver.check_text(
                source.text, source.name, pattern_name, defines, folder=Path.cwd()
            )
        if Path(file).exists():
            return driver.check_file(Path(file), pattern_name, defines)
        if file not in driver.zoo_all():
            raise no_such_file(file, driver.zoo_all())
        refuse_pattern_name(file, pattern_name)
        return driver.check_zoo(file, defines)
    except CompileError as wrong:
        return wrong.diagnostics


def as_record(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return a diagnostic as plain JSON values; lines and columns count from 1."""
    d = diagnostic
    record: dict[str, Any] = {"code": d.code, "severity": d.severity, "message": d.message}
    if d.span.source is not None:
        record |= {
            "file": d.span.source.name, "line": d.span.line, "column": d.span.column,
            "start": d.span.start, "stop": d.span.stop,
        }
    return record | {"label": d.label, "notes": list(d.notes), "help": d.help}
