"""Route, target, head dims -> the tiles of its kernels.

A static table of what compiles clean ahead of time (``tests/routes/test_lint_kernels.py``): no
spills, shared memory within the limit, wgmma asynchronous where it is used.
"""

from __future__ import annotations

from typing import Literal

from attnc.codegen.routes.kernel_parts import Units
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import TileChoice, padded

What = Literal["out", "dq", "keys"]
"""What a kernel makes: out, dQ, or dK and dV."""

_Row = tuple[int, int, int, int]

# The largest query tile, key tile, warps and stages, by what is made and padded head dim. With
# smaller units tiles shrink, and 4 warps run them.
_HALF: dict[What, dict[int, _Row]] = {
    "out": {64: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (32, 32, 4, 1)},
    "dq": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 4, 1)},
    "keys": {64: (64, 64, 8, 2), 128: (32, 32, 4, 2), 256: (16, 16, 4, 1)},
}
_FULL: dict[What, dict[int, _Row]] = {
    "out": {64: (32, 32, 4, 1), 128: (16, 32, 4, 1), 256: (16, 16, 4, 1)},
    "dq": {64: (32, 32, 4, 1), 128: (16, 32, 4, 1), 256: (16, 16, 4, 1)},
    "keys": {64: (32, 32, 8, 1), 128: (16, 16, 4, 1), 256: (16, 16, 8, 1)},
}


def rows_tile(
    plan: RoutedPlan, what: What, queries: Units, keys: Units, *, grouped: bool = False
) -> TileChoice:
    """Return the tile of a kernel whose rows are queries; ``grouped``: heads of one token."""
    q, k, warps, stages = _most(plan, what)
    return _choice(plan, 16 if grouped else _fitting(queries, q), _dividing(keys, k), q, warps,
                   stages)  # fmt: skip


def keys_tile(plan: RoutedPlan, queries: Units, keys: Units) -> TileChoice:
    """Return the tile of a kernel whose rows are keys."""
    q, k, warps, stages = _most(plan, "keys")
    tile = _fitting(keys, k)
    if tile == 16 and plan.dtype != "fp32" and q >= 32:
        q = 64
    return _choice(plan, _dividing(queries, q), tile, 0 if tile == k else 1, warps, stages)


def square_tile(plan: RoutedPlan) -> TileChoice:
    """Return the tile of the kernels of slashes."""
    kinds: tuple[What, ...] = ("out", "dq", "keys")
    found = [_most(plan, what) for what in kinds]
    side = min(min(row[:2]) for row in found)
    warps = 8 if side == 64 else 4
    return _choice(plan, side, side, side, warps, found[0][3])


def _most(plan: RoutedPlan, what: What) -> _Row:
    wide = max(64, padded(plan.head_dim), padded(plan.value_dim))
    table = _FULL if plan.dtype == "fp32" else _HALF
    return table[what][wide]


def _choice(
    plan: RoutedPlan, q: int, k: int, most: int, warps: int, stages: int
) -> TileChoice:
    amd = plan.target == "gfx942"
    full = most in (0, q)
    return TileChoice(
        q=q, k=k, warps=warps if full and not amd else 4, stages=1 if amd else stages
    )


def _fitting(own: Units, most: int) -> int:
    """Return the least tile that holds a unit, or the largest there is."""
    if own.kind == "whole":
        return most
    return min(most, max(16, 1 << (own.tokens - 1).bit_length()))


def _dividing(own: Units, most: int) -> int:
    """Return a tile that cuts a unit of tokens in a row evenly; else units are gathered."""
    if own.kind == "row" and own.tokens & -own.tokens >= 16:
        return min(most, own.tokens & -own.tokens)
    return most
