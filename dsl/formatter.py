"""Text -> the same file in the one layout: comments kept, line breaks mostly the author's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnc.dsl.diagnostics import CompileError
from attnc.dsl.parser import parse, split_items
from attnc.dsl.scanner import RESERVED, Token, scan
from attnc.dsl.source import Source

MAX_COLUMNS = 100
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_WORD_OPERANDS = ("true", "false")


def format_file(text: str, name: str = "<text>") -> str:
    """Return the text in the standard layout; formatting twice changes nothing more.

    A line that is too long is broken before a set operator, else before ``and`` or ``or``, else
    after a comma. No token is added, removed or moved, so the meaning cannot change.

    Raises: CompileError with all syntax errors, where the text is not a legal file.
    """
    source = Source(name, text)
    file, diagnostics = parse(source)
    if file is None:
        raise CompileError(diagnostics)
    tokens, _ = scan(source)
    starts = {chunk[0].span.start for chunk in split_items(tokens)}
    lines = _lines(tokens[:-1], starts)
    result: list[_Line] = []
    open_brackets: list[tuple[str, int]] = []
    while lines:
        line = lines.pop(0)
        if line.starts_item:
            open_brackets = []
        before = list(open_brackets)
        line.indent = _indent(line, open_brackets)
        cut = _cut(line, before) if line.width() > MAX_COLUMNS else []
        if cut:
            lines[:0] = line.split(cut)
            open_brackets = before
            continue
        _track(line, open_brackets, len(result))
        result.append(line)
    return _render(result)


@dataclass(slots=True)
class _Line:
    """One line to be written: its tokens with the blanks before them, and a comment at its end."""

    tokens: list[Token]
    blanks: list[str]
    comment: str = ""
    starts_item: bool = False
    blank_before: bool = False
    binary_minus: bool = False  # if it starts with `-`, that one stands between two operands
    inside: bool = True  # a comment alone on its line: whether it stands within an item
    indent: int = 0

    def text(self) -> str:
        code = "".join(b + t.text for b, t in zip(self.blanks, self.tokens, strict=True))
        return " " * self.indent + code.lstrip(" ")

    def width(self) -> int:
        return len(self.text())

    def split(self, cut: Sequence[int]) -> list[_Line]:
        """Return the lines that start at token 0 and at each token of ``cut``."""
        ends = [*cut, len(self.tokens)]
        pieces = [
            _Line(self.tokens[a:b], self.blanks[a:b]) for a, b in zip([0, *cut], ends, strict=True)
        ]
        pieces[0].starts_item, pieces[0].blank_before = self.starts_item, self.blank_before
        pieces[-1].comment = self.comment
        return pieces


def _lines(tokens: Sequence[Token], starts: set[int]) -> list[_Line]:
    """Return the lines as the author broke them, with the blanks that belong between tokens."""
    lines: list[_Line] = []
    spacing = _Spacing()
    last_row = 0
    for token in tokens:
        if token.first or not lines:
            gap = 0 < last_row < token.span.line - 1
            lines.append(_Line([], [], blank_before=gap))
        line, last_row = lines[-1], token.span.line
        if token.kind == "comment":
            line.comment = "#" + token.text[1:].rstrip()
            continue
        if token.span.start in starts:
            line.starts_item = True
            spacing = _Spacing()
        if not line.tokens:
            line.binary_minus = _is_operand(spacing.previous)
        line.blanks.append(spacing.before(token))
        line.tokens.append(token)
    # A comment line between two items stands at the margin, one inside an item is indented.
    inside = False
    for line in reversed(lines):
        if line.tokens:
            inside = not line.starts_item
        else:
            line.inside = inside
    return lines


class _Spacing:
    """What stands between a token and the one before it, within one item."""

    def __init__(self) -> None:
        self.previous: Token | None = None
        self.unary = False  # the previous token is a sign that belongs to what follows
        # For each open bracket: itself, and how many quantifiers in it wait for their colon.
        self.levels: list[list[str | int]] = [["", 0]]

    def before(self, token: Token) -> str:
        blank = self._blank(token)
        text, previous = token.text, self.previous
        self.unary = text == "~" or (text == "-" and not _is_operand(previous))
        if token.kind == "word" and text in ("exists", "forall"):
            self.levels[-1][1] = int(self.levels[-1][1]) + 1
        elif token.kind == "sign" and text in _CLOSES:
            self.levels.append([text, 1 if text == "{" else 0])
        elif token.kind == "sign" and text in _CLOSES.values() and len(self.levels) > 1:
            self.levels.pop()
        elif text == ":" and self.levels[-1][1]:
            self.levels[-1][1] = int(self.levels[-1][1]) - 1
        self.previous = token
        return blank

    def _blank(self, token: Token) -> str:
        previous, text = self.previous, token.text
        if previous is None or self.unary or token.kind == "string":
            return " " if token.kind == "string" and previous is not None else ""
        if previous.text == ".." and text == "=":  # an open range: `in 1.. = 512`
            return " "
        if previous.text in ("(", "[", "..", "**") and previous.kind == "sign":
            return ""
        if token.kind != "sign":
            return " "
        if text in (")", "]", ",", "..", "**"):
            return ""
        if text == ":":
            return " " if self.levels[-1][1] else ""
        if text in ("(", "["):
            name = previous.kind == "word" and previous.text not in RESERVED
            return "" if name or previous.text in (")", "]") else " "
        return " " if (previous.text, text) != ("{", "}") else ""


def _is_operand(token: Token | None) -> bool:
    """Whether a value or a set ends with this token, so that a ``-`` after it is binary."""
    if token is None or token.kind == "sign":
        return token is not None and token.text in _CLOSES.values()
    return token.text not in RESERVED or token.text in _WORD_OPERANDS


def _indent(line: _Line, open_brackets: list[tuple[str, int]]) -> int:
    if line.starts_item or (not line.tokens and not line.inside):
        return 0
    level = len({row for _, row in open_brackets})
    first = line.tokens[0] if line.tokens else None
    if first is None or first.kind != "sign":
        return 4 + 4 * level
    if first.text in _CLOSES.values() and open_brackets:
        return 4 + 4 * len({row for _, row in open_brackets[:-1]})
    # A leading set operator hangs in front of its operand, which lines up with the first one.
    hangs = first.text in ("|", "&") or (first.text == "-" and line.binary_minus)
    return 4 + 4 * level - (2 if hangs else 0)


def _track(line: _Line, open_brackets: list[tuple[str, int]], row: int) -> None:
    for token in line.tokens:
        if token.kind == "sign" and token.text in _CLOSES:
            open_brackets.append((token.text, row))
        elif token.kind == "sign" and token.text in _CLOSES.values() and open_brackets:
            open_brackets.pop()


def _cut(line: _Line, open_brackets: Sequence[tuple[str, int]]) -> list[int]:
    """Return the tokens before which a line that is too long is broken, or [] where it cannot be.

    After the ``=`` of a pattern first, else at all set operators (or ``or``, ``and``, commas)
    that stand in the fewest brackets.
    """
    if not line.tokens or line.tokens[0].text == "import":
        return []
    depth, best = 0, dict[str, tuple[int, list[int]]]()
    for i, token in enumerate(line.tokens):
        if token.kind == "sign" and token.text in _CLOSES.values():
            depth -= 1
        after = token.text in (",", "=")
        at = i + 1 if after else i
        heads_body = token.text == "=" and depth == 0 and not open_brackets
        if 0 < at < len(line.tokens) and (token.text in ("|", "&", "or", "and", ",") or heads_body):
            found_depth, found = best.get(token.text, (depth, []))
            if depth < found_depth:
                found_depth, found = depth, []
            if depth == found_depth:
                best[token.text] = (found_depth, [*found, at])
        if token.kind == "sign" and token.text in _CLOSES:
            depth += 1
    if "=" in best and line.tokens[0].text == "pattern":
        return best["="][1]
    for text in ("|", "&", "or", "and", ","):
        if text in best:
            return best[text][1]
    return []


def _render(lines: Sequence[_Line]) -> str:
    """Write the lines; comments at the ends of neighbouring lines line up."""
    rows: list[str] = []
    i = 0
    while i < len(lines):
        group = [lines[i]]
        while (
            _ends_in_comment(group[-1]) and i + len(group) < len(lines)
            and _ends_in_comment(lines[i + len(group)])
            and not lines[i + len(group)].blank_before
        ):  # fmt: skip
            group.append(lines[i + len(group)])
        column = max(line.width() for line in group)
        for line in group:
            if line.blank_before and rows:
                rows.append("")
            if not line.tokens:
                rows.append(" " * line.indent + line.comment)
            elif line.comment:
                rows.append(f"{line.text().ljust(column)}  {line.comment}")
            else:
                rows.append(line.text())
        i += len(group)
    return "".join(f"{row}\n" for row in rows)


def _ends_in_comment(line: _Line) -> bool:
    return bool(line.tokens and line.comment)
