"""FILE argument -> pattern: a path, ``-`` for stdin, or the name of a zoo pattern."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attnc.cli.terminal import show_diagnostics
from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from attnc.compiler.ir.pattern import Pattern
    from attnc.compiler.loaded import Loaded
    from attnc.dsl.source import Source


def load_pattern(file: str, pattern_name: str | None, defines: Mapping[str, object]) -> Pattern:
    """Load one pattern and print its warnings on stderr. A path wins over a zoo name.

    Raises: CompileError with all that is wrong, or ATT0503 where FILE is neither.
    """
    pattern = load_any(file, pattern_name, defines).ir
    show_diagnostics(pattern.warnings)
    return pattern


def align_pattern(pattern: Pattern, align: str) -> Pattern:
    """Put the queries where ``--align`` says."""
    from attnc.compiler.passes.align import aligned

    return aligned(pattern, cast(Any, align))


def load_any(file: str, pattern_name: str | None, given: Mapping[str, object]) -> Loaded:
    """Look FILE up; ``given`` are parameters, inputs and sizes by name. Nothing is lowered yet."""
    from attnc.compiler import driver

    if file == "-":
        source = read_source("-")
        return driver.loaded_text(
            source.text, pattern_name, given, name=source.name, folder=Path.cwd()
        )
    if Path(file).exists():
        return driver.loaded_file(Path(file), pattern_name, given)
    if file in driver.zoo_all():
        refuse_pattern_name(file, pattern_name)
        return driver.loaded_zoo(file, given)
    raise no_such_file(file, driver.zoo_all())


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
    refuse_heads(pattern.name, pattern.heads, heads)


def refuse_heads(name: str, own: int | None, heads: int | None) -> None:
    """Refuse a number of heads other than ``own``, where there is one."""
    if heads is not None and own is not None and heads != own:
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0505",
                    message=f"pattern `{name}` is defined for {own} heads, not for {heads}",
                    help=f"leave `--heads` out, or write `--heads {own}`",
                )
            ]
        )
