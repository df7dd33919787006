"""Pattern IR and options -> the packed form of an op, through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from attnc.codegen.module import module_name
from attnc.codegen.varlen import emit_varlen
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes.build_varlen import build_varlen, why_not
from attnc.runtime import build
from attnc.runtime import cache as disk
from attnc.runtime.options import Options


def compile_varlen(
    pattern: Pattern, chosen: Options, key: str, *, keep: bool
) -> Callable[..., Any]:
    """Compile the packed form of a pattern; ``keep`` reads and fills the cache on disk.

    Args: ``key`` is that of the op in the cache.
    Raises: ValueError for a pattern that has no packed form, with the reason.
    """
    reason = why_not(pattern)
    if reason is not None:
        raise ValueError(f"varlen: `{pattern.name}` has no packed form: {reason}")

    def make() -> str:
        return emit_varlen(build_varlen(chosen.plan(pattern)))

    name = f"{module_name(pattern)}_varlen"
    own = hashlib.sha256(f"{key} varlen\n".encode()).hexdigest()
    path, text = disk.fetch(own, name, make, keep=keep)
    varlen: Callable[..., Any] = build.load_text(text, path).varlen
    return varlen
