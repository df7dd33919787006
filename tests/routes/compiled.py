"""A routed attention or a gated sum of them, compiled for tests: the op that a user has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from attnc.compiler.ir.routed import AnyAttention, Combined, Routed
from attnc.runtime.combined import compile_combined
from attnc.runtime.options import options
from attnc.runtime.routed import compile_routed
from tests.routes.cases import CASES


def compiled(attention: AnyAttention, head_dim: int, value_dim: int) -> Any:
    """Compile without the cache on disk."""
    align = attention.base.align if isinstance(attention, Routed) else "top-left"
    chosen = options(
        head_dim=head_dim, value_dim=value_dim, dtype="fp32", target=None, tile=None,
        cpu_tile=None, align=align,
    )  # fmt: skip
    if isinstance(attention, Combined):
        return compile_combined(attention, chosen, keep=False)
    assert isinstance(attention, Routed)
    return compile_routed(attention, chosen, keep=False)


@cache
def op_of(name: str, head_dim: int = 16, value_dim: int = 16) -> Any:
    """Return the op of a case."""
    return compiled(CASES[name](), head_dim, value_dim)


@contextmanager
def trained(op: Any) -> Iterator[None]:
    """Let an op be differentiated, though its selection looks ahead: its gradients are right."""
    modules = [one._function.__globals__ for one in getattr(op, "terms", (op,))]
    said = [module.get("_REFUSES_TRAINING") for module in modules]
    try:
        for module in modules:
            module["_REFUSES_TRAINING"] = ""
        yield
    finally:
        for module, text in zip(modules, said, strict=True):
            module["_REFUSES_TRAINING"] = text
