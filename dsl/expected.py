"""A token the parser could not take -> what was expected there, in the words of a reader."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.lalr import load_table
from attnc.dsl.scanner import RESERVED, Token
from attnc.dsl.suggest import closest
from attnc.dsl.words import CLAUSE_WORDS, ITEM_WORDS

_CLOSES = {"(": ")", "[": "]", "{": "}"}

# Terminals -> the words for them. A group is named when its marker is acceptable, and then hides
# its members: "an expression" instead of the sixteen tokens that can start one.
_GROUPS = (
    ("NUMBER", "an expression", ("NUMBER", "NAME", "LPAR", "LSQB", "MINUS", "IF", "LET", "NOT",
                                 "EXISTS", "FORALL", "TRUE", "FALSE", "SUM", "COUNT", "FOR")),
    ("ANY", "`any`, `all`, `count >= ...` or `density >= ...`", ("ANY", "ALL", "COUNT", "DENSITY")),
    ("TILDE", "a set of pairs", ("LBRACE", "TILDE", "LPAR", "NAME", "IF", "UNION", "BLOCKS")),
    ("GRID", "a grid or the name of a space", ("GRID", "NAME")),
    ("RATIONAL", "a type", ("INT", "BOOL", "RATIONAL", "REAL", "PATTERN", "LIST", "ONE")),
    ("SLASH", "an operator", ("STAR", "SLASH", "DIV", "MOD", "PLUS", "MINUS", "COMPARE", "IN",
                              "NOT", "AND", "OR", "POWER", "LPAR", "LSQB", "DOT")),
    ("COMPARE", "an operator", ("COMPARE", "IN", "NOT", "AND", "OR")),
    ("VBAR", "`|`, `&` or `-`", ("VBAR", "AMPERSAND", "MINUS", "LPAR", "LSQB")),
    ("AND", "`and` or `or`", ("AND", "OR")),
    ("ON", "a clause", ("ON", "HEADS", "KV_HEADS", "LAYERS", "REQUIRE")),
)  # fmt: skip
_WORDS = {
    "NAME": "a name", "STRING": 'a file name in quotes, `"file.attn"`', "SEP": "`,`",
    "COMMA": "`,`", "COMPARE": "a comparison", "EQUAL": "`=`", "COLON": "`:`", "LPAR": "`(`",
    "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`", "VBAR": "`|`",
    "AMPERSAND": "`&`", "MINUS": "`-`", "PLUS": "`+`", "STAR": "`*`", "SLASH": "`/`",
    "TILDE": "`~`", "DOTS": "`..`", "ARROW": "`->`", "POWER": "`**`",
    "CONCAT": "`++`", "DOT": "`.`", "$END": "the end of this item",
}  # fmt: skip
_TYPES = {
    "float": "real", "double": "real", "number": "real", "integer": "int", "long": "int",
    "boolean": "bool", "fraction": "rational",
}  # fmt: skip
_NO_NAMES = "the items of a list have no names"


def unexpected(chunk: Sequence[Token], at: int, accepted: frozenset[str]) -> Diagnostic:
    """Return the diagnostic for token ``at`` of a chunk, where only ``accepted`` could stand."""
    token = chunk[at]
    bracket = _bracket(chunk, at)
    if bracket is not None:
        return bracket
    found = "the end of this item" if at == len(chunk) - 1 else f"`{_short(token.text)}`"
    if token.kind == "end":
        found = "the end of the file"
    span = token.span
    if at == len(chunk) - 1 and at > 0:
        span = chunk[at - 1].span  # point at what is unfinished, not at the next item
    code, message, fix = _habit(chunk, at, accepted)
    if message == _NO_NAMES:
        span = chunk[at + 1].span
    if not code:
        code, message = "ATT0101", f"expected {_list(accepted)}, found {found}"
    return Diagnostic(code=code, message=message, span=span, help=fix)


def unknown_item(token: Token) -> Diagnostic:
    """Return the diagnostic for a token that starts no item."""
    near = closest(token.text, ITEM_WORDS) if token.kind == "word" else None
    items = ", ".join(f"`{word}`" for word in ITEM_WORDS)
    return Diagnostic(
        code="ATT0111", span=token.span,
        message=f"expected an item, found `{_short(token.text)}`",
        notes=(f"an item starts with one of {items}",),
        help=_not_an_item(token.text, near),
    )  # fmt: skip


def _not_an_item(text: str, near: str | None) -> str:
    if text in CLAUSE_WORDS:
        return f"`{text}` is a clause: it stands between the name of a pattern and its `=`"
    return f"did you mean `{near}`?" if near else "a file is a list of items"


def _list(accepted: frozenset[str]) -> str:
    rest, parts = set(accepted), list[str]()
    for marker, words, members in _GROUPS:
        if marker in rest:
            parts.append(words)
            rest -= set(members)
    singles = (_WORDS.get(name, f"`{name.lower()}`") for name in sorted(rest))
    parts = sorted(dict.fromkeys((*singles, *parts)), key=lambda words: words.startswith("the "))
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _bracket(chunk: Sequence[Token], at: int) -> Diagnostic | None:
    """Blame a bracket where the parser stopped at a wrong closing one, or at the end."""
    open_ones: list[Token] = []
    for token in chunk[:at]:
        if token.kind == "sign" and token.text in _CLOSES:
            open_ones.append(token)
        elif token.kind == "sign" and token.text in _CLOSES.values():
            open_ones.pop()
    token = chunk[at]
    if at == len(chunk) - 1 and open_ones:
        opener = open_ones[-1]
        return Diagnostic(
            code="ATT0109", span=opener.span, message=f"this `{opener.text}` is never closed",
            help=f"add `{_CLOSES[opener.text]}`",
        )  # fmt: skip
    if token.kind == "sign" and token.text in _CLOSES.values():
        if not open_ones:
            return Diagnostic(
                code="ATT0109", span=token.span, message=f"this `{token.text}` closes nothing",
                help="remove it, or add the bracket that it should close",
            )  # fmt: skip
        opener = open_ones[-1]
        if _CLOSES[opener.text] != token.text:
            where = f"`{opener.text}` of line {opener.span.line}, column {opener.span.column}"
            return Diagnostic(
                code="ATT0109", span=token.span,
                message=f"this `{token.text}` cannot close {where}",
                help=f"close it with `{_CLOSES[opener.text]}` first",
            )  # fmt: skip
    return None


def _habit(chunk: Sequence[Token], at: int, accepted: frozenset[str]) -> tuple[str, str, str]:
    """Return code, message and help for a known slip, or empty code and maybe a help."""
    token, text = chunk[at], chunk[at].text
    in_expression = "SLASH" in accepted or "AND" in accepted
    in_set = "VBAR" in accepted and not in_expression
    if in_expression and text in ("|", "&", "~"):
        word = {"|": "or", "&": "and", "~": "not"}[text]
        return "ATT0113", f"`{text}` combines sets, not conditions", f"write `{word}`"
    named = at + 2 < len(chunk) and chunk[at + 2].text == ":"
    if text == "," and named and "COMMA" in accepted and "SEP" not in accepted:
        return "ATT0101", _NO_NAMES, f"write the value of `{_short(chunk[at + 1].text)}` alone"
    in_braces = any(t.text == "{" for t in chunk[:at])
    if in_braces and in_expression and text == "=" and "COMPARE" in accepted:
        return "ATT0113", "`=` does not compare", "write `==`"
    if in_set and text in ("or", "and"):
        sign = {"or": "|", "and": "&"}[text]
        return "ATT0113", f"`{text}` joins conditions, not sets", f"write `{sign}`"
    if "TILDE" in accepted and text == "not":
        return "ATT0113", "`not` negates a condition, not a set", "write `~`"
    if text == "," and "SEP" in accepted:
        softmax = any(t.text == "softmax" for t in chunk[:at])
        fix = "`over: SET`, `sink: NUMBER` or `scale: NUMBER`" if softmax else "`name: type`"
        return "ATT0101", "no name and `:` follow this `,`", f"write {fix}"
    if "CONCAT" in accepted and text in ("+", "|", ","):
        return "ATT0113", f"`{text}` does not join spaces", "write `++`"
    if text == "++" and (in_set or in_expression):
        kind, sign = ("sets", "|") if in_set else ("numbers", "+")
        return "ATT0113", f"`++` joins spaces, not {kind}", f"write `{sign}`"
    if "ON" in accepted and text == "in":
        return "", "", "a pattern is `on` a space: `pattern p on image`"
    if in_set and text in CLAUSE_WORDS:
        return "ATT0101", f"`{text}` stands behind the `=`", "write clauses before the `=`"
    if "ON" in accepted and text in CLAUSE_WORDS:
        fix = "write it in the pattern that this one uses"
        return "ATT0101", f"`{text}` is a clause of patterns alone", fix
    if text == "{" and chunk[at - 1].text == "in":
        return "", "", "give the set a name, in a pattern of its own, and write that name here"
    if "INT" in accepted and text in _TYPES:
        return "", "", f"write `{_TYPES[text]}`"
    if accepted == {"LBRACE"}:
        return "", "", "write a number for each pair: `{ q -> k : ... }`"
    if accepted == {"COLON"} and text in (")", ",", "="):
        return "", "", f"say what type it has: `{_short(chunk[at - 1].text)}: int`"
    if in_set and text in ("+", "*"):
        sign = {"+": "|", "*": "&"}[text]
        return "ATT0113", f"`{text}` is for numbers, not for sets", f"write `{sign}`"
    if "TILDE" in accepted and token.kind == "word" and text in ("exists", "forall", "let"):
        fix = "write it inside braces: `{ q -> k : ... }`"
        return "ATT0113", f"`{text}` belongs in a condition, not between sets", fix
    if text in RESERVED and "NAME" in accepted and "NUMBER" not in accepted:
        fix = f"choose another name; `{text}` is a word of the language"
        return "ATT0101", f"`{text}` cannot be a name", fix
    if "NUMBER" in accepted and text == "not":
        return "", "", "put the negated condition in parentheses: `(not a)`"
    if text == "in" and at == len(chunk) - 1:
        return "", "", ""
    if token.kind == "word" and text not in load_table().words:
        keywords = [name.lower() for name in accepted if name not in _WORDS and name != "$END"]
        near = closest(text, (k for k in keywords if k not in ("compare", "number", "sep")))
        if near is not None:
            return "", "", f"did you mean `{near}`?"
    return "", "", ""


def _short(text: str) -> str:
    return text if len(text) <= 32 else text[:29] + "..."
