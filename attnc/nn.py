"""``torch.nn`` modules around compiled patterns: attention, self-attention, cross-attention.

    layer = attnc.nn.SelfAttention(512, 8, attnc.zoo.window(left=255), kv_heads=2)
    out = layer(x)    # [B, N, 512]

Importing this module loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import attnc
from attnc.api import Pattern
from attnc.codegen.inputs import argument, shape_text
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.show import show_node
from attnc.dsl.suggest import did_you_mean
from attnc.runtime.op import Op

__all__ = ["Attention", "CrossAttention", "SelfAttention"]

Learned: TypeAlias = "Mapping[str, Tensor] | Iterable[str]"
Rotary: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]"
_TEXT_COLUMNS = 80  # of a set or a score in a repr


class Attention(nn.Module):
    """A pattern as a module: the op, and those of its inputs that belong to the model.

    Args:
        pattern: an ``attnc.Pattern``, or an ``Op`` that several layers share.
        head_dim: width of q and k; with an ``Op`` that of the op.
        learned: real inputs that are parameters, by name with their first value, or names alone,
            which begin at zero; these need sides that the pattern fixes.
        fixed: inputs that are buffers, by name: they move with the module and are saved with it.
        scale: factor of ``q @ k``; when not given the pattern's, or ``1 / sqrt(head_dim)``.
        options: those of ``attnc.compile``, beside ``head_dim``.
    The state dict holds learned and fixed inputs by their names; one that ``torch.nn.Module`` has
    for itself gets ``_`` behind it.
    Raises: ValueError for an input that the pattern has not, or that cannot be learned.
    """

    def __init__(
        self,
        pattern: Pattern | Op,
        head_dim: int | None = None,
        *,
        learned: Learned = (),
        fixed: Mapping[str, Tensor] | None = None,
        scale: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.op = _compiled(pattern, head_dim, options)
        self.scale = scale
        self._attributes: dict[str, str] = {}  # keyword of the op -> name in the state dict
        first = learned if isinstance(learned, Mapping) else dict.fromkeys(learned)
        for name, value in first.items():
            parameter = nn.Parameter(_first_value(self._declared(name), value))
            self.register_parameter(self._attribute(name), parameter)
        for name, value in (fixed or {}).items():
            self._declared(name)
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"fixed: {name} must be a torch.Tensor, got {type(value).__name__}"
                )
            self.register_buffer(self._attribute(name), value)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **inputs: Any
    ) -> Any:
        """Attend; ``inputs`` are those that the module does not hold, and ``extents``.

        Shape: q ``[B, Hq, Q, D]``, k ``[B, Hkv, K, D]``, v ``[B, Hkv, K, Dv]`` -> out
        ``[B, Hq, Q, Dv]``, or ``(out, lse)``.
        """
        for name, attribute in self._attributes.items():
            if name in inputs:
                raise ValueError(f"{self.op.name}: the module holds {name}; do not pass it as well")
            inputs[name] = getattr(self, attribute)
        return self.op(q, k, v, scale=self.scale, return_lse=return_lse, **inputs)

    def extra_repr(self) -> str:
        """Return the pattern in one line, and the tiles of the plan."""
        plan = self.op.plan
        ir = plan.pattern
        text = _shortened(show_node(ir.body, ir.heads is not None))
        if ir.score is not None:
            text += f", score {_shortened(sc.show(ir.score))}"
        head_dim = plan.forward.head_dim
        tiles = f"tile={plan.forward.tiling}, cpu_tile={plan.cpu.tiling}"
        return f"{self.op.name}: {text}, head_dim={head_dim}, {tiles}"

    def _declared(self, name: str) -> pat.Input:
        """Return the declaration of an input that a module can hold."""
        inputs = {one.name: one for one in _ir(self.op).inputs}
        if name not in inputs:
            hint = did_you_mean(name, inputs) or f"its inputs are {', '.join(inputs) or 'none'}"
            raise ValueError(f"{self.op.name} has no input {name!r}; {hint}")
        if not inputs[name].dims:
            raise ValueError(f"{self.op.name}: {name} is a number; pass it at the call")
        return inputs[name]

    def _attribute(self, name: str) -> str:
        keyword = attribute = argument(name)
        if keyword in self._attributes:
            raise ValueError(f"{self.op.name}: {name} is both learned and fixed")
        while hasattr(self, attribute):
            attribute += "_"
        self._attributes[keyword] = attribute
        return attribute


class _Projected(nn.Module):
    """Attention between linear projections.

    Args:
        embed_dim: width of the queries and of the result.
        heads: query heads.
        pattern: an ``attnc.Pattern``, or an ``Op`` that several layers share.
        kv_heads: key and value heads, a divisor of ``heads``; ``heads`` when not given.
        head_dim: width of a head, ``embed_dim / heads`` when not given.
        memory_dim: width of what keys and values are made from, ``embed_dim`` when not given
            (``CrossAttention`` alone has it).
        bias: whether the projections have one.
        dropout: of attention weights; only 0, since the weights are never stored.
        rotary: ``rotary(q, k) -> (q, k)``, called on ``[B, H, tokens, D]`` before attention.
        dtype: that of the parameters, and of the GPU kernel. When not given, parameters have
            torch's default, and the kernel is made for bfloat16, as under autocast.
        learned, fixed, scale, options: as for ``Attention``.
    Raises: ValueError for numbers of heads that do not go together, or with the pattern.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        pattern: Pattern | Op,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        memory_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rotary: Rotary | None = None,
        learned: Learned = (),
        fixed: Mapping[str, Tensor] | None = None,
        scale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if dropout != 0:
            raise ValueError(
                f"dropout must be 0, got {dropout}: attention weights are never stored; "
                "drop elements of the layer's result instead"
            )
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} and {heads}")
        if head_dim is None and embed_dim % heads:
            raise ValueError(f"heads must divide embed_dim, got {heads} and {embed_dim}")
        self.head_dim = embed_dim // heads if head_dim is None else head_dim
        if isinstance(pattern, Pattern):
            options = {"dtype": dtype, **options}
        self.attention = Attention(
            pattern, self.head_dim, learned=learned, fixed=fixed, scale=scale, **options
        ).to(device, dtype)
        self._check_heads()

        def linear(wide: int, out: int) -> nn.Linear:
            return nn.Linear(wide, out, bias=bias, device=device, dtype=dtype)

        memory_dim = embed_dim if memory_dim is None else memory_dim
        self.q_proj = linear(embed_dim, heads * self.head_dim)
        self.k_proj = linear(memory_dim, self.kv_heads * self.head_dim)
        self.v_proj = linear(memory_dim, self.kv_heads * self.attention.op.options.value_dim)
        self.out_proj = linear(heads * self.attention.op.options.value_dim, embed_dim)
        self.rotary = rotary

    def _attend(self, x: Tensor, memory: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        q = self.q_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, Hq, Q, D]
        k = self.k_proj(memory).unflatten(2, (self.kv_heads, -1)).transpose(1, 2)  # [B, Hkv, K, D]
        v = self.v_proj(memory).unflatten(2, (self.kv_heads, -1)).transpose(1, 2)
        if self.rotary is not None:
            q, k = self.rotary(q, k)
        out = self.attention(q, k, v, **inputs)  # [B, Hq, Q, Dv]
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return result

    def extra_repr(self) -> str:
        """Return the heads."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}"

    def _check_heads(self) -> None:
        """Raise a ValueError where the pattern has a mask for each of another number of heads."""
        ir = _ir(self.attention.op)
        name, found = ("kv_heads", self.kv_heads) if ir.kv_heads else ("heads", self.heads)
        if ir.heads is not None and ir.heads != found:
            raise ValueError(f"{name} must be {ir.heads}, as in pattern {ir.name}, got {found}")


class SelfAttention(_Projected):
    __doc__ = f"Queries, keys and values from one sequence.\n\n{_Projected.__doc__}"

    def __init__(self, embed_dim: int, heads: int, pattern: Pattern | Op, **options: Any) -> None:
        if "memory_dim" in options:
            raise TypeError("SelfAttention has no memory_dim: keys come from the same sequence")
        super().__init__(embed_dim, heads, pattern, **options)

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """Attend within ``x``; ``inputs`` as for ``Attention``.

        Shape: ``[B, N, E] -> [B, N, E]``.
        """
        return self._attend(x, x, inputs)


class CrossAttention(_Projected):
    __doc__ = f"Queries from one sequence, keys and values from another.\n\n{_Projected.__doc__}"

    def forward(self, x: Tensor, memory: Tensor, **inputs: Any) -> Tensor:
        """Attend from ``x`` to ``memory``; ``inputs`` as for ``Attention``.

        Shape: x ``[B, Q, E]``, memory ``[B, K, M]`` -> ``[B, Q, E]``.
        """
        return self._attend(x, memory, inputs)


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_COLUMNS else text[: _TEXT_COLUMNS - 4] + " ..."


def _compiled(pattern: Pattern | Op, head_dim: int | None, options: Mapping[str, Any]) -> Op:
    if not isinstance(pattern, Op):
        return attnc.compile(pattern, head_dim=64 if head_dim is None else head_dim, **options)
    if options:
        names = ", ".join(options)
        raise ValueError(f"an op is compiled already; give {names} to attnc.compile")
    if head_dim not in (None, pattern.options.head_dim):
        raise ValueError(
            f"head_dim must be {pattern.options.head_dim}, that of the op, got {head_dim}"
        )
    return pattern


def _ir(op: Op) -> pat.Pattern:
    ir: pat.Pattern = op.pattern.ir if isinstance(op.pattern, Pattern) else op.pattern
    return ir


def _first_value(one: pat.Input, value: Tensor | None) -> Tensor:
    """Return what a learned input begins with: a copy of what was given, or zeros."""
    if one.kind != "real":
        raise ValueError(f"learned: {one.name} is {one.kind}; only real inputs can be learned")
    if value is not None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"learned: {one.name} must be a tensor of real numbers")
        return value.detach().clone()
    sides = [side.value for side in one.dims if isinstance(side, ex.Const)]
    if len(sides) != len(one.dims):
        raise ValueError(
            f"learned: the pattern leaves sides of {one.name} {shape_text(one)} open; give its "
            f"first value, as learned={{{one.name!r}: torch.zeros(...)}}"
        )
    return torch.zeros(sides)
