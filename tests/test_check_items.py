"""What the checker accepts and refuses of spaces, inputs, functions, scores and attention."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc.dsl.check import check
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.limits import deep_recursion
from attnc.dsl.resolve import STDLIB, load_module, stdlib_names
from attnc.dsl.source import Source


def checked(text: str, folder: Path | None = None) -> list[Diagnostic]:
    """Return what parsing and checking find, without lowering anything."""
    with deep_recursion():
        module, found = load_module(Source("test.attn", text), folder)
        return [*found, *(check(module) if module else ())]


def found(text: str) -> list[tuple[str, str]]:
    """Return the code and the marked text of everything that is wrong."""
    return [(d.code, marked(d)) for d in checked(text)]


def marked(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    return span.source.text[span.start : span.stop] if span.source else ""


@pytest.mark.parametrize("name", stdlib_names())
def test_the_library_is_without_a_word_of_complaint(name: str) -> None:
    assert checked((STDLIB / f"{name}.attn").read_text(encoding="utf-8"), STDLIB) == []


# -------------------------------------------------------------------------------- spaces

GRID = "pattern p on %s = { q -> k : %s }"


@pytest.mark.parametrize(
    ("space", "condition"),
    [
        ("grid(y, x)", "q.y == k.y and q.x < x and k < y * 3"),
        ("grid(y: 4, x: n)", "q[0] == k[0] and q.y == k[0]"),
        ("grid(*[4, 5]) tiled [2, 5]", "forall a in 0..1 : q[a] == k[a]"),
        ("grid(i: 4) -> grid(j: 9)", "q.i <= k.j and q <= k.j"),
        ("grid(i: n)", "k.i <= q"),
    ],
)
def test_coordinates(space: str, condition: str) -> None:
    assert found(GRID % (space, condition)) == []


@pytest.mark.parametrize(
    ("space", "condition", "code", "span"),
    [
        ("grid(y, x)", "q.z == 1", "ATT0211", "q.z"),
        ("grid(y, x)", "q[2] == 1", "ATT0211", "2"),
        ("grid(y, x)", "n.y == 1", "ATT0211", "n.y"),
        ("grid(y, x)", "(let r = q in r.y) == 1", "ATT0211", "r.y"),
        ("grid(*[2, 3])", "q.y == 1", "ATT0211", "q.y"),
        ("grid(y, x)", "q[k] == 1", "ATT0306", "k"),
        ("grid(y, x) ++ grid(i: 3)", "q.y == 1", "ATT0211", "q.y"),
        ("a: grid(y, x) ++ b: grid(i: 3)", "q[0] == 1", "ATT0211", "q[0]"),
        ("grid(y: 3, y: 3)", "q.y == 1", "ATT0203", "y: 3"),
        ("a: grid(y, x) ++ a: grid(i: 3)", "q == 1", "ATT0203", "a: grid(i: 3)"),
        ("grid(y: n div 2)", "q.y == 1", "ATT0319", "n div 2"),
        ("grid(y: m + 1)", "q.y == 1", "ATT0201", "m"),
        ("grid(y: 1.5)", "q.y == 1", "ATT0301", "1.5"),
        ("grid(*4)", "q[0] == 1", "ATT0301", "4"),
        ("grid(*[n])", "q[0] == 1", "ATT0306", "[n]"),
        ("grid(y: 4) tiled [2, 2]", "q.y == 1", "ATT0318", "[2, 2]"),
        ("grid(y: 4) tiled [n]", "q.y == 1", "ATT0306", "[n]"),
        ("vid", "q == 1", "ATT0212", "vid"),
    ],
)
def test_coordinates_that_are_refused(space: str, condition: str, code: str, span: str) -> None:
    assert found(GRID % (space, condition)) == [(code, span)]


SEGMENTS = (
    "space clip = grid(t: 2, s: 3)\n"
    "space both = clip ++ text: grid(i: 4)\n"
    "pattern p(m: int = 2) on both ++ levels[l in 0..m]: grid(s: 4 + l) = %s"
)


@pytest.mark.parametrize(
    "body",
    [
        "{ q in clip -> k in text : q.t == k.i }",
        "{ q in clip -> k in levels[1] : k.s == q.s }",
        "{ q in text -> k : q < k } & { q in both -> k in both : q < k }",
        "union over l in 0..m : { q -> k in levels[l] : k.s == l }",
        "{ q in clip -> k in clip : (q.t, k.t) in causal and (q, k) not in window(left: m) }",
    ],
)
def test_segments(body: str) -> None:
    assert found(SEGMENTS % body) == []


@pytest.mark.parametrize(
    ("body", "code", "span"),
    [
        ("{ q in clp -> k : k == m }", "ATT0212", "clp"),
        ("{ q in levels -> k : k == m }", "ATT0212", "levels"),
        ("{ q in clip[0] -> k : k == m }", "ATT0212", "clip[0]"),
        ("{ q -> k in levels[k] : k == m }", "ATT0201", "k"),
        ("{ q -> k in levels[n] : k == m }", "ATT0306", "n"),
        ("{ q in both -> k : q.t == m }", "ATT0211", "q.t"),
        ("union over l in 0..n : { q -> k : k == m }", "ATT0306", "n"),
    ],
)
def test_segments_that_are_refused(body: str, code: str, span: str) -> None:
    assert found(SEGMENTS % body) == [(code, span)]


def test_an_unknown_space_is_reported_once() -> None:
    text = "space image = grid(y, x)\npattern p on imag = { q in image -> k : q.y == k.y }"
    (wrong, *rest) = checked(text)
    assert (wrong.code, wrong.help, rest) == ("ATT0212", "did you mean `image`?", [])


def test_a_symbolic_extent_and_a_parameter() -> None:
    assert found("space s = grid(y, x)\npattern p(y: int = 3) on s = { q -> k : q.y < y }") == [
        ("ATT0203", "y")
    ]
    assert found("pattern p(y: int = 3) on grid(y, x: y) = { q -> k : q.y < y }") == []


def test_patterns_of_another_space() -> None:
    image = "pattern image on grid(y: 4, x: 4) = { q -> k : q.y == k.y }\n"
    assert found(image + "pattern p on grid(y: 4, x: 4) = image | causal") == []
    assert found(image + "pattern p = image & causal") == []
    assert found(image + "pattern p on grid(t, y, x) = image") == [("ATT0317", "image")]
    assert found(image + "pattern p on grid(y: 4, x: 4) ++ grid(i: 2) = ~image") == [
        ("ATT0317", "image")
    ]
    inside = "pattern p on a: grid(y: 4, x: 4) ++ b: grid(i: 2) = { q in a -> k in a : %s }"
    assert found(image + inside % "(q, k) in image") == []


# -------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    "text",
    [
        "input doc: int[n]\npattern p = { q -> k : doc[q] == doc[k] }",
        "pattern p(input a: bool[n, n]) = { q -> k : a[q][k] and not a[k][q] }",
        "pattern p(input phase: int) = { q -> k : q - k < phase }",
        "pattern p(input v: int[heads, *]) heads h: heads = { q -> k, h : k in v[h] }",
        "pattern p(input v: int[rows, 2]) = { q -> k : v[q mod rows][0] <= k < v[0][1] }",
        "pattern p(input v: int[2 * w - 1], w: int = 4) = { q -> k : v[q - k + w - 1] == 1 }",
        "pattern p(input d: int[n]) = { q -> k : let row = d in row[q] == row[k] }",
        "pattern p(input t: int[n], input e: int[n] = next_where(t == 0)) = { q -> k : k < e[q] }",
        "pattern p(input a: bool[n, n], m: int = 2, input b: bool[n, n] = khop(a, m)) = "
        "{ q -> k : b[q][k] }",
        "pattern p(input t: bool[n] = true) = { q -> k : t[k] }",
        "pattern p(input c: int[m], input e: int[m + 1] = prefix_sum(c * 2 - 1)) = "
        "{ q -> k : e[q] <= k }",
        "pattern p(input f: bool[n], input c: int[m] = prefix_sum(f)) = { q -> k : c[q] == c[k] }",
        "pattern p(input ids: int[n]) = document(doc_ids: ids)",
        "pattern p(input ids: int[n]) = document(ids) & { q -> k : ids[q] > 0 }",
        "pattern p = document & causal",
        "pattern p(input t: int[layers, n]) layers l: 4 = { q -> k : t[l][q] == t[l][k] }",
    ],
)
def test_inputs(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "code", "span"),
    [
        ("pattern p(input d: int[n]) = { q -> k : d == 1 }", "ATT0316", "d"),
        ("pattern p(input d: int[n, n]) = { q -> k : d[q] == 1 }", "ATT0316", "d[q]"),
        ("pattern p(input d: int[n, n]) = { q -> k : k in d }", "ATT0316", "d"),
        ("pattern p(input d: bool[n]) = { q -> k : k in d }", "ATT0316", "d"),
        ("pattern p(input d: int[n]) = { q -> k : d[q][k] == 1 }", "ATT0316", "k"),
        ("pattern p(input d: int[n]) = { q -> k : d[q] }", "ATT0301", "d[q]"),
        ("pattern p(input d: real[n]) = { q -> k : d[q] < 1 }", "ATT0313", "d[q] < 1"),
        ("pattern p(input d: real) = { q -> k : q < floor(d) }", "ATT0313", "floor(d)"),
        ("pattern p(input d: int[1.5]) = { q -> k : d[q] == 1 }", "ATT0301", "1.5"),
        ("pattern p(input d: int[n], input e: int[n] = d[0]) = { q -> k : e[q] == 1 }",
         "ATT0314", "d[0]"),
        ("pattern p(input d: int[n], input e: int[n, n] = prefix_sum(d)) = "
         "{ q -> k : e[q][k] == 1 }", "ATT0314", "prefix_sum(d)"),
        ("pattern p(input d: int[n], input e: bool[n] = d + 1) = { q -> k : e[q] }",
         "ATT0301", "d + 1"),
        ("pattern p(input d: int[n], input e: int[n] = next_where(d)) = { q -> k : e[q] == 1 }",
         "ATT0301", "d"),
        ("pattern p(input d: int[n], input e: bool[n] = khop(d == 1, 1)) = { q -> k : e[q] }",
         "ATT0314", "d == 1"),
        ("pattern p(input d: int[n], input e: int[n] = repeat(d, 2)) = { q -> k : e[q] == 1 }",
         "ATT0302", "repeat"),
        ("pattern p(input d: int[n]) = { q -> k : prefix_sum(d) == k }", "ATT0314", "prefix_sum"),
        ("pattern p(input d: int[n]) = { q -> k : len(d) < k }", "ATT0301", "d"),
        ("pattern p(input d: int[n], w: int = d) = { q -> k : w < k }", "ATT0201", "d"),
        ("pattern p(input ids: bool[n]) = document(ids)", "ATT0301", "ids"),
        ("pattern p(input ids: int[n, n]) = document(ids)", "ATT0301", "ids"),
        ("pattern p = document(doc_ids: 3)", "ATT0301", "3"),
        ("pattern p(input d: int[n], d: int = 3) = { q -> k : d[q] < 3 }",
         "ATT0203", "d: int = 3"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused(text: str, code: str, span: str) -> None:
    assert (code, span) in [f for f in found(text) if f[0] != "ATT0210"], found(text)
    assert len({f[0] for f in found(text)} - {"ATT0210"}) == 1


# ---------------------------------------------------------------------------------- units


@pytest.mark.parametrize(
    "condition",
    [
        "q div 64 <= k", "k == h", "q < h", "h >= q div 4", "q + 1 <= k div 8", "min(q, 5) < h",
        "(let b = q div 8 in b) == k", "(if q < 4 then q else k) == h",
    ],
)  # fmt: skip
def test_mixed_units_are_a_warning(condition: str) -> None:
    (warning,) = checked(f"pattern p heads h: 4 = {{ q -> k, h : {condition} }}")
    assert (warning.code, warning.severity) == ("ATT0322", "warning")


@pytest.mark.parametrize(
    "condition",
    [
        "q div 64 == k div 64", "q div 64 * 64 <= k", "k - h == 0", "q mod 4 == h", "q - k < h",
        "(k div 64 + h) mod 4 == 0", "q div 64 - k div 64 < 4", "max(q, k) < 4", "2 * q < h",
        "(q, k div 4) in causal", "abs(q - k) == h",
    ],
)  # fmt: skip
def test_what_has_no_unit_is_never_warned_of(condition: str) -> None:
    assert found(f"pattern p heads h: 4 = {{ q -> k, h : {condition} or h < 0 }}") == []


def test_units_of_coordinates_and_axes() -> None:
    assert found(GRID % ("grid(y, x)", "q.y == k.x")) == [("ATT0322", "q.y == k.x")]
    assert found(GRID % ("grid(y, x)", "q.y div 2 == k.y")) == [("ATT0322", "q.y div 2 == k.y")]
    assert found(GRID % ("grid(y, x) -> grid(t, s)", "q.y == k.s")) == []
    four = "pattern p(input t: int[n, 4]) heads h: 4 = { q -> k, h : t[q][k] == h }"
    assert found(four) == []  # a number says nothing of what it counts
    table = "pattern p(input t: int[heads, n]) heads h: 4 = { q -> k, h : t[%s][%s] == 1 }"
    assert found(table % ("h", "q")) == []
    assert found(table % ("q", "h")) == [("ATT0322", "q"), ("ATT0322", "h")]
    assert checked(table % ("q", "0"))[0].severity == "error"
    assert [(d.code, d.severity) for d in checked(table % ("h", "q div 8"))] == [
        ("ATT0322", "warning")
    ]


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("h < 8", "h >= 7", "head 7 is"),
        ("h <= 8", "7 <= h < 12", "heads 7 to 8 are"),
        ("2 <= h <= 5 and q < k", "4 < h", "head 5 is"),
        ("h < 8", "h >= 8", None),
        ("h < 8", "h == 3", None),
        ("h < 8", "h < 8", None),
        ("h < 8 or q < 3", "h >= 7", None),
        ("h < w", "h >= 7", None),
    ],
)
def test_ranges_of_heads_that_overlap_in_part(first: str, second: str, shared: str | None) -> None:
    text = (
        f"param w: int = 8\npattern p heads h: 16 = {{ q -> k, h : {second} and k < w }} | causal\n"
        f"  | window(3) & {{ q -> k, h : {first} }}"
    )
    messages = [d.message for d in checked(text)]
    assert messages == ([f"{shared} in two ranges of heads"] if shared else [])


# ------------------------------------------------------------------------------------ fns


def test_fns_are_checked_at_the_times_of_their_arguments() -> None:
    power = "fn power(x: int) = 2**x\n"
    assert found(power + "pattern p = { q -> k : q - k < power(5) }") == []
    assert found(power + "pattern p heads h: 4 = { q -> k, h : q - k < power(h) }") == []
    (wrong,) = checked(power + "pattern p = { q -> k : k < power(q) }")
    assert (wrong.code, marked(wrong)) == ("ATT0304", "power(q)")
    assert wrong.message.startswith("in `power`: ")
    assert wrong.notes == ("line 1 of test.attn: this depends on positions or lengths",)


@pytest.mark.parametrize(
    ("text", "code", "span"),
    [
        ("fn f(x: int) = x + y\npattern p = { q -> k : f(q) < k }", "ATT0201", "y"),
        ("fn f(x: int) = x + n\npattern p = { q -> k : f(q) < k }", "ATT0201", "n"),
        ("fn f(x: int) = f(x - 1)\npattern p = { q -> k : f(q) < k }", "ATT0204", "f(x - 1)"),
        ("fn f(x: int) = x\npattern p = { q -> k : f(q, k) < k }", "ATT0302", "k"),
        ("fn f(x: int) = x\npattern p = { q -> k : f() < k }", "ATT0207", "f()"),
        ("fn f(x: int) = x\npattern p = { q -> k : f(y: q) < k }", "ATT0206", "q"),
        ("fn f(x: int) = x\npattern p = { q -> k : f(q < k) < k }", "ATT0301", "q < k"),
        ("fn f(x: int) = x\npattern p = { q -> k : f(q) }", "ATT0301", "f(q)"),
        ("fn f(x: int) = x\npattern p = f", "ATT0214", "f"),
        ("fn f(x: int) = x\npattern p = causal", "ATT0210", "f"),
        ("fn f(x: pattern) = 1\npattern p = { q -> k : f(causal) == k }", "ATT0301", "x: pattern"),
        ("fn f(x: int) = (x, x) in causal\npattern p = { q -> k : f(q) }",
         "ATT0214", "(x, x) in causal"),
        ("pattern p = { q -> k : abs(x: q) < k }", "ATT0206", "abs"),
        ("pattern p = { q -> k : [for i in 0..q : i][0] < k }", "ATT0306", "q"),
        ("pattern p = { q -> k : (count i in 0..q : i < k) < 3 }", "ATT0306", "q"),
        ("pattern p = { q -> k : [q, k][q] == 1 }", "ATT0306", "q"),
        ("pattern p = { q -> k : fill(q, 1)[0] < k }", "ATT0306", "q"),
        ("pattern p = { q -> k : log(q) < k }", "ATT0313", "log(q)"),
        ("pattern p = { q -> k : q < sqrt(2) }", "ATT0313", "q < sqrt(2)"),
    ],
)  # fmt: skip
def test_fns_and_formulas_that_are_refused(text: str, code: str, span: str) -> None:
    assert (code, span) in found(text), found(text)
    assert len({f[0] for f in found(text)}) == 1


@pytest.mark.parametrize(
    "text",
    [
        "fn f(x: int, m: one of a, b = a) = if m == a then x else 2 * x\n"
        "pattern p = { q -> k : f(q) < f(k, b) and f(m: a, x: 3) < 4 }",
        "param w: int = 3\nfn f(x: int) = x < w\npattern p = { q -> k : f(q - k) }",
        "pattern p = { q -> k : [1, 2, 4][q mod 3] == k }",
        "pattern p = { q -> k : (sum i in 0..3 : i * q) < k and (count i in 0..3 : i < q) == k }",
        "pattern p = { q -> k : bit(q, 3) and bit_length(k) < 4 and q * k < n * n }",
        "pattern p(w: list[list[int]] = [[1], [2, 3]]) = { q -> k : w[1][0] < q - k }",
        "pattern p(w: int = floor(sqrt(10) * log(3))) = { q -> k : q - k < w }",
        "pattern p = { q -> k : q mod (k + 1) == 0 and (q - k) ** 2 < 9 }",
        'pattern p(w: int = 3) require w < 4 and len([w]) == 1 else "w" = window(w)',
    ],
)
def test_formulas(text: str) -> None:
    assert found(text) == []


def test_long_chains_of_fns_are_refused_not_followed() -> None:
    chain = "fn f0(x: int) = x\n" + "".join(
        f"fn f{i}(x: int) = 1 + f{i - 1}(x) * 2\n" for i in range(1, 400)
    )
    text = chain + "pattern p = { q -> k : f399(q) < k }"
    ((code, name),) = found(text)
    assert (code, name[0]) == ("ATT0312", "f")


# ------------------------------------------------------------ patterns as values, scores


@pytest.mark.parametrize(
    "text",
    [
        "pattern p(base: pattern = causal) = base & { q -> k : (q, k) in base }",
        "pattern p(ps: list[pattern] = [causal, window(3)]) = ps[0] | "
        "union over i in 0..len(ps) - 1 : ps[i] & { q -> k : (q, k) in ps[i] }",
        "pattern p(base: pattern) = base\npattern r = p(window(left: 4)) | p(base: causal)",
        "pattern p = blocks(causal, 64, any) & blocks(causal, 64, 32, density >= 0.6)",
        "score s = { q -> k : exp(q - k) * (q - k) ** 2 / (k + 1) }\n"
        "attention a = softmax(dot + s, over: causal, scale: 1/8)",
        "score s(w: int = 4, input t: real[n]) = { q -> k : t[k] * w }\n"
        "attention a(input t: real[n]) = softmax(tanh(dot) + s(8, t: t), over: window(8))",
        "attention a(input sinks: real[heads]) heads h: 8 = "
        "softmax(softcap(dot, cap: 30) - h, over: causal, sink: sinks[h])",
        "pattern p kv_heads g: 4 layers l: 6 = { q -> k, g : l mod 2 == 0 or q mod 4 == g }",
    ],
)
def test_patterns_scores_and_attention(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "code", "span"),
    [
        ("pattern p(b: pattern = 3) = b", "ATT0301", "3"),
        ("pattern p(b: pattern = csual) = b", "ATT0202", "csual"),
        ("pattern p(b: pattern = causal) = b(3)", "ATT0302", "3"),
        ("pattern p(b: pattern = causal) = { q -> k : b }", "ATT0301", "b"),
        ("pattern p(bs: list[pattern] = causal) = bs[0]", "ATT0301", "causal"),
        ("pattern p(bs: list[pattern] = [causal]) = bs", "ATT0301", "bs"),
        ("pattern p(bs: list[pattern] = [causal]) = bs[n]", "ATT0306", "n"),
        ("pattern p(w: int = 3) = w", "ATT0214", "w"),
        ("pattern p(w: list[int] = [3]) = w[0]", "ATT0301", "w"),
        ("pattern p = { q -> k : causal }", "ATT0214", "causal"),
        ("pattern p = { q -> k : window(3) }", "ATT0214", "window"),
        ("pattern p = { q -> k : (q, k) in window(left: q) }", "ATT0306", "q"),
        ("pattern p = blocks(causal, n, any)", "ATT0306", "n"),
        ("pattern p = blocks(causal, 4, density > n)", "ATT0306", "n"),
        ("score s = { q -> k : q < k }", "ATT0301", "q < k"),
        ("score s = { q -> k : k - q }\npattern p = s & causal", "ATT0214", "s"),
        ("score s = { q -> k : k - q }\npattern p = { q -> k : s == 1 }", "ATT0214", "s"),
        ("attention a = softmax(dot, over: causal)\npattern p = a", "ATT0214", "a"),
        ("attention a = softmax(dot + causal, over: causal)", "ATT0214", "causal"),
        ("attention a = softmax(dot + q, over: causal)", "ATT0201", "q"),
        ("attention a = softmax(dot < 1, over: causal)", "ATT0301", "dot < 1"),
        ("attention a = softmax(dot, over: causal, scale: n)", "ATT0306", "n"),
        ("attention a = softmax(dot, over: causal, sink: causal)", "ATT0214", "causal"),
        ("score s(w: int) = { q -> k : w }\nattention a = softmax(dot + s, over: causal)",
         "ATT0207", "s"),
        ("pattern p(w: int = 3) require w else \"no\" = window(w)", "ATT0301", "w"),
        ("pattern p(w: int = 3) require w < n else \"no\" = window(w)", "ATT0306", "w < n"),
        ("pattern p layers l: n = { q -> k : l == 0 }", "ATT0306", "n"),
        ("space a = b\nspace b = a\npattern p on a = { q -> k : q == k }", "ATT0204", "a"),
        ("pattern p(base: pattern) = base\npattern r = p(r)", "ATT0204", "r"),
    ],
)  # fmt: skip
def test_patterns_and_scores_that_are_refused(text: str, code: str, span: str) -> None:
    assert found(text) == [(code, span)]


def test_what_nothing_uses() -> None:
    text = (
        "input doc: int[n]\nspace s = grid(y, x)\nfn f(x: int) = x\n"
        "pattern p(input t: int[n]) = causal"
    )
    assert [d.message for d in checked(text)] == [
        "input `doc` is never used", "space `s` is never used", "fn `f` is never used",
        "input `t` is never used",
    ]  # fmt: skip
    assert checked("fn f(x: int) = x\nspace s = grid(y, x)") == []  # a file to import from


# -------------------------------------------------------------------------------- imports


def test_every_sort_of_item_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "parts.attn").write_text(
        "param w: int = 4\nspace image = grid(y, x)\ninput doc: int[n]\nfn twice(x: int) = 2 * x\n"
        "score bias = { q -> k : k - q }\npattern near = { q -> k : q - k < w }\n"
    )
    text = (
        'import image, doc, twice, bias, near from "parts.attn"\n'
        "pattern p on image = near(w: 3) & { q -> k : doc[q] == twice(k) and q.y == k.y }\n"
        "attention a = softmax(dot + bias, over: p)\n"
    )
    assert checked(text, tmp_path) == []
    (wrong,) = checked('import naer from "parts.attn"\npattern p = causal', tmp_path)
    assert (wrong.code, wrong.help) == ("ATT0205", "did you mean `near`?")
    (clash,) = checked('import bias from "parts.attn"\npattern bias = causal', tmp_path)
    assert clash.code == "ATT0203"
