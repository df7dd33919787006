"""Plan of an op -> plan of its packed form: many sequences in one call, one after the other.

Bounds are symbolic in the lengths, so a program evaluates them at the lengths of its own sequence.
What needs a table of tiles, which would depend on all lengths, visits a range that covers the tiles
and asks the whole predicate there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Input, Pattern, size_of
from attnc.compiler.ir.plan import LoopPlan, Plan, Segment
from attnc.compiler.passes.build_decode import covering
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.loops import MAX_SEGMENTS

AnyLoop = TypeVar("AnyLoop", bound=LoopPlan)


def why_not(pattern: Pattern) -> str | None:
    """Return why a pattern has no packed form, None where it has one."""
    if pattern.query_space is not None or pattern.key_space is not None:
        return "its tokens stand on a grid, so all sequences are equally long: give them as a batch"
    for one in pattern.inputs:
        if any(side is not None and _is_length(side) for side in one.dims):
            return f"{one.name} is as long as the sequence, and inputs are shared by all sequences"
        if one.formula is not None and _depends(one):
            return f"{one.name} is computed from the length of the sequence"
    return None


def build_varlen(plan: Plan) -> Plan:
    """Walk ranges in every kernel, in an order that needs no schedule."""
    back = plan.backward
    return replace(
        plan,
        forward=_walked(plan.forward),
        backward=None if back is None else replace(
            back, dq=_walked(back.dq), dkdv=_walked(back.dkdv),
            dk=None if back.dk is None else _walked(back.dk),
            learned=None if back.learned is None else _walked(back.learned),
        ),
    )  # fmt: skip


def _walked(loop: AnyLoop) -> AnyLoop:
    assert loop.boxes is None
    order = "forward" if loop.row_order == "sorted" else loop.row_order
    if loop.form == "ranges":
        return replace(loop, row_order=order)
    tiles = [segment.tiles for segment in loop.segments]
    if len(tiles) > MAX_SEGMENTS:
        tiles = [covering(tiles)]
    return replace(
        loop, form="ranges", row_order=order, data=None,
        segments=tuple(Segment(tiles=one, mask=1) for one in tiles),
        masks=(eliminate(loop.block_mask.pattern).predicate,),
    )


def _is_length(side: ex.IntExpr) -> bool:
    return size_of(side) is None and bool(ex.free_vars(side))


def _depends(one: Input) -> bool:
    assert one.formula is not None
    return any(
        isinstance(node, ar.BlockCount)
        or (isinstance(node, ar.ArrayNumber) and bool(ex.free_vars(node.part)))
        for node in ar.walk(one.formula)
    )
