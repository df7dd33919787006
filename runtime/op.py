"""Pattern IR and options -> a callable op, through the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attnc import __version__
from attnc.codegen import module as emitted
from attnc.codegen.inputs import argument
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Plan
from attnc.compiler.passes.align import aligned
from attnc.dsl.suggest import did_you_mean
from attnc.runtime import build
from attnc.runtime import cache as disk
from attnc.runtime.options import Options

if TYPE_CHECKING:
    import torch


class Op:
    """A compiled pattern, called like ``scaled_dot_product_attention``.

    ``op(q, k, v, *, inputs..., scale=None, return_lse=False)``: q ``[B, Hq, Q, D]``, k ``[B, Hkv,
    K, D]``, v ``[B, Hkv, K, Dv]``; returns out ``[B, Hq, Q, Dv]``, or ``(out, lse)``. The inputs of
    the pattern go by name, the extents of its spaces as ``extents={"y": 30, "x": 40}``.

    Attributes:
        name: the pattern's name.
        pattern: what was given to ``attnc.compile``.
        source: the text of the written module.
        path: where that module lies.
    """

    def __init__(
        self, module: ModuleType, source: str, pattern: Pattern, options: Options, *,
        keep: bool = True,
    ) -> None:
        self._function = module.op
        self.name = pattern.name
        self.pattern: Any = pattern
        self._ir = pattern
        self._aligned = aligned(pattern, options.align)
        self.source = source
        self.path = Path(str(module.__file__))
        self.options = options
        self._keep = keep
        self._inputs = tuple(argument(one.name) for one in pattern.inputs)
        self._inputs += ("extents",) if pattern.extents else ()
        self.__doc__ = module.op.__doc__

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        **inputs: Any,
    ) -> Any:
        for name in inputs:
            if name not in self._inputs:
                raise ValueError(self._no_such_input(name))
        return self._function(q, k, v, scale=scale, return_lse=return_lse, **inputs)

    def _no_such_input(self, name: str) -> str:
        there = ", ".join(f"`{known}`" for known in self._inputs)
        hint = did_you_mean(name, self._inputs)
        text = f"{self.name}: there is no input `{name}`; "
        return text + (hint or (f"the inputs are {there}" if there else "the pattern has none"))

    @cached_property
    def plan(self) -> Plan:
        """The kernel plan; made again when the module came from the cache."""
        return self.options.plan(self._aligned)

    @cached_property
    def decode(self) -> Callable[..., Any]:
        """One step of generation: the last queries of each sequence against its cache.

        ``decode(q, k_cache, v_cache, lengths, *, block_table=None, inputs..., scale=None,
        return_lse=False)``; its docstring says more. It is compiled when it is first asked for:
        take it out once in front of ``torch.compile``.
        Raises: ValueError for a pattern that has no decode step, with the reason.
        """
        from attnc.runtime.decode import compile_decode

        key = cache_key(self._ir, self.options)
        return compile_decode(self._ir, self.options, key, keep=self._keep)

    @cached_property
    def varlen(self) -> Callable[..., Any]:
        """Many sequences in one call, packed one after the other.

        ``varlen(q, k, v, cu_seqlens_q, cu_seqlens_k=None, *, max_seqlen_q=None, max_seqlen_k=None,
        inputs..., scale=None, return_lse=False)``: q ``[total_q, Hq, D]``; its docstring says more.
        It is compiled when it is first asked for: take it out once in front of ``torch.compile``.
        Raises: ValueError for a pattern that has no packed form, with the reason.
        """
        from attnc.runtime.varlen import compile_varlen

        key = cache_key(self._ir, self.options)
        return compile_varlen(self._aligned, self.options, key, keep=self._keep)

    def __deepcopy__(self, memo: object) -> Op:
        return self  # nothing in it changes; copies of a model share the compiled op

    def __repr__(self) -> str:
        o = self.options
        dims = f"head_dim={o.head_dim}, value_dim={o.value_dim}"
        return f"<attnc op {self.name}: {dims}, {o.dtype}, {o.target}, {self.path}>"


@cache
def _compiler_fingerprint() -> str:
    """Return the digest of every source that decides what a plan or a module says."""
    from attnc import codegen, compiler

    folders = [Path(next(iter(package.__path__))) for package in (compiler, codegen)]
    return " ".join(emitted.folder_fingerprint(folder) for folder in folders)


def cache_key(pattern: Pattern, chosen: Options) -> str:
    """Return the digest of all that a written module depends on, its source text included."""
    digest = hashlib.sha256(f"attnc {__version__} {_compiler_fingerprint()}\n".encode())
    source = repr(pattern.source_text)
    for token in (*emitted.canonical(pattern), source, *emitted.canonical(chosen)):
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
    ir = aligned(pattern, chosen.align)

    def make() -> str:
        plans.append(chosen.plan(ir))
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
    op = Op(build.load_text(text, path), text, pattern, chosen, keep=keep)
    if plans:
        op.__dict__["plan"] = plans[0]
    return op
