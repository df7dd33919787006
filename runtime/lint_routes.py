"""Routed plan -> its kernels compiled ahead of time, and what is wrong with them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from attnc.codegen.routes import gpu_attend as kernels
from attnc.codegen.routes.triton_rows import RowKernel
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.runtime import aot
from attnc.runtime.aot import Artifact
from attnc.runtime.lint import lint

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def compile_routed_kernels(
    plans: Sequence[RoutedPlan],
) -> list[dict[str, Artifact | RuntimeError]]:
    """Compile what runs the routes of plans, in one process: for each plan by kernel name.

    Raises: RuntimeError when triton is missing; ValueError where a plan has no kernels.
    """
    for plan in plans:
        if why := kernels.refuses(plan):
            raise ValueError(why)
    jobs, owners = [], []
    with tempfile.TemporaryDirectory(prefix="attnc-aot-") as folder:
        for number, plan in enumerate(plans):
            path = Path(folder) / f"kernels_{number}.py"
            path.write_text(aot.kernel_source(kernels.emit_gpu(plan)), encoding="utf-8")
            for kernel in (*kernels.forward_kernels(plan), *kernels.backward_kernels(plan)):
                jobs.append(_job(path, kernel, plan))
                owners.append((number, kernel.name))
        answer = aot.ask_worker(jobs)
    found: list[dict[str, Artifact | RuntimeError]] = [{} for _ in plans]
    for (number, name), result in zip(owners, answer["results"], strict=True):
        plan = plans[number]
        what = f"{name} of `{plan.routed.name}` for {plan.target}"
        found[number][name] = aot.artifact(str(answer["triton"]), what, plan.target, result)
    return found


def _job(path: Path, kernel: kernels.AnyKernel, plan: RoutedPlan) -> dict[str, object]:
    """Describe a kernel as the JIT would see it: aligned pointers, contiguous head dims."""
    signature = {
        one.name: f"*{plan.dtype}" if one.kind == "*" else one.kind for one in kernel.given()
    }
    align = math.gcd(16 // _ITEM_BYTES[plan.dtype], plan.head_dim, plan.value_dim)
    constexprs: dict[str, object] = {"ALIGN": align}
    if isinstance(kernel, RowKernel):
        constexprs["WIDE"] = False
    return {
        "path": str(path),
        "name": kernel.name,
        "signature": {**signature, **dict.fromkeys(constexprs, "constexpr")},
        "constexprs": constexprs,
        "aligned": [n for n, kind in signature.items() if kind.startswith("*")],
        "target": aot.GPUS[plan.target],
        "options": {"num_warps": kernel.sides.warps, "num_stages": kernel.sides.stages},
    }


def lint_routed(plan: RoutedPlan) -> tuple[str, ...]:
    """Return what is wrong with the kernels of a plan's routes; () when nothing is.

    Raises: RuntimeError when triton is missing or refuses a kernel.
    """
    findings: list[str] = []
    for name, found in compile_routed_kernels([plan])[0].items():
        if isinstance(found, RuntimeError):
            raise found
        findings += (f"{name}: {finding}" for finding in lint(found, plan.target))
    return tuple(findings)
