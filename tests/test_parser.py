"""The grammar: precedence, contextual keywords, recovery, spans, docs, chains."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from attnc.dsl import lalr
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError
from attnc.dsl.limits import MAX_TREE_DEPTH
from attnc.dsl.parser import MAX_ERRORS, parse, parse_expression
from attnc.dsl.printer import show_expr, show_file, show_set
from attnc.dsl.source import Source


def read(text: str) -> ast.File:
    file, diagnostics = parse(Source("test.attn", text))
    assert file is not None, [d.message for d in diagnostics]
    return file


def body(text: str) -> ast.Set:
    item = read(f"pattern p = {text}").items[0]
    assert isinstance(item, ast.PatternDef)
    return item.body


def errors(text: str) -> list[tuple[str, int, int]]:
    file, diagnostics = parse(Source("test.attn", text))
    assert file is None
    return [(d.code, d.span.line, d.span.column) for d in diagnostics]


# Every text beside the fully bracketed text of the same tree.
GROUPING = {
    "a + b * c": "a + (b * c)",
    "a - b - c": "(a - b) - c",
    "a div b mod c": "(a div b) mod c",
    "-a * b": "(-a) * b",
    "-a ** b": "-(a ** b)",
    "2 ** -a ** b": "2 ** (-(a ** b))",
    "a ** b ** c": "a ** (b ** c)",
    "not a == b": "not (a == b)",
    "not a and b or c": "((not a) and b) or c",
    "a or b and c": "a or (b and c)",
    "a + b <= c": "(a + b) <= c",
    "rates[i + 1][0] + 1": "((rates[(i + 1)])[0]) + 1",
    "a + if b then c else d + e": "a + (if b then c else (d + e))",
    "exists e in 1..2 : a or b": "exists e in 1..2 : (a or b)",
    "a and exists e in 1..n - 1 : b and c": "a and (exists e in (1)..(n - 1) : (b and c))",
    "let d = q - k in d == 1 or d == 2": "let d = (q - k) in (d == 1 or d == 2)",
    "let d = a or not b in d in [1]": "let d = (a or (not b)) in (d in [1])",
    "let d = if q in w then 1 else 2 in d": "let d = (if (q in w) then 1 else 2) in d",
    "let d = 1 - if a then b else c in d": "let d = (1 - (if a then b else c)) in d",
    "let d = let e = q in e in d == k": "let d = (let e = q in e) in (d == k)",
    "let d = not exists e in 0..3 : b in d": "let d = (not (exists e in 0..3 : b)) in d",
    "let d = 2**if a then 1 else -b**2 in d": "let d = 2**(if a then 1 else (-(b**2))) in d",
    "if a then b else if c then d else e": "if a then b else (if c then d else e)",
    "a + sum i in 0..n : i + 1": "a + (sum i in (0)..(n) : (i + 1))",
    "count i in 0..3 : a and b == 2": "count i in 0..3 : (a and (b == 2))",
    "let d = sum i in 0..3 : i in d": "let d = (sum i in 0..3 : i) in d",
    "not (q, k) in p and a": "(not ((q, k) in p)) and a",
    "(q - 1, k) not in p[i] or a": "((q - 1, k) not in p[i]) or a",
    "-q.y**2": "-((q.y)**2)",
    "q.y[0]": "(q.y)[0]",
    "[for i in 0..3 : i or a]": "[for i in 0..3 : (i or a)]",
}


@pytest.mark.parametrize("text", GROUPING)
def test_precedence(text):
    assert parse_expression(text) == parse_expression(GROUPING[text])


SET_GROUPING = {
    "a | b & c": "a | (b & c)",
    "~a & b": "(~a) & b",
    "a - b - c": "(a - b) - c",
    "if w == 1 then a else b | c": "if w == 1 then a else (b | c)",
    "a | if w == 1 then b else c & d": "a | (if w == 1 then b else (c & d))",
    "~~a": "~(~a)",
    "union over i in 0..3 : a[i] | b": "union over i in 0..3 : (a[i] | b)",
    "c & union over i in 0..n : a | b": "c & (union over i in 0..n : (a | b))",
    "~blocks(a | b, 4, any)": "~(blocks((a | b), 4, any))",
}


@pytest.mark.parametrize("text", SET_GROUPING)
def test_set_precedence(text):
    assert body(text) == body(SET_GROUPING[text])


def test_chains_are_flat_and_brackets_are_kept():
    assert len(body("a | b | c").parts) == 3
    assert len(body("(a | b) | c").parts) == 2
    assert parse_expression("a and b and c").parts == tuple(map(parse_expression, "abc"))
    compared = parse_expression("0 <= q - k < 8")
    assert compared.ops == ("<=", "<")
    assert parse_expression("q not in [1]").ops == ("not in",)


def test_numbers_are_exact():
    assert parse_expression("0.1").value == Fraction(1, 10)
    assert parse_expression("1_000").value == 1000
    assert parse_expression("9" * 64).value == 10**64 - 1


def test_every_part_of_a_file():
    file = read(
        'import a, b from "x.attn"\n'
        "param w: int in 1..4096 = 512\nparam r: rational in ..1\nparam s: int in 1.. = 2\n"
        "param t: list[bool]\nparam c: one of self, past = self\nheads h: 32\n"
        "pattern p(w: int = 8, c: one of a, b, d: bool = true)\n"
        "heads g: 4 * 2 = { q -> k, g : true } | other(1, w: w) | bare()\n"
    )
    imported, w, r, s, t, c, heads, p = file.items
    assert imported == ast.Import(names=("a", "b"), path="x.attn")
    assert (w.low, w.high, w.default) == tuple(map(parse_expression, ("1", "4096", "512")))
    assert (r.low, r.high, r.default) == (None, parse_expression("1"), None)
    assert (s.low, s.high) == (parse_expression("1"), None)
    assert t.type == ast.Type(kind="list", item=ast.Type(kind="bool"))
    assert c.type.choices == ("self", "past")
    assert heads == ast.Heads(var="h", count=parse_expression("32"))
    assert [x.name for x in p.params] == ["w", "c", "d"]
    assert p.params[1].type.choices == ("a", "b")
    assert p.heads.count == parse_expression("4 * 2")
    builder, other, bare = p.body.parts
    assert (builder.query, builder.key, builder.head) == ("q", "k", "g")
    assert [a.name for a in other.args] == [None, "w"]
    assert bare == ast.Reference(name="bare", args=())


def test_every_part_of_a_space():
    file = read(
        "space video = text: grid(i: 77) ++ grid(t: 30, y, x) tiled [1, 8, 8]\n"
        "  ++ levels[i in 0..3]: grid(*shapes[i]) ++ other\n"
        "pattern p on video -> a ++ b kv_heads g: 8 layers l: 26\n"
        '  require n > 4 else "too short" require true else "" =\n'
        "    { q in text -> k in levels[2], g : q.i == k[0] }\n"
    )
    video, p = file.items
    text, pixels, levels, other = video.space.segments
    assert (text.name, text.grid.axes[0].name) == ("text", "i")
    assert pixels.name is None
    assert [a.extent for a in pixels.grid.axes[1:]] == [ast.Name(name="y"), ast.Name(name="x")]
    assert pixels.grid.tile == parse_expression("[1, 8, 8]")
    assert (levels.var, levels.high) == ("i", parse_expression("3"))
    assert levels.grid == ast.Grid(shape=parse_expression("shapes[i]"))
    assert other == ast.Segment(name="other", grid=None)
    assert [s.name for s in p.on.query.segments] == ["video"]
    assert [s.name for s in p.on.key.segments] == ["a", "b"]
    assert p.heads == ast.Heads(var="g", count=parse_expression("8"), kv=True)
    assert p.layers == ast.Layers(var="l", count=parse_expression("26"))
    assert [r.message for r in p.requires] == ["too short", ""]
    assert p.body.query_segment == ast.SegmentName(name="text")
    assert p.body.key_segment == ast.SegmentName(name="levels", index=parse_expression("2"))
    assert (p.body.query, p.body.key, p.body.head) == ("q", "k", "g")


def test_every_part_of_an_attention():
    file = read(
        "input doc: int[n, *] = a * b\ninput phase: bool\n"
        "# bends\nfn bend(s: real, cap: real = 50) = cap * tanh(s / cap)\n"
        "score far(input bias: real[heads]) on x heads h: 4 = { q -> k, h : bias[h] * (q - k) }\n"
        "attention a(w: int) = softmax(\n"
        "  bend(dot, cap: 30), scale: 1 / 8, over: causal | { q -> k, h : true }, sink: s[h]\n)\n"
    )
    doc, phase, bend, far, a = file.items
    assert [d.extent for d in doc.dims] == [ast.Name(name="n"), None]
    assert (doc.default, phase.dims) == (parse_expression("a * b"), ())
    assert (bend.doc, bend.params[1].default) == ("bends", parse_expression("50"))
    assert isinstance(far.params[0], ast.Input)
    assert far.body.head == "h"
    assert a.score == ast.Call(
        function="bend", args=(ast.Name(name="dot"), parse_expression("30")), names=(None, "cap")
    )
    assert isinstance(a.over, ast.SetUnion)
    assert (a.sink, a.scale) == (parse_expression("s[h]"), parse_expression("1 / 8"))


def test_a_rule_makes_rounded_blocks():
    rounded = body("blocks(a, 64, 32, density >= 1 / 2)")
    assert (rounded.block_q, rounded.block_k) == (parse_expression("64"), parse_expression("32"))
    assert (rounded.rule, rounded.op) == ("density", ">=")
    assert body("blocks(a, 4, any)").threshold is None
    assert isinstance(body("blocks(~a, 4, all)").part, ast.SetComplement)
    for text in ("blocks", "blocks()", "blocks(4)", "blocks(a, b, c)"):
        assert isinstance(body(text), ast.Reference)


def test_an_item_may_start_inside_an_open_bracket():
    text = (
        "pattern a(x: int = (\nspace s = grid(\ninput d: int[\n"
        "pattern b(w: int,\n  input d: int[n]\n) on s\nheads h: 4\nlayers l: 2 = causal\n"
        "score c = {\nattention e = softmax(dot\nfn f(x: real = 3\nkv_heads g 4\n"
    )
    assert [line for _, line, _ in errors(text)] == [1, 2, 3, 9, 10, 11, 12]


@pytest.mark.parametrize(
    "word",
    ["pattern", "param", "heads", "import", "from", "int", "list", "bool", "rational", "one", "of",
     "space", "input", "route", "score", "attention", "n", "h"],
)  # fmt: skip
def test_keywords_are_names_where_nothing_else_can_be_meant(word):
    file = read(
        f"param {word}: int = 4\nheads {word}: {word}\n"
        f"pattern {word}({word}: one of {word}, x = {word},\n  {word}: int = {word}) =\n"
        f"    {{ {word} -> {word}, {word} : {word} mod 2 == {word}({word})[{word}] }}\n"
        f"  | {word}({word}: {word}, {word})\n  | {word}\n"
    )
    assert len(file.items) == 3


@pytest.mark.parametrize(
    "word",
    ["text", "tile", "count", "union", "layers", "sum", "for", "over", "blocks", "any", "all",
     "density", "grid", "tiled", "on", "kv_heads", "fn", "real", "softmax", "sink", "scale",
     "require", "input", "pattern", "heads"],
)  # fmt: skip
def test_newer_keywords_are_names_where_nothing_else_can_be_meant(word):
    file = read(
        f"space {word} = {word} ++ {word}: grid({word}: {word}) tiled {word} ++ grid({word})\n"
        f"input {word}: int[{word}, *] = {word}({word})\n"
        f"fn {word}({word}: real = {word}) = {word} + {word}[{word}] * {word}.{word}\n"
        f"pattern {word}(input {word}: int[{word}], {word}: one of {word}, {word})\n"
        f"  on {word} -> {word} heads {word}: {word} layers {word}: {word}\n"
        f'  require {word} > {word} else "{word}" =\n'
        f"    {{ {word} in {word} -> {word} in {word}[{word}] : ({word}, {word}) in {word} }}\n"
        f"  | blocks({word}, {word}, {word}, count > {word})\n"
        f"  | union over {word} in {word}..{word} : {word}[{word}] & {word}({word}, {word})\n"
        f"attention {word} = softmax({word} + {word}, over: {word}, sink: {word})\n"
        f"param {word}: int = sum {word} in {word}..{word} : count {word} in 1..2 : {word} > 1\n"
        f"param {word}: list[int] = [for {word} in {word}..{word} : [{word}, {word}]]\n"
    )
    assert len(file.items) == 7
    assert read(show_file(file)) == file


@pytest.mark.parametrize(
    "word", "and or not div mod in exists forall if then else let true false".split()
)
def test_reserved_words_are_never_names(word):
    file, diagnostics = parse(Source("x", f"param {word}: int = 1\npattern p = causal\n"))
    assert file is None
    assert [d.code for d in diagnostics] == ["ATT0101"]
    assert diagnostics[0].message == f"`{word}` cannot be a name"


def test_the_comment_block_right_above_is_the_doc():
    text = "# file\n\n# one\n#\n#   two\npattern p = causal\n# gap\n\npattern q = causal # end\n"
    p, q = read(text).items
    assert p.doc == "one\n\n  two"
    assert q.doc == ""


def test_spans_cover_what_was_written():
    text = "param w: int = (1 + 2)\npattern p =\n  { q -> k : (q - k) * 2 < w }\n"
    for node in ast.walk(read(text)):
        part = text[node.span.start : node.span.stop]
        if isinstance(node, ast.Binary) and node.op == "*":
            assert part == "(q - k) * 2"
            assert (node.span.line, node.span.column) == (3, 14)
        elif isinstance(node, ast.Binary):
            assert part in ("(1 + 2)", "(q - k)")
        elif isinstance(node, ast.Name):
            assert part == node.name


def test_one_error_an_item_and_the_others_are_read():
    text = (
        "pattern a = { q k }\npattern b = causal\nparam w int\n\nheads : 4\n"
        "pattern c(x: int = {\npattern d = (causal\nimport e\npattern f = a | b - c\n"
    )
    assert errors(text) == [
        ("ATT0101", 1, 17), ("ATT0101", 3, 9), ("ATT0101", 5, 7), ("ATT0101", 6, 20),
        ("ATT0109", 7, 13), ("ATT0101", 8, 8), ("ATT0108", 9, 13),
    ]  # fmt: skip


def test_errors_are_capped_and_ordered():
    found = errors("pattern a = é\nparam w int\n" * 40)
    assert len(found) == MAX_ERRORS + 1
    assert found[-1][0] == "ATT0100"
    assert [line for _, line, _ in found] == sorted(line for _, line, _ in found)


def test_a_long_sum_is_a_shallow_tree_with_the_same_value():
    signs = ["-" if i % 3 == 0 else "+" for i in range(2000)]
    text = "7 " + " ".join(f"{sign} {i * i}" for i, sign in enumerate(signs))

    def value(expr):
        if isinstance(expr, ast.Number):
            return expr.value
        left, right = value(expr.left), value(expr.right)
        return left + right if expr.op == "+" else left - right

    expr = parse_expression(text)
    assert value(expr) == 7 + sum(-i * i if sign == "-" else i * i for i, sign in enumerate(signs))
    depth, level = 0, [expr]
    while level:
        depth, level = depth + 1, [c for node in level for c in ast.children(node)]
    assert depth < 40
    assert parse_expression(show_expr(expr)) == expr


def test_a_tree_that_is_too_deep_is_refused():
    chain = "q" + " div 1" * MAX_TREE_DEPTH
    with pytest.raises(CompileError, match="ATT0104"):
        parse_expression(chain)
    assert parse_expression("q" + " div 1" * 300)


def test_parse_expression_refuses_the_rest_of_a_text():
    with pytest.raises(CompileError, match="ATT0109"):
        parse_expression("q < k }")
    with pytest.raises(CompileError, match="ATT0101"):
        parse_expression("q < k q")
    with pytest.raises(CompileError, match="ATT0102"):
        parse_expression("q % k")
    with pytest.raises(CompileError, match="ATT0101"):
        parse_expression("")


def test_the_kept_table_is_made_from_the_grammar():
    kept = lalr.read_table(lalr.TABLE.read_text(encoding="utf-8"))
    built = lalr.build_table(lalr.GRAMMAR.read_text(encoding="utf-8"))
    assert kept == built, "run `python -m attnc.dsl.lalr`"
    assert lalr.read_table(lalr.show_table(kept)) == kept


def test_a_table_of_another_grammar_is_not_used(tmp_path, monkeypatch):
    text = "pattern p(w: int = 1) = { q -> k : if q < w then k == 1 or q in [1] else 2**-w < k }"
    before = read(text)
    stale = dataclasses.replace(lalr.load_table(), checksum=0, states=())
    for content in (None, lalr.show_table(stale)):
        kept = tmp_path / "grammar.json"
        if content is not None:
            kept.write_text(content, encoding="utf-8")
        monkeypatch.setattr(lalr, "TABLE", kept)
        lalr.load_table.cache_clear()
        assert read(text) == before
    lalr.load_table.cache_clear()


def test_an_empty_file_is_legal():
    assert read("").items == ()
    assert read("# only a comment").items == ()


def test_sets_print_with_the_brackets_they_need():
    for text in ("a | (b - c)", "(a & b) - c", "~(a | b)", "(if w == 1 then a else b) | c"):
        assert show_set(body(text)) == text
