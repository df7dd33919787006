"""attnc: a compiler for sparse attention patterns."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "dsl").is_dir() and (_here.parent / "dsl" / "grammar.lark").is_file():
    __path__.append(str(_here.parent))  # a checkout keeps dsl/, compiler/, ... beside attnc/
