"""A route and its call -> the score of every pair of units: represent, compare, reduce."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.ir.route import Reduce, Rep, Route, Visible
from attnc.compiler.route_oracle_units import (
    Side,
    Units,
    score_units,
    strides_shared,
    units,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Call:
    """What a route is decided by: q ``[B, Hq, nq, D]``, k ``[B, Hkv, nk, D]``, its inputs by name,
    and where the tokens of both sides stand."""

    q: Floats
    k: Floats
    inputs: Mapping[str, Any]
    query: Side
    key: Side

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return int(self.q.shape[1])

    def per_head(self, x: Any, rank: int) -> Floats:
        """Return an input with one entry for each query head; ``rank`` axes come after the head."""
        found = np.asarray(x, dtype=np.float64)
        axis = found.ndim - rank - 1
        heads = found.shape[axis]
        if heads not in (1, self.k.shape[1], self.heads):
            raise ValueError(f"{heads} heads: there are {self.heads} and {self.k.shape[1]}")
        return np.repeat(found, self.heads // heads, axis)

    def input(self, name: str | None) -> Any:
        """Return an input. Raises: ValueError if it is not given."""
        if name is None or name not in self.inputs:
            raise ValueError(f"input `{name}` is missing")
        return self.inputs[name]


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of pairs of units. Shape: ``values`` ``[B, H', RQ, RK]``, ``visible`` ``[RQ, RK]``."""

    values: Floats
    visible: Bools


def scored(route: Route, call: Call) -> Scored:
    """Return the scores at the grain of the selection; -inf where nothing is visible."""
    if route.score.kind == "external":
        qu, ku = units(route.query, call.query), units(route.key, call.key)
        values = call.per_head(call.input(route.score.input), 2)
        pairs = (len(call.q), call.heads, qu.count, ku.count)
        try:
            values = np.broadcast_to(values, pairs)
        except ValueError as wrong:
            message = f"input `{route.score.input}` is {values.shape}, not {pairs}"
            raise ValueError(message) from wrong
    else:
        qu = score_units(route.query, route.query_rep, call.query)
        ku = score_units(route.key, route.key_rep, call.key)
        values = compare(route, call, qu, ku)
    seen = visible(route.visible, qu, ku)
    values = checked(route, values, seen)
    found = Scored(normalise(route, values, seen), seen)
    for step in route.reduce:
        found = reduced(route, step, found, call, qu, ku)
    wanted = shape(route, call)
    if found.visible.shape != wanted:
        raise ValueError(
            f"route `{route.name}`: scores of {found.visible.shape} units, selection of {wanted}"
        )
    return Scored(np.where(found.visible, found.values, -np.inf), found.visible)


def shape(route: Route, call: Call) -> tuple[int, int]:
    """Return how many query units (before ``widen``) and key units, or distances, there are."""
    rows = 1 if route.query.kind == "last" else units(route.query, call.query).count
    keys = call.key.length if route.emit == "slashes" else units(route.key, call.key).count
    return rows, keys


def checked(route: Route, values: Floats, seen: Bools) -> Floats:
    """Return the scores. Raises: ValueError if one that is visible is not finite."""
    if not np.isfinite(values[..., seen]).all():
        raise ValueError(f"route `{route.name}`: a score is not finite")
    return values


# --------------------------------------------------------------------------- represent, compare


def represent(rep: Rep, x: Floats, of: Units, call: Call) -> Floats:
    """Return what stands for each unit. Shape: ``[B, H, U, D']``; ``minmax``: ``[2, B, H, U, D]``.

    Args: ``x`` are the tokens of the side, one for each query head.
    """
    if rep.kind == "external":
        return call.per_head(call.input(rep.input), 2)
    if rep.center:
        x = x - x.mean(2, keepdims=True)
    member = of.member.astype(np.float64)
    match rep.kind:
        case "id":
            return member @ x
        case "unit":
            length = np.sqrt((x * x).sum(-1, keepdims=True))
            x = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
            return member @ x
        case "mean":
            return np.asarray((member @ x) / member.sum(1)[:, None])
        case "max":
            return _extreme(x, of, np.max)
        case "min":
            return _extreme(x, of, np.min)
        case "minmax":
            return np.stack((_extreme(x, of, np.min), _extreme(x, of, np.max)))
        case "fold":
            b, h, tokens, d = x.shape
            padded = np.zeros((b, h, of.count * rep.size, d))
            padded[:, :, :tokens] = x
            folded = padded.reshape(b, h, of.count, rep.size, d)
            if rep.flip:
                folded = folded[:, :, :, ::-1]
            return np.asarray(folded.reshape(b, h, of.count, rep.size * d))


