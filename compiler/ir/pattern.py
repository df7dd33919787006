"""Pattern IR: a typed set algebra over (query, key) pairs, parameters already substituted.

Leaves are predicates of ``expr.py`` over ``q``, ``k``, ``h``, ``nq``, ``nk``. All meaning is
relative to the legal pairs ``0 <= q < nq, 0 <= k < nk, 0 <= h < heads``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.arrays import ArrayExpr
from attnc.compiler.ir.score import RealExpr

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnc.dsl.diagnostics import Diagnostic


@dataclass(frozen=True, slots=True)
class Where:
    """``{ q -> k, h : predicate }``."""

    predicate: ex.BoolExpr


@dataclass(frozen=True, slots=True)
class Union:
    """``a | b``: keep (q, k) when some part keeps it."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Intersection:
    """``a & b``: keep (q, k) when every part keeps it."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """``a - b``: keep (q, k) when ``left`` keeps it and ``right`` does not."""

    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Complement:
    """``~a``: keep the legal pairs that ``part`` does not keep."""

    part: Node


Node: TypeAlias = Where | Union | Intersection | Difference | Complement


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A stretch of tokens with coordinates, row-major, the last axis fastest.

    ``extents`` are constants, expressions of ``nq`` and ``nk``, or reads of symbolic extents.
    ``tile``: the tokens stand tile by tile instead (one side for each axis).
    """

    name: str
    axes: tuple[str, ...]
    extents: tuple[ex.IntExpr, ...]
    tile: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Segments one after the other: where the tokens of one side stand."""

    segments: tuple[Grid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A run-time tensor: its element kind, its sides (None: as long as it is) and its formula.

    ``formula`` None: given at the call, also with a batch dimension in front; otherwise computed
    from other inputs, by the host on the device of q.
    """

    name: str
    kind: Literal["int", "bool", "real"]
    dims: tuple[ex.IntExpr | None, ...]
    formula: ArrayExpr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A named pattern, all parameters bound.

    ``heads`` is None when the same mask serves every head; otherwise the mask depends on the head
    ``h`` in ``0 .. heads - 1``: a query head, and an op takes exactly that many, or with
    ``kv_heads`` a key/value head that serves a group of query heads.
    ``query_space`` and ``key_space`` give positions coordinates (None: a plain sequence). ``body``
    speaks of flat positions all the same. ``extents`` names the symbolic extents, numbers an op
    takes at the call. ``score`` is what the softmax runs over (None: the scaled product),
    ``sink`` a logit beside the keys, ``scale`` the factor of the product (None: 1 / sqrt(D)).
    ``warnings`` are the diagnostics found while lowering; they take no part in comparisons.
    """

    name: str
    heads: int | None
    body: Node
    kv_heads: bool = False
    query_space: Space | None = None
    key_space: Space | None = None
    extents: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    score: RealExpr | None = None
    sink: RealExpr | None = None
    scale: Fraction | None = None
    params: tuple[tuple[str, str], ...] = ()
    source_text: str = field(default="", compare=False)
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)

    @property
    def predicate(self) -> ex.BoolExpr:
        """The whole body as one predicate."""
        return predicate(self.body)

    def mask(self, nq: int, nk: int) -> NDArray[np.bool_]:
        """Evaluate to the dense mask. Shape: ``[heads or 1, nq, nk]``. This defines the IR."""
        import numpy as np

        q = np.arange(nq, dtype=np.int64)[None, :, None]
        k = np.arange(nk, dtype=np.int64)[None, None, :]
        heads = self.heads or 1
        h = np.arange(heads, dtype=np.int64)[:, None, None]
        kept = ex.evaluate(self.predicate, {"q": q, "k": k, "h": h, "nq": nq, "nk": nk})
        return np.broadcast_to(np.asarray(kept, dtype=bool), (heads, nq, nk)).copy()


def predicate(node: Node) -> ex.BoolExpr:
    """Return the predicate of a node: the algebra written with and, or, not."""
    match node:
        case Where(inner):
            return inner
        case Union(parts):
            return ex.or_(*map(predicate, parts))
        case Intersection(parts):
            return ex.and_(*map(predicate, parts))
        case Difference(left, right):
            return ex.and_(predicate(left), ex.not_(predicate(right)))
        case Complement(part):
            return ex.not_(predicate(part))
