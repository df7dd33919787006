"""Lowering is right where the pattern IR has the mask that the oracle reads from the AST."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.compiler import driver
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.dsl.resolve import stdlib_module
from tests.strategies import patterns

LENGTHS = st.integers(1, 60)


def agree(text: str, nq: int, nk: int, name: str | None = None) -> pat.Pattern:
    """Assert that IR and oracle agree on a text; return the IR."""
    lowered = driver.load_text(text, name)
    expected = driver.dense_text(text, name, None, nq, nk)
    found = lowered.mask(nq, nk)
    assert found.shape == expected.shape
    differing = np.argwhere(found != expected)
    assert not differing.size, f"{text}\n{ex.show(lowered.predicate)}\nat {differing[:3].tolist()}"
    return lowered


def shown(text: str) -> str:
    return ex.show(driver.load_text(text).predicate)


@settings(max_examples=60, deadline=None)
@given(patterns(), LENGTHS, LENGTHS)
def test_random_patterns(text: str, nq: int, nk: int) -> None:
    agree(text, nq, nk)


TEXTS = {
    "rational comparison": "pattern p = { q -> k : q / 3 - k / 4 < 2.5 and k * 0.25 <= q }",
    "floor and ceil": "pattern p = { q -> k : floor(1.5 + 0.3 * n) >= k and k <= ceil(q / 7) * 2 }",
    "rational extremes": "pattern p = { q -> k : max(q / 2, k / 3) <= 4 or abs(q / 3 - k) < 0.5 }",
    "clamp": "pattern p = { q -> k : k == clamp(q - 5, 2, n - 3) }",
    "negative divisor": "pattern p = { q -> k : (q - k) div -3 >= -2 and (k - 9) mod 4 == 3 }",
    "chain of div": "pattern p = { q -> k : (q - 20) div 2 div 3 == (k - 20) div 6 }",
    "enum": "pattern p(c: one of self, past = past) = { q -> k : q - k == (if c == past then 1"
            " else 0) }",
    "bool equality": "pattern p(b: bool = false) = { q -> k : (q < k) == b or (k < 3) != (q < 3) }",
    "in a list": "pattern p(l: list[int] = [1, 5, 40]) = { q -> k : q in l or k not in [0, q, 3] }",
    "list extremes": "pattern p(l: list[int] = [1, 5, 4]) = { q -> k : min(l) <= q - k <= max(l) }",
    "nested quantifiers": "pattern p = { q -> k : exists a in 1..3 : forall b in 0..2 :"
                          " q + b >= a * k - a * b }",
    "run-time ends": "pattern p = { q -> k : exists e in k..q : e mod 7 == 0 and 2 * e <= q + k }",
    "a shadowed coordinate": "pattern p = { q -> k : exists q in 0..3 : k == 4 * q }",
    "a shadowed variable": "pattern p = { q -> k : exists e in 0..9 : k == e and"
                           " (exists e in 0..3 : q == 3 * e) }",
    "a variable named like a tile": "pattern p = { q -> k : exists kb in 0..5 : k == 2 * kb + q }",
    "empty range": "pattern p = { q -> k :"
                   " (exists e in 3..2 : true) or (forall e in 3..2 : k < q) and k < 5 }",
    "lengths": "pattern p = { q -> k : nq - q > nk - k and 2 * k < n }",
    "parameters named like lengths": "pattern p(n: int = 5, h: int = 2) ="
                                     " { q -> k : q - k < n * h }",
    "coordinates of other names": "pattern p heads n: 3 = { k -> q, h : k - q >= 4 * h }",
    "guarded division": "pattern p(w: int = 0) = { q -> k : k < 5 and"
                        " (w == 0 or q div w == k div w) }",
    "guarded index": "pattern p(l: list[int] = [3]) = { q -> k : exists i in 0..4 :"
                     " i < len(l) and l[i] == q - k }",
    "difference chain": "pattern p = causal - { q -> k : q == k } - { q -> k : k == 3 }"
                        " - { q -> k : q == 9 }",
    "set if": "pattern p(w: int = 3) = if w > 2 then window(w) else causal",
    "references": "param w: int = 2\npattern a(v: int = w + 1) = { q -> k : q - k == v }\n"
                  "pattern p = a | a(5) | a(v: 2 * w)",
    "head table": "pattern p(r: list[int] = [1, 2, 2, 3]) heads h: len(r) ="
                  " { q -> k, h : (q - k) mod r[h] == 0 }",
    "head arithmetic": "heads h: 5\npattern p = causal &"
                       " { q -> k, h : (k div 2 + 3 * h) mod 5 == 0 }",
    "head powers": "pattern p heads h: 4 = { q -> k, h : abs(q - k) < 2**h }",
    "one head": "pattern p heads h: 1 = { q -> k, h : k <= q + h }",
    "bit length": "pattern p = { q -> k : exists e in 1..9 : q - k == bit_length(e) * e }",
    "powers": "pattern p = { q -> k : exists e in 0..62 : q == k + 2**e }",
    "let": "pattern p = { q -> k : let d = q - k in let near = abs(d) < 3 in"
           " near or d mod 5 == 0 }",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_each_construct(text: str) -> None:
    for nq, nk in ((1, 1), (23, 17), (10, 31)):
        assert agree(text, nq, nk, "p").name == "p"


def test_the_constructs_keep_something() -> None:
    """No case above compares two empty masks."""
    for name, text in TEXTS.items():
        mask = driver.load_text(text, "p").mask(23, 23)
        assert mask.any(), name
        assert not mask.all(), name


def sequences() -> list[str]:
    """Return the zoo patterns of any length that need no data and no layer."""
    found = []
    for name in driver.zoo_names():
        item = stdlib_module(name).patterns.get(name)
        if item is not None and item.pattern.on is None and item.pattern.layers is None:
            loaded = driver.loaded_zoo(name)
            if not loaded.says_lengths:
                found.append(name)
    return found


@pytest.mark.parametrize("name", sequences())
def test_zoo_defaults(name: str) -> None:
    mask = driver.load_zoo(name).mask(40, 70)
    assert np.array_equal(mask, driver.dense(name, None, None, 40, 70))


def test_rationals_multiply_out() -> None:
    assert shown("pattern p = { q -> k : k <= floor(1 + 0.25 * n) }") == "k <= nk div 4 + 1"
    assert shown("pattern p = { q -> k : q / 2 < k / 3 }") == "3 * q < 2 * k"


def test_parameters_fold() -> None:
    text = "pattern p(paper: bool = {0}) = {{ q -> k : (if paper then q - k else k - q) < 2 + 3 }}"
    assert shown(text.format("true")) == "q - k < 5"
    assert shown(text.format("false")) == "k - q < 5"


def test_powers_become_one_test() -> None:
    assert shown("pattern p = { q -> k : exists e in 0..40 : q - k == 2**e }") == "is_pow2(q - k)"
    assert shown("pattern p = { q -> k : exists e in 0..3 : q == k + 2**e }") == (
        "q - k in [1, 2, 4, 8]"
    )


def test_a_linear_quantifier_stays() -> None:
    assert shown("pattern p = { q -> k : exists e in 0..q : k == 3 * e }") == (
        "(exists e in 0..q : k == 3 * e)"
    )


def test_heads_with_one_predicate_share_it() -> None:
    text = "pattern p(r: list[int] = {0}) heads h: 3 = {{ q -> k, h : (q - k) mod r[h] == 0 }}"
    assert shown(text.format("[2, 3, 3]")) == (
        "h == 0 and (q - k) mod 2 == 0 or h >= 1 and (q - k) mod 3 == 0"
    )
    same = driver.load_text(text.format("[2, 2, 2]"))
    assert ex.show(same.predicate) == "(q - k) mod 2 == 0"
    assert same.heads == 3


def test_one_head_serves_every_head() -> None:
    assert driver.load_zoo("longformer").heads is None
    assert driver.load_zoo("longformer", {"dilation": [1, 2]}).heads == 2
    assert driver.load_text("heads h: 8\npattern p = causal").heads is None
    assert driver.load_text("pattern p heads h: 8 = causal").heads == 8


def test_a_thousand_terms() -> None:
    union = "pattern p = " + " | ".join(f"{{ q -> k : q == {i} + k }}" for i in range(1000))
    lowered = driver.load_text(union)
    assert isinstance(lowered.body, pat.Union)
    assert len(lowered.body.parts) == 1000
    total = "pattern p = { q -> k : " + " + ".join("q" for _ in range(1000)) + " <= 1000 * k }"
    assert shown(total) == "1000 * q <= 1000 * k"
    taken = "pattern p = causal" + "".join(f" - {{ q -> k : q == {i} }}" for i in range(400))
    rows = agree(taken, 9, 9).mask(410, 3)[0].any(axis=1)
    assert rows.nonzero()[0].tolist() == [*range(400, 410)]


def test_sixty_four_levels() -> None:
    text = "{ q -> k : k <= q }"
    for level in range(64):
        text = f"({text} {'&|'[level % 2]} ~{{ q -> k : q - k == {level} }})"
    agree(f"pattern p = {text}", 12, 70)
    inner = "q"
    for level in range(64):
        inner = f"max({inner}, k - {level})" if level % 2 else f"abs({inner} - {level})"
    agree(f"pattern p = {{ q -> k : {inner} mod 5 < 2 }}", 12, 70)
