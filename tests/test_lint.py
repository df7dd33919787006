"""Kernels compiled ahead of time: no spills, shared memory in the limit, asynchronous wgmma."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attnc.codegen.module import emit_module
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.driver import load_text, load_zoo, zoo_names, zoo_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.plan import TARGETS, Target
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.tiles import candidates
from attnc.runtime import lint as linting
from attnc.runtime.aot import Artifact, compile_kernel, compile_kernels, kernel_source
from attnc.runtime.lint import lint, pick_tile

COMMON = ("causal", "window", "streaming_llm", "longformer", "dilated", "power_of_two")


def compiled(name: str, target: Target, head_dim: int, dtype: Any = "bf16") -> tuple[Any, str]:
    plan = build_plan(load_zoo(name), head_dim=head_dim, target=target, dtype=dtype).forward
    return plan, emit_kernel(plan)


def clean(artifact: Artifact | RuntimeError, target: Target) -> Artifact:
    assert isinstance(artifact, Artifact), artifact
    assert lint(artifact, target) == ()
    return artifact


@cache
def sm_90(names: tuple[str, ...]) -> dict[tuple[str, int], Artifact | RuntimeError]:
    """Compile patterns for D = 64 and 128, all in one process."""
    keys = [(name, d) for name in names for d in (64, 128)]
    jobs = [(*compiled(name, "sm_90", d), d) for name, d in keys]
    results = compile_kernels([(text, plan, "sm_90") for plan, text, _ in jobs])
    return dict(zip(keys, results, strict=True))


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_hopper(name: str, head_dim: int) -> None:
    """At the tile the plan picks, Hopper kernels are clean and use asynchronous wgmma."""
    artifact = clean(sm_90(COMMON)[name, head_dim], "sm_90")
    assert artifact.wgmma >= 8
    assert artifact.waits < artifact.wgmma / 2
    assert ".target sm_90a" in artifact.ptx
    assert "HGMMA" in artifact.sass


BEYOND = re.compile(r"^(?!#).*(\bon\b|\binput\b|\blayers\b)|^(score|attention|fn)\b", re.MULTILINE)
SEQUENCES = tuple(name for name in zoo_names() if not BEYOND.search(zoo_text(name)))
"""Patterns that have no space, no inputs, no layers and no score."""


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", SEQUENCES)
def test_hopper_whole_zoo(name: str, head_dim: int) -> None:
    """The same for every pattern of sequences that reads no data."""
    artifact = clean(sm_90((name,))[name, head_dim], "sm_90")
    assert artifact.waits < artifact.wgmma / 2


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target: Target) -> None:
    """Every target compiles the most common pattern clean, and fp32 too."""
    for dtype in ("bf16", "fp32"):
        plan, text = compiled("streaming_llm", target, 64, dtype)
        artifact = clean(compile_kernel(text, plan), target)
        assert artifact.registers > 0
        assert artifact.shared_bytes > 0
        assert artifact.binary


TERMS = {
    "documents": "attention a(input doc: int[n]) = softmax(dot, over: document(doc))",
    "graph": "pattern a(input edge: bool[n, n]) = { q -> k : edge[q][k] }",
    "grid": "pattern a on grid(y, x) = { q -> k : abs(q.y - k.y) <= 3 and abs(q.x - k.x) <= 3 }",
    "alibi": "attention a = softmax(dot + alibi_bias(8), over: causal)",
    "softcap": "attention a = softmax(softcap(dot, 50), over: causal)",
    "table": "attention a(input table: real[8, 32]) = "
    "softmax(dot + t5_bias(8, table), over: causal)",
    "sink": "attention a(input sink: real[8]) heads h: 8 = "
    "softmax(dot, over: sliding_window(512), sink: sink[h])",
}
"""What kernels read and add beside the products."""


def with_terms(target: Target, head_dim: int) -> dict[str, Artifact | RuntimeError]:
    """Compile a kernel of each kind at the tile the plan picks, all in one process."""
    plans = {
        name: build_plan(load_text(text), head_dim=head_dim, target=target).forward
        for name, text in TERMS.items()
    }
    jobs = [(emit_kernel(plan), plan, target) for plan in plans.values()]
    return dict(zip(plans, compile_kernels(jobs), strict=True))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_hopper_with_terms(head_dim: int) -> None:
    """Inputs, score terms and sinks keep Hopper's matrix instructions asynchronous."""
    for artifact in with_terms("sm_90", head_dim).values():
        assert clean(artifact, "sm_90").waits < 6


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("target", TARGETS)
def test_targets_with_terms(target: Target, head_dim: int) -> None:
    for artifact in with_terms(target, head_dim).values():
        clean(artifact, target)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("head_dim", [16, 64, 96, 128, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_every_first_choice(target: Target, head_dim: int, dtype: Any) -> None:
    """The first candidate of every target, dtype and head dim is clean for a four-piece plan."""
    plan, text = compiled("streaming_llm", target, head_dim, dtype)
    clean(compile_kernel(text, plan), target)


def test_written_module_compiles() -> None:
    """A whole module and its bare kernel give the same machine code."""
    plan = build_plan(load_zoo("causal"), head_dim=64)
    from_module, bare = compile_kernels(
        [(emit_module(plan), plan.forward, "sm_90"), (emit_kernel(plan.forward), plan.forward,
                                                      "sm_90")]
    )  # fmt: skip
    assert clean(from_module, "sm_90").sass == clean(bare, "sm_90").sass


def artifact(**facts: Any) -> Artifact:
    """An artifact without faults, with some facts changed."""
    sound = Artifact(
        target="sm_90", triton_version="", assembly="", sass="", binary=b"", registers=128,
        spill_bytes=0, shared_bytes=1024, wgmma=16, waits=2, seconds=0.0,
    )
    return replace(sound, **facts)


@pytest.mark.parametrize(
    ("facts", "target", "word"),
    [
        ({"spill_bytes": 8}, "sm_90", "spills"),
        ({"shared_bytes": 227 * 1024 + 1}, "sm_90", "shared memory"),
        ({"shared_bytes": 64 * 1024 + 1}, "gfx942", "shared memory"),
        ({"waits": 16}, "sm_90", "serialised"),
    ],
)
def test_findings(facts: dict[str, int], target: Target, word: str) -> None:
    """Each fault is found, and said."""
    (finding,) = lint(artifact(**facts), target)
    assert word in finding
    assert lint(artifact(), target) == ()


def test_serialised_wgmma_is_seen() -> None:
    """A kernel that writes q through registers into each product makes ptxas serialise: found."""
    plan, text = compiled("streaming_llm", "sm_90", 64)
    plan = replace(
        plan, warps=4, block_mask=replace(plan.block_mask, tiling=Tiling(128, 128)), stages=2
    )
    found = lint(compile_kernel(text, plan), "sm_90")
    assert any("serialised" in f or "spills" in f for f in found)


def test_pick_tile_steps_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile that lints is dropped with its reason, the next one is taken."""
    choices = candidates("sm_90", 64, 64, "bf16")
    seen: list[Tiling] = []

    def fake(plan: Any) -> tuple[str, ...]:
        seen.append(plan.tiling)
        return ("spills: 8 bytes",) if len(seen) == 1 else ()

    monkeypatch.setattr(linting, "lint_plan", fake)
    tile, notes = pick_tile(load_zoo("causal"), head_dim=64)
    assert seen == [choices[0].tiling, choices[1].tiling]
    assert tile == choices[1].tiling
    assert notes == (f"tile {choices[0].tiling} dropped: spills: 8 bytes",)
    monkeypatch.setattr(linting, "lint_plan", lambda plan: ("spills: 8 bytes",))
    with pytest.raises(RuntimeError, match="no candidate tile"):
        pick_tile(load_zoo("causal"), head_dim=64)


def test_a_plan_of_many_pieces_steps_down() -> None:
    """Six bands with arithmetic on every pair: the best tile spills, the next is taken."""
    bands = " | ".join(
        f"{{ q -> k : {400 * i} <= q - k and q - k < {400 * i + 150} and (q - k) mod {m} < 3 }}"
        for i, m in enumerate((5, 7, 11, 13, 17, 19))
    )
    tile, notes = pick_tile(load_text(f"pattern bands = {bands}"), head_dim=64)
    tilings = [choice.tiling for choice in candidates("sm_90", 64, 64, "bf16")]
    assert tile in tilings[1:]
    assert len(notes) == tilings.index(tile)
    assert notes[0].startswith("tile 128x128 dropped: spills: ")


def test_refused_kernel() -> None:
    """A kernel that triton refuses gives an error that names pattern, target and tile."""
    plan, text = compiled("causal", "sm_90", 64)
    broken = text.replace("tl.exp2", "tl.no_such_function").replace(
        "tl.math.exp2", "tl.no_such_function"
    )
    with pytest.raises(RuntimeError, match=r"`causal` for sm_90 \(tile 128x128"):
        compile_kernel(broken, plan)
    with pytest.raises(ValueError, match="no Triton kernel"):
        kernel_source("x = 1\n")


def test_without_triton(tmp_path: Path) -> None:
    """Without triton the error says what to install."""
    program = """
import sys
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.driver import load_zoo
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime import aot
plan = build_plan(load_zoo("causal"), head_dim=64).forward
try:
    aot.compile_kernel(emit_kernel(plan), plan)
except RuntimeError as error:
    print(error)
assert "torch" not in sys.modules
"""
    # The worker is a child of the child: a sitecustomize on its path hides triton from both.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['triton'] = None\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'pip install "attnc[torch]"' in done.stdout


SPECIALISE = """
import importlib.util, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

spec = importlib.util.spec_from_file_location("kernel", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
kernel = module._attend
bind = create_function_from_signature(
    kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32))
)
half, single, table = (torch.zeros(64, dtype=t) for t in (torch.half, torch.float, torch.int))
pointers = [half, half, half, half, single] + [table] * ("Order" in kernel.arg_names)
found = {
    str(bind(*pointers, 0.1, *[stride] * 9, length, length, 8, heads, batch, section,
             ALIGN=8, WIDE=False)[1])
    for length, stride, heads, batch, section in (
        (1, 1, 1, 1, 1), (16, 8, 2, 4, 8), (17, 1000, 3, 5, 7), (2**20, 2**40, 16, 1, 2)
    )
}
print(len(found))
"""


def test_one_kernel_for_every_length(tmp_path: Path) -> None:
    """The JIT sees one signature whatever the lengths, strides, heads and batch are."""
    _, text = compiled("streaming_llm", "sm_90", 64)
    path = tmp_path / "kernel.py"
    path.write_text(kernel_source(text), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SPECIALISE, str(path)], capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_head_dim_out_of_range() -> None:
    """Head dims past 256 have no tile."""
    with pytest.raises(ValueError, match="head_dim is 300"):
        candidates("sm_90", 300, 64, "bf16")
