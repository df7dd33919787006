"""The inputs of an op, pasted verbatim into the written modules that take some: checks, sizes.

Below the cut line; above it stand the names that the rest of such a module defines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

NAME = "packed"
_INPUTS: tuple[_Input, ...] = ()
_EXTENTS: tuple[str, ...] = ()


def _lengths(data: _Given) -> tuple[int | None, int | None]:
    raise NotImplementedError("a written module defines this")


# --- cut: inputs ---

_Given = dict[str, Any]  # inputs [B or 1, ...] and numbers, by name
_ELEMENTS = {
    "int": (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8),
    "bool": (torch.bool,),
    "real": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
}


class _Input(NamedTuple):
    """An argument of the op: a tensor, or a number where ``shape`` is ""."""

    name: str
    kind: str  # "int", "bool" or "real"
    shape: str = ""  # as it was declared: "[heads, n]"
    sides: Callable[..., tuple[Any, ...]] | None = None  # nq, nk, data -> sides; None: any
    # What a side gives a value: a number by name, or (name, factor, offset); None: nothing.
    sizes: tuple[str | tuple[str, int, int] | None, ...] = ()
    make: Callable[..., Any] | None = None  # nq, nk, data of one item -> tensor, where it is absent
    needs: tuple[str, ...] = ()  # what `make` is told

    def __str__(self) -> str:
        if not self.shape:
            return f"a number ({self.kind})"
        return f"a tensor of {self.kind} {self.shape}, or with a batch dimension in front"


def _arguments(
    q: torch.Tensor, k: torch.Tensor, given: Mapping[str, Any], extents: Mapping[str, int] | None
) -> tuple[list[torch.Tensor | None], list[int], list[float]]:
    """Sort the inputs of a call into tensors, integers (with the extents) and reals."""
    tensors: list[torch.Tensor | None] = []
    known: _Given = dict(extents or {})
    for one in _INPUTS:
        value = given[one.name]
        if value is None and one.make is None:
            raise ValueError(f"{NAME}: {one.name} is missing; it is {one}")
        if one.shape:
            if not isinstance(value, torch.Tensor | None):
                raise ValueError(f"{NAME}: {one.name} is a {type(value).__name__}, expected {one}")
            tensors.append(value)
            continue
        if value is None and one.make is not None:
            value = one.make(q.shape[2], k.shape[2], known)
        whole = isinstance(value, int | torch.SymInt) and (
            one.kind == "bool" or not isinstance(value, bool)
        )
        if not whole and not (one.kind == "real" and isinstance(value, float)):
            raise ValueError(f"{NAME}: {one.name} is a {type(value).__name__}, expected {one}")
        known[one.name] = value
    integers = [known[one.name] for one in _INPUTS if not one.shape and one.kind != "real"]
    reals = [float(known[one.name]) for one in _INPUTS if not one.shape and one.kind == "real"]
    wanted = ", ".join(_EXTENTS)
    if _EXTENTS and set(extents or ()) != set(_EXTENTS):
        have = ", ".join(extents or ()) or "none"
        raise ValueError(f"{NAME}: extents must have {wanted}, got {have}")
    for name in _EXTENTS:
        value = (extents or {})[name]
        if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
            raise ValueError(
                f"{NAME}: the extent {name} must be an int, got {type(value).__name__}"
            )
        integers.append(value)
    return tensors, integers, reals


def _check_inputs(
    q: torch.Tensor, k: torch.Tensor, tensors: Sequence[torch.Tensor | None],
    integers: Sequence[int], reals: Sequence[float],
) -> _Given:
    """Check the inputs against q, k and each other; return the numbers, sizes too, by name."""
    scalars = [one for one in _INPUTS if not one.shape]
    names = [one.name for one in scalars if one.kind != "real"]
    known: _Given = dict(zip([*names, *_EXTENTS], integers, strict=True))
    known |= zip([one.name for one in scalars if one.kind == "real"], reals, strict=True)
    for name in _EXTENTS:
        if known[name] < 1:
            raise ValueError(f"{NAME}: the extent {name} must be positive, got {known[name]}")
    present = _present(tensors)
    for one, t in present:
        if t.dtype not in _ELEMENTS[one.kind]:
            raise ValueError(f"{NAME}: {one.name} has dtype {t.dtype}, expected {one}")
        if t.device != q.device:
            raise ValueError(f"{NAME}: {one.name} is on {t.device} but q is on {q.device}")
        rank = len(one.sizes)
        if t.dim() not in (rank, rank + 1):
            raise ValueError(f"{NAME}: {one.name} has the shape {tuple(t.shape)}, expected {one}")
        if t.dim() == rank + 1 and t.shape[0] not in (1, q.shape[0]):
            raise ValueError(
                f"{NAME}: {one.name} has batch size {t.shape[0]} but q has {q.shape[0]}"
            )
        _name_sizes(one, t, known)
    for one, t in present:
        _check_sides(one, t, q.shape[2], k.shape[2], known)
    for argument, t, length in zip("qk", (q, k), _lengths(known), strict=True):
        if length is not None and t.shape[2] != length:
            raise ValueError(
                f"{NAME}: {argument} has {t.shape[2]} tokens, but its space has {length}"
            )
    return known


def _present(tensors: Sequence[torch.Tensor | None]) -> list[tuple[_Input, torch.Tensor]]:
    """Return the tensors that were given, each with its declaration."""
    declared = [one for one in _INPUTS if one.shape]
    return [(one, t) for one, t in zip(declared, tensors, strict=True) if t is not None]


def _name_sizes(one: _Input, t: torch.Tensor, known: _Given) -> None:
    """Give the numbers that sides of a tensor define their values."""
    for defined, side in zip(one.sizes, t.shape[t.dim() - len(one.sizes) :], strict=True):
        if defined is None:
            continue
        size, factor, offset = (defined, 1, 0) if isinstance(defined, str) else defined
        if side < offset or (side - offset) % factor:
            raise ValueError(
                f"{NAME}: {one.name} {one.shape} has a side of {side}, which no {size} makes"
            )
        value = (side - offset) // factor
        if known.setdefault(size, value) != value:
            raise ValueError(
                f"{NAME}: {size} is {known[size]} in another input, but {value} in {one.name} "
                f"{one.shape}, which has the shape {tuple(t.shape)}"
            )


def _check_sides(one: _Input, t: torch.Tensor, nq: int, nk: int, known: _Given) -> None:
    if one.sides is None:
        return
    expected = one.sides(nq, nk, known)
    shape = tuple(t.shape[t.dim() - len(expected) :])
    if any(a is not None and a != b for a, b in zip(expected, shape, strict=True)):
        wanted = ", ".join("*" if a is None else str(a) for a in expected)
        raise ValueError(
            f"{NAME}: {one.name} {one.shape} has the sides {list(shape)}, expected [{wanted}]"
        )


def _data(
    q: torch.Tensor, k: torch.Tensor, tensors: Sequence[torch.Tensor | None],
    integers: Sequence[int], reals: Sequence[float],
) -> _Given:
    """Return all that masks and scores read: tensors ``[B or 1, ...]`` and numbers, by name."""
    data = _check_inputs(q, k, tensors, integers, reals)
    nq, nk = q.shape[2], k.shape[2]
    for one, t in _present(tensors):
        batched = t if t.dim() > len(one.sizes) else t[None]
        small = t.dtype in (torch.int16, torch.int8, torch.uint8)
        data[one.name] = (batched.to(torch.int32) if small else batched).contiguous()
    for one in _INPUTS:
        if not one.shape or one.make is None or one.name in data:
            continue
        needed = {name: data[name] for name in one.needs}
        items = max([len(x) for x in needed.values() if isinstance(x, torch.Tensor)], default=1)
        with torch.device(q.device):
            made = torch.stack([
                torch.as_tensor(one.make(nq, nk, _item(needed, b))) for b in range(items)
            ])
        if made.dim() <= len(one.sizes) and one.sides is not None:
            sides = one.sides(nq, nk, data)
            made = made.view(-1, *[1] * (len(sides) + 1 - made.dim()), *made.shape[1:])
            made = made.expand(-1, *sides)
        made = made != 0 if one.kind == "bool" else made
        made = made.to(torch.int64) if one.kind == "int" else made
        data[one.name] = made.contiguous()
        _name_sizes(one, made, data)
        _check_sides(one, made, nq, nk, data)
    return data


def _item(data: _Given, b: int) -> _Given:
    """Return the inputs of one item of the batch, without the batch dimension."""
    return {
        name: x[b if len(x) > 1 else 0] if isinstance(x, torch.Tensor) else x
        for name, x in data.items()
    }
