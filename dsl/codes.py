"""A diagnostic code -> what it means: ``attnc explain``. The tables are in ``codes_*.py``."""

from __future__ import annotations

from attnc.dsl.codes_names import NAME_CODES
from attnc.dsl.codes_plan import PLAN_CODES
from attnc.dsl.codes_routes import ROUTE_CODES
from attnc.dsl.codes_syntax import SYNTAX_CODES
from attnc.dsl.codes_types import TYPE_CODES
from attnc.dsl.diagnostics import Code

CODES: dict[str, Code] = {
    entry.code: entry
    for entry in (*SYNTAX_CODES, *NAME_CODES, *TYPE_CODES, *ROUTE_CODES, *PLAN_CODES)
}


def explain(code: str) -> str:
    """Return what a code means, why, an example, and what to write instead.

    Raises: ValueError where there is no such code.
    """
    entry = CODES.get(code)
    if entry is None:
        raise ValueError(f"there is no diagnostic code {code!r}")
    example, instead = (_indented(text) for text in (entry.example, entry.instead))
    return (
        f"{entry.code}: {entry.title}\n\n{entry.what}\n\n{entry.why}\n\n"
        f"example:\n\n{example}\n\nwrite instead:\n\n{instead}"
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").split("\n"))
