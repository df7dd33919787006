"""Spaces of the AST -> segments with offsets, and coordinates as formulas of flat positions.

    grid(t: 4, y: 6, x: 8):  q.y  -->  q div 8 mod 6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_expr import ExprLowering
from attnc.compiler.passes.lower_value import Item, LowerError, Num, Position
from attnc.dsl import nodes as ast
from attnc.dsl.source import Span

MAX_SEGMENTS = 4096
"""How many segments one space may have."""


@dataclass(frozen=True)
class Stretch:
    """Tokens ``start .. start + length - 1`` of a side: a segment, or a space of several.

    ``turn`` says which one of a family it is; ``extents`` is None where it has no coordinates.
    """

    name: str
    turn: int | None
    start: Num
    length: Num
    extents: tuple[Num, ...] | None = None
    axes: tuple[str, ...] = ()
    tile: tuple[int, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it never has a token."""
        return self.length.expr == ex.ZERO


@dataclass(frozen=True)
class Side:
    """The queries or the keys of a pattern: segments in order, and spaces of several by name."""

    segments: tuple[Stretch, ...]
    wholes: tuple[Stretch, ...]
    length: Num

    @property
    def space(self) -> pat.Space:
        """The space as the IR has it."""
        return pat.Space(segments=tuple(_ir(s) for s in self.segments))

    def find(self, name: str, turn: int | None) -> Stretch | None:
        """Return the stretch called so."""
        stretches = (*self.segments, *self.wholes)
        return next((s for s in stretches if (s.name, s.turn) == (name, turn)), None)


def _ir(stretch: Stretch) -> pat.Grid:
    assert stretch.extents is not None
    name = stretch.name if stretch.turn is None else f"{stretch.name}_{stretch.turn}"
    extents = tuple(extent.expr for extent in stretch.extents)
    return pat.Grid(name=name, axes=stretch.axes, extents=extents, tile=stretch.tile)


def free_names(node: ast.Node) -> dict[str, Span]:
    """Return the names that a part of the AST uses and does not bind, with a place of each."""
    used: dict[str, Span] = {}
    bound: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.Name(name=name, span=span):
                used.setdefault(name, span)
            case ast.Segment(var=str(var)):
                bound.add(var)
            case ast.Quantifier(var=var) | ast.Reduce(var=var) | ast.ListFor(var=var):
                bound.add(var)
            case ast.Let(name=name):
                bound.add(name)
            case _:
                pass
    return {name: span for name, span in used.items() if name not in bound}


