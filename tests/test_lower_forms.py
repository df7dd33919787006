"""The pattern IR of every form equals the oracle, and is what its text says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from attnc.compiler import driver
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.read import read
from attnc.compiler.ir.show import show
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes.eliminate import eliminate
from attnc.dsl.diagnostics import CompileError
from attnc.dsl.resolve import STDLIB
from tests.strategies_data import Case, data_cases, grid_cases, plain_cases


def agree(case: Case) -> Pattern:
    """Assert that IR, its text and the oracle agree; return the IR."""
    loaded = driver.loaded_text(case.text)
    nq, nk, reads = loaded.data(case.nq, case.nk, inputs=case.inputs, extents=case.extents)
    expected = loaded(case.nq, case.nk, inputs=case.inputs, extents=case.extents)
    found = loaded.ir.mask(nq, nk, reads)
    assert found.shape == expected.shape
    differing = np.argwhere(found != expected)
    shown = show(loaded.ir)
    assert not differing.size, f"{case.text}\n{shown}\nat {differing[:3].tolist()}"
    assert read(shown) == loaded.ir, shown
    assert verify(loaded.ir) == (), shown
    return loaded.ir


@settings(max_examples=50, deadline=None)
@given(plain_cases())
def test_sequences(case: Case) -> None:
    agree(case)


@settings(max_examples=50, deadline=None)
@given(data_cases())
def test_inputs(case: Case) -> None:
    agree(case)


@settings(max_examples=50, deadline=None)
@given(grid_cases())
def test_grids(case: Case) -> None:
    agree(case)


# ---------------------------------------------------------------------------- what is written

SHOWN = {
    "pattern p on grid(t: 2, y: 3, x: 4) = { q -> k : q.y == k[2] }":
        "(q div 4) mod 3 == k mod 4",
    "pattern p on grid(y: 4, x: 6) tiled [2, 3] = { q -> k : q.y div 2 == k.y div 2 }":
        "q div 12 == k div 12",
    "pattern p on a: grid(i: 2) ++ b: grid(y: 2, x: 2) = { q in a -> k in b : k.x == q }":
        "q < 2 and k >= 2 and k mod 2 == q",
    "pattern p on grid(y: 2, x: 0) = { q -> k : q.x div k.y == 0 }": "false",
    "pattern p = { q -> k : (q - 2, k) in causal }": "q >= 2 and q < nq + 2 and k <= q - 2",
    "pattern p = { q -> k : (q, k) in causal }": "k <= q",
    "pattern p on grid(i: 9) = { q -> k : (q div 4, k div 4) in causal }": "k div 4 <= q div 4",
    "pattern p(w: list[int] = [8, 8, 8, 2]) = { q -> k : q - k < w[k mod 4] }":
        "q - k < (if k mod 4 <= 2 then 8 else 2)",
    "pattern p(w: list[int] = [1, 3, 5]) = { q -> k : q == w[k mod 3] }":
        "q == 2 * (k mod 3) + 1",
    "pattern p = { q -> k : bit(q, 2) }": "(q div 4) mod 2 == 1",
    "pattern p = { q -> k : (count e in 0..1 : k == e) == 1 }":
        "(if k == 0 then 1 else 0) + (if k == 1 then 1 else 0) == 1",
    "pattern p = union over i in 0..2 : { q -> k : q - k == 2 * i }":
        "q - k == 0 or q - k == 2 or q - k == 4",
    "pattern p = blocks({ q -> k : q == k }, 2, any)":
        "(exists bk in 0..1 : (exists bq in 0..1 : 2 * (q div 2) + bq == 2 * (k div 2) + bk"
        " and 2 * (q div 2) + bq < nq and 2 * (k div 2) + bk < nk))",
    "pattern p = { q -> k : q * k < 9 and 2 * q * 3 > k }": "q * k < 9 and 6 * q > k",
    "pattern p(input doc: int[n]) = { q -> k : doc[q - 1] == 2 * k }": "doc[q - 1] == 2 * k",
    "pattern p(input l: int[3, *]) = { q -> k : q - k in l[k mod 3] }":
        "l_members[k mod 3][q - k] != 0",
    "pattern p layers l: 3 = { q -> k : q - k <= l }": "q - k <= 1",
}  # fmt: skip


@pytest.mark.parametrize("text", SHOWN)
def test_what_forms_become(text: str) -> None:
    assert ex.show(driver.loaded_text(text).at_layer(1).ir.predicate) == SHOWN[text]


def test_a_pattern_knows_its_lengths_inputs_and_extents() -> None:
    text = """
    input doc: int[n]
    input start: int[docs + 1]
    input unused: int[n]
    input first: int[n] = start
    pattern p on text: grid(i: 4) -> text: grid(i: 4) ++ image: grid(y, x: 2) kv_heads h: 2 =
        { q in text -> k in image, h : doc[q] == h and k.y < first[q] }
    """
    found = driver.load_text(text)
    assert found.lengths == (4, None)
    assert (found.heads, found.kv_heads, found.extents, found.sizes) == (2, True, ("y",), ("docs",))
    assert [i.name for i in found.inputs] == ["doc", "start", "first"]
    assert read(show(found)) == found


def test_sizes_of_one_name_in_two_patterns_are_two() -> None:
    text = """
    pattern one(input a: int[m]) = { q -> k : a[q mod m] == k }
    pattern two(input b: int[m]) = { q -> k : b[q mod m] == k }
    input c: int[*]
    pattern p = one | two | one(a: c)
    """
    data = {"a": [1, 2, 3], "b": [0, 5], "c": [4, 4, 6, 6, 0]}
    found = agree(Case(text, 8, 8, {n: np.array(v) for n, v in data.items()}))
    assert sorted(found.sizes) == ["m", "m_2", "m_3"]


def test_notes_name_what_is_not_linear() -> None:
    text = "pattern p = { q -> k : q * k < 9 or q mod (k + 1) == 0 }"
    notes = driver.load_text(text).warnings
    assert [(d.code, d.severity) for d in notes] == [("ATT0410", "note")] * 2
    assert "`q * k`" in notes[0].message
    scored = "score s = { q -> k : q * k }\nattention p = softmax(dot + s, over: causal)"
    assert driver.load_text(scored).warnings == ()


def test_lists_at_run_time_read_nothing_outside() -> None:
    for items in ("[]", "[7]", "[1, 3, 5, 7]", "[4, 4, 0, 9]", "[0.5, 2, 2]"):
        text = f"pattern p(w: list[rational] = {items}) = {{ q -> k : k <= w[q - 3] or q > 8 }}"
        agree(Case(text, 12, 9))
    agree(Case("pattern p(w: list[bool] = [true, false, true]) = { q -> k : w[k - q] }", 9, 9))


def test_names_of_a_pair_are_not_captured() -> None:
    agree(
        Case(
            "pattern thirds = { q -> k : exists e in 0..9 : q - k == 3 * e }\n"
            "pattern p = { q -> k : exists e in 0..4 : (q + e, k) in thirds and 2 * e == k }\n",
            20, 14,
        )
    )  # fmt: skip


def test_a_quantifier_over_what_is_read_is_written_out() -> None:
    text = (
        "input doc: int[n]\n"
        "pattern thirds = { q -> k : exists e in 0..5 : q - k == 3 * e }\n"
        "pattern p = { q -> k : (doc[q], k) in thirds }\n"
    )
    case = Case(text, 9, 9, {"doc": np.arange(9)[::-1] * 2})
    found, data = agree(case), {"doc": case.inputs["doc"]}
    flat = eliminate(found)
    assert not any(isinstance(node, ex.Exists) for node in ex.walk(flat.predicate))
    assert np.array_equal(flat.mask(9, 9, data), found.mask(9, 9, data))
    endless = driver.load_text(text.replace("0..5", "0..n"))
    with pytest.raises(CompileError, match="ATT0408"):
        eliminate(endless)


# ------------------------------------------------------------------------------------- scores

ATTENTION = {
    "a bias by head": "score s heads h: 3 = { q -> k, h : -2**(-8 / 3 * (h + 1)) * (q - k) }\n"
                      "attention a = softmax(dot + s, over: causal)",
    "a cap": "attention a = softmax(softcap(dot, cap: 30), over: causal, scale: 1/8)",
    "a table": "attention a(input t: real[heads, 5], heads: int = 2) heads h: heads ="
               " softmax(dot, over: causal, sink: t[h][2])",
    "a table by distance": "score s(input t: real[heads, *], heads: int = 2)"
                           " heads h: heads = { q -> k, h : t[h][t5_bucket_of(k - q)] }\n"
                           "attention a = softmax(dot + s, over: causal)",
    "powers of positions": "score s on grid(y: 3, x: 4) ="
                           " { q -> k : -sqrt((q.y - k.y) ** 2 + (q.x - k.x) ** 2) }\n"
                           "attention a = softmax(dot + s, over: causal)",
    "products past 64 bits": "score s = { q -> k : (q - k) ** 3 / 7 }\n"
                             "attention a = softmax(dot * 2 + s, over: causal)",
    "rounded reals": "score s = { q -> k : floor(sqrt(min(abs(q - k), 50)) * 1.5) }\n"
                     "attention a = softmax(dot + s, over: causal)",
    "a list of reals by head": "score s heads h: 3 = { q -> k, h : [0.5, 1, 0.25][h] * k }\n"
                               "attention a = softmax(dot + s, over: causal)",
    "scores of two heads apart": "score s heads h: 2 = { q -> k, h : if h == 0 then k else -k }\n"
                                 "attention a heads h: 2 ="
                                 " softmax(dot * (h + 1) + s, over: causal)",
    "a segment": "score s on a: grid(i: 5) ++ b: grid(i: 7) = { q in b -> k in a : k - 0.5 }\n"
                 "attention a = softmax(dot + s, over: causal)",
    "a log of a count": "attention a = softmax(dot + log(max(longnet_multiplicity([4, 8],"
                        " [1, 2], 2), 1)), over: longnet([4, 8], [1, 2], 2))",
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_scores(name: str) -> None:
    text = f"import t5_bucket_of from \"t5_bucket.attn\"\n{ATTENTION[name]}"
    given = {"t": np.linspace(-1, 1, 2 * 40).reshape(2, 40)[:, : 5 if name == "a table" else 40]}
    inputs = given if "input t" in text else {}
    loaded = driver.loaded_text(text, "a", inputs, folder=STDLIB)
    dot = np.linspace(-60, 60, 144).reshape(1, 12, 12)
    expected = loaded.scores(12, 12, dot=dot)
    nq, nk, reads = loaded.data(12, 12)
    assert np.allclose(loaded.ir.scores(nq, nk, reads, dot=dot), expected.values, rtol=1e-13)
    assert read(show(loaded.ir)) == loaded.ir
    assert verify(loaded.ir) == ()
    assert loaded.ir.scale == expected.scale
    if expected.sink is not None:
        assert loaded.ir.sink is not None
        heads = {"h": np.arange(loaded.ir.heads or 1)}
        assert np.array_equal(sc.evaluate(loaded.ir.sink, heads, reads), expected.sink)


def test_slopes_are_numbers_of_the_head_alone() -> None:
    """A factor that differs per head is a chain of cases; what depends on positions is not."""
    found = driver.load_zoo("alibi", {"heads": 2}).score
    assert found is not None
    assert sc.show(found) == (
        "(dot + ((if h <= 0 then 0.0625 else 0.00390625) * real(k - q)))"
    )
