"""CPU -> speed of compiled ops beside compiled FlexAttention and dense SDPA.

    python bench/cpu.py                                      all cases, about 10 minutes
    python bench/cpu.py --cases window --tokens 4096         one of them
    python bench/cpu.py --json bench/results/cpu.json        also write the results

All sides of a case run in turns in one process on random data; the table shows medians and ratios.
FlexAttention is compiled for the exact shape, with its default block, and its block mask is built
beforehand; neither counts. `--threads 1 --clock cpu` counts processor time, on busy machines. GOALS
says how many times FlexAttention's speed each case should have.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnc

if TYPE_CHECKING:
    import torch

CASES: dict[str, tuple[str, bool]] = {
    # name: (pattern, whether dense SDPA runs it as causal)
    "window": ("pattern p = { q -> k : 0 <= q - k < 256 }", True),
    "sink_window": ("pattern p = { q -> k : k <= q and (k < 4 or q - k < 256) }", True),
    "block_local": ("pattern p = { q -> k : k <= q and q div 256 == k div 256 }", True),
    "dilated": ("pattern p = { q -> k : 0 <= q - k < 2048 and (q - k) mod 4 == 0 }", True),
    "longformer": ("pattern p = { q -> k : abs(q - k) <= 128 or q < 1 or k < 1 }", False),
    "causal": ("pattern p = { q -> k : k <= q }", True),
    "strided": ("pattern p = { q -> k : k <= q and (q - k < 64 or (q - k) mod 64 == 0) }", True),
    "powers": ("pattern p = { q -> k : q == k or is_pow2(q - k) }", True),
    "window_2d": (
        "space image = grid(y: ROWS, x: 128)\n"
        "pattern p on image = { q -> k : abs(q.y - k.y) <= 6 and abs(q.x - k.x) <= 6 }",
        False,
    ),
    "window_3d": (
        "space video = grid(t: ROWS, y: 32, x: 32)\n"
        "pattern p on video = { q -> k : abs(q.t - k.t) <= 1 and abs(q.y - k.y) <= 3"
        " and abs(q.x - k.x) <= 3 }",
        False,
    ),
}  # ROWS: what makes as many tokens as are asked for
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
GOALS = {
    ("window", "fp32"): 0.95, ("window", "bf16"): 1.2, ("powers", "fp32"): 3, ("powers", "bf16"): 2,
    **{(case, dtype): goal for dtype in DTYPES for case, goal in (
        ("dilated", 3), ("strided", 5), ("window_2d", 3), ("window_3d", 2)
    )},
}  # fmt: skip
SLOW_SECONDS = 1.0  # a side slower than this runs only SLOW_TURNS times
SLOW_TURNS = 3


def mask_mod(pattern: attnc.Pattern, tokens: int) -> Callable[..., Any]:
    """Return the pattern as a FlexAttention ``mask_mod(b, h, q, k)``."""
    import torch

    from attnc.codegen.predicate import HOST_HELPERS, TOKEN_RANGES, HostDialect

    names = {"q": "q", "k": "k", "h": "h", "nq": str(tokens), "nk": str(tokens)}
    text = HostDialect(names, TOKEN_RANGES).boolean(pattern.ir.predicate)
    scope: dict[str, Any] = {"torch": torch}
    exec(f"{HOST_HELPERS}\n\ndef mask(b, h, q, k):\n    return {text}\n", scope)
    made: Callable[..., Any] = scope["mask"]
    return made


def in_turns(
    sides: dict[str, Callable[[], object]], turns: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median time of each side in milliseconds, all sides run in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            if turn > SLOW_TURNS and times[name][0] > SLOW_SECONDS:
                continue
            start = clock()
            side()
            if turn:  # the first turn warms up
                times[name].append(clock() - start)
    return {name: statistics.median(spent) * 1e3 for name, spent in times.items()}


def measure(
    case: str, tokens: int, dtype: str, heads: int, head_dim: int, turns: int, clock: str = "wall"
) -> dict[str, Any]:
    """Time one case; first see that FlexAttention finds the same output."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    text, causal = CASES[case]
    text = text.replace("ROWS", str(tokens // (128 if case == "window_2d" else 1024)))
    pattern = attnc.parse(text)
    op = attnc.compile(pattern, head_dim=head_dim)
    torch.manual_seed(0)
    shape = (1, heads, tokens, head_dim)
    q, k, v = (torch.randn(shape).to(getattr(torch, DTYPES[dtype])) for _ in range(3))
    torch.compiler.reset()
    blocks = torch.compile(create_block_mask)(
        mask_mod(pattern, tokens), None, None, tokens, tokens, device="cpu"
    )
    flex = torch.compile(flex_attention, dynamic=False)
    dense = torch.nn.functional.scaled_dot_product_attention
    start = time.perf_counter()
    out = op(q, k, v)
    first_ms = (time.perf_counter() - start) * 1e3
    difference = _largest(out.float() - flex(q, k, v, block_mask=blocks).float())
    if not difference < (1e-4 if dtype == "fp32" else 0.05):
        raise AssertionError(f"{case} {tokens} {dtype}: FlexAttention differs by {difference:.1e}")
    medians = in_turns(
        {
            "attnc": lambda: op(q, k, v),
            "flex": lambda: flex(q, k, v, block_mask=blocks),
            "dense": lambda: dense(q, k, v, is_causal=causal),
        },
        turns, CLOCKS[clock],
    )
    ratio = medians["flex"] / medians["attnc"]
    goal = GOALS.get((case, dtype))
    return {
        "case": case, "pattern": text, "tokens": tokens, "dtype": dtype, "heads": heads,
        "head_dim": head_dim, "kept": pattern.blocks(tokens).pairs_kept / tokens**2,
        **{f"{name}_ms": value for name, value in medians.items()}, "attnc_first_ms": first_ms,
        "over_flex": ratio, "over_dense": medians["dense"] / medians["attnc"],
        "goal": goal, "met": None if goal is None else ratio >= goal, "difference": difference,
    }  # fmt: skip


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())


def machine() -> dict[str, Any]:
    """Return what results depend on."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if "model name" in line), cpu)
    return {
        "cpu": cpu, "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
        "python": platform.python_version(), "attnc": attnc.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as text, one line a case."""
    lines = [
        f"{'case':<12} {'tokens':>6} {'dtype':>5} {'kept':>7} {'attnc':>9} {'flex':>9} "
        f"{'dense':>9} {'x flex':>7} {'x dense':>8}  goal"
    ]
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']} {'met' if row['met'] else 'MISSED'}"
        lines.append(
            f"{row['case']:<12} {row['tokens']:>6} {row['dtype']:>5} {row['kept']:>7.2%} "
            f"{row['attnc_ms']:>9.2f} {row['flex_ms']:>9.2f} {row['dense_ms']:>9.2f} "
            f"{row['over_flex']:>7.2f} {row['over_dense']:>8.1f}  {goal}".rstrip()
        )
    return "\n".join([*lines, "times in ms: medians of runs in turns"])


def main() -> int:
    """Run the chosen cases; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="compiled ops beside FlexAttention and SDPA")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--tokens", default="4096,8192,16384", help="comma-separated")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--threads", type=int, help="torch's own choice when not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    cases, dtypes = options.cases.split(","), options.dtypes.split(",")
    for what, chosen, known in (("case", cases, CASES), ("dtype", dtypes, DTYPES)):
        for name in chosen:
            if name not in known:
                parser.error(f"no {what} {name!r}; choose from {', '.join(known)}")
    try:
        lengths = [int(n) for n in options.tokens.split(",")]
    except ValueError:
        parser.error(f"--tokens {options.tokens!r}: write numbers with commas, as 4096,8192")
    if min([*lengths, options.turns, options.heads, options.head_dim]) < 1:
        parser.error("--tokens, --turns, --heads and --head-dim must be at least 1")
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = machine() | {"clock": options.clock, "turns": options.turns}
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    rows: list[dict[str, Any]] = []
    for case in cases:
        for dtype in dtypes:
            for tokens in lengths:
                shape = (case, tokens, dtype, options.heads, options.head_dim)
                rows.append(measure(*shape, options.turns, options.clock))
                print(table(rows).splitlines()[-2], file=sys.stderr, flush=True)
    print(table(rows))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": about, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
