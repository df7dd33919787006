"""Kernel plan: what codegen prints, every decision already made.

A ``LoopPlan`` is one GPU kernel for one target; a ``Plan`` is what one written module holds: the
GPU kernels and the CPU executor of one pattern. codegen reads these objects and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Progression, Tiling
from attnc.compiler.ir.gridmask import GridMask
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.score import RealExpr

Target = Literal["sm_80", "sm_90", "sm_100", "gfx942"]
TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "sm_100", "gfx942")


MAX_LENGTH = 1 << 30
"""Longest sequence an op takes, in tokens: positions are 32-bit in the kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of the one loop: a progression and the mask class its tiles use (0: no mask)."""

    tiles: Progression
    mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTiles:
    """How the tiles of a pattern that reads data are told apart, once the data is there.

    The segments beside it are the candidates: tiles outside them are empty whatever the data says.
    Those of mask 0 are full whatever it says (``core`` keeps all their pairs); those of mask 1 are
    tested: ``predicate`` in interval arithmetic over the tile. ``refine``: what the intervals
    leave open is evaluated pair by pair, a bounded number of tiles at a time, so that empty, full
    and partial are exact; otherwise an open tile is partial.
    """

    predicate: ex.BoolExpr
    core: ex.BoolExpr
    refine: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPlan:
    """One kernel: for each tile of one side one loop over tiles of the other, masks in branches.

    ``block_mask`` says which side has the rows: query tiles ``qb``, or of a transposed pattern the
    key tiles of the pattern that was written.
    ``form`` "ranges": the loop runs over the concatenated ``segments`` (at most 8), no table.
    ``form`` "table": the loop runs over a CSR row; an entry is ``kb * 8 + mask class``; the host
    builds the table from ``segments`` on the device once per lengths (count, scan, fill).
    ``form`` "data": the same table, a row for each batch, head and query tile as far as the data
    tells them apart; the host builds it from ``segments`` and ``data`` (class 0 full, 1 partial),
    at each call or, where the predicate reads extents at most, once per lengths and extents.
    ``masks[c - 1]`` is the residual predicate of mask class ``c``; class 0 is full.
    ``row_order``: "reversed" where isl proves that rows grow with ``qb``, "forward" where every row
    costs the same (or rows shrink), "sorted" otherwise: the host sorts rows by tile count, heavy
    first, once per lengths. The rows of form "data" are not sorted.
    ``boxes``: the tiles are boxes of a grid, of as many tokens, and ``segments`` is empty. The form
    is "table", made of the pieces of ``boxes``; masks read coordinates, or flat positions where one
    serves all, and a last one that is ``true`` is for full tiles that cross the end of an axis.
    """

    block_mask: BlockMask
    segments: tuple[Segment, ...]
    masks: tuple[ex.BoolExpr, ...]
    form: Literal["ranges", "table", "data"]
    row_order: Literal["forward", "reversed", "sorted"]
    head_dim: int
    value_dim: int
    dtype: Literal["fp32", "bf16", "fp16"]
    target: Target
    warps: int
    stages: int
    data: DataTiles | None = None
    boxes: GridMask | None = None

    @property
    def tiling(self) -> Tiling:
        """The tile shape in tokens, the side of the rows first."""
        return self.block_mask.tiling


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasFold:
    """A score for all queries of a tile, taken at ``q0``, the one in the middle.

    What each query adds to it, whatever the key, is ``of_row``: it joins the row's log-sum-exp.
    """

    score: RealExpr
    of_row: RealExpr


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPlan(LoopPlan):
    """The forward kernel: rows are query tiles; a row makes its outputs and log-sum-exps.

    ``fold``: what stands for the pattern's score in its loop (None: the score itself).
    """

    fold: BiasFold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardPlan:
    """The backward kernels: each row writes what is its own, but for sums of integers.

    ``dq``: rows are query tiles; a row makes its part of dQ.
    ``dkdv``: rows are key tiles, of the transposed pattern; a row makes its parts of dK and dV. All
    of it is in the names of the transposed pattern (``q``, ``qb``, ``nq`` are the keys');
    ``transpose.transposed`` gives an expression its own names back.
    ``dk``: where one pass holds too much: ``dkdv`` makes dV alone, and this one dK.
    ``learned``: rows are query tiles; a row adds to what learned inputs of the score get, in 64-bit
    integers, which add up to the same in any order. None: the score learns nothing.
    """

    dq: LoopPlan
    dkdv: LoopPlan
    dk: LoopPlan | None = None
    learned: LoopPlan | None = None

    @property
    def loops(self) -> tuple[LoopPlan, ...]:
        """All kernels, in the order they run."""
        return (self.dq, *self.of_keys, *(() if self.learned is None else (self.learned,)))

    @property
    def of_keys(self) -> tuple[LoopPlan, ...]:
        """Those whose rows are key tiles."""
        return (self.dkdv,) if self.dk is None else (self.dkdv, self.dk)


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePart:
    """GPU: one of the disjoint parts of a pattern, in the residue classes of ``modulus``.

    Token ``a`` of class ``r`` stands at ``a * modulus + r``; ``loop``, of form "ranges" and without
    sorted rows, counts the tokens of a class and serves every class.
    """

    modulus: int
    loop: ForwardPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class DistancePart:
    """GPU: the part that keeps the keys at some ``distances`` q - k, ascending, and no others.

    A program takes ``rows`` queries and one distance after the other: what it computes it keeps.
    """

    distances: tuple[int, ...]
    rows: int
    warps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """CPU: a progression of visited tiles of a row, full and partial together, and its residual.

    ``residual`` is the pattern inside the strip (true: nothing to check anywhere in it).
    ``shift`` ``(p, c)``, ``p > 0``: proved that for all positions of strip tiles, (q, k) is kept
    exactly when (q + p * tile.q, k + c * tile.k) is: one mask serves rows ``p`` apart whose first
    key tile moves by ``c`` tiles, for all rows ``qb >= shift_from``. None: not proved, masks are
    made row by row.
    """

    tiles: Progression
    residual: ex.BoolExpr
    shift: tuple[int, int] | None
    shift_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPart:
    """CPU: one of the disjoint parts of a pattern, in the residue classes of ``modulus``.

    Token ``a`` of class ``r`` stands at ``a * modulus + r``; ``block_mask`` and ``strips`` count
    the tokens of a class and serve every class.
    """

    modulus: int
    block_mask: BlockMask
    strips: tuple[Strip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDistances:
    """CPU: the part that keeps the keys at some ``distances`` q - k, ascending, and no others.

    The executor takes one distance after the other, without tiles: what it computes it keeps.
    """

    distances: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """CPU: the terms of a score as ``sum(of_query[i] * of_key[i]) + of_row``.

    Those of the query may depend on the head, those of the key do not. They are channels of q and k
    in a forward of float32 or float64, which walks the ``strips`` of the mask; elsewhere the score
    is evaluated pair by pair by the gathered executor.
    """

    of_query: tuple[RealExpr, ...]
    of_key: tuple[RealExpr, ...]
    of_row: RealExpr
    strips: tuple[Strip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPlan:
    """The CPU executor's strips (pairwise disjoint; results merge by log-sum-exp).

    ``parts``: the pattern is cut into parts in other token orders instead, and distances one by one
    as the last of them; ``strips`` is empty, and ``block_mask`` is the pattern in its natural order
    still.

    ``boxes``: the executor walks boxes of queries of a grid instead, with boxes of keys of one
    token: each with the keys that its queries see. ``strips`` and ``segments`` are empty; ``data``
    says how kernels on flat tiles would test them.

    ``block_mask`` has the same tiling and tells full from partial tiles for the report.
    The gathered executor runs where ``data`` is set or the pattern has score terms: ``segments``
    are its tiles (mask 0 full, mask 1 the whole predicate, as candidates with ``data``), and
    ``strips`` is empty. ``by_distance``: what depends on ``q - k`` alone, and is evaluated once for
    each distance: the terms of the "score", or "all", the mask too.
    """

    block_mask: BlockMask
    strips: tuple[Strip, ...]
    segments: tuple[Segment, ...] = ()
    data: DataTiles | None = None
    parts: tuple[CpuPart | CpuDistances, ...] = ()
    boxes: GridMask | None = None
    by_distance: Literal["", "score", "all"] = ""
    channels: Channels | None = None

    @property
    def tiling(self) -> Tiling:
        """The tile shape in tokens."""
        return self.block_mask.tiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything one written module needs; ``notes`` explain the choices (``--explain``).

    Either both executors have ``data`` or none has, with the same predicate; but a kernel on boxes
    never has. ``backward`` is None in a module that only runs forward; its kernels have ``data``
    where the forward has it or would without boxes, and the CPU executor needs no plan of its own
    for it. ``parts``: the forward runs in these, each going on from the row sums of those before
    it, instead of in ``forward``, which says what they have in common.
    """

    pattern: Pattern
    forward: ForwardPlan
    cpu: CpuPlan
    backward: BackwardPlan | None = None
    parts: tuple[TilePart | DistancePart, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
