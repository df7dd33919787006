"""The traps of ``dynamic.md``, section 2: what releases got wrong, held to its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from attnc.compiler import route_oracle as oracle
from attnc.compiler.ir.route import Above, Keep, Reduce, TopK, TopP
from attnc.compiler.ir.routed import Routed
from tests.routes.cases import CASES, Shape
from tests.routes.data import exact, real
from tests.routes.references import Bools, Floats, blocks
from tests.routes.zoo_ir import (
    anchor,
    minference_block,
    minference_vertical_slash,
    mosa,
    quest,
    routed,
    seer,
    sparge,
    static,
    xattention,
)

SHAPE = Shape(b=1, hq=2, hkv=1, nq=40, nk=40)


def attend(method: Any, q: Floats, k: Floats, v: Floats) -> Floats:
    return oracle.attend(method, q, k, v)[0]


def test_trap_1_anchor_stripes_count_once_and_reach_the_window() -> None:
    """AnchorAttention: everything selected is dense attention; no stripe twice, no block left out.

    The released kernels double the first superblock's stripes and skip the block before the window;
    done on purpose here, each of the two is far from dense.
    """
    q, k, v = real(SHAPE)
    dense = attend(static("k <= q"), q, k, v)
    method = anchor(tokens=4, widen=2, theta=Fraction(10**6), sink=3)
    assert np.abs(attend(method, q, k, v) - dense).max() < 1e-12
    seen, kept = oracle.mask(method, q, k), method.kept.mask(40, 40)
    assert not (kept & method.rest.mask(40, 40)).any()
    tokens, rows = np.arange(40), np.arange(40)[:, None]
    skipped = seen & ~((tokens >= rows // 8 * 8 - 4) & (tokens < rows // 8 * 8))
    assert np.abs(_dense(q, k, v, skipped.astype(float)) - dense).max() > 0.1
    twice = seen.astype(float) + (seen & ~kept & (tokens < 8))
    assert np.abs(_dense(q, k, v, twice) - dense).max() > 0.1
    assert np.abs(_dense(q, k, v, seen.astype(float)) - dense).max() < 1e-12


def _dense(q: Floats, k: Floats, v: Floats, times: Any) -> Floats:
    weights = times * np.exp(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]))
    out: Floats = weights / weights.sum(-1, keepdims=True) @ v
    return out


def test_trap_2_xattention_without_padding_sees_earlier_chunks() -> None:
    """XAttention: at a length that needs no padding, earlier cells count, as at any other.

    Its fallback masks ``[-0:]``, everything, there: the past then has a mass of 0.
    """
    q, k, _ = real(replace(SHAPE, nq=40, nk=40))
    method = xattention(cell=4, tokens=8, mass=Fraction(3, 4))
    whole = oracle.relation(method, method.routes[0], q, k)
    longer = [np.concatenate((x, np.zeros_like(x[:, :, :3])), 2) for x in (q, k)]
    padded = oracle.relation(method, method.routes[0], *longer)
    assert np.array_equal(whole, padded[:, :, :5, :5])
    past = np.tril(np.ones((5, 5), bool), -1)
    past[:, 0] = False
    assert whole[..., past].any(), "nothing but the sink and the diagonal"


def test_trap_2_xattention_forces_block_0_and_the_diagonal_in_every_row() -> None:
    """XAttention: row 0 is no exception, the sink is a column of keys, and no row has one more."""
    q, k, _ = real(SHAPE)
    method = xattention(mass=Fraction(1, 1000))
    found = oracle.relation(method, method.routes[0], q, k)
    expected = np.eye(5, dtype=bool)
    expected[:, 0] = True
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))
    free = replace(method.routes[0], keep=())
    found = oracle.relation(method, free, q, k)
    assert (found.sum(-1) == 1).all(), "what crosses the mass, and nothing that is forced"
    assert not found[..., 0].all()


def test_trap_3_minference_is_columns_and_slashes_not_wider_ones() -> None:
    """MInference: exactly "columns or slashes"; scattered slashes do not become blocks."""
    q, k, _ = real(SHAPE)
    method = minference_vertical_slash(columns=4, slashes=5, first=0, nearest=1)
    vertical, slash = (oracle.relation(method, r, q, k)[0, :, 0] for r in method.routes)
    found = oracle.mask(method, q, k)[0]
    distance = np.arange(40)[:, None] - np.arange(40)[None, :]
    for h in range(2):
        assert vertical[h].sum() == 4
        assert slash[h].sum() == 5
        for t in range(40):
            expected = {s for s in range(t + 1) if vertical[h, s] or slash[h, distance[t, s]]}
            assert set(found[h, t].nonzero()[0]) == expected
    tiles = found.reshape(2, 5, 8, 5, 8).any((2, 4)).sum(0)
    assert found.sum() < 0.5 * 64 * tiles.sum(), "the tiles that hold it are far more"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (TopP(mass=Fraction(3, 4)), [0, 1, 2]),  # XAttention, VMoBA, FlexPrefill's columns
        (TopP(mass=Fraction(3, 4), crossing="out", least=1), [0, 1]),  # SpargeAttn
        (TopP(mass=Fraction(3, 4), crossing="out"), [0, 1]),  # FlexPrefill's pooled heads
        (TopP(mass=Fraction(1, 4)), [0]),
        (TopP(mass=Fraction(1, 4), crossing="out", least=1), [0]),
        (TopP(mass=Fraction(1, 4), crossing="out"), []),
        (TopP(mass=Fraction(1, 2)), [0, 1]),  # 4 + 2 reach 5
        (TopP(mass=Fraction(2, 5)), [0]),  # 4 is reached exactly: nothing more
        (TopP(mass=Fraction(2, 5), crossing="out"), []),
        (TopP(mass=Fraction(1)), [0, 1, 2, 3, 4]),
    ],
)
def test_trap_4_conventions_of_a_mass(rule: TopP, expected: list[int]) -> None:
    """Top-p: the crossing entry in, out with one at least, out with nothing promised."""
    method = seer(tokens=8, select=rule)
    route = replace(method.routes[0], norm="none", visible="all")
    gate = np.broadcast_to(np.array([4.0, 2, 2, 1, 1]), (1, 2, 5, 5))
    q, k, _ = real(SHAPE)
    found = oracle.relation(method, route, q, k, {"gate": gate})
    assert [int(x) for x in found[0, 0, 0].nonzero()[0]] == expected


def test_trap_4_the_kept_are_charged_first() -> None:
    """VMoBA, XAttention: the share of what is forced is spent before the best are taken."""
    gate = np.broadcast_to(np.array([4.0, 2, 2, 1, 1]), (1, 2, 5, 5))
    q, k, _ = real(SHAPE)
    method = seer(select=TopP(mass=Fraction(1, 2)))
    route = replace(method.routes[0], norm="none", visible="all")

    def rows(**change: Any) -> list[list[int]]:
        found = oracle.relation(method, replace(route, **change), q, k, {"gate": gate})
        return [[int(x) for x in row.nonzero()[0]] for row in found[0, 0]]

    counted = rows(keep=(Keep(what="own"),))
    assert counted == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4]]
    extra = rows(keep=(Keep(what="own", counted=False),))
    assert extra == [[0, 1, 2], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4]]
    one_other = rows(
        keep=(Keep(what="own"),), select=TopP(mass=Fraction(1, 5), least=1)
    )  # fmt: skip
    assert one_other == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4]]


def test_trap_5_the_diagonal_is_not_forced() -> None:
    """SeerAttention, MInference's blocks: the own block competes as any other."""
    q, k, _ = real(Shape(b=1, hq=4, hkv=4, nq=80, nk=80), 1)
    method = minference_block(top=2)
    found = oracle.relation(method, method.routes[0], q, k)[0]
    own = found[:, np.arange(10), np.arange(10)]
    assert 0.2 < own.mean() < 0.9


