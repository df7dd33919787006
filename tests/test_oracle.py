"""The dense meaning of every form, beside masks written out by hand or by another formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from attnc.compiler import driver, transforms
from attnc.dsl.diagnostics import CompileError


def mask(text: str, nq: int | None = None, nk: int | None = None, **given: Any) -> NDArray[Any]:
    """Return the mask of a text without heads. Shape: ``[nq, nk]``."""
    params = given.pop("params", {})
    found = driver.dense_text(text, None, params, nq, nq if nk is None else nk, **given)
    assert found.shape[0] == 1
    return found[0]


def drawn(*rows: str) -> NDArray[Any]:
    """Return the mask of a drawing: ``#`` sees."""
    return np.array([[sign == "#" for sign in row] for row in rows])


def by(keeps: Callable[[int, int], Any], nq: int, nk: int) -> NDArray[Any]:
    """Return the mask of a Python predicate."""
    return np.array([[bool(keeps(q, k)) for k in range(nk)] for q in range(nq)]).reshape(nq, nk)


def code_of(text: str, **given: Any) -> set[str]:
    """Return the codes of what is wrong."""
    with pytest.raises(CompileError) as wrong:
        mask(text, **given)
    return {d.code for d in wrong.value.diagnostics}


# ------------------------------------------------------------------------------------ spaces


