"""Text -> the same file in the one layout: comments kept, line breaks mostly the author's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnc.dsl.diagnostics import CompileError
from attnc.dsl.parser import parse, split_items
from attnc.dsl.scanner import RESERVED, Token, scan
from attnc.dsl.source import Source
from attnc.dsl.words import CLAUSE_WORDS, COMPARISONS, binds

MAX_COLUMNS = 100
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_WORD_OPERANDS = ("true", "false")
# Items whose `=` ends a header, and the words in them that may stand on a line of their own.
_DEFINITIONS = (
    "pattern", "score", "attention", "route", "combine", "tune", "space", "fn", "input",
)  # fmt: skip
_QUANTIFIERS = ("exists", "forall")
_HANGING = {"|": 2, "&": 2, "++": 3}  # set and space operators, with the blank after them


def format_file(text: str, name: str = "<text>") -> str:
    """Return the text in the standard layout; formatting twice changes nothing more.

    A line that is too long is broken after the ``=`` of a definition, else before its clauses,
    else before a set operator or ``++``, else before ``and`` or ``or``, else after a comma. No
    token is added, removed or moved, so the meaning cannot change.

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
    clauses: frozenset[int] = frozenset()  # where clauses of a header start
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
            _Line(self.tokens[a:b], self.blanks[a:b], clauses=self.clauses)
            for a, b in zip([0, *cut], ends, strict=True)
        ]
        pieces[0].starts_item, pieces[0].blank_before = self.starts_item, self.blank_before
        pieces[0].binary_minus = self.binary_minus
        pieces[-1].comment, pieces[-1].awaits_body = self.comment, self.awaits_body
        return pieces

    def is_clause(self, at: int = 0) -> bool:
        """Whether a clause of a header starts at a token of this line."""
        return at < len(self.tokens) and self.tokens[at].span.start in self.clauses

    def text_at(self, at: int) -> str:
        """Return the text of a token, or "" behind the last one."""
        return self.tokens[at].text if at < len(self.tokens) else ""


def _lines(tokens: Sequence[Token], starts: set[int]) -> list[_Line]:
    """Return the lines as the author broke them, with the blanks that belong between tokens."""
    lines: list[_Line] = []
    spacing = _Spacing()
    code = [token for token in tokens if token.kind != "comment"]
    binders = {token.span.start for i, token in enumerate(code[:-1]) if binds(code, i)}
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
            line.binary_minus = token.text == "-" and spacing.operand
        if token.text in CLAUSE_WORDS and token.kind == "word" and spacing.operand:
            line.clauses |= {token.span.start}
        line.blanks.append(spacing.before(token, token.span.start in binders))
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
        self.before_previous: Token | None = None
        self.unary = False  # the previous token is a sign that belongs to what follows
        # A value, a set or a name ends with the previous token, so that a `-` now is binary.
        self.operand = False
        self.awaits_body = ""  # the token just read, if it is one that a body follows
        # For each open bracket, how many colons with blanks on both sides it waits for: those of
        # its quantifiers, and in braces the one of the builder, which is read first. The braces of
        # a route or a tune hold clauses.
        self.levels = [0]
        self.item = ""
        self.builder_colon = False

    def before(self, token: Token, binder: bool) -> str:
        """Return the blanks before a token; ``binder``: it binds a variable, as ``exists`` does."""
        blank = self._blank(token)
        text = token.text
        self.item = self.item or text
        builds = text == "{" and self.item not in ("route", "tune")
        self.unary = text == "~" or (text in ("-", "*") and not self.operand)
        if binder or (token.kind == "word" and text in ("exists", "forall")):
            self.levels[-1] += 1
        elif token.kind == "sign" and text in _CLOSES:
            self.levels.append(int(builds))
            self.builder_colon = builds
        elif token.kind == "sign" and text in _CLOSES.values() and len(self.levels) > 1:
            self.levels.pop()
        names_value = self.before_previous is not None and self.before_previous.text == "let"
        self.awaits_body = text if text == "in" or (text == "=" and names_value) else ""
        if text == ":" and self.levels[-1]:
            self.levels[-1] -= 1
            self.awaits_body = "" if self.builder_colon else ":"
            self.builder_colon = False
        self.operand = self._ends_operand(token)
        self.before_previous, self.previous = self.previous, token
        return blank

    def _ends_operand(self, token: Token) -> bool:
        if token.kind != "word":
            return token.kind != "sign" or token.text in _CLOSES.values()
        if token.text in RESERVED:
            return token.text in _WORD_OPERANDS
        # The first word of an item is a keyword, and so is a word behind an operand.
        return self.previous is not None and not self.operand

    def _blank(self, token: Token) -> str:
        previous, text = self.previous, token.text
        if previous is None or self.unary or "." in (previous.text, text):
            return ""
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
            name = previous.kind == "word" and self.operand
            return "" if name or previous.text in (")", "]") else " "
        return " " if (previous.text, text) != ("{", "}") else ""


