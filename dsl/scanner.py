"""Text -> tokens with spans, comments included; what is no token -> diagnostics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.source import Source, Span

Kind: TypeAlias = Literal["word", "number", "string", "sign", "comment", "bad", "end"]

MAX_NUMBER_DIGITS = 64
MAX_NAME_CHARS = 100

# Words that are never names. Every other keyword is one only where the grammar can take it.
RESERVED = frozenset(
    ("and", "or", "not", "div", "mod", "in", "exists", "forall", "if", "then", "else", "let",
     "true", "false")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``first`` where nothing but blanks stands before it on its line."""

    kind: Kind
    text: str
    span: Span
    first: bool


# What people write out of habit -> what to write here.
_HABITS = {
    "//": "`div`", "%": "`mod`", "&&": "`and` between conditions, `&` between sets",
    "||": "`or` between conditions, `|` between sets", "!": "`not`", "^": "`**`", "<>": "`!=`",
    "=>": "`>=`, or `->` between query and key", "===": "`==`", ":=": "`=`", ";": "a new line",
    "\u2264": "`<=`", "\u2265": "`>=`", "\u2260": "`!=`", "\u2227": "`and`", "\u2228": "`or`",
    "\u00ac": "`not`", "\u00d7": "`*`", "\u22c5": "`*`", "\u00f7": "`div`", "\u2212": "`-`",
    "\u2192": "`->`", "\u2208": "`in`", "\u222a": "`|`", "\u2229": "`&`", "\u2203": "`exists`",
    "\u2200": "`forall`", "'": 'double quotes, `"`',
    "\u201c": 'a straight quote, `"`', "\u201d": 'a straight quote, `"`',
    "\u00a0": "an ordinary space",
}  # fmt: skip

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\f]+)
      | (?P<newline>\r\n|\n|\r)
      | (?P<comment>\#[^\r\n]*)
      | (?P<string>"[^"\r\n]*")
      | (?P<openstring>"[^"\r\n]*)
      | (?P<number>[0-9][0-9_]*(?:\.[0-9][0-9_]*)?)
      | (?P<word>[^\W\d][\w\u0300-\u036f]*)
      | (?P<habit>===|//|&&|\|\||<>|=>|:=)
      | (?P<sign>->|\*\*|\.\.|\+\+|==|!=|<=|>=|[<>+\-*/()\[\]{}:,=|&~.])
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_GOOD_NUMBER = re.compile(r"[0-9]+(?:_[0-9]+)*(?:\.[0-9]+(?:_[0-9]+)*)?")
_ALNUM = re.compile(r"\w+")


def scan(source: Source) -> tuple[list[Token], list[Diagnostic]]:
    """Return the tokens, closed by an ``end`` token, and what is wrong with the characters.

    A stretch that is no token becomes a ``bad`` token, so that the parser skips its item.
    """
    text, tokens, found = source.text, list[Token](), list[Diagnostic]()
    at = 1 if text.startswith("\ufeff") else 0
    line, line_start, first = 1, at, True
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None
        group, stop = match.lastgroup, match.end()
        if group == "newline":
            line, line_start, first = line + 1, stop, True
        elif group != "blank":
            kind, problem = _classify(group or "", match.group())
            if group == "number" and (tail := _ALNUM.match(text, stop)):
                stop, kind = tail.end(), "bad"
                problem = ("ATT0115", f"`{_short(text[at:stop])}` is not a number",
                           "write a plain decimal number, such as `1_000` or `0.25`, and put a "
                           "blank or an operator before a name")  # fmt: skip
            elif group == "other":
                while stop < len(text) and text[stop] == text[at]:
                    stop += 1  # one finding for a run of the same stray sign
            span = Span(source, at, stop, line, at - line_start + 1)
            tokens.append(Token(kind, text[at:stop], span, first))
            if problem is not None:
                code, message, fix = problem
                found.append(Diagnostic(code=code, message=message, span=span, help=fix))
            first = False
        at = stop
    tokens.append(Token("end", "", Span(source, at, at, line, at - line_start + 1), True))
    return tokens, found


def _classify(group: str, text: str) -> tuple[Kind, tuple[str, str, str] | None]:
    """Return the kind of a match, and code, message and help where it is not a legal token."""
    match group:
        case "comment" | "sign" | "string":
            return group, None
        case "number":
            if sum(c.isdigit() for c in text) > MAX_NUMBER_DIGITS:
                limit = f"numbers have at most {MAX_NUMBER_DIGITS} digits"
                return "bad", ("ATT0105", "this number is too long", limit)
            if not _GOOD_NUMBER.fullmatch(text):
                fix = "put a single `_` between two digits, as in `1_000`"
                return "bad", ("ATT0115", f"`{text}` has a misplaced `_`", fix)
            return "number", None
        case "word":
            if not text.isascii():
                fix = "names use the letters a to z and A to Z, digits and `_`"
                return "bad", ("ATT0112", f"the name `{_short(text)}` has other letters", fix)
            if len(text) > MAX_NAME_CHARS:
                fix = f"a name has at most {MAX_NAME_CHARS} characters"
                return "bad", ("ATT0112", f"the name `{_short(text)}` is too long", fix)
            return "word", None
        case "openstring":
            return "bad", ("ATT0110", "this text has no closing quote", 'end it with `"`')
        case _:
            fix = f"write {_HABITS[text]}" if text in _HABITS else ""
            if group == "habit":
                return "bad", ("ATT0102", f"`{text}` is not an operator here", fix)
            shown = text if text.isprintable() and text != "`" else f"U+{ord(text):04X}"
            return "bad", ("ATT0102", f"the character `{shown}` has no meaning here", fix)


def _short(text: str) -> str:
    return text if len(text) <= 32 else text[:29] + "..."