def test_a_grid_is_row_major_the_last_axis_fastest() -> None:
    found = mask("pattern p on grid(y: 2, x: 3) = { q -> k : q.y == k.y and k.x <= q[1] }")
    assert np.array_equal(found, by(lambda q, k: q // 3 == k // 3 and k % 3 <= q % 3, 6, 6))


def test_tiled_tokens_stand_tile_by_tile() -> None:
    text = "pattern p on grid(y: 4, x: 6) tiled [2, 3] = { q -> k : q.y == k.y and q.x == k.x + 1 }"
    order = [
        (ty * 2 + y, tx * 3 + x)
        for ty, tx, y, x in product(range(2), range(2), range(2), range(3))
    ]  # fmt: skip
    expected = by(
        lambda q, k: order[q][0] == order[k][0] and order[q][1] == order[k][1] + 1, 24, 24
    )
    assert np.array_equal(mask(text), expected)


def test_tiles_must_divide_the_grid() -> None:
    text = "pattern p(t: list[int]) on grid(y: 4, x: 6) tiled t = { q -> k : q.y == k.y }"
    assert code_of(text, params={"t": [2, 4]}) == {"ATT0318"}
    assert mask(text, params={"t": [4, 1]}).sum() == 4 * 36


def test_segments_count_from_their_start() -> None:
    text = """
    pattern p on text: grid(i: 2) ++ image: grid(y: 2, x: 2) =
        { q in text -> k in text : k <= q }
      | { q in image -> k in image : q.x == k.x }
      | { q in image -> k in text : k == 1 }
    """
    expected = drawn("#.....", "##....", ".##.#.", ".#.#.#", ".##.#.", ".#.#.#")
    assert np.array_equal(mask(text), expected)


def test_queries_and_keys_may_stand_in_different_spaces() -> None:
    text = """
    space words = grid(i: 3)
    space pooled = grid(s: 2)
    pattern p on words -> words ++ pooled =
        { q in words -> k in words : k == q } | { q -> s in pooled : s < q.i }
    """
    assert np.array_equal(mask(text), drawn("#....", ".#.#.", "..###"))


def test_a_family_of_segments() -> None:
    text = """
    pattern p(n: int) on grid(i: n) -> level[l in 0..2]: grid(s: n div 2**l) =
        union over l in 0..2 : { q -> s in level[l] : s == q div 2**l }
    """
    expected = by(
        lambda q, k: k == q or (k - 4 == q // 2 and k < 6) or (k - 6 == q // 4 and k >= 6), 4, 7
    )
    assert np.array_equal(mask(text, params={"n": 4}), expected)


def test_a_space_of_several_segments_is_a_stretch() -> None:
    text = """
    space both = a: grid(i: 2) ++ b: grid(i: 2)
    pattern p on both ++ last: grid(i: 1) =
        { q in both -> k in both : k == 3 - q } | { q in last -> k in b : k == 1 }
    """
    assert np.array_equal(mask(text), drawn("...#.", "..#..", ".#...", "#....", "...#."))


def test_extents_are_given_or_follow_from_the_length() -> None:
    text = "pattern p on grid(y, x: 3) = { q -> k : q.y == k.y }"
    expected = by(lambda q, k: q // 3 == k // 3, 6, 6)
    assert np.array_equal(mask(text, extents={"y": 2}), expected)
    assert np.array_equal(mask(text, 6), expected)
    assert np.array_equal(mask(text, params={"y": 2}), expected)
    assert code_of(text) == {"ATT0213"}
    assert code_of(text, nq=7) == {"ATT0213"}
    assert code_of(text, nq=7, extents={"y": 2}) == {"ATT0508"}
    both = "pattern p on grid(y, x) = { q -> k : q.y == k.y }"
    assert code_of(both, nq=6) == {"ATT0213"}
    assert np.array_equal(mask(both, extents={"y": 2, "x": 3}), expected)


# ------------------------------------------------------------------------------- other patterns


def test_pairs_of_another_pattern() -> None:
    text = """
    pattern near = { q -> k : abs(q - k) <= 1 }
    pattern p = { q -> k : (q div 2, k div 2 + 1) in near and (q, k) not in causal }
    """
    expected = by(lambda q, k: abs(q // 2 - k // 2 - 1) <= 1 and k // 2 + 1 < 7 and k > q, 7, 7)
    assert np.array_equal(mask(text, 7), expected)


def test_a_pair_outside_the_other_space_is_not_in_it() -> None:
    text = """
    pattern near on grid(i: 3) = { q -> k : true }
    pattern p = { q -> k : (q - 1, k) in near }
    """
    assert np.array_equal(mask(text, 5), by(lambda q, k: 0 <= q - 1 < 3 and k < 3, 5, 5))


def test_inside_a_segment_the_other_pattern_sees_the_segment() -> None:
    text = """
    pattern first = { q -> k : k == n - 1 and q == nq - 1 }
    pattern p on a: grid(i: 2) ++ b: grid(i: 3) = { q in a -> k in b : (q, k) in first }
    """
    assert np.array_equal(mask(text), by(lambda q, k: (q, k) == (1, 4), 5, 5))


def test_extents_go_before_the_lengths_of_a_segment() -> None:
    text = """
    pattern near on grid(y, x) = { q -> k : q.y == k.y }
    pattern p on a: grid(y, x) ++ b: grid(i: 5) = { q in b -> k in a : (q, k) in near }
    """
    found = mask(text, extents={"y": 2, "x": 3})
    assert np.array_equal(
        found, by(lambda q, k: q >= 6 and k < 6 and (q - 6) // 3 == k // 3, 11, 11)
    )


def test_patterns_as_parameters() -> None:
    text = """
    pattern p(one: pattern = causal, more: list[pattern] = [causal]) =
        one & union over i in 0..len(more) - 1 : more[i]
    """
    assert np.array_equal(mask(text, 4), np.tri(4, dtype=bool))
    given = {"one": "~x", "more": ["window(left: 1)", "window(left: 0, right: 1)"]}
    given["one"] = "window(left: 1, right: 1)"
    found = mask(text, 4, params=given)
    assert np.array_equal(found, by(lambda q, k: -1 <= k - q <= 1, 4, 4))
    found = mask(text, 4, params={"more": "[strided(stride: 2)]"})
    assert np.array_equal(found, mask("pattern p = causal & strided(stride: 2)", 4))


def test_patterns_of_a_file_share_its_parameters() -> None:
    text = """
    param w: int = 1
    fn wide(x: int) = x + w
    pattern near(more: int = 0) = { q -> k : abs(q - k) < wide(more) }
    score far = { q -> k : w * (q - k) }
    pattern p = near & { q -> k : (q, k) in near(more: 1) }
    attention a = softmax(dot + far, over: near)
    """
    assert np.array_equal(mask(text, 5, params={"w": 3}), mask("pattern p = window(2, 2)", 5))
    scores = driver.scores_text(text, "a", {"w": 3}, 3, 3).values
    assert scores[0, 2].tolist() == [6, 3, 0]


def test_requirements_have_their_own_words() -> None:
    text = """
    pattern p(w: int, size: int) require w * 2 <= size else "the window does not fit" = causal
    """
    assert mask(text, 4, params={"w": 2, "size": 4}).sum() == 10
    with pytest.raises(CompileError, match="the window does not fit") as wrong:
        mask(text, 4, params={"w": 3, "size": 4})
    (found,) = wrong.value.diagnostics
    assert (found.code, found.notes) == ("ATT0315", ("with `w` = 3, `size` = 4",))


# ------------------------------------------------------------------------- loops and functions


def test_sums_counts_and_lists() -> None:
    text = """
    fn twice(x: int, by: int = 2) = x * by
    pattern p(w: list[int]) =
        { q -> k : let all = [for i in 0..len(w) - 1 : twice(w[i])] in
            (sum i in 0..len(all) - 1 : all[i] * q) + (count i in 1..3 : k >= i) <= twice(3, by: 3)
        }
    """
    expected = by(lambda q, k: 2 * 3 * q + min(k, 3) <= 9, 6, 6)
    assert np.array_equal(mask(text, 6, params={"w": [1, 2]}), expected)


def test_a_list_may_be_indexed_by_a_position() -> None:
    text = "pattern p(xs: list[int], on: list[bool]) = { q -> k : k == xs[q] and on[k mod 3] }"
    found = mask(text, 3, params={"xs": [2, 1, 0], "on": [True, False, True]})
    assert np.array_equal(found, drawn("..#", "...", "#.."))


def test_bits() -> None:
    text = "pattern p = { q -> k : bit(q, k) or bit_length(q) == k - 8 }"
    expected = by(lambda q, k: q >> k & 1 or q.bit_length() == k - 8, 20, 20)
    assert np.array_equal(mask(text, 20), expected)


def test_products_and_quotients_of_positions() -> None:
    text = "pattern p = { q -> k : q * k mod 5 == q mod (k - 2) or q div (k - 3) == k }"

    def keeps(q: int, k: int) -> bool:
        rest = q % (k - 2) if k > 2 else 0
        return q * k % 5 == rest or (q // (k - 3) if k > 3 else 0) == k

    assert np.array_equal(mask(text, 12), by(keeps, 12, 12))


@pytest.mark.parametrize(
    ("rule", "keeps"),
    [
        ("any", lambda kept, size: kept > 0),
        ("all", lambda kept, size: kept == size),
        ("count >= 3", lambda kept, size: kept >= 3),
        ("count > 3", lambda kept, size: kept > 3),
        ("density >= 1/2", lambda kept, size: 2 * kept >= size),
        ("density > 1/2", lambda kept, size: 2 * kept > size),
    ],
)
def test_whole_blocks(rule: str, keeps: Callable[[int, int], bool]) -> None:
    inner = by(lambda q, k: (q * 3 + k * 5) % 7 < 3, 7, 8)
    found = mask(
        f"pattern p = blocks({{ q -> k : (q * 3 + k * 5) mod 7 < 3 }}, 2, 3, {rule})", 7, 8
    )
    for q, k in product(range(7), range(8)):
        block = inner[q // 2 * 2 : q // 2 * 2 + 2, k // 3 * 3 : k // 3 * 3 + 3]
        assert found[q, k] == keeps(int(block.sum()), block.size)


# ------------------------------------------------------------------------------------- inputs


def test_inputs_say_lengths_and_sizes() -> None:
    text = """
    input doc: int[n]
    input start: int[docs + 1]
    pattern p = { q -> k : start[doc[q]] <= k <= q and doc[k] == doc[q] and docs == 2 }
    """
    given = {"doc": [0, 0, 1, 1, 1], "start": np.array([0, 3, 5])}
    expected = by(lambda q, k: (q < 2) == (k < 2) and (k >= 3 or q < 2) and k <= q, 5, 5)
    assert np.array_equal(mask(text, inputs=given), expected)
    assert np.array_equal(mask(text, params=given), expected)
    assert code_of(text, nq=6, inputs=given) == {"ATT0509"}
    assert code_of(text, nq=5, inputs={"doc": given["doc"]}) == {"ATT0510"}
    assert code_of(text, inputs={"start": [0]}) == {"ATT0213"}
    assert code_of(text, inputs={"docs": [0]}) == {"ATT0206"}


def test_a_read_outside_is_zero_and_a_row_outside_is_empty() -> None:
    text = """
    input last: int[m]
    input lists: int[rows, *]
    pattern p = { q -> k : last[q - 1] == k or k - 1 in lists[q] }
    """
    given = {"last": [2, 1], "lists": [[0, 3], [], [-1]]}
    expected = by(lambda q, k: k == {1: 2, 2: 1}.get(q, 0) or (q == 0 and k in (1, 4)), 5, 5)
    assert np.array_equal(mask(text, 5, inputs=given), expected)


def test_numbers_known_at_the_call() -> None:
    text = "pattern p(input phase: int, step: int = 3) = { q -> k : (q - k) mod step == phase }"
    expected = by(lambda q, k: (q - k) % 3 == 1, 5, 5)
    assert np.array_equal(mask(text, 5, inputs={"phase": 1}), expected)
    assert np.array_equal(mask(text, 5, params={"phase": "1"}), expected)


def test_computed_inputs() -> None:
    text = """
    input flags: bool[n]
    input lengths: int[docs]
    input next: int[n] = next_where(flags)
    input doc: int[n] = repeat(lengths)
    input on: bool[n] = true
    pattern p = { q -> k : doc[q] == doc[k] and k <= next[q] and on[k] }
    """
    given: dict[str, Any] = {"flags": [0, 1, 0, 0, 0], "lengths": [2, 3]}
    nexts = [1, 1, 5, 5, 5]
    expected = by(lambda q, k: (q < 2) == (k < 2) and k <= nexts[q], 5, 5)
    assert np.array_equal(mask(text, inputs=given), expected)
    given["on"] = [True, False, True, True, True]
    assert np.array_equal(mask(text, inputs=given), expected & np.array(given["on"]))


@pytest.mark.parametrize(
    "given",
    [
        {"doc": [[0, 1]]}, {"doc": 3}, {"doc": [0.5, 1.0]}, {"doc": ["a"]}, {"doc": None},
        {"doc": [[0], [1, 2]]},
    ],
)  # fmt: skip
def test_an_input_of_the_wrong_kind(given: dict[str, Any]) -> None:
    codes = code_of("input doc: int[n]\npattern p = { q -> k : doc[q] == 1 }", inputs=given)
    assert codes <= {"ATT0511", "ATT0213"}


def test_inputs_of_patterns_that_are_used() -> None:
    text = """
    input ids: int[n]
    pattern same(input doc: int[n]) = { q -> k : doc[q] == doc[k] }
    pattern p = causal & same(doc: ids)
    """
    expected = by(lambda q, k: k <= q and (q < 2) == (k < 2), 4, 4)
    assert np.array_equal(mask(text, inputs={"ids": [7, 7, 3, 3]}), expected)
    own = "pattern p = causal & document(causal: false)"
    assert np.array_equal(mask(own, inputs={"doc_ids": [7, 7, 3, 3]}), expected)


# ------------------------------------------------------------------------------ heads, layers


def test_heads_follow_from_an_input() -> None:
    text = """
    input first: int[heads, 2]
    pattern p heads h: heads = { q -> k, h : k == first[h][q mod 2] }
    """
    found = driver.dense_text(text, None, {}, 4, 4, inputs={"first": [[0, 1], [2, 3], [0, 0]]})
    assert found.shape == (3, 4, 4)
    assert np.array_equal(found[1], by(lambda q, k: k == 2 + q % 2, 4, 4))
    assert code_of(text, nq=4) == {"ATT0213"}
    four = text.replace("h: heads", "h: 4")
    assert code_of(four, nq=4, inputs={"first": [[0, 1]]}) == {"ATT0509"}


def test_masks_of_kv_heads() -> None:
    found = driver.dense_text("pattern p kv_heads g: 2 = { q -> k, g : k == g }", None, {}, 3, 3)
    assert found.shape == (2, 3, 3)
    assert found[1].sum(axis=0).tolist() == [0, 3, 0]


def test_heads_of_patterns_that_are_tested_or_named_in_scores() -> None:
    text = """
    pattern each heads h: 3 = { q -> k, h : k == h }
    score slope heads h: 3 = { q -> k, h : h * k }
    pattern p(ps: list[pattern] = [causal, each]) = { q -> k : (q, k) in ps[1] }
    pattern r = { q -> k : (q, k) in each }
    attention a = softmax(dot + slope, over: causal)
    """
    expected = np.broadcast_to(np.eye(3, dtype=bool)[:, None, :], (3, 3, 3))
    for name in ("p", "r", "each"):
        assert np.array_equal(driver.dense_text(text, name, {}, 3, 3), expected)
    assert driver.dense_text(text, "a", {}, 3, 3).shape == (3, 3, 3)
    assert driver.scores_text(text, "a", {}, 1, 3).values[:, 0].tolist() == [
        [0, 0, 0], [0, 1, 2], [0, 2, 4],
    ]  # fmt: skip


def test_layers_come_in_front() -> None:
    text = "pattern p layers l: 3 = { q -> k : k <= q and (l == 2 or q - k <= l) }"
    found = driver.dense_text(text, None, {}, 4, 4)
    assert found.shape == (3, 1, 4, 4)
    assert found.sum(axis=(1, 2, 3)).tolist() == [4, 7, 10]
    one = driver.dense_text(text, None, {}, 4, 4, layer=1)
    assert np.array_equal(one, found[1])
    used = driver.dense_text(f"{text}\npattern both = p & causal", "both", {}, 4, 4)
    assert np.array_equal(used, found)
    assert code_of(text, nq=4, layer=3) == {"ATT0512"}
    assert code_of("pattern p = causal", nq=4, layer=0) == {"ATT0512"}


# ------------------------------------------------------------------------------------- scores


def test_scores_and_attention() -> None:
    text = """
    fn cap(s: real, c: real = 30) = c * tanh(s / c)
    score distance(by: rational = 1/2) heads h: 2 = { q -> k, h : -by * abs(q - k) * (h + 1) }
    attention a(input logit: real[heads]) heads h: 2 =
        softmax(cap(dot) + distance(by: 2) + distance, over: causal, sink: logit[h], scale: 1/8)
    """
    dot = np.linspace(-40, 40, 2 * 9).reshape(2, 3, 3)
    found = driver.scores_text(text, "a", {}, 3, 3, inputs={"logit": [0.5, -1]}, dot=dot)
    gap = np.abs(np.arange(3)[:, None] - np.arange(3))
    bias = -2.5 * gap * np.array([1, 2])[:, None, None]
    assert np.allclose(found.values, 30 * np.tanh(dot / 30) + bias)
    assert found.sink is not None
    assert (found.sink.tolist(), found.scale) == ([0.5, -1.0], 0.125)
    kept = driver.dense_text(text, "a", {}, 3, 3)
    assert np.array_equal(kept, np.broadcast_to(np.tri(3, dtype=bool), (2, 3, 3)))
    alone = driver.scores_text(text, "distance", {"by": 1}, 3, 3)
    assert np.array_equal(alone.values, -gap * np.array([1, 2])[:, None, None])


def test_a_score_of_segments_is_zero_elsewhere() -> None:
    text = """
    score s on a: grid(i: 1) ++ b: grid(i: 2) = { q in b -> k in b : sqrt(k + 1) + f32(0.1) }
    """
    found = driver.scores_text(text, None, {}).values
    near = np.float64(np.float32(0.1))
    expected = [[0, 0, 0], *[[0, 1 + near, np.sqrt(2) + near]] * 2]
    assert np.allclose(found, [expected], rtol=1e-15)


# ---------------------------------------------------------------------------------- transforms


def test_transforms() -> None:
    flags = np.array([[0, 1, 0], [0, 0, 0]])
    assert transforms.next_where(flags).tolist() == [[1, 1, 3], [3, 3, 3]]
    assert transforms.prefix_sum(flags).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert transforms.prefix_sum(np.array([0.5, 0.25])).tolist() == [0, 0.5, 0.75]
    assert transforms.differences(np.array([0, 3, 5])).tolist() == [3, 2]
    assert transforms.repeat(np.array([2, 0, 1])).tolist() == [0, 0, 2]
    assert transforms.members(np.array([[1, -1], [0, 9]]), 3).tolist() == [
        [False, True, False], [True, False, False],
    ]  # fmt: skip
    line = np.diag(np.ones(3), 1)
    assert transforms.khop(line, 2).astype(int).tolist() == [
        [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1],
    ]  # fmt: skip
    assert transforms.sums_between(np.array([5, 1, 2])).tolist() == [
        [0, 1, 3],
        [1, 0, 2],
        [3, 2, 0],
    ]


def test_an_input_is_read_from_text() -> None:
    text = "input doc: int[n]\npattern p = { q -> k : doc[q] == doc[k] }"
    found = mask(text, params={"doc": json.dumps([1, 1, 2])})
    assert np.array_equal(found, drawn("##.", "##.", "..#"))
    assert code_of(text, params={"doc": "not a list"}) == {"ATT0511"}
