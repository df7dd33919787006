"""Pattern IR and options -> a callable op, through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnc import __version__
from attnc.codegen import module as emitted
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import TARGETS, Plan, Target
from attnc.runtime import build
from attnc.runtime import cache as disk

if TYPE_CHECKING:
    import torch

Dtype = Literal["bf16", "fp16", "fp32"]
_DTYPE_NAMES: Mapping[str, Dtype] = {
    "bf16": "bf16", "bfloat16": "bf16", "torch.bfloat16": "bf16",
    "fp16": "fp16", "float16": "fp16", "half": "fp16", "torch.float16": "fp16",
    "fp32": "fp32", "float32": "fp32", "float": "fp32", "torch.float32": "fp32",
}
_HEAD_DIMS = range(16, 257)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a compilation depends on beside the pattern."""

    head_dim: int
    value_dim: int
    dtype: Dtype
    target: Target
    tile: Tiling | None

    def plan(self, pattern: Pattern) -> Plan:
        """Decide everything about the kernels of a pattern."""
        from attnc.compiler.passes.build_plan import build_plan

        return build_plan(
            pattern, head_dim=self.head_dim, value_dim=self.value_dim, dtype=self.dtype,
            target=self.target, tile=self.tile,
        )


class Op:
    """A compiled pattern, called like ``scaled_dot_product_attention``.

    ``op(q, k, v, *, scale=None, return_lse=False)``: q ``[B, Hq, Q, D]``, k ``[B, Hkv, K, D]``, v
    ``[B, Hkv, K, Dv]``; returns out ``[B, Hq, Q, Dv]``, or ``(out, lse)``.

    Attributes:
        name: the pattern's name.
        pattern: the pattern IR it was compiled from.
        source: the text of the written module.
        path: where that module lies.
    """

    def __init__(self, module: ModuleType, source: str, pattern: Pattern, options: Options) -> None:
        self._function = module.op
        self.name = pattern.name
        self.pattern = pattern
        self.source = source
        self.path = Path(str(module.__file__))
        self.options = options
        self.__doc__ = module.op.__doc__

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
    ) -> Any:
        return self._function(q, k, v, scale=scale, return_lse=return_lse)

    @cached_property
    def plan(self) -> Plan:
        """The kernel plan; made again when the module came from the cache."""
        return self.options.plan(self.pattern)

    def __repr__(self) -> str:
        o = self.options
        dims = f"head_dim={o.head_dim}, value_dim={o.value_dim}"
        return f"<attnc op {self.name}: {dims}, {o.dtype}, {o.target}, {self.path}>"


def options(
    *,
    head_dim: int,
    value_dim: int | None,
    dtype: object,
    target: str | None,
    tile: Tiling | tuple[int, int] | str | None,
) -> Options:
    """Check the options of a compilation and fill in what was left out.

    Raises: ValueError that names the option, what it is and what was expected.
    """
    for option, value in (("head_dim", head_dim), ("value_dim", value_dim)):
        if value is None and option == "value_dim":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value not in _HEAD_DIMS:
            raise ValueError(f"{option} must be an integer from 16 to 256, got {value!r}")
    chosen = visible_target() if target is None else target
    if chosen not in TARGETS:
        known = ", ".join(get_args(Target))
        raise ValueError(f"target must be one of {known}, got {chosen!r}")
    return Options(
        head_dim=head_dim,
        value_dim=head_dim if value_dim is None else value_dim,
        dtype=as_dtype(dtype),
        target=chosen,
        tile=None if tile is None else as_tiling(tile),
    )


def as_dtype(dtype: object) -> Dtype:
    """Return the plan's name of a dtype: a torch dtype, its name, or None (bf16)."""
    name = "bf16" if dtype is None else str(dtype)
    if name not in _DTYPE_NAMES:
        raise ValueError(
            f"dtype must be bfloat16, float16 or float32 (a torch dtype or its name), got {dtype!r}"
        )
    return _DTYPE_NAMES[name]


def as_tiling(tile: Tiling | tuple[int, int] | str) -> Tiling:
    """Return a tile shape given as ``Tiling``, ``(128, 64)`` or ``"128x64"``."""
    if isinstance(tile, Tiling):
        sides: list[object] = [tile.q, tile.k]
    elif isinstance(tile, str):
        sides = [int(s) if s.isdecimal() else s for s in tile.split("x")]
    elif isinstance(tile, tuple | list):
        sides = list(tile)
    else:
        sides = []
    match sides:
        case [int(q), int(k)] if q > 0 and k > 0 and bool not in (type(q), type(k)):
            return Tiling(q, k)
        case _:
            raise ValueError(
                "tile must be two positive integers, queries by keys, such as (128, 64) or "
                f"'128x64', got {tile!r}"
            )


def visible_target() -> Target:
    """Return the target of the GPU that torch sees; sm_90 where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability()
    by_major: Mapping[int, Target] = {8: "sm_80", 9: "sm_90", 10: "sm_100"}
    if major not in by_major:
        raise ValueError(
            f"the visible GPU is sm_{major}{minor}, which has no kernels of its own; choose one "
            f"with target=: {', '.join(TARGETS)}"
        )
    return by_major[major]


@cache
def _compiler_fingerprint() -> str:
    """Return the digest of every source that decides what a plan or a module says."""
    from attnc import codegen, compiler

    folders = [Path(next(iter(package.__path__))) for package in (compiler, codegen)]
    return " ".join(emitted.folder_fingerprint(folder) for folder in folders)


def cache_key(pattern: Pattern, chosen: Options) -> str:
    """Return the digest of all that a written module depends on, its source text included."""
    digest = hashlib.sha256(f"attnc {__version__} {_compiler_fingerprint()}\n".encode())
    words = emitted.canonical((pattern.name, pattern.heads, pattern.body, pattern.params))
    for token in (*words, repr(pattern.source_text), *emitted.canonical(chosen)):
        digest.update(token.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def compile_pattern(
    pattern: Pattern, chosen: Options, *, folder: str | Path | None = None, keep: bool = True
) -> Op:
    """Compile a pattern to an op; ``keep`` reads and fills the cache on disk.

    With ``folder`` the module is also written there, and loaded from there.
    """
    plans: list[Plan] = []

    def make() -> str:
        plans.append(chosen.plan(pattern))
        return emitted.emit_module(plans[0])

    name = emitted.module_name(pattern)
    if keep:
        path, text = disk.fetch(cache_key(pattern, chosen), name, make)
    else:
        text = make()
        path = disk.private_folder() / hashlib.sha256(text.encode()).hexdigest() / f"{name}.py"
        if folder is None:
            disk.replace_file(path, text)
    if folder is not None:
        path = build.write_text(text, name, folder)
    op = Op(build.load_text(text, path), text, pattern, chosen)
    if plans:
        op.__dict__["plan"] = plans[0]
    return op
