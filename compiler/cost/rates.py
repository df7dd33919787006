"""Device, kernel, tile -> what a tile and a row cost: counted cycles over a fitted efficiency.

    matrix   operations of the products / those of a unit in a clock
    softmax  the slower of exponentials and instructions between the products
    l2       keys and values of the tile / the cache's rate, shared by all units
    tile     max(l2, matrix + softmax): in plain Triton the two do not overlap

Programs that share a unit share its rate, so each unit counts as one worker.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from attnc.compiler.cost.devices import DEVICES, Device
from attnc.compiler.cost.fits import (
    DENSE_FITS,
    FITTED_TILE,
    TRITON_EFFICIENCY,
    TRITON_ROW_US,
    DenseFit,
)
from attnc.compiler.cost.simulate import Rates
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.plan import ForwardPlan, LoopPlan
from attnc.compiler.passes.bias_fold import pair_terms
from attnc.compiler.passes.tiles import DType, padded

Kernel: TypeAlias = Literal["forward", "dq", "dkdv", "dv", "dk"]

ISSUE = {"forward": 0.0366, "dq": 0.044, "dkdv": 0.084, "dv": 0.06, "dk": 0.07}
"""Issue cycles of a score: machine code of sm_90, counted (`dv`, `dk`: between the others)."""

ISSUE_OUTPUT = 0.0244
"""Issue cycles of an element of the output that is rescaled at each tile, counted for sm_90."""

ISSUE_CHECK = 0.012
"""Issue cycles of an operation of a check and score: a window of two sides, of 3 operations and
those of ``CHECK_BASE``, was counted at 0.05 to 0.08."""

CHECK_BASE = 2
"""Operations beside those of the predicate: the bound of the keys, the choice."""

_PRODUCTS: dict[Kernel, tuple[int, int]] = {
    "forward": (1, 1), "dq": (2, 1), "dkdv": (2, 2), "dv": (1, 1), "dk": (2, 1),
}
"""Products of a kernel over head dims and over value dims: S, dQ, dK; and O, dP, dV."""


def flops_of(kernel: Kernel, head_dim: int, value_dim: int) -> int:
    """Return the operations of the products of a kernel, for each pair."""
    head, value = _PRODUCTS[kernel]
    return 2 * (head * head_dim + value * value_dim)


def generated(device: Device, loop: LoopPlan, kernel: Kernel) -> Rates:
    """Return the rates of a kernel that attnc writes: those of its tile and masks."""
    return tile_rates(
        device, kernel, loop.tiling, head_dim=loop.head_dim, value_dim=loop.value_dim,
        dtype=loop.dtype, operations=tuple(map(pair_operations, loop.masks)),
        score=score_operations(loop),
    )


def tile_rates(
    device: Device, kernel: Kernel, tile: Tiling, *, head_dim: int, value_dim: int, dtype: DType,
    operations: tuple[int, ...] = (), score: int = 0,
) -> Rates:
    """Return the rates of a tile, the side of the rows first, without a plan: for a search.

    Args: ``operations`` of the check of each mask class, as ``pair_operations`` counts them, and
        those of the ``score``.
    Units: microseconds. Nothing of attnc has been timed on a GPU: the efficiency is that of a
    published kernel of the same kind (``fits.py``).
    """
    dims = padded(head_dim), padded(value_dim)
    scores = tile.q * tile.k
    per_clock = device.plain_flops if dtype == "fp32" else device.matrix_flops
    matrix = flops_of(kernel, *dims) * scores / per_clock
    issue = (ISSUE[kernel] + ISSUE_CHECK * score) * scores
    if kernel == "forward":
        issue += ISSUE_OUTPUT * tile.q * dims[1]
    softmax = max(scores / device.exponentials, issue)
    l2 = 0.0
    if device.l2_bytes_us is not None:
        clocks = device.clock_mhz * device.units * TRITON_EFFICIENCY
        l2 = tile.k * sum(dims) * (4 if dtype == "fp32" else 2) / device.l2_bytes_us * clocks
    cycles = max(matrix + softmax, l2)
    shares = (0.0, 0.0, 1.0) if cycles == l2 else (matrix / cycles, softmax / cycles, 0.0)
    checks = [(number + CHECK_BASE) * ISSUE_CHECK * scores for number in operations]
    return Rates(
        tile_us=cycles / device.clock_mhz / TRITON_EFFICIENCY, row_us=TRITON_ROW_US, shares=shares,
        factors=(1.0, *(1 + check / cycles for check in checks)), workers=device.units,
    )


def score_operations(loop: LoopPlan) -> int:
    """Count what a kernel does for each pair to make its score of the product."""
    fold = loop.fold if isinstance(loop, ForwardPlan) else None
    score = loop.block_mask.pattern.score if fold is None else fold.score
    return 0 if score is None else pair_terms(score)


def pair_operations(check: ex.BoolExpr) -> int:
    """Count the distinct operations of a check that depend on query and key.

    What one of them decides alone is worked out once for a row or a column of the tile.
    """
    sides: dict[int, frozenset[str]] = {}
    found: set[ex.Expr] = set()
    for node in reversed(list(ex.walk(check))):
        own = [sides[id(child)] for child in ex.children(node)]
        if isinstance(node, ex.Var):
            own = [frozenset(node.name[:1]) & {"q", "k"}]
        sides[id(node)] = frozenset().union(*own)
        if len(sides[id(node)]) == 2:
            found.add(node)
    return sum(_operations(node, sides) for node in found)


def _operations(node: ex.Expr, sides: dict[int, frozenset[str]]) -> int:
    """Count those of a node alone; parts of one side are put together beforehand."""
    match node:
        case ex.Add(parts) | ex.Min(parts) | ex.Max(parts) | ex.And(parts) | ex.Or(parts):
            alone = {sides[id(part)] for part in parts if len(sides[id(part)]) == 1}
            both = sum(len(sides[id(part)]) == 2 for part in parts)
            return max(both + len(alone) - 1, 1)
        case ex.Member(_, members):
            return 2 * len(members)
        case ex.IsPow2():
            return 3
        case _:
            return 1


def dense_fit(device: Device, head_dim: int, *, backward: bool) -> DenseFit:
    """Return the fit nearest to a device and head dim: its own before another device's."""
    return min(
        (fit for fit in DENSE_FITS if fit.backward == backward),
        key=lambda fit: (fit.device != _sibling(device), abs(fit.head_dim - head_dim)),
    )


