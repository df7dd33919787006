"""CPU -> speed of a decode step beside dense SDPA over the whole cache.

    python bench/decode.py                                        about a minute
    python bench/decode.py --tokens 4096 --json bench/results/decode_cpu.json

Both sides of a case run in turns in one process on random data; the table shows medians. Each step
has one query for each sequence. On a machine that others use, `--threads 1 --clock cpu` counts only
the time that the process itself was run.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu import CLOCKS, DTYPES, in_turns, machine

import attnc

CASES = {
    "window": "pattern p = { q -> k : 0 <= q - k < 256 }",
    "sink_window": "pattern p = { q -> k : k <= q and (k < 4 or q - k < 256) }",
    "strided": "pattern p = { q -> k : k <= q and (q - k < 64 or k mod 64 == 63) }",
    "causal": "pattern p = { q -> k : k <= q }",
}


def measure(
    case: str, tokens: int, dtype: str, heads: int, head_dim: int, turns: int, clock: str
) -> Any:
    """Time one case; times in milliseconds."""
    import torch

    decode = attnc.compile(attnc.parse(CASES[case]), head_dim=head_dim, dtype=dtype).decode
    given = getattr(torch, DTYPES[dtype])
    q = torch.randn(1, heads, 1, head_dim).to(given)
    k, v = (torch.randn(1, heads, tokens, head_dim).to(given) for _ in range(2))
    lengths = torch.tensor([tokens])
    sides: dict[str, Callable[[], object]] = {
        "attnc": lambda: decode(q, k, v, lengths),
        "dense": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    }
    medians = in_turns(sides, turns, CLOCKS[clock])
    return {
        "case": case, "tokens": tokens, "dtype": dtype, "heads": heads, "head_dim": head_dim,
        **{f"{name}_ms": value for name, value in medians.items()},
        "over_dense": medians["dense"] / medians["attnc"], "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description="decode steps beside dense SDPA, on a CPU")
    parser.add_argument("--tokens", default="4096,32768,262144", help="comma-separated")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=9, help="timed runs of each side")
    parser.add_argument("--threads", type=int, help="torch's own choice when not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = machine() | {"clock": options.clock}
    print(f"{'case':<12} {'tokens':>7} {'dtype':>5} {'attnc':>9} {'dense':>9} {'x dense':>8}")
    rows = []
    for case in CASES:
        for dtype in DTYPES:
            for tokens in map(int, options.tokens.split(",")):
                row = measure(
                    case, tokens, dtype, options.heads, options.head_dim, options.turns,
                    options.clock,
                )  # fmt: skip
                rows.append(row)
                print(
                    f"{case:<12} {tokens:>7} {dtype:>5} {row['attnc_ms']:>9.3f} "
                    f"{row['dense_ms']:>9.3f} {row['over_dense']:>8.1f}", flush=True,
                )  # fmt: skip
    if options.json is not None:
        text = json.dumps({"machine": about, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
