"""Which words are keywords, and where one that may also be a name is meant as a keyword."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.dsl.scanner import RESERVED, Token

ITEM_WORDS = (
    "pattern", "param", "heads", "kv_heads", "space", "input", "fn", "score", "attention", "route",
    "combine", "tune", "import",
)  # fmt: skip
CLAUSE_WORDS = ("on", "heads", "kv_heads", "layers", "require")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")

_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")


def is_name(token: Token) -> bool:
    """Whether the token may be a name."""
    return token.kind == "word" and token.text not in RESERVED


def meant(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word is meant as a keyword where the grammar takes it as one and as a name.

    ``tokens`` are free of comments and close with a token that is not part of the item. What
    follows decides, because a name is never followed by another name: ``sum i in``, ``grid(``,
    ``input doc``; ``roundings`` and ``starts_rule`` do it for the words of ``blocks``. Every other
    word is a keyword wherever it can be one.
    """
    text, after = tokens[at].text, tokens[at + 1]
    match text:
        case "sum" | "count" | "for" | "union":
            last = at + 2 >= len(tokens)
            named = is_name(after) and after.text not in CLAUSE_WORDS and not last
            return named or binds(tokens, at)
        case "grid":
            return after.text == "("
        case "input":
            return is_name(after)
    return text not in ("blocks", "any", "all", "density")


def binds(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word starts ``sum i in``, ``count i in``, ``for i in`` or ``union over i in``."""
    at += tokens[at].text == "union" and tokens[at + 1].text == "over"
    return (
        tokens[at].text in ("sum", "count", "for", "over")
        and at + 2 < len(tokens)
        and is_name(tokens[at + 1])
        and tokens[at + 2].text == "in"
    )


def starts_rule(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word that may be the rule of a ``blocks`` is it: ``any)``, ``count >= 3)``."""
    after = tokens[at + 1].text
    if tokens[at].text in ("any", "all"):
        return after == ")"
    return tokens[at].text in ("count", "density") and after in COMPARISONS


def roundings(tokens: Sequence[Token]) -> frozenset[int]:
    """Return the places of the ``blocks`` that round a set; the others name a pattern.

    Such a ``blocks(...)`` starts as only a set does, or has a rule as its last argument.
    """
    found: set[int] = set()
    opened: list[tuple[int, int, int]] = []  # where a bracket is, its commas, its last argument
    for at, token in enumerate(tokens[:-1]):
        if token.text in _OPENING:
            opened.append((at, 0, at + 1))
            if tokens[at - 1].text == "blocks" and tokens[at + 1].text in ("{", "~"):
                found.add(at - 1)
        elif token.text == "," and opened:
            bracket, commas, _ = opened[-1]
            opened[-1] = bracket, commas + 1, at + 1
        elif token.text in _CLOSING and opened:
            bracket, commas, last = opened.pop()
            if commas and tokens[bracket - 1].text == "blocks" and starts_rule(tokens, last):
                found.add(bracket - 1)
    return frozenset(found)
