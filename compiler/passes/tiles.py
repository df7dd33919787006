"""target, head dims, dtype -> candidate tiles of the forward kernel, best first.

A static table: which tile shapes compile clean (no spills, shared memory within the limit, wgmma
asynchronous) for the one-loop forward kernel, ordered by loop instructions per score. A plan takes
the first; ``attnc.runtime.lint.pick_tile`` compiles ahead of time and steps down where a plan with
more pieces than usual no longer fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Target

DType = Literal["fp32", "bf16", "fp16"]

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
"""Head dims a kernel serves, powers of two or not (the kernel pads to the next power of two)."""


@dataclass(frozen=True, slots=True)
class TileChoice:
    """Tiles of ``q`` by ``k`` tokens, run by ``warps`` warps with ``stages`` loads in flight."""

    q: int
    k: int
    warps: int
    stages: int

    @property
    def tiling(self) -> Tiling:
        """The tile shape alone."""
        return Tiling(self.q, self.k)


def padded(head_dim: int) -> int:
    """Return the power of two a kernel pads a head dim to (at least 16, the least `dot` takes)."""
    return max(16, 1 << (head_dim - 1).bit_length())


def candidates(
    target: Target, head_dim: int, value_dim: int, dtype: DType
) -> tuple[TileChoice, ...]:
    """Return the tiles worth trying, best first; the last is small enough for every plan.

    Units: tile sides in tokens.
    Raises: ValueError if a head dim is outside 16 .. 256.
    """
    for name, dim in (("head_dim", head_dim), ("value_dim", value_dim)):
        if not MIN_HEAD_DIM <= dim <= MAX_HEAD_DIM:
            raise ValueError(f"{name} is {dim}; kernels serve {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    wide = max(padded(head_dim), padded(value_dim))
    step = 64 if wide <= 64 else wide
    table = _FULL if dtype == "fp32" else _HALF
    return tuple(TileChoice(*row) for row in table[target][step])


HEAVY_OPERATIONS = 48
"""A pair of more operations than this costs so many registers that the best tile spills."""

HEAVIER_OPERATIONS = 64
"""A pair of more than this makes the second tile of a backward spill."""

READ_OPERATIONS, DIVISION_OPERATIONS = 21, 10
"""Operations that an element loaded by a predicate and a division in a score count as."""


GATHER_REGISTERS = 80
"""Scores and sums that a thread may hold beside the addresses of elements of each pair."""


def default(
    choices: tuple[TileChoice, ...], pattern: Pattern, held: Callable[[TileChoice], int], *,
    backward: bool = False,
) -> TileChoice:
    """Return the tile to take unasked: the best, or a smaller where a pair costs registers.

    In a backward, which holds more, scores and loads count too and may lead two tiles down.
    Args: ``held`` counts the scores and sums that a program holds at once.
    """
    if _gathers(pattern):
        fits = (c for c in choices if held(c) // (32 * c.warps) <= GATHER_REGISTERS)
        return next(fits, choices[-1])
    operations = ex.op_count(pattern.predicate)
    if not backward:
        return choices[min(operations > HEAVY_OPERATIONS, len(choices) - 1)]
    if pattern.score is not None:
        divisions = sum(isinstance(n, ex.FloorDiv | ex.Mod) for n in sc.walk(pattern.score))
        operations += sc.op_count(pattern.score) + DIVISION_OPERATIONS * divisions
    loads = READ_OPERATIONS * len(ex.reads(pattern.predicate))
    heavy = (operations + loads > HEAVY_OPERATIONS) + (operations > HEAVIER_OPERATIONS)
    return choices[min(heavy, len(choices) - 1)]


def asked(
    choices: tuple[TileChoice, ...], tile: Tiling, row_tokens: int, target: Target
) -> TileChoice:
    """Return how a tile runs that was asked for: as its table says, or as its rows suggest.

    Units: ``row_tokens`` is the side that a program keeps while it loops over the other.
    """
    same = [choice for choice in choices if choice.tiling == tile]
    if same:
        return same[0]
    warps = 8 if row_tokens >= 128 and target != "gfx942" else 4
    return TileChoice(q=tile.q, k=tile.k, warps=warps, stages=min(c.stages for c in choices))


def _gathers(pattern: Pattern) -> bool:
    """Whether a kernel loads an element of an input for each pair: an address in 64 bits."""
    nodes: list[object] = list(ex.walk(pattern.predicate))
    if pattern.score is not None:
        nodes += sc.walk(pattern.score)
    return any(
        isinstance(node, ex.Read | sc.RealRead)
        and ex.relevant_side(ex.Read(node.name, node.index)) == "both"
        for node in nodes
    )


_Row = tuple[int, int, int, int]
_Table = dict[Target, dict[int, tuple[_Row, ...]]]

# (query tile, key tile, warps, stages) per target and padded head dim.
_HALF: _Table = {
    "sm_80": {
        64: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        128: ((128, 32, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2)),
        256: ((64, 32, 8, 2), (64, 32, 8, 1), (32, 32, 4, 1)),
    },
    "sm_90": {
        64: ((128, 128, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3), (64, 32, 4, 2)),
        128: ((128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 2)),
        256: ((128, 32, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2)),
    },
    "sm_100": {
        64: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        128: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        256: ((128, 32, 8, 1), (64, 64, 8, 1), (64, 32, 8, 1)),
    },
    "gfx942": {
        64: ((128, 64, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        128: ((128, 64, 4, 1), (64, 64, 4, 1), (64, 32, 4, 1)),
        256: ((64, 32, 4, 1), (32, 32, 4, 1), (16, 32, 4, 1)),
    },
}

# fp32 products run on the plain FMA units (exact, no tf32): registers bind, so tiles are small.
_FP32_ROWS: dict[int, tuple[_Row, ...]] = {
    64: ((64, 32, 8, 1), (32, 32, 8, 1), (16, 32, 4, 1)),
    128: ((32, 32, 8, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    256: ((16, 32, 8, 1), (16, 16, 8, 1)),
}
_FULL: _Table = {target: _FP32_ROWS for target in _HALF}
_FULL["gfx942"] = {**_FP32_ROWS, 128: ((32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1))}
