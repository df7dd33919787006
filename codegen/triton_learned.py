"""plan of dQ -> Triton kernel of what learned inputs of the score get.

With dS the gradient of a score, an element of an input gets the sum of ``dS * slope`` over the
pairs that read it. Tiles are walked as for dQ. What a tile adds to one element is added up in
registers as far as the index allows (``learned.py``), then to 64-bit integers in memory, in units
so large that nothing overflows and so small that nothing is lost (``learned_sums.py``): integers
add up to the same in any order, so two runs agree in every bit.
"""

from __future__ import annotations

from collections.abc import Callable

from attnc.codegen.learned import Learned, learned, measured
from attnc.codegen.loop_text import one_line
from attnc.codegen.triton_backward import QueryKernel
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.plan import LoopPlan

LEARNED_HELPERS = '''\
@triton.jit
def _add_fixed(sums, value, step, more, inside):
    """Add numbers to integers, in units of `1 / (step * more)`."""
    number = tl.floor(value * step * more + 0.5).to(tl.int64)
    tl.atomic_add(sums, number, mask=inside & (value != 0.0), sem="relaxed")


@triton.jit
def _add_diagonals(sums, tile, first, nq, nk, step, more, BQ: tl.constexpr, BK: tl.constexpr):
    """Add a tile [BQ, BK] to a sum for each `q - k`, that of its corner being `first`."""
    place = tl.arange(0, BQ)[:, None] + tl.arange(0, BK)[None, :]
    # Rows are turned until diagonals stand upright; a column then holds some, one below the other.
    turned = tl.gather(tile, place % BK, 1)
    for turn in tl.static_range(0, (BQ + BK - 2) // BK + 1):
        part = tl.sum(tl.where(place // BK == turn, turned, 0.0), 0)
        at = first + turn * BK - tl.arange(0, BK) + nk - 1
        _add_fixed(sums + at, part, step, more, (at >= 0) & (at < nq + nk - 1))


@triton.jit
def _largest(slope, ds):
    """The largest slope of each row where a gradient arrives [BQ, 1]; inf where it is no number."""
    size = tl.where(tl.abs(slope) <= 3.0e38, tl.abs(slope), float("inf"))
    return tl.max(tl.where(ds == 0.0, 0.0, size), 1, keep_dims=True)
'''
"""What the kernel calls."""


class LearnedKernel(QueryKernel):
    """What learned inputs get: a row is a query tile, as for dQ."""

    made = "what learned inputs get from one query tile of one head"

    def __init__(self, plan: LoopPlan) -> None:
        super().__init__(plan, "learned")
        reads = learned(plan, packed=self.packed)
        self.every = list(zip(reads, self.terms.learned, strict=True))
        if measured(plan):
            self.switches = (*self.switches, "MEASURE")

    def lengths(self) -> tuple[str, str]:
        """Return the most queries and the most keys that differences of positions come from."""
        return "nq", "nk"

    def slopes(self) -> None:
        """Print the derivatives of the score by what it reads."""
        for number, (one, term) in enumerate(self.every):
            if term.slope:
                self.out.comment(f"The derivative of the score by {_shown(one)}.")
                self.out.line(f"slope_{number} = {term.slope}")

    def start(self) -> None:
        """Print where the sums of this program are, and those in registers."""
        out = self.out
        out.line("copy = program % copies")
        for number, (one, _) in enumerate(self.every):
            out.line(f"Sums_{number} += copy * Copy_{number} + b * Apart_{number}")
            steps = [f"tl.load(Steps + {2 * number + i})" for i in range(2)]
            out.line(f"step_{number}, more_{number} = {', '.join(steps)}")
            if one.way == "row":
                out.line(f"sum_{number} = tl.zeros([BQ, 1], tl.float32)")
            if _varies(one):
                out.line(f"most_{number} = tl.zeros([BQ, 1], tl.float32)")

    def add(self) -> None:
        """Print what a tile adds to the elements it reads."""
        self.out.line("ds = p * (dp - delta)")
        self._measure(self._largest, self._add)

    def finish(self) -> None:
        """Print where the sums of the row go."""
        if any(one.way == "row" for one, _ in self.every):
            self._measure(self._store_largest, self._store)
        elif "MEASURE" in self.switches:
            with self.out.block("if MEASURE:"):
                self._store_largest()

    def _measure(self, measure: Callable[[], None], add: Callable[[], None]) -> None:
        """Print both forms of a step."""
        if "MEASURE" not in self.switches:
            add()
            return
        with self.out.block("if MEASURE:"):
            measure()
        with self.out.block("else:"):
            add()

    def _largest(self) -> None:
        for number, (one, _) in enumerate(self.every):
            if _varies(one):
                most = f"most_{number}"
                self.out.line(f"{most} = tl.maximum({most}, _largest(slope_{number}, ds))")

    def _store_largest(self) -> None:
        for number, (one, _) in enumerate(self.every):
            if _varies(one):
                bits = f"tl.max(most_{number}).to(tl.int32, bitcast=True)"
                self.out.line(f'tl.atomic_max(Most + {number}, {bits}, sem="relaxed")')

    def _add(self) -> None:
        for number, (one, term) in enumerate(self.every):
            out, change = self.out, f"change_{number}"
            out.comment(f"What {_shown(one)} gets.")
            slope = f" * slope_{number}" if term.slope else ""
            out.line(f"{change} = " + (f"tl.where(ds == 0.0, 0.0, ds{slope})" if slope else "ds"))
            match one.way:
                case "row":
                    out.line(f"sum_{number} += tl.sum({change}, 1, keep_dims=True)")
                case "column":
                    out.line(f"{change} = tl.sum({change}, 0, keep_dims=True)  # [1, BK]")
                    self._add_fixed(number, change)
                case "pair":
                    self._add_fixed(number, change)
                case "diagonal":
                    most_q, most_k = self.lengths()
                    head = f"tl.cast({self.terms.head}, tl.int64) * ({most_q} + {most_k} - 1)"
                    out.call("_add_diagonals(", [
                        f"Sums_{number} + {head}", change, "qb * BQ - kb * BK", most_q, most_k,
                        f"step_{number}", f"more_{number}", "BQ", "BK",
                    ])  # fmt: skip

    def _store(self) -> None:
        for number, (one, _) in enumerate(self.every):
            if one.way == "row":
                if ex.relevant_side(ex.Read(one.name, one.index)) == "none":
                    self.out.line(f"sum_{number} = tl.sum(sum_{number})")
                self._add_fixed(number, f"sum_{number}")

    def _add_fixed(self, number: int, value: str) -> None:
        """Add a value to the elements it belongs to."""
        term = self.terms.learned[number]
        for line in term.lines:
            self.out.line(line)
        self.out.call("_add_fixed(", [
            f"Sums_{number} + {term.offset}", value, f"step_{number}", f"more_{number}",
            term.inside or f"{value} == {value}",
        ])  # fmt: skip


def _varies(one: Learned) -> bool:
    """Whether a slope is no constant."""
    return not isinstance(one.slope, sc.RealConst)


def _shown(one: Learned) -> str:
    text = one_line(sc.show(sc.RealRead(one.name, one.index)))
    return text if len(text) <= 60 else f"`{one.name}`"
