"""Loop of a plan -> kernel text: its segments, the tile of an iteration, the branches of masks."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.codegen.kernel_terms import KernelTerms
from attnc.codegen.predicate import Level
from attnc.codegen.simplify import from_first
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Progression
from attnc.compiler.ir.plan import LoopPlan
from attnc.compiler.ir.transpose import transposed

ALWAYS = "it >= 0"
"""The test of a class that every iteration belongs to."""

_LONGEST_COMMENT = 240


class LoopText:
    """Prints the loop of a plan: the tiles of one side that a tile of the other visits."""

    def __init__(
        self, plan: LoopPlan, terms: KernelTerms, tests: list[tuple[int, str]], out: Writer
    ) -> None:
        self.plan, self.terms, self.tests, self.out = plan, terms, tests, out
        self.side = terms.sides.column

    @property
    def end(self) -> str:
        """The number of iterations."""
        return f"end_{len(self.plan.segments) - 1}" if self.plan.form == "ranges" else "tiles"

    def segments(self) -> None:
        """Print where the segments of a row begin and end, or its stretch of the table."""
        out, plan, terms = self.out, self.plan, self.terms
        if plan.form != "ranges":
            out.comment(
                f"The {terms.sides.tiles} tiles of this row: an entry is `tile * 8 + mask class`."
            )
            row = f"{terms.sides.row}b"
            if plan.form == "data":
                row = f"b * table_batch + {terms.head} * table_head + {row}"
            elif plan.block_mask.pattern.heads:
                row = f"{terms.head} * N{terms.sides.row.upper()} + {row}"
            out.line(f"row_start = tl.load(RowStart + {row})")
            out.line(f"tiles = (tl.load(RowStart + {row} + 1) - row_start).to(tl.int32)")
            out.line("row_entries = Entries + row_start")
            out.line()
            return
        before = ""
        for number, segment in enumerate(plan.segments):
            mask = segment.mask
            why = f"mask {mask}: {self._mask(mask)}" if mask else "full"
            out.comment(f"Segment {number}, {why}")
            first = terms.tile.name(f"first_{number}", segment.tiles.base)
            out.line(f"{first} = {terms.tile.tile(segment.tiles.base)}")
            tiles = segment.tiles
            count = from_first(tiles.count, tiles.base, first, terms.tile.ranges)
            tight = Level.SUM if before else Level.COMPARE
            end = terms.tile.tile(ex.maximum(count, ex.ZERO), tight)
            out.line(f"end_{number} = {before}{end}")
            before = f"end_{number} + "
        out.line()

    def tile(self) -> None:
        """Print which tile an iteration visits."""
        out, plan, name = self.out, self.plan, f"{self.side}b"
        if plan.form != "ranges":
            out.line("entry = tl.load(row_entries + it)")
            out.line(f"{name} = entry >> 3")
            return
        last = len(plan.segments) - 1
        for number in range(last, -1, -1):
            i = "it" if number == 0 else f"it - end_{number - 1}"
            tile = f"first_{number} + {_step(i, plan.segments[number].tiles)}"
            out.line(
                f"{name} = {tile}" if number == last
                else f"{name} = tl.where(it < end_{number}, {tile}, {name})"
            )

    def masks(self, value: str = "s", masked: str = 'float("-inf")') -> None:
        """Mask what a tile does not keep, behind a branch for each class.

        Args: ``masked`` is what ``value``, its scores or weights, becomes.
        """
        out, tests = self.out, self.tests
        if tests and tests[0][1] == ALWAYS:
            self._masked(tests[0][0], value, masked)
            return
        keyword = "if"
        for number, test in tests:
            with out.block(f"{keyword} {test}:"):
                self._masked(number, value, masked)
            keyword = "elif"
        if self.plan.boxes is not None:  # boxes that cross an end have a mask class
            return
        with out.block(f"{keyword} {self.side}b >= whole_tiles:"):
            tokens = self.terms.sides.tokens
            out.comment(f"mask 0: a full tile that crosses the end of the {tokens}")
            out.line(f"{value} = tl.where({self.terms.there}, {value}, {masked})")

    def _masked(self, number: int, value: str, masked: str) -> None:
        """Mask a tile of one class."""
        self.out.comment(f"mask {number}: {self._mask(number)}")
        keep = self.terms.masks[number]
        for line in keep.loads:
            self.out.line(line)
        self.out.line(f"{value} = tl.where({keep.text}, {value}, {masked})")

    def _mask(self, number: int) -> str:
        """Show what a mask class checks, in the names of the pattern that was written."""
        residual = self.plan.masks[number - 1]
        text = ex.show(transposed(residual) if self.terms.sides.inverse else residual)
        return text if len(text) <= _LONGEST_COMMENT else f"{text[:_LONGEST_COMMENT]} ..."


def class_tests(plan: LoopPlan) -> Iterator[tuple[int, str]]:
    """Yield each mask class in use and the uniform test that this iteration belongs to it."""
    passed: set[int] = set()  # segments that an earlier test already took
    for number in range(1, len(plan.masks) + 1):
        if plan.form != "ranges":
            yield number, f"(entry & 7) == {number}"
            continue
        member = [s.mask == number for s in plan.segments]
        tests = []
        start = 0
        while start < len(member):
            if not member[start]:
                start += 1
                continue
            stop = start
            while stop + 1 < len(member) and member[stop + 1]:
                stop += 1
            bounds = []
            if not passed.issuperset(range(start)):
                bounds.append(f"it >= end_{start - 1}")
            if not passed.issuperset(range(stop + 1, len(member))):
                bounds.append(f"it < end_{stop}")
            tests.append(bounds)
            start = stop + 1
        passed.update(i for i, inside in enumerate(member) if inside)
        if tests:
            yield number, _either(tests)


def _step(i: str, tiles: Progression) -> str:
    """Print ``period * (i div run) + i mod run`` for ``i >= 0``."""
    inner = i if i == "it" else f"({i})"
    if tiles.period == tiles.run:
        return i
    if tiles.run == 1:
        return f"{inner} * {tiles.period}"
    return f"{inner} // {tiles.run} * {tiles.period} + {inner} % {tiles.run}"


def _either(tests: list[list[str]]) -> str:
    """Join bounds by and, the groups by or."""
    if any(not bounds for bounds in tests):
        return ALWAYS
    if len(tests) == 1 and len(tests[0]) == 1:
        return tests[0][0]
    groups = [
        bounds[0] if len(bounds) == 1 else " & ".join(f"({b})" for b in bounds)
        for bounds in tests
    ]
    return groups[0] if len(groups) == 1 else " | ".join(f"({g})" for g in groups)


def one_line(text: str) -> str:
    """Make a text safe inside a docstring."""
    return text.replace("\\", "\\\\").replace('"', "'").replace("\n", " ")
