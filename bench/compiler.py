"""Zoo -> how long the compiler itself takes: checking, block masks, generating modules.

    python bench/compiler.py                 a table; exit 1 where a bound is broken
    python bench/compiler.py --json FILE     the numbers, too

Bounds: `attnc check` on a small file 0.3 s, with the start of Python; any zoo pattern to a whole
module, backward kernels and all, 1 s; a block mask for 1,048,576 tokens 50 ms and 10 MB; a hostile
text to a plan 4 s. All are time of the processor, which on a quiet machine is the wall's: the
compiler waits for nothing. Nothing is taken from a memo of an earlier run; each is the best of
several runs (hostile texts: one), since only slowness that repeats is the compiler's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from attnc.codegen.module import emit_module
from attnc.compiler.driver import load_text, loaded_zoo, zoo_names
from attnc.compiler.ir.blockmask import BlockMask, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.data_form import tiles_of
from attnc.dsl.diagnostics import CompileError

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 1_048_576
CHECK_S, MODULE_S, BLOCKS_MS, BLOCKS_MB, HOSTILE_S = 0.3, 1.0, 50.0, 10.0, 4.0

GIVEN: dict[str, dict[str, object]] = {
    "bigbird": {"heads": 12}, "block_mask": {"heads": 12}, "nats": {"heads": 12},
    "vertical_slash": {"heads": 12}, "interleaved_layers": {"layer": 0},
}
"""What must be known before a pattern can be compiled."""

HOSTILE = {
    "fractions":
        "{ q -> k : 0 <= q - k < floor(5 + 0.37 * n / 3) or k == ceil(0.37 * q) }",
    "div in min": "{ q -> k : k div 11 <= min((n div 11) div 7, 2 - (n - q)) }",
    "div of sums":
        "{ q -> k : ((q div 3) div 5 + (k div 7) div 2) mod 11 == ((q + k) div 13) mod 3 }",
    "max and min": "{ q -> k : max(q div 3, min(k div 5, n div 7)) mod 4"
        " <= min(q mod 7, k mod 11, (q + k) div 2) }",
    "nine rests": "{ q -> k : "
        + " and ".join(f"(q - k) mod {i + 2} != 1" for i in range(9)) + " }",
    "lengths": "{ q -> k : max((n - k) mod 64, (n - q) div 100 - n mod 100)"
        " != (q - k) div 100 + (2 * q - k) mod 5 }",
    "union of 1000 rests": " | ".join(
        f"{{ q -> k : (q - k) mod {i + 2} == {i % 3} }}" for i in range(1000)
    ),
}  # fmt: skip
"""Sets that isl would take minutes over if it were let."""


def best_s(
    run: Callable[[], object], runs: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Return the shortest of several runs, in seconds."""
    taken = []
    for _ in range(runs):
        forget()
        begun = clock()
        run()
        taken.append(clock() - begun)
    return min(taken)


def children_s() -> float:
    """Return the time of the processor that ended child processes took, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def forget() -> None:
    """Empty every memo of the compiler's functions."""
    for name, module in list(sys.modules.items()):
        if name.startswith("attnc."):
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def check_file() -> None:
    """Run `attnc check` in a process of its own, as a user does."""
    path = ROOT / "examples" / "longformer" / "longformer.attn"
    subprocess.run(
        [sys.executable, "-m", "attnc", "check", str(path)], check=True, capture_output=True
    )


def load(name: str) -> Pattern:
    """Load a stdlib pattern with its defaults. Raises: CompileError for what is no pattern."""
    return loaded_zoo(name, GIVEN.get(name)).ir


def blocks(pattern: Pattern) -> BlockMask:
    """Classify, and evaluate the bounds of every row of tiles of a long sequence."""
    mask, _, _ = tiles_of(pattern, Tiling(128, 64))
    nq, nk = (length or TOKENS for length in pattern.lengths)
    for piece in mask.pieces:
        mask.rows(piece, nq, nk)
    return mask


def plan_text(text: str) -> None:
    """Load a set that is given as text, and plan it for small tiles."""
    small = Tiling(16, 16)
    build_plan(load_text(f"pattern p = {text}"), head_dim=64, tile=small, cpu_tile=small)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the compiler.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    checked = best_s(check_file, args.runs, children_s)
    print(f"attnc check: {checked:.3f} s (bound {CHECK_S} s)")
    broken = [f"attnc check takes {checked:.3f} s"] if checked > CHECK_S else []
    rows = []
    print(f"{'pattern':34} {'module s':>9} {'blocks ms':>10} {'blocks MB':>10}")
    for name in zoo_names():
        try:
            pattern = load(name)
        except CompileError:  # a function
            continue
        module_s = best_s(
            lambda name=name: emit_module(build_plan(load(name), head_dim=64)),  # type: ignore[misc]
            args.runs,
        )
        blocks_ms = 1e3 * best_s(lambda pattern=pattern: blocks(pattern), args.runs)  # type: ignore[misc]
        forget()
        tracemalloc.start()
        mask = blocks(pattern)
        blocks_mb = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        rows.append({
            "pattern": name, "module_s": module_s, "blocks_ms": blocks_ms, "blocks_mb": blocks_mb,
            "widened": list(mask.widened),
        })
        print(f"{name:34} {module_s:9.3f} {blocks_ms:10.2f} {blocks_mb:10.2f}")
        for what, value, bound in (
            ("module s", module_s, MODULE_S), ("blocks ms", blocks_ms, BLOCKS_MS),
            ("blocks MB", blocks_mb, BLOCKS_MB),
        ):
            if value > bound:
                broken.append(f"{name}: {what} {value:.2f}, bound {bound}")
    hostile = {}
    for name, text in HOSTILE.items():
        hostile[name] = taken = best_s(lambda text=text: plan_text(text), 1)  # type: ignore[misc]
        print(f"{name:34} {taken:9.3f}")
        if taken > HOSTILE_S:
            broken.append(f"{name}: {taken:.2f} s, bound {HOSTILE_S} s")
    if args.json:
        record = {"python": platform.python_version(), "machine": platform.processor(),
                  "check_s": checked, "patterns": rows, "hostile_s": hostile,
                  "broken": broken}  # fmt: skip
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(broken) or "all bounds hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
