"""Pattern, cache -> the cost of a decode step: the live keys of its rows, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnc.compiler.cost import predict as pre
from attnc.compiler.cost.devices import Device
from attnc.compiler.cost.fits import TRITON_ROW_US
from attnc.compiler.cost.model import Cost
from attnc.compiler.cost.rates import flops_of, generated
from attnc.compiler.cost.simulate import Rows
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Counts
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import ForwardPlan
from attnc.compiler.passes.build_decode import MAX_QUERIES, build_decode, why_not

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROGRAMS = 2
"""Programs for each processor that a step is split into, as the written module does."""

MAX_SPLITS = 128


def predict_decode(
    pattern: Pattern, setting: pre.Setting, given: Mapping[str, Any]
) -> pre.Prediction:
    """Predict a step: the last ``setting.queries`` of ``setting.nk`` tokens against the cache.

    The predicate is evaluated at the rows of the step, all keys of the cache: time and memory in
    proportion to the cache.
    Raises: ValueError where the pattern has no decode step, or the step has too many queries.
    """
    reason = why_not(pattern)
    if reason is not None:
        raise ValueError(f"`{pattern.name}` has no decode step: {reason}")
    if not 1 <= setting.queries <= min(MAX_QUERIES, max(setting.nk, 1)):
        raise ValueError(f"a decode step has 1 to {MAX_QUERIES} queries, got {setting.queries}")
    device = pre.device_of(setting.device)
    plan = build_decode(
        pattern, head_dim=setting.head_dim, value_dim=setting.value_dim, dtype=setting.dtype,
        target=device.target,
    )
    counts, live, worst = _counted(pattern, plan, setting, given)
    dense_counts = replace(setting, work="forward", nq=setting.queries)
    kernels = _kernels(plan, setting, device, live, worst)
    all_keys = _kernels(plan, dense_counts, device, setting.nk, -(-setting.nk // plan.tiling.k))
    return pre.Prediction(
        pattern=pattern.name, setting=setting, counts=counts, kernels=kernels,
        dense=sum((kernel.cost for kernel in all_keys), Cost()),
        worst_row=worst, columns=-(-setting.nk // plan.tiling.k),
        assumptions=(
            "dense: the same step over all keys of the cache",
            "a row's live keys are read once, for all query heads of a key head; dead ones never",
            f"a row of a kernel takes {TRITON_ROW_US} us at least, from the fit of the forward; "
            f"not yet timed on {device.title}",
        ),
    )


def _counted(
    pattern: Pattern, plan: ForwardPlan, setting: pre.Setting, given: Mapping[str, Any]
) -> tuple[Counts, float, int]:
    """Count the pairs and tiles of the last rows.

    Returns: counts over all heads of the mask, live keys of a key head (their mean), most tiles.
    """
    import numpy as np

    side = plan.tiling.k
    columns = -(-setting.nk // side)
    full = partial = kept_pairs = 0
    heads = pattern.heads or 1
    in_group = 1 if pattern.heads is None or pattern.kv_heads else setting.group
    alive: list[Any] = []
    worst = 0
    for head in range(heads):
        kept = _rows_of(pattern, setting, given, head)
        kept_pairs += int(kept.sum())
        some = kept.any(0)
        padded = np.zeros((kept.shape[0], columns * side), dtype=bool)
        padded[:, : setting.nk] = kept
        by_tile = padded.reshape(kept.shape[0], columns, side)
        existing = np.minimum(side, setting.nk - np.arange(columns) * side) * kept.shape[0]
        seen = by_tile.sum((0, 2))
        full += int((seen == existing).sum())
        partial += int(((seen > 0) & (seen < existing)).sum())
        worst = max(worst, int((seen > 0).sum()))
        if head % in_group == 0:
            alive.append(some)
        else:
            alive[-1] = alive[-1] | some
    live = sum(int(keys.sum()) for keys in alive) / max(len(alive), 1)
    counts = Counts(
        full=full, partial=partial, empty=heads * columns - full - partial, visited=full + partial,
        masked=full + partial, pairs_kept=kept_pairs,
        pairs_computed=(full + partial) * side * setting.queries,
    )
    return counts, live, worst


def _rows_of(
    pattern: Pattern, setting: pre.Setting, given: Mapping[str, Any], head: int
) -> NDArray[np.bool_]:
    """Evaluate the last rows of the mask. Shape: ``[queries, nk]``."""
    import numpy as np

    q = np.arange(setting.nk - setting.queries, setting.nk, dtype=np.int64)[:, None]
    k = np.arange(setting.nk, dtype=np.int64)[None, :]
    values = {"q": q, "k": k, "h": head, "nq": setting.nk, "nk": setting.nk}
    kept = np.asarray(ex.evaluate(pattern.predicate, values, given), dtype=bool)
    return np.broadcast_to(kept, (setting.queries, setting.nk))


def _kernels(
    plan: ForwardPlan, setting: pre.Setting, device: Device, live: float, tiles: int
) -> tuple[pre.KernelCost, ...]:
    """Cost the step and its merge. ``live`` keys, ``tiles`` visited by each row."""
    import numpy as np

    lanes = setting.batch * setting.kv_heads
    wanted = -(-PROGRAMS * device.units // max(lanes, 1))
    splits = max(1, min(wanted, -(-setting.nk // plan.tiling.k), MAX_SPLITS))
    both = (setting.head_dim + setting.value_dim) * setting.width_bytes
    rows = Rows(
        tiles=np.array([[0] * splits, [-(-tiles // splits)] * splits], dtype=np.int64), copies=lanes
    )
    tokens = setting.batch * setting.heads * setting.queries
    parts = tokens * splits * 4 * (setting.value_dim + 1)
    moved = round(lanes * live * both) + tokens * setting.head_dim * setting.width_bytes + parts
    pairs = lanes * tiles * plan.tiling.k * setting.group * setting.queries
    rates = generated(device, plan, "forward")
    step = pre.timed(
        rows, rates, hbm_bytes=moved, l2_bytes=moved, device=device,
        flops=pairs * flops_of("forward", setting.head_dim, setting.value_dim),
    )
    merged = parts + tokens * setting.value_dim * setting.width_bytes
    merge = Cost(hbm_bytes=merged, l2_bytes=merged, row_us=TRITON_ROW_US)
    return (
        pre.KernelCost(
            name="step", plan=f"tile {plan.tiling}, {splits} splits", rows=rows.number,
            tiles=rows.visited, workers=rates.workers, cost=step,
        ),
        pre.KernelCost(
            name="merge", plan="log-sum-exp", rows=tokens, tiles=0, workers=rates.workers,
            cost=merge,
        ),
    )
