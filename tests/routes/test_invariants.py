"""What holds for every route, on random ones: the invariants of ``dynamic.md``, section 4."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.compiler import route_oracle as oracle
from attnc.compiler.ir.route import Above, Keep, Near, TopK, TopP
from attnc.compiler.ir.routed import Routed
from attnc.compiler.route_oracle_scores import scored
from tests.routes.cases import CASES, Shape
from tests.routes.data import exact, real, tied
from tests.routes.strategies import EVERYTHING, attentions, shapes, unit_routes
from tests.routes.zoo_ir import anchor, routed, xattention

CAUSAL = [
    "moba", "moba_wide", "nsa_selected", "nsa_learned", "infllm_v2", "dsa", "loki", "top_theta",
    "dma",
]  # fmt: skip
SOME = settings(max_examples=60, deadline=None)


def unbounded(method: Routed, select: Any) -> Routed:
    """Return a method whose routes choose everything that they see."""
    routes = tuple(replace(r, select=select, capacity=None) for r in method.routes)
    return replace(method, routes=routes)


# --------------------------------------------------------------- unbounded budget = dense


@SOME
@given(attentions(unit_routes()), shapes(square=True), st.sampled_from(EVERYTHING))
def test_an_unbounded_budget_is_dense(method: Routed, shape: Shape, select: Any) -> None:
    q, k, v = real(shape)
    method = replace(method, routes=tuple(
        replace(r, visible="all" if r.visible == "all" else "reached", keep=(),
                norm="softmax" if isinstance(select, TopP) else r.norm)
        for r in method.routes if r.key_rep.window is None  # which miss what none fits into
    ))  # fmt: skip
    assume(method.routes)
    everything = unbounded(method, select)
    assert np.array_equal(
        oracle.mask(everything, q, k), np.broadcast_to(_base(method, shape), _pairs(shape))
    )
    out, lse = oracle.attend(everything, q, k, v)
    dense, dense_lse = oracle.attend(method.base, q, k, v)
    assert np.array_equal(out, dense)
    assert lse is not None
    assert dense_lse is not None
    assert np.array_equal(lse, dense_lse)


BLOCKED = {
    "seer", "seer_top", "minference_block", "xattention", "quest", "kinetics", "loki", "dsa",
    "dma", "top_theta", "moba", "moba_wide", "vmoba", "vmoba_row", "vmoba_column", "vmoba_all",
    "vmoba_cells", "vmoba_mass", "vmoba_mass_row", "biformer", "sla", "sparge", "sparge_causal",
    "sparsed", "nsa_selected", "nsa_learned", "infllm_v2", "minference_vertical_slash",
    "flexprefill", "snapkv", "snapkv_max",
}  # fmt: skip
"""Methods that see all of their base when the budget is unbounded (NSA: by its local blocks)."""


@pytest.mark.parametrize("name", sorted(BLOCKED))
def test_every_method_with_an_unbounded_budget_is_dense(name: str) -> None:
    shape = CASES[name].shape()
    q, k, _ = real(shape)
    method = unbounded(CASES[name](), TopK(count=10**6))
    inputs = CASES[name].inputs(shape, np.random.default_rng(0))
    found = oracle.mask(method, q, k, inputs)
    assert np.array_equal(found, np.broadcast_to(_base(method, shape), _pairs(shape)))


def test_near_enough_to_the_anchor_is_dense() -> None:
    shape = CASES["anchor"].shape()
    q, k, _ = real(shape)
    found = oracle.mask(anchor(theta=Fraction(10**6)), q, k)
    assert np.array_equal(found, np.broadcast_to(_base(anchor(), shape), _pairs(shape)))


# --------------------------------------------------------------------- each key once


@SOME
@given(attentions(), shapes())
def test_kept_and_routed_parts_are_disjoint_and_merge(method: Routed, shape: Shape) -> None:
    q, k, v = real(shape)
    whole = oracle.mask(method, q, k)
    kept = method.kept.mask(shape.nq, shape.nk)
    rest = method.rest.mask(shape.nq, shape.nk)
    assert not (kept & rest).any()
    assert np.array_equal(kept | rest, _base(method, shape))
    out, lse = oracle.attend(method, q, k, v)
    assert lse is not None
    parts = [
        oracle.attend(_given(method, mask), q, k, v, {"m": mask})
        for mask in (whole & kept, whole & rest)
    ]
    weights = [np.exp(x - np.where(np.isfinite(lse), lse, 0)) for _, x in parts if x is not None]
    merged = sum(w[..., None] * x for w, (x, _) in zip(weights, parts, strict=True))
    assert np.abs(merged - out).max(initial=0) < 1e-12


def _given(method: Routed, mask: Any) -> Any:
    from attnc.compiler import driver

    return driver.load_text(
        f"input m: bool[{mask.shape[1]}, nq, nk]\n"
        f"pattern p heads h: {mask.shape[1]} = {{ q -> k, h : m[h][q][k] }}"
    )


# --------------------------------------------------------------------- no unintended empty row


@SOME
@given(attentions(unit_routes()), shapes(square=True))
def test_rows_that_see_something_choose_something(method: Routed, shape: Shape) -> None:
    q, k, _ = real(shape)
    for route in method.routes:
        if route.compete != "row" or isinstance(route.select, Above | Near):
            continue
        if isinstance(route.select, TopP) and route.select.crossing == "out":
            continue
        call = oracle._call(method.base, q, k, None, None)
        seen = scored(route, call)
        chosen = oracle.relation(method, replace(route, widen=1), q, k)
        positive = seen.visible & (seen.values > 0)
        can = (positive if isinstance(route.select, TopP) else seen.visible).any(-1)
        least = getattr(route.select, "least", 1)
        if least:
            assert (chosen.any(-1) | ~can).all()


@SOME
@given(attentions(unit_routes()), shapes(square=True))
def test_what_keeps_its_own_unit_has_no_empty_row(method: Routed, shape: Shape) -> None:
    q, k, _ = real(shape)
    own = (Keep(what="own"),)
    method = replace(method, routes=tuple(replace(r, keep=own) for r in method.routes))
    assert oracle.mask(method, q, k).any(-1).all()


# ------------------------------------------------------------------------ causal selection


@SOME
@given(attentions(unit_routes(causal=True)), shapes(square=True), st.integers(0, 23))
def test_a_causal_selection_does_not_see_later_tokens(
    method: Routed, shape: Shape, after: int
) -> None:
    _check_causal(method, shape, after % shape.nq, {})


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_methods_do_not_see_later_tokens(name: str) -> None:
    shape = CASES[name].shape(nq=21, nk=21)
    inputs = CASES[name].inputs(shape, np.random.default_rng(0))
    for after in (0, 5, 12, 19):
        _check_causal(CASES[name](), shape, after, inputs)


def _check_causal(method: Routed, shape: Shape, after: int, inputs: Any) -> None:
    assert all(route.is_causal for route in method.routes)
    q, k, v = real(shape)
    other = [x.copy() for x in (q, k, v)]
    rng = np.random.default_rng(99)
    for x in other:
        x[:, :, after + 1 :] = rng.normal(size=x[:, :, after + 1 :].shape)
    seen = oracle.mask(method, q, k, inputs)[:, :, : after + 1]
    assert np.array_equal(seen, oracle.mask(method, *other[:2], inputs)[:, :, : after + 1])
    out, _ = oracle.attend(method, q, k, v, inputs)
    moved, _ = oracle.attend(method, *other, inputs)
    assert np.abs(out - moved)[:, :, : after + 1].max(initial=0) < 1e-12


def test_the_causal_methods_are_the_ones_that_may_be_trained() -> None:
    causal = {
        n for n, c in CASES.items()
        if isinstance(c(), Routed) and all(r.is_causal for r in c().routes)
    }  # fmt: skip
    assert causal == set(CAUSAL)


# --------------------------------------------------------------------------- permutations


@SOME
@given(unit_routes(), shapes(), st.integers(0, 99))
def test_the_order_of_key_units_does_not_matter(route: Any, shape: Shape, seed: int) -> None:
    """Whole units of keys, with nothing said about order: the selection moves with them."""
    # Of one query nothing would be left.
    route = replace(route, query_rep=replace(route.query_rep, center=False))
    size = route.key.sizes[0] if route.key.kind == "block" else 1
    shape = replace(shape, nk=size * max(shape.nk // size, 1))
    route = replace(
        route, visible="all", keep=(), reduce=tuple(s for s in route.reduce if s.over != "smooth")
    )
    if route.key_rep.window is not None:
        return
    assume(route.norm != "minmax")  # it makes the best of each row 1: equals, of which the first
    method = routed(route, base="k >= 0")
    q, k, v = real(shape, seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(shape.nk // size)
    tokens = (order[:, None] * size + np.arange(size)).ravel()
    found = oracle.relation(method, route, q, k)
    assert np.array_equal(oracle.relation(method, route, q, k[:, :, tokens]), found[..., order])
    out, _ = oracle.attend(method, q, k, v)
    moved, _ = oracle.attend(method, q, k[:, :, tokens], v[:, :, tokens])
    assert np.abs(out - moved).max(initial=0) < 1e-12


@SOME
@given(attentions(), shapes())
def test_batch_items_do_not_know_each_other(method: Routed, shape: Shape) -> None:
    q, k, _ = real(replace(shape, b=2))
    both = oracle.mask(method, q, k)
    assert np.array_equal(both[:1], oracle.mask(method, q[:1], k[:1]))
    assert np.array_equal(both[1:], oracle.mask(method, q[1:], k[1:]))


@SOME
@given(attentions(), shapes())
def test_heads_that_share_no_budget_do_not_know_each_other(method: Routed, shape: Shape) -> None:
    method = replace(method, routes=tuple(
        replace(r, compete="head" if r.compete == "all" else r.compete,
                reduce=tuple(s for s in r.reduce if s.over not in ("group", "heads")))
        for r in method.routes
    ))  # fmt: skip
    shape = replace(shape, hq=2, hkv=2)
    q, k, _ = real(shape)
    both = oracle.mask(method, q, k)
    assert np.array_equal(both[:, ::-1], oracle.mask(method, q[:, ::-1], k[:, ::-1]))


# --------------------------------------------------------------------------------------- ties


@SOME
@given(unit_routes(), shapes(), st.sampled_from([tied, exact]))
def test_of_equals_the_lowest_index_is_taken(route: Any, shape: Shape, data: Any) -> None:
    route = replace(route, compete="row", keep=(), widen=1, norm="none", select=TopK(count=2))
    method = routed(route)
    q, k, _ = data(shape)
    values = scored(route, oracle._call(method.base, q, k, None, None)).values
    chosen = oracle.relation(method, route, q, k)
    for at in np.ndindex(chosen.shape[:3]):
        visible = [j for j in range(chosen.shape[3]) if values[at][j] > -np.inf]
        best = sorted(visible, key=lambda j, at=at: (-values[at][j], j))[:2]  # type: ignore[misc]
        assert sorted(best) == list(chosen[at].nonzero()[0])


def test_all_equal_scores_choose_the_first() -> None:
    shape = CASES["moba"].shape()
    q, k, _ = real(shape)
    q = np.zeros_like(q)
    method = CASES["minference_block"]()
    found = oracle.relation(method, method.routes[0], q, k)
    assert np.array_equal(found[0, 0], np.tril(np.ones((5, 5), bool)) & (np.arange(5) < 3))
    mass = xattention(mass=Fraction(1, 2))
    found = oracle.relation(mass, replace(mass.routes[0], keep=()), q, k)
    assert [list(row.nonzero()[0]) for row in found[0, 0]] == [[0], [0], [0, 1], [0, 1], [0, 1, 2]]


def _base(method: Routed, shape: Shape) -> Any:
    return method.base.mask(shape.nq, shape.nk)


def _pairs(shape: Shape) -> tuple[int, ...]:
    return (shape.b, shape.hq, shape.nq, shape.nk)