def test_trap_5_a_threshold_may_empty_a_row() -> None:
    """SeerAttention: a row whose probabilities are all below the threshold has out 0, lse -inf."""
    q, k, v = real(SHAPE)
    gate = np.zeros((1, 2, 5, 5))
    method = seer(select=Above(threshold=Fraction(3, 10)))
    found = oracle.relation(method, method.routes[0], q, k, {"gate": gate})
    assert [int(x) for x in found[0, 0].sum(-1)] == [1, 2, 3, 0, 0]
    out, lse = oracle.attend(method, q, k, v, {"gate": gate})
    assert lse is not None
    assert (out[:, :, 24:] == 0).all()
    assert np.isneginf(lse[:, :, 24:]).all()
    assert np.isfinite(lse[:, :, :24]).all()
    kept = seer(select=Above(threshold=Fraction(3, 10)), keep=True)
    assert oracle.mask(kept, q, k, {"gate": gate}).any(-1).all()


def _selected_by_early_queries(method: Routed, q: Floats, k: Floats, inputs: Any) -> Bools:
    if method.routes[0].emit == "members":
        own = oracle.members(method, method.routes[0], q, k, inputs)
        return np.concatenate((own.queries[..., :28], own.keys[..., :28]), -1)
    return oracle.mask(method, q, k, inputs)[:, :, :28]


