"""Sets that differ by constants only: proved once, right one by one."""

from __future__ import annotations

import islpy as isl
import numpy as np
import pytest

from attnc.compiler import sets
from attnc.compiler.driver import load_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.classify import classify
from attnc.compiler.passes.families import SHIFT, families

CONTEXT = "[qb, NK] -> { : qb >= 0 and NK >= 1 }"


def row(text: str) -> isl.Set:
    return sets.read_set(f"[qb, NK] -> {{ [kb] : {text} and 0 <= kb < NK }}")


def bands(*shifts: int) -> list[isl.Set]:
    return [row(f"2*qb - {s} <= kb and kb <= 2*qb - {s} + 1") for s in shifts]


def test_a_family_is_each_of_its_members() -> None:
    """Members stand at their index; what is no part of the line is in no family."""
    parts = [row("kb = 0"), *bands(8, 16, 32, 64)]
    with sets.budget():
        (family,) = families(parts, sets.read_set(CONTEXT))
        assert sorted(family.shifts) == [1, 2, 3, 4]
        for i, shift in family.shifts.items():
            at = sets.read_set(f"[{SHIFT}] -> {{ [kb] : {SHIFT} = {shift} }}")
            one = family.tiles.intersect(at)
            last = one.find_dim_by_name(isl.dim_type.param, SHIFT)
            assert sets.equal(one.project_out(isl.dim_type.param, last, 1), parts[i])


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(bands(8, 16, 32), id="few"),
        pytest.param(
            [row(f"2*qb - {a} <= kb <= 2*qb + {b}") for a, b in ((1, 1), (2, 9), (3, 4), (7, 5))],
            id="two constants that go their own ways",
        ),
    ],
)
def test_no_family(parts: list[isl.Set]) -> None:
    with sets.budget():
        assert families(parts, sets.read_set(CONTEXT)) == []


def test_powers_of_two_keep_their_mask() -> None:
    """Forty bands, most of them one family: the block mask is the pattern's own mask."""
    pattern = load_text("pattern p = { q -> k : is_pow2(q div 8 - k div 8) or k == 0 }")
    mask = classify(pattern, Tiling(16, 16))
    assert not mask.widened
    for nk in (1, 33, 500):
        assert np.array_equal(mask.dense(nk, nk), pattern.mask(nk, nk))
