"""Any input gives a result or diagnostics, never a traceback: limits, mutations, random text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.compiler.driver import check_text
from attnc.dsl.diagnostics import CompileError, render
from attnc.dsl.formatter import format_file
from attnc.dsl.limits import MAX_FILE_BYTES, decode, read_source
from attnc.dsl.parser import parse, parse_expression
from attnc.dsl.printer import show_expr
from attnc.dsl.source import Source

STDLIB = sorted((Path(__file__).parents[1] / "dsl" / "stdlib").glob("*.attn"))


def codes(text: str) -> list[str]:
    """Parse, render what was found, and return the codes; [] means that a tree came out."""
    file, diagnostics = parse(Source("hostile.attn", text))
    assert (file is None) == bool(diagnostics)
    for diagnostic in diagnostics:
        shown = render(diagnostic)
        shown.encode("utf-8")  # printable: no lone surrogate, nothing a terminal would obey
        assert "\x1b" not in shown
        assert len(shown) < 3000
    return [d.code for d in diagnostics]


PAIR = "{ q -> k : q - k == %d }"

ACCEPTED = {
    "union of 1000": " | ".join(PAIR % i for i in range(1000)),
    "intersection of 1000": " & ".join(PAIR % i for i in range(1000)),
    "difference of 200": " - ".join(PAIR % i for i in range(200)),
    "or of 3000": "{ q -> k : " + " or ".join(f"q == {i}" for i in range(3000)) + " }",
    "and of nots": "{ q -> k : " + " and ".join(f"not q == {i}" for i in range(500)) + " }",
    "sum of 5000": "{ q -> k : " + "q + " * 5000 + "1 < k }",
    "list of 10000": "{ q -> k : q in [" + "1, " * 9999 + "1] }",
    "64 sets deep": "~(a | " * 64 + "b" + ")" * 64,
    "64 brackets deep": "{ q -> k : " + "(1 + 2 * " * 64 + "q" + ")" * 64 + " < k }",
    "64 ifs": "{ q -> k : " + "if q < k then 1 else " * 64 + "2 == k }",
    "64 lets": "{ q -> k : " + "let d = q in " * 64 + "d == k }",
    "64 quantifiers": "{ q -> k : " + "exists e in 1..2 : " * 64 + "e == k }",
    "64 sums": "{ q -> k : " + "sum e in 1..2 : 1 + " * 64 + "q == k }",
    "64 unions over": "union over e in 1..2 : " * 64 + "a",
    "64 lists": "a(" + "[for e in 1..2 : " * 64 + "e" + "]" * 64 + ")",
    "64 pairs": "{ q -> k : " + "(q, if " * 64 + "true" + " then 1 else 2) in a" * 64 + " }",
    "64 rounded": "blocks(" * 64 + "~a" + ", 4, any)" * 64,
    "segments": "union" + " | blocks(sum, count)" * 1000,
    "64 powers": "{ q -> k : " + "1**" * 64 + "1 == k }",
    "windows line ends": "causal\r\n  | sink\r\n",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_large_but_legal_text_is_accepted(case):
    assert codes(f"pattern p = {ACCEPTED[case]}") == []


REFUSED = {
    "too large": ("# " + "x" * MAX_FILE_BYTES, "ATT0103"),
    "too large in bytes": ("# " + "\u4e2d" * (MAX_FILE_BYTES // 3), "ATT0103"),
    "brackets": ("pattern p = { q -> k : " + "(" * 100_000, "ATT0104"),
    "balanced brackets": ("pattern p = " + "(" * 201 + "a" + ")" * 201, "ATT0104"),
    "lists": ("param p: list[int] = " + "[" * 300 + "]" * 300, "ATT0104"),
    "not": ("pattern p = { q -> k : " + "not " * 20_000 + "true }", "ATT0104"),
    "minus": ("pattern p = { q -> k : " + "-" * 20_000 + "q == k }", "ATT0104"),
    "complement": ("pattern p = " + "~" * 20_000 + "causal", "ATT0104"),
    "if": ("pattern p = " + "if true then a else " * 300 + "b", "ATT0104"),
    "if in then": ("pattern p = " + "if true then " * 300 + "b", "ATT0104"),
    "let": ("pattern p = { q -> k : " + "let d = q in " * 300 + "true }", "ATT0104"),
    "quantifiers": ("pattern p = { q -> k : " + "exists e in 1..2 : " * 300 + "true }", "ATT0104"),
    "sums": ("pattern p = { q -> k : " + "sum e in 1..2 : " * 300 + "1 == k }", "ATT0104"),
    "unions": ("pattern p = " + "union over e in 1..2 : " * 300 + "a", "ATT0104"),
    "rounded": ("pattern p = " + "blocks(" * 300 + "a" + ", 4, any)" * 300, "ATT0104"),
    "coordinates": ("pattern p = { q -> k : q" + ".x" * 5000 + " == k }", "ATT0101"),
    "powers": ("pattern p = { q -> k : " + "2**" * 300 + "1 == k }", "ATT0104"),
    "divisions": ("pattern p = { q -> k : q" + " div 2" * 5000 + " == k }", "ATT0104"),
    "differences": ("pattern p = a" + " - b" * 5000, "ATT0104"),
    "indices": ("pattern p = { q -> k : q == a" + "[0]" * 5000 + " }", "ATT0104"),
    "digits": ("param w: int = " + "9" * 65, "ATT0105"),
    "200 KB of digits": ("param w: int = " + "9" * 200_000, "ATT0105"),
    "digits after the point": ("param w: rational = 0." + "1" * 64, "ATT0105"),
    "NUL": ("pattern p = causal\0", "ATT0106"),
    "escape": ("# \x1b[2J", "ATT0106"),
    "lone surrogate": ("# \ud800", "ATT0106"),
    "another script": ("pattern \u043f = causal", "ATT0112"),
    "look-alike": ("pattern p = { q -> k : q == \u043a }", "ATT0112"),
    "full-width digits": ("param w: int = \uff11", "ATT0102"),
    "right-to-left mark": ("pattern p = \u202ecausal", "ATT0102"),
    "no-break space": ("pattern p =\u00a0causal", "ATT0102"),
    "emoji": ("pattern p = \U0001f642", "ATT0102"),
    "second byte order mark": ("\ufeff\ufeffpattern p = causal", "ATT0102"),
    "long name": ("pattern " + "p" * 100_000 + " = causal", "ATT0112"),
    "quotes": ('"' * 50_000, "ATT0111"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_text_is_refused_with_a_diagnostic(case):
    text, code = REFUSED[case]
    assert codes(text)[0] == code


def test_byte_order_mark_and_line_ends_do_not_matter():
    plain = parse(Source("x", "param w: int = 1\n# doc\npattern p =\n  causal\n"))[0]
    for text in (
        "\ufeffparam w: int = 1\n# doc\npattern p =\n  causal\n",
        "param w: int = 1\r\n# doc\r\npattern p =\r\n\tcausal\r\n",
        "param w: int = 1\r# doc\rpattern p =\r  causal",
    ):
        file = parse(Source("x", text))[0]
        assert file == plain
        assert file.items[1].doc == "doc"
        assert file.items[1].span.line == 3


def test_thousands_of_errors_give_a_short_text():
    found = check_text("param a: int\n" * 5000 + "pattern p = causal\n")
    assert found[0].code == "ATT0203"
    text = str(CompileError(found[:1] * 5000))
    assert text.count("error[ATT0203]") == 50
    assert text.endswith("... and 4950 more")


def test_huge_exponents_end_soon():
    for power in ("2**999999999", "2**2**2**2**2**2", "(9**99)**99999", "2**(7**99)"):
        found = check_text(f"pattern p = {{ q -> k : q - k < {power} }}")
        assert {d.code for d in found} == {"ATT0311"}, power


def test_bytes_that_are_not_text(tmp_path):
    for data, code in (
        (b"pattern p = \xff", "ATT0106"), (b"\xfe\xffp\x00a", "ATT0106"),
        (b"\xed\xa0\x80", "ATT0106"), (b"#" * (MAX_FILE_BYTES + 1), "ATT0103"),
    ):  # fmt: skip
        source, (found,) = decode("x", data)
        assert source is None
        assert found.code == code
    big = tmp_path / "big.attn"
    big.write_bytes(b"x" * (MAX_FILE_BYTES + 10))
    for path in (big, tmp_path, tmp_path / "missing.attn", "a\0b"):
        source, (found,) = read_source(path)
        assert source is None
        assert found.code in ("ATT0103", "ATT0114")
        assert render(found).isprintable() or "\n" in render(found)
    fine = tmp_path / "fine.attn"
    fine.write_bytes("\ufeffpattern p = causal\r\n".encode())
    assert parse(read_source(fine)[0])[0] is not None


_PIECES = st.sampled_from(
    ("pattern", "param", "heads", "import", "p", "q", "k", "h", "=", "{", "}", "(", ")", "[", "]",
     "->", ":", ",", "|", "&", "-", "~", "+", "*", "/", "div", "mod", "**", "..", "==", "<=", "<",
     "and", "or", "not", "in", "exists", "forall", "if", "then", "else", "let", "true", "1", "0.5",
     "int", "list", "one", "of", "from", '"x"', "\n", "\n\n", "# c\n", "\t", "\u00e9", "\x00", "$",
     "space", "input", "fn", "score", "attention", "on", "kv_heads", "layers", "require", "grid",
     "tiled", "++", ".", "sum", "count", "for", "union", "over", "blocks", "any", "all", "density",
     "softmax", "sink", "scale", "real", "space s = grid(", "input d: int[", "fn f(x: real) =",
     "attention a = softmax(dot, over:", "score s = { q -> k :", "sum e in 1..2 :",
     "union over e in 1..2 :", "[for e in 1..2 :", "blocks(~p, 4,", "(q, k) in", "q.x")
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(_PIECES, max_size=40).map(" ".join) | st.text(max_size=60))
def test_random_text_parses_or_is_diagnosed(text):
    if not codes(text):
        assert parse(Source("x", format_file(text)))[0] == parse(Source("x", text))[0]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="qk01 +-*/()[]<=>,:.abcdefinotr\n", max_size=40))
def test_random_expressions_parse_or_are_refused(text):
    found = codes(f"param p: int = (\n{text}\n)")
    assert all(code.startswith("ATT01") for code in found)
    if not found:
        assert parse_expression(show_expr(parse_expression(text))) == parse_expression(text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_library_files_are_checked_or_diagnosed(data):
    text = data.draw(st.sampled_from(STDLIB)).read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(_PIECES | st.just("")) + text[at + cut :]
    for diagnostic in check_text(text):
        assert diagnostic.code.startswith("ATT0")
        render(diagnostic).encode("utf-8")
