"""Routed IR and options -> a callable op, through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attnc.codegen.inputs import argument
from attnc.codegen.module import canonical, module_name
from attnc.codegen.routed_module import emit_routed
from attnc.compiler.ir.routed import Routed
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.align import aligned
from attnc.compiler.passes.build_routed import build_routed
from attnc.dsl.suggest import did_you_mean
from attnc.runtime import build
from attnc.runtime import cache as disk
from attnc.runtime.op import Op, cache_key
from attnc.runtime.options import Options

if TYPE_CHECKING:
    import torch


class RoutedOp(Op):
    """A compiled attention whose keys are chosen by content.

    ``op(q, k, v, *, inputs..., selection=None, scale=None, return_lse=False)`` as an ordinary op;
    ``op.select(q, k, *, inputs...)`` scores and selects alone, and what it returns may be given as
    ``selection`` to this and later calls: other layers, or the next steps of generation.

    Attributes:
        name: the name of the attention.
        pattern: what was given to ``attnc.compile``.
        source: the text of the written module.
        path: where that module lies.
    """

    def __init__(self, module: ModuleType, source: str, routed: Routed, options: Options) -> None:
        self._function, self._select = module.op, module.select
        self.name = routed.name
        self.pattern: Any = routed
        self._routed = routed
        self.source = source
        self.path = Path(str(module.__file__))
        self.options = options
        names = [*(one.name for one in routed.base.inputs), *(one.name for one in routed.inputs)]
        self._inputs = tuple(map(argument, names))
        self._inputs += ("extents",) if routed.base.extents else ()
        self.__doc__ = module.op.__doc__

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        selection: Any = None,
        scale: float | None = None,
        return_lse: bool = False,
        **inputs: Any,
    ) -> Any:
        self._known(inputs)
        return self._function(
            q, k, v, selection=selection, scale=scale, return_lse=return_lse, **inputs
        )

    def select(self, q: torch.Tensor, k: torch.Tensor, **inputs: Any) -> Any:
        """Score and select: for each route by name the tensors of its selection."""
        self._known(inputs)
        return self._select(q, k, **inputs)

    def _known(self, inputs: dict[str, Any]) -> None:
        for name in inputs:
            if name not in self._inputs:
                there = ", ".join(f"`{known}`" for known in self._inputs)
                hint = did_you_mean(name, self._inputs)
                hint = hint or (f"the inputs are {there}" if there else "the attention has none")
                raise ValueError(f"{self.name}: there is no input `{name}`; {hint}")

    @cached_property
    def plan(self) -> RoutedPlan:  # type: ignore[override]
        """The plan; made again when the module came from the cache."""
        return plan_routed(self._routed, self.options)

    @cached_property
    def decode(self) -> Callable[..., Any]:
        """There is none: the op itself takes few queries, aligned at the end of the keys."""
        raise ValueError(
            f"decode: `{self.name}` is chosen by content; compile it with align=\"bottom-right\" "
            "and call the op with the last queries"
        )

    @cached_property
    def varlen(self) -> Callable[..., Any]:
        """There is none: routes select within one sequence."""
        raise ValueError(
            f"varlen: `{self.name}` is chosen by content; call the op once for each sequence"
        )

    def __repr__(self) -> str:
        o = self.options
        dims = f"head_dim={o.head_dim}, value_dim={o.value_dim}"
        return f"<attnc routed op {self.name}: {dims}, {o.dtype}, {o.target}, {self.path}>"


def plan_routed(routed: Routed, chosen: Options) -> RoutedPlan:
    """Decide everything about the module of a routed attention."""
    placed = replace(
        routed, base=aligned(routed.base, chosen.align), kept=aligned(routed.kept, chosen.align)
    )
    return build_routed(
        placed, chosen.plan, head_dim=chosen.head_dim, value_dim=chosen.value_dim,
        dtype=chosen.dtype, target=chosen.target,
    )


def compile_routed(
    routed: Routed, chosen: Options, *, folder: str | Path | None = None, keep: bool = True
) -> RoutedOp:
    """Compile a routed attention to an op; ``keep`` reads and fills the cache on disk.

    With ``folder`` the module is also written there, and loaded from there.
    """
    plans: list[RoutedPlan] = []

    def make() -> str:
        plans.append(plan_routed(routed, chosen))
        return emit_routed(plans[0])

    name = module_name(routed.base)
    digest = hashlib.sha256(f"{cache_key(routed.base, chosen)} routed\n".encode())
    for token in canonical(routed):
        digest.update(f"{token}\n".encode())
    path, text = disk.fetch(digest.hexdigest(), name, make, keep=keep)
    if folder is not None:
        path = build.write_text(text, name, folder)
    op = RoutedOp(build.load_text(text, path), text, routed, chosen)
    if plans:
        op.__dict__["plan"] = plans[0]
    return op
