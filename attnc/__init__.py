"""attnc: a compiler for sparse attention patterns.

    p = attnc.load("longformer.attn", window=256)    # or attnc.parse(text), attnc.zoo.longformer()
    op = attnc.compile(p, head_dim=64)
    out = op(q, k, v)

Importing attnc loads none of torch, triton, numpy, lark and islpy; what needs them does.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "dsl").is_dir() and (_here.parent / "dsl" / "grammar.lark").is_file():
    __path__.append(str(_here.parent))  # a checkout keeps dsl/, compiler/, ... beside attnc/

if TYPE_CHECKING:
    from attnc import nn as nn
    from attnc.api import Blocks, Pattern, compile, load, parse
    from attnc.dsl.diagnostics import CompileError, Diagnostic
    from attnc.library import zoo

__all__ = [
    "Blocks",
    "CompileError",
    "Diagnostic",
    "Pattern",
    "__version__",
    "compile",
    "load",
    "parse",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in ("Blocks", "Pattern", "compile", "load", "parse"):
        from attnc import api as home
    elif name == "zoo":
        from attnc import library as home  # type: ignore[no-redef]
    elif name in ("CompileError", "Diagnostic"):
        from attnc.dsl import diagnostics as home  # type: ignore[no-redef]
    elif name == "nn":  # loads torch, so it is no part of `from attnc import *`
        return import_module("attnc.nn")
    else:
        raise AttributeError(f"module 'attnc' has no attribute {name!r}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
