"""Verb name -> command: the group that imports a verb only when it is called."""

from __future__ import annotations

import difflib
import importlib

import click

import attnc

VERBS: dict[str, str] = {
    "check": "Check files and print what is wrong in them.",
    "fmt": "Format files.",
    "emit": "Print one stage of the compilation.",
    "cost": "Predict what a pattern costs on a device, without running it.",
    "mask": "Write or draw the dense mask of a pattern.",
    "compile": "Write a pattern as a Python module with its kernels.",
    "run": "Compile a pattern, run it on real input and verify it.",
    "explain": "Explain a diagnostic code.",
    "zoo": "List the patterns that come with attnc, or print one.",
}


class LazyGroup(click.Group):
    """A group whose help needs no verb module and whose errors suggest the nearest verb."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"attnc.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
            hint = f" Did you mean `{near[0]}`?" if near else f" Verbs: {', '.join(VERBS)}."
            ctx.fail(f"there is no verb `{name}`.{hint}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`attnc VERB --help` shows the flags of a verb, with examples.",
)
@click.version_option(attnc.__version__, prog_name="attnc")
def cli() -> None:
    """Compile sparse attention patterns: check them, look at them, run them."""
