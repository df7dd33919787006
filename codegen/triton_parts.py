"""parts of a plan -> Triton kernels: each goes on where the one before it stopped.

A row of a part starts from the sums of the parts before it (``Before`` and ``Lse``) as if it had
just visited their keys itself, so nothing is merged afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from attnc.codegen.triton_forward import KERNEL, ForwardKernel, parameters
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.plan import DistancePart, ForwardPlan, Plan, TilePart


def emit_part_kernels(plan: Plan) -> str:
    """Print the kernels ``_attend_1``, ``_attend_2``, ... of the parts of a plan."""
    numbers = range(1, len(plan.parts) + 1)
    return "\n\n".join(_kernel(plan, number).text() for number in numbers)


def part_parameters(plan: Plan, number: int) -> tuple[tuple[str, str], ...]:
    """Return the run-time arguments of a part's kernel in order, with their Triton types."""
    return _kernel(plan, number).given()


def _kernel(plan: Plan, number: int) -> _PartKernel:
    part = plan.parts[number - 1]
    if isinstance(part, TilePart):
        return _ClassKernel(part, number)
    return _DistanceKernel(part, plan.forward, number)


def part_loop(part: TilePart | DistancePart, common: ForwardPlan) -> ForwardPlan:
    """Return a forward plan with the dims and the tile of a part."""
    if isinstance(part, TilePart):
        return part.loop
    mask = replace(common.block_mask, tiling=Tiling(part.rows, 16), pieces=())
    return replace(
        common, block_mask=mask, segments=(), masks=(), form="ranges", row_order="forward",
        warps=part.warps, stages=1, boxes=None,
    )


class _PartKernel(ForwardKernel):
    """What the kernels of all parts have in common: they are numbered, and go on."""

    def __init__(self, loop: ForwardPlan, number: int) -> None:
        super().__init__(loop)
        self.first = number == 1
        self.name = f"{KERNEL}_{number}"
        self.placed = False

    def given(self) -> tuple[tuple[str, str], ...]:
        """Return the run-time arguments; later parts also read what stands in rows of fp32."""
        given = parameters(self.plan)
        at = [name for name, _ in given].index("Lse") + 1
        before = () if self.first else (("Before", "*fp32"),)
        return (*given[:at], *before, *given[at:])

    def start(self, sink: str) -> None:
        """Print what a row holds before its first key: the sums of the parts before this one."""
        if self.first:
            super().start(sink)
            return
        out = self.out
        row, _ = self.places()
        out.comment("Go on from the parts before this one.")
        out.line(f'lse = tl.load(Lse + {row}, mask={self.inside}, other=float("-inf"))')
        out.line("lse = tl.reshape(lse, [BQ])")
        out.line('top = tl.where(lse == float("-inf"), -3.0e38, lse * 1.4426950408889634)')
        out.line('total = tl.where(lse == float("-inf"), 0.0, 1.0)')
        width = self.pads()[1]
        mask = self.inside if width == "DV" else f"({self.inside}) & (value_dims[None, :] < DV)"
        place = f"Before + {row} * DV + value_dims[None, :]"
        out.call("accumulated = tl.load(", [place, f"mask={mask}", "other=0.0"], ")  # [BQ, DV]")
        out.line()

    def places(self) -> tuple[str, str]:
        """Print where the row's results go, once; return their places in lse and in out."""
        if not self.placed:
            self.place_rows()
            self.placed = True
        return "row", "row"

    def place_rows(self) -> None:
        """Print the rows of lse and out that a program writes."""
        super().places()


class _ClassKernel(_PartKernel):
    """A part whose tiles are of one residue class: every ``modulus``-th token."""

    def __init__(self, part: TilePart, number: int) -> None:
        self.modulus = part.modulus
        super().__init__(part.loop, number)

    def which_row(self) -> None:
        """Print which row of which class a program has; lengths and steps are the class's."""
        if self.modulus == 1:
            super().which_row()
            return
        out = self.out
        out.comment(
            f"The tokens first, first + {self.modulus}, first + {2 * self.modulus}, ... are a "
            "sequence of their own: positions, lengths and rows are counted in it, and a batch "
            "has CLASSES of them."
        )
        out.line(f"CLASSES: tl.constexpr = {self.modulus}")
        out.line("queries, keys = nq, nk")
        out.line("nq = (queries + CLASSES - 1) // CLASSES  # of the longest class")
        out.line("nk = (keys + CLASSES - 1) // CLASSES")
        super().which_row()
        out.line("first = b % CLASSES")
        out.line("b = b // CLASSES")
        out.line("nq = (queries - first + CLASSES - 1) // CLASSES")
        out.line("nk = (keys - first + CLASSES - 1) // CLASSES")
        out.line("NK = (nk + BK - 1) // BK")
        for name in "QKV":
            low = name.lower()
            out.line(f"{name} += first * ({low}_row * ALIGN)")
        out.line("q_row, k_row, v_row = q_row * CLASSES, k_row * CLASSES, v_row * CLASSES")
        out.line()

    def place_rows(self) -> None:
        """Print the rows of lse and out: those of the class's tokens."""
        if self.modulus == 1:
            super().place_rows()
            return
        self.out.line("token = q_pos * CLASSES + first  # [BQ, 1]")
        self.out.line("row = (b.to(tl.int64) * heads + h) * queries + token")


