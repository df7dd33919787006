"""Far powers of two are classified once, with a parameter, and the mask stays the pattern's."""

from __future__ import annotations

import pytest

from attnc.compiler.driver import load_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.passes.classify import classify
from attnc.compiler.passes.powers import far_powers
from attnc.compiler.passes.relations import project, refined
from attnc.compiler.sets import budget

FAR = {
    "tokens": "is_pow2(q - k)",
    "either way": "is_pow2(abs(q - k))",
    "blocks": "k <= q and is_pow2(q div 8 - k div 8)",
    "beside a window": "k <= q and (q - k < 9 or is_pow2(q div 16 - k div 16) or k < 16)",
    "every other query": "is_pow2(q - k) and q mod 2 == 1",
}
NEAR = {
    "a sink within tiles": "k < 3 or is_pow2(q - k)",
    "all others": "k <= q and not is_pow2(q - k)",
    "two kinds": "is_pow2(q - k) or is_pow2(q + k)",
    "under a conditional": "(if is_pow2(q - k) then 1 else 0) + k > q",
}


@pytest.mark.parametrize("case", [*FAR, *NEAR])
@pytest.mark.parametrize("tile", [(4, 4), (8, 16), (16, 4)])
def test_masks_are_exact(case: str, tile: tuple[int, int]) -> None:
    pattern = load_text(f"pattern p = {{ q -> k : {(FAR | NEAR)[case]} }}")
    mask = classify(pattern, Tiling(*tile))
    for nq, nk in ((1, 1), (77, 77), (150, 90), (61, 203)):
        assert (mask.dense(nq, nk) == pattern.mask(nq, nk)).all()


@pytest.mark.parametrize("case", FAR)
def test_far_powers_are_found(case: str) -> None:
    pattern = load_text(f"pattern p = {{ q -> k : {FAR[case]} }}")
    found = far_powers(pattern, Tiling(8, 8), 1)
    assert found is not None
    assert len(found.full) + len(found.partial) >= 30


@pytest.mark.parametrize("case", NEAR)
def test_powers_that_meet_other_tiles_are_left_alone(case: str) -> None:
    pattern = load_text(f"pattern p = {{ q -> k : {NEAR[case]} }}")
    assert far_powers(pattern, Tiling(8, 8), 1) is None


@pytest.mark.parametrize(("text", "some"), [
    ("q - k == 5", False), ("(q - k) mod 2 == 0", False), ("k < 2", False), ("q - k < 40", True),
    ("k mod 16 < 8 and q >= k", True),
])  # fmt: skip
def test_full_tiles_are_only_looked_for_where_there_may_be_some(text: str, some: bool) -> None:
    pattern = load_text(f"pattern p = {{ q -> k : {text} }}")
    with budget():
        found = refined(project(pattern, Tiling(8, 8)), Tiling(8, 8))
    assert found.full.is_empty() is not some
    assert found.partial.is_subset(found.nonempty)
