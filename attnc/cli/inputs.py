"""FILE argument -> pattern: a path, ``-`` for stdin, or the name of a zoo pattern."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attnc.cli.terminal import show_diagnostics
from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from attnc.compiler.loaded import Loaded
    from attnc.compiler.ir.pattern import Pattern
    from attnc.dsl.source import Source


def load_pattern(file: str, pattern_name: str | None, defines: Mapping[str, str]) -> Pattern:
    """Load one pattern and print its warnings on stderr. A path wins over a zoo name.

    Raises: CompileError with all that is wrong, or ATT0503 where FILE is neither.
    """
    return open_pattern(file, pattern_name, defines)[0]


def open_pattern(
    file: str, pattern_name: str | None, defines: Mapping[str, str]
) -> tuple[Pattern, Loaded]:
    """Load one pattern, as ``load_pattern`` does, and its oracle: nq, nk -> dense mask."""
    from attnc.compiler import driver

    if file == "-":
        source = read_source("-")
        opened = driver.open_text(
            source.text, pattern_name, defines, name=source.name, folder=Path.cwd()
        )
    elif Path(file).exists():
        opened = driver.open_file(Path(file), pattern_name, defines)
    elif file in driver.zoo_names():
        refuse_pattern_name(file, pattern_name)
        opened = driver.open_zoo(file, defines)
    else:
        raise no_such_file(file, driver.zoo_names())
    show_diagnostics(opened[0].warnings)
    return opened


def read_source(file: str) -> Source:
    """Read FILE, or stdin for ``-``.

    Raises: CompileError where it cannot be read, is too large, or is not UTF-8.
    """
    from attnc.dsl import limits

    if file == "-":
        found, diagnostics = limits.decode(
            "<stdin>", sys.stdin.buffer.read(limits.MAX_FILE_BYTES + 1)
        )
    else:
        found, diagnostics = limits.read_source(file)
    if found is None:
        raise CompileError(diagnostics)
    return found


def refuse_pattern_name(zoo_name: str, pattern_name: str | None) -> None:
    """Refuse ``--pattern other`` beside a zoo name: the zoo name already says which pattern."""
    if pattern_name not in (None, zoo_name):
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0504",
                    message=f"`{zoo_name}` is a zoo pattern, so `--pattern {pattern_name}` "
                    "has nothing to choose from",
                    help=f"leave `--pattern` out, or write `{pattern_name}` in place of "
                    f"`{zoo_name}`",
                )
            ]
        )


def no_such_file(file: str, zoo_names: tuple[str, ...]) -> CompileError:
    """Return the error for a FILE that is neither a path nor a zoo name."""
    here = [str(path) for path in Path(file).parent.glob("*.attn")] if file else []
    near = difflib.get_close_matches(file, [*zoo_names, *here], n=1, cutoff=0.6)
    advice = f"did you mean `{near[0]}`? " if near else ""
    return CompileError(
        [
            Diagnostic(
                code="ATT0503",
                message=f"there is no file and no zoo pattern `{file}`",
                help=f"{advice}`attnc zoo` lists the patterns that come with attnc",
            )
        ]
    )


def check_heads(pattern: Pattern, heads: int | None) -> None:
    """Refuse a number of heads other than the pattern's own."""
    if heads is not None and pattern.heads is not None and heads != pattern.heads:
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0505",
                    message=f"pattern `{pattern.name}` is defined for {pattern.heads} heads, "
                    f"not for {heads}",
                    help=f"leave `--heads` out, or write `--heads {pattern.heads}`",
                )
            ]
        )
