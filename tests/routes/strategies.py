"""Hypothesis strategies: random routes that are valid, and attentions of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from hypothesis import strategies as st

from attnc.compiler.ir.pattern import Align
from attnc.compiler.ir.route import (
    Above,
    Compete,
    Grain,
    Keep,
    Norm,
    Ratio,
    Reduce,
    Rep,
    Route,
    Score,
    Select,
    TopK,
    TopP,
    Visible,
)
from attnc.compiler.ir.routed import Routed
from tests.routes.cases import Shape
from tests.routes.zoo_ir import ID, MEAN, TOKEN, block, routed

Op = Literal["sum", "mean", "max"]
SHARES = st.sampled_from([Fraction(1, 4), Fraction(1, 2), Fraction(7, 8)])
SCORES = st.sampled_from([Score(kind="dot"), Score(kind="dot", scale="head_dim")])
VISIBLE: st.SearchStrategy[Visible] = st.sampled_from(["past", "completed", "reached", "all"])
SEEN_BY_CAUSAL: st.SearchStrategy[Visible] = st.sampled_from(["past", "completed"])
COMPETE: st.SearchStrategy[Compete] = st.sampled_from(
    ["row", "row", "row", "column", "head", "all"]
)
OPS: st.SearchStrategy[Op] = st.sampled_from(["sum", "mean", "max"])
SMOOTH: st.SearchStrategy[Op] = st.sampled_from(["mean", "max"])
NORMS: st.SearchStrategy[Norm] = st.sampled_from(["none", "softmax", "minmax"])
FORMS = st.sampled_from(["pooled", "cells", "tokens", "bound", "windows"])
GRAINS = st.sampled_from([TOKEN, block(2), block(4), block(8)])
OVER: st.SearchStrategy[Literal["group", "heads"] | None] = st.sampled_from(
    [None, None, "group", "heads"]
)
BOOLS, FEW, ONE_IN_FOUR = st.booleans(), st.integers(1, 2), st.sampled_from([True, *[False] * 3])
WIDENS, WIDE = st.sampled_from([1, 1, 1, 2, 3]), st.sampled_from([2, 4, 6])
OF_TOKENS = st.builds(Rep, kind=st.sampled_from(["id", "unit", "mean"]), center=BOOLS)
OF_BLOCKS = st.builds(Rep, kind=st.sampled_from(["mean", "max", "min"]), center=BOOLS)
BUDGETS: st.SearchStrategy[Select] = st.one_of(
    st.builds(TopK, count=st.integers(1, 4)),
    st.builds(Ratio, share=SHARES, least=st.integers(0, 2)),
    st.builds(Above, threshold=st.sampled_from([Fraction(-1, 3), Fraction(3, 16)])),
)
BUDGETS_OF_MASSES: st.SearchStrategy[Select] = st.one_of(
    BUDGETS,
    st.builds(TopP, mass=SHARES, crossing=st.sampled_from(["in", "out"]), least=st.integers(0, 1)),
)
UNITS = st.builds(
    Keep, what=st.sampled_from(["own", "first", "recent"]), count=FEW, counted=BOOLS
)
KEEPS = st.lists(UNITS, max_size=2, unique_by=lambda keep: keep.what).map(tuple)
EVERYTHING: tuple[Select, ...] = (
    TopK(count=10**6), Ratio(share=Fraction(1)), TopP(mass=Fraction(1)),
)  # fmt: skip


def _rep(draw: Any, grain: Grain, causal: bool) -> Rep:
    rep: Rep = draw(OF_TOKENS if grain.kind == "token" else OF_BLOCKS)
    return replace(rep, center=rep.center and not causal)


@st.composite
def unit_routes(draw: Any, causal: bool = False) -> Route:
    """Draw a route from tokens or blocks to tokens or blocks; ``causal``: one that may train."""
    query = TOKEN if causal else draw(GRAINS)
    key, form, norm = draw(GRAINS), draw(FORMS), draw(NORMS)
    score, steps = draw(SCORES), []
    query_rep, key_rep = _rep(draw, query, causal), _rep(draw, key, causal)
    if form == "cells" and query.kind == key.kind == "block":
        size = 2 if draw(BOOLS) or key.sizes[0] % query.sizes[0] else query.sizes[0]
        query_rep = Rep(kind="fold", size=size, flip=draw(BOOLS))
        key_rep = Rep(kind="fold", size=size)
        score = replace(score, divisor=size)
        steps.append(Reduce(over="cell", op=draw(OPS)))
    elif form == "tokens" and "block" in (query.kind, key.kind):
        query_rep = key_rep = ID
        steps.append(Reduce(over="cell", op=draw(OPS)))
    elif form == "bound":
        score, key_rep = Score(kind="bound"), Rep(kind="minmax")
    elif form == "windows" and key.kind == "block":
        key_rep = Rep(kind="mean", window=(draw(WIDE), 2))
        steps.append(Reduce(over="overlap", op=draw(OPS)))
    over = draw(OVER)
    if over is not None:
        steps.insert(draw(st.integers(0, len(steps))), Reduce(over=over, op=draw(OPS)))
    if draw(ONE_IN_FOUR):
        steps.append(Reduce(over="smooth", op=draw(SMOOTH), width=3))
    return Route(
        name="r", query=query, key=key, query_rep=query_rep, key_rep=key_rep, score=score,
        visible=draw(SEEN_BY_CAUSAL if causal else VISIBLE), norm=norm, reduce=tuple(steps),
        compete="row" if causal else draw(COMPETE),
        select=draw(BUDGETS if norm == "none" else BUDGETS_OF_MASSES), keep=draw(KEEPS),
        widen=1 if causal else draw(WIDENS),
    )  # fmt: skip


@st.composite
def last_routes(draw: Any) -> Route:
    """Draw a route of a head: columns, blocks or diagonals by what the last queries see."""
    slashes = draw(BOOLS)
    key, norm = TOKEN if slashes else draw(GRAINS), "softmax" if draw(BOOLS) else "none"
    over = "diagonal" if slashes else "query"
    steps = [Reduce(over=over, op=draw(OPS))]
    if not slashes and draw(BOOLS):
        steps.append(Reduce(over="smooth", op="mean", width=3))
    kept = (Keep(what="nearest", count=draw(FEW), counted=draw(BOOLS)),)
    return Route(
        name="r", query=Grain(kind="last", sizes=(draw(st.integers(1, 6)),)), key=key,
        query_rep=ID, key_rep=ID if key.kind == "token" else MEAN, score=draw(SCORES),
        visible="completed", norm=norm, reduce=tuple(steps), compete="head",
        select=draw(BUDGETS if norm == "none" else BUDGETS_OF_MASSES),
        keep=kept if slashes else draw(KEEPS),
        emit="slashes" if slashes else "units",
    )  # fmt: skip


ANY = st.one_of(unit_routes(), unit_routes(), last_routes())
KEPT = st.sampled_from(["", "", "({}) and k < 2", "({}) and k == q"])
HEADS = st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)])
LENGTHS = st.one_of(st.integers(1, 24), st.sampled_from([1, 16]))


@st.composite
def attentions(draw: Any, routes: st.SearchStrategy[Route] | None = None) -> Routed:
    """Draw an attention of one route, or two, some of it kept; causal if the route is for it."""
    routes = ANY if routes is None else routes
    some = [draw(routes)]
    if draw(ONE_IN_FOUR):
        some.append(replace(draw(routes), name="s"))
    causal = draw(BOOLS) if {r.visible for r in some} == {"all"} else True
    base = "k <= q" if causal else "k >= 0"
    kept = draw(KEPT).format(base)
    align: Align = "bottom-right" if draw(ONE_IN_FOUR) else "top-left"
    return routed(*some, base=base, kept=kept, align=align)


@st.composite
def shapes(draw: Any, square: bool = False) -> Shape:
    """Draw the sizes of a call: groups of heads, odd lengths, one key, lengths that differ."""
    hq, hkv = draw(HEADS)
    nq = draw(LENGTHS)
    nk = nq if square or draw(BOOLS) else draw(LENGTHS)
    return Shape(b=1 if draw(BOOLS) else 2, hq=hq, hkv=hkv, nq=nq, nk=nk, d=16, dv=16)
