"""Pattern, shapes, device -> what its kernels cost, beside dense attention of the same shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attnc.compiler.cost import rates as rate
from attnc.compiler.cost.devices import DEVICES, HBM_SHARE, Device
from attnc.compiler.cost.fits import FITTED_TILE
from attnc.compiler.cost.model import Cost, Term
from attnc.compiler.cost.rows import tiles_by_row
from attnc.compiler.cost.simulate import Rates, Rows, simulate
from attnc.compiler.counts import count_forward
from attnc.compiler.ir.blockmask import Counts, Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import ForwardPlan, LoopPlan
from attnc.compiler.passes.bias_fold import Bias
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.tiles import DType
from attnc.compiler.passes.token_order import Orders

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Work: TypeAlias = Literal["forward", "backward", "decode"]
AnyTiling: TypeAlias = "Tiling | BoxTiling | Literal['boxes'] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is run, and on what. Units: lengths in tokens; ``queries`` those of a decode step.

    ``tile``, ``orders`` and ``bias`` are as for ``build_plan``; a backward on a GPU has the
    natural order.
    """

    nq: int
    nk: int
    heads: int
    kv_heads: int
    batch: int = 1
    head_dim: int = 64
    value_dim: int = 64
    dtype: DType = "bf16"
    device: str = "h200"
    work: Work = "forward"
    queries: int = 1
    tile: AnyTiling = None
    orders: Orders = "auto"
    bias: Bias = "auto"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are no multiple of {self.kv_heads} KV heads")

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    @property
    def width_bytes(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "fp32" else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """One kernel: what it is, how often, what it costs. ``rows`` and ``tiles`` of all that runs."""

    name: str
    plan: str
    rows: int
    tiles: int
    workers: int
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What running a pattern costs.

    ``counts`` are those of the forward's tiling over all heads of the mask (1 where all share it),
    for one batch item; of a decode step, of its queries. ``dense`` is attention to every key on the
    same device, without a mask. ``worst_row`` is the most tiles that a row visits, of ``columns``.
    ``assumptions`` say what the times rest on, with the measured error.
    """

    pattern: str
    setting: Setting
    counts: Counts
    kernels: tuple[KernelCost, ...]
    dense: Cost
    worst_row: int
    columns: int
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        from attnc.compiler.cost.report import to_text

        return to_text(self)

    @property
    def cost(self) -> Cost:
        """All kernels together."""
        return sum((kernel.cost for kernel in self.kernels), Cost())

    @property
    def time_us(self) -> float:
        """Microseconds of all kernels."""
        return self.cost.time_us

    @property
    def bound_by(self) -> Term:
        """The cause of most of the time."""
        return self.cost.bound_by

    @property
    def pairs_kept(self) -> int:
        """Pairs of the mask."""
        return self.counts.pairs_kept

    @property
    def pairs_computed(self) -> int:
        """Pairs in the tiles that are visited."""
        return self.counts.pairs_computed

    def as_dict(self) -> dict[str, object]:
        """Return all of it by name, as ``attnc cost --json`` prints it."""
        from attnc.compiler.cost.report import to_json

        return to_json(self)

    @property
    def tflops(self) -> float:
        """Operations for pairs that are kept, in 10**12 a second: what papers state."""
        computed = self.counts.pairs_computed
        useful = self.cost.flops * self.counts.pairs_kept / computed if computed else 0.0
        return useful / self.time_us / 1e6 if self.time_us else 0.0

    @property
    def waste(self) -> float:
        """Pairs computed for each pair kept; 1 where none is kept."""
        kept = self.counts.pairs_kept
        return self.counts.pairs_computed / kept if kept else 1.0

    @property
    def speedup_over_dense(self) -> float:
        """How many times longer dense attention takes; 0 where there is nothing to run."""
        return self.dense.time_us / self.time_us if self.time_us else 0.0

    @property
    def worst_tile_speedup(self) -> float:
        """All key tiles over those of the worst row: a bound that knows no time (NATTENSim's)."""
        return self.columns / self.worst_row if self.worst_row else 0.0


def end_to_end(speedup: float, share: float) -> float:
    """Return the speed-up of a model whose attention, ``share`` of its time, is that much faster.

    Source: Amdahl's law.
    """
    return 1 / (1 - share + share / speedup)


def predict(
    pattern: Pattern, setting: Setting, given: Mapping[str, Any] | None = None
) -> Prediction:
    """Predict the cost of a pattern from exact counts; nothing is run, nothing of N x N is made.

    Args: ``given`` has all that the pattern reads, by name (``Pattern.given``).
    Raises: ValueError if the tile or a head dim cannot be served, or the device is not known.
    """
    data = given or {}
    if setting.work == "decode":
        from attnc.compiler.cost.decode import predict_decode

        return predict_decode(pattern, setting, data)
    device = device_of(setting.device)
    plan = build_plan(
        pattern, head_dim=setting.head_dim, value_dim=setting.value_dim, dtype=setting.dtype,
        target=device.target, tile=setting.tile,
        orders=setting.orders if setting.work == "forward" else "natural", bias=setting.bias,
        backward=setting.work == "backward",
    )
    counts = count_forward(plan, setting.nq, setting.nk, data)
    tiles = tiles_by_row(plan.forward, setting.nq, setting.nk, data)
    kernels: list[KernelCost]
    worst = int(tiles.sum(0).max(initial=0))
    if plan.parts:
        from attnc.compiler.cost.parts import part_kernels, worst_row

        kernels, worst = part_kernels(plan, setting, device), worst_row(plan, setting)
    elif plan.backward is None:
        kernels = [_kernel("forward", plan.forward, tiles, counts, setting, device)]
    else:
        kernels = [_prepare(setting, device)]
        names: tuple[rate.Kernel, ...] = ("dq", "dkdv") if plan.backward.dk is None else (
            "dq", "dv", "dk"
        )
        for name, loop in zip(names, plan.backward.loops, strict=True):
            lengths = (setting.nq, setting.nk) if name == "dq" else (setting.nk, setting.nq)
            own = tiles_by_row(loop, *lengths, data)
            kernels.append(_kernel(name, loop, own, None, setting, device))
    return Prediction(
        pattern=pattern.name, setting=setting, counts=counts, kernels=tuple(kernels),
        dense=dense(setting, device), worst_row=worst,
        columns=_columns(plan.forward, setting), assumptions=assumptions(setting, device),
    )


def device_of(name: str) -> Device:
    """Return a device by name.

    Raises: ValueError if there is none of that name.
    """
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]


def work_of(
    name: rate.Kernel, loop: LoopPlan, tiles: NDArray[np.int64], setting: Setting
) -> Rows:
    """Return the rows of a kernel over batch and heads. Shape: tiles ``[classes, heads, rows]``.

    A row of dK and dV walks the tiles of all query heads of its key head.
    """
    classes, heads, rows = tiles.shape
    own = setting.heads if name in ("forward", "dq") else setting.kv_heads
    pattern = loop.block_mask.pattern
    repeat = 1
    if own == setting.kv_heads and name not in ("forward", "dq"):
        if pattern.heads is None or pattern.kv_heads:
            repeat = setting.group
        else:
            tiles = tiles.reshape(classes, own, setting.group, rows).sum(2)
            heads = own
    return Rows(
        tiles=tiles.reshape(classes, -1), copies=setting.batch * max(own // heads, 1),
        repeat=repeat, sorted=loop.form != "data" or loop.row_order == "sorted",
    )


def _kernel(
    name: rate.Kernel, loop: LoopPlan, tiles: NDArray[np.int64], counts: Counts | None,
    setting: Setting, device: Device,
) -> KernelCost:
    """Cost one kernel; without ``counts``, pairs are those of whole tiles."""
    rows = work_of(name, loop, tiles, setting)
    rates = rate.generated(device, loop, name)
    sides = loop.tiling
    pairs = rows.visited * sides.q * sides.k
    if counts is not None:
        heads = loop.block_mask.pattern.heads or 1
        pairs = counts.pairs_computed * setting.batch * setting.heads // heads
    moved = traffic(name, rows.visited * sides.k, setting, device, rates.workers)
    cost = timed(
        rows, rates, hbm_bytes=moved[0], l2_bytes=moved[1],
        flops=pairs * rate.flops_of(name, setting.head_dim, setting.value_dim), device=device,
    )
    tiling = sides if loop.boxes is None else loop.boxes.tiling
    return KernelCost(
        name=name, plan=f"tile {tiling}, {loop.warps} warps, {loop.stages} stages, {loop.form}"
        + (", biases folded" if isinstance(loop, ForwardPlan) and loop.fold else ""),
        rows=rows.number, tiles=rows.visited, workers=rates.workers, cost=cost,
    )


def timed(
    rows: Rows, rates: Rates, *, hbm_bytes: int, l2_bytes: int, flops: int, device: Device
) -> Cost:
    """Put the schedule of the rows and the time of the memory together: the longer one counts."""
    timing = simulate(rows, rates)
    memory = hbm_bytes / (device.hbm_bytes_us * HBM_SHARE)
    if memory > timing.time_us:
        return Cost(flops=flops, hbm_bytes=hbm_bytes, l2_bytes=l2_bytes, hbm_us=memory)
    matrix, softmax, l2 = (timing.tiles_us * share for share in rates.shares)
    return Cost(
        flops=flops, hbm_bytes=hbm_bytes, l2_bytes=l2_bytes, matrix_us=matrix, softmax_us=softmax,
        l2_us=l2, mask_us=timing.masks_us, row_us=timing.rows_us, tail_us=timing.tail_us,
    )


def traffic(
    name: rate.Kernel, walked: int, setting: Setting, device: Device, workers: int
) -> tuple[int, int]:
    """Return the bytes through device memory and through the cache.

    What a kernel keeps is read and written once; what it walks (``walked`` tokens, all rows
    together) comes through the cache, and from memory once where the cache holds it for a head,
    otherwise once for each set of rows that run together.
    """
    both = (setting.head_dim + setting.value_dim) * setting.width_bytes
    queries = setting.batch * setting.heads * setting.nq
    keys = setting.batch * setting.kv_heads * setting.nk
    if name == "forward":
        kept, once, length = queries * (both + 4), keys * both, setting.nk
    elif name == "dq":
        out = setting.head_dim * setting.width_bytes
        kept, once, length = queries * (both + out + 8), keys * both, setting.nk
    else:
        head, value = setting.head_dim, setting.value_dim
        made = {"dkdv": head + value, "dv": value, "dk": head}[name] * setting.width_bytes
        kept, once, length = keys * (both + made), queries * (both + 8), setting.nq
    through = walked * both
    fits = length * both <= device.l2_bytes
    streamed = once if fits else min(through, max(once, through // workers))
    return kept + min(streamed, through), through


def _prepare(setting: Setting, device: Device) -> KernelCost:
    """Cost the pass over out and its gradient that comes before the others: memory alone."""
    tokens = setting.batch * setting.heads * setting.nq
    moved = tokens * (2 * setting.value_dim * setting.width_bytes + 4)
    return KernelCost(
        name="prepare", plan="sums of out * grad_out", rows=tokens, tiles=0, workers=device.units,
        cost=Cost(hbm_bytes=moved, hbm_us=moved / (device.hbm_bytes_us * HBM_SHARE)),
    )


def dense(setting: Setting, device: Device) -> Cost:
    """Cost dense attention without a mask, by the fit of a vendor's kernel."""
    import numpy as np

    backward = setting.work == "backward"
    rates, _ = rate.dense(
        device, setting.head_dim, setting.value_dim, setting.dtype, backward=backward
    )
    per_row = -(-setting.nk // FITTED_TILE)
    number = -(-setting.nq // FITTED_TILE)
    rows = Rows(
        tiles=np.full((1, number), per_row, dtype=np.int64), copies=setting.batch * setting.heads
    )
    names: tuple[rate.Kernel, ...] = ("dq", "dkdv") if backward else ("forward",)
    moved = [
        traffic(name, rows.visited * FITTED_TILE, setting, device, rates.workers) for name in names
    ]
    flops = rate.flops_of("forward", setting.head_dim, setting.value_dim)
    if backward:
        flops = 2 * (3 * setting.head_dim + 2 * setting.value_dim)
    pairs = setting.batch * setting.heads * setting.nq * setting.nk
    return timed(
        rows, rates, hbm_bytes=sum(m for m, _ in moved), l2_bytes=sum(m for _, m in moved),
        flops=flops * pairs, device=device,
    )


def assumptions(setting: Setting, device: Device) -> tuple[str, ...]:
    """Return what the times rest on."""
    fit = rate.dense_fit(
        device, max(setting.head_dim, setting.value_dim), backward=setting.work == "backward"
    )
    same = fit.device == ("h200" if device.name == "h100" else device.name)
    scaled = "" if same and fit.head_dim == setting.head_dim else (
        f", scaled from {fit.device} and head dim {fit.head_dim}"
    )
    return (
        "kernels: cycles counted in machine code over an efficiency fitted to published times of "
        "Triton's tutorial on an H100 (error 1.7% there, up to 6.4% at other points of it); not "
        f"yet timed on {device.title}",
        f"dense: {fit.family} fit, error {fit.error:.1%} at its points{scaled}",
        "rows start heavy first on whichever processor is free; clocks as in the fits; launch "
        "overhead of the host not counted",
    )


def _columns(loop: LoopPlan, setting: Setting) -> int:
    if loop.boxes is not None:
        return loop.boxes.tiles()[1]
    return math.ceil(setting.nk / loop.tiling.k)
