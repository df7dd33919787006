"""Pattern IR -> disjoint parts, each in the token order that its tiles fill best.

Tokens in residue classes of m stand ``r, r + m, r + 2m, ...``: what a query of class r sees at
multiples of m is a run of tokens there, and other classes see nothing of it.

    q - k < 64 or (q - k) mod 64 == 0   -->   q - k < 64, and in classes of 64 tokens: k < q
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import MAX_LENGTH
from attnc.compiler.passes import bands as bd
from attnc.compiler.passes.bands import Band

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Orders: TypeAlias = Literal["auto", "natural"] | tuple[int, ...]
"""Which residue classes a plan may use: what pays ("auto"), none, or exactly these moduli."""

OrdersLike: TypeAlias = "str | Sequence[int]"

REFERENCE_TOKENS = 8192
"""The length that orders are weighed at; they are right at every length."""

MAX_MODULUS = 1024
"""Classes of more tokens apart leave too few in each."""

MAX_MODULI = 8
"""So many moduli at most are tried, and pairs of them."""

GAIN = 0.8
"""Parts must cost less than this share of the whole pattern in its natural order."""


@dataclass(frozen=True, slots=True)
class Part:
    """The pairs of a pattern whose distance is in ``bands``, or of ``rest`` (modulus 1 alone).

    ``pattern`` speaks of the tokens of a class: it keeps ``(a, b)`` where the part keeps
    ``(a * modulus + r, b * modulus + r)``, for every class ``r < modulus``.
    """

    modulus: int
    bands: tuple[Band, ...]
    rest: ex.BoolExpr
    pattern: Pattern


@dataclass(frozen=True, slots=True)
class Work:
    """What a part visits at ``REFERENCE_TOKENS``: rows of tiles, their tiles, runs of these."""

    rows: int
    runs: int
    tiles: int
    tiling: Tiling
    modulus: int


Cost: TypeAlias = Callable[[tuple[Band, ...], int], float]
"""What some bands cost in classes of a modulus, in pairs at ``REFERENCE_TOKENS``."""


def read_orders(orders: OrdersLike) -> Orders:
    """Return token orders given as "auto", "natural", ``(1, 64)`` or ``"1,64"``.

    Raises: ValueError.
    """
    if orders in ("auto", "natural"):
        return cast(Orders, orders)
    moduli: list[object] = []
    if isinstance(orders, str):
        moduli = [int(m) if m.isdecimal() and len(m) < 10 else m for m in orders.split(",")]
    elif isinstance(orders, tuple | list):
        moduli = list(orders)
    if moduli and all(type(m) is int and 0 < m <= MAX_LENGTH for m in moduli):
        return tuple(sorted(set(cast(list[int], moduli))))
    raise ValueError(
        "orders must be 'auto', 'natural' or the residue classes that tokens may stand in, such as "
        f"(1, 64) or '1,64', got {orders!r}"
    )


def can_reorder(pattern: Pattern) -> bool:
    """Whether parts of a pattern may stand in other orders: one mask of positions, no scores."""
    return (
        pattern.heads is None and pattern.score is None and pattern.sink is None
        and pattern.query_space is None and pattern.key_space is None
        and not pattern.inputs and not pattern.extents
    )


def parts(
    pattern: Pattern, orders: Orders, cost: Cost, *, apart: float = 0.0
) -> tuple[Part, ...]:
    """Cut a pattern into disjoint parts with an order each; empty: it stays whole.

    Args: ``cost`` tells what a part costs, ``apart`` what each part after the first costs beside
        that.
    Raises: ValueError for moduli that no distance of the pattern is a multiple of.
    """
    if orders == "natural" or not can_reorder(pattern):
        if orders not in ("natural", "auto"):
            raise ValueError(
                f"orders {_text(orders)}: `{pattern.name}` has heads, scores, spaces or inputs of "
                "its own; only masks of positions in one sequence stand in other orders"
            )
        return ()
    bands, rest = bd.split_off(pattern.predicate)
    if orders != "auto":
        return _asked(pattern, bands, rest, orders)
    best = cheapest(bands, rest, cost, apart=apart)[1]
    return () if best is None else _parts(pattern, best, rest)


def cheapest(
    bands: tuple[Band, ...], rest: ex.BoolExpr, cost: Cost, *, apart: float
) -> tuple[float, dict[int, tuple[Band, ...]] | None]:
    """Return what some bands cost in the best classes, and the bands of each (None: natural)."""
    costs = cache(cost)
    natural = costs(bands, 1) if bands else 0.0
    best, least = None, GAIN * natural
    for chosen in _choices(_moduli(bands)):
        groups = _groups(bands, chosen)
        total = sum(costs(own, m) for m, own in groups.items())
        total += apart * (len(groups) - (0 if rest != ex.FALSE and 1 not in groups else 1))
        if total < least:
            best, least = groups, total
    return (natural if best is None else least), best


def _asked(
    pattern: Pattern, bands: tuple[Band, ...], rest: ex.BoolExpr, orders: tuple[int, ...]
) -> tuple[Part, ...]:
    groups = _groups(bands, tuple(sorted(set(orders) | {1})))
    idle = [m for m in orders if m != 1 and m not in groups]
    if idle:
        raise ValueError(
            f"orders {_text(orders)}: no distance q - k of `{pattern.name}` asks for classes of"
            f" {idle[0]}"
        )
    return () if set(groups) <= {1} else _parts(pattern, groups, rest)


def _text(orders: Orders) -> str:
    return orders if isinstance(orders, str) else ",".join(map(str, orders))


def _moduli(bands: tuple[Band, ...]) -> tuple[int, ...]:
    """Return the moduli worth trying, those of the most distances first."""
    found: dict[int, int] = {}
    for band in bands:
        if 1 < band.modulus <= MAX_MODULUS:
            found[band.modulus] = found.get(band.modulus, 0) + 1
    return tuple(sorted(found, key=lambda m: (-found[m], m))[:MAX_MODULI])


def _choices(moduli: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in (1, 2):
        for chosen in combinations(sorted(moduli), count):
            yield (1, *chosen)


def _groups(bands: tuple[Band, ...], moduli: tuple[int, ...]) -> dict[int, tuple[Band, ...]]:
    """Give each band to the largest modulus that divides its distances."""
    groups: dict[int, tuple[Band, ...]] = {}
    for band in bands:
        at = max(m for m in moduli if band.modulus % m == 0)
        groups[at] = (*groups.get(at, ()), band)
    return dict(sorted(groups.items()))


def _parts(
    pattern: Pattern, groups: dict[int, tuple[Band, ...]], rest: ex.BoolExpr
) -> tuple[Part, ...]:
    if rest != ex.FALSE:
        groups = {1: (), **groups}
    found = []
    for modulus, own in groups.items():
        beside = rest if modulus == 1 else ex.FALSE
        body = ex.or_(bd.predicate(own, modulus), beside)
        found.append(Part(modulus, own, beside, replace(pattern, body=Where(body), warnings=())))
    return tuple(found)


def work(bands: tuple[Band, ...], modulus: int, tiling: Tiling) -> Work:
    """Return the tiles that some bands visit in classes of ``modulus``, for all classes."""
    import numpy as np

    tokens = -(-REFERENCE_TOKENS // modulus)
    rows, keys = -(-tokens // tiling.q), -(-tokens // tiling.k)
    kept = _kept(bands, modulus, tokens)
    before = np.concatenate([[0], np.cumsum(kept)])  # before[i]: kept of the first i distances
    first_q = np.arange(rows)[:, None] * tiling.q
    first_k = np.arange(keys)[None, :] * tiling.k
    low = np.clip(first_q - first_k - tiling.k + tokens, 0, 2 * tokens - 1)
    high = np.clip(first_q - first_k + tiling.q - 1 + tokens, 0, 2 * tokens - 1)
    visited = before[high] > before[low]  # [rows, keys]
    tiles = int(visited.sum())
    runs = tiles - int((visited[:, 1:] & visited[:, :-1]).sum())
    return Work(
        rows=rows * modulus, runs=runs * modulus, tiles=tiles * modulus, tiling=tiling,
        modulus=modulus,
    )


def _kept(bands: tuple[Band, ...], modulus: int, tokens: int) -> NDArray[np.bool_]:
    """Return which distances, from ``1 - tokens`` to ``tokens - 1``, lie in some band."""
    import numpy as np

    kept = np.zeros(2 * tokens - 1, dtype=bool)
    for band in bands:
        step = max(band.step // modulus, 1)
        first = 1 - tokens if band.first is None else max(band.first // modulus, 1 - tokens)
        last = tokens - 1 if band.last is None else min(band.last // modulus, tokens - 1)
        if band.first is None or band.first // modulus < 1 - tokens:
            first += (band.offset // modulus - first) % step
        if first <= last:
            kept[first + tokens - 1 : last + tokens : step] = True
    return kept
