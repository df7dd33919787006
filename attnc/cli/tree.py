"""AST -> indented text: what ``attnc emit --stage ast`` prints."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError
from attnc.dsl.source import Source, Span


def file_tree(file: str) -> str:
    """Parse FILE (a path, ``-``, or a zoo name) and return its tree."""
    from attnc.cli.inputs import no_such_file, read_source
    from attnc.compiler import driver
    from attnc.dsl.parser import parse

    if file != "-" and not Path(file).exists():
        if file not in driver.zoo_all():
            raise no_such_file(file, driver.zoo_all())
        source = Source(f"{file}.attn", driver.zoo_text(file))
    else:
        source = read_source(file)
    tree, diagnostics = parse(source)
    if tree is None or any(d.severity == "error" for d in diagnostics):
        raise CompileError(diagnostics)
    return tree_text(tree)


def tree_text(root: ast.File) -> str:
    """Return one line a node, indented by depth, scalar fields beside the name of the node.

    An explicit stack, since a file may nest deeper than Python's own stack likes.
    """
    lines: list[str] = []
    stack: list[tuple[int, str, object]] = [(0, "", root)]
    while stack:
        depth, label, node = stack.pop()
        scalars, children = [], []
        assert dataclasses.is_dataclass(node)
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if isinstance(value, Span) or field.name == "text" or value is None:
                continue
            if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
                children += [(depth + 1, f"{field.name}[{i}]: ", v) for i, v in enumerate(value)]
            elif dataclasses.is_dataclass(value):
                children.append((depth + 1, f"{field.name}: ", value))
            elif value not in ((), ""):
                scalars.append(f"{field.name}={_scalar(value)}")
        lines.append(f"{'  ' * depth}{label}{type(node).__name__} {' '.join(scalars)}".rstrip())
        stack += reversed(children)
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, str) and not value.isprintable():
        return repr(value)
    return repr(value) if isinstance(value, str) and " " in value else str(value)

