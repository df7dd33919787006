"""loop plan -> what its kernel reads besides q, k and v: the arguments for inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnc.codegen.triton_predicate import (
    batch_argument,
    number_argument,
    pointer_argument,
    side_argument,
)
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import LoopPlan

Source = Literal["tensor", "batch", "side", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputArgument:
    """An argument of the kernel and where its value comes from.

    ``source`` "tensor": the input ``name``, contiguous ``[B or 1, ...]``, truth values as uint8;
    "batch": its elements from one batch to the next, 0 where the first dimension is 1; "side": the
    length of its dimension ``1 + place``; "number": the value of an input without brackets, a
    symbolic extent or a size. ``kind`` is the Triton type (of an integer tensor: the widest).
    """

    argument: str
    kind: str
    source: Source
    name: str
    place: int = 0


_POINTERS = {"int": "*i64", "bool": "*u8", "real": "*fp32"}


def input_arguments(plan: LoopPlan) -> tuple[InputArgument, ...]:
    """Return the arguments for what a kernel reads: tensors first, then numbers."""
    return arguments_of(plan.block_mask.pattern, frozenset(_reads(plan)))


def arguments_of(pattern: Pattern, read: frozenset[str]) -> tuple[InputArgument, ...]:
    """Return the arguments for those inputs, extents and sizes of a pattern that are read."""
    tensors = [given for given in pattern.inputs if given.name in read and given.dims]
    found = [
        InputArgument(
            argument=pointer_argument(t.name), kind=_POINTERS[t.kind], source="tensor", name=t.name
        )
        for t in tensors
    ]
    found += [
        InputArgument(argument=batch_argument(t.name), kind="i64", source="batch", name=t.name)
        for t in tensors
    ]
    found += [
        InputArgument(
            argument=side_argument(t.name, i), kind="i32", source="side", name=t.name, place=i
        )
        for t in tensors
        for i, side in enumerate(t.dims)
        if not isinstance(side, ex.Const) and side not in (ex.Var("nq"), ex.Var("nk"))
    ]
    reals = {i.name for i in pattern.inputs if i.kind == "real"}
    scalars = [given.name for given in pattern.inputs if not given.dims]
    found += [
        InputArgument(
            argument=number_argument(name), kind="fp32" if name in reals else "i32",
            source="number", name=name,
        )
        for name in (*scalars, *pattern.extents, *pattern.sizes)
        if name in read
    ]
    return tuple(found)


def _reads(plan: LoopPlan) -> Iterator[str]:
    pattern = plan.block_mask.pattern
    terms: list[ex.Expr] = list(plan.masks)
    if plan.form == "ranges":
        terms += [e for s in plan.segments for e in (s.tiles.base, s.tiles.count)]
    for term in terms:
        yield from (read.name for read in ex.reads(term))
    for score in (pattern.score, pattern.sink):
        if score is not None:
            yield from sc.reads(score)
