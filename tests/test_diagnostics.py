"""Every code is in the tables, is explained by an example that works, and is raised in a golden."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

import attnc
from attnc.cli import invoke
from attnc.compiler.driver import check_text
from attnc.dsl.codes import CODES, explain
from attnc.dsl.diagnostics import CompileError, Diagnostic, render
from attnc.dsl.source import Source, Span
from attnc.dsl.suggest import closest, did_you_mean
from tests import markdown

GOLDENS = sorted((Path(__file__).parent / "diagnostics").glob("*.md"))
PACKAGES = [Path(attnc.__file__).parent, *(
    Path(__file__).parents[1] / folder for folder in ("dsl", "compiler", "codegen", "runtime")
)]  # fmt: skip

# Codes whose example is no pattern text: they concern whole files and commands.
NOT_TEXT = {
    "ATT0100", "ATT0103", "ATT0104", "ATT0106", "ATT0114", "ATT0205", "ATT0405", "ATT0406",
    "ATT0407", "ATT0408", "ATT0409", "ATT0503", "ATT0504", "ATT0505", "ATT0506", "ATT0507",
    "ATT0901", "ATT0213", "ATT0411", "ATT0508", "ATT0509", "ATT0510", "ATT0511", "ATT0512",
    "ATT0336",
}  # fmt: skip
# Raised by a broken installation or a bug alone; tests/test_cli.py shows the second.
OUT_OF_REACH = {"ATT0507", "ATT0901"}


def outcome(block: markdown.Block) -> str:
    """Return what an ``attn`` text, some ``python`` code or a ``shell`` command complains of."""
    match block.kind:
        case "attn":
            return shown_all(check_text(block.text, name="test.attn"))
        case "python":
            return shown_all(run_python(block.text))
        case "shell":
            stderr = io.StringIO()
            with contextlib.redirect_stderr(stderr):
                assert invoke(shlex.split(block.text)[1:]) == 1
            return stderr.getvalue()
        case kind:
            raise AssertionError(f"a golden has no {kind} block")


def shown_all(diagnostics: tuple[Diagnostic, ...]) -> str:
    return "\n\n".join(render(d) for d in diagnostics) + "\n" * bool(diagnostics)


def run_python(code: str) -> tuple[Diagnostic, ...]:
    """Return the diagnostics that the code raises, or leaves in the variable ``diagnostics``."""
    scope: dict[str, object] = {"attnc": attnc, "check_text": check_text}
    try:
        exec(code, scope)
    except CompileError as error:
        return error.diagnostics
    found = scope["diagnostics"]
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden(path, update_golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = markdown.blocks(path.read_text(encoding="utf-8"))
    assert len(blocks) >= 2, f"{path.name} needs an input block and a `diagnostics` block"
    results = []
    for given, expected in zip(blocks[::2], blocks[1::2], strict=True):
        assert expected.kind == "diagnostics"
        results.append((expected, outcome(given)))
    markdown.check(path, results, update_golden)


def test_every_code_is_raised_in_a_golden():
    text = "".join(path.read_text(encoding="utf-8") for path in GOLDENS)
    raised = set(re.findall(r"^\w+\[(ATT\d{4})\]:", text, re.M))
    assert set(CODES) - OUT_OF_REACH == raised


def test_the_tables_hold_exactly_the_codes_of_the_sources():
    used = set()
    for folder in PACKAGES:
        for path in folder.rglob("*.py"):
            if not path.name.startswith("codes_"):
                # In code alone: an example in a help text is not a use.
                used |= set(re.findall(r"\"(ATT\d{4})\"", path.read_text(encoding="utf-8")))
    assert used == set(CODES)
    assert all(code == entry.code for code, entry in CODES.items())


@pytest.mark.parametrize("code", sorted(CODES))
def test_the_example_raises_the_code_and_the_advice_does_not(code):
    entry = CODES[code]
    assert explain(code).startswith(f"{code}: {entry.title}\n")
    if code in NOT_TEXT:
        return
    assert code in {d.code for d in check_text(entry.example)}
    if "import" not in entry.instead:
        advised = check_text(entry.instead)
        assert not [d for d in advised if d.severity == "error" or d.code == code], advised


def test_explain_refuses_an_unknown_code():
    with pytest.raises(ValueError, match="ATT9999"):
        explain("ATT9999")


def test_suggestions_are_near_or_absent():
    assert closest("windwo", ["window", "causal"]) == "window"
    assert closest("WINDOW", ["window", "causal"]) == "window"
    assert did_you_mean("zzzz", ["window"]) == ""
    assert did_you_mean("w" * 5000, ["window"]) == ""


def shown(text: str, part: str, label: str = "") -> list[str]:
    start = text.index(part)
    line = text.count("\n", 0, start) + 1
    column = start - (text.rfind("\n", 0, start) + 1) + 1
    span = Span(Source("x.attn", text), start, start + len(part), line, column)
    return render(Diagnostic(code="ATT0101", message="m", span=span, label=label)).split("\n")[3:]


def test_carets_follow_wide_combining_and_tab_characters():
    assert shown("\tab", "b") == ["1 |     ab", "  |      ^"]
    assert shown("\u4e2d\u4e2d x", "x") == ["1 | \u4e2d\u4e2d x", "  |      ^"]
    assert shown("\u4e2d\u4e2d x", "\u4e2d\u4e2d") == ["1 | \u4e2d\u4e2d x", "  | ^^^^"]
    assert shown("e\u0301 x", "x") == ["1 | e\u0301 x", "  |   ^"]


def test_a_span_over_lines_underlines_each():
    assert shown("a (b |\n\n   c) d", "(b |\n\n   c)", "here") == [
        "1 | a (b |", "  |   ^^^^", "3 |    c) d", "  |    ^^ here",
    ]  # fmt: skip
    many = shown("\n".join("abcdefg"), "\n".join("abcdef"))
    assert many[-1] == "  | ... to line 6"


def test_a_very_long_line_is_cut_around_the_span():
    text, carets = shown("a" * 5000 + "b" + "a" * 5000, "b")
    assert len(text) < 200
    assert text[carets.index("^")] == "b"


def test_nothing_a_terminal_would_obey_is_printed():
    text = render(Diagnostic(code="ATT0101", message="bad \x1b[31m \u2028 \ud800 name"))
    assert text == "error[ATT0101]: bad \ufffd[31m \ufffd \ufffd name"
