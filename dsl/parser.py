"""Tokens -> AST, item by item: a syntax error costs one item, and the rest is still read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnc.dsl import expected, limits
from attnc.dsl import nodes as ast
from attnc.dsl.build_ast import CALLBACKS, Terminal
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.lalr import END, Machine, Rejected, load_table
from attnc.dsl.scanner import RESERVED, Token, scan
from attnc.dsl.source import Source
from attnc.dsl.words import (
    CLAUSE_WORDS,
    COMPARISONS,
    ITEM_WORDS,
    binds,
    is_name,
    meant,
    roundings,
    starts_rule,
)

MAX_ERRORS = 20

_NOT_AFTER_A_NAME = ("if", "let", "exists", "forall", "true", "false")
_PAIRS = (("one", "of"), ("union", "over"))


def parse(source: Source) -> tuple[ast.File | None, tuple[Diagnostic, ...]]:
    """Read a whole file. Returns None for the AST exactly where some diagnostic is an error."""
    refused = limits.check_text(source)
    if refused is not None:
        return None, (refused,)
    tokens, found = scan(source)
    too_deep = limits.check_nesting(tokens)
    if too_deep is not None:
        return None, (too_deep,)
    items: list[ast.Item] = []
    for chunk in split_items(tokens):
        if len(found) > MAX_ERRORS:
            break
        item = _parse_item(chunk)
        if isinstance(item, Diagnostic):
            found.append(item)
        elif item is not None:
            items.append(item)
    if found:
        return None, _in_order(found)
    end = tokens[-1].span
    span = tokens[0].span.to(end)
    return ast.File(items=tuple(_with_docs(items, tokens)), span=span), ()


def parse_expression(text: str, name: str = "<expression>") -> ast.Expr:
    """Read one expression, such as the printed form of an IR predicate.

    Raises: CompileError with the diagnostics of a file of the same text.
    """
    source = Source(name, text)
    refused = limits.check_text(source)
    if refused is not None:
        raise CompileError((refused,))
    tokens, found = scan(source)
    too_deep = limits.check_nesting(tokens)
    if too_deep is not None:
        raise CompileError((too_deep,))
    if found:
        raise CompileError(_in_order(found))
    result = _run(_significant(tokens), "expr")
    if isinstance(result, Diagnostic):
        raise CompileError((result,))
    return result  # type: ignore[no-any-return]


def _in_order(found: list[Diagnostic]) -> tuple[Diagnostic, ...]:
    found = sorted(found, key=lambda d: d.span.start)
    if len(found) <= MAX_ERRORS:
        return tuple(found)
    more = Diagnostic(
        code="ATT0100", severity="note", span=found[MAX_ERRORS].span,
        message=f"there are errors after the first {MAX_ERRORS}; this is where they go on",
        help="fix the errors above first",
    )  # fmt: skip
    return (*found[:MAX_ERRORS], more)


# --------------------------------------------------------------------------------------- items


def _significant(tokens: Sequence[Token]) -> list[Token]:
    return [t for t in tokens if t.kind != "comment"]


_HEADED = ("pattern", "score", "attention", "route", "combine")


def split_items(tokens: Sequence[Token]) -> list[list[Token]]:
    """Cut the tokens where an item starts; every chunk ends with the token after it.

    Two words side by side occur at the start of an item and nearly nowhere inside one (`one of`,
    `sum i`, the clauses of a pattern), so a cut needs no parsing and survives an unclosed bracket.
    """
    significant = _significant(tokens)
    if len(significant) == 1:
        return []
    starts = [0]
    head_open, depth = False, 0  # head_open: in a pattern or the like, before its `=`
    for i, token in enumerate(significant[:-1]):
        if i == 0 or _starts_item(significant, i, head_open, depth):
            if i > 0:
                starts.append(i)
            head_open, depth = token.text in _HEADED, 0
        if token.kind == "sign":
            if token.text in "([{":
                depth += 1
            elif token.text in ")]}":
                depth = max(0, depth - 1)
            elif token.text == "=" and depth == 0:
                head_open = False
    ends = [*starts[1:], len(significant) - 1]
    return [significant[a : b + 1] for a, b in zip(starts, ends, strict=True)]


def _starts_item(tokens: Sequence[Token], i: int, head_open: bool, depth: int) -> bool:
    token, after = tokens[i], tokens[i + 1]
    if not token.first or not is_name(token):
        return False
    margin = token.span.column == 1
    if head_open and depth == 0 and token.text in CLAUSE_WORDS:
        return False
    if head_open and depth > 0 and token.text == "input" and not margin:
        return False
    if token.text in ITEM_WORDS and margin and not after.first:
        # `pattern = ...`, `heads : 4`, `param if: int`: an item whose name is missing or refused.
        if after.text == ":" and depth == 0:
            return True
        if after.text in ("=", *_NOT_AFTER_A_NAME) and tokens[i - 1].text != "let":
            return True
    if not is_name(after) or after.first or (token.text, after.text) in _PAIRS:
        return False
    if binds(tokens, i):
        return False
    return token.text in ITEM_WORDS or margin


def _parse_item(chunk: list[Token]) -> ast.Item | Diagnostic | None:
    if any(t.kind == "bad" for t in chunk[:-1]):
        return None  # the scanner has said why
    first = chunk[0]
    if first.text in ITEM_WORDS:
        return _run(chunk, "item")  # type: ignore[no-any-return]
    return expected.unknown_item(first)


_DOCUMENTED = (ast.PatternDef, ast.Fn, ast.Score, ast.Attention, ast.Route, ast.Combine)


def _with_docs(items: list[ast.Item], tokens: Sequence[Token]) -> list[ast.Item]:
    """Give each definition the comment block that ends on the line right above it."""
    from dataclasses import replace

    comments = {t.span.line: t.text for t in tokens if t.kind == "comment" and t.first}
    result: list[ast.Item] = []
    for item in items:
        if isinstance(item, _DOCUMENTED):
            line, block = item.span.line - 1, list[str]()
            while line in comments:
                block.append(comments[line].lstrip("#").removeprefix(" ").rstrip())
                line -= 1
            item = replace(item, doc="\n".join(reversed(block)).strip("\n")) if block else item
        result.append(item)
    return result


# --------------------------------------------------------------------------------------- LALR


_COMPARISON_TERMINALS = {sign: "COMPARE" for sign in COMPARISONS}


def _run(chunk: Sequence[Token], start: str) -> Any:
    """Parse one chunk. Returns its AST node, or the diagnostic of its first error."""
    table = load_table()
    words = table.words | _COMPARISON_TERMINALS
    rounded = roundings(chunk)
    machine = Machine(table, start, CALLBACKS)
    try:
        for at, token in enumerate(chunk[:-1]):
            kind = _terminal(chunk, at, words, rounded, machine.choices)
            machine.feed(kind, Terminal(kind, token))
        at = len(chunk) - 1
        node = machine.feed(END, Terminal(END, chunk[at]))
    except Rejected:
        return expected.unexpected(chunk, at, _accepted_before(chunk, at, start, words))
    except limits.Refused as refused:
        return refused.diagnostic
    too_deep = limits.check_depth(node)
    return node if too_deep is None else too_deep


def _terminal(
    chunk: Sequence[Token], at: int, words: dict[str, str], rounded: frozenset[int], accepted: Any
) -> str:
    """Return the terminal of a token; a soft keyword is one only where the parser can take it."""
    token = chunk[at]
    match token.kind:
        case "number":
            return "NUMBER"
        case "string":
            return "STRING"
        case "word":
            keyword = words.get(token.text)
            if keyword is None or token.text in RESERVED:
                return keyword or "NAME"
            if keyword not in accepted:
                return "NAME"
            if "NAME" not in accepted or meant(chunk, at):
                return keyword
            if at in rounded or ("ANY" in accepted and starts_rule(chunk, at)):
                return keyword
            return "NAME"
        case _:
            return "SEP" if _parts_two(chunk, at) else words[token.text]


def _parts_two(chunk: Sequence[Token], at: int) -> bool:
    """Whether a comma stands before ``name :``, so before the next parameter or argument.

    The choices in ``one of a, b, width: int`` then end where they should, with one token of
    lookahead.
    """
    if chunk[at].text != ",":
        return False
    at += chunk[at + 1].text == "input" and is_name(chunk[min(at + 2, len(chunk) - 1)])
    return at + 2 < len(chunk) and chunk[at + 2].text == ":"


def _accepted_before(
    chunk: Sequence[Token], at: int, start: str, words: dict[str, str]
) -> frozenset[str]:
    """Return the terminals that could have stood at token ``at`` (LALR reduces before it sees)."""
    rounded = roundings(chunk)
    machine = Machine(load_table(), start, CALLBACKS)
    for i, token in enumerate(chunk[:at]):
        kind = _terminal(chunk, i, words, rounded, machine.choices)
        machine.feed(kind, Terminal(kind, token))
    return machine.accepts()
