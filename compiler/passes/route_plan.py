"""Route IR -> how a CPU walks what it selects, by cost.

Where single tokens choose units of keys there are two loops over the same pairs. *By keys*: each
unit once, beside all queries that chose it; what a query gets from its units is merged afterwards.
*By tokens*: each query once, beside copies of all its keys. The first pays for merging, once for
each query head, unit and query, and for a call for each unit; the second for copies of the keys,
which the heads of a group share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attnc.compiler.ir.route import Route

WalkForm = Literal["rows", "keys", "tokens", "slashes", "members"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkRates:
    """Nanoseconds of one thread for 64 channels of float32, from runs on an EPYC with AVX-512.

    ``call``: what a unit costs whatever is in it. ``merge``: taking one part into the result of one
    query. ``pair``: one product of query and key, and its share of the values. ``copy``: one key
    and its value.
    """

    call: int
    merge: int
    pair: int
    copy: int


CPU_RATES = WalkRates(call=300_000, merge=400, pair=4, copy=130)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The loop over what a route selects, and what both loops would cost; None: no choice."""

    form: WalkForm
    by_keys_ns: int | None = None
    by_tokens_ns: int | None = None

    def __str__(self) -> str:
        if self.by_keys_ns is None or self.by_tokens_ns is None:
            return f"by {self.form}"
        keys, tokens = (f"{ns / 1e6:.1f} ms" for ns in (self.by_keys_ns, self.by_tokens_ns))
        return f"by {self.form}: by keys {keys}, by tokens {tokens}"


def fixed_form(route: Route) -> WalkForm | None:
    """Return the only loop there is for a route; None: the cost of a call decides.

    ``rows``: query units that hold several tokens, each with its keys. Cells of keys are walked by
    keys, since their tokens are not equally many.
    """
    if route.emit != "units":
        return "members" if route.emit == "members" else "slashes"
    if route.query.kind != "token" or route.widen > 1:
        return "rows"
    return "keys" if route.key.kind == "cell" else None


def unit_tokens(route: Route) -> int:
    """Return how many keys a unit has."""
    return route.key.sizes[0] if route.key.kind == "block" else 1


def choose_form(
    route: Route, *, selected: int, units: int, group: int, channels: int,
    rates: WalkRates = CPU_RATES,
) -> Walk:  # fmt: skip
    """Choose the loop of a call.

    Args: ``selected`` are the chosen pairs of query and unit, of all heads that choose; ``units``
        what these heads choose from, added up; ``group`` the query heads of such a head;
        ``channels`` those of keys and values together.
    """
    form = fixed_form(route)
    if form is not None:
        return Walk(form=form)
    tokens = unit_tokens(route)
    merged = selected * group * (rates.merge + tokens * rates.pair) * channels // 128
    copied = selected * tokens * (rates.copy + group * rates.pair) * channels // 128
    by_keys = units * rates.call + merged
    return Walk(
        form="keys" if by_keys < copied else "tokens", by_keys_ns=by_keys, by_tokens_ns=copied
    )
