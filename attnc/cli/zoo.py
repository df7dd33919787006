"""``attnc zoo``: the patterns that come with attnc."""

from __future__ import annotations

from itertools import zip_longest
from types import ModuleType

import click

from attnc.cli.options import json_option

THUMBNAIL_DOTS = 16


@click.command(
    epilog="Examples: `attnc zoo`, `attnc zoo longformer`, "
    "`attnc zoo longformer > my_pattern.attn` (to change it).",
)
@click.argument("name", required=False)
@click.option("--gallery", is_flag=True, help="Print docs/zoo.md: every file with its drawing.")
@json_option
def command(name: str | None, gallery: bool, as_json: bool) -> None:
    """List the zoo with a small drawing of each mask, or print the .attn text of NAME.

    The drawing of NAME goes to stderr, so that stdout is the file alone.
    """
    from attnc import gallery as pages
    from attnc.compiler import driver

    names = driver.zoo_all()
    if name is not None and name not in names:
        from attnc.cli.inputs import no_such_file

        raise no_such_file(name, names)
    if gallery:
        if name is not None or as_json:
            raise click.UsageError("--gallery takes neither a NAME nor --json")
        click.echo(pages.markdown(), nl=False)
        return
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
        if name in driver.zoo_names():  # what is chosen by content has no one mask
            click.echo(pages.picture(name), err=True)
    else:
        for each in driver.zoo_names():
            click.echo(_row(each, pages))
        click.echo("\nchosen by content:\n")
        for each in driver.zoo_routes():
            said = pages.entry(each)
            click.echo(click.style(each, bold=True))
            click.echo(f"    {said.title}\n    When: {said.fields.get('When', '')}")


def _row(name: str, pages: ModuleType) -> str:
    """Return a thumbnail with the name and what it is beside it."""
    drawn = pages.picture(name, THUMBNAIL_DOTS).splitlines()
    said = pages.entry(name)
    beside = [click.style(name, bold=True), said.title, f"When: {said.fields.get('When', '')}"]
    lines = zip_longest(drawn, beside, fillvalue="")
    return "\n".join(f"{left:<{THUMBNAIL_DOTS // 2}}  {right}".rstrip() for left, right in lines)
