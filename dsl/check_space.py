"""Spaces: their segments, axes and extents, and where the positions of a set live."""

from __future__ import annotations

from abc import abstractmethod

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import LENGTHS, Entry, Place, Scope, Side
from attnc.dsl.check_expr import ExprChecker
from attnc.dsl.kinds import INT, Kind, Time
from attnc.dsl.resolve import Module, Named
from attnc.dsl.source import Span

_LIST = ast.Type(kind="list", item=INT)


MAX_SEGMENTS = 256
"""Segments of one space, a family counted once."""
_UNKNOWN = Place((), "unknown", known=False)
PLAIN = Side(Place((), "sequence"))


class SpaceChecker(ExprChecker):
    """Checks spaces and the segments that sets name."""

    @abstractmethod
    def inside(self, module: Module) -> SpaceChecker: ...

    def on(self, on: ast.On | None, scope: Scope) -> tuple[Side, Side]:
        """Check the spaces of an item; symbolic extents come into scope."""
        if on is None:
            return PLAIN, PLAIN
        query = self.side(on.query, scope, "" if on.key is None else "query")
        key = query if on.key is None else self.side(on.key, scope, "key")
        for name, span in {**key.extents, **query.extents}.items():
            if name in scope:
                self.error(
                    "ATT0203", f"`{name}` is an extent of the space and a parameter", span,
                    help="rename the parameter",
                )  # fmt: skip
            scope[name] = Entry(Kind(INT, Time.RUN))
        return query, key

    def side(self, space: ast.Space, scope: Scope, of: str) -> Side:
        """Check one space in the scope of its item; ``of`` tells queries from keys."""
        side = Side(Place((), of or "sequence"))
        for segment in space.segments:
            self.segment(segment, side, scope, of, ())
        places = list(side.segments.values())
        if side.broken:
            side.whole = _UNKNOWN
        elif len(places) == 1 and not side.families:
            side.whole = places[0]
        else:
            side.whole = Place((), f"{of} space", tuple(n for n in side.segments if n) or ("...",))
        return side

    def segment(
        self,
        segment: ast.Segment,
        side: Side,
        scope: Scope,
        of: str,
        above: tuple[Named[ast.SpaceDef], ...],
    ) -> None:
        """Check a segment and enter it in ``side``; ``above``: the spaces that led here."""
        if segment.grid is None:
            self.named_space(segment, side, of, above)
            return
        inner = scope
        if segment.var is not None and segment.low is not None and segment.high is not None:
            for end in (segment.low, segment.high):
                self.known(end, self.need(end, scope, INT), "the number of segments")
            inner = {**scope, segment.var: Entry(Kind(INT, Time.COMPILE))}
        axes = self.grid(segment.grid, inner, side)
        self.enter(segment.name or "", axes, side, of, segment.span)
        if segment.var is not None and segment.name is not None:
            side.families.add(segment.name)

    def named_space(
        self, segment: ast.Segment, side: Side, of: str, above: tuple[Named[ast.SpaceDef], ...]
    ) -> None:
        """Enter the segments of a space that is used by name."""
        assert segment.name is not None
        found = self.module.find_space(segment.name)
        if found is None:
            known = (*self.module.own.spaces, *self.module.imported.spaces)
            self.error(
                "ATT0212", f"there is no space `{segment.name}`", segment.span,
                help=self.suggest(segment.name, known)
                or f"define it, `space {segment.name} = grid(y, x)`, or write the grid here",
            )  # fmt: skip
            side.broken = True
            return
        self.use(found.item)
        if found in above:
            side.broken = True  # reported as a cycle
            return
        part = self.defined(found, of, (*above, found))
        side.broken |= part.broken
        side.extents |= part.extents
        side.families |= part.families
        places = part.segments
        if list(places) == [""]:
            self.enter(segment.name, places[""].axes, side, of, segment.span)
            return
        for name, place in places.items():
            self.enter(name, place.axes, side, of, segment.span)

    def defined(
        self, found: Named[ast.SpaceDef], of: str, above: tuple[Named[ast.SpaceDef], ...]
    ) -> Side:
        """Return the segments of a ``space`` item, read once."""
        known = self.memory.sides.get((id(found.item), of))
        if known is not None:
            return known
        part = Side(PLAIN.whole)
        scope: Scope = dict(LENGTHS)
        for param in found.module.params:
            scope[param.name] = Entry(Kind(param.type, Time.COMPILE), param)
        reader = self.inside(found.module)  # what is wrong is reported where it is defined
        for segment in found.item.space.segments:
            reader.segment(segment, part, scope, of, above)
        self.memory.sides[id(found.item), of] = part
        return part

    def enter(
        self, name: str, axes: tuple[str, ...] | None, side: Side, of: str, span: Span
    ) -> None:
        if len(side.segments) >= MAX_SEGMENTS:
            if not side.broken:
                self.error(
                    "ATT0312", f"the space has more than {MAX_SEGMENTS} segments", span,
                    help="a family is one segment here: `levels[l in 0..99]: grid(...)`",
                )  # fmt: skip
            side.broken = True
            return
        if name and name in side.segments:
            self.error(
                "ATT0203", f"segment `{name}` is defined twice", span,
                help=f"give one of them another name: `{name}2: grid(...)`",
            )  # fmt: skip
            return
        # Named segments of queries and keys with one name are one thing; others are not.
        key = name or f" {len(side.segments)}" * bool(side.segments)
        side.segments[key] = Place(axes, f"segment {name}" if name else f"{of} {key}")

    def grid(self, grid: ast.Grid, scope: Scope, side: Side) -> tuple[str, ...] | None:
        """Check a grid; return its axes, None where they have no names."""
        axes: tuple[str, ...] | None = None
        if grid.shape is not None:
            kind = self.need(grid.shape, scope, _LIST)
            self.known(grid.shape, kind, "the shape of a grid")
        else:
            axes = tuple(a.name for a in grid.axes)
            for axis in grid.axes:
                self.extent(axis, scope, side)
                if axes.count(axis.name) > 1:
                    self.error(
                        "ATT0203", f"two axes are called `{axis.name}`", axis.span,
                        help="give each axis a name of its own",
                    )  # fmt: skip
                    break
        if grid.tile is not None:
            kind = self.need(grid.tile, scope, _LIST)
            self.known(grid.tile, kind, "a tile")
            if axes is not None and isinstance(grid.tile, ast.ListOf) \
                    and len(grid.tile.items) != len(axes):  # fmt: skip
                self.error(
                    "ATT0318", f"a tile of {len(grid.tile.items)} sides on a grid of {len(axes)} "
                    "axes", grid.tile.span, help="give one side for each axis",
                )  # fmt: skip
        return axes

    def extent(self, axis: ast.Axis, scope: Scope, side: Side) -> None:
        """Check an extent; a bare name that is nothing else is a symbolic one."""
        extent = axis.extent
        if isinstance(extent, ast.Name) and extent.name not in scope:
            side.extents.setdefault(extent.name, extent.span)
            return
        kind = self.need(extent, scope, INT)
        if kind.type is not None and kind.time != Time.COMPILE and not isinstance(extent, ast.Name):
            self.error(
                "ATT0319", "an extent that is computed from lengths", extent.span,
                label="this is known only at run time",
                help="use parameters and numbers, a length alone (`i: n`), or a name that is "
                "nothing else: its value is given at the call",
            )  # fmt: skip

    # -------------------------------------------------------------------------- positions

    def place(self, wanted: ast.SegmentName | None, side: Side, scope: Scope) -> Place:
        """Return where a position of a set lives."""
        if wanted is None:
            return side.whole
        name = wanted.name
        if name in side.segments:
            family = name in side.families
            if wanted.index is not None:
                kind = self.need(wanted.index, scope, INT)
                self.known(wanted.index, kind, "the number of a segment")
            if family == (wanted.index is not None):
                return side.segments[name]
            self.error(
                "ATT0212", f"`{name}` is {'a family of segments' if family else 'one segment'}",
                wanted.span,
                help=f"choose one: `{name}[0]`" if family else "write it without an index",
            )  # fmt: skip
            return side.segments[name]
        space = self.module.find_space(name)
        if space is not None and wanted.index is None and len(space.item.space.segments) > 1:
            self.use(space.item)
            return Place((), f"space {name}", tuple(side.segments))
        if not side.whole.known:
            return _UNKNOWN
        known = [n for n in side.segments if n.strip()]
        self.error(
            "ATT0212", f"there is no segment `{name}` here", wanted.span,
            help=self.suggest(name, known)
            or (f"the segments are {', '.join(f'`{n}`' for n in known)}" if known
                else f"name it: `on {name}: grid(...)`"),
        )  # fmt: skip
        return _UNKNOWN
