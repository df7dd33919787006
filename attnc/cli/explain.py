"""``attnc explain CODE``: what a diagnostic means, with an example and what to write instead."""

from __future__ import annotations

import click

from attnc.cli import EXIT_INPUT
from attnc.cli.options import json_option


@click.command(
    epilog="Examples: `attnc explain ATT0301`, `attnc explain` (lists all codes).",
)
@click.argument("code", required=False)
@json_option
def command(code: str | None, as_json: bool) -> int | None:
    """Explain a diagnostic CODE such as ATT0301; without CODE, list them all."""
    from attnc.cli.terminal import show_error
    from attnc.dsl.codes import CODES, explain

    if code is None:
        chosen = dict(sorted(CODES.items()))
    else:
        wanted = code.upper().strip("[]")
        if wanted.isdigit():
            wanted = f"ATT{wanted.zfill(4)}"
        if wanted not in CODES:
            import difflib

            near = difflib.get_close_matches(wanted, CODES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            show_error(f"there is no code `{code}`; {hint}`attnc explain` lists them all")
            return EXIT_INPUT
        chosen = {wanted: CODES[wanted]}
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(entry) for entry in chosen.values()], indent=2))
    elif code is None:
        for name, entry in chosen.items():
            click.echo(f"{name}  {entry.title}")
    else:
        click.echo(explain(next(iter(chosen))))
    return None
