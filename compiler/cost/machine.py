"""Calibration file -> what a pattern costs on the CPU that it was measured on.

A call of the executor is modelled as a sum over what it does, each with a price that was fitted to
measured calls: the call itself, groups of rows that share a kernel call, rows, pairs (as such, and
by the width of keys and values), pairs under a mask, and the tokens of the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attnc.compiler.cost import predict as pre
from attnc.compiler.cost.model import Cost
from attnc.compiler.counts import count_cpu
from attnc.compiler.counts_grid import tiles_of_rows
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import CpuDistances, CpuPart, CpuPlan
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.cpu_distances import DISTANCE_PAIRS
from attnc.compiler.passes.data_tiles import tile_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Executor: TypeAlias = Literal["strips", "gathered", "dense"]

WORK = ("call", "groups", "rows", "pairs", "pair_width", "masked", "tokens")
"""What a call does, in the order of its price list; all but the first two over batch and heads.

``tokens`` is the size of the result, once for each time that it is written, merged or copied.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Microseconds for each item of ``WORK``, and the errors that the fit leaves.

    ``error`` is the median relative error of cases that were left out of the fit in turn, ``worst``
    the largest one.
    """

    microseconds: tuple[float, ...]
    error: float
    worst: float

    def __call__(self, work: NDArray[np.float64]) -> float:
        return float(sum(p * w for p, w in zip(self.microseconds, work.tolist(), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured on a machine: price lists by executor and element type."""

    machine: Mapping[str, str]
    prices: Mapping[tuple[Executor, str], Prices]

    def text(self) -> str:
        """Return the calibration as JSON."""
        lists = {f"{e} {dtype}": asdict(p) for (e, dtype), p in self.prices.items()}
        return json.dumps({"machine": dict(self.machine), "prices": lists}, indent=1) + "\n"


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises: OSError if there is none, ValueError if it is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        prices: dict[tuple[Executor, str], Prices] = {}
        for name, one in found["prices"].items():
            executor, dtype = name.split()
            times = tuple(map(float, one["microseconds"]))
            if len(times) != len(WORK):
                raise ValueError(f"{name} has {len(times)} prices")
            prices[executor, dtype] = Prices(
                microseconds=times, error=float(one["error"]), worst=float(one["worst"])
            )
        return Calibration(machine=dict(found["machine"]), prices=prices)
    except (KeyError, TypeError, AttributeError, ValueError) as wrong:
        raise ValueError(f"{path} is no calibration of this release: {wrong}") from wrong


def fit_prices(work: NDArray[np.float64], times_us: NDArray[np.float64]) -> Prices:
    """Fit prices, none below zero, to measured calls by least squares of the relative error.

    Shape: ``work`` ``[cases, len(WORK)]``, ``times_us`` ``[cases]``.
    """
    import numpy as np

    found = _solve(work, times_us)
    errors = []
    for left_out in range(len(times_us)):
        rest = np.arange(len(times_us)) != left_out
        guess = float(work[left_out] @ _solve(work[rest], times_us[rest]))
        errors.append(abs(guess / float(times_us[left_out]) - 1))
    return Prices(
        microseconds=tuple(found.tolist()), error=float(np.median(errors)), worst=max(errors)
    )


