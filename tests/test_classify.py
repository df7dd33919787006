"""Block masks against dense masks: the classification is exact, or says that it is widened."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.compiler import account, sets
from attnc.compiler.counts import count
from attnc.compiler.driver import load_text, load_zoo, zoo_names
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir.blockmask import BlockMask, Counts, Tiling
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes import progression as prog
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.row_ends import intervals
from attnc.compiler.passes.strips import strips
from attnc.dsl.diagnostics import CompileError
from tests.strategies import patterns

TILES = st.sampled_from([Tiling(16, 16), Tiling(32, 16), Tiling(16, 64), Tiling(128, 64)])
LENGTHS = st.integers(1, 200)


def dense_counts(mask: BlockMask, nq: int, nk: int) -> Counts:
    """Count by looking at every pair: the slow definition of ``counts.count``."""
    kept = mask.pattern.mask(nq, nk)
    grid = mask.grid(nq, nk)
    sides = mask.tiling
    full = partial = computed = masked = 0
    for h, qb, kb in np.ndindex(grid.shape):
        tile = kept[h, qb * sides.q : (qb + 1) * sides.q, kb * sides.k : (kb + 1) * sides.k]
        full += bool(tile.all())
        partial += bool(tile.any() and not tile.all())
        if grid[h, qb, kb] >= 0:
            computed += tile.size
            masked += not mask.pieces[grid[h, qb, kb]].full
    return Counts(
        full=full, partial=partial, empty=grid.size - full - partial,
        visited=int((grid >= 0).sum()), masked=masked, pairs_kept=int(kept.sum()),
        pairs_computed=computed,
    )


@settings(max_examples=50, deadline=None)
@given(text=patterns(), tiling=TILES, nq=LENGTHS, nk=LENGTHS)
def test_random_patterns(text: str, tiling: Tiling, nq: int, nk: int) -> None:
    """The block mask of a random pattern is its dense mask; counts are those of the dense mask."""
    try:
        pattern = load_text(text)
    except CompileError:
        assume(False)
    mask = cl.classify(pattern, tiling)
    assert (mask.dense(nq, nk) == pattern.mask(nq, nk)).all()
    counted = count(mask, nq, nk)
    if mask.exact:
        assert counted == dense_counts(mask, nq, nk)
    else:
        assert counted.pairs_kept == int(pattern.mask(nq, nk).sum())


def zoo_defaults() -> dict[str, pat.Pattern]:
    """Return the stdlib patterns that need nothing but their defaults, by name."""
    found = {}
    for name in zoo_names():
        with suppress(CompileError):
            found[name] = load_zoo(name)
    return found


ZOO = zoo_defaults()
SEQUENCES = [
    name
    for name, pattern in ZOO.items()
    if pattern.is_static and not pattern.inputs and pattern.lengths == (None, None)
]


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("tiling", [Tiling(32, 32), Tiling(128, 64)], ids=str)
def test_zoo_is_exact(name: str, tiling: Tiling) -> None:
    """A stdlib pattern of sequences of any length is classified without widening."""
    pattern = ZOO[name]
    mask = cl.classify(pattern, tiling)
    assert mask.exact, mask.widened
    for nq, nk in ((200, 200), (77, 150), (1, 1)):
        assert (mask.dense(nq, nk) == pattern.mask(nq, nk)).all()
    assert count(mask, 300, 300) == dense_counts(mask, 300, 300)


@pytest.mark.parametrize(
    "tiles",
    [
        "2qb - 8 <= kb <= 2qb - 7 and kb >= 0 and kb < NK",
        "qb >= 4 and 5 + kb <= 4*floor(qb/2) <= 8 + kb and 0 <= kb < NK",
        "qb >= 9 and 2qb <= 3kb + 1 <= 5qb and 0 <= kb < NK",
        "kb = qb - 3 and 7 <= qb and 0 <= kb < NK",
        "1 <= kb < NK and NK >= 5",
    ],
)
def test_ends_read_off_constraints_stand_for_their_sets(tiles: str) -> None:
    """A guess and its set are the same tiles, and the last guess is the row itself."""
    row = sets.read_set(f"[qb, NK] -> {{ [kb] : {tiles} }}")
    context = sets.read_set("[qb, NK] -> { : qb >= 0 and NK >= 1 }")
    guesses = list(intervals(row, context))
    for guess, exact in guesses:
        assert sets.equal(prog.as_set(guess, row).intersect_params(context),
                          exact.intersect_params(context))
    assert sets.equal(guesses[-1][1].intersect_params(context), row.intersect_params(context))


@pytest.mark.parametrize("operations", [200, 2_000, 20_000])
def test_over_budget_is_widened_and_still_exact(
    operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past isl's budget more tiles are visited, the mask stays, and a note says so."""
    monkeypatch.setattr(sets, "budget", partial(sets.budget, operations))
    cl._classify.cache_clear()
    pattern = load_zoo("longformer", {"w": 40, "global_idx": [0, 7, 9]})
    mask = cl.classify(pattern, Tiling(16, 16))
    cl._classify.cache_clear()
    assert (mask.dense(150, 130) == pattern.mask(150, 130)).all()
    if operations == 200:
        assert not mask.exact