def _extreme(x: Floats, of: Units, op: Any) -> Floats:
    return np.stack([op(x[:, :, member], axis=2) for member in of.member], 2)


def compare(route: Route, call: Call, qu: Units, ku: Units) -> Floats:
    """Return the scaled score of each pair of units. Shape: ``[B, Hq or 1, SQ, SK]``."""
    if route.score.kind == "relu_heads":
        return _relu_heads(route, call) * scale(route, call)
    left = represent(route.query_rep, call.q, qu, call)
    right = represent(route.key_rep, call.per_head(call.k, 2), ku, call)
    _fits(route, left, qu)
    _fits(route, right, ku)
    if route.score.kind == "bound":
        least, largest = right[:, :, :, None]
        each = left[:, :, :, None]
        found = np.maximum(each * least, each * largest).sum(-1)
    else:
        found = left @ np.swapaxes(right, -1, -2)
    wide = np.broadcast_to(found, (len(call.q), *found.shape[1:]))
    return np.asarray(wide * scale(route, call))


def scale(route: Route, call: Call) -> float:
    """Return the factor of a route's products."""
    given = route.score.scale
    factor = 1.0 if given is None else 1 / math.sqrt(call.q.shape[-1])
    if given is not None and given != "head_dim":
        factor = float(given)
    return factor / route.score.divisor


def _relu_heads(route: Route, call: Call) -> Floats:
    q = np.asarray(call.input(route.query_rep.input), dtype=np.float64)  # [B, J, nq, D']
    k = np.asarray(call.input(route.key_rep.input), dtype=np.float64)  # [B, 1, nk, D']
    weights = np.asarray(call.input(route.score.weights), dtype=np.float64)  # [B, nq, J]
    found = np.einsum("bqj,bjqk->bqk", weights, np.maximum(q @ np.swapaxes(k, -1, -2), 0))
    return np.broadcast_to(found[:, None], (len(call.q), 1, *found.shape[1:]))


def _fits(route: Route, rep: Floats, of: Units) -> None:
    if rep.shape[-2] != of.count:
        raise ValueError(
            f"route `{route.name}`: {rep.shape[-2]} representations of {of.count} units"
        )


# ----------------------------------------------------------------------------- visible, normalise


def visible(rule: Visible, qu: Units, ku: Units) -> Bools:
    """Return which key unit each query unit may score. Shape: ``[SQ, SK]``."""
    first, last = qu.first[:, None], qu.last[:, None]
    match rule:
        case "past":
            return ku.last < first
        case "completed":
            return ku.last <= last
        case "reached":
            return ku.first <= last
        case "all":
            return np.ones((qu.count, ku.count), dtype=bool)


def normalise(route: Route, values: Floats, seen: Bools) -> Floats:
    """Return the normalised scores; those that are not visible are 0."""
    if not values.size or not seen.any():
        return np.zeros_like(values)
    if route.norm == "softmax":
        top = np.max(values, -1, keepdims=True, where=seen, initial=-np.inf)
        weights = np.exp(np.where(seen, values - np.where(np.isfinite(top), top, 0), -np.inf))
        total = weights.sum(-1, keepdims=True)
        return np.asarray(weights / np.where(total > 0, total, 1.0))
    if route.norm == "minmax":
        axes = pool_axes(route)
        some = np.broadcast_to(seen, values.shape)
        least = np.min(values, axes, keepdims=True, where=some, initial=np.inf)
        largest = np.max(values, axes, keepdims=True, where=some, initial=-np.inf)
        spread = largest - least
        scaled = np.divide(values - least, spread, out=np.ones_like(values), where=spread > 0)
        return np.where(seen, scaled, 0.0)
    return np.where(seen, values, 0.0)


