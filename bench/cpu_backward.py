"""CPU -> speed and memory of a training step, forward and backward, beside dense SDPA.

    python bench/cpu_backward.py                                  2k to 16k tokens, some minutes
    python bench/cpu_backward.py --cases window --tokens 4096     one of them
    python bench/cpu_backward.py --json bench/results/cpu_backward.json
    python bench/plot_cpu_backward.py bench/results/cpu_backward.json docs/cpu_backward.svg

All sides of a length, two dense ones among them (causal and not), run in turns in one process on
random data; the table shows medians. Dense is torch's own flash kernel, forward and backward, with
nothing masked but the future where the pattern is causal. Peaks are those of a step in a fresh
process for each side, above what it held with its inputs. On a machine that others use,
`--threads 1 --clock cpu` counts only the time that the process itself was run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpu import CLOCKS, DTYPES, in_turns, machine

import attnc

if TYPE_CHECKING:
    import torch

CASES: dict[str, tuple[str, bool]] = {
    # name: (pattern, whether dense SDPA runs as causal beside it)
    "window": ("pattern p = { q -> k : 0 <= q - k < 256 }", True),
    "strided": (
        "pattern p = { q -> k : k <= q and (q - k < 128 or (q - k) mod 128 == 0) }", True,
    ),
    "dilated": ("pattern p = { q -> k : 0 <= q - k < 1024 and (q - k) mod 4 == 0 }", True),
    "window_2d": (
        "space image = grid(y: {rows}, x: 64)\n"
        "pattern p on image = { q -> k : abs(q.y - k.y) <= 6 and abs(q.x - k.x) <= 6 }", False,
    ),
}  # fmt: skip
DENSE = {"dense_causal": True, "dense": False}
CHECKED_TOKENS = 2048  # gradients are compared with those of a dense mask up to this length


class Step:
    """Forward and backward of one side on inputs of its own, ``[1, heads, tokens, head_dim]``."""

    def __init__(
        self, side: str, tokens: int, dtype: str, heads: int, head_dim: int
    ) -> None:
        import torch

        torch.manual_seed(0)
        shape = (1, heads, tokens, head_dim)
        made = [torch.randn(shape).to(getattr(torch, DTYPES[dtype])) for _ in range(4)]
        self.inputs, self.change = [x.requires_grad_() for x in made[:3]], made[3]
        self.attend: Callable[..., torch.Tensor]
        if side in DENSE:
            self.attend = lambda *given: torch.nn.functional.scaled_dot_product_attention(
                *given, is_causal=DENSE[side]
            )
        else:
            self.attend = attnc.compile(pattern_of(side, tokens), head_dim=head_dim, dtype=dtype)

    def forward(self) -> None:
        self.out = self.attend(*self.inputs)

    def backward(self) -> tuple[torch.Tensor, ...]:
        import torch

        return torch.autograd.grad(self.out, self.inputs, self.change, retain_graph=True)


def pattern_of(case: str, tokens: int) -> attnc.Pattern:
    """Return the pattern of a case; grids have 64 columns."""
    return attnc.parse(CASES[case][0].replace("{rows}", str(tokens // 64)))


def check(step: Step, case: str, tokens: int, dtype: str) -> None:
    """Raise an AssertionError where gradients are not those of dense attention with the mask."""
    import torch

    step.forward()
    given = [x.detach().float().requires_grad_() for x in step.inputs]
    mask = torch.as_tensor(pattern_of(case, tokens).mask(tokens))
    out = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=mask)
    expected = torch.autograd.grad(out, given, step.change.float())
    for name, found, right in zip("qkv", step.backward(), expected, strict=True):
        gap = float((found.float() - right).abs().max())
        if not gap < (1e-4 if dtype == "fp32" else 0.1):
            raise AssertionError(f"{case} {tokens} {dtype}: d{name} differs by {gap:.1e}")


def measure(
    cases: Sequence[str], tokens: int, dtype: str, heads: int, head_dim: int, turns: int,
    clock: str = "wall",
) -> list[dict[str, Any]]:
    """Time the cases of one length, all in turns."""
    dense = {case: next(d for d, causal in DENSE.items() if causal == CASES[case][1])
             for case in cases}  # fmt: skip
    names = [*cases, *(d for d in DENSE if d in dense.values())]
    steps = {name: Step(name, tokens, dtype, heads, head_dim) for name in names}
    if tokens <= CHECKED_TOKENS:
        for case in cases:
            check(steps[case], case, tokens, dtype)
    sides: dict[str, Callable[[], object]] = {}
    for name, step in steps.items():
        sides |= {f"{name} forward": step.forward, f"{name} backward": step.backward}
    medians = in_turns(sides, turns, CLOCKS[clock])
    whole = {name: sum(medians[f"{name} {half}"] for half in ("forward", "backward"))
             for name in names}  # fmt: skip
    peaks = {name: peak_mib(name, tokens, dtype, heads, head_dim) for name in names}
    return [
        {
            "case": case, "pattern": CASES[case][0], "tokens": tokens, "dtype": dtype,
            "heads": heads, "head_dim": head_dim, "dense": dense[case],
            "kept": pattern_of(case, tokens).blocks(tokens).pairs_kept / tokens**2,
            **{
                f"{side}_{half}_ms": medians[f"{name} {half}"]
                for side, name in (("attnc", case), ("dense", dense[case]))
                for half in ("forward", "backward")
            },
            "over_dense": whole[dense[case]] / whole[case],
            "attnc_peak_mib": peaks[case], "dense_peak_mib": peaks[dense[case]],
            "load": os.getloadavg()[0],  # of the whole machine, in the last minute
        }
        for case in cases
    ]  # fmt: skip


def peak_mib(side: str, tokens: int, dtype: str, heads: int, head_dim: int) -> float | None:
    """Return the peak of one step in a fresh process, None where the system does not say."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    arguments = [side, tokens, dtype, heads, head_dim]
    command = [sys.executable, __file__, "--peak", json.dumps(arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak_mib(side: str, tokens: int, dtype: str, heads: int, head_dim: int) -> float:
    """Run one step in this process; return how far it rises above what is held before it."""
    step = Step(side, tokens, dtype, heads, head_dim)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    before = _high_water_kib()
    step.forward()
    step.backward()
    return (_high_water_kib() - before) / 1024


def _high_water_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as text, one line a case."""
    lines = [
        f"{'case':<10} {'tokens':>6} {'dtype':>5} {'kept':>7} {'forward':>9} {'backward':>9} "
        f"{'dense f':>9} {'dense b':>9} {'x dense':>8} {'MiB':>6} {'dense':>6}"
    ]
    for row in rows:
        peaks = [row["attnc_peak_mib"], row["dense_peak_mib"]]
        times = [
            row[f"{side}_{half}_ms"]
            for side in ("attnc", "dense") for half in ("forward", "backward")
        ]  # fmt: skip
        lines.append(
            f"{row['case']:<10} {row['tokens']:>6} {row['dtype']:>5} {row['kept']:>7.2%} "
            + " ".join(f"{ms:>9.1f}" for ms in times)
            + f" {row['over_dense']:>8.1f} "
            + " ".join(f"{'-' if mib is None else round(mib):>6}" for mib in peaks)
        )
    return "\n".join([*lines, "times in ms: medians of runs in turns"])


def main() -> int:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description="a training step beside dense SDPA")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--tokens", default="2048,4096,8192,16384", help="multiples of 64")
    parser.add_argument("--dtypes", default="fp32", help="comma-separated")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--threads", type=int, help="torch's own choice when not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        print(own_peak_mib(*options.peak))
        return 0
    cases, dtypes = options.cases.split(","), options.dtypes.split(",")
    for what, chosen, known in (("case", cases, CASES), ("dtype", dtypes, DTYPES)):
        for name in chosen:
            if name not in known:
                parser.error(f"no {what} {name!r}; choose from {', '.join(known)}")
    lengths = [int(n) if n.isdecimal() else 0 for n in options.tokens.split(",")]
    if any(n < 64 or n % 64 for n in lengths):
        parser.error(f"--tokens {options.tokens!r}: write multiples of 64, as 2048,4096")
    if min(options.turns, options.heads, options.head_dim) < 1:
        parser.error("--turns, --heads and --head-dim must be at least 1")
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = machine() | {"clock": options.clock, "turns": options.turns}
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        for tokens in lengths:
            rows += measure(
                cases, tokens, dtype, options.heads, options.head_dim, options.turns, options.clock
            )
            print(f"{tokens} tokens, {dtype}: done", file=sys.stderr, flush=True)
    print(table(rows))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": about, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
