"""Bytes and text -> the same, or one diagnostic: what is refused before anything is parsed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.scanner import Token
from attnc.dsl.source import Source, Span
from attnc.dsl.words import binds

MAX_FILE_BYTES = 256 * 1024
MAX_NESTING = 200

# One written level can be several tree levels (a sum in a product in a comparison ...).
MAX_TREE_DEPTH = 512
_FRAMES = 10_000

_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")


class Refused(Exception):
    """Carries the diagnostic of what the grammar takes and the language refuses out of a parser."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        self.diagnostic = diagnostic
        super().__init__(diagnostic.message)


def read_source(path: str | Path) -> tuple[Source | None, tuple[Diagnostic, ...]]:
    """Read a file of at most ``MAX_FILE_BYTES`` bytes. Returns None exactly where that fails."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        message = f"cannot read `{name}`: {reason.lower()}"
        return None, (Diagnostic(code="ATT0114", message=message),)
    return decode(name, data)


def decode(name: str, data: bytes) -> tuple[Source | None, tuple[Diagnostic, ...]]:
    """Turn the bytes of a file into a source: UTF-8, with or without a byte order mark."""
    if len(data) > MAX_FILE_BYTES:
        return None, (_too_large(name),)
    try:
        return Source(name, data.decode("utf-8")), ()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode("utf-8")
        bad = Diagnostic(
            code="ATT0106", message=f"byte 0x{data[error.start]:02x} is not UTF-8 text",
            span=_at(Source(name, text), len(text)), help="save the file as UTF-8",
        )  # fmt: skip
        return None, (bad,)


def check_text(source: Source) -> Diagnostic | None:
    """Refuse text that is too long or holds characters no text has (NUL, lone surrogates)."""
    text = source.text
    if len(text) > MAX_FILE_BYTES or (
        not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES
    ):
        return _too_large(source.name)
    stray = _NOT_TEXT.search(text)
    if stray is None:
        return None
    return Diagnostic(
        code="ATT0106", message=f"the character U+{ord(stray.group()):04X} is not text",
        span=_at(source, stray.start()), help="remove it, or save the file as plain UTF-8 text",
    )  # fmt: skip


def check_nesting(tokens: Sequence[Token]) -> Diagnostic | None:
    """Refuse more than ``MAX_NESTING`` levels of brackets, prefixes, ``if``s, ``let``s, ``**``s."""
    # One entry a bracket: [openers in it that reach to its end, prefixes before this operand].
    levels: list[list[int]] = [[0, 0]]
    depth, operand_next = 0, True
    code = [token for token in tokens if token.kind != "comment"]
    for i, token in enumerate(code):
        text = token.text
        if text in ("(", "[", "{"):
            levels.append([0, 0])
            depth, operand_next = depth + 1, True
        elif text in (")", "]", "}"):
            if len(levels) > 1:
                depth -= 1 + sum(levels.pop())
            operand_next = False
        elif text in ("not", "~") or (text == "-" and operand_next) or text == "**":
            levels[-1][1] += 1
            depth, operand_next = depth + 1, True
        elif text in ("if", "let", "exists", "forall") or (
            text in ("sum", "count", "over") and binds(code, i)
        ):
            levels[-1][0] += 1
            depth, operand_next = depth + 1, True
        elif token.kind in ("number", "string", "bad") or _is_name(token):
            operand_next = False
            if token.first and token.span.column == 1 and token.kind == "word":
                levels, depth = [[0, 0]], 0  # most likely the next item
        else:  # an operator or a separator: prefixes end before it
            depth -= levels[-1][1]
            levels[-1][1], operand_next = 0, True
        if depth > MAX_NESTING:
            return _too_deep(token.span)
    return None


def _is_name(token: Token) -> bool:
    words = ("and", "or", "div", "mod", "in", "then", "else")
    return token.kind == "word" and token.text not in words


def check_depth(node: ast.Node) -> Diagnostic | None:
    """Refuse a tree of over ``MAX_TREE_DEPTH`` levels: later stages walk it by recursion."""
    level: list[ast.Node] = [node]
    for _ in range(MAX_TREE_DEPTH):
        level = [child for parent in level for child in ast.children(parent)]
        if not level:
            return None
    return _too_deep(level[0].span)


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Make room for recursion over any tree that ``check_depth`` lets through."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _FRAMES))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _too_deep(span: Span) -> Diagnostic:
    return Diagnostic(
        code="ATT0104", message=f"this is nested more than {MAX_NESTING} levels deep", span=span,
        help="give inner parts a name: a pattern of their own, or a `let`",
    )  # fmt: skip


def _too_large(name: str) -> Diagnostic:
    return Diagnostic(
        code="ATT0103", message=f"`{name}` is larger than {MAX_FILE_BYTES // 1024} KB",
        help="split it, and bring the parts together with `import a, b from \"part.attn\"`",
    )  # fmt: skip


def _at(source: Source, at: int) -> Span:
    before = source.text[:at].removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    line = before.count("\n") + 1
    return Span(source, at, at + 1, line, len(before) - (before.rfind("\n") + 1) + 1)
