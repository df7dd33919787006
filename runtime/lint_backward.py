"""backward plan -> its kernels compiled ahead of time, at the first tiles that are clean."""

from __future__ import annotations

from collections.abc import Callable

from attnc.codegen.host_backward import kernels
from attnc.codegen.triton_backward import Kernel, emit_kernel
from attnc.codegen.triton_learned import LEARNED_HELPERS
from attnc.compiler.ir.plan import BackwardPlan, ForwardPlan, LoopPlan
from attnc.compiler.passes.build_backward import build_backward
from attnc.compiler.passes.tiles import TileChoice
from attnc.compiler.passes.tiles_backward import Pass, candidates
from attnc.runtime.aot import compile_kernel
from attnc.runtime.lint import lint


def lint_kernel(loop: LoopPlan, kernel: Kernel) -> tuple[str, ...]:
    """Compile one kernel of a backward ahead of time and lint it."""
    helpers, text = emit_kernel(loop, kernel)
    helpers += [LEARNED_HELPERS] if kernel == "learned" else []
    artifact = compile_kernel("\n\n".join([*helpers, text]), loop, loop.target, kernel)
    return lint(artifact, loop.target)


def lint_backward(plan: BackwardPlan) -> tuple[str, ...]:
    """Return what is wrong with the kernels of a backward, each finding behind its kernel."""
    return tuple(
        f"{kernel}: {finding}"
        for kernel, loop in kernels(plan).items()
        for finding in lint_kernel(loop, kernel)
    )


def clean_backward(forward: ForwardPlan) -> tuple[BackwardPlan, tuple[str, ...]]:
    """Plan the backward of a forward at the first tiles that compile clean.

    Where no tile makes dK and dV at once, they get passes of their own.
    Returns: the plan, and a note on each tile that was dropped.
    Raises: RuntimeError if triton is missing or a kernel has no clean tile.
    """
    dropped: list[str] = []
    both = _candidates(forward, "dkdv")[0]

    def first(kernel: Pass, build: Callable[[TileChoice], LoopPlan | None]) -> TileChoice | None:
        for choice in _candidates(forward, kernel):
            loop = build(choice)
            assert loop is not None
            findings = lint_kernel(loop, kernel)
            if not findings:
                return choice
            dropped.append(f"{kernel}: tile {choice.tiling} dropped: {'; '.join(findings)}")
        return None

    dq = first("dq", lambda c: build_backward(forward, choices=(c, both)).dq)
    if dq is not None:
        dkdv = first("dkdv", lambda c: build_backward(forward, choices=(dq, c)).dkdv)
        if dkdv is not None:
            return build_backward(forward, choices=(dq, dkdv)), tuple(dropped)
        dv = first("dv", lambda c: build_backward(forward, choices=(dq, c, both)).dkdv)
        dk = first("dk", lambda c: build_backward(forward, choices=(dq, both, c)).dk)
        if dv is not None and dk is not None:
            return build_backward(forward, choices=(dq, dv, dk)), tuple(dropped)
    name = forward.block_mask.pattern.name
    raise RuntimeError(
        f"no tiles of the backward of `{name}` compile clean for {forward.target}:\n"
        + "\n".join(dropped)
    )


def _candidates(forward: ForwardPlan, kernel: Pass) -> tuple[TileChoice, ...]:
    return candidates(
        kernel, forward.target, forward.head_dim, forward.value_dim, forward.dtype
    )
