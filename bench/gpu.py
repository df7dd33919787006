"""NVIDIA GPU -> correctness and speed of generated kernels, beside cuDNN and FlexAttention.

    python bench/gpu.py                              all parts, under 8 minutes
    python bench/gpu.py --parts check,window         some parts
    python bench/gpu.py --list                       the parts and their cases

Random data, all kernels of a case in turns, medians; CUDA graphs where a call is short; buffers
larger than the L2 cache in total; TFLOP/s from exact pair counts. A table comes last, and a JSON
with device, versions and date goes to bench/results/. Without a GPU it says so and exits 0.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnc
from attnc.compiler.counts import pairs_kept

if TYPE_CHECKING:
    import torch

    from attnc.compiler.ir.pattern import Pattern as PatternIR

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PARTS = {
    "ceilings": "copy bandwidth and bf16 matmul rate of this machine",
    "check": "every example and many zoo patterns against float64",
    "dense": "causal and full attention: the generated kernel without sparsity",
    "window": "sliding windows, 2k to 32k tokens",
    "patterns": "the examples and sparse zoo patterns at 16k and 32k tokens",
}
L2_BYTES_TO_EXCEED = 192 * 2**20
GRAPH_BELOW_MS = 0.2
BLOCKS, WARM_UPS = 5, 10
SECONDS_PER_TIMING = 0.06


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pattern at one shape."""

    part: str
    pattern: str
    params: dict[str, int] = field(default_factory=dict)
    batch: int = 1
    heads: int = 16
    kv_heads: int | None = None
    tokens: int = 16384
    head_dim: int = 128
    causal: bool = True
    """Whether the pattern lies within causal attention: then causal cuDNN is what it replaces."""

    @property
    def label(self) -> str:
        """A short name for tables."""
        params = ",".join(f"{name}={value}" for name, value in self.params.items())
        return f"{Path(self.pattern).stem}({params})"

    def load(self) -> attnc.Pattern:
        """Load the pattern: a file of this repository, or a zoo name."""
        if self.pattern.endswith(".attn"):
            return attnc.load(ROOT / self.pattern, **self.params)
        return attnc.zoo[self.pattern](**self.params)


def cases() -> list[Case]:
    """Return the timed cases: shapes of published measurements first."""
    found = [
        Case(part="dense", pattern="bench/full.attn", heads=16, tokens=16384, causal=False),
        Case(part="dense", pattern="causal", heads=16, tokens=16384),
        Case(part="dense", pattern="causal", batch=4, heads=48, tokens=4096),
        Case(part="dense", pattern="causal", batch=2, heads=64, kv_heads=8, head_dim=64,
             tokens=8192),
    ]
    for tokens in (2048, 4096, 8192, 16384, 32768):
        found.append(Case(part="window", pattern="sliding_window", params={"width": 1024}, batch=2,
                          heads=64, kv_heads=8, head_dim=64, tokens=tokens))
    found += [
        Case(part="window", pattern="sliding_window", params={"width": 2048}, heads=24,
             tokens=32768),
        Case(part="window", pattern="sliding_window", params={"width": 2048}, heads=1,
             tokens=32768),
    ]
    for tokens in (16384, 32768):
        found.append(Case(part="patterns", pattern="examples/longformer/longformer.attn",
                          params={"window": 512}, tokens=tokens, causal=False))
        for pattern, params in (
            ("examples/streaming_llm/streaming_llm.attn", {"sinks": 4, "recent": 2000}),
            ("examples/power_of_two/power_of_two.attn", {}),
        ):
            found.append(Case(part="patterns", pattern=pattern, params=params, tokens=tokens))
        found.append(Case(part="patterns", pattern="examples/s2_shards/s2_shards.attn",
                          params={"block": 64, "local": 8, "stride": 12}, heads=12, tokens=tokens))
    return found


def check_patterns() -> list[tuple[str, dict[str, int]]]:
    """Return what the ``check`` part runs: every example, and the zoo with its defaults."""
    examples = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "examples").glob("*/*.attn"))
    return [(name, {}) for name in (*examples, *attnc.zoo)]


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


