"""Formulas in n: right at every length they claim, and none where there is none."""

from __future__ import annotations

from fractions import Fraction

import pytest

from attnc.compiler.cost.closed_form import closed_forms
from attnc.compiler.counts import count
from attnc.compiler.driver import load_text, load_zoo
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.classify import classify
from attnc.compiler.passes.data_form import tiles_of

TILE = Tiling(32, 16)


@pytest.mark.parametrize(
    ("body", "kept", "computed", "density"),
    [
        ("k <= q", "n*(n + 1)/2", "n*(n + 32)/2", "1/2"),
        ("0 <= q - k < 100", "100*n - 4950", "144*n - 8192", "0"),
        ("q div 64 == k div 64", "64*n", "64*n", "0"),
        ("(q - k) mod 4 == 0", "n**2/4", "n**2", "1/4"),
        ("k < 8 or q < 3", "11*n - 24", "48*n - 512", "0"),
        ("k < n div 2", "n**2/2", "n**2/2", "1/2"),
    ],
)
def test_formulas_of_known_sets(body: str, kept: str, computed: str, density: str) -> None:
    forms = closed_forms(classify(load_text(f"pattern p = {{ q -> k : {body} }}"), TILE))
    assert forms.kept is not None
    assert forms.computed is not None
    assert (str(forms.kept.sympy()), str(forms.computed.sympy())) == (kept, computed)
    assert str(forms.density) == density


@pytest.mark.parametrize(
    "text",
    [
        "pattern p = { q -> k : abs(q - k) <= 77 or q < 3 }",
        "pattern p = { q -> k : k <= q and (q - k < 20 or (q - k) mod 24 == 0) }",
        "pattern p heads h: 3 = { q -> k, h : 0 <= q - k < 10 * (h + 1) }",
    ],
)
def test_formulas_hold_at_every_length_they_claim(text: str) -> None:
    mask = classify(load_text(text), TILE)
    forms = closed_forms(mask)
    assert forms.kept is not None
    assert forms.computed is not None
    for formula, name in ((forms.kept, "pairs_kept"), (forms.computed, "pairs_computed")):
        for i in range(40):
            n = formula.start + i * formula.period
            assert formula(n) == getattr(count(mask, n, n), name), (name, n)


def test_a_formula_says_where_it_holds() -> None:
    forms = closed_forms(classify(load_text("pattern p = { q -> k : 0 <= q - k < 100 }"), TILE))
    assert forms.kept is not None
    assert forms.kept.coefficients == (Fraction(0), Fraction(100), Fraction(-4950))
    assert str(forms.kept) == "100*n - 4950   for n >= 100"
    assert str(forms.computed).endswith("32 divides n")


def test_what_is_no_polynomial_has_no_formula() -> None:
    powers = load_text("pattern p = { q -> k : exists e in 0..11 : q - k == 2**e }")
    assert closed_forms(classify(powers, TILE)).kept is not None  # a fixed number of diagonals
    halves = load_text("pattern p = { q -> k : exists e in 0..30 : n == 2**e * (k + 1) }")
    assert closed_forms(classify(halves, TILE)).kept is None


def test_data_has_no_formula_in_n() -> None:
    text = "input doc: int[n]\npattern p = { q -> k : k <= q and doc[q] == doc[k] }"
    with pytest.raises(ValueError, match="reads no data"):
        closed_forms(tiles_of(load_text(text), TILE)[0])


def test_grids_have_no_formula_in_n() -> None:
    with pytest.raises(ValueError, match="plain sequences"):
        closed_forms(classify(load_zoo("swin"), TILE))
