"""compiled kernel -> performance bugs that need no GPU to see."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import ForwardPlan, Target
from attnc.compiler.passes.tiles import DType, candidates
from attnc.runtime.aot import Artifact, compile_kernel

SHARED_LIMIT_BYTES: dict[Target, int] = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
"""Shared memory one program may use; ahead-of-time compilation does not check it."""


def lint(artifact: Artifact, target: Target) -> tuple[str, ...]:
    """Return what is wrong with a compiled kernel; () when nothing is."""
    findings = []
    if artifact.spill_bytes:
        findings.append(
            f"spills: {artifact.spill_bytes} bytes of registers go through local memory "
            f"({artifact.registers} registers in use)"
        )
    limit = SHARED_LIMIT_BYTES[target]
    if artifact.shared_bytes > limit:
        findings.append(
            f"shared memory: {artifact.shared_bytes} bytes needed, {target} has {limit}"
        )
    if serialised(artifact):
        findings.append(
            f"serialised wgmma: {artifact.waits} waits for {artifact.wgmma} matrix instructions, "
            "so loads and products do not overlap"
        )
    return tuple(findings)


def serialised(artifact: Artifact) -> bool:
    """Whether the assembler made Hopper's matrix instructions wait for one another.

    An asynchronous kernel waits once for each of its two products (up to four times where the
    pipeliner peels an iteration); a serialised one waits for every instruction.
    """
    return artifact.waits > max(4, artifact.wgmma // 2)


def pick_tile(
    pattern: Pattern,
    *,
    head_dim: int,
    value_dim: int | None = None,
    dtype: DType = "bf16",
    target: Target = "sm_90",
) -> tuple[Tiling | BoxTiling, tuple[str, ...]]:
    """Walk the candidate tiles, best first, and return the first that compiles clean.

    Each is tried as a plan would take it: as boxes of as many tokens where these are better.
    Returns: the tile, and a note on each tile that was dropped.
    Raises: RuntimeError if triton is missing or no candidate is clean.
    """
    from attnc.compiler.passes.build_plan import build_plan
    from attnc.compiler.passes.grid_plan import on_boxes
    from attnc.compiler.passes.grid_tiles import better

    dropped: list[str] = []
    for choice in candidates(target, head_dim, value_dim or head_dim, dtype):
        plan = build_plan(
            pattern, head_dim=head_dim, value_dim=value_dim, dtype=dtype, target=target,
            tile=Tiling(choice.q, choice.k),
        ).forward
        tested = plan.data is not None
        boxes = better(pattern, choice.tiling, plan.block_mask, tested=tested)
        tile = choice.tiling if boxes is None else boxes.tiling
        if boxes is not None:
            plan = on_boxes(plan, boxes)
        findings = lint_plan(replace(plan, warps=choice.warps, stages=choice.stages))
        if not findings:
            return tile, tuple(dropped)
        dropped.append(f"tile {tile} dropped: {'; '.join(findings)}")
    raise RuntimeError(
        f"no candidate tile of `{pattern.name}` compiles clean for {target}:\n" + "\n".join(dropped)
    )


def lint_plan(plan: ForwardPlan) -> tuple[str, ...]:
    """Compile a forward plan's kernel ahead of time and lint it."""
    return lint(compile_kernel(emit_kernel(plan), plan), plan.target)
