"""``attnc zoo``: the patterns that come with attnc."""

from __future__ import annotations

import click

from attnc.cli.options import json_option


@click.command(
    epilog="Examples: `attnc zoo`, `attnc zoo longformer`, "
    "`attnc zoo longformer > my_pattern.attn` (to change it).",
)
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the zoo, or print the .attn text of the pattern NAME."""
    from attnc.compiler import driver

    names = driver.zoo_names()
    if name is not None and name not in names:
        from attnc.cli.inputs import no_such_file

        raise no_such_file(name, names)
    chosen = names if name is None else (name,)
    if as_json:
        import json

        entries = [
            {"name": each, "summary": driver.zoo_summary(each), "text": driver.zoo_text(each)}
            for each in chosen
        ]
        click.echo(json.dumps(entries, indent=2))
    elif name is not None:
        click.echo(driver.zoo_text(name), nl=False)
    else:
        width = max(map(len, names))
        for each in names:
            click.echo(f"{each:<{width}}  {driver.zoo_summary(each)}".rstrip())
