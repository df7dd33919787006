"""Plan -> a module on disk -> a loaded module."""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import sys
from pathlib import Path
from types import ModuleType

from attnc.codegen.module import emit_module, module_name
from attnc.compiler.ir.plan import Plan
from attnc.runtime.cache import replace_file

DEFAULT_FOLDER = "attn_ops"
_PACKAGE_TEXT = '"""Sparse-attention ops written by attnc: one op a file."""\n'


def write_module(plan: Plan, folder: str | Path = DEFAULT_FOLDER) -> Path:
    """Write the module of a plan as ``<folder>/<pattern>.py`` and return its path.

    A new folder also gets an ``__init__.py``, so that ``import attn_ops.longformer`` works where
    the folder's parent is on the import path. An older module of that name is replaced.
    """
    return write_text(emit_module(plan), module_name(plan.pattern), folder)


def write_text(text: str, name: str, folder: str | Path) -> Path:
    """Write an emitted module as ``<folder>/<name>.py``; a new folder becomes a package."""
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file; name a folder")
    if not target.exists():
        replace_file(target / "__init__.py", _PACKAGE_TEXT)
    path = target / f"{name}.py"
    replace_file(path, text)
    return path


def load_module(path: str | Path) -> ModuleType:
    """Import a written module from its file; the file's present text counts, no byte code."""
    path = Path(path)
    return load_text(path.read_text(encoding="utf-8"), path)


def load_text(text: str, path: Path) -> ModuleType:
    """Run the text of a module that stands in a file; the same text and file load once."""
    digest = hashlib.sha256(f"{path.resolve()}\0{text}".encode()).hexdigest()[:16]
    name = f"_attnc_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    linecache.checkcache(str(path))  # triton reads a kernel's source through it
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
