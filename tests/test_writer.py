"""Long statements broken over lines: the same program, lines that fit."""

from __future__ import annotations

import ast
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.codegen.module import emit_module
from attnc.codegen.writer import WIDTH, fold
from attnc.compiler.driver import load_zoo
from attnc.compiler.passes.build_plan import build_plan

NAMES = st.sampled_from(["q_pos", "k_pos", "nk.to(tl.int64)", "64", "tl.arange(0, BK)[None, :]"])


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Draw sums, junctions and calls of smaller texts."""
    parts = st.lists(inner, min_size=2, max_size=4)
    return st.one_of(
        st.tuples(st.sampled_from([" + ", " - ", " & ", " | "]), parts).map(
            lambda drawn: f"({drawn[0].join(drawn[1])})"
        ),
        parts.map(lambda drawn: f"tl.where({', '.join(drawn)})"),
        inner.map(lambda drawn: f"abs({drawn})"),
    )


TEXTS = st.recursive(NAMES, grown, max_leaves=40)


@given(
    head=st.sampled_from(["s = ", "total += ", "return ", "yield ", "f"]),
    text=TEXTS, other=TEXTS, sign=st.sampled_from([" | ", " & ", ", ", " - "]),
)
def test_same_program(head: str, text: str, other: str, sign: str) -> None:
    """Breaking a statement changes no token of it, whatever it is."""
    both = f"{text}{sign}{other}"
    statement = f"f({both})" if head == "f" else f"{head}{both}"
    lines = fold(statement, 60)

    def parsed(body: str) -> str:
        return ast.dump(ast.parse(f"def g():\n{textwrap.indent(body, '    ')}"))

    assert parsed("\n".join(lines)) == parsed(statement)
    assert len(statement) <= 60 or len(lines) > 1


def test_layout() -> None:
    """Commas end lines, other operators begin them; what is quoted stays whole."""
    terms = " | ".join(f"(k_pos == q_pos - {n})" for n in (100, 2000, 30000))
    assert fold(f's = tl.where(({terms}) & (k_pos < nk), s, float("-inf"))', 60) == [
        "s = tl.where(",
        "    (",
        "        (k_pos == q_pos - 100)",
        "        | (k_pos == q_pos - 2000)",
        "        | (k_pos == q_pos - 30000)",
        "    )",
        "    & (k_pos < nk),",
        '    s, float("-inf"),',
        ")",
    ]
    quoted = f'raise ValueError("a, b {terms}")'
    assert fold(quoted, 60) == [quoted]


@pytest.mark.parametrize("name", ["tri_shape", "moa_search", "longnet_branch", "s2_attention"])
def test_written_modules_fit(name: str) -> None:
    """No line of a written module is too long, but those of the user's own text at its top."""
    text = emit_module(build_plan(load_zoo(name), head_dim=64))
    code = text[text.index("from __future__") :]
    assert max(map(len, code.splitlines())) <= WIDTH