@pytest.mark.parametrize(
    "name",
    ["minference_vertical_slash", "minference_block", "snapkv", "sparsed", "mosa", "xattention",
     "routing_transformer", "vmoba", "vmoba_mass", "flexprefill", "seer", "anchor"],
)  # fmt: skip
def test_trap_6_selections_that_look_ahead_say_so(name: str) -> None:
    """A causal mask does not make a selection causal: later tokens move what early queries see."""
    method: Routed = CASES[name]()
    assert not all(route.is_causal for route in method.routes)
    if name == "seer":
        return  # its gate is given: what that looks at is not ours to know
    shape = CASES[name].shape(nq=40, nk=40, b=1)
    method = replace(method, base=static("k <= q"))
    moved = False
    for seed in range(20):
        q, k, _ = real(shape, seed)
        inputs = CASES[name].inputs(shape, np.random.default_rng(seed))
        other, ahead = [x.copy() for x in (q, k)], {n: x.copy() for n, x in inputs.items()}
        rng = np.random.default_rng(100 + seed)
        for x in other:
            x[:, :, 28:] = 3 * rng.normal(size=x[:, :, 28:].shape)
        if "router" in ahead:
            ahead["router"][..., 28:] += 1
        before = _selected_by_early_queries(method, q, k, inputs)
        moved |= not np.array_equal(before, _selected_by_early_queries(method, *other, ahead))
    assert moved


def _quest_pages(
    q: Floats, k: Floats, page: int, top: int, choose: Callable[[Any, int], set[int]]
) -> set[int]:
    """Return Quest's pages for one decode query; ``choose`` takes bounds and the newest page."""
    bound = {}
    for j, tokens in enumerate(blocks(len(k), page)):
        low, high = k[list(tokens)].min(0), k[list(tokens)].max(0)
        bound[j] = float(np.maximum(q * low, q * high).sum())
    return choose(bound, len(bound) - 1)


def test_trap_7_quest_is_the_kernel_not_the_evaluation_code() -> None:
    """Quest: the kernel counts the last page within the budget; the evaluation lets it compete."""

    def kernel(bound: dict[int, float], newest: int) -> set[int]:
        rest = sorted((j for j in bound if j != newest), key=lambda j: (-bound[j], j))
        return {newest, *rest[:2]}

    def evaluation(bound: dict[int, float], newest: int) -> set[int]:
        return set(sorted(bound, key=lambda j: (-bound[j], j))[:3])

    differ = 0
    for seed in range(10):
        q, k, _ = real(Shape(b=1, hq=1, hkv=1, nq=1, nk=38), seed)
        method = quest(page=4, top=3)
        found = oracle.relation(method, method.routes[0], q, k)[0, 0, 0]
        assert set(found.nonzero()[0]) == _quest_pages(q[0, 0, 0], k[0, 0], 4, 3, kernel)
        competes = replace(method.routes[0], keep=())
        free = oracle.relation(method, competes, q, k)[0, 0, 0]
        assert set(free.nonzero()[0]) == _quest_pages(q[0, 0, 0], k[0, 0], 4, 3, evaluation)
        differ += not np.array_equal(found, free)
    assert differ, "the two variants are the same on this data: nothing was tested"


def test_trap_7_a_bound_is_never_below_a_product() -> None:
    """Quest: no key of a page has a larger product than the page's bound."""
    from attnc.compiler.route_oracle_scores import scored

    q, k, _ = real(Shape(b=1, hq=2, hkv=1, nq=1, nk=38))
    method = quest(page=4)
    bound = scored(method.routes[0], oracle._call(method.base, q, k, None, None)).values
    products = q @ np.swapaxes(k, -1, -2)
    for j, tokens in enumerate(blocks(38, 4)):
        assert (products[..., list(tokens)].max(-1) <= bound[..., j] + 1e-12).all()


