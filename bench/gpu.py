"""NVIDIA GPU -> correctness and speed of generated kernels, beside cuDNN and FlexAttention.

    python bench/gpu.py                              all parts, under 8 minutes
    python bench/gpu.py --parts check,window         some parts
    python bench/gpu.py --list                       the parts and their cases
    python bench/gpu.py --prepare DIR                write the modules where the compiler is
    python bench/gpu.py --modules DIR                and load them where torch and triton are

Random data, all kernels of a case in turns, medians; CUDA graphs where a call is short; buffers
larger than the L2 cache in total; TFLOP/s from exact pair counts. A JSON with device, versions and
date goes to bench/results/, a table comes last. Without a GPU it says so and exits 0. With modules
written beforehand it needs torch, triton, numpy and this checkout (`PYTHONPATH=.` will do), but
neither islpy nor lark.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_cases import PARTS, Case, cases, check_jobs, compiled, prepare

import attnc
from attnc.compiler.ir.plan import TARGETS

if TYPE_CHECKING:
    import torch

    from attnc.compiler.ir.pattern import Pattern as PatternIR

RESULTS = Path(__file__).resolve().parent / "results"
SHARES = {"ceilings": 1, "check": 7, "dense": 4, "window": 6, "patterns": 6}
"""How the seconds are shared: a part that is over its time leaves the rest of its cases out."""
L2_BYTES_TO_EXCEED = 192 * 2**20
GRAPH_BELOW_MS = 0.2
BLOCKS, WARM_UPS = 5, 10
SECONDS_PER_TIMING = 0.06


def flops(pairs: int, case: Case, pattern: PatternIR) -> int:
    """Return the multiply-adds of two matmuls over the kept pairs, counted as two each."""
    repeats = case.batch * (1 if pattern.heads else case.heads)
    return 4 * case.head_dim * pairs * repeats


def mask_mod(pattern: PatternIR, tokens: int) -> Callable[..., Any]:
    """Return the pattern as a FlexAttention ``mask_mod(b, h, q, k)``."""
    import torch

    from attnc.codegen.predicate import HOST_HELPERS, HostDialect

    names = {"q": "q", "k": "k", "h": "h", "nq": str(tokens), "nk": str(tokens)}
    last = tokens - 1
    ranges = {"q": (0, last), "k": (0, last), "h": (0, (pattern.heads or 65536) - 1),
              "nq": (tokens, tokens), "nk": (tokens, tokens)}
    text = HostDialect(names, ranges).boolean(pattern.predicate)
    if text in ("True", "False"):
        text = "q >= 0" if text == "True" else "q < 0"
    scope: dict[str, Any] = {"torch": torch}
    exec(f"{HOST_HELPERS}\n\ndef mask(b, h, q, k):\n    return {text}\n", scope)
    made: Callable[..., Any] = scope["mask"]
    return made


# ------------------------------------------------------------------------------------- timing


def time_in_turns(
    calls: dict[str, list[Callable[[], object]]], deadline: float
) -> dict[str, float]:
    """Time kernels in turns; each comes as one call per rotated buffer. Returns median ms.

    Short calls are captured in a CUDA graph: otherwise the launch from Python would be timed.
    """
    import torch

    runs: dict[str, tuple[Callable[[], object], int]] = {}
    for name, rotated in calls.items():
        for _ in range(WARM_UPS):
            for call in rotated:
                call()
        torch.cuda.synchronize()
        once = cuda_ms(lambda rotated=rotated: [call() for call in rotated], 1) / len(rotated)
        if once < GRAPH_BELOW_MS:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in rotated:
                    call()
            runs[name] = graph.replay, len(rotated)
        else:
            runs[name] = (lambda rotated=rotated: [call() for call in rotated]), len(rotated)
    repeats = {}
    for name, (run, _) in runs.items():
        one_ms = max(cuda_ms(run, 1), 1e-3)
        repeats[name] = max(1, int(SECONDS_PER_TIMING * 1e3 / one_ms))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(BLOCKS):
        for name, (run, number) in runs.items():
            samples[name].append(cuda_ms(run, repeats[name]) / number)
        if time.monotonic() > deadline:
            break
    return {name: statistics.median(taken) for name, taken in samples.items()}


def cuda_ms(run: Callable[[], object], repeats: int) -> float:
    """Return the milliseconds of one run, between CUDA events around several."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / repeats


