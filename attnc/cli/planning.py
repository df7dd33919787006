"""Flags -> kernel plan, and the plan's kernel compiled ahead of time."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, cast

from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from attnc.compiler.ir.blockmask import Tiling
    from attnc.compiler.ir.gridmask import BoxTiling
    from attnc.compiler.ir.pattern import Pattern
    from attnc.compiler.ir.plan import Plan
    from attnc.compiler.loaded import Loaded
    from attnc.runtime.aot import Artifact


def choices(
    loaded: Loaded, tile: object, orders: object, bias: object, *, on_cpu: bool = False
) -> dict[str, Any]:
    """Return ``tile``, ``cpu_tile``, ``orders`` and ``bias``: flags, else what the file states.

    ``on_cpu``: the flag ``--tile`` is that of the executor.
    """
    from attnc.compiler.ir.blockmask import Tiling
    from attnc.compiler.ir.gridmask import BoxTiling

    stated = loaded.tuned
    found = {"tile": tile, "cpu_tile": None, "orders": orders, "bias": bias}
    for name, value in stated.items():
        if name in ("tile", "cpu_tile") and value != "boxes":
            value = BoxTiling(*value) if isinstance(value[0], tuple) else Tiling(*value)
        if found[name] is None:
            found[name] = value
    if on_cpu:
        found["tile"] = found["cpu_tile"] if tile is None else tile
        found["cpu_tile"] = None
    return {**found, "orders": found["orders"] or "auto", "bias": found["bias"] or "auto"}


def plan_for(
    pattern: Pattern, head_dim: int, value_dim: int | None, dtype: str, target: str, tile: object,
    *, cpu_tile: object = None, orders: Any = "auto", bias: Any = "auto", backward: bool = False,
) -> Plan:
    """Build the plan that the flags ask for; ``--target cpu --tile`` sets the CPU tile.

    ``orders``: as ``token_order.read_orders`` returns them. ``bias``: one of its choices.
    ``backward``: with the kernels of the backward.
    """
    from attnc.compiler.ir.blockmask import Tiling
    from attnc.compiler.ir.gridmask import BoxTiling
    from attnc.compiler.passes.build_plan import build_plan

    assert isinstance(tile, Tiling | BoxTiling | None) or tile == "boxes"
    on_cpu = target == "cpu"
    if on_cpu and not isinstance(tile, Tiling | None):
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0405", message=f"the CPU executor walks no boxes, such as tile {tile}",
                    help="write queries x keys, such as 32x32, or choose a GPU with `--target`",
                )
            ]
        )
    try:
        return build_plan(
            pattern,
            head_dim=head_dim,
            value_dim=value_dim,
            dtype=cast(Any, dtype),
            target=cast(Any, "sm_90" if on_cpu else target),
            tile=None if on_cpu else cast(Any, tile),
            cpu_tile=cast(Tiling | None, tile if on_cpu else cpu_tile),
            orders=orders,
            bias=bias,
            backward=backward,
        )
    except ValueError as wrong:
        raise CompileError([Diagnostic(code="ATT0405", message=str(wrong))]) from wrong


def compile_ahead(plan: Plan) -> Artifact:
    """Compile the forward kernel of a plan for its target, without a GPU."""
    from attnc.cli.terminal import progress

    with progress(1) as steps:
        steps.step(f"compiling for {plan.forward.target}")
        try:
            from attnc.runtime.aot import compile_plan
        except ImportError as missing:
            raise needs_torch(missing) from missing
        try:
            return compile_plan(plan)
        except RuntimeError as refused:
            raise not_compiled(refused) from refused


def clean_tile(
    pattern: Pattern, head_dim: int, value_dim: int | None, dtype: str, target: str
) -> tuple[Tiling | BoxTiling, tuple[str, ...]]:
    """Return the first tile of the target that compiles clean, and why others were dropped."""
    from attnc.cli.terminal import progress

    with progress(1) as steps:
        steps.step(f"compiling tiles for {target}")
        try:
            from attnc.runtime.lint import pick_tile
        except ImportError as missing:
            raise needs_torch(missing) from missing
        try:
            return pick_tile(
                pattern, head_dim=head_dim, value_dim=value_dim, dtype=cast(Any, dtype),
                target=cast(Any, target),
            )
        except RuntimeError as refused:
            raise not_compiled(refused) from refused


def with_clean_backward(plan: Plan) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan with backward kernels that compile clean, and why tiles were dropped."""
    from dataclasses import replace

    from attnc.cli.terminal import progress
    from attnc.runtime.lint_backward import clean_backward

    with progress(1) as steps:
        steps.step(f"compiling tiles of the backward for {plan.forward.target}")
        try:
            backward, dropped = clean_backward(plan.forward)
        except RuntimeError as refused:
            raise not_compiled(refused) from refused
    return replace(plan, backward=backward), dropped


def backward_findings(plan: Plan) -> tuple[str, ...]:
    """Return what ahead-of-time compilation finds wrong with the kernels of a plan's backward."""
    from attnc.cli.terminal import progress
    from attnc.runtime.lint_backward import lint_backward

    assert plan.backward is not None
    with progress(1) as steps:
        steps.step(f"compiling the backward for {plan.forward.target}")
        try:
            return lint_backward(plan.backward)
        except RuntimeError as refused:
            raise not_compiled(refused) from refused


def not_compiled(refused: RuntimeError) -> CompileError:
    """Return the error for a kernel that cannot be compiled ahead of time here."""
    message, _, rest = str(refused).partition("\n")
    code = "ATT0507" if importlib.util.find_spec("triton") is None else "ATT0405"
    return CompileError(
        [Diagnostic(code=code, message=message, notes=tuple(rest.splitlines()))]
    )


def needs_torch(missing: ImportError) -> CompileError:
    """Return the error for a verb that needs torch or triton where they are not installed."""
    return needs_package(missing, "torch")


def needs_package(missing: ImportError, extra: str) -> CompileError:
    """Return the error for what needs a package that an extra of attnc brings."""
    return CompileError(
        [
            Diagnostic(
                code="ATT0507",
                message=f"this needs `{missing.name or extra}`, which is not installed",
                help=f'install it with `pip install "attnc[{extra}]"`',
            )
        ]
    )


def artifact_facts(artifact: Artifact) -> dict[str, object]:
    """Return what ahead-of-time compilation found out about a kernel."""
    return {
        "registers": artifact.registers,
        "spill_bytes": artifact.spill_bytes,
        "shared_bytes": artifact.shared_bytes,
    }