_ITEM = ((-1, 0),)  # an item without open brackets


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a line stands in its item: what decides its indentation.

    ``brackets``: the open ones, the item itself first, as pairs: the row they were opened in, and
    how many bodies (of ``let``, ``exists``, ``forall``, ...) have begun on a line of their own in
    them.
    """

    first_row: int = 0
    brackets: tuple[tuple[int, int], ...] = _ITEM
    awaits: str = ""  # the token at the end of the line before, where a body follows it
    row: int = -1  # of that line
    quantifier: bool = False  # that line starts with `exists` or `forall`
    header: bool = False  # before the `=` of a definition
    clause_row: int = -1  # the row of the clause of the header that began on a line of its own
    value: int = 0  # how many brackets are open around the value of a `let`, on lines of its own

    def at(self, line: _Line, row: int) -> _Place:
        if line.starts_item:
            return _Place(first_row=row, header=line.tokens[0].text in _DEFINITIONS)
        if self.header and line.is_clause():
            return replace(self, brackets=_ITEM, awaits="", clause_row=row)
        if not self.awaits or not line.tokens:
            return self
        word = line.tokens[0].text
        if self.awaits == "=":
            opened, bodies = self.brackets[-1]
            inner = (*self.brackets[:-1], (opened, bodies + 1))
            return replace(self, brackets=inner, awaits="", value=len(inner))
        chained = word == "let" if self.awaits == "in" else self.quantifier and word in _QUANTIFIERS
        opened, bodies = self.brackets[-1]
        # A line indents once: as the start of an item or clause, for a bracket that it leaves open,
        # or for a body that it awaits.
        indented = self.row in ((self.first_row, self.clause_row) if opened < 0 else (opened,))
        inner = (*self.brackets[:-1], (opened, bodies + (not chained and not indented)))
        return replace(self, brackets=inner, awaits="")

    def indent(self, line: _Line) -> int:
        if line.starts_item or (not line.tokens and not line.inside):
            return 0
        first = line.tokens[0] if line.tokens and line.tokens[0].kind == "sign" else None
        closes = first is not None and first.text in _CLOSES.values()
        around = self.brackets[:-1] if closes else self.brackets
        rows = {row for row, _ in around[1:]}
        # Brackets that the first line of an item leaves open indent instead of the item.
        if closes:
            rows.add(self.brackets[-1][0])
        own = int(self.first_row not in rows)
        # So does a clause of a header, for the lines after its first one.
        own += self.clause_row >= 0 and self.clause_row not in rows and not line.is_clause()
        # A line that goes on with a comparison belongs to the one before it.
        goes_on = first is not None and first.text in COMPARISONS
        levels = own + len(rows) - closes + goes_on + sum(bodies for _, bodies in around)
        # A leading set operator hangs in front of its operand, which lines up with the first one.
        hangs = 0 if first is None else 2 * line.binary_minus + _HANGING.get(first.text, 0)
        return 4 * levels - hangs

    def after(self, line: _Line, row: int) -> _Place:
        brackets, header, clause_row = self.brackets, self.header, self.clause_row
        first_row = self.first_row
        for token in line.tokens:
            if header and token.text == "=" and len(brackets) == 1:
                brackets, header, clause_row = _ITEM, False, -1
                first_row = row  # brackets that this line leaves open indent instead of the item
            if token.kind == "sign" and token.text in _CLOSES:
                brackets = (*brackets, (row, 0))
            elif token.kind == "sign" and token.text in _CLOSES.values():
                brackets = brackets[:-1]
        if not line.tokens:
            return self
        value = self.value if self.value <= len(brackets) else 0
        if value == len(brackets) and line.awaits_body == "in":
            opened, bodies = brackets[-1]
            brackets, value = (*brackets[:-1], (opened, bodies - 1)), 0
        return _Place(
            first_row, brackets, line.awaits_body, row, header=header, clause_row=clause_row,
            quantifier=line.tokens[0].text in _QUANTIFIERS, value=value,
        )  # fmt: skip


_BREAKS = ("|", "&", "++", "or", "and")  # where a line may be broken, in this order


def _cut(line: _Line, place: _Place) -> list[int]:
    """Return the tokens before which a line that is too long is broken, or [] where it cannot be.

    After the ``=`` of a definition first, then before its clauses; else at all set operators (or
    ``++``, or ``or``, or ``and``) that stand in the fewest brackets; else a bracket is opened up,
    one item a line.
    """
    if not line.tokens or line.tokens[0].text == "import":
        return []
    if place.header:
        cuts = _cut_header(line, place)
        if cuts:
            return cuts
    if line.tokens[0].text == "softmax" and line.text_at(1) == "(":
        return _open_up(line)
    found: dict[str, tuple[int, list[int]]] = {}
    depth = 0
    for i, token in enumerate(line.tokens):
        if token.kind == "sign" and token.text in _CLOSES.values():
            depth -= 1
        if token.text in _BREAKS and i > 0:
            least, places = found.get(token.text, (depth, []))
            if depth <= least:
                found[token.text] = (depth, [i] if depth < least else [*places, i])
        if token.kind == "sign" and token.text in _CLOSES:
            depth += 1
    for text in _BREAKS:
        if text in found:
            return found[text][1]
    return _open_up(line)


def _cut_header(line: _Line, place: _Place) -> list[int]:
    """Return the cut after the ``=`` that ends a header, else before its clauses or the ``->``."""
    clauses, arrows = list[int](), list[int]()
    depth = len(place.brackets) - 1
    for i, token in enumerate(line.tokens):
        if token.kind == "sign" and token.text in (*_CLOSES, *_CLOSES.values()):
            depth += 1 if token.text in _CLOSES else -1
        elif depth == 0 and token.text == "=":
            return [i + 1] if i + 1 < len(line.tokens) else clauses or arrows
        elif depth == 0 and i > 0 and line.is_clause(i):
            clauses.append(i)
        elif depth == 0 and i > 0 and token.text == "->":
            arrows.append(i)
    return clauses or arrows


def _open_up(line: _Line) -> list[int]:
    """Return the cuts that put each item of the first bracket with commas on its own line."""
    opened: list[tuple[int, list[int]]] = []
    choices = False  # within `one of a, b`, whose commas part no parameters
    for i, token in enumerate(line.tokens):
        if token.kind == "sign" and token.text in _CLOSES:
            opened.append((i, []))
        elif token.text == "of" and line.text_at(i - 1) == "one":
            choices = True
        elif token.text == "," and opened:
            named = i + 2 + (line.text_at(i + 1) == "input" and line.text_at(i + 2) != ":")
            choices = choices and line.text_at(named) != ":"
            if not choices:
                opened[-1][1].append(i + 1)
        elif token.kind == "sign" and token.text in _CLOSES.values() and opened:
            start, commas = opened.pop()
            choices = False
            if commas and start > 0 and not opened and line.text_at(start) != "{":
                return [start + 1, *commas, i]
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
