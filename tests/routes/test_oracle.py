"""The oracle of routes by itself: what its docstrings promise, on the smallest examples."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from attnc.compiler import route_oracle as oracle
from attnc.compiler.ir.routed import Routed
from tests.routes.cases import CASES
from tests.routes.data import exact, real
from tests.routes.zoo_ir import moba, seer, static, xattention


@pytest.mark.parametrize("name", CASES)
def test_every_method_attends(name: str) -> None:
    case = CASES[name]
    shape = case.shape()
    q, k, v = exact(shape)
    inputs = case.inputs(shape, np.random.default_rng(1))
    method = case()
    out, lse = oracle.attend(method, q, k, v, inputs)
    assert out.shape == (shape.b, shape.hq, shape.nq, shape.dv)
    assert np.isfinite(out).all()
    if lse is not None:
        seen = oracle.mask(method, q, k, inputs)
        assert np.array_equal(np.isneginf(lse), ~seen.any(-1))


def test_a_route_that_sees_everything_is_its_base() -> None:
    q, k, v = real(CASES["moba"].shape())
    out, lse = oracle.attend(moba(top=99), q, k, v)
    dense_out, dense_lse = oracle.attend(static("k <= q"), q, k, v)
    assert np.array_equal(out, dense_out)
    assert np.array_equal(lse, dense_lse)


def test_what_is_kept_is_seen_without_being_chosen() -> None:
    q, k, _ = real(CASES["moba"].shape())
    method = moba(top=1)
    kept = Routed(base=method.base, kept=static("k <= q and k < 2"), routes=method.routes)
    seen = oracle.mask(kept, q, k)
    assert seen[:, :, 2:, :2].all()
    assert np.array_equal(seen[..., 2:], oracle.mask(method, q, k)[..., 2:])


def test_scores_that_are_not_finite_are_refused() -> None:
    q, k, _ = real(CASES["moba"].shape())
    k[0, 0, 3, 1] = np.nan
    with pytest.raises(ValueError, match="route `moba`: a score is not finite"):
        oracle.mask(moba(), q, k)


def test_a_gate_of_the_wrong_shape_is_refused() -> None:
    q, k, _ = real(CASES["seer"].shape())
    with pytest.raises(ValueError, match="input `gate` is"):
        oracle.mask(seer(), q, k, {"gate": np.zeros((2, 4, 5, 4))})
    with pytest.raises(ValueError, match="input `gate` is missing"):
        oracle.mask(seer(), q, k)


def test_a_row_over_its_capacity_raises_or_drops() -> None:
    q, k, _ = exact(CASES["xattention"].shape())
    wide = xattention(mass=Fraction(1))
    (route,) = wide.routes
    assert oracle.relation(wide, route, q, k).sum(-1).max() == 5
    full = xattention(mass=Fraction(1), capacity=3)
    with pytest.raises(ValueError, match="a row selects 5, its capacity is 3"):
        oracle.mask(full, q, k)
    dropped = xattention(mass=Fraction(1), capacity=Fraction(1, 2), overflow="drop")
    found = oracle.relation(dropped, dropped.routes[0], q, k)
    assert found.sum(-1).max() == 3
    rows = np.arange(5)
    assert found[:, :, rows, rows].all(), "the own block is kept"
    assert found[..., 0].all(), "so is the first"