def _solve(work: NDArray[np.float64], times_us: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve by dropping what would cost less than nothing, the worst first."""
    import numpy as np

    scaled = work / times_us[:, None]
    size = np.maximum(scaled.max(0), 1e-30)
    used = [i for i in range(work.shape[1]) if scaled[:, i].any()]
    prices = np.zeros(work.shape[1])
    while used:
        solved, *_ = np.linalg.lstsq(scaled[:, used] / size[used], np.ones(len(work)), rcond=None)
        if solved.min() >= 0:
            prices[used] = solved / size[used]
            break
        del used[int(solved.argmin())]
    return prices


def executor_of(plan: CpuPlan) -> Executor:
    """Return which executor runs a plan."""
    return "strips" if plan.strips or plan.parts or plan.boxes is not None else "gathered"


def work_of(
    plan: CpuPlan, setting: pre.Setting, given: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Say what a call of the executor does. Shape: ``[len(WORK)]``."""
    heads = plan.block_mask.pattern.heads or 1
    lanes = setting.batch * setting.heads / heads
    groups = rows = pairs = masked = 0
    classes = [part for part in plan.parts if isinstance(part, CpuPart)]
    passes = 2.0 * sum(part.modulus > 1 for part in classes)  # there and back
    tile = _tile(plan)
    for part in plan.parts:
        if isinstance(part, CpuDistances):
            kept = sum(
                max(0, min(setting.nq, setting.nk + d) - max(0, d)) for d in part.distances
            )
            pairs += DISTANCE_PAIRS * kept
            passes += 1.0
    for tiles, with_mask, times in _stretches(plan, setting.nq, setting.nk, given):
        in_class = -(-setting.nq // times), -(-setting.nk // times)
        area = min(tile.q, in_class[0]) * min(tile.k, in_class[1])
        groups += sum(len(set(head[head > 0].tolist())) for head in tiles)
        rows += times * int((tiles > 0).sum())
        pairs += times * int(tiles.sum()) * area
        masked += times * int(tiles.sum()) * area if with_mask else 0
        passes += float((tiles > 0).mean()) if tiles.size else 0.0
        if plan.boxes is not None:  # queries are copied there and back, and the keys of each box
            passes += 1.0 + float(tiles.sum()) / (heads * setting.nq)
    return _work(groups, rows * lanes, pairs * lanes, masked * lanes, passes, setting)


def _tile(plan: CpuPlan) -> Tiling:
    """Return the tile that the executor walks: of boxes one of queries, and one key."""
    return plan.tiling if plan.boxes is None else Tiling(plan.boxes.tiling.q, 1)


def dense_work(setting: pre.Setting) -> NDArray[np.float64]:
    """Say what a call of dense attention does. Shape: ``[len(WORK)]``."""
    lanes = setting.batch * setting.heads
    return _work(0, 0.0, setting.nq * setting.nk * lanes, 0.0, 1.0, setting)


def _work(
    groups: int, rows: float, pairs: float, masked: float, passes: float, setting: pre.Setting
) -> NDArray[np.float64]:
    import numpy as np

    width = setting.head_dim + setting.value_dim
    tokens = setting.batch * setting.heads * setting.nq * passes
    return np.array([1, groups, rows, pairs, pairs * width, masked, tokens * width], dtype=float)


def _stretches(
    plan: CpuPlan, nq: int, nk: int, given: Mapping[str, Any]
) -> Iterator[tuple[NDArray[np.int64], bool, int]]:
    """Yield the tiles of each row, whether they are masked, and of how many classes.

    Shape: int64 ``[heads or 1, NQ]``. Residue classes are as long as the longest of them, and run
    together, as one batch.
    """
    import numpy as np

    mask = plan.block_mask
    if plan.boxes is not None:
        masked = any(not piece.full for piece in plan.boxes.pieces)
        yield tiles_of_rows(plan.boxes), masked, 1
        return
    if plan.data is not None:
        table = tile_table(mask, plan.data, nq, nk, given)
        number = len(table.starts) - 1
        row = np.repeat(np.arange(number), np.diff(table.starts))
        for kind in (0, 1):
            found = np.bincount(row[table.entries & 7 == kind], minlength=number)
            by_head = found.astype(np.int64).reshape(table.heads, -1)
            yield by_head.repeat((mask.pattern.heads or 1) // table.heads, 0), bool(kind), 1
        return
    for segment in plan.segments:
        yield _counts(mask, segment.tiles, nq, nk), segment.mask != 0, 1
    for strip in plan.strips:
        yield _counts(mask, strip.tiles, nq, nk), strip.residual != ex.TRUE, 1
    for part in plan.parts:
        if isinstance(part, CpuDistances):
            continue  # no tiles
        lengths = -(-nq // part.modulus), -(-nk // part.modulus)
        for strip in part.strips:
            tiles = _counts(part.block_mask, strip.tiles, *lengths)
            yield tiles, strip.residual != ex.TRUE, part.modulus


def _counts(mask: BlockMask, tiles: Progression, nq: int, nk: int) -> NDArray[np.int64]:
    import numpy as np

    tiles_q, tiles_k = mask.tiles_at(nq, nk)
    heads = mask.pattern.heads or 1
    values = {
        "qb": np.arange(tiles_q, dtype=np.int64)[None, :],
        "h": np.arange(heads, dtype=np.int64)[:, None],
        "nq": nq, "nk": nk, "NQ": tiles_q, "NK": tiles_k,
    }
    found = np.zeros((heads, tiles_q), dtype=np.int64)
    found += np.maximum(np.asarray(ex.evaluate(tiles.count, values)), 0)
    return found


def predict_cpu(
    pattern: Pattern, setting: pre.Setting, given: Mapping[str, Any], calibration: Calibration
) -> pre.Prediction:
    """Predict a forward call of the CPU executor.

    Raises: ValueError where the calibration has no prices for it, or the tile cannot be served.
    """
    if setting.work != "forward":
        raise ValueError(f"the CPU model knows the forward, not {setting.work}")
    if not isinstance(setting.tile, Tiling | None):
        raise ValueError("the CPU executor walks no boxes; write queries x keys, such as 32x32")
    plan = build_plan(
        pattern, head_dim=setting.head_dim, value_dim=setting.value_dim, cpu_tile=setting.tile,
        orders=setting.orders, bias=setting.bias,
    ).cpu
    executor = executor_of(plan)
    prices = {name: calibration.prices.get((name, setting.dtype)) for name in (executor, "dense")}
    own, whole = prices[executor], prices["dense"]
    if own is None or whole is None:
        raise ValueError(f"the calibration of this machine has no prices for {setting.dtype}")
    work = work_of(plan, setting, given)
    counts = count_cpu(plan, setting.nq, setting.nk, given)
    lanes = setting.batch * setting.heads // (pattern.heads or 1)
    worst = _longest(plan, setting, given)
    kernel = pre.KernelCost(
        name=executor, rows=int(work[2]),
        plan=f"tile {plan.tiling}" if plan.boxes is None else f"boxes {plan.boxes.tiling}",
        tiles=counts.visited * lanes, workers=1,
        cost=_cost(own, work, setting, counts.pairs_computed * lanes),
    )
    pairs = setting.nq * setting.nk * setting.batch * setting.heads
    return pre.Prediction(
        pattern=pattern.name, setting=setting, counts=counts, kernels=(kernel,),
        dense=_cost(whole, dense_work(setting), setting, pairs), worst_row=worst,
        columns=-(-setting.nk // _tile(plan).k),
        assumptions=(
            "prices fitted on " + ", ".join(f"{k} {v}" for k, v in calibration.machine.items()),
            f"cases left out of the fit in turn were met within {own.error:.0%} in the median, "
            f"{own.worst:.0%} at worst; dense attention {whole.error:.0%} and {whole.worst:.0%}",
        ),
    )


def _longest(plan: CpuPlan, setting: pre.Setting, given: Mapping[str, Any]) -> int:
    """Return the most tiles that a query tile visits, of its parts in their own orders."""
    import numpy as np

    by_rows: dict[int, Any] = {}
    for tiles, _, _ in _stretches(plan, setting.nq, setting.nk, given):
        by_rows[tiles.shape[1]] = by_rows.get(tiles.shape[1], 0) + tiles
    return sum(int(np.max(tiles, initial=0)) for tiles in by_rows.values())


def _cost(prices: Prices, work: NDArray[np.float64], setting: pre.Setting, pairs: int) -> Cost:
    """Sort the parts of a time by cause."""
    call, groups, rows, alone, width, masked, tokens = (
        price * done for price, done in zip(prices.microseconds, work.tolist(), strict=True)
    )
    both = (setting.head_dim + setting.value_dim) * setting.width_bytes
    moved = both * setting.batch * (setting.heads * setting.nq + setting.kv_heads * setting.nk)
    return Cost(
        flops=2 * pairs * (setting.head_dim + setting.value_dim), hbm_bytes=moved,
        matrix_us=width, softmax_us=alone, mask_us=masked, row_us=call + groups + rows,
        hbm_us=tokens,
    )
