"""Command line -> exit code: the ``attnc`` command.

Exit codes: 0 fine, 1 the input is wrong (diagnostics on stderr), 2 wrong usage, 70 a bug in attnc,
130 interrupted. Verbs live one to a module and are imported only when they are called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

EXIT_OK, EXIT_INPUT, EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 0, 1, 2, 70, 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave the process with its exit code; never shows a traceback."""
    try:
        code = invoke(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # closed by the caller: `attnc check p.attn >&-`
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`attnc zoo | head`): that is its right. Python would complain once
        # more while closing stdout, so stdout is pointed at nothing first.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    sys.exit(code)


def invoke(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    import click

    from attnc.cli.group import cli
    from attnc.cli.terminal import show_diagnostics, show_error, show_internal
    from attnc.dsl.diagnostics import CompileError

    try:
        # Not `cli.main`: that answers a reader that went away (`attnc zoo | head`) with exit 1.
        with cli.make_context("attnc", argv) as context:
            result = cli.invoke(context)
        return result if isinstance(result, int) else EXIT_OK
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except CompileError as wrong:
        show_diagnostics(wrong.diagnostics)
        return EXIT_INPUT
    except (click.Abort, KeyboardInterrupt, EOFError):
        show_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as wrong:
        where = f"`{wrong.filename}`: " if wrong.filename else ""
        show_error(f"{where}{wrong.strerror or wrong}")
        return EXIT_INPUT
    except Exception as bug:
        show_internal(bug)
        return EXIT_INTERNAL