def dense(
    device: Device, head_dim: int, value_dim: int, dtype: DType, *, backward: bool
) -> tuple[Rates, DenseFit]:
    """Return the rates of a dense kernel in tiles of 128 x 128, and the fit they are made of.

    Where device, head dim or type is not that of the fit, its time is scaled by the cycles that
    bind: products or exponentials, whichever take longer.
    """
    fit = dense_fit(device, max(head_dim, value_dim), backward=backward)
    fitted = DEVICES[fit.device]
    own = _binding(device, head_dim, value_dim, dtype, backward) / device.clock_mhz
    theirs = _binding(fitted, fit.head_dim, fit.head_dim, "bf16", backward) / fitted.clock_mhz
    return (
        Rates(
            tile_us=fit.tile_us * own / theirs, row_us=fit.row_us, factors=(1.0, fit.diagonal),
            workers=device.units,
        ),
        fit,
    )


def _sibling(device: Device) -> str:
    """Return the device whose fit serves: an H200 is an H100 with faster memory."""
    return "h200" if device.name == "h100" else device.name


def _binding(
    device: Device, head_dim: int, value_dim: int, dtype: DType, backward: bool
) -> float:
    """Return the cycles of a dense tile: products or exponentials, whichever take longer."""
    scores = FITTED_TILE**2
    per_clock = device.plain_flops if dtype == "fp32" else device.matrix_flops
    products = flops_of("forward", head_dim, value_dim)
    if backward:
        products = 2 * (3 * head_dim + 2 * value_dim)
    return max(products * scores / per_clock, scores / device.exponentials)
