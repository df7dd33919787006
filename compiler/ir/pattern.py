"""Pattern IR: a typed set algebra over (query, key) pairs, parameters already substituted.

Leaves are predicates of ``expr.py`` over ``q``, ``k``, ``h``, ``nq``, ``nk``. All meaning is
relative to the legal pairs ``0 <= q < nq, 0 <= k < nk, 0 <= h < heads``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.arrays import ArrayExpr
from attnc.compiler.ir.score import RealExpr
from attnc.compiler.ir.transpose import transposed, transposed_formula, transposed_score

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


Align = Literal["top-left", "bottom-right"]
"""Where query i stands among the keys when lengths differ: at i, or at i + nk - nq."""


Node: TypeAlias = Where | Union | Intersection | Difference | Complement


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A stretch of tokens with coordinates, row-major, the last axis fastest.

    ``extents`` are constants, expressions of ``nq`` and ``nk``, or reads of symbolic extents.
    ``axes`` is empty where the coordinates have numbers only. ``name`` is "" where none was given.
    ``tile``: the tokens stand tile by tile instead (one side for each axis).
    """

    name: str
    axes: tuple[str, ...]
    extents: tuple[ex.IntExpr, ...]
    tile: tuple[int, ...] | None = None

    @property
    def length(self) -> ex.IntExpr:
        """How many tokens it has."""
        length: ex.IntExpr = ex.ONE
        for extent in self.extents:
            length = ex.mul(length, extent)
        return length


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Segments one after the other: where the tokens of one side stand."""

    segments: tuple[Grid, ...]

    @property
    def length(self) -> ex.IntExpr:
        """How many tokens all segments have."""
        return ex.add(*(segment.length for segment in self.segments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A run-time tensor: its element kind, its sides (None: as long as it is) and its formula.

    A side that is ``rows``, ``rows + 1``, ``2 * rows - 1`` of a name that is no input and no extent
    defines that number, a *size*: ``size_of`` says how.

    ``formula`` None: given at the call, also with a batch dimension in front; otherwise computed
    from other inputs, by the host on the device of q. A formula of fewer axes is broadcast.
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
    ``align`` says how ``body``, scores and inputs were rewritten (``passes/align.py``): where the
    language leaves it open, query i stands at position i.
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
    align: Align = "top-left"
    params: tuple[tuple[str, str], ...] = ()
    source_text: str = field(default="", compare=False)
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)

    @property
    def predicate(self) -> ex.BoolExpr:
        """The whole body as one predicate."""
        return predicate(self.body)

    @property
    def lengths(self) -> tuple[int | None, int | None]:
        """How many queries and keys there always are, None where the call decides."""
        found = (None if s is None else s.length for s in (self.query_space, self.key_space))
        q, k = (length.value if isinstance(length, ex.Const) else None for length in found)
        return q, k

    @property
    def sizes(self) -> tuple[str, ...]:
        """The numbers that sides of inputs define, in the order they appear."""
        taken = {*self.extents, *(i.name for i in self.inputs)}
        sides = (side for i in self.inputs for side in i.dims if side is not None)
        named = (found[0] for found in map(size_of, sides) if found is not None)
        return tuple(dict.fromkeys(name for name in named if name not in taken))

    @property
    def is_static(self) -> bool:
        """Whether isl can hold the mask: it reads nothing and is linear."""
        return ex.is_static(self.predicate)

    def transposed(self) -> Pattern:
        """Return the inverse relation: keeps (k, q) where this one keeps (q, k).

        Spaces, lengths and score terms are exchanged as well; heads and inputs stay, and so do the
        names of inputs. Rows of its block mask are the key tiles of this pattern.
        """
        return replace(
            self,
            body=_transposed(self.body),
            query_space=_transposed_space(self.key_space),
            key_space=_transposed_space(self.query_space),
            inputs=tuple(map(_transposed_input, self.inputs)),
            score=None if self.score is None else transposed_score(self.score),
            sink=None if self.sink is None else transposed_score(self.sink),
        )

    def given(
        self,
        nq: int,
        nk: int,
        inputs: Mapping[str, Any] | None = None,
        extents: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Return everything that expressions read: inputs, computed ones, extents and sizes."""
        import numpy as np

        known: dict[str, Any] = {**(inputs or {}), **(extents or {})}
        sizes = self.sizes
        for one in self.inputs:
            if one.name not in known and one.formula is not None:
                values = {"nq": nq, "nk": nk}
                computed = ar.evaluate(one.formula, values, known, self.heads or 1)
                if np.ndim(computed) < len(one.dims):
                    sides = [int(ex.evaluate(d, values, known)) for d in one.dims if d is not None]
                    computed = np.broadcast_to(computed, sides)
                known[one.name] = computed
            if one.name in known:
                for side, extent in zip(np.shape(known[one.name]), one.dims, strict=False):
                    found = None if extent is None else size_of(extent)
                    if found is not None and found[0] in sizes:
                        known.setdefault(found[0], (side - found[2]) // found[1])
        return known

    def mask(
        self,
        nq: int,
        nk: int,
        inputs: Mapping[str, Any] | None = None,
        extents: Mapping[str, int] | None = None,
    ) -> NDArray[np.bool_]:
        """Evaluate to the dense mask. Shape: ``[heads or 1, nq, nk]``. This defines the IR.

        ``inputs`` are tensors without a batch dimension, and numbers, by name.
        Raises: ValueError if an input that is read is missing.
        """
        import numpy as np

        scope, shape = self._scope(nq, nk)
        kept = ex.evaluate(self.predicate, scope, self.given(nq, nk, inputs, extents))
        return np.broadcast_to(np.asarray(kept, dtype=bool), shape).copy()

    def scores(
        self,
        nq: int,
        nk: int,
        inputs: Mapping[str, Any] | None = None,
        extents: Mapping[str, int] | None = None,
        dot: Any = 0.0,
    ) -> NDArray[np.float64]:
        """Evaluate what the softmax runs over, before the mask; ``dot`` is the scaled product.

        Shape: ``[heads or 1, nq, nk]``, float64; one for each head where ``dot`` has a head axis.
        """
        import numpy as np

        scope, shape = self._scope(nq, nk)
        score = self.score if self.score is not None else sc.Dot()
        found = np.asarray(
            sc.evaluate(score, scope, self.given(nq, nk, inputs, extents), dot), dtype=np.float64
        )
        return np.broadcast_to(found, np.broadcast_shapes(found.shape, shape)).copy()

    def _scope(self, nq: int, nk: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
        import numpy as np

        heads = self.heads or 1
        scope = {
            "q": np.arange(nq, dtype=np.int64)[None, :, None],
            "k": np.arange(nk, dtype=np.int64)[None, None, :],
            "h": np.arange(heads, dtype=np.int64)[:, None, None],
            "nq": nq,
            "nk": nk,
        }
        return scope, (heads, nq, nk)


def size_of(side: ex.IntExpr) -> tuple[str, int, int] | None:
    """Return ``(name, factor, offset)`` of a side that is ``factor * name + offset``, else None."""
    match side:
        case ex.Read(name, ()):
            return name, 1, 0
        case ex.Scale(factor, ex.Read(name, ())):
            return name, factor, 0
        case ex.Add((ex.Read() | ex.Scale() as part, ex.Const(offset))):
            found = size_of(part)
            return None if found is None else (found[0], found[1], offset)
    return None


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


def _transposed(node: Node) -> Node:
    match node:
        case Where(inner):
            return Where(transposed(inner))
        case Union(parts):
            return Union(tuple(map(_transposed, parts)))
        case Intersection(parts):
            return Intersection(tuple(map(_transposed, parts)))
        case Difference(left, right):
            return Difference(_transposed(left), _transposed(right))
        case Complement(part):
            return Complement(_transposed(part))


def _transposed_space(space: Space | None) -> Space | None:
    if space is None:
        return None
    return Space(
        segments=tuple(
            replace(grid, extents=tuple(map(transposed, grid.extents))) for grid in space.segments
        )
    )


def _transposed_input(one: Input) -> Input:
    return replace(
        one,
        dims=tuple(None if side is None else transposed(side) for side in one.dims),
        formula=None if one.formula is None else transposed_formula(one.formula),
    )