def run_case(case: Case, deadline: float) -> dict[str, Any]:
    """Verify and time one case; a peer that fails is reported, not hidden."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from attnc.runtime import trial

    face = case.load()
    begun = time.perf_counter()
    op = attnc.compile(face, head_dim=case.head_dim, dtype=torch.bfloat16)
    sets = random_sets(case)
    out = op(*sets[0])
    torch.cuda.synchronize()
    first_call_s = time.perf_counter() - begun
    verdict = trial.verify(face.ir, out, *sets[0])
    grouped = (case.kv_heads or case.heads) != case.heads
    calls: dict[str, list[Callable[[], object]]] = {
        "attnc": [lambda s=s: op(*s) for s in sets],
        "cudnn": [lambda s=s: sdpa(*s, is_causal=case.causal, enable_gqa=grouped) for s in sets],
    }
    problems: dict[str, str] = {}
    begun = time.perf_counter()
    try:
        torch._dynamo.reset()
        mask = create_block_mask(
            mask_mod(face.ir, case.tokens), None, case.heads if face.heads else None,
            case.tokens, case.tokens, device="cuda", _compile=True,
        )
        flex = torch.compile(flex_attention, dynamic=False)
        flex_out = flex(*sets[0], block_mask=mask, enable_gqa=grouped)
        problems |= {} if agrees(flex_out, out) else {"flex": "differs from attnc"}
        calls["flex"] = [lambda s=s: flex(*s, block_mask=mask, enable_gqa=grouped) for s in sets]
    except Exception as broken:  # a peer may lack memory or support; the run goes on
        problems["flex"] = f"{type(broken).__name__}: {str(broken).splitlines()[0][:120]}"
    flex_setup_s = time.perf_counter() - begun
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        try:
            calls["cudnn"][0]()
        except RuntimeError as refused:
            problems["cudnn"] = str(refused).splitlines()[0][:120]
            del calls["cudnn"]
        ms = time_in_turns(calls, deadline)
    pairs = pairs_kept(op.plan.forward.block_mask, case.tokens, case.tokens)
    useful = flops(pairs, case, face.ir)
    return {
        **asdict(case), "label": case.label, "tile": str(op.plan.forward.tiling),
        "pairs_kept": pairs, "density": pairs / ((face.heads or 1) * case.tokens**2),
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


def run_check(deadline: float) -> list[dict[str, Any]]:
    """Hold every example and zoo pattern against float64; uninitialised outputs are NaN first."""
    import torch

    from attnc.runtime import inputs, trial

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    rows = []
    for name, params in check_patterns():
        face = Case(part="check", pattern=name, params=params).load()
        heads = face.heads or 4
        for dtype, head_dim, tokens in (
            (torch.bfloat16, 128, 2048), (torch.bfloat16, 64, 1023), (torch.float16, 72, 257),
            (torch.float32, 64, 515),
        ):
            if time.monotonic() > deadline:
                rows.append({"label": f"{name} left out: over time", "verified": None})
                continue
            made = inputs.synthetic(heads, tokens, tokens, head_dim, dtype, "cuda")
            op = attnc.compile(face, head_dim=head_dim, dtype=dtype)
            verdict = trial.verify(face.ir, op(made.q, made.k, made.v), made.q, made.k, made.v)
            rows.append({
                "label": f"{Path(name).stem} n={tokens} D={head_dim} {dtype}".replace("torch.", ""),
                "error": verdict.error, "error_allowed": verdict.allowed, "verified": verdict.right,
            })
    torch.use_deterministic_algorithms(False)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the timed rows as a table."""
    head = ("case", "B,H,N,D", "density", "attnc ms", "TFLOP/s", "cuDNN ms", "flex ms",
            "vs cuDNN", "vs flex", "right")
    lines = [head]
    for row in rows:
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
    try:
        import torch
    except ImportError:
        print("torch is not installed: nothing to measure")
        return 0
    if not torch.cuda.is_available() or torch.version.cuda is None:
        print("no NVIDIA GPU here: nothing to measure")
        return 0
    deadline = time.monotonic() + args.seconds
    results: dict[str, Any] = {"machine": machine(), "parts": {}}
    wrong, timed = [], []
    for part in args.parts:
        if part == "ceilings":
            rows = run_ceilings()
        elif part == "check":
            rows = run_check(deadline)
        else:
            rows = []
            for case in (c for c in cases() if c.part == part):
                if time.monotonic() > deadline:
                    print(f"left out, over time: {case.label} n={case.tokens}")
                    continue
                rows.append(run_case(case, deadline))
                print(f"{case.label} n={case.tokens}: {rows[-1]['ms']}", flush=True)
            timed += rows
        results["parts"][part] = rows
        wrong += [row["label"] for row in rows if row.get("verified") is False]
    args.output.mkdir(parents=True, exist_ok=True)
    stamp = results["machine"]["date"].replace(":", "").replace("+0000", "Z")
    name = results["machine"]["device"].replace(" ", "-")
    path = args.output / f"gpu-{name}-{stamp}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in results["parts"].get("ceilings", []):
        print(row)
    print(f"check: {len(wrong)} wrong" + "".join(f"\n  {label}" for label in wrong))
    if timed:
        print(table(timed))
    print(f"wrote {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