class _DistanceKernel(_PartKernel):
    """A part of a few distances: each query with one key at a time, without tiles."""

    def __init__(self, part: DistancePart, common: ForwardPlan, number: int) -> None:
        self.distances = part.distances
        super().__init__(part_loop(part, common), number)

    def given(self) -> tuple[tuple[str, str], ...]:
        """Return the run-time arguments; the distances that lengths allow are a range of them."""
        return (*super().given(), ("reach_first", "i32"), ("reach_stop", "i32"))

    def segments(self) -> None:
        """Print nothing: there are no tiles."""

    def steps(self) -> None:
        """Print nothing: every key has its own offset."""

    def walk(self) -> None:
        """Print the loop over distances."""
        out = self.out
        d_pad, dv_pad = self.pads()
        out.line("q_wide = q.to(tl.float32)")
        with out.block("for it in range(reach_first, reach_stop):"):
            for line in distance_lines(self.distances):
                out.line(line)
            out.line("k_pos = q_pos - distance  # [BQ, 1]: one key for each query")
            out.line(f"there = ({self.inside}) & (k_pos >= 0) & (k_pos < nk)")
            out.line("near = tl.where(there, k_pos, 0).to(tl.int64)")
            for name, place, width in (
                ("k", "dims[None, :]", d_pad != "D" and "D"),
                ("v", "value_dims[None, :]", dv_pad != "DV" and "DV"),
            ):
                mask = f"there & ({place} < {width})" if width else "there"
                out.call(f"{name} = tl.load(", [
                    f"{name.upper()} + near * {name}_step + {place}", f"mask={mask}", "other=0.0",
                ], f")  # [BQ, {'DV' if name == 'v' else 'D'}]")
            out.line("s = tl.sum(q_wide * k.to(tl.float32), 1)[:, None] * scale_log2")
            out.line('s = tl.reshape(tl.where(there, s, float("-inf")), [BQ])')
            out.line("new_top = tl.maximum(top, s)")
            out.line("p = tl.math.exp2(s - new_top)  # [BQ]")
            out.line("shrink = tl.math.exp2(top - new_top)")
            out.line("total = total * shrink + p")
            out.line("accumulated = accumulated * shrink[:, None] + p[:, None] * v.to(tl.float32)")
            out.line("top = new_top")
        out.line()


def distance_lines(distances: tuple[int, ...]) -> Iterator[str]:
    """Yield the lines that find ``distance`` number ``it``: runs of equal steps, or of doubling."""
    runs = _runs(distances)
    texts = []
    for start, run in runs:
        at = "it" if start == 0 else f"tl.maximum(it - {start}, 0)"
        if len(run) == 1:
            texts.append(str(run[0]))
        elif run[1] == 2 * run[0]:
            factor = "" if run[0] == 1 else f"{run[0]} * "
            texts.append(f"{factor}(1 << {at})" if factor else f"1 << {at}")
        else:
            step = run[1] - run[0]
            scaled = at if step == 1 else f"{step} * {at}"
            texts.append(f"{run[0]} + {scaled}" if run[0] else scaled)
    yield f"distance = {texts[-1]}"
    for (_, (stop, _)), text in reversed(list(zip(pairwise(runs), texts, strict=False))):
        yield f"distance = tl.where(it < {stop}, {text}, distance)"


def _runs(distances: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Cut distances into as few runs of doubling or of equal steps as can be: (start, run)."""
    fewest: list[list[tuple[int, tuple[int, ...]]]] = [[]]  # of distances[at:], last at first
    for at in reversed(range(len(distances))):
        stops = {at + 1}
        for follows in (_doubles, _steps):
            stop = at + 2
            while stop < len(distances) and follows(*distances[stop - 2 : stop + 1]):
                stop += 1
                stops.add(stop)
        options = [[(at, distances[at:stop]), *fewest[-1 - (stop - at - 1)]] for stop in stops]
        fewest.append(min(options, key=len))
    return fewest[-1]


def _doubles(a: int, b: int, c: int) -> bool:
    return 0 < a and b == 2 * a and c == 2 * b


def _steps(a: int, b: int, c: int) -> bool:
    return b - a == c - b
