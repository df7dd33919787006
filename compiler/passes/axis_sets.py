"""One axis of a grid as integer sets: its pairs of tokens, its tiles, and their progressions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import islpy as isl

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression
from attnc.compiler.passes import progression as prog
from attnc.compiler.passes.residual import residual


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis of known extents and the sides of its tiles, in tokens; ``heads`` of the mask."""

    queries: int
    keys: int
    side_q: int
    side_k: int
    heads: int | None

    @property
    def rows(self) -> int:
        """Tiles of queries."""
        return -(-self.queries // self.side_q)

    @property
    def columns(self) -> int:
        """Tiles of keys."""
        return -(-self.keys // self.side_k)


class AxisSets:
    """Relations between positions ``q`` and ``k`` of an axis, and between its tiles, by isl.

    Every method but the first may raise OverBudget, and asks isl under the budget of its caller.
    """

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._head = "[h] ->" if axis.heads is not None else "[] ->"
        self._heads = f"0 <= h < {axis.heads}" if axis.heads is not None else ""
        self._pairs: dict[ex.BoolExpr, isl.Map] = {}

    def pairs(self, condition: ex.BoolExpr) -> isl.Map:
        """Return the existing pairs of positions that satisfy a condition on q, k and h."""
        if condition not in self._pairs:
            axis = self._axis
            domain = f"0 <= q < {axis.queries} and 0 <= k < {axis.keys}"
            if self._heads:
                domain += f" and {self._heads}"
            pairs = sets.pair_map(condition, ["h"] if self._heads else [], domain)
            self._pairs[condition] = pairs.coalesce()
        return self._pairs[condition]

    def minus(self, left: isl.Map, right: isl.Map) -> isl.Map:
        """Return what is in ``left`` and not in ``right``."""
        return sets.minus(left, right).coalesce()

    def both(self, left: isl.Map, right: isl.Map) -> isl.Map:
        """Return what is in both."""
        return left.intersect(right).coalesce()

    def is_empty(self, found: isl.Map) -> bool:
        """Return whether there is nothing, for any head."""
        return bool(found.is_empty())

    def tiles(self, pairs: isl.Map) -> isl.Map:
        """Return the pairs of tiles with some pair of positions in them."""
        return pairs.wrap().apply(self._token_tiles).unwrap().coalesce()

    def split(self, tiles: isl.Map) -> list[tuple[Progression, isl.Map]]:
        """Cut tiles into disjoint progressions, bounds in ``qb`` and ``h``."""
        found = []
        for progression, exact in prog.split(self._row(tiles)):
            used = ex.free_vars(progression.base) | ex.free_vars(progression.count)
            if not used <= {"qb", "h"}:
                raise sets.OverBudget("loop bounds that need an existential variable")
            found.append((progression, _as_map(exact)))
        return found

    def hull(self, tiles: isl.Map) -> Progression:
        """Return one interval for each row that holds all its tiles."""
        if tiles.is_empty():
            return Progression(base=ex.ZERO, count=ex.ZERO)
        found = prog.hull(self._row(tiles))
        if found is None or not ex.free_vars(found.base) | ex.free_vars(found.count) <= {"qb", "h"}:
            raise sets.OverBudget("the hull has no simple bound")
        return found

    def residual(self, condition: ex.BoolExpr, tiles: isl.Map) -> ex.BoolExpr:
        """Return what of a condition is to be checked in some tiles; false: no pair has it."""
        wanted = self.pairs(condition)
        inside = self._token_tiles.intersect_range(tiles.wrap()).domain()
        if inside.intersect(wanted.wrap()).is_empty():
            return ex.FALSE
        return residual(wanted, tiles, self._token_tiles, self._context, condition)

    @cached_property
    def _token_tiles(self) -> isl.Map:
        axis = self._axis
        return sets.read_map(
            f"{self._head} {{ [[q] -> [k]] -> [[qb] -> [kb]] : 0 <= q < {axis.queries}"
            f" and 0 <= k < {axis.keys} and 0 <= q - {axis.side_q} qb < {axis.side_q}"
            f" and 0 <= k - {axis.side_k} kb < {axis.side_k} }}"
        )

    @cached_property
    def _context(self) -> isl.Set:
        return sets.read_set(f"{self._head} {{ : {self._heads or '1 = 1'} }}")

    def _row(self, tiles: isl.Map) -> prog.Row:
        head = "[qb, h]" if self._heads else "[qb]"
        bounds = f"0 <= qb < {self._axis.rows}"
        bounds += f" and {self._heads}" if self._heads else ""
        return prog.row_of(tiles, sets.read_set(f"{head} -> {{ : {bounds} }}"))


def _as_map(tiles: isl.Set) -> isl.Map:
    """Turn key tiles with parameter ``qb`` back into ``{ [qb] -> [kb] }``."""
    return isl.Map.from_range(tiles).move_dims(isl.dim_type.in_, 0, isl.dim_type.param, 0, 1)
