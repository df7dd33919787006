"""Hypothesis strategies: well-typed texts with spaces, inputs, pairs, blocks, and data for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.strategies import conditions

SIDES = st.integers(1, 4)


@dataclass(frozen=True)
class Case:
    """A file with a pattern ``p``, lengths it has (None: its spaces say them), and its data."""

    text: str
    nq: int | None
    nk: int | None
    inputs: dict[str, Any] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)


PAIRS = st.sampled_from(
    (
        "(q, k) in causal", "(q - 2, k) in window(left: 3)", "(q div 2, k + 1) not in causal",
        "(k, q) in near", "(q mod 3, k) in near",
    )
)  # fmt: skip
FUNCTIONS = st.sampled_from(
    (
        "twice(q) <= k + 3", "bit_length(q) == bit_length(k)", "bit(k, q mod 4)",
        "(sum e in 0..3 : if k >= e then 1 else 0) > q mod 3",
        "[2, 0, 5, 5, 1][q mod 6] == k mod 6", "(count e in 1..4 : q mod e == 0) == 2",
        "far[abs(q - k)] >= 1",
    )
)  # fmt: skip
READS = st.sampled_from(
    (
        "doc[q] == doc[k]", "doc[q - 1] <= k", "flags[k]", "adj[q][k]", "adj[q mod 3][k - 1]",
        "k in lists[q mod 3]", "q - k in lists[0]", "(q - k) mod 4 == phase", "next[q] > k",
        "q * k < phase + 20", "k mod (q + 1) == 0", "q div phase == 2", "2 * rows > q",
        "exists e in 0..2 : doc[q + e] == k",
    )
)  # fmt: skip
EXTRA = {"pairs": PAIRS, "plain": PAIRS | FUNCTIONS, "data": PAIRS | READS}
_HELPERS = """\
pattern near = { q -> k : abs(q - k) <= 1 and k < nk - 1 }
fn twice(x: int, by: int = 2) = by * x
param far: list[int] = [0, 0, 2, 1, 1]
"""
_INPUTS = """\
input doc: int[n]
input flags: bool[nk]
input adj: bool[rows, nk]
input lists: int[3, *]
input phase: int
input next: int[nk] = next_where(flags or doc == 1)
"""


@cache
def _builders(
    names: tuple[str, ...], kind: str, query: str = "q", key: str = "k"
) -> st.SearchStrategy[str]:
    """Return builders whose conditions use ``names`` and conditions of a kind."""
    extra, plain = EXTRA[kind], conditions(names)
    condition = st.one_of(
        plain,
        st.builds("{0} and {1}".format, extra, plain),
        st.builds("{0} or {1}".format, extra, plain),
    )
    return condition.map(lambda text: f"{{ {query} -> {key} : {text} }}")


@cache
def _sets(names: tuple[str, ...], kind: str) -> st.SearchStrategy[str]:
    """Return sets of builders: set algebra, loops and whole blocks."""
    rule = st.sampled_from(
        ("any", "all", "count > 1", "count >= 3", "density > 1/2", "density >= 0.3")
    )
    return st.recursive(
        _builders(names, kind),
        lambda part: st.one_of(
            st.builds("({0} | {1})".format, part, part),
            st.builds("({0} - {1})".format, part, part),
            st.builds("~{0}".format, part),
            st.builds("blocks({0}, {1}, {2}, {3})".format, part, SIDES, SIDES, rule),
            st.builds("(union over i in {0}..2 : {1})".format, st.integers(0, 3), part),
        ),
        max_leaves=3,
    )


@st.composite
def plain_cases(draw: st.DrawFn) -> Case:
    """A sequence with pairs, functions, lists and loops; static unless a product is drawn."""
    nq, nk = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    text = draw(_sets(("q", "k", "q", "k", "nk"), "plain"))
    return Case(f"{_HELPERS}pattern p = {text}\n", nq, nk)


@st.composite
def data_cases(draw: st.DrawFn) -> Case:
    """A sequence whose mask reads inputs."""
    nq, nk = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    seed = np.random.default_rng(draw(st.integers(0, 2**16)))
    names = ("q", "k", "q", "k", "doc[q]", "doc[k]", "phase")
    text = draw(_sets(names, "data"))
    inputs = {
        "doc": np.sort(seed.integers(-1, 4, nk)), "flags": seed.random(nk) < 0.5,
        "adj": seed.random((5, nk)) < 0.4, "lists": seed.integers(-1, 12, (3, 4)),
        "phase": int(seed.integers(-2, 6)),
    }  # fmt: skip
    return Case(f"{_HELPERS}{_INPUTS}pattern p = {text}\n", nq, nk, inputs)


@st.composite
def grid_cases(draw: st.DrawFn, symbolic: bool | None = None) -> Case:
    """A grid, maybe tiled, or two segments; ``symbolic``: its extents are given at the call."""
    sides = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    axes = ("y", "x", "z")[: len(sides)]
    open_ = draw(st.booleans()) if symbolic is None else symbolic
    names = ("q", "k", *(f"{p}.{a}" for p in "qk" for a in axes))
    extents: dict[str, int] = {}
    if open_:
        extents = dict(zip(axes, sides, strict=True))
        grid = f"grid({', '.join(axes)})"
    else:
        inside = ", ".join(f"{a}: {s}" for a, s in zip(axes, sides, strict=True))
        grid = f"grid({inside})"
        if draw(st.booleans()):
            tile = [draw(st.sampled_from([t for t in (1, 2, 3) if s % t == 0])) for s in sides]
            grid += f" tiled {tile}"
    if draw(st.booleans()):
        text = f"pattern p on {grid} = {draw(_sets(names, 'pairs'))}\n"
    else:
        count = draw(st.integers(0, 5))
        ends = [("video", names), ("text", ("q", "k", "q.i", "k.i")[::2])]
        parts = []
        for q_name, q_terms in ends:
            for k_name, k_terms in ends:
                terms = (*(t for t in q_terms if t[0] == "q"), "k", "q",
                         *(t for t in k_terms if t[0] == "k"))  # fmt: skip
                builders = _builders(terms, "pairs", f"q in {q_name}", f"k in {k_name}")
                parts.append(draw(builders))
        kept = " | ".join(draw(st.permutations(parts))[: draw(st.integers(1, 4))])
        text = f"pattern p on video: {grid} ++ text: grid(i: {count}) = {kept}\n"
    return Case(_HELPERS + text, None, None, {}, extents)


def cases() -> st.SearchStrategy[Case]:
    """Any of them."""
    return plain_cases() | data_cases() | grid_cases()
