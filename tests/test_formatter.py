"""Formatting keeps meaning and comments and is idempotent; printing is the inverse of parsing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.dsl.diagnostics import CompileError
from attnc.dsl.formatter import MAX_COLUMNS, format_file
from attnc.dsl.parser import parse, parse_expression
from attnc.dsl.printer import show_expr, show_file
from attnc.dsl.scanner import scan
from attnc.dsl.source import Source
from tests import strategies


def read(text):
    file, diagnostics = parse(Source("test.attn", text))
    assert file is not None, [d.message for d in diagnostics] + [text]
    return file


def comments(text):
    return [t.text[1:].strip() for t in scan(Source("x", text))[0] if t.kind == "comment"]


@settings(max_examples=60, deadline=None)
@given(strategies.files())
def test_printing_then_parsing_gives_the_same_tree(file):
    assert read(show_file(file)) == file


@settings(max_examples=60, deadline=None)
@given(strategies.expressions())
def test_an_expression_survives_printing(expr):
    assert parse_expression(show_expr(expr)) == expr


@st.composite
def messy(draw):
    """A legal file whose blanks, line breaks and comments are random."""
    tokens, _ = scan(Source("x", show_file(draw(strategies.files()))))
    text = ""
    for token in tokens[:-1]:
        if token.first:
            text += draw(st.sampled_from(("\n", "\n\n\n", " # note\n# own line\n", "\r\n")))
        else:
            # Items start where two words share a line, so only other places may break.
            free = token.kind == "sign" and token.text not in ("(", ":")
            breaks = ("\n", "\n    # inside\n ", "\t\n\n") if free else ()
            text += draw(st.sampled_from((" ", "  ", "\t", *breaks)))
        text += token.text
    return text + draw(st.sampled_from(("", "\n", "# end", "\n\n# end\n\n")))


@settings(max_examples=60, deadline=None)
@given(messy())
def test_formatting_keeps_the_tree_and_the_comments_and_is_idempotent(text):
    once = format_file(text)
    assert read(once) == read(text)
    assert comments(once) == comments(text)
    assert format_file(once) == once
    assert not any(line != line.rstrip() for line in once.splitlines())


@settings(max_examples=20, deadline=None)
@given(strategies.patterns())
def test_long_lines_are_broken(text):
    once = format_file(text)
    assert read(once) == read(text)
    assert format_file(once) == once
    if len(text) > MAX_COLUMNS + 1:
        assert once.count("\n") > 1


CASES = {
    "spacing": (
        "param   w:int in 1..8=3\nheads h : 4\n"
        "pattern p( a :int=-1 )={q->k,h:abs( q -k )<=2 ** (w+1) and-q<- 3}\n",
        "param w: int in 1..8 = 3\nheads h: 4\n"
        "pattern p(a: int = -1) = { q -> k, h : abs(q - k) <= 2**(w + 1) and -q < -3 }\n",
    ),
    "quantifier and reference": (
        "pattern p = {q->k:exists e in 1 .. n-1:rates[ e ]==q}|window(left:8,right : 0)|~ causal\n",
        "pattern p = { q -> k : exists e in 1..n - 1 : rates[e] == q } "
        "| window(left: 8, right: 0) | ~causal\n",
    ),
    "hanging operators and aligned comments": (
        "pattern p =\n{ q -> k : q < k } # one\n| sink(4)   # two\n| causal\n",
        "pattern p =\n    { q -> k : q < k }  # one\n  | sink(4)             # two\n  | causal\n",
    ),
    "blank lines and comments": (
        "\n\n#  top\n\n\n\n  # doc\npattern p = # body\n # inside\ncausal\n # end\n",
        "#  top\n\n# doc\npattern p =  # body\n    # inside\n    causal\n# end\n",
    ),
    "lists and imports": (
        'import a ,b from"x.attn"\nparam r:list [ int ]=[ 1,-2 ]\nparam c:one of a,b=a\n',
        'import a, b from "x.attn"\nparam r: list[int] = [1, -2]\nparam c: one of a, b = a\n',
    ),
    "nested brackets": (
        "pattern p =\ncausal & (\n{ q -> k :\nq < k\nand k < 3\n}\n| a\n)\n",
        "pattern p =\n    causal & (\n        { q -> k :\n            q < k\n"
        "            and k < 3\n        }\n      | a\n    )\n",
    ),
    "conditions and lets": (
        "pattern p = if w==1 then a else { q->k:let d=q-k in not(d in[1,2])or true }\n",
        "pattern p = if w == 1 then a "
        "else { q -> k : let d = q - k in not (d in [1, 2]) or true }\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_layout(case):
    before, after = CASES[case]
    assert format_file(before) == after


def test_a_long_union_gets_a_line_a_part():
    parts = [f"{{ q -> k : (q - k) mod {i} == 0 }}" for i in range(10, 16)]
    text = format_file(f"pattern p = {' | '.join(parts)}\n")
    assert text == "pattern p =\n    " + "\n  | ".join(parts) + "\n"


def test_a_long_header_gets_a_line_a_parameter():
    params = ["width: int in 1.. = 4096", "count: one of self, past = self", "causal: bool = true"]
    text = format_file(f"pattern a_pattern_with_a_long_name({', '.join(params)}) = causal\n")
    listed = ",\n    ".join(params)
    assert text == f"pattern a_pattern_with_a_long_name(\n    {listed}\n) =\n    causal\n"


def test_bodies_are_indented_and_chained_lets_are_not():
    text = (
        "pattern p(w: int = 4) =\n"
        "    causal & { q -> k :\n"
        "        let a = q div 4 in\n"
        "        let b = k div 4 in\n"
        "            a == b\n"
        "            or exists e in 0..3 :\n"
        "                a == b + e }\n"
    )
    assert format_file(text) == text
    assert format_file("\n".join(line.strip() for line in text.split("\n"))) == text


SHIPPED = [
    path
    for folder in ("dsl/stdlib", "examples")
    for path in sorted((Path(__file__).parents[1] / folder).rglob("*.attn"))
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_files_we_ship_are_in_the_standard_layout(path):
    text = path.read_text(encoding="utf-8")
    assert format_file(text) == text


def test_an_illegal_file_is_refused_with_its_diagnostics():
    with pytest.raises(CompileError, match="ATT0113"):
        format_file("pattern p = { q -> k : q = k }")
