"""What ``gpu.py`` runs, and its modules: written where the compiler is, loaded where a GPU is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnc

if TYPE_CHECKING:
    from attnc.compiler.ir.pattern import Pattern as PatternIR

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "ceilings": "copy bandwidth and bf16 matmul rate of this machine",
    "check": "every example and many zoo patterns against float64",
    "dense": "causal and full attention: the generated kernel without sparsity",
    "window": "sliding windows, 2k to 32k tokens",
    "patterns": "the examples and sparse zoo patterns at 16k and 32k tokens",
}
VARIANTS = (("bf16", 128, 2048), ("bf16", 64, 1023), ("fp32", 64, 515), ("fp16", 72, 257))
"""What is checked of each pattern: dtype, head dim, tokens."""
MANIFEST = "manifest.json"


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

    def job(self) -> Job:
        """What is compiled for it."""
        return Job(self.pattern, tuple(self.params.items()), self.head_dim, "bf16", self.tokens)


@dataclass(frozen=True)
class Job:
    """A pattern to compile, and the length at which its pairs are counted."""

    pattern: str
    params: tuple[tuple[str, int], ...]
    head_dim: int
    dtype: str
    tokens: int

    @property
    def key(self) -> str:
        """Its name in a folder of modules."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{Path(self.pattern).stem}_{self.head_dim}_{self.dtype}_{digest}"

    def load(self) -> PatternIR:
        """Load the pattern: a file of this repository, or a zoo name."""
        params = dict(self.params)
        if self.pattern.endswith(".attn"):
            return attnc.load(ROOT / self.pattern, **params).ir
        return attnc.zoo[self.pattern](**params).ir


@dataclass(frozen=True)
class Compiled:
    """A job done: the op, and what is known of it without running it."""

    op: Callable[..., Any]
    ir: PatternIR
    tile: str
    pairs: int


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


def check_jobs() -> list[Job]:
    """Return what the ``check`` part runs: every example, and the zoo with its defaults."""
    examples = [str(p.relative_to(ROOT)) for p in (ROOT / "examples").glob("*/*.attn")]
    zoo = [p.stem for p in (ROOT / "dsl" / "stdlib").glob("*.attn")]
    return [Job(name, (), head_dim, dtype, tokens) for dtype, head_dim, tokens in VARIANTS
            for name in (*sorted(examples), *sorted(zoo))]


# ------------------------------------------------------------------------------------- modules


def jobs(parts: Sequence[str]) -> list[Job]:
    """Return all that the parts compile."""
    timed = [case.job() for case in cases() if case.part in parts]
    return list(dict.fromkeys([*timed, *(check_jobs() if "check" in parts else ())]))


def prepare(folder: Path, parts: Sequence[str], target: Any) -> None:
    """Write the module of every job, and a manifest with all that needs the compiler."""
    from attnc.codegen.module import emit_module
    from attnc.compiler.counts import pairs_kept
    from attnc.compiler.ir.show import show
    from attnc.compiler.passes.build_plan import build_plan

    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for job in jobs(parts):
        ir = job.load()
        plan = build_plan(ir, head_dim=job.head_dim, dtype=job.dtype, target=target)  # type: ignore[arg-type]
        mask = plan.forward.block_mask
        (folder / f"{job.key}.py").write_text(emit_module(plan), encoding="utf-8")
        entries[job.key] = {
            "pattern": show(ir), "tile": str(plan.forward.tiling),
            "pairs": pairs_kept(mask, job.tokens, job.tokens),
        }
    record = {"attnc": attnc.__version__, "target": target, "jobs": entries}
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {len(entries)} modules for {target} to {folder}")


def compiled(job: Job, modules: Path | None) -> Compiled:
    """Compile a job, or load what ``prepare`` wrote for it."""
    from attnc.runtime import build

    if modules is None:
        import torch

        from attnc.compiler.counts import pairs_kept

        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        op = attnc.compile(
            attnc.Pattern(job.load()), head_dim=job.head_dim, dtype=dtypes[job.dtype]
        )
        forward = op.plan.forward
        pairs = pairs_kept(forward.block_mask, job.tokens, job.tokens)
        return Compiled(op, forward.block_mask.pattern, str(forward.tiling), pairs)
    from attnc.compiler.ir.pattern import Pattern
    from attnc.compiler.ir.read import read

    entry = json.loads((modules / MANIFEST).read_text(encoding="utf-8"))["jobs"][job.key]
    ir = read(entry["pattern"])
    assert isinstance(ir, Pattern)
    module = build.load_module(modules / f"{job.key}.py")
    return Compiled(module.op, ir, entry["tile"], entry["pairs"])
