"""``attnc fmt``: .attn text -> the same text in the one layout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from attnc.cli import EXIT_INPUT


@click.command(
    epilog="Examples: `attnc fmt examples/*/*.attn`, `attnc fmt --check .`, "
    "`cat p.attn | attnc fmt -`.",
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a file would change.")
@click.option("--diff", is_flag=True, help="Change nothing; print what would change.")
def command(paths: tuple[str, ...], check: bool, diff: bool) -> int | None:
    """Format files in place; `-` formats stdin to stdout, a folder means its .attn files."""
    from attnc.cli.inputs import read_source
    from attnc.cli.terminal import show_diagnostics
    from attnc.dsl.diagnostics import CompileError
    from attnc.dsl.formatter import format_file

    changed, broken = 0, 0
    for path in files_of(paths):
        try:
            source = read_source(path)
            after = format_file(source.text, source.name)
        except CompileError as wrong:
            show_diagnostics(wrong.diagnostics)
            broken += 1
            continue
        if diff:
            print_diff(source.text, after, source.name)
        elif path == "-" and not check:
            sys.stdout.write(after)
            continue
        if after == source.text:
            continue
        changed += 1
        if check:
            click.echo(f"would reformat {source.name}")
        elif not diff:
            replace_text(Path(path), after)
            click.echo(f"reformatted {path}")
    return EXIT_INPUT if broken or (changed and check) else None


def files_of(paths: tuple[str, ...]) -> list[str]:
    """Put the .attn files of a folder in place of the folder."""
    found: list[str] = []
    for path in paths:
        if path != "-" and Path(path).is_dir():
            found += sorted(str(inner) for inner in Path(path).rglob("*.attn"))
        else:
            found.append(path)
    return found


def print_diff(before: str, after: str, name: str) -> None:
    """Print a unified diff on stdout."""
    import difflib

    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), name, name
    )
    sys.stdout.writelines(line if line.endswith("\n") else line + "\n" for line in lines)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a crash half way leaves the old one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(text.encode("utf-8"))
    beside.chmod(path.stat().st_mode)
    os.replace(beside, path)