class SpaceLowering:
    """Lays out spaces; ``extents`` are the symbolic extents found, in order."""

    def __init__(self, exprs: ExprLowering) -> None:
        self.exprs = exprs
        self.extents: dict[str, None] = {}

    def declare(self, on: ast.On, env: Env) -> Env:
        """Return the scope with the symbolic extents: bare names that are nothing else."""
        for space in (on.query, on.key):
            env = env if space is None else self._declared(space, env)
        return env

    def _declared(self, space: ast.Space, env: Env) -> Env:
        for name in free_names(space):
            if name not in env.names:
                self.extents.setdefault(name)
                env = env.bind(name, lv.read(name)).bounded(f"{name}[]", 0, None)
        for segment in space.segments:
            named = None if segment.name is None else env.module.find_space(segment.name)
            if segment.grid is None and named is not None:
                env = self._declared(named.item.space, env)
        return env

    def side(self, space: ast.Space, env: Env) -> Side:
        """Return where the tokens of a side stand."""
        segments: list[Stretch] = []
        wholes: list[Stretch] = []
        self._append(space, env, segments, wholes)
        return Side(tuple(segments), tuple(wholes), _end(segments, space.span))

    def _append(
        self, space: ast.Space, env: Env, segments: list[Stretch], wholes: list[Stretch]
    ) -> None:
        for segment in space.segments:
            start = _end(segments, segment.span)
            if segment.grid is None:
                assert segment.name is not None
                named = env.module.find_space(segment.name)
                assert named is not None, "checked: the space is known"
                before = len(segments)
                self._append(named.item.space, env, segments, wholes)
                added = segments[before:]
                if len(added) == 1 and not added[0].name:
                    segments[-1] = replace(added[0], name=segment.name)
                else:
                    length = lv.total([s.length for s in added], segment.span)
                    wholes.append(Stretch(segment.name, None, start, length))
                continue
            turns: Sequence[int | None] = (None,)
            if segment.var is not None:
                assert segment.low is not None
                assert segment.high is not None
                turns = self.exprs.turns(segment.low, segment.high, env)
            for turn in turns:
                inner = env if turn is None else env.bind(str(segment.var), lv.const(turn))
                start = _end(segments, segment.span)
                segments.append(self._grid(segment.grid, segment.name or "", turn, start, inner))
                if len(segments) > MAX_SEGMENTS:
                    raise LowerError(
                        "ATT0312", f"the space has more than {MAX_SEGMENTS} segments", segment.span,
                        help="use an input of segment numbers: `input doc: int[n]`",
                    )  # fmt: skip

    def _grid(
        self, grid: ast.Grid, name: str, turn: int | None, start: Num, env: Env
    ) -> Stretch:
        sides: list[Item]
        if grid.shape is None:
            sides = [self.exprs.value(axis.extent, env) for axis in grid.axes]
        else:
            shape = self.exprs.value(grid.shape, env)
            assert isinstance(shape, tuple)
            sides = list(shape)
        extents = tuple(s for s in sides if isinstance(s, Num))
        shown = "x".join(ex.show(e.expr) for e in extents)
        if any(isinstance(e.expr, ex.Const) and e.expr.value < 0 for e in extents):
            raise LowerError(
                "ATT0303", f"a side of the grid {shown} is negative", grid.span,
                help="a grid has 0 or more tokens along each axis",
            )  # fmt: skip
        length = lv.const(1)
        for extent in extents:
            length = product(length, extent, grid.span)
        tile = None if grid.tile is None else self._tile(grid.tile, extents, shown, env)
        axes = tuple(axis.name for axis in grid.axes)
        return Stretch(name, turn, start, length, extents, axes, tile)

    def _tile(
        self, tile: ast.Expr, extents: tuple[Num, ...], shown: str, env: Env
    ) -> tuple[int, ...]:
        sides = self.exprs.value(tile, env)
        assert isinstance(sides, tuple)
        numbers = tuple(
            int(self.exprs.compile_time(s, tile.span)) for s in sides if isinstance(s, Num)
        )
        known = [lv.known(e) for e in extents]
        if len(numbers) != len(extents) or any(
            side < 1 or (extent is not None and extent % side)
            for side, extent in zip(numbers, known, strict=True)
        ):
            raise LowerError(
                "ATT0318",
                f"tiles of {'x'.join(map(str, numbers))} do not divide the grid {shown}", tile.span,
                help="give one side for each axis; each divides the extent of its axis",
            )  # fmt: skip
        return numbers

    def coordinate(self, position: Position, axis: int, env: Env, span: Span) -> Num:
        """Return coordinate number ``axis`` of a position."""
        stretch = position.stretch
        assert stretch is not None, "checked: the position has coordinates"
        assert stretch.extents is not None
        if not 0 <= axis < len(stretch.extents):
            count = len(stretch.extents)
            raise LowerError(
                "ATT0308", f"there is no coordinate {axis} in a grid of {count} axes", span,
                label=f"this is {axis}", help=f"axes count from 0; the last is axis {count - 1}",
            )  # fmt: skip
        found = self._decoded(position.number, stretch, axis, span)
        if not env.scoring and not ex.is_static(found.expr):
            self.exprs.note("a coordinate of a grid whose extents are not fixed", span)
        return found

    @staticmethod
    def _decoded(number: Num, stretch: Stretch, axis: int, span: Span) -> Num:
        """Return a coordinate: tile by tile, or row-major."""
        assert stretch.extents is not None
        if stretch.tile is None:
            return _digit(number, stretch.extents, axis, span)
        tiles = tuple(
            _divide(e, lv.const(t), span)
            for e, t in zip(stretch.extents, stretch.tile, strict=True)
        )
        sides = tuple(map(lv.const, stretch.tile))
        tokens = lv.const(1)
        for side in sides:
            tokens = product(tokens, side, span)
        which = _digit(_divide(number, tokens, span), tiles, axis, span)
        inside = _remainder(number, tokens, span)
        digit = _digit(inside, sides, axis, span)
        return lv.total((product(sides[axis], which, span), digit), span)


def _digit(number: Num, sides: Sequence[Num], axis: int, span: Span) -> Num:
    """Return one digit of a row-major number; the first has no carry to drop."""
    stride = lv.const(1)
    for side in sides[axis + 1 :]:
        stride = product(stride, side, span)
    digit = _divide(number, stride, span)
    return digit if axis == 0 else _remainder(digit, sides[axis], span)


def _divide(number: Num, by: Num, span: Span) -> Num:
    divisor = lv.known(by)
    if divisor is not None:
        return lv.floor_div(number, int(divisor), span) if divisor else lv.const(0)
    return lv.quotient(number, by, span)


def _remainder(number: Num, by: Num, span: Span) -> Num:
    divisor = lv.known(by)
    if divisor is not None:
        return lv.modulo(number, int(divisor), span) if divisor else lv.const(0)
    return lv.remainder(number, by, span)


def product(left: Num, right: Num, span: Span) -> Num:
    """Return the product of two extents."""
    for one, other in ((left, right), (right, left)):
        factor = lv.known(one)
        if factor is not None:
            return lv.times(factor, other, span)
    found = lv.multiply(left, right, span)
    return replace(found, bound=min(found.bound, lv.POSITION_BOUND))


def _end(segments: list[Stretch], span: Span) -> Num:
    """Return where the next segment starts."""
    if not segments:
        return lv.const(0)
    return lv.total((segments[-1].start, segments[-1].length), span)