def test_trap_8_density_bounds_what_a_route_can_gain() -> None:
    """XAttention's 5.1x at 32K beside a density of 27.9%: a model must not promise past 1/density.

    Without scoring, and at the efficiency of a dense kernel, 27.9% is 3.6x.
    """
    assert 1 / 0.279 == pytest.approx(3.6, abs=0.02)
    q, k, _ = real(SHAPE)
    method = xattention()
    density = oracle.mask(method, q, k).sum() / oracle.static_mask(
        method.base, oracle._call(method.base, q, k, None, None), None
    ).sum()  # fmt: skip
    assert 0 < density < 1


# ------------------------------------------------------- others, met while the oracle was written


def test_a_mean_of_a_short_block_is_of_its_own_tokens() -> None:
    """A block cut at the end is not diluted by tokens that do not exist."""
    q, k, _ = exact(Shape(b=1, hq=1, hkv=1, nq=9, nk=9))
    method = minference_block(tokens=8, top=1)
    k[:, :, 8] = 0
    k[:, :, 8, 0], q[:, :, 8] = 8, 0
    q[:, :, 8, 0], k[:, :, :8, 0] = 1, 2
    found = oracle.relation(method, method.routes[0], q, k)[0, 0]
    assert [list(row.nonzero()[0]) for row in found] == [[0], [1]]


def test_expert_choice_may_leave_tokens_out() -> None:
    """Routing Transformer, MoSA: a token that nothing chose has out 0, exactly."""
    shape = Shape(b=1, hq=2, hkv=2, nq=20, nk=20)
    q, k, v = real(shape)
    router = np.random.default_rng(0).random((1, 2, 20))
    out, lse = oracle.attend(mosa(top=4), q, k, v, {"router": router})
    own = oracle.members(mosa(top=4), mosa(top=4).routes[0], q, k, {"router": router})
    chosen = own.queries.any(2)
    assert lse is None
    assert (chosen.sum(-1) == 4).all()
    assert (out[~chosen] == 0).all()
    assert (out[chosen] != 0).any(-1).all()


def test_windows_beyond_the_query_do_not_score_its_blocks() -> None:
    """NSA: a window that has not ended is not visible, though its block has begun."""
    q, k, _ = real(Shape(b=1, hq=2, hkv=1, nq=16, nk=16))
    method = CASES["nsa_selected"]()
    route = replace(method.routes[0], keep=(), select=TopK(count=9))
    found = oracle.relation(method, route, q, k)[0, 0]
    # Windows of 4 every 2: the first ends at 3, the first that touches block 1 (6..9) at 9.
    assert [list(row.nonzero()[0]) for row in found[[2, 3, 8, 9]]] == [[], [0], [0], [0, 1]]


def test_a_group_chooses_together_and_heads_apart() -> None:
    """NSA, Kinetics: one choice for the query heads that share keys."""
    q, k, _ = real(Shape(b=1, hq=4, hkv=2, nq=24, nk=24))
    method = minference_block(top=1)
    alone = oracle.relation(method, method.routes[0], q, k)
    assert alone.shape[1] == 4
    grouped = replace(method.routes[0], reduce=(Reduce(over="group"),))
    assert oracle.relation(method, grouped, q, k).shape[1] == 2
    single = replace(method.routes[0], reduce=(Reduce(over="heads", op="max"),))
    assert oracle.relation(method, single, q, k).shape[1] == 1


def test_sparge_takes_one_at_least() -> None:
    """SpargeAttn: where the best block alone crosses the mass, it is taken all the same."""
    q, k, _ = real(SHAPE)
    tiny = sparge(mass=Fraction(1, 1000))
    assert (oracle.relation(tiny, tiny.routes[0], q, k).sum(-1) == 1).all()


def test_two_routes_that_choose_a_pair_count_it_once() -> None:
    """MInference: a column that a slash crosses is one key of the softmax."""
    q, k, v = real(SHAPE)
    one = minference_block(top=99)
    both = routed(one.routes[0], replace(one.routes[0], name="again"))
    assert np.array_equal(attend(both, q, k, v), attend(static("k <= q"), q, k, v))
