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
    place = _Place()
    while lines:
        line = lines.pop(0)
        here = place.at(line, len(result))
        line.indent = here.indent(line)
        cut = _cut(line, here) if line.width() > MAX_COLUMNS else []
        if cut:
            lines[:0] = line.split(cut)
        else:
            place = here.after(line, len(result))
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
    binary_minus: bool = False  # it starts with a `-` between two operands
    awaits_body: str = ""  # it ends with the `in` of a `let` or the `:` of a quantifier
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
        pieces[0].binary_minus = self.binary_minus
        pieces[-1].comment, pieces[-1].awaits_body = self.comment, self.awaits_body
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
            line.binary_minus = token.text == "-" and _is_operand(spacing.previous)
        line.blanks.append(spacing.before(token))
        line.tokens.append(token)
        line.awaits_body = spacing.awaits_body
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
        self.awaits_body = ""  # the token just read, if it is one that a body follows
        # For each open bracket, how many colons with blanks on both sides it waits for: those of
        # its quantifiers, and in braces the one of the builder, which is read first.
        self.levels = [0]
        self.builder_colon = False

    def before(self, token: Token) -> str:
        blank = self._blank(token)
        text, previous = token.text, self.previous
        self.unary = text == "~" or (text == "-" and not _is_operand(previous))
        if token.kind == "word" and text in ("exists", "forall"):
            self.levels[-1] += 1
        elif token.kind == "sign" and text in _CLOSES:
            self.levels.append(1 if text == "{" else 0)
            self.builder_colon = text == "{"
        elif token.kind == "sign" and text in _CLOSES.values() and len(self.levels) > 1:
            self.levels.pop()
        self.awaits_body = "in" if text == "in" else ""
        if text == ":" and self.levels[-1]:
            self.levels[-1] -= 1
            self.awaits_body = "" if self.builder_colon else ":"
            self.builder_colon = False
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
            return " " if self.levels[-1] else ""
        if text in ("(", "["):
            name = previous.kind == "word" and previous.text not in RESERVED
            return "" if name or previous.text in (")", "]") else " "
        return " " if (previous.text, text) != ("{", "}") else ""


def _is_operand(token: Token | None) -> bool:
    """Whether a value or a set ends with this token, so that a ``-`` after it is binary."""
    if token is None or token.kind == "sign":
        return token is not None and token.text in _CLOSES.values()
    return token.text not in RESERVED or token.text in _WORD_OPERANDS


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a line stands in its item: what decides its indentation.

    ``brackets``: the open ones, the item itself first, as pairs: the row they were opened in, and
    how many bodies (of ``let``, ``exists``, ``forall``) have begun on a line of their own in them.
    """

    first_row: int = 0
    brackets: tuple[tuple[int, int], ...] = ((-1, 0),)
    awaits: str = ""  # the token at the end of the line before, where a body follows it

    def at(self, line: _Line, row: int) -> _Place:
        if line.starts_item:
            return _Place(first_row=row)
        if not self.awaits or not line.tokens:
            return self
        chained = self.awaits == "in" and line.tokens[0].text == "let"
        opened, bodies = self.brackets[-1]
        inner = (*self.brackets[:-1], (opened, bodies + (not chained)))
        return _Place(self.first_row, inner)

    def indent(self, line: _Line) -> int:
        if line.starts_item or (not line.tokens and not line.inside):
            return 0
        first = line.tokens[0] if line.tokens and line.tokens[0].kind == "sign" else None
        closes = first is not None and first.text in _CLOSES.values()
        around = self.brackets[:-1] if closes else self.brackets
        rows = {row for row, _ in around[1:]}
        # Brackets that the first line of an item leaves open indent instead of the item.
        own = self.first_row not in rows and not (closes and self.brackets[-1][0] == self.first_row)
        levels = own + len(rows) + sum(bodies for _, bodies in around)
        # A leading set operator hangs in front of its operand, which lines up with the first one.
        hangs = first is not None and (first.text in ("|", "&") or line.binary_minus)
        return 4 * levels - (2 if hangs else 0)

    def after(self, line: _Line, row: int) -> _Place:
        brackets = self.brackets
        for token in line.tokens:
            if token.kind == "sign" and token.text in _CLOSES:
                brackets = (*brackets, (row, 0))
            elif token.kind == "sign" and token.text in _CLOSES.values():
                brackets = brackets[:-1]
        awaits = self.awaits if not line.tokens else line.awaits_body
        return _Place(self.first_row, brackets, awaits)


def _cut(line: _Line, place: _Place) -> list[int]:
    """Return the tokens before which a line that is too long is broken, or [] where it cannot be.

    After the ``=`` of a pattern first; else at all set operators (or ``or``, or ``and``) that
    stand in the fewest brackets; else a bracket is opened up, one item a line.
    """
    if not line.tokens or line.tokens[0].text == "import":
        return []
    found: dict[str, tuple[int, list[int]]] = {}
    depth = 0
    for i, token in enumerate(line.tokens):
        if token.kind == "sign" and token.text in _CLOSES.values():
            depth -= 1
        if token.text in ("|", "&", "or", "and", "=") and i > 0:
            least, places = found.get(token.text, (depth, []))
            if depth <= least:
                found[token.text] = (depth, [i] if depth < least else [*places, i])
        if token.kind == "sign" and token.text in _CLOSES:
            depth += 1
    equals = found.pop("=", (1, []))
    last = len(line.tokens) - 1
    if equals[0] == 0 and equals[1] != [last] and line.tokens[0].text == "pattern":
        return [equals[1][0] + 1]
    for text in ("|", "&", "or", "and"):
        if text in found:
            return found[text][1]
    return _open_up(line.tokens)


def _open_up(tokens: Sequence[Token]) -> list[int]:
    """Return the cuts that put each item of the first bracket with commas on its own line."""
    opened: list[tuple[int, list[int]]] = []
    for i, token in enumerate(tokens):
        if token.kind == "sign" and token.text in _CLOSES:
            opened.append((i, []))
        elif token.text == "," and opened:
            opened[-1][1].append(i + 1)
        elif token.kind == "sign" and token.text in _CLOSES.values() and opened:
            start, commas = opened.pop()
            if commas and start > 0 and not opened and tokens[start].text != "{":
                # Of parameters, only a comma before `name :` parts two; others part choices.
                named = [at for at in commas if tokens[at + 1].text == ":"]
                parameters = tokens[start + 2].text == ":"
                return [start + 1, *(named if parameters else commas), i]
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