def random_sets(case: Case) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return enough q, k, v that together they are larger than the L2 cache."""
    import torch

    generator = torch.Generator(device="cuda").manual_seed(0)
    kv_heads = case.kv_heads or case.heads

    def normal(heads: int) -> torch.Tensor:
        shape = (case.batch, heads, case.tokens, case.head_dim)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    per_set = 2 * case.batch * (case.heads + 2 * kv_heads) * case.tokens * case.head_dim
    number = max(1, min(16, -(-L2_BYTES_TO_EXCEED // per_set)))
    return [(normal(case.heads), normal(kv_heads), normal(kv_heads)) for _ in range(number)]


def run_case(case: Case, deadline: float, modules: Path | None) -> dict[str, Any]:
    """Verify and time one case; a peer that fails is reported, not hidden."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from attnc.runtime import trial

    begun = time.perf_counter()
    made = compiled(case.job(), modules)
    op, ir = made.op, made.ir
    sets = random_sets(case)
    out = op(*sets[0])
    torch.cuda.synchronize()
    first_call_s = time.perf_counter() - begun
    verdict = trial.verify(ir, out, *sets[0])
    grouped = (case.kv_heads or case.heads) != case.heads
    calls: dict[str, list[Callable[[], object]]] = {
        "attnc": [lambda s=s: op(*s) for s in sets],
    }
    problems: dict[str, str] = {}
    begun = time.perf_counter()
    try:
        torch._dynamo.reset()
        mask = torch.compile(create_block_mask)(
            mask_mod(ir, case.tokens), None, case.heads if ir.heads else None,
            case.tokens, case.tokens, device="cuda",
        )
        flex = torch.compile(flex_attention, dynamic=False)
        flex_out = flex(*sets[0], block_mask=mask, enable_gqa=grouped)
        problems |= {} if agrees(flex_out, out) else {"flex": "differs from attnc"}
        calls["flex"] = [lambda s=s: flex(*s, block_mask=mask, enable_gqa=grouped) for s in sets]
    except Exception as broken:  # a peer may lack memory or support; the run goes on
        problems["flex"] = in_a_line(broken)
    flex_setup_s = time.perf_counter() - begun
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for groups in (grouped, False):  # where cuDNN takes no groups, each head gets its own k, v
            repeat = case.heads // sets[0][1].shape[1] if grouped and not groups else 1
            wide = sets if repeat == 1 else [
                (q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1))
                for q, k, v in sets
            ]
            dense = [
                lambda s=s, groups=groups: sdpa(*s, is_causal=case.causal, enable_gqa=groups)
                for s in wide
            ]
            try:
                dense[0]()
            except RuntimeError as refused:
                problems["cudnn"] = in_a_line(refused)
                continue
            calls["cudnn"] = dense
            break
        ms = time_in_turns(calls, deadline)
    useful = flops(made.pairs, case, ir)
    return {
        **asdict(case), "label": case.label, "tile": made.tile,
        "pairs_kept": made.pairs, "density": made.pairs / ((ir.heads or 1) * case.tokens**2),
        "ms": ms, "tflops": {name: useful / t / 1e9 for name, t in ms.items() if name != "cudnn"},
        "error": verdict.error, "error_allowed": verdict.allowed, "verified": verdict.right,
        "cudnn_is": "causal" if case.causal else "full", "problems": problems,
        "first_call_s": first_call_s, "flex_setup_s": flex_setup_s,
    }


