"""Function libraries -> the text of those functions that a written module uses."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from attnc.codegen.data import CUT

_HERE = Path(__file__).parent


def used(text: str, *files: str) -> str:
    """Return the imports and those definitions of files that ``text`` names, with what they name.

    Definitions stand in the order of the files.
    """
    known: dict[str, str] = {}
    imports: dict[str, None] = {}
    for file in files:
        heads, found = _library(file)
        imports |= dict.fromkeys(heads)
        known |= found
    wanted: set[str] = set()
    pending = [text]
    while pending:
        words = set(re.findall(r"\w+", pending.pop()))
        more = (words & known.keys()) - wanted
        wanted |= more
        pending += [known[name] for name in more]
    chosen = [body for name, body in known.items() if name in wanted]
    return "\n".join(imports) + "\n\n\n" + "\n\n\n".join(chosen)


@cache
def _library(file: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the imports of a file, and its definitions below the cut line by name."""
    head, body = CUT.split((_HERE / file).read_text(encoding="utf-8"))
    imports = tuple(
        ast.unparse(node) for node in ast.parse(head).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "__future__" not in ast.unparse(node) and "attnc" not in ast.unparse(node)
    )  # fmt: skip
    lines = body.splitlines()
    found = {}
    for node in ast.parse(body).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            case ast.Assign(targets=[ast.Name(id=name)]):
                start = node.lineno
            case _:
                continue
        found[name] = "\n".join(lines[start - 1 : node.end_lineno])
    return imports, found
