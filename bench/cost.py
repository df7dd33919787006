"""CPU -> how well the cost model ranks plans: predicted beside measured times of 20 choices.

    python bench/cost.py                       calibrates first; about 4 minutes
    python bench/cost.py --threads 1           processor time of one thread: for a busy machine
    python bench/cost.py --json bench/results/cost.json

Each choice is a pattern, a tile and the token orders that its parts may take. None of the tiles but
32 x 32 is among the calls that prices are fitted to. The goal: Spearman's rank correlation of
predicted and measured times is at least 0.9; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnc

if TYPE_CHECKING:
    from attnc.compiler.cost.machine import Calibration

PATTERNS = {
    "window": "pattern p = { q -> k : 0 <= q - k < 256 }",
    "dilated": "pattern p = { q -> k : 0 <= q - k < 1024 and (q - k) mod 4 == 0 }",
    "strided": "pattern p = { q -> k : k <= q and (q - k < 64 or (q - k) mod 64 == 0) }",
    "longformer": "pattern p = { q -> k : abs(q - k) <= 128 or q < 1 or k < 1 }",
    "block_local": "pattern p = { q -> k : k <= q and q div 256 == k div 256 }",
}
PLANS = (("32x32", "auto"), ("32x32", "natural"), ("64x64", "natural"), ("128x64", "natural"))
GOAL = 0.9


def choices(
    calibration: Calibration, tokens: int, heads: int, head_dim: int, dtype: str
) -> list[tuple[dict[str, Any], Callable[[], object]]]:
    """Return what is predicted of each choice, and the call to time."""
    import torch

    from attnc.compiler.cost.machine import predict_cpu
    from attnc.costs import setting_of
    from attnc.runtime.options import as_tiling

    torch.manual_seed(0)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    q, k, v = (torch.randn(1, heads, tokens, head_dim).to(kind) for _ in range(3))
    found = []
    for name, text in PATTERNS.items():
        pattern = attnc.parse(text)
        for tile, orders in PLANS:
            setting = setting_of(
                pattern.ir, tokens, tokens, heads=heads, kv_heads=heads, batch=1,
                head_dim=head_dim, value_dim=None, dtype=dtype, device="cpu", work="forward",
                tile=as_tiling(tile), orders=orders,
            )
            op = attnc.compile(pattern, head_dim=head_dim, cpu_tile=tile, orders=orders)
            row: dict[str, Any] = {
                "pattern": name, "tile": tile, "orders": orders,
                "predicted_us": predict_cpu(pattern.ir, setting, {}, calibration).time_us,
            }
            found.append((row, lambda op=op: op(q, k, v)))
    return found


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        order = sorted(values)
        return [order.index(x) + (order.count(x) - 1) / 2 for x in values]

    return statistics.correlation(ranks(one), ranks(other))


def main() -> int:
    """Predict and measure all choices; exit 1 if they are ranked too differently."""
    parser = argparse.ArgumentParser(description="predicted beside measured times on a CPU")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, help="torch's own choice when not given")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    import torch

    from attnc.runtime.calibrate import calibrate, in_turns

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    alone = torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    calibration = calibrate(lambda what: print(what, file=sys.stderr, flush=True), clock)
    found = choices(
        calibration, options.tokens, options.heads, options.head_dim, options.dtype
    )
    for (row, _), spent in zip(found, in_turns([run for _, run in found], clock), strict=True):
        row["measured_us"] = spent
    rows = [row for row, _ in found]
    rows.sort(key=lambda row: float(row["measured_us"]))
    print(f"{'pattern':<12} {'tile':>7} {'orders':>8} {'predicted':>10} {'measured':>9}   error")
    for row in rows:
        error = row["predicted_us"] / row["measured_us"] - 1
        print(
            f"{row['pattern']:<12} {row['tile']:>7} {row['orders']:>8} "
            f"{row['predicted_us']:>10,.0f} {row['measured_us']:>9,.0f} {error:>+7.1%}"
        )
    rank = rank_correlation(
        [row["predicted_us"] for row in rows], [row["measured_us"] for row in rows]
    )
    errors = [abs(row["predicted_us"] / row["measured_us"] - 1) for row in rows]
    what = "processor time of one thread" if alone else "least wall time of several turns"
    print(
        f"us, {what}; rank correlation {rank:.3f} (goal {GOAL}), median error "
        f"{statistics.median(errors):.0%}, worst {max(errors):.0%}"
    )
    if options.json is not None:
        record = {
            "machine": dict(calibration.machine), "clock": what, "dtype": options.dtype,
            "tokens": options.tokens, "heads": options.heads, "head_dim": options.head_dim,
            "rank_correlation": rank, "rows": rows,
            "left_out": {
                f"{executor} {dtype}": {"median": prices.error, "worst": prices.worst}
                for (executor, dtype), prices in calibration.prices.items()
            },
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if rank >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
