"""CPU -> biases as the plan adds them, beside pair by pair and FlexAttention.

    python bench/cpu_bias.py --threads 1 --clock cpu         all cases
    python bench/cpu_bias.py --cases alibi --tokens 4096     one of them
    python bench/cpu_bias.py --json bench/results/bias.json  also write the results

Sides run in turns in one process on random data, as in ``cpu.py``. FlexAttention is compiled with
the bias as its ``score_mod`` and with its block mask built beforehand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnc

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cpu import CLOCKS, DTYPES, in_turns, machine, mask_mod

if TYPE_CHECKING:
    import torch

ALIBI = "score s heads h: 8 = { q -> k, h : (k - q) / 2**(h + 1) }\n"
TABLES = (
    "input a: real[8, n]\ninput b: real[n]\n"
    "score s heads h: 8 = { q -> k, h : a[h][q] * b[k] }\n"
)
CASES: dict[str, str] = {
    "alibi": f"{ALIBI}attention p = softmax(dot + s, over: causal)",
    "alibi_window": (
        f"{ALIBI}attention p = softmax(dot + s, over: {{ q -> k : 0 <= q - k < 512 }})"
    ),
    "t5_window": "attention p = softmax(dot + t5_bias(8), over: { q -> k : 0 <= q - k < 512 })",
    "tables": f"{TABLES}attention p = softmax(dot + s, over: causal)",
    "tables_window": (
        f"{TABLES}attention p = softmax(dot + s, over: {{ q -> k : 0 <= q - k < 512 }})"
    ),
}


def inputs_of(case: str, tokens: int) -> dict[str, torch.Tensor]:
    """Draw what a pattern reads."""
    import torch

    if case.startswith("tables"):
        return {"a": torch.randn(8, tokens), "b": torch.randn(tokens)}
    return {"table": torch.randn(8, 32)} if case.startswith("t5") else {}


def score_mod(pattern: attnc.Pattern, inputs: dict[str, torch.Tensor]) -> Callable[..., Any]:
    """Return the score as a FlexAttention ``score_mod(dot, b, h, q, k)``."""
    import torch

    if "a" in inputs:
        a, b = inputs["a"], inputs["b"]
        return lambda dot, _, h, q, k: dot + a[h, q] * b[k]
    if "table" in inputs:
        terms = pattern.scores(nq=512, nk=1, inputs={"table": inputs["table"].numpy()})
        distances = terms.values[..., 0].float()
        return lambda dot, _, h, q, k: dot + distances[h, (q - k).clamp(0, 511)]
    return lambda dot, _, h, q, k: dot + (k - q) * torch.exp2(-(h + 1.0))


def measure(case: str, tokens: int, dtype: str, turns: int, clock: str) -> dict[str, Any]:
    """Time one case; first see that all sides find the same output."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    pattern = attnc.parse(CASES[case])
    inputs = inputs_of(case, tokens)
    ops = {bias: attnc.compile(pattern, head_dim=64, bias=bias) for bias in ("auto", "add")}
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 8, tokens, 64).to(getattr(torch, DTYPES[dtype])) for _ in range(3))
    torch.compiler.reset()
    blocks = torch.compile(create_block_mask)(
        mask_mod(pattern, tokens), None, None, tokens, tokens, device="cpu"
    )
    flex, mod = torch.compile(flex_attention, dynamic=False), score_mod(pattern, inputs)
    out = ops["auto"](q, k, v, **inputs)
    sides: dict[str, Callable[[], torch.Tensor]] = {
        "attnc": lambda: ops["auto"](q, k, v, **inputs),
        "add": lambda: ops["add"](q, k, v, **inputs),
        "flex": lambda: flex(q, k, v, score_mod=mod, block_mask=blocks),
    }
    for name, side in sides.items():
        difference = float((out.float() - side().float()).abs().max())
        if not difference < (1e-4 if dtype == "fp32" else 0.05):
            raise AssertionError(f"{case} {tokens} {dtype}: {name} differs by {difference:.1e}")
    medians = in_turns(dict(sides), turns, CLOCKS[clock])
    return {
        "case": case, "pattern": CASES[case], "tokens": tokens, "dtype": dtype,
        **{f"{name}_ms": value for name, value in medians.items()},
        "over_add": medians["add"] / medians["attnc"],
        "over_flex": medians["flex"] / medians["attnc"],
    }  # fmt: skip


def main() -> int:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description="biases beside pair by pair and FlexAttention")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--tokens", default="4096,8192", help="comma-separated")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated")
    parser.add_argument("--turns", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--threads", type=int, help="torch's own choice when not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    for name in options.cases.split(","):
        if name not in CASES:
            parser.error(f"no case {name!r}; choose from {', '.join(CASES)}")
    for name in options.dtypes.split(","):
        if name not in DTYPES:
            parser.error(f"no dtype {name!r}; choose from {', '.join(DTYPES)}")
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = machine() | {"clock": options.clock, "turns": options.turns}
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    rows = []
    for case in options.cases.split(","):
        for dtype in options.dtypes.split(","):
            for tokens in map(int, options.tokens.split(",")):
                row = measure(case, tokens, dtype, options.turns, options.clock)
                rows.append(row)
                print(
                    f"{case:<14} {tokens:>6} {dtype:>5} {row['attnc_ms']:>9.2f} ms, add "
                    f"{row['add_ms']:>9.2f} ({row['over_add']:.2f} x), flex "
                    f"{row['flex_ms']:>9.2f} ({row['over_flex']:.2f} x)", flush=True,
                )  # fmt: skip
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": about, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