def agrees(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two bf16 results are near enough to come from the same mask."""
    return bool((one.float() - other.float()).abs().max() < 0.05 * max(
        1.0, float(other.float().abs().max())))


# -------------------------------------------------------------------------------------- parts


def run_ceilings() -> list[dict[str, Any]]:
    """Measure what this machine reaches: copy, and an 8192^3 bf16 matmul on random data."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**29, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
        a @ b
    copy_ms = statistics.median(cuda_ms(lambda: target.copy_(source), 10) for _ in range(5))
    matmul_ms = statistics.median(cuda_ms(lambda: a @ b, 10) for _ in range(5))
    return [
        {"label": "copy", "tb_per_s": 2 * source.numel() * 2 / copy_ms / 1e9},
        {"label": "matmul bf16 8192^3", "tflops": 2 * 8192**3 / matmul_ms / 1e9},
    ]


def run_check(deadline: float, modules: Path | None) -> list[dict[str, Any]]:
    """Hold every example and zoo pattern against float64; uninitialised outputs are NaN first."""
    import torch

    from attnc.runtime import inputs, trial

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    rows: list[dict[str, Any]] = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for job in check_jobs():
            label = f"{Path(job.pattern).stem} n={job.tokens} D={job.head_dim} {job.dtype}"
            if time.monotonic() > deadline:
                rows.append({"label": f"{label} left out: over time", "verified": None})
                continue
            try:
                made = compiled(job, modules)
                given = inputs.synthetic(
                    made.ir.heads or 4, job.tokens, job.tokens, job.head_dim, dtypes[job.dtype],
                    "cuda",
                )
                out = made.op(given.q, given.k, given.v)
                verdict = trial.verify(made.ir, out, given.q, given.k, given.v)
            except Exception as broken:  # it is reported as wrong, and the others are still run
                rows.append({"label": label, "verified": False, "problem": in_a_line(broken)})
                continue
            rows.append({"label": label, "error": verdict.error,
                         "error_allowed": verdict.allowed, "verified": verdict.right})
    finally:
        torch.use_deterministic_algorithms(False)
    return rows


def in_a_line(broken: Exception) -> str:
    """Say in one line what went wrong."""
    return f"{type(broken).__name__}: {' '.join(str(broken).split())[:200]}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the timed rows as a table."""
    head = ("case", "B,H,N,D", "density", "attnc ms", "TFLOP/s", "cuDNN ms", "flex ms",
            "vs cuDNN", "vs flex", "right")
    lines = [head]
    for row in rows:
        if "ms" not in row:
            lines.append((row["label"], *["-"] * 8, "NO"))
            continue
        ms = row["ms"]
        ours, cudnn, flex = ms["attnc"], ms.get("cudnn"), ms.get("flex")
        shape = f"{row['batch']},{row['heads']},{row['tokens']},{row['head_dim']}"
        lines.append((
            row["label"], shape, f"{row['density']:.2%}", f"{ours:.3f}",
            f"{row['tflops']['attnc']:.0f}",
            f"{cudnn:.3f} {row['cudnn_is']}" if cudnn else "-", f"{flex:.3f}" if flex else "-",
            f"{cudnn / ours:.2f}x" if cudnn else "-", f"{flex / ours:.2f}x" if flex else "-",
            "yes" if row["verified"] else "NO",
        ))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def machine() -> dict[str, Any]:
    """Return what results depend on."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": properties.name, "sms": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "python": platform.python_version(), "torch": torch.__version__,
        "triton": triton.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "attnc": attnc.__version__,
    }


def read_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, see --list")
    parser.add_argument("--seconds", type=float, default=450, help="stop starting cases after this")
    parser.add_argument("--list", action="store_true", help="list the parts and their cases")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="write the modules and end")
    parser.add_argument("--target", default="sm_90", choices=TARGETS, help="GPU of --prepare")
    parser.add_argument("--modules", type=Path, metavar="DIR", help="load what --prepare wrote")
    args = parser.parse_args(argv)
    args.parts = args.parts.split(",")
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for; exit 1 if a result is wrong."""
    args = read_args(argv)
    if args.list:
        for part, meaning in PARTS.items():
            print(f"{part:<9} {meaning}")
            for case in cases():
                if case.part == part:
                    print(f"          {case.label} {case.batch},{case.heads},{case.tokens}")
        return 0
    if args.prepare:
        prepare(args.prepare, args.parts, args.target)
        return 0
    try:
        import torch
    except ImportError:
        print("torch is not installed: nothing to measure")
        return 0
    if not torch.cuda.is_available() or torch.version.cuda is None:
        print("no NVIDIA GPU here: nothing to measure")
        return 0
    results: dict[str, Any] = {"machine": machine(), "parts": {}}
    stamp = results["machine"]["date"].replace(":", "").replace("+0000", "Z")
    name = results["machine"]["device"].replace(" ", "-")
    path = args.output / f"gpu-{name}-{stamp}.json"
    timed: list[dict[str, Any]] = []
    for part, deadline in deadlines(args.parts, time.monotonic(), args.seconds):
        rows: list[dict[str, Any]] = []
        results["parts"][part] = rows
        if part == "ceilings":
            rows += run_ceilings()
        elif part == "check":
            rows += run_check(deadline, args.modules)
        for case in (c for c in cases() if c.part == part):
            if time.monotonic() > deadline:
                print(f"left out, over time: {case.label} n={case.tokens}")
                continue
            try:
                rows.append(run_case(case, deadline, args.modules))
            except Exception as broken:  # it is reported as wrong, and the others are still run
                rows.append({"label": case.label, "verified": False, "problem": in_a_line(broken)})
            torch.cuda.empty_cache()
            print(f"{case.label} n={case.tokens}: {rows[-1].get('ms', rows[-1])}", flush=True)
            write(path, results)
        timed += rows if part in {c.part for c in cases()} else []
        write(path, results)
    print(f"wrote {path}")
    for row in results["parts"].get("ceilings", []):
        print(row)
    checked = [row for rows in results["parts"].values() for row in rows if "verified" in row]
    wrong = [row for row in checked if row["verified"] is False]
    left_out = sum(row["verified"] is None for row in checked)
    print(f"{len(checked) - left_out} checked, {left_out} left out, {len(wrong)} wrong")
    for row in wrong:
        print(f"  wrong: {row['label']}: {row.get('problem') or row['error']}")
    if timed:
        print(table(timed))
    return 1 if wrong else 0


def deadlines(parts: Sequence[str], start: float, seconds: float) -> list[tuple[str, float]]:
    """Share the time among the parts; what one leaves over, the next may use."""
    total = sum(SHARES[part] for part in parts)
    found, spent = [], 0
    for part in parts:
        spent += SHARES[part]
        found.append((part, start + seconds * spent / total))
    return found


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results so far, whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


if __name__ == "__main__":
    sys.exit(main())
