"""kernel source + its plan -> machine code, ahead of time and without a GPU."""

from __future__ import annotations

import ast
import base64
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from attnc.codegen import triton_backward as backward
from attnc.codegen import triton_forward as forward
from attnc.codegen.learned import measured
from attnc.codegen.triton_parts import part_loop, part_parameters
from attnc.compiler.ir.plan import ForwardPlan, LoopPlan, Plan, Target

GPUS: dict[Target, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_SECONDS = 300
Kernel = Literal["forward"] | backward.Kernel
"""Which kernel of a source text: of the forward, or the backward one that makes this."""

_INSTALL = 'install it with `pip install "attnc[torch]"` (triton 3.6 to 3.9, Linux)'


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A compiled kernel and what the assembler reported.

    ``assembly`` is PTX for NVIDIA and GCN assembly for AMD; ``sass`` is the disassembled machine
    code (for AMD the same as ``assembly``). ``wgmma`` counts Hopper's asynchronous matrix
    instructions, ``waits`` the waits for them: as many waits as products means that they run one
    after the other.
    """

    target: Target
    triton_version: str
    assembly: str
    sass: str
    binary: bytes
    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: int
    waits: int
    seconds: float

    @property
    def ptx(self) -> str:
        """The assembly text."""
        return self.assembly


def compile_kernel(
    source_text: str, plan: LoopPlan, target: Target | None = None, kernel: Kernel = "forward"
) -> Artifact:
    """Compile one kernel in a source text (a written module, or the bare kernel).

    Args:
        target: the plan's own when not given.
    Raises: RuntimeError when triton is missing or refuses the kernel.
    """
    (result,) = compile_kernels([(source_text, plan, target or plan.target)], kernel)
    if isinstance(result, RuntimeError):
        raise result
    return result


def compile_plan(plan: Plan) -> Artifact:
    """Compile the forward of a plan: one kernel, or those of its parts, taken together.

    Of parts, texts and counts are those of all of them, registers and shared memory the most.
    Raises: RuntimeError when triton is missing or refuses a kernel.
    """
    from attnc.codegen.module import emit_module

    text = emit_module(plan)
    if not plan.parts:
        return compile_kernel(text, plan.forward)
    loops = [part_loop(part, plan.forward) for part in plan.parts]
    found = compile_named(text, [
        (f"{forward.KERNEL}_{number}", part_parameters(plan, number), loop)
        for number, loop in enumerate(loops, start=1)
    ])
    return replace(
        found[0],
        assembly="\n".join(a.assembly for a in found), sass="\n".join(a.sass for a in found),
        registers=max(a.registers for a in found), spill_bytes=sum(a.spill_bytes for a in found),
        shared_bytes=max(a.shared_bytes for a in found), wgmma=sum(a.wgmma for a in found),
        waits=sum(a.waits for a in found), seconds=sum(a.seconds for a in found),
    )


def compile_named(
    source_text: str, kernels: Sequence[tuple[str, Sequence[tuple[str, str]], LoopPlan]]
) -> list[Artifact]:
    """Compile kernels of one source text: the name, the run-time arguments and the loop of each.

    Raises: RuntimeError when triton is missing or refuses a kernel.
    """
    with tempfile.TemporaryDirectory(prefix="attnc-aot-") as folder:
        path = Path(folder) / "kernels.py"
        path.write_text(kernel_source(source_text), encoding="utf-8")
        answer = ask_worker(
            [_described(path, name, given, loop, loop.target) for name, given, loop in kernels]
        )
    found = []
    for (_, _, loop), result in zip(kernels, answer["results"], strict=True):
        one = _result(str(answer["triton"]), loop, loop.target, result)
        if isinstance(one, RuntimeError):
            raise one
        found.append(one)
    return found


def compile_kernels(
    jobs: Sequence[tuple[str, LoopPlan, Target]], kernel: Kernel = "forward"
) -> list[Artifact | RuntimeError]:
    """Compile several kernels in one process; one that fails gives its error in its place.

    Raises: RuntimeError when triton is missing or the compiling process dies.
    """
    with tempfile.TemporaryDirectory(prefix="attnc-aot-") as folder:
        descriptions = []
        for number, (text, plan, target) in enumerate(jobs):
            path = Path(folder) / f"kernel_{number}.py"
            path.write_text(kernel_source(text), encoding="utf-8")
            descriptions.append(_job(path, plan, target, kernel))
        answer = ask_worker(descriptions)
    version = str(answer["triton"])
    return [
        _result(version, plan, target, found)
        for (_, plan, target), found in zip(jobs, answer["results"], strict=True)
    ]


def _result(
    version: str, plan: LoopPlan, target: Target, found: dict[str, Any]
) -> Artifact | RuntimeError:
    tile = f"tile {plan.tiling}, {plan.warps} warps, {plan.stages} stages"
    what = f"the kernel of `{plan.block_mask.pattern.name}` for {target} ({tile})"
    return artifact(version, what, target, found)


def artifact(
    version: str, what: str, target: Target, found: dict[str, Any]
) -> Artifact | RuntimeError:
    """Return what the worker answered for one kernel, ``what`` in words."""
    if "error" in found:
        wrong = found["error"]
        return RuntimeError(f"triton {version} cannot compile {what}: {wrong}")
    sass = found["sass"]
    return Artifact(
        target=target,
        triton_version=version,
        assembly=found["assembly"],
        sass=sass,
        binary=base64.b64decode(found["binary"]),
        registers=found["registers"],
        spill_bytes=found["spill_bytes"],
        shared_bytes=found["shared_bytes"],
        wgmma=len(re.findall(r"\sHGMMA\.", sass)),
        waits=len(re.findall(r"\sWARPGROUP\.DEPBAR", sass)),
        seconds=found["seconds"],
    )


def kernel_source(text: str) -> str:
    """Cut the Triton functions out of a text, so that compiling them needs triton alone."""
    lines = text.splitlines(keepends=True)
    functions = [
        "".join(lines[min(d.lineno for d in node.decorator_list) - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and any(map(_is_jit, node.decorator_list))
    ]
    if not functions:
        raise ValueError("the source text holds no Triton kernel")
    head = "import triton\nimport triton.language as tl\n"
    return "\n\n".join([head, *functions])


def _is_jit(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function) == "triton.jit"


def _job(path: Path, plan: LoopPlan, target: Target, kernel: Kernel) -> dict[str, object]:
    if kernel == "forward":
        assert isinstance(plan, ForwardPlan)
        name, given = forward.KERNEL, forward.parameters(plan)
    else:
        name, given = backward.KERNELS[kernel], backward.parameters(plan, kernel)
    return _described(path, name, given, plan, target)


def _described(
    path: Path, name: str, given: Sequence[tuple[str, str]], plan: LoopPlan, target: Target
) -> dict[str, object]:
    """Describe a kernel as the JIT would see it: aligned pointers, contiguous head dims."""
    signature: dict[str, str] = {}
    for argument, kind in given:
        signature[argument] = f"*{plan.dtype}" if kind == "*" else kind
    item_bytes = _ITEM_BYTES[plan.dtype]
    constexprs = {
        "ALIGN": math.gcd(16 // item_bytes, plan.head_dim, plan.value_dim),
        "WIDE": False,
    }
    if name == backward.KERNELS["learned"] and measured(plan):
        constexprs["MEASURE"] = False
    return {
        "path": str(path),
        "name": name,
        "signature": {**signature, **dict.fromkeys(constexprs, "constexpr")},
        "constexprs": constexprs,
        "aligned": [n for n, kind in given if kind.startswith("*")],
        "target": GPUS[target],
        "options": {"num_warps": plan.warps, "num_stages": plan.stages},
    }


def ask_worker(jobs: list[dict[str, object]]) -> dict[str, Any]:
    """Compile jobs in a process of its own. Raises: RuntimeError without triton."""
    worker = Path(__file__).with_name("aot_worker.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            [sys.executable, str(worker)],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            env=environment,
            timeout=_SECONDS * len(jobs),
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"ahead-of-time compilation took over {late.timeout} s") from late
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        tail = done.stderr.strip()[-2000:]
        raise RuntimeError(
            f"the ahead-of-time compiler ended with status {done.returncode}: {tail}"
        ) from None
    if "missing" in answer:
        raise RuntimeError(
            f"ahead-of-time compilation needs triton ({answer['missing']}); {_INSTALL}"
        )
    return answer
