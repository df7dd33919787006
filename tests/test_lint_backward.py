"""Backward kernels compiled ahead of time: no spills, shared memory in the limit, wgmma async."""

from __future__ import annotations

from typing import Any

import pytest

from attnc.codegen.host_backward import kernels
from attnc.codegen.triton_backward import Kernel, emit_kernel
from attnc.compiler.driver import load_zoo
from attnc.compiler.ir.plan import TARGETS, Target
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.aot import Artifact, compile_kernel
from attnc.runtime.lint import lint


def artifact(name: str, target: Target, head_dim: int, kernel: Kernel, dtype: Any) -> Artifact:
    """Compile a backward kernel at the tile the plan picks."""
    plan = build_plan(
        load_zoo(name), head_dim=head_dim, target=target, dtype=dtype, backward=True
    )
    assert plan.backward is not None
    loop = kernels(plan.backward)[kernel]
    helpers, text = emit_kernel(loop, kernel)
    return compile_kernel("\n\n".join([*helpers, text]), loop, target, kernel)


@pytest.mark.parametrize("kernel", ["dq", "dkdv"])
def test_hopper(kernel: Kernel) -> None:
    """On Hopper both kernels keep their matrix instructions asynchronous."""
    found = artifact("streaming_llm", "sm_90", 64, kernel, "bf16")
    assert lint(found, "sm_90") == ()
    assert found.wgmma >= 8
    assert found.waits < found.wgmma / 2


CASES = [
    (kernel, target, head_dim, name)
    for kernel in ("dq", "dkdv")
    for target in TARGETS
    for head_dim in (64, 128)
    for name in ("causal", "streaming_llm")
]
SPILLS = {
    ("dkdv", "sm_90", 128, "streaming_llm"): 64,
    ("dkdv", "sm_100", 128, "causal"): 512,
    ("dkdv", "sm_100", 128, "streaming_llm"): 512,
}
"""Where registers are short: bytes that may go through local memory, until a smaller form."""


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "target", "head_dim", "name"), CASES)
def test_targets(kernel: Kernel, target: Target, head_dim: int, name: str) -> None:
    """Every target compiles both kernels clean, but for the spills that are listed."""
    found = artifact(name, target, head_dim, kernel, "bf16")
    allowed = SPILLS.get((kernel, target, head_dim, name), 0)
    assert found.spill_bytes <= allowed
    assert [text for text in lint(found, target) if not text.startswith("spills")] == []
