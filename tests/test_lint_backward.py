"""Backward kernels compiled ahead of time: no spills, shared memory in the limit, wgmma async."""

from __future__ import annotations

import re
from typing import Any

import pytest

from attnc.codegen.host_backward import kernels
from attnc.codegen.triton_backward import Kernel, emit_kernel
from attnc.compiler.driver import load_text, load_zoo, zoo_names
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import TARGETS, LoopPlan, Target
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.tiles_backward import candidates
from attnc.runtime import lint_backward as linting
from attnc.runtime.aot import Artifact, compile_kernel
from attnc.runtime.lint import lint
from attnc.runtime.lint_backward import clean_backward, lint_backward

GIVEN = {
    **{name: {"heads": 8} for name in ("bigbird", "block_mask", "nats", "vertical_slash")},
    "interleaved_layers": {"layer": 0},
}
"""Parameters of patterns that have no default for them."""
SPILLS = {
    ("nats", "sm_100", "dkdv", 128): 16,
    ("block_mask", "sm_100", "dq", 128): 8,
    ("global_tokens", "sm_100", "dq", 128): 8,
}
"""Where the assembler keeps to 128 registers, for two programs a processor: bytes it spills."""
NO_MASK = {"softcap"}
"""Zoo items that are functions of scores."""


def artifact(
    pattern: Pattern, target: Target, head_dim: int, kernel: Kernel
) -> Artifact:
    """Compile a backward kernel at the tile the plan picks."""
    plan = build_plan(pattern, head_dim=head_dim, target=target, backward=True)
    assert plan.backward is not None
    loop = kernels(plan.backward)[kernel]
    helpers, text = emit_kernel(loop, kernel)
    return compile_kernel("\n\n".join([*helpers, text]), loop, target, kernel)


@pytest.mark.parametrize("kernel", ["dq", "dkdv"])
def test_hopper(kernel: Kernel) -> None:
    """On Hopper both kernels keep their matrix instructions and their loads asynchronous."""
    found = artifact(load_zoo("streaming_llm"), "sm_90", 64, kernel)
    assert lint(found, "sm_90") == ()
    assert found.wgmma >= 8
    assert found.waits < found.wgmma / 2
    assert "LDGSTS" in found.sass


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kernel", ["dq", "dkdv"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in zoo_names() if name not in NO_MASK])
def test_whole_zoo(name: str, target: Target, kernel: Kernel, head_dim: int) -> None:
    """Every target compiles both kernels of every pattern clean, at the tile the plan picks.

    But for a few bytes, listed, that the assembler spills of its own accord.
    """
    found = artifact(load_zoo(name, GIVEN.get(name, {})), target, head_dim, kernel)
    assert found.spill_bytes <= SPILLS.get((name, target, kernel, head_dim), 0)
    assert [text for text in lint(found, target) if not text.startswith("spills")] == []


def loop_of(text: str, **options: Any) -> tuple[LoopPlan, str]:
    """Plan the kernel of dK and dV of a text, and print it."""
    plan = build_plan(load_text(text), head_dim=64, backward=True, **options)
    assert plan.backward is not None
    return plan.backward.dkdv, emit_kernel(plan.backward.dkdv, "dkdv")[1]


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("pattern p = causal", "kv_heads"),
        ("kv_heads g: 2\npattern p = { q -> k, g : q - k <= g }", "kv_heads"),
        ("attention p(input sink: real[4]) heads h: 4 = "
         "softmax(dot, over: causal, sink: sink[h])", "kv_heads"),
        ("attention p = softmax(dot + alibi_bias(4), over: causal)", "heads"),
        ("heads h: 4\npattern p = { q -> k, h : q - k <= h }", "heads"),
    ],
)  # fmt: skip
def test_one_loop(text: str, heads: str) -> None:
    """A key tile has one loop: heads that see and add the same go through it, others are rows."""
    printed = loop_of(text)[1]
    assert len(re.findall(r"^ *for ", printed, re.MULTILINE)) == 1
    assert f"batch * {heads} - first_head" in printed


def fake_lint(monkeypatch: pytest.MonkeyPatch, clean: set[tuple[str, int]]) -> None:
    """Let a kernel be clean at the candidates named by kernel and place."""
    def fake(loop: LoopPlan, kernel: Kernel) -> tuple[str, ...]:
        choices = candidates(kernel, loop.target, loop.head_dim, loop.value_dim, loop.dtype)
        sides = [(c.q, c.k) if kernel == "dq" else (c.k, c.q) for c in choices]
        place = sides.index((loop.tiling.q, loop.tiling.k))
        return () if (kernel, place) in clean else ("spills: 8 bytes",)

    monkeypatch.setattr(linting, "lint_kernel", fake)


def test_clean_tiles_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel steps down on its own; dV and dK part where no tile makes both; or none does."""
    forward = build_plan(load_zoo("causal"), head_dim=128).forward
    fake_lint(monkeypatch, {("dq", 0), ("dkdv", 1)})
    plan, notes = clean_backward(forward)
    (dq, *_), (first, second, *_) = (
        candidates(kernel, "sm_90", 128, 128, "bf16") for kernel in ("dq", "dkdv")
    )
    assert (plan.dq.tiling, plan.dq.warps) == (dq.tiling, dq.warps)
    assert (plan.dkdv.tiling.k, plan.dkdv.tiling.q) == (second.q, second.k)
    assert notes == (f"dkdv: tile {first.tiling} dropped: spills: 8 bytes",)
    assert lint_backward(plan) == ()

    fake_lint(monkeypatch, {("dq", 1), ("dv", 0), ("dk", 1)})
    plan, notes = clean_backward(forward)
    assert plan.dk is not None
    assert len(notes) == 1 + len(candidates("dkdv", "sm_90", 128, 128, "bf16")) + 1

    fake_lint(monkeypatch, {("dq", 1), ("dv", 0)})
    with pytest.raises(RuntimeError, match=r"no tiles of the backward of `causal`"):
        clean_backward(forward)
