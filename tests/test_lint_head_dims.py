"""Kernels of wide and of odd head dims, compiled ahead of time for every target."""

from __future__ import annotations

import pytest

from attnc.codegen.host_backward import kernels
from attnc.codegen.triton_backward import emit_kernel as emit_backward
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.driver import load_zoo
from attnc.compiler.ir.plan import TARGETS, Target
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.aot import Artifact, compile_kernel
from attnc.runtime.lint import lint

CONSUMER_BYTES = 99 * 1024
"""Shared memory of a program on sm_86 and sm_89, which run the kernels of sm_80."""


def compiled(head_dim: int, target: Target) -> dict[str, Artifact]:
    """Compile the forward, dQ, and dK and dV at the tiles that the plan picks."""
    plan = build_plan(load_zoo("streaming_llm"), head_dim=head_dim, target=target, backward=True)
    assert plan.backward is not None
    found = {"forward": compile_kernel(emit_kernel(plan.forward), plan.forward)}
    for kernel, loop in kernels(plan.backward).items():
        helpers, text = emit_backward(loop, kernel)
        found[kernel] = compile_kernel("\n\n".join([*helpers, text]), loop, target, kernel)
    return found


def test_wide_heads_on_small_gpus() -> None:
    """pytorch/pytorch#198224, #180278, #133254: no room in shared memory for wide heads.

    They came up on sm_86 and sm_89, which have 99 KiB instead of the 163 of sm_80, and at sm_120.
    """
    for kernel, artifact in compiled(256, "sm_80").items():
        assert lint(artifact, "sm_80") == ()
        assert artifact.shared_bytes <= CONSUMER_BYTES, kernel


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [72, 80, 96, 160, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_clean(target: Target, head_dim: int) -> None:
    """No spills, shared memory in the limit, asynchronous wgmma."""
    for kernel, artifact in compiled(head_dim, target).items():
        assert lint(artifact, target) == (), kernel
