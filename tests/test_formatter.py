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
    "spaces": (
        "space s=text : grid( i:77 )++grid(t:30,y ,x)tiled[1,8 , 8]++l[i in 0 .. 3] :"
        "grid( * s[i])\n",
        "space s = text: grid(i: 77) ++ grid(t: 30, y, x) tiled [1, 8, 8] "
        "++ l[i in 0..3]: grid(*s[i])\n",
    ),
    "inputs and functions": (
        "input d:int [ n,* ]=-a [i]\nfn f ( x:real=-1 )=x . y+sum i in 0 .. 3:i*x\n",
        "input d: int[n, *] = -a[i]\nfn f(x: real = -1) = x.y + sum i in 0..3 : i * x\n",
    ),
    "attention and scores": (
        "attention a kv_heads g : 8=softmax ( dot,over :a|b,sink:-1 )\n"
        "score s on a->b={ q in a [i]->k in b,h:- q.y }\n",
        "attention a kv_heads g: 8 = softmax(dot, over: a | b, sink: -1)\n"
        "score s on a -> b = { q in a[i] -> k in b, h : -q.y }\n",
    ),
    "new sets": (
        "pattern p=union over i in 0 .. 3:ps [i]"
        "&blocks( a(b:1),4,count>=[for i in 0..3:-i] [ 0 ])\n"
        "pattern q={ q->k:( q ,k )not in a(x : count e in 0..3:e>k,y:1) }\n",
        "pattern p = union over i in 0..3 : ps[i] "
        "& blocks(a(b: 1), 4, count >= [for i in 0..3 : -i][0])\n"
        "pattern q = { q -> k : (q, k) not in a(x: count e in 0..3 : e > k, y: 1) }\n",
    ),
    "words that are names": (
        'pattern on(on:int) on on heads heads:-on require -on<- 1 else "a  b"='
        "{ on->on:-on<- on }\n",
        'pattern on(on: int) on on heads heads: -on require -on < -1 else "a  b" = '
        "{ on -> on : -on < -on }\n",
    ),
    "clauses on lines of their own": (
        "pattern p(w: int)\non text: grid(i: n)\n-> video\n++ text: grid(\ni: n\n)\n"
        'require w < 3\nand w > 1\nelse "no"\nrequire forall a in 0..2 :\nw > a\nelse "" =\n'
        "{ q -> k :\nforall a in 0..2 :\nexists b in 0..2 :\nlet c =\na + b in\nc\n< w }\n"
        "| causal\n",
        "pattern p(w: int)\n    on text: grid(i: n)\n        -> video\n     ++ text: grid(\n"
        "            i: n\n        )\n    require w < 3\n        and w > 1\n"
        '        else "no"\n    require forall a in 0..2 :\n        w > a\n'
        '        else "" =\n    { q -> k :\n        forall a in 0..2 :\n'
        "        exists b in 0..2 :\n            let c =\n                a + b in\n"
        "                c\n                    < w }\n  | causal\n",
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


def test_a_long_header_gets_a_line_a_clause_and_a_space_one_a_segment():
    segments = [f"segment_{i}: grid(t: 30, y: 48, x: 80) tiled [1, 8, 8]" for i in range(3)]
    listed = "\n ++ ".join(segments)
    assert format_file(f"space s = {' ++ '.join(segments)}\n") == f"space s =\n    {listed}\n"
    clauses = [f"on {segments[0]}", "heads h: 8", 'require w > 3 and w < 9 else "out of range"']
    text = format_file(f"pattern p(w: int = 8) {' '.join(clauses)} = causal\n")
    listed = "\n    ".join(clauses)
    assert text == f"pattern p(w: int = 8)\n    {listed} =\n    causal\n"


def test_a_long_on_clause_gets_a_line_a_side():
    queries = "tokens: grid(t: frames, y: 48, x: 80)"
    keys = "levels[l in 0..3]: grid(i: n div 2**l)"
    text = f"pattern p(n: int = 8, frames: int = 30) on {queries} -> {keys} ++ {queries} = causal\n"
    assert format_file(text) == (
        f"pattern p(n: int = 8, frames: int = 30)\n    on {queries}\n"
        f"        -> {keys} ++ {queries} =\n    causal\n"
    )


def test_a_long_softmax_gets_a_line_an_argument():
    parts = ["bend(dot, cap: 30) + slopes(heads)", "over: causal | { q -> k, h : k < h }",
             "sink: sinks[h]", "scale: 1 / 8"]  # fmt: skip
    text = format_file(f"attention gemma heads h: 8 = softmax({', '.join(parts)})\n")
    listed = ",\n        ".join(parts)
    assert text == f"attention gemma heads h: 8 =\n    softmax(\n        {listed}\n    )\n"


def test_a_long_header_with_inputs_parts_them_from_choices():
    params = ["mode: one of self, past = self", "input segments: int[n, heads] = repeat(counts)",
              "input: one of input, other = input"]  # fmt: skip
    text = format_file(f"pattern a_pattern({', '.join(params)}) = causal\n")
    listed = ",\n    ".join(params)
    assert text == f"pattern a_pattern(\n    {listed}\n) =\n    causal\n"


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
