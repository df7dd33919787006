"""The scores of a route -> which pairs of units are selected: keep, compete, select, widen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.ir.route import Above, Compete, Keep, Near, Ratio, Route, TopK, TopP
from attnc.compiler.route_oracle_scores import Bools, Call, Floats, Scored
from attnc.compiler.route_oracle_units import Units, together, units


def selected(route: Route, given: Scored, call: Call, anchor: Floats | None = None) -> Bools:
    """Return what is selected, widened and within the capacity. Shape: ``[B, H', RQ, RK]``.

    Args: ``anchor`` ``[B, H', query units]``, for ``Near`` (-inf: select all that is visible).
    """
    counted, extra = kept(route, given.visible.shape, call)
    shape = given.values.shape
    counted, extra, visible = (np.broadcast_to(x, shape) for x in (counted, extra, given.visible))
    values = np.where(visible, given.values, -np.inf)
    if isinstance(route.select, Above | Near):
        limit = _limit(route, call, anchor, shape)
        above = values > limit if isinstance(route.select, Above) else values >= limit
        found = above & visible & ~counted & ~extra
    else:
        found = np.zeros(shape, dtype=bool)
        for pool in pools(route.compete, shape, route.emit == "members"):
            found[pool] = best(
                route.select,
                Pool(values[pool], visible[pool], counted[pool], extra[pool], _rows(route, shape)),
            )
    order = np.where(counted | extra, np.inf, values)
    order = np.where(found | counted | extra, order, -np.inf)
    return within_capacity(route, widened(order, route.widen))


# ---------------------------------------------------------------------------------------- keep


def kept(route: Route, shape: tuple[int, ...], call: Call) -> tuple[Bools, Bools]:
    """Return what is kept and counted, and what is kept on top of the budget. ``[RQ, RK]`` each.

    What a clause counts and another does not is counted.
    """
    counted, extra = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for clause in route.keep:
        found = _keeps(route, clause, shape, call)
        if clause.counted:
            counted |= found
        else:
            extra |= found
    return counted, extra & ~counted


def _keeps(route: Route, clause: Keep, shape: tuple[int, ...], call: Call) -> Bools:
    index = np.arange(shape[1])[None, :]
    if route.emit != "units":
        allowed = "nearest" if route.emit == "slashes" else "first"
        if clause.what != allowed:
            raise ValueError(f"route `{route.name}`: {route.emit} cannot keep `{clause.what}`")
        return np.broadcast_to(index < clause.count, shape)
    if clause.what == "nearest":
        raise ValueError(f"route `{route.name}`: units cannot keep `nearest`")
    qu, ku = rows(route, call), units(route.key, call.key)
    reached = (ku.first[None, :] <= qu.last[:, None]) | (route.visible == "all")
    if clause.what == "first":
        return (index < clause.count) & reached
    own = _stands(qu, call.query.shift, call.key.length) @ ku.member.T.astype(np.int64) > 0
    if clause.what == "own":
        return own & reached
    last = np.where(own.any(1), own.shape[1] - 1 - own[:, ::-1].argmax(1), -1)[:, None]
    return (index <= last) & (index > last - clause.count) & (last >= 0) & reached


def rows(route: Route, call: Call) -> Units:
    """Return the query units of the selection, before ``widen``; ``last`` is one unit."""
    of = units(route.query, call.query)
    return together(of, max(of.count, 1)) if route.query.kind == "last" else of


def _stands(of: Units, shift: int, places: int) -> NDArray[np.int64]:
    """Return which places of the keys tokens of a unit stand at. Shape: ``[U, places]``."""
    found = np.zeros((of.count, places), dtype=np.int64)
    for unit, token in zip(*of.member.nonzero(), strict=True):
        if 0 <= token + shift < places:
            found[unit, token + shift] = 1
    return found


# ------------------------------------------------------------------------------ compete, select


@dataclass(frozen=True, eq=False)
class Pool:
    """What shares a budget, by index, and for how many rows the budget is."""

    values: Floats
    visible: Bools
    counted: Bools
    extra: Bools
    rows: int


def pools(compete: Compete, shape: tuple[int, ...], members: bool) -> Iterator[tuple[Any, ...]]:
    """Yield an index of ``[B, H', RQ, RK]`` for each pool; its elements in row-major order."""
    b, h, query, key = shape
    every = slice(None)
    match compete:
        case "column" if not members:
            yield from ((i, j, every, n) for i, j, n in np.ndindex(b, h, key))
        case "row" | "column":
            yield from np.ndindex(b, h, query)
        case "head":
            yield from np.ndindex(b, h)
        case "all":
            yield from np.ndindex(b)


def _rows(route: Route, shape: tuple[int, ...]) -> int:
    match route.compete:
        case "row" | "column":
            return 1
        case "head":
            return shape[2]
        case "all":
            return shape[1] * shape[2]


def best(rule: TopK | Ratio | TopP, pool: Pool) -> Bools:
    """Return what of a pool is taken besides the kept; of equals the lowest index first."""
    shape = pool.values.shape
    values, counted = pool.values.ravel(), pool.counted.ravel()
    visible, extra = pool.visible.ravel(), pool.extra.ravel()
    compete = visible & ~counted & ~extra
    order = [i for i in np.argsort(-values, kind="stable") if compete[i]]
    match rule:
        case TopK(count=count):
            taken = count * pool.rows - int(counted.sum())
        case Ratio(share=share, least=least):
            taken = max(share * int((compete | counted).sum()) // 1, least) - int(counted.sum())
        case TopP():
            taken = _by_mass(rule, values[order], values[counted & visible])
    found = np.zeros(values.shape, dtype=bool)
    found[order[: max(taken, 0)]] = True
    return found.reshape(shape)


def _by_mass(rule: TopP, descending: Floats, charged: Floats) -> int:
    """Return how many of the pool's scores are taken."""
    if (descending < 0).any() or (charged < 0).any():
        raise ValueError("a mass needs scores that are not negative")
    if rule.mass >= 1:
        return len(descending)
    target = float(rule.mass) * (float(descending.sum()) + float(charged.sum()))
    taken, total = 0, float(charged.sum())
    for value in descending:
        if (total if rule.crossing == "in" else total + value) >= target:
            break
        taken, total = taken + 1, total + value
    return max(taken, rule.least)


def _limit(route: Route, call: Call, anchor: Floats | None, shape: tuple[int, ...]) -> Floats:
    """Return what a score must be above, or near. Shape: broadcasts to ``[B, H', RQ, RK]``."""
    rule = route.select
    if isinstance(rule, Near):
        if anchor is None or anchor.shape != shape[:3]:
            raise ValueError(f"route `{route.name}`: an anchor is one of each head's query units")
        return (anchor - float(rule.difference))[..., None]
    assert isinstance(rule, Above)
    if not isinstance(rule.threshold, str):
        return np.full((1, 1, 1, 1), float(rule.threshold))
    limit = np.asarray(call.input(rule.threshold), dtype=np.float64)
    if limit.shape not in ((1,), (shape[1],)):
        limit = call.per_head(limit, 0)
        if limit.shape != (shape[1],):
            raise ValueError(f"input `{rule.threshold}`: {shape[1]} heads select")
    return limit[None, :, None, None]


# ------------------------------------------------------------------------------ widen, capacity


def widened(order: Floats, count: int) -> Floats:
    """Return the largest of ``count`` rows each; -inf is what none of them selected."""
    groups = [order[:, :, r : r + count].max(2) for r in range(0, order.shape[2], count)]
    return np.stack(groups, 2) if groups else order


def within_capacity(route: Route, order: Floats) -> Bools:
    """Return what is selected and not dropped. Raises: ValueError for a row that has too many."""
    found = order > -np.inf
    if route.capacity is None:
        return found
    most = capacity(route, order.shape[3])
    if route.overflow == "error":
        largest = int(found.sum(3).max(initial=0))
        if largest > most:
            raise ValueError(
                f"route `{route.name}`: a row selects {largest}, its capacity is {most}"
            )
        return found
    ranks = np.argsort(np.argsort(-order, axis=3, kind="stable"), axis=3, kind="stable")
    return found & (ranks < most)


def capacity(route: Route, keys: int) -> int:
    """Return the most key units that a row may have."""
    if isinstance(route.capacity, int):
        return route.capacity
    return keys if route.capacity is None else -(-route.capacity * keys // 1)

