"""Pattern IR and options -> the decode step of an op, through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from attnc.codegen.decode import emit_decode
from attnc.codegen.module import module_name
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes.build_decode import build_decode, why_not
from attnc.runtime import build
from attnc.runtime import cache as disk
from attnc.runtime.options import Options


def compile_decode(
    pattern: Pattern, chosen: Options, key: str, *, keep: bool
) -> Callable[..., Any]:
    """Compile the decode step of a pattern; ``keep`` reads and fills the cache on disk.

    Args: ``key`` is that of the op in the cache.
    Raises: ValueError for a pattern that has no decode step, with the reason.
    """
    reason = why_not(pattern)
    if reason is not None:
        raise ValueError(f"decode: `{pattern.name}` has no decode step: {reason}")

    def make() -> str:
        plan = build_decode(
            pattern, head_dim=chosen.head_dim, value_dim=chosen.value_dim, dtype=chosen.dtype,
            target=chosen.target,
        )
        return emit_decode(pattern, plan)

    name = f"{module_name(pattern)}_decode"
    own = hashlib.sha256(f"{key} decode\n".encode()).hexdigest()
    path, text = disk.fetch(own, name, make, keep=keep)
    decode: Callable[..., Any] = build.load_text(text, path).decode
    return decode
