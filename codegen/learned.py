"""score -> what its learned inputs get: which elements a pair changes, and how a tile adds them.

    table[h][t5_bucket(k - q)]   the same along a diagonal: a sum for each difference of positions
    slope[h] * (k - q)           the same for all keys: a sum for each query
    weight[h][k]                 the same for all queries: a sum for each key of a tile
    table[h][distance[q][k]]     an element for each pair
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.plan import LoopPlan
from attnc.compiler.ir.score_derivative import derivative

Way = Literal["row", "column", "diagonal", "pair"]
"""What adds up in registers before it is added to memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """An element of an input that a score reads.

    ``slope`` is the derivative of the score by it; ``way`` "diagonal": its index depends on
    ``q - k`` alone.
    """

    name: str
    index: tuple[ex.IntExpr, ...]
    slope: sc.RealExpr
    way: Way

    @property
    def by_difference(self) -> tuple[ex.IntExpr, ...]:
        """The index as a function of ``q``, which stands for ``q - k``."""
        found = _by_difference(self.index)
        assert found is not None
        return found


def learned(plan: LoopPlan, *, packed: bool = False) -> tuple[Learned, ...]:
    """Return what the score of a kernel whose rows are queries learns, in the order it reads.

    Args: ``packed``: of packed sequences, which differ in their lengths.
    """
    pattern = plan.block_mask.pattern
    if pattern.score is None:
        return ()
    tensors = {one.name for one in pattern.inputs if one.dims}
    return tuple(
        Learned(
            name=one.name, index=one.index, slope=slope,
            way=_way(one, flat=plan.boxes is None, packed=packed),
        )
        for one, slope in derivative(pattern.score).reads
        if one.index and one.name in tensors
    )


def _way(one: sc.RealRead, *, flat: bool, packed: bool) -> Way:
    match ex.relevant_side(ex.Read(one.name, one.index)):
        case "none" | "q":
            return "row"
        case "k":
            return "column"
        case "both":
            found = _by_difference(one.index) if flat else None
            fixed = found is not None and not (packed and any(map(_reads_lengths, found)))
            return "diagonal" if fixed else "pair"


def _by_difference(index: tuple[ex.IntExpr, ...]) -> tuple[ex.IntExpr, ...] | None:
    """Return an index with ``q`` for ``q - k``; None: it depends on more of the two than that."""
    moved = {"q": ex.add(ex.Var("q"), ex.Var("k"))}
    found = tuple(ex.substitute(place, moved) for place in index)
    if any("k" in ex.free_vars(place) or _reads_elements(place) for place in found):
        return None
    return found


def _reads_lengths(place: ex.IntExpr) -> bool:
    return bool(ex.free_vars(place) & {"nq", "nk"})


def _reads_elements(place: ex.IntExpr) -> bool:
    return any(read.index for read in ex.reads(place))


# ------------------------------------------------------------------------- the kernel's arguments


def measured(plan: LoopPlan) -> bool:
    """Whether some slope is no constant: its largest value is found before anything is added."""
    return any(not isinstance(one.slope, sc.RealConst) for one in learned(plan))


def sum_pointers(plan: LoopPlan) -> list[tuple[str, str]]:
    """Return the kernel's pointers to sums, as integers, and to what makes integers of numbers.

    ``Sums_i`` has copies, one for each batch or for all, each in the shape of the input; of sums
    along diagonals ``[heads, Q + K - 1]``. ``Steps`` are two factors for each, powers of two.
    ``Most`` gets the largest slopes, the bits of float32.
    """
    count = len(learned(plan))
    most = [("Most", "*i32")] if measured(plan) else []
    return [*((f"Sums_{i}", "*i64") for i in range(count)), ("Steps", "*fp32"), *most]


def sum_strides(plan: LoopPlan) -> list[str]:
    """Return the kernel's int64 arguments: copies, elements between them and between batches."""
    every = range(len(learned(plan)))
    return ["copies", *(f"{name}_{i}" for i in every for name in ("Copy", "Apart"))]
