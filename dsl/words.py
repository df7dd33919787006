"""Which words are keywords, and where one that may also be a name is meant as a keyword."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.dsl.scanner import RESERVED, Token

ITEM_WORDS = (
    "pattern", "param", "heads", "kv_heads", "space", "input", "fn", "score", "attention", "import",
)  # fmt: skip
LATER_WORDS = ("route",)
CLAUSE_WORDS = ("on", "heads", "kv_heads", "layers", "require")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")

_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")


def is_name(token: Token) -> bool:
    """Whether the token may be a name."""
    return token.kind == "word" and token.text not in RESERVED


def meant(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word is meant as a keyword where the grammar takes it as one and as a name.

    ``tokens`` are free of comments and close with a token that is not part of the item. What
    follows decides, because a name is never followed by another name: ``sum i in``, ``blocks(...,
    any)``, ``grid(``, ``input doc``. Every other word is a keyword wherever it can be one.
    """
    text, after = tokens[at].text, tokens[at + 1]
    match text:
        case "sum" | "count" | "for" | "union":
            return binds(tokens, at)
        case "grid":
            return after.text == "("
        case "input":
            return is_name(after)
        case "blocks":
            return after.text == "(" and _is_rounding(tokens, at + 2)
    return text not in ("any", "all", "density")


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


def _is_rounding(tokens: Sequence[Token], start: int) -> bool:
    """Whether the arguments from ``start`` are those of ``blocks``, not those of a pattern."""
    if tokens[start].text in ("{", "~"):
        return True
    depth, commas, last = 0, 0, start
    for at in range(start, len(tokens) - 1):
        text = tokens[at].text
        depth += (text in _OPENING) - (text in _CLOSING)
        if depth < 0:
            break
        if text == "," and depth == 0:
            commas, last = commas + 1, at + 1
    return commas > 1 and starts_rule(tokens, last)
