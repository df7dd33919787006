"""Routed plan -> its kernels compiled ahead of time, and what is wrong with them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attnc.codegen.routes import triton_routes as kernels
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.runtime import aot
from attnc.runtime.aot import Artifact
from attnc.runtime.lint import lint

KERNELS: dict[kernels.Kernel, tuple[str, tuple[str, ...]]] = {
    "forward": ("_attend_selected", kernels.FORWARD), "dq": ("_selected_dq", kernels.DQ),
    "dkdv": ("_selected_dkdv", kernels.DKDV),
}  # fmt: skip
"""The kernels of a module: their names, and what they take in front of the strides."""


def compile_routed_kernels(plan: RoutedPlan) -> dict[str, Artifact | RuntimeError]:
    """Compile what runs a plan's routes for its target, without a GPU.

    Raises: RuntimeError when triton is missing; ValueError where the plan has no kernels.
    """
    why = kernels.refuses(plan)
    if why:
        raise ValueError(why)
    with tempfile.TemporaryDirectory(prefix="attnc-aot-") as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(aot.kernel_source(kernels.emit_gpu(plan)), encoding="utf-8")
        jobs: list[dict[str, object]] = []
        for kernel, (name, given) in KERNELS.items():
            *_, warps, stages = kernels.tile(plan, kernel)
            signature = {n: kernels.KINDS.get(n, f"*{plan.dtype}") for n in given}
            jobs.append({
                "path": str(path), "name": name, "constexprs": {},
                "signature": {**signature, **dict(kernels.PARAMETERS)},
                "aligned": [n for n, kind in signature.items() if kind.startswith("*")],
                "target": aot.GPUS[plan.target],
                "options": {"num_warps": warps, "num_stages": stages},
            })  # fmt: skip
        answer = aot.ask_worker(jobs)
    what = f"the routes of `{plan.routed.name}`"
    return {
        name: aot.artifact(str(answer["triton"]), what, plan.target, found)
        for (name, _), found in zip(KERNELS.values(), answer["results"], strict=True)
    }


def lint_routed(plan: RoutedPlan) -> tuple[str, ...]:
    """Return what is wrong with the kernels of a plan's routes; () when nothing is.

    Raises: RuntimeError when triton is missing or refuses a kernel.
    """
    findings: list[str] = []
    for name, found in compile_routed_kernels(plan).items():
        if isinstance(found, RuntimeError):
            raise found
        findings += (f"{name}: {finding}" for finding in lint(found, plan.target))
    return tuple(findings)
