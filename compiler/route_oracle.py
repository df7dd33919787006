"""Routed IR, q, k, v -> masks and outputs, densely in float64: the definition of routes.

Every executor must select what is selected here and attend as is done here. Written to be read:
memory and time are in proportion to pairs of tokens. ``route_oracle_units.py`` has the grains,
``route_oracle_scores.py`` the scores, ``route_oracle_select.py`` the selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.route import Grain, Near, Route, TopK
from attnc.compiler.ir.routed import AnyAttention, Combined, Routed
from attnc.compiler.route_oracle_scores import (
    Bools,
    Call,
    Floats,
    Scored,
    checked,
    represent,
    scored,
)
from attnc.compiler.route_oracle_scores import scale as route_scale
from attnc.compiler.route_oracle_select import rows, selected
from attnc.compiler.route_oracle_units import side, together, units

Inputs: TypeAlias = Mapping[str, Any]
Attended: TypeAlias = "tuple[Floats, Floats | None]"


@dataclass(frozen=True, eq=False)
class Members:
    """What centroids or heads chose: ``C`` of them in each head.

    Shape: ``queries`` bool ``[B, Hq, C, nq]``, ``keys`` bool ``[B, Hq, C, nk]``, ``score`` of the
    queries ``[B, Hq, C, nq]``.
    """

    queries: Bools
    keys: Bools
    score: Floats


# --------------------------------------------------------------------------------- selection


def relation(
    routed: Routed, route: Route, q: Any, k: Any, inputs: Inputs | None = None,
    extents: Mapping[str, int] | None = None,
) -> Bools:  # fmt: skip
    """Return which key units, or distances, each (widened) query unit selected.

    Shape: ``[B, H', RQ, RK]``; H' is 1, Hkv or Hq by ``route.heads``. Not for ``members``.
    Raises: ValueError for a score that is not finite, an input that does not fit, a full row.
    """
    if route.emit == "members":
        raise ValueError(f"route `{route.name}` has members")
    call = _call(routed.base, q, k, inputs, extents)
    anchor = None
    if isinstance(route.select, Near):
        anchor = anchors(route, call, static_mask(routed.kept, call, extents))
    found = scored(route, call)
    heads = {"one": 1, "kv": call.k.shape[1], "query": call.heads}[route.heads]
    assert found.values.shape[1] == heads
    return selected(route, found, call, anchor)


def anchors(route: Route, call: Call, kept_pairs: Bools) -> Floats:
    """Return the mean over each unit's queries of their largest kept product.

    Shape: ``[B, Hq, query units]``; -inf where no query keeps a key.
    """
    products = call.q @ np.swapaxes(call.per_head(call.k, 2), -1, -2) * route_scale(route, call)
    top = np.max(products, -1, where=kept_pairs, initial=-np.inf)  # [B, Hq, nq]
    has: Bools = np.isfinite(top)
    member = units(route.query, call.query).member.astype(np.float64)
    count: Floats = has @ member.T
    total: Floats = np.where(has, top, 0.0) @ member.T
    found = np.full(total.shape, -np.inf)
    np.divide(total, count, out=found, where=count > 0)
    return found


def members(
    routed: Routed, route: Route, q: Any, k: Any, inputs: Inputs | None = None,
    extents: Mapping[str, int] | None = None,
) -> Members:  # fmt: skip
    """Return the queries and keys that each centroid, or each head, chose."""
    call = _call(routed.base, q, k, inputs, extents)
    if not isinstance(route.select, TopK):
        raise ValueError(f"route `{route.name}`: members are chosen by top")
    if route.query.kind == "head":
        router = call.per_head(call.input(route.score.input), 1)[:, :, None, :]
        router = np.broadcast_to(router, (len(call.q), *router.shape[1:]))
        sides = router, router
    else:
        roles = {i.role: i.name for i in routed.inputs if i.route == route.name}
        centroids = call.per_head(call.input(roles.get("centroids")), 2)[None]  # [1, Hq, C, D]
        token = Grain(kind="token")
        sides = tuple(  # type: ignore[assignment]
            centroids @ np.swapaxes(represent(rep, x, units(token, of), call), -1, -2)
            * route_scale(route, call)
            for rep, x, of in (
                (route.query_rep, call.q, call.query),
                (route.key_rep, call.per_head(call.k, 2), call.key),
            )
        )  # fmt: skip
    queries, keys = (_chosen(route, scores, call) for scores in sides)
    return Members(queries, keys, sides[0])


def _chosen(route: Route, scores: Floats, call: Call) -> Bools:
    visible = np.ones(scores.shape[2:], dtype=bool)
    return selected(route, Scored(checked(route, scores, visible), visible), call)


# ------------------------------------------------------------------------------------- masks


def mask(
    routed: Routed, q: Any, k: Any, inputs: Inputs | None = None,
    extents: Mapping[str, int] | None = None,
) -> Bools:  # fmt: skip
    """Return ``base & (kept | route 1 | ...)``. Shape: ``[B, Hq, nq, nk]``.

    Of ``members``: the pairs that any of them holds, inside ``base``.
    """
    call = _call(routed.base, q, k, inputs, extents)
    found = static_mask(routed.kept, call, extents)
    for route in routed.routes:
        found = found | route_mask(routed, route, q, k, inputs, extents)
    return static_mask(routed.base, call, extents) & found


def route_mask(
    routed: Routed, route: Route, q: Any, k: Any, inputs: Inputs | None = None,
    extents: Mapping[str, int] | None = None,
) -> Bools:  # fmt: skip
    """Return the pairs of tokens of one route, base or no base. Shape: ``[B, Hq, nq, nk]``."""
    call = _call(routed.base, q, k, inputs, extents)
    if route.emit == "members":
        own = members(routed, route, q, k, inputs, extents)
        return np.asarray((own.queries[..., :, None] & own.keys[..., None, :]).any(2))
    chosen = relation(routed, route, q, k, inputs, extents)
    chosen = np.repeat(chosen, call.heads // chosen.shape[1], 1)
    if route.query.kind == "last":
        unit_of = np.zeros(call.query.length, dtype=np.int64)
    else:
        unit_of = together(rows(route, call), route.widen).member.argmax(0)
    by_query: Bools = chosen[:, :, unit_of]  # [B, Hq, nq, RK]
    if route.emit == "units":
        key_of = units(route.key, call.key).member.argmax(0)
        return by_query[..., key_of]
    places = np.arange(call.query.length)[:, None] + call.query.shift
    distance = places - np.arange(call.key.length)[None, :]
    inside = (distance >= 0) & (distance < call.key.length)
    at = np.where(inside, distance, 0)
    at = np.broadcast_to(at, (*by_query.shape[:2], *at.shape))
    return inside & np.take_along_axis(by_query, at, 3)


def static_mask(pattern: Pattern, call: Call, extents: Mapping[str, int] | None) -> Bools:
    """Return the mask of a pattern. Shape: ``[B, Hq, nq, nk]``."""
    nq, nk = call.query.length, call.key.length
    found: Bools = _per_head(pattern, call, lambda given: pattern.mask(nq, nk, given, extents))
    return found


def _per_head(pattern: Pattern, call: Call, find: Callable[[dict[str, Any]], Any]) -> Any:
    """Stack what ``find`` returns, ``[heads or 1, ...]``, for each batch item and query head."""
    found = _each_item(pattern, call, find)
    return np.repeat(found, call.heads // found.shape[1], 1)


def _each_item(pattern: Pattern, call: Call, find: Callable[[dict[str, Any]], Any]) -> Any:
    """Stack what ``find`` returns of the inputs of each batch item, in order."""
    ranks = {one.name: len(one.dims) for one in pattern.inputs}
    found = []
    for item in range(len(call.q)):
        given = {}
        for name, rank in ranks.items():
            if name in call.inputs:
                x = call.inputs[name]
                given[name] = x[item if len(x) > 1 else 0] if np.ndim(x) > rank else x
        found.append(find(given))
    return np.stack(found)


# ---------------------------------------------------------------------------------- attention


def attend(
    attention: AnyAttention, q: Any, k: Any, v: Any, inputs: Inputs | None = None,
    scale: float | None = None, extents: Mapping[str, int] | None = None,
) -> Attended:  # fmt: skip
    """Return out ``[B, Hq, nq, Dv]`` and the log-sum-exp ``[B, Hq, nq]``, None where there is none.

    A query that sees nothing has out 0 and lse -inf, or the sink.
    """
    match attention:
        case Combined():
            return _combined(attention, q, k, v, inputs, scale, extents), None
        case Pattern():
            call = _call(attention, q, k, inputs, extents)
            seen = static_mask(attention, call, extents)
            return _softmax(attention, call, seen, v, scale, extents)
        case Routed():
            call = _call(attention.base, q, k, inputs, extents)
            if any(route.emit == "members" for route in attention.routes):
                return _by_members(attention, call, v, scale, extents), None
            seen = mask(attention, q, k, inputs, extents)
            return _softmax(attention.base, call, seen, v, scale, extents)


def _combined(
    attention: Combined, q: Any, k: Any, v: Any, inputs: Inputs | None, scale: float | None,
    extents: Mapping[str, int] | None,
) -> Floats:  # fmt: skip
    given = dict(inputs or {})
    total = np.zeros((*np.shape(q)[:3], np.shape(v)[3]))
    for term in attention.terms:
        keys, values = k, v
        if term.keys is not None:
            keys, values = given[f"{term.keys}_k"], given[f"{term.keys}_v"]
        out, _ = attend(term.attention, q, keys, values, inputs, scale, extents)
        gate = 1.0 if term.gate is None else np.asarray(given[term.gate], np.float64)[..., None]
        total = total + gate * out
    return total


def _by_members(
    routed: Routed, call: Call, v: Any, scale: float | None, extents: Mapping[str, int] | None
) -> Floats:
    (route,) = routed.routes
    own = members(routed, route, call.q, call.k, call.inputs, extents)
    base = static_mask(routed.base, call, extents)
    total = np.zeros((*call.q.shape[:3], np.shape(v)[3]))
    for c in range(own.queries.shape[2]):
        queries, keys = own.queries[:, :, c], own.keys[:, :, c]
        seen = base & queries[..., :, None] & keys[..., None, :]
        out, _ = _softmax(routed.base, call, seen, v, scale, extents)
        weight = own.score[:, :, c] if route.combine == "score" else 1.0
        total += np.where(queries, weight, 0.0)[..., None] * np.where(queries[..., None], out, 0.0)
    if route.combine == "mean":
        total /= np.maximum(own.queries.sum(2), 1)[..., None]
    return total


def _softmax(
    pattern: Pattern, call: Call, seen: Bools, v: Any, scale: float | None,
    extents: Mapping[str, int] | None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Attend to the pairs seen, with the score terms and the sink of a pattern."""
    if scale is None:
        scale = float(pattern.scale) if pattern.scale is not None else call.q.shape[3] ** -0.5
    scores = scale * call.q @ np.swapaxes(call.per_head(call.k, 2), -1, -2)
    if pattern.score is not None:
        scores = _terms(pattern, call, scores, extents)
    scores = np.where(seen, scores, -np.inf)
    values = call.per_head(v, 2)
    if pattern.sink is not None:
        logits = _sinks(pattern, pattern.sink, call, extents)[..., None, None]
        logits = np.broadcast_to(logits, (*scores.shape[:3], 1))
        scores = np.concatenate((scores, logits), -1)
        values = np.concatenate((values, np.zeros_like(values[:, :, :1])), 2)
    top = np.max(scores, -1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0) @ values
    with np.errstate(divide="ignore"):
        lse = np.log(total) + top
    return out, lse[..., 0]


def _sinks(
    pattern: Pattern, sink: sc.RealExpr, call: Call, extents: Mapping[str, int] | None
) -> Any:
    """Return the logits beside the keys. Shape: ``[B, Hq]``."""
    nq, nk = call.query.length, call.key.length
    scope = {"h": np.arange(pattern.heads or 1), "nq": nq, "nk": nk}

    def logit(given: dict[str, Any]) -> Any:
        found = sc.evaluate(sink, scope, pattern.given(nq, nk, given, extents))
        return np.broadcast_to(np.asarray(found, dtype=np.float64), pattern.heads or 1)

    return _per_head(pattern, call, logit)


def _terms(
    pattern: Pattern, call: Call, products: Floats, extents: Mapping[str, int] | None
) -> Floats:
    """Return what the softmax runs over: the score terms of a pattern, from scaled products."""
    nq, nk = call.query.length, call.key.length
    group = call.heads // pattern.heads if pattern.kv_heads and pattern.heads else 1
    found = np.empty_like(products)
    for member in range(group):
        dots = iter(products[:, member::group])

        def scores(given: dict[str, Any], dots: Iterator[Floats] = dots) -> Floats:
            return pattern.scores(nq, nk, given, extents, dot=next(dots))

        found[:, member::group] = _each_item(pattern, call, scores)
    return found


# ------------------------------------------------------------------------------------ helpers


def _call(
    base: Pattern, q: Any, k: Any, inputs: Inputs | None, extents: Mapping[str, int] | None
) -> Call:
    q, k = np.asarray(q, dtype=np.float64), np.asarray(k, dtype=np.float64)
    nq, nk = q.shape[2], k.shape[2]
    given = dict(inputs or {})
    shift = nk - nq if base.align == "bottom-right" else 0
    known = {**given, **(extents or {})}
    return Call(
        q, k, given,
        side(base.query_space, nq, nq, nk, known, shift),
        side(base.key_space, nk, nq, nk, known),
    )  # fmt: skip
