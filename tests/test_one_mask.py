"""One mask at every level: the oracle, the pattern IR, the block masks, and what a written module
really attends to, by its CPU executor and by its Triton kernel (interpreted where there is no GPU).

V = identity turns the output into the attention weights: a pair is attended when its weight is not
zero. Modules are written, loaded and called as users do.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from attnc.codegen.module import emit_module
from attnc.compiler import driver
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Plan
from attnc.compiler.passes.build_plan import build_plan
from attnc.dsl.diagnostics import CompileError
from attnc.runtime.build import load_text
from tests import kernels as kn
from tests.strategies import patterns

_spec = importlib.util.spec_from_file_location(
    "conformance_cases", Path(__file__).parent / "test_conformance.py"
)
assert _spec is not None
assert _spec.loader is not None
conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conformance)


def written(pattern: Pattern, nk: int, tile: Tiling, cpu_tile: Tiling) -> tuple[Plan, ModuleType]:
    """Compile a pattern to a module whose value dim holds an identity of ``nk`` keys."""
    plan = build_plan(
        pattern, head_dim=16, value_dim=min(256, max(16, nk)), dtype="fp32", tile=tile,
        cpu_tile=cpu_tile,
    )
    return plan, load_text(emit_module(plan), Path(f"{pattern.name}.py"))


def attended(module: ModuleType, pattern: Pattern, nq: int, nk: int) -> dict[str, Any]:
    """Return the pairs with a weight, by the CPU executor and by the kernel."""
    heads = pattern.heads or 1
    q, k = torch.zeros(1, heads, nq, 16), torch.zeros(1, 1, nk, 16)
    v = torch.eye(nk, module.VALUE_DIM)[None, None]
    by_cpu, lse_cpu = module.op(q, k, v, return_lse=True)
    kn.skip_without_interpreter()
    by_kernel = torch.full((1, heads, nq, module.VALUE_DIM), math.nan, device=kn.DEVICE)
    lse_kernel = torch.full((1, heads, nq), math.nan, device=kn.DEVICE)
    on_device = [t.to(kn.DEVICE) for t in (q, k, v)]
    module._gpu_forward(*on_device, 1.0, by_kernel, lse_kernel)
    torch.testing.assert_close(lse_cpu, lse_kernel.cpu(), atol=1e-5, rtol=1e-5)
    return {
        "CPU executor": by_cpu[0, :, :, :nk].numpy() > 0,
        "Triton kernel": by_kernel[0, :, :, :nk].cpu().numpy() > 0,
    }


@settings(max_examples=25, deadline=None)
@example("pattern p = { q -> k : true }\n", 3, 97, Tiling(32, 64), Tiling(16, 16))
@example("pattern p = { q -> k : false }\n", 5, 7, Tiling(32, 32), Tiling(32, 32))
@given(
    text=patterns(), nq=st.integers(1, 200), nk=st.integers(1, 200),
    tile=st.sampled_from([Tiling(32, 32), Tiling(64, 32), Tiling(32, 64), Tiling(128, 64)]),
    cpu_tile=st.sampled_from([Tiling(32, 32), Tiling(16, 16), Tiling(64, 16)]),
)
def test_random_patterns(text: str, nq: int, nk: int, tile: Tiling, cpu_tile: Tiling) -> None:
    """Six forms of a random pattern keep the same pairs, at any lengths and tiles."""
    try:
        pattern, oracle = driver.open_text(text)
    except CompileError:
        assume(False)
    meaning = oracle(nq, nk)
    plan, module = written(pattern, nk, tile, cpu_tile)
    forms = {
        "pattern IR": pattern.mask(nq, nk),
        "block mask": plan.forward.block_mask.dense(nq, nk),
        "CPU block mask": plan.cpu.block_mask.dense(nq, nk),
        **attended(module, pattern, nq, nk),
    }
    for name, kept in forms.items():
        assert (kept == meaning).all(), name


@pytest.mark.parametrize(
    ("case", "name", "params"), conformance.SEQUENCES, ids=[c[0] for c in conformance.SEQUENCES]
)
def test_published_masks(case: str, name: str, params: dict[str, Any]) -> None:
    """Modules of the published one-dimensional patterns attend to the published masks."""
    data = np.load(Path(__file__).parent / "conformance" / "static" / f"{case}.npz")["data"]
    published = data if data.ndim == 3 else data[None]
    given_params = {key: value for key, value in params.items() if key != "n"}
    n = params["n"]
    pattern = driver.load_zoo(name, given_params)
    _, module = written(pattern, n, Tiling(64, 32), Tiling(32, 32))
    for form, kept in attended(module, pattern, n, n).items():
        assert (kept == published).all(), form
