"""Gated sum of attentions -> a callable op, made of the ops of its terms."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc import __version__
from attnc.codegen.inputs import argument
from attnc.codegen.module import module_name
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.routed import AnyAttention, Combined, Routed, Term
from attnc.dsl.suggest import did_you_mean
from attnc.runtime.cache import replace_file
from attnc.runtime.op import Op, compile_pattern
from attnc.runtime.options import Options
from attnc.runtime.routed import compile_routed

if TYPE_CHECKING:
    import torch


class CombinedOp(Op):
    """A gated sum of attentions: ``out = sum of gate * attention``, each with its own softmax.

    ``op(q, k, v, *, inputs..., scale=None)``. A gate is ``[B, Hq or 1, Q or 1]``. A term with keys
    of its own reads ``<keys>_k`` and ``<keys>_v``, ``[B, Hkv, K2, D]``. There is no log-sum-exp.

    Attributes:
        name: the name of the combination.
        pattern: what was given to ``attnc.compile``.
        terms: the ops of its terms, in order.
        path: the module of the sum, where a folder was given, else that of its first term.
        source: the texts of the modules of its terms.
    """

    def __init__(self, combined: Combined, terms: tuple[Op, ...], path: Path) -> None:
        self.path = path
        self.options = terms[0].options
        self.name = combined.name
        self.pattern: Any = combined
        self.terms = terms
        self._combined = combined
        self._own = [
            [name for one in (term.gate, *_streams(term)) if one is not None
             for name in (argument(one),)]
            for term in combined.terms
        ]  # fmt: skip
        every = [*(name for own in self._own for name in own),
                 *(name for op in terms for name in op._inputs)]  # fmt: skip
        self._inputs = tuple(dict.fromkeys(every))
        self.source = "\n\n".join(op.source for op in terms)

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        **inputs: Any,
    ) -> torch.Tensor:
        if return_lse:
            raise ValueError(f"{self.name}: a sum of attentions has no log-sum-exp")
        for name in inputs:
            if name not in self._inputs:
                hint = did_you_mean(name, self._inputs)
                hint = hint or f"the inputs are {', '.join(map('`{}`'.format, self._inputs))}"
                raise ValueError(f"{self.name}: there is no input `{name}`; {hint}")
        for name in (name for own in self._own for name in own):
            if inputs.get(name) is None:
                raise ValueError(f"{self.name}: {name} is missing")
        out: Any = None
        for term, op in zip(self._combined.terms, self.terms, strict=True):
            given = {name: inputs[name] for name in op._inputs if name in inputs}
            keys, values = (inputs[argument(name)] for name in _streams(term)) if (
                term.keys
            ) else (k, v)
            part = op(q, keys, values, scale=scale, **given)
            if term.gate is not None:
                part = self._gate(term.gate, inputs[argument(term.gate)], q) * part
            out = part if out is None else out + part
        return out  # type: ignore[no-any-return]

    def _gate(self, name: str, gate: Any, q: torch.Tensor) -> torch.Tensor:
        """Return a gate that multiplies an output ``[B, Hq, Q, Dv]``, in the dtype of q."""
        import torch

        sides = q.shape[:3]
        if not isinstance(gate, torch.Tensor):
            raise ValueError(f"{self.name}: {name} is a {type(gate).__name__}, expected a tensor")
        if gate.dim() != 3 or any(a not in (1, b) for a, b in zip(gate.shape, sides, strict=True)):
            raise ValueError(
                f"{self.name}: the gate {name} has the shape {tuple(gate.shape)}, expected "
                f"[B, Hq, Q], each {', '.join(map(str, sides))} or 1"
            )
        return gate.to(q.dtype)[..., None]

    @cached_property
    def plan(self) -> Any:
        """There is none: each term has its own."""
        raise ValueError(f"plan: `{self.name}` is a sum of attentions; see the plans of its terms")

    @cached_property
    def decode(self) -> Callable[..., Any]:
        """There is none: each term has its own."""
        raise ValueError(f"decode: `{self.name}` is a sum of attentions; decode its terms")

    @cached_property
    def varlen(self) -> Callable[..., Any]:
        """There is none: each term has its own."""
        raise ValueError(f"varlen: `{self.name}` is a sum of attentions; pack its terms")

    def __repr__(self) -> str:
        return f"<attnc combined op {self.name}: {', '.join(op.name for op in self.terms)}>"


def compile_any(
    attention: AnyAttention, chosen: Options, *, folder: str | Path | None = None,
    keep: bool = True,
) -> Op:
    """Compile what is decided by content, as ``compile_pattern`` does a pattern."""
    match attention:
        case Combined():
            return compile_combined(attention, chosen, folder=folder, keep=keep)
        case Routed():
            return compile_routed(attention, chosen, folder=folder, keep=keep)
        case Pattern():
            return compile_pattern(attention, chosen, folder=folder, keep=keep)


def _streams(term: Term) -> tuple[str, ...]:
    """Return the names under which a term takes its own keys and values."""
    return () if term.keys is None else (f"{term.keys}_k", f"{term.keys}_v")


def compile_combined(
    combined: Combined, chosen: Options, *, folder: str | Path | None = None, keep: bool = True
) -> CombinedOp:
    """Compile each term of a gated sum; with ``folder`` their modules stand there, and one of it.

    Raises: ValueError where two terms would write modules of one name.
    """
    names = [_base(term.attention).name for term in combined.terms]
    if folder is not None and len({*names, combined.name}) <= len(names):
        raise ValueError(
            f"{combined.name}: its terms {', '.join(names)} need modules of different names"
        )
    ops = tuple(
        compile_routed(term.attention, chosen, folder=folder, keep=keep)
        if isinstance(term.attention, Routed)
        else compile_pattern(term.attention, chosen, folder=folder, keep=keep)
        for term in combined.terms
    )
    path = ops[0].path
    if folder is not None:
        path = Path(folder) / f"{_own_name(combined)}.py"
        replace_file(path, _module(combined, ops))
    return CombinedOp(combined, ops, path)


def _base(attention: Pattern | Routed) -> Pattern:
    return attention.base if isinstance(attention, Routed) else attention


def _own_name(combined: Combined) -> str:
    return module_name(Pattern(name=combined.name, heads=None, body=Where(ex.FALSE)))


def _module(combined: Combined, ops: tuple[Op, ...]) -> str:
    """Print the sum as a module beside those of its terms."""
    modules = [module_name(_base(term.attention)) for term in combined.terms]
    takes: list[str] = []
    lines: list[str] = []
    for term, op, module in zip(combined.terms, ops, modules, strict=True):
        streams = [argument(name) for name in _streams(term)]
        gate = None if term.gate is None else argument(term.gate)
        takes += [*(op._inputs), *streams, *([gate] if gate else [])]
        keys = ", ".join(streams or ["k", "v"])
        given = "".join(f", {name}={name}" for name in op._inputs)
        factor = f"{gate}.to(q.dtype)[..., None] * " if gate else ""
        lines.append(f"{factor}{module}.op(q, {keys}{given}, scale=scale)")
    parameters = "".join(f"{name}, " for name in dict.fromkeys(takes))
    total = "\n        + ".join(lines)
    imports = "\n".join(f"from . import {name}" for name in dict.fromkeys(modules))
    function = _own_name(combined)
    text = f'''\
"""{combined.name}: a gated sum of attentions, written by attnc {__version__}.

Each term is a module beside this one, with a softmax of its own.
"""

from __future__ import annotations

{imports}


def {function}(q, k, v, *, {parameters}scale=None):
    """Return the sum of gate * attention. Gates are ``[B, Hq or 1, Q or 1]``."""
    return (
        {total}
    )


op = {function}
__all__ = ["{function}", "op"]
'''
    return textwrap.dedent(text)
