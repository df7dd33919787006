"""Spaces -> coordinates of every token: where the positions of one side stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnc.compiler.oracle_expr import Env, Position
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.resolve import Module

Evaluate = Callable[[ast.Expr, Env], Any]


@dataclass(frozen=True, eq=False)
class Stretch:
    """Tokens ``start .. start + length - 1`` of a side: a segment, or a space of several.

    ``turn`` says which one of a family it is. ``sides`` are the extents of its grid, None where it
    has no coordinates; ``tile`` is there where tokens stand tile by tile.
    """

    name: str | None
    turn: int | None
    start: int
    length: int
    sides: tuple[int, ...] | None = None
    axes: tuple[str, ...] = ()
    tile: tuple[int, ...] | None = None

    def positions(self, is_query: bool) -> Position:
        """Return all its positions, from 0. Shape: ``[length, 1]`` of queries, ``[1, length]``."""
        shape = (-1, 1) if is_query else (1, -1)
        number = np.arange(self.length, dtype=np.int64)
        if self.sides is None:
            return Position(number.reshape(shape))
        coordinates: list[Any] = list(_unravel(number, self.sides))
        if self.tile is not None:
            tiles = tuple(s // t for s, t in zip(self.sides, self.tile, strict=True))
            which = _unravel(number // math.prod(self.tile), tiles)
            inside = _unravel(number % math.prod(self.tile), self.tile)
            coordinates = [w * t + i for w, t, i in zip(which, self.tile, inside, strict=True)]
        return Position(
            number.reshape(shape), self.axes, tuple(c.reshape(shape) for c in coordinates)
        )


def _unravel(number: Any, sides: tuple[int, ...]) -> Iterator[Any]:
    """Yield the row-major coordinates of tokens, the last axis fastest."""
    for axis in range(len(sides)):
        yield number // max(math.prod(sides[axis + 1 :]), 1) % max(sides[axis], 1)


def lay_out(space: ast.Space, module: Module, value: Evaluate, env: Env) -> tuple[Stretch, ...]:
    """Return the segments of a space in order, and after them each named space of several."""
    segments: list[Stretch] = []
    wholes: list[Stretch] = []
    _append(space, module, value, env, segments, wholes)
    return (*segments, *wholes)


def _append(
    space: ast.Space,
    module: Module,
    value: Evaluate,
    env: Env,
    segments: list[Stretch],
    wholes: list[Stretch],
) -> None:
    for segment in space.segments:
        start = segments[-1].start + segments[-1].length if segments else 0
        if segment.grid is None:
            assert segment.name is not None
            named = module.find_space(segment.name)
            assert named is not None
            before = len(segments)
            _append(named.item.space, named.module, value, env, segments, wholes)
            added = segments[before:]
            if len(added) == 1 and added[0].name is None:
                segments[-1] = _renamed(added[0], segment.name)
            else:
                length = sum(s.length for s in added)
                wholes.append(Stretch(segment.name, None, start, length))
        elif segment.var is None:
            segments.append(_grid(segment.grid, segment.name, None, start, value, env))
        else:
            assert segment.low is not None
            assert segment.high is not None
            ends = int(value(segment.low, env)), int(value(segment.high, env))
            for turn in range(ends[0], ends[1] + 1):
                inner = {**env, segment.var: turn}
                segments.append(_grid(segment.grid, segment.name, turn, start, value, inner))
                start += segments[-1].length


def _renamed(s: Stretch, name: str) -> Stretch:
    return Stretch(name, s.turn, s.start, s.length, s.sides, s.axes, s.tile)


def _grid(
    grid: ast.Grid, name: str | None, turn: int | None, start: int, value: Evaluate, env: Env
) -> Stretch:
    shape = [value(a.extent, env) for a in grid.axes] if grid.shape is None else \
        value(grid.shape, env)  # fmt: skip
    sides = tuple(int(side) for side in shape)
    tile = None if grid.tile is None else tuple(int(t) for t in value(grid.tile, env))
    where = grid.span
    if any(side < 0 for side in sides):
        raise _refused("ATT0303", f"a side of the grid {_times(sides)} is negative", where)
    if tile is not None and (
        len(tile) != len(sides) or any(t < 1 or s % t for s, t in zip(sides, tile, strict=True))
    ):
        raise _refused(
            "ATT0318", f"tiles of {_times(tile)} do not divide the grid {_times(sides)}", where
        )
    axes = tuple(a.name for a in grid.axes)
    return Stretch(name, turn, start, math.prod(sides), sides, axes, tile)


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _refused(code: str, message: str, span: Any) -> CompileError:
    return CompileError([Diagnostic(code=code, message=message, span=span)])


def total(stretches: tuple[Stretch, ...]) -> int:
    """Return how many tokens a side has."""
    return max((s.start + s.length for s in stretches), default=0)


def free_names(node: ast.Node, module: Module) -> set[str]:
    """Return the names a space or an expression uses and does not bind itself."""
    used: set[str] = set()
    bound: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.Name(name=name):
                used.add(name)
            case ast.Segment(name=name, grid=None) if name is not None:
                named = module.find_space(name)
                if named is not None:
                    used |= free_names(named.item.space, named.module)
            case ast.Segment(var=var) if var is not None:
                bound.add(var)
            case ast.Quantifier(var=var) | ast.Reduce(var=var) | ast.ListFor(var=var):
                bound.add(var)
            case ast.Let(name=name):
                bound.add(name)
            case _:
                pass
    return used - bound