def test_hull_without_full_tiles_is_told_apart() -> None:
    """A window masks its two edges only: one fully masked hull loop would show here."""
    mask = cl.classify(load_zoo("sliding_window", {"width": 512}), Tiling(64, 64))
    counted = count(mask, 4096, 4096)
    assert counted.masked < counted.visited / 3
    assert counted.full > counted.partial


def test_million_tokens_by_formula() -> None:
    """Counts at 1,048,576 tokens come from formulas and equal the closed form of a window."""
    n, width = 1 << 20, 512
    mask = cl.classify(load_zoo("sliding_window", {"width": width}), Tiling(128, 64))
    counted = count(mask, n, n)
    assert counted.pairs_kept == n * width - width * (width - 1) // 2
    assert counted.total == (n // 128) * (n // 64)


def test_powers_of_two_are_exact_up_to_2_40() -> None:
    """A distance of 2**40 is kept and its neighbours are not, in the symbolic relation."""
    body = pat.Where(ex.is_pow2(ex.sub(ex.Var("q"), ex.Var("k"))))
    pattern = pat.Pattern(name="p", heads=None, body=body)
    mask = cl.classify(pattern, Tiling(1, 1))
    assert mask.exact
    far = 1 << 40
    rows = {"qb": far, "h": 0, "nq": far + 1, "nk": far + 1, "NQ": far + 1, "NK": far + 1}
    keys = [
        int(ex.evaluate(piece.tiles.base, rows)) + i
        for piece in mask.pieces
        for i in range(int(ex.evaluate(piece.tiles.count, rows)))
    ]
    assert sorted(far - k for k in keys) == [1 << e for e in range(41)]


@settings(max_examples=25, deadline=None)
@given(text=patterns(), nq=LENGTHS, nk=LENGTHS)
def test_strips_cover_the_pattern(text: str, nq: int, nk: int) -> None:
    """The CPU's strips hold the pattern, and a proved shift really carries a mask on."""
    try:
        pattern = load_text(text)
    except CompileError:
        assume(False)
    tiling = Tiling(16, 16)
    found = strips(pattern, tiling)
    pieces = tuple(cl.Piece(tiles=s.tiles, residual=s.residual) for s in found)
    mask = BlockMask(pattern=pattern, tiling=tiling, pieces=pieces)
    dense = pattern.mask(nq, nk)
    assert (mask.dense(nq, nk) == dense).all()
    grid = mask.grid(nq, nk)
    for number, strip in enumerate(found):
        if strip.shift is None:
            continue
        rows, tiles = strip.shift
        for h, qb, kb in zip(*np.nonzero(grid == number), strict=True):
            to_q, to_k = qb + rows, kb + tiles
            if qb < strip.shift_from or to_q >= grid.shape[1] or to_k >= grid.shape[2]:
                continue
            if grid[h, to_q, to_k] != number:
                continue
            here = dense[h, qb * 16 : qb * 16 + 16, kb * 16 : kb * 16 + 16]
            there = dense[h, to_q * 16 : to_q * 16 + 16, to_k * 16 : to_k * 16 + 16]
            both = tuple(slice(0, min(a, b)) for a, b in zip(here.shape, there.shape, strict=True))
            assert (here[both] == there[both]).all()


@pytest.mark.parametrize(
    ("also", "shifts"), [("", {(2, 2)}), ("and q < 999", {None})]
)
def test_masks_of_a_large_grid_repeat(also: str, shifts: set[tuple[int, int] | None]) -> None:
    """A shift that isl has no budget to prove is read off the check."""
    pattern = load_text(
        "space s = grid(y: 256, x: 64)\npattern p on s = "
        f"{{ q -> k : abs(q.y - k.y) <= 6 and abs(q.x - k.x) <= 6 {also} }}"
    )
    assert {strip.shift for strip in strips(pattern, Tiling(32, 32))} == shifts


def test_empty_rows_are_found_symbolically() -> None:
    """A strictly causal pattern leaves the first query alone, at every length."""
    before = pat.Where(ex.compare("<", ex.Var("k"), ex.Var("q")))
    assert sets.empty_row(pat.Pattern(name="p", heads=None, body=before)) == (0, 1)
    assert sets.empty_row(load_zoo("causal")) is None
    assert sets.is_empty(pat.Pattern(name="p", heads=None, body=pat.Where(ex.FALSE)))


def test_a_spent_budget_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the budget ends, even in isl's printing of a number, the mask stays exact."""
    budget = sets.budget
    text = "pattern p = { q -> k : is_pow2(q) } | { q -> k : q - k in [24, 1, -18, 12] }"
    pattern = load_text(text)
    expected = pattern.mask(30, 112)
    for step in range(24):
        operations = int(2_000 * 1.3**step)
        monkeypatch.setattr(sets, "budget", partial(budget, operations))
        cl._classify.cache_clear()
        mask = cl.classify(pattern, Tiling(64, 32))
        assert (mask.dense(30, 112) == expected).all()
    cl._classify.cache_clear()


NESTED = (
    "pattern p = { q -> k : exists a in 0..n : exists b in 0..n :"
    " 3 * a + 5 * b == q - k and a <= b }"
)


@pytest.mark.parametrize("text", [
    NESTED,
    "pattern p = { q -> k : exists m in 0..q div 4 : q - k == 6 * m }",
    "pattern p heads h: 3 = { q -> k, h : not (exists m in 0..n : q - k == (h + 2) + 4 * m) }",
    "pattern p = { q -> k : forall e in 1..9 : q - k < 3 * e or k mod 2 == 0 }",
    "pattern p = { q -> k : abs(if exists m in 0..q : 3 * m == k then 1 else q - k) < 4 }",
])  # fmt: skip
def test_quantifiers_become_formulas(text: str) -> None:
    """Quantifiers over run-time ranges leave formulas that keep the same pairs."""
    pattern = load_text(text)
    formula = eliminate(pattern)
    assert not any(isinstance(node, ex.Exists) for node in ex.walk(formula.predicate))
    for nq, nk in ((40, 40), (13, 60), (50, 7)):
        assert (formula.mask(nq, nk) == pattern.mask(nq, nk)).all()
        mask = cl.classify(pattern, Tiling(16, 16))
        assert (mask.dense(nq, nk) == pattern.mask(nq, nk)).all()


def test_a_band_that_repeats_is_cut_into_diagonals() -> None:
    """Near the diagonal, what repeats depends on the row: still exact, nothing widened."""
    text = "pattern p = { q -> k : k <= q and (q - k < 40 or k div 32 mod 4 >= 2) }"
    mask = cl.classify(load_text(text), Tiling(32, 32))
    assert mask.exact
    assert count(mask, 391, 200) == dense_counts(mask, 391, 200)


def test_deep_nests_of_div_are_not_asked_about() -> None:
    """isl's operation count does not bound nested ``div``: such a pattern is widened at once."""
    inner = "q - k"
    for divisor in range(2, 14):
        inner = f"({inner} + q) mod {divisor}"
    pattern = load_text(f"pattern p = {{ q -> k : {inner} == 0 }}")
    mask = cl.classify(pattern, Tiling(16, 16))
    assert not mask.exact
    assert "inside each other" in mask.widened[0]
    assert (mask.dense(40, 33) == pattern.mask(40, 33)).all()


def test_segments_out_of_reach_are_left_out() -> None:
    """A distance of 2**40 stays in the block mask; no op takes so many tokens: no plan has it."""
    plan = build_plan(load_zoo("power_of_two"), head_dim=64)
    assert len(plan.forward.segments) < len(plan.forward.block_mask.pieces)
    assert len(plan.forward.segments) > 20


CROWDED = {
    "rests": f"min({', '.join(f'(q + {i}) mod {i + 2}' for i in range(99))}) < k",
    "a sum of conditionals": " + ".join(f"(if q mod {i + 2} < 1 then k else 2)" for i in range(40))
    + " < 2 * q",
    "conditions in conditions": "(if " * 40 + "q < k" + " then q else k + 1) < 7" * 40,
    "and in or": "(" * 64 + "q < k" + " and q mod 7 == 0 or k < 9) and k mod 5 < 4" * 64,
}


@pytest.mark.parametrize("case", CROWDED)
def test_what_isl_would_not_end_on_is_widened(case: str) -> None:
    """isl's operation count does not bound many divs in one place: it is not asked."""
    pattern = load_text(f"pattern p = {{ q -> k : {CROWDED[case]} }}")
    mask = cl.classify(pattern, Tiling(16, 16))
    assert mask.widened
    assert (mask.dense(20, 20) == pattern.mask(20, 20)).all()


HOSTILE = {
    "div in min": "k div 11 <= min((n div 11) div 7, 2 - (n - q))",
    "div of sums": "((q div 3) div 5 + (k div 7) div 2) mod 11 == ((q + k) div 13) mod 3",
    "max and min": "max(q div 3, min(k div 5, n div 7)) mod 4"
    " <= min(q mod 7, k mod 11, (q + k) div 2)",
    "all rests": " and ".join(f"(q - k) mod {i + 2} != 1" for i in range(9)),
    "lengths": "max((n - k) mod 64, (n - q) div 100 - n mod 100)"
    " != (q - k) div 100 + (2 * q - k) mod 5",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hard_questions_are_cut_short(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question that is integer programming ends within its own limit, far below the budget."""
    asked: list[int] = []
    allow = account._allow

    def note(operations: int) -> None:
        asked.append(operations)
        allow(operations)

    monkeypatch.setattr(account, "_allow", note)
    pattern = load_text(f"pattern p = {{ q -> k : {HOSTILE[case]} }}")
    asked.clear()
    mask = cl.classify(pattern, Tiling(16, 16))
    assert (mask.dense(40, 33) == pattern.mask(40, 33)).all()
    assert mask.widened
    assert asked
    assert max(asked[::2]) <= account.FEW_OPERATIONS  # every other call sets back what is left


def test_a_spent_budget_makes_the_next_smaller() -> None:
    """Attempts after a spent budget get a part of it: a plan is bounded, not each attempt."""
    pattern = load_text(f"pattern p = {{ q -> k : {HOSTILE['all rests']} }}")
    mask = cl.classify(pattern, Tiling(32, 16))
    spent = [note for note in mask.widened if "isl" in note]
    assert len(spent) == 3
    assert len(mask.pieces) == 1


def test_plain_sets_spend_nothing_on_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets without divs are never limited one by one: a window asks no hard question."""
    monkeypatch.setattr(account, "_allow", lambda operations: pytest.fail("a hard question"))
    assert cl.classify(load_zoo("causal"), Tiling(1, 1)).exact
