"""target, head dims, dtype -> candidate tiles of the backward kernels, best first.

A static table like that of the forward kernel: sides are queries by keys in all of them. The first
of each in half precision was compiled ahead of time, with Triton 3.6 and 3.9 for padded head dims
of 64 and 128 and with 3.9 for 256, and is clean; those for float32 are small enough by count of
registers and shared memory. Those of sm_80 for 256 fit the 99 KiB of sm_86 and sm_89 too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from attnc.compiler.ir.plan import Target
from attnc.compiler.passes.tiles import DType, TileChoice, padded

Pass = Literal["dq", "dkdv", "dv", "dk", "learned"]
"""What a kernel makes: dQ; dK and dV at once; or one of them in a pass of its own; or what learned
inputs of the score get."""

OF_KEYS: tuple[Pass, ...] = ("dkdv", "dv", "dk")
"""Passes whose rows are key tiles."""


def candidates(
    kernel: Pass, target: Target, head_dim: int, value_dim: int, dtype: DType
) -> tuple[TileChoice, ...]:
    """Return the tiles worth trying, best first; the last is small enough for every plan.

    A pass of its own has the tiles of both together where the table has none for it.
    Units: tile sides in tokens.
    """
    step = max(64, padded(head_dim), padded(value_dim))
    table = _FULL if dtype == "fp32" else _HALF[target]
    rows = table.get(kernel, {}).get(step) or table["dkdv"][step]
    if step > 64 and any(padded(dim) != dim for dim in (head_dim, value_dim)):
        # The test of lanes past a head dim costs registers: the largest tiles would spill.
        rows = tuple(row for row in rows if row[:2] != (128, 128))
    return tuple(TileChoice(*row) for row in rows)


def held(kernel: Pass, head_dim: int, value_dim: int) -> Callable[[TileChoice], int]:
    """Return how many scores and sums a program of a tile holds at once."""
    dim, wide = padded(head_dim), padded(value_dim)
    match kernel:
        case "dq" | "learned":
            return lambda c: c.q * (2 * c.k + dim)
        case "dkdv":
            return lambda c: c.k * (2 * c.q + dim + wide)
        case "dk":
            return lambda c: c.k * (2 * c.q + dim)
        case "dv":
            return lambda c: c.k * (c.q + wide)


_Row = tuple[int, int, int, int]
_Columns = dict[Pass, dict[int, tuple[_Row, ...]]]

# (query tile, key tile, warps, stages) per target, kernel and padded head dim.
_LEARNED: dict[int, tuple[_Row, ...]] = {
    64: ((64, 64, 8, 2), (64, 32, 8, 2)),
    128: ((64, 64, 8, 2), (64, 32, 8, 2)),
    256: ((64, 32, 8, 1), (32, 32, 4, 1)),
}
_HALF: dict[Target, _Columns] = {
    "sm_80": {
        "dq": {
            64: ((128, 32, 8, 2), (64, 32, 4, 2), (64, 32, 8, 2)),
            128: ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2)),
            256: ((32, 32, 8, 1), (16, 32, 4, 1)),
        },
        "dkdv": {
            64: ((32, 128, 8, 1), (32, 64, 8, 1), (32, 32, 4, 2)),
            128: ((32, 64, 8, 2), (32, 32, 4, 2), (32, 32, 8, 2)),
            256: ((32, 32, 8, 1), (16, 32, 4, 1)),
        },
        "dv": {128: ((64, 128, 8, 2), (32, 64, 8, 2))},
        "dk": {128: ((64, 64, 4, 2), (32, 64, 8, 2))},
        "learned": {
            64: ((64, 64, 8, 2), (64, 32, 8, 2)),
            128: ((64, 32, 8, 2), (32, 32, 4, 2)),
            256: ((32, 32, 8, 1), (16, 32, 4, 1)),
        },
    },
    "sm_90": {
        "dq": {
            64: ((128, 128, 8, 2), (128, 64, 8, 2), (64, 32, 8, 2)),
            128: ((128, 64, 8, 2), (64, 32, 8, 2)),
            256: ((128, 32, 8, 2), (32, 32, 8, 1)),
        },
        "dkdv": {
            64: ((64, 128, 8, 2), (32, 128, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2)),
            128: ((32, 128, 8, 2), (32, 64, 8, 2), (32, 32, 8, 2)),
            256: ((32, 32, 8, 1), (32, 32, 4, 1)),
        },
        "dv": {128: ((128, 128, 8, 2), (64, 128, 8, 2))},
        "dk": {128: ((128, 128, 8, 2), (64, 128, 8, 2))},
        "learned": _LEARNED,
    },
    "sm_100": {
        "dq": {
            64: ((128, 128, 8, 2), (128, 64, 8, 2), (64, 32, 8, 2)),
            128: ((128, 64, 8, 2), (64, 32, 8, 2)),
            256: ((128, 32, 8, 1), (64, 32, 8, 1), (32, 32, 4, 1)),
        },
        "dkdv": {
            64: ((64, 128, 8, 2), (32, 128, 8, 2), (32, 64, 4, 2)),
            128: ((64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2)),
            256: ((32, 64, 8, 1), (32, 32, 4, 1)),
        },
        "dv": {128: ((128, 128, 8, 2), (64, 128, 8, 2))},
        "dk": {128: ((64, 128, 8, 2), (32, 128, 8, 2))},
        "learned": _LEARNED,
    },
    "gfx942": {
        "dq": {
            64: ((128, 64, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
            128: ((128, 32, 4, 1), (64, 32, 4, 1), (32, 32, 4, 1)),
            256: ((32, 32, 4, 1), (16, 32, 4, 1)),
        },
        "dkdv": {
            64: ((64, 64, 4, 1), (32, 64, 4, 1)),
            128: ((32, 128, 4, 1), (32, 64, 4, 1), (32, 32, 4, 1)),
            256: ((32, 32, 4, 1), (32, 16, 4, 1)),
        },
        "dv": {128: ((64, 128, 4, 1), (32, 64, 4, 1))},
        "dk": {128: ((64, 128, 4, 1), (32, 64, 4, 1))},
        "learned": {
            64: ((64, 32, 4, 1), (32, 32, 4, 1)),
            128: ((32, 32, 4, 1),),
            256: ((32, 32, 4, 1), (16, 32, 4, 1)),
        },
    },
}

# fp32 products run on the plain FMA units: registers bind.
_FULL: _Columns = {
    "dq": {
        64: ((32, 32, 8, 1), (16, 32, 4, 1)),
        128: ((32, 16, 8, 1), (16, 16, 4, 1)),
        256: ((16, 16, 8, 1),),
    },
    "dkdv": {
        64: ((32, 32, 8, 1), (32, 16, 4, 1)),
        128: ((16, 32, 8, 1), (16, 16, 4, 1)),
        256: ((16, 16, 8, 1),),
    },
    "learned": {
        64: ((32, 16, 8, 1), (16, 16, 4, 1)),
        128: ((32, 16, 8, 1), (16, 16, 4, 1)),
        256: ((16, 16, 8, 1),),
    },
}