def pool_axes(route: Route) -> tuple[int, ...]:
    """Return the axes of ``[B, H, RQ, RK]`` that one budget is shared over."""
    match route.compete:
        case "row":
            return (3,)
        case "column":
            return (3,) if route.emit == "members" else (2,)
        case "head":
            return (2, 3)
        case "all":
            return (1, 2, 3)


# ----------------------------------------------------------------------------------------- reduce


def reduced(
    route: Route, step: Reduce, given: Scored, call: Call, qu: Units, ku: Units
) -> Scored:
    """Return the scores after one step; ``qu`` and ``ku`` are the units at the grain of the score.

    What is not visible is 0 in ``given`` and in the result.
    """
    values, seen = given.values, given.visible
    rows, keys = np.eye(len(seen)), np.eye(seen.shape[1])
    match step.over:
        case "cell":
            if route.query.kind != "last":
                rows = _parents(units(route.query, call.query), qu)
            if route.key_rep.window is None:
                keys = _parents(units(route.key, call.key), ku)
        case "query":
            rows = np.ones((1, len(seen)))
        case "overlap":
            window = route.key_rep.window
            if window is None or route.key.kind != "block":
                raise ValueError(f"route `{route.name}`: windows overlap blocks, nothing else")
            keys = strides_shared(ku, window, route.key.sizes[0])
        case "diagonal":
            return _diagonals(step, given, qu, call.key.length)
        case "group":
            return Scored(_over_heads(step, values, call.k.shape[1]), seen)
        case "heads":
            return Scored(_over_heads(step, values, 1), seen)
        case "smooth":
            return Scored(np.where(seen, _smooth(step, values), 0.0), seen)
    return Scored(_coarse(step, values, seen, rows, keys), rows @ seen @ keys.T > 0)


def _parents(coarse: Units, fine: Units) -> Floats:
    """Return which coarse unit holds each fine one. Shape: ``[coarse, fine]``."""
    held = coarse.member.astype(np.int64) @ fine.member.T.astype(np.int64)
    if not (held == fine.member.sum(1)).any(0).all():
        raise ValueError("a unit of the score lies in several units of the selection")
    return (held > 0).astype(np.float64)


def _coarse(step: Reduce, values: Floats, seen: Bools, rows: Floats, keys: Floats) -> Floats:
    """Reduce pairs into pairs of coarser units; ``rows``, ``keys``: weights ``[coarse, fine]``."""
    if step.op == "max":
        found = np.zeros((*values.shape[:2], len(rows), len(keys)))
        for r, k in np.ndindex(len(rows), len(keys)):
            some = seen & np.outer(rows[r] > 0, keys[k] > 0)
            if some.any():
                found[..., r, k] = values[..., some].max(-1)
        return found
    total: Floats = rows @ np.where(seen, values, 0.0) @ keys.T
    if step.op == "sum":
        return total
    count = rows @ seen @ keys.T
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def _diagonals(step: Reduce, given: Scored, qu: Units, keys: int) -> Scored:
    """Reduce over pairs of equal distance. Shape: ``[B, H', 1, keys]``."""
    distance = qu.first[:, None] - np.arange(keys)[None, :]
    found = np.zeros((*given.values.shape[:2], 1, keys))
    seen = np.zeros((1, keys), dtype=bool)
    for d in range(keys):
        some = given.visible & (distance == d)
        if some.any():
            seen[0, d] = True
            found[..., 0, d] = _REDUCE[step.op](given.values[..., some], axis=-1)
    return Scored(found, seen)


def _over_heads(step: Reduce, values: Floats, heads: int) -> Floats:
    b, h, rows, keys = values.shape
    grouped = values.reshape(b, heads, h // heads, rows, keys)
    return np.asarray(_REDUCE[step.op](grouped, axis=2))


def _smooth(step: Reduce, values: Floats) -> Floats:
    if step.width % 2 == 0:
        raise ValueError("a running window has an odd width")
    reach, keys = step.width // 2, values.shape[-1]
    padded = np.pad(values, ((0, 0), (0, 0), (0, 0), (reach, reach)))
    near = np.stack([padded[..., i : i + keys] for i in range(step.width)], -1)
    return np.asarray(_REDUCE[step.op](near, axis=-1))


_REDUCE: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max}
