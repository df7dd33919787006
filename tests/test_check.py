"""Names, types, parameter values and files: what is accepted, what is refused, and where."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from attnc.compiler import driver
from attnc.compiler.ir.expr import show
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.resolve import STDLIB


def found(text: str, **params: object) -> list[tuple[str, str]]:
    """Return the codes and the marked text of everything wrong with a text."""
    return [(d.code, marked(d)) for d in driver.check_text(text, params=params)]


def marked(diagnostic: Diagnostic) -> str:
    span = diagnostic.span
    return span.source.text[span.start : span.stop] if span.source else ""


def predicate(text: str, **params: object) -> str:
    return show(driver.load_text(text, params=params).predicate)


def refused(text: str, **params: object) -> Diagnostic:
    with pytest.raises(CompileError) as caught:
        driver.load_text(text, params=params)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


# ------------------------------------------------------------------------------ names, types


def test_several_diagnostics_in_one_run_one_for_each_cause() -> None:
    text = (
        "param w: int = 8\n"
        "pattern a = { q -> k : 2**q < widht and q / k == 0 }\n"
        "pattern b = casual & { q -> k : q }\n"
        "pattern c = { q -> k : unknown + 1 + 2 < 3 }\n"
    )
    assert found(text) == [
        ("ATT0304", "2**q"), ("ATT0201", "widht"), ("ATT0304", "k"), ("ATT0202", "casual"),
        ("ATT0301", "q"), ("ATT0201", "unknown"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "span"),
    [
        ("q + (k < 3) < 4", "ATT0301", "k < 3"),
        ("q < true", "ATT0301", "q < true"),
        ("not q", "ATT0301", "q"),
        ("q div 1.5 == 0", "ATT0301", "1.5"),
        ("(q / 2) mod 3 == 0", "ATT0301", "q / 2"),
        ("q in 3", "ATT0301", "3"),
        ("[1, true] == q", "ATT0301", "true"),
        ("(if q < k then 1 else true) == 1", "ATT0301", "if q < k then 1 else true"),
        ("len(q) == 1", "ATT0301", "q"),
        ("(q + 1)[0] == 1", "ATT0301", "(q + 1)"),
        ("q[0] == 1", "ATT0211", "q[0]"),
        ("abs(q, k) == 1", "ATT0302", "abs"),
        ("2**q < k", "ATT0304", "2**q"),
        ("q / k < 1", "ATT0304", "k"),
        ("q * k < 9", "ATT0410", "q * k"),
        ("q mod (k + 1) == 0", "ATT0410", "q mod (k + 1)"),
        ("[q, k][k] == q", "ATT0306", "k"),
        ("[1, 2][2] == q", "ATT0308", "2"),
        ("[1, 2][-1] == q", "ATT0308", "-1"),
        ("q mod 0 == k", "ATT0307", "0"),
        ("q mod -2 == k", "ATT0307", "-2"),
        ("q div 0 == k", "ATT0307", "0"),
        ("q / 0 == k", "ATT0307", "0"),
        ("2**-1 == q", "ATT0307", "-1"),
        ("q < 2**9999", "ATT0311", "2**9999"),
        ("q < 2**(10**9)", "ATT0311", "2**(10**9)"),
        ("2**62 * q < k", "ATT0311", "2**62 * q < k"),
        ("exists e in 0..70000 : q == 3 * e", "ATT0310", "0..70000"),
        ("exists e in 0..5000 : q * e == k", "ATT0310", "0..5000"),
    ],
)
def test_the_smallest_span(body: str, code: str, span: str) -> None:
    text = f"pattern p = {{ q -> k : {body} }}"
    assert {(code, span), (code, f"({span})")} & set(found(text)), found(text)


def test_scopes() -> None:
    assert predicate("pattern p(n: int = 3) = { q -> k : q - k < n }") == "q - k < 3"
    assert predicate("pattern p(h: int = 3) = { n -> heads : n - heads < h }") == "q - k < 3"
    assert predicate("pattern p = { q -> k : k < n and q < nq and k < nk - 1 }") == (
        "k < nk and q < nq and k < nk - 1"
    )
    assert found("pattern p = { q -> k : let d = q - k in d < 3 } & { q -> k : d < 3 }") == [
        ("ATT0201", "d")
    ]


def test_enum_choices_are_words_beside_their_enum_only() -> None:
    text = "pattern p(m: one of low, high = low) = { q -> k : %s }"
    assert predicate(text % "m in [low, high] and k < 2") == "k < 2"
    assert predicate(text % "(if m == low then q else k) < 2", m="high") == "k < 2"
    assert found(text % "m == medium") == [("ATT0201", "medium")]
    assert found(text % "low < 2") == [("ATT0201", "low")]
    assert refused(text % "m == low", m="hihg").message.endswith("did you mean `high`?")


def test_heads() -> None:
    two = "pattern two heads h: 2 = { q -> k, h : q mod 2 == h }\n"
    four = "pattern four heads h: 4 = "
    assert found(two + four + "two")[0][0] == "ATT0309"
    assert found(two + four + "causal\npattern p = two | four")[0] == ("ATT0309", "two | four")
    assert driver.load_text(two + "pattern p = causal & two").heads == 2
    assert found("pattern p = { q -> k, h : h < 1 }")[0][0] == "ATT0209"
    assert found("pattern p heads h: 0 = causal")[0] == ("ATT0303", "0")
    assert found("pattern p heads h: n = causal")[0] == ("ATT0306", "n")
    assert found("pattern p heads h: 2 = { q -> k : k < h }") == [("ATT0201", "h")]


def test_cycles_and_chains() -> None:
    assert found("pattern a = b\npattern b = c\npattern c = a") == [("ATT0204", "a")]
    chain = "pattern p0 = causal\n" + "".join(f"pattern p{i} = p{i - 1}\n" for i in range(1, 60))
    assert predicate(chain) == "k <= q"
    longer = chain + "".join(f"pattern p{i} = p{i - 1}\n" for i in range(60, 90))
    assert {code for code, _ in found(longer)} == {"ATT0312"}


def test_doubling_is_refused_not_computed() -> None:
    doubled = "pattern p0 = { q -> k : k < q }\n" + "".join(
        f"pattern p{i} = p{i - 1} & ~p{i - 1} | {{ q -> k : q == {i} }}\n" for i in range(1, 40)
    )
    assert "ATT0312" in {code for code, _ in found(doubled)}
    lets = "".join(f"let x{i} = max(x{i - 1}, x{i - 1} - k) in " for i in range(1, 40))
    assert found(f"pattern p = {{ q -> k : let x0 = q in {lets} x39 < 5 }}")[0][0] == "ATT0312"


def test_files_of_many_patterns_are_checked_in_part() -> None:
    assert found("pattern p = causal\n" * 50)[0][0] == "ATT0203"
    many = "".join(f"pattern p{i} = window({i})\n" for i in range(400))
    (note,) = driver.check_text(many)
    assert (note.code, note.severity) == ("ATT0312", "note")
    assert len(found("pattern p = " + " | ".join(f"{{ q -> k : q div 0 == {i} }}"
                                                 for i in range(300)))) == 100
    assert len(found("pattern p = " + " | ".join(f"unknown{i}" for i in range(300)))) == 100


def test_nested_divisions_are_not_asked_about() -> None:
    nested = "(" * 40 + "q" + "".join(f" + k) mod {i + 3}" for i in range(40))
    assert found(f"pattern p = {{ q -> k : {nested} == 1 }}") == []


# --------------------------------------------------------------------------- parameter values


@pytest.mark.parametrize(
    ("declared", "given", "shown"),
    [
        ("int", 3, "3"),
        ("int", "3", "3"),
        ("int", np.int32(3), "3"),
        ("int", Fraction(6, 2), "3"),
        ("int", "-3", "-3"),
        ("rational", 0.1, "0.1"),
        ("rational", "0.25", "0.25"),
        ("rational", "1/3", "1/3"),
        ("rational", 2, "2"),
        ("bool", True, "true"),
        ("bool", "false", "false"),
        ("bool", np.bool_(True), "true"),
        ("list[int]", [1, 2], "[1, 2]"),
        ("list[int]", "[1, 2]", "[1, 2]"),
        ("list[int]", "1,2", "[1, 2]"),
        ("list[int]", np.array([1, 2]), "[1, 2]"),
        ("list[rational]", (1, 0.5), "[1, 0.5]"),
        ("list[int]", [], "[]"),
        ("one of a, b", "b", "b"),
    ],
)
def test_values_are_read_exactly(declared: str, given: object, shown: str) -> None:
    uses = {"int": "w < 3", "rational": "w < 3", "bool": "w", "one of a, b": "w == a"}
    use = uses.get(declared, "len(w) < 3")
    text = f"pattern p(w: {declared}) = {{ q -> k : {use} or k <= q }}"
    assert driver.load_text(text, params={"w": given}).params == (("w", shown),)


@pytest.mark.parametrize(
    ("declared", "given"),
    [
        ("int", 3.0), ("int", True), ("int", "x"), ("int", "3 + 4"), ("int", None), ("int", 2.5),
        ("rational", float("nan")), ("rational", float("inf")), ("rational", True),
        ("bool", 1), ("bool", "yes"), ("list[int]", 3), ("list[int]", [True]),
        ("list[int]", {"a": 1}), ("list[int]", "1;2"), ("one of a, b", "c"), ("one of a, b", 3),
    ],
)  # fmt: skip
def test_other_values_are_refused(declared: str, given: object) -> None:
    text = f"pattern p(w: {declared}) = {{ q -> k : w == w or k <= q }}"
    text = text.replace("w == w", "len(w) == 1") if declared.startswith("list") else text
    diagnostic = refused(text, w=given)
    assert diagnostic.code == "ATT0301"
    assert "parameter `w`: expected " in diagnostic.message


def test_ranges_and_missing_values() -> None:
    text = "pattern p(w: int in 1..8, l: list[int] in 0.. = []) = { q -> k : q - k < w + len(l) }"
    assert predicate(text, w=8) == "q - k < 8"
    assert refused(text, w=9).message == "`w` = 9 is outside 1..8"
    assert refused(text, w=1, l=[0, -1]).message == "`l` = -1 is outside 0.."
    assert refused(text).code == "ATT0207"
    assert refused(text, w=1, ww=2).help == "did you mean `w`?"
    assert driver.check_text(text) == ()  # a value is wanted when it is compiled, not before


def test_file_parameters() -> None:
    text = "param w: int = 4\npattern a = { q -> k : q - k < w }\npattern p = a & causal"
    assert predicate(text) == "q - k < 4 and k <= q"
    assert predicate(text, w=6) == "q - k < 6 and k <= q"


# --------------------------------------------------------------------------- files and names


def test_imports_are_relative_and_keep_their_parameters(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "parts.attn").write_text(
        "param w: int = 4\npattern near(v: int = 1) = { q -> k : v <= q - k < w }\n"
    )
    main = tmp_path / "main.attn"
    main.write_text(
        'import near from "sub/parts.attn"\nparam w: int = 9\n'
        "pattern p = near(2) | near(w: 7) | { q -> k : q - k == w }\n"
    )
    mask = driver.dense(main, None, None, 12, 12)
    assert np.array_equal(driver.load_file(main).mask(12, 12), mask)
    assert mask[0, 11].tolist() == [d in {1, 2, 3, 4, 5, 6, 9} for d in range(11, -1, -1)]


def test_imports_that_fail(tmp_path: Path) -> None:
    main = tmp_path / "main.attn"
    main.write_text('import p from "missing.attn"\npattern r = p\n')
    assert driver.check_file(main)[0].code == "ATT0205"
    main.write_text('import r from "main.attn"\npattern r = causal\n')
    assert driver.check_file(main)[0].code == "ATT0205"
    (tmp_path / "other.attn").write_text("pattern near = causal\n")
    main.write_text('import naer from "other.attn"\npattern r = causal\n')
    assert driver.check_file(main)[0].help == "did you mean `near`?"
    assert driver.check_text('import a from "other.attn"\npattern p = a')[0].code == "ATT0205"


def test_errors_of_an_imported_file_are_shown_there(tmp_path: Path) -> None:
    (tmp_path / "other.attn").write_text("pattern near = { q -> k : q * k < 3 }\n")
    main = tmp_path / "main.attn"
    main.write_text('import near from "other.attn"\npattern r = near\n')
    (wrong,) = driver.check_file(main)
    assert wrong.span.source is not None
    assert Path(wrong.span.source.name).name == "other.attn"
    assert marked(wrong) == "q * k"


def test_which_pattern_a_file_is_loaded_for(tmp_path: Path) -> None:
    path = tmp_path / "near.attn"
    path.write_text("pattern near = causal\npattern last = window(3)\n")
    assert driver.load_file(path).name == "near"
    assert driver.load_file(path, "last").name == "last"
    path = path.rename(tmp_path / "far.attn")
    assert driver.load_file(path).name == "last"
    with pytest.raises(CompileError, match="did you mean `near`"):
        driver.load_file(path, "naer")
    with pytest.raises(CompileError, match="defines no pattern"):
        driver.load_text("param w: int = 3\n")


def test_the_zoo() -> None:
    assert len(driver.zoo_names()) >= 31
    with pytest.raises(CompileError, match="did you mean `longformer`"):
        driver.load_zoo("longfromer")
    for name in driver.zoo_names():
        assert driver.zoo_text(name).startswith("# ")
        assert len(driver.zoo_summary(name)) > 20
        for wanted in ("# Formula:", "# When:"):
            assert wanted in driver.zoo_text(name), (name, wanted)
        assert re.search(rf"^(pattern|score|attention|fn) {name}\b", driver.zoo_text(name), re.M)
        found = driver.check_text(driver.zoo_text(name), folder=STDLIB)
        assert not [d for d in found if d.severity == "error"]


def test_a_local_pattern_hides_the_standard_one() -> None:
    assert predicate("pattern causal = { q -> k : k < q }\npattern p = causal") == "k < q"


# ------------------------------------------------------------------------------- warnings


def test_warnings() -> None:
    def warned(text: str) -> list[tuple[str, str]]:
        return [(w.code, w.label) for w in driver.load_text(text).warnings]

    assert warned("pattern p = { q -> k : k <= q }") == []
    assert warned("pattern p(w: int = 3) = causal") == [("ATT0210", "pattern `p` never reads it")]
    assert warned("pattern p = { q -> k : k < q }") == [("ATT0321", "query 0 sees none")]
    assert warned("pattern p = { q -> k : k < q and k > q }")[0][0] == "ATT0320"
    assert warned("pattern p = { q -> k : q == k and q mod 7 != 5 }") == [
        ("ATT0321", "query 5 of 6 sees none")
    ]
