"""Routed plan -> Triton kernels whose programs hold queries: what a query unit selected, in turn.

A program of ``_routed_<n>`` has one tile of a query unit of one head, or one token and the query
heads that share its selection and its keys, and walks the list of key units that route n selected
for it. Large units are read tile by tile; of small ones as many are gathered as fill a tile. Of
``slashes`` a tile of queries visits those tiles of keys that a selected distance reaches. The
backward kernel ``_routed_queries_<n>`` walks the same way and makes dQ.
"""

from __future__ import annotations

from typing import Literal

from attnc.codegen.loop_text import one_line
from attnc.codegen.routes.kernel_parts import (
    STRIDES,
    Argument,
    Rest,
    Units,
    constants,
    in_unit,
    order_arguments,
    signature,
    units,
    wait,
    width,
)
from attnc.codegen.writer import Writer
from attnc.compiler.ir.route import Route
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import TileChoice

LOG2_E, LN_2 = "1.4426950408889634", "0.6931471805599453"

Makes = Literal["out", "dq"]


class RowKernel:
    """One emission of a kernel whose rows are queries.

    ``triton_by_key.py`` overrides which queries these are, and where results go.
    """

    made, lse, grad = "Out", "Lse", "GradQ"  # what results are written to
    packs_heads = True  # whether heads that share the selection of a token go together
    natural = True  # whether the log-sum-exp written is that of base e

    def __init__(self, plan: RoutedPlan, number: int, sides: TileChoice, makes: Makes) -> None:
        self.plan, self.number, self.sides, self.makes = plan, number, sides, makes
        self.route: Route = plan.routed.routes[number - 1]
        self.rest = Rest(plan, number)
        self.queries = units(self.route.query, self.route.widen)
        self.keys = units(self.route.key)
        self.slashes = self.route.emit == "slashes"
        self.grouped = self.packs_heads and self.queries == Units(kind="row")
        self.out = Writer()
        self.dims, self.values = width(plan.head_dim, "D"), width(plan.value_dim, "DV")
        self.goes_on = number > 1 and makes == "out"

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return f"_routed_{self.number}" if self.makes == "out" else f"_routed_queries_{self.number}"

    @property
    def result(self) -> str:
        """Return the rows that results are stored in."""
        return "row"

    @property
    def whole_tiles(self) -> bool:
        """Whether a tile of keys lies inside one unit of tokens in a row."""
        return self.keys.kind == "row" and self.keys.tokens % self.sides.k == 0

    def given(self) -> list[Argument]:
        """Return the arguments in order."""
        n = self.number
        found = [Argument(name=x.upper(), kind="*", passed=x) for x in "qkv"]
        if self.makes == "out":
            last = n == len(self.plan.routed.routes)
            kind = "*fp32" if self.plan.kept is not None or not last else "*"
            found += [
                Argument(name="Out", kind=kind, passed="out" if last else "before"),
                Argument(name="Lse", kind="*fp32", passed="lse"),
            ]
            if self.goes_on:
                found.append(Argument(name="Before", kind="*fp32", passed="before"))
        else:
            found += [
                Argument(name="GradOut", kind="*", passed="grad_out"),
                Argument(name="Total", kind="*fp32", passed="total"),
                Argument(name="Delta", kind="*fp32", passed="delta"),
                Argument(name="GradQ", kind="*fp32", passed="grad_q"),
            ]
        if self.slashes:
            found += [
                Argument(name="Apart", kind="*i32", passed=f"tiles_{n}.apart"),
                Argument(name="Counted", kind="*i32", passed=f"tiles_{n}.counted"),
                Argument(name="Inside", kind="*u8", passed=f"taken_{n}"),
            ]
        else:
            found += [
                Argument(name="Index", kind="*i32", passed=f"index_{n}"),
                Argument(name="Count", kind="*i32", passed=f"count_{n}"),
                *order_arguments("q", self.queries, n), *order_arguments("k", self.keys, n),
            ]
        read = list(self.rest.arguments())
        found += [a for a in read if a.kind.startswith("*")]
        found.append(Argument(name="scale_log2", kind="fp32", passed="scale_log2"))
        found += [
            Argument(name=name, kind="i64", passed=f"strides[{at}] // align")
            for at, name in enumerate(STRIDES)
        ]
        found += [Argument(name=x, kind="i32", passed=x) for x in ("nq", "nk", "heads", "group")]
        found.append(Argument(name="choosers", kind="i32", passed=f"choosers_{n}"))
        if not self.slashes:
            found += [
                Argument(name="rows", kind="i32", passed=f"rows_{n}"),
                Argument(name="room", kind="i32", passed=f"room_{n}"),
            ]
        if self.grouped:
            found.append(Argument(name="share", kind="i32", passed=f"share_{n}"))
        return [*found, *(a for a in read if not a.kind.startswith("*"))]

    def programs(self) -> str:
        """Return how many programs a launch has, as text of the host."""
        n, bq = self.number, self.sides.q
        if self.grouped:
            return f"batch * (heads // share_{n}) * -(-share_{n} // {bq}) * rows_{n}"
        if self.slashes or self.queries.kind == "whole":
            return f"-(-nq // {bq}) * batch * heads"
        return f"rows_{n} * {-(-self.queries.tokens // bq)} * batch * heads"

    def text(self) -> str:
        """Print the kernel."""
        out = self.out
        signature(out, self.name, self.given(), ["ALIGN", "WIDE"])
        with out.indented():
            made = "Attend" if self.makes == "out" else "Make dQ of"
            out.line(f'"""{made} what {one_line(self.route.name)} selected, some rows."""')
            constants(out, self.plan, self.sides.q, self.sides.k)
            out.line()
            self.which_row()
            self.load_rows()
            self.start()
            if self.slashes:
                self.walk_slashes()
            else:
                self.walk_units()
            self.finish()
        return out.text()

    # -------------------------------------------------------------------------------- the rows

    def which_row(self) -> None:
        out = self.out
        out.line("program = tl.program_id(0)")
        out.line("lane = tl.arange(0, BQ)")
        if self.grouped:
            out.comment("One token; the query heads that share its selection and keys are rows.")
            out.line("unit = program % rows")
            out.line("blocks = (share + BQ - 1) // BQ")
            out.line("at = program // rows")
            out.line("first_head = at // blocks % (heads // share) * share")
            out.line("b = (at // blocks // (heads // share)).to(tl.int64)")
            out.line("own_head = at % blocks * BQ + lane")
            out.line("q_there = own_head < share")
            out.line("h = (first_head + tl.minimum(own_head, share - 1))[:, None]  # [BQ, 1]")
            out.line("q_pos = unit")
            head = "first_head"
        else:
            if self.slashes or self.queries.kind == "whole":
                out.line("tiles = (nq + BQ - 1) // BQ")
                out.line("unit = 0")
            else:
                out.line(f"PARTS: tl.constexpr = {-(-self.queries.tokens // self.sides.q)}  "
                         "# tiles of a unit")  # fmt: skip
                out.line("tiles = rows * PARTS")
            out.line("tile = program % tiles")
            out.line("h = program // tiles % heads")
            out.line("b = (program // tiles // heads).to(tl.int64)")
            if self.slashes or self.queries.kind == "whole":
                out.line("q_place = tile * BQ + lane")
                out.line("q_there = q_place < nq")
            else:
                out.line("unit = tile // PARTS")
                offset, own = "lane", self.queries
                if -(-own.tokens // self.sides.q) > 1:
                    out.line("offset = tile % PARTS * BQ + lane")
                    offset = "offset"
                inside = ""
                if own.kind == "row" and own.tokens % self.sides.q:
                    inside = f"{offset} < {own.tokens}"
                in_unit(out, "q", own, "unit", offset, inside)
            out.line("q_pos = q_place[:, None]  # [BQ, 1]")
            head = "h"
        out.line(f"kv_head = {head} // group")
        for line in self.rest.batches():
            out.line(line)
        if not self.slashes:
            first = "first_head" if self.grouped else "h"
            out.line(f"chooser = (b * choosers + {first} * choosers // heads) * rows + unit")
            out.line("own = Index + chooser * room")
            out.line("count = tl.load(Count + chooser)")
        out.line()

    def load_rows(self) -> None:
        out = self.out
        out.comment("Strides come in units of ALIGN elements, so loads are known to be aligned.")
        if self.grouped:
            out.line("Q += b * (q_batch * ALIGN) + unit.to(tl.int64) * (q_row * ALIGN)")
            out.line("row = (b * heads + h) * nq + unit  # [BQ, 1]")
            place = "Q + h * (q_head * ALIGN)"
        else:
            out.line("Q += b * (q_batch * ALIGN) + h * (q_head * ALIGN)")
            out.line("row = (b * heads + h) * nq + q_pos  # [BQ, 1]")
            place = "Q + q_pos.to(tl.int64) * (q_row * ALIGN)"
        for x in "kv":
            out.line(f"{x.upper()} += b * ({x}_batch * ALIGN) + kv_head * ({x}_head * ALIGN)")
            out.line(f"{x}_step = {x}_row * ALIGN")
        out.line(f"dims = tl.arange(0, {self.dims})")
        out.line(f"value_dims = tl.arange(0, {self.values})")
        out.line("span = tl.arange(0, BK)")
        out.line("there = q_there[:, None]")
        out.call("q = tl.load(", [
            f"{place} + dims[None, :]", f"mask={self.inside(False)}", "other=0.0",
        ], ")  # [BQ, D]")  # fmt: skip
        if self.makes == "dq":
            out.call("grad_out = tl.load(", [
                "GradOut + row * DV + value_dims[None, :]", f"mask={self.inside(True)}",
                "other=0.0",
            ], ")  # [BQ, DV]")  # fmt: skip
            out.line('total = tl.load(Total + row, mask=there, other=float("inf"))  # [BQ, 1]')
            out.line("delta = tl.load(Delta + row, mask=there, other=0.0)")
        if self.whole_tiles or self.slashes:
            out.comment("Offsets inside a key tile fit 32 bits unless rows lie very far apart.")
            with out.block("if WIDE:"):
                out.line("k_near, v_near = k_step, v_step")
            with out.block("else:"):
                out.line("k_near, v_near = k_step.to(tl.int32), v_step.to(tl.int32)")
        for line in self.rest.lines("k", in_loop=False):
            out.line(line)
        out.line()

    def inside(self, wide: bool) -> str:
        name = self.values if wide else self.dims
        if not name.endswith("_PAD"):
            return "there"
        dims = "value_dims" if wide else "dims"
        return f"there & ({dims}[None, :] < {name.removesuffix('_PAD')})"

    def start(self) -> None:
        out = self.out
        if self.makes == "dq":
            out.line(f"grad_q = tl.zeros([BQ, {self.dims}], tl.float32)")
            return
        if not self.goes_on:
            out.line(f"accumulated = tl.zeros([BQ, {self.values}], tl.float32)")
            out.line("top = tl.full([BQ], -3.0e38, tl.float32)  # largest scaled score so far")
            out.line("total = tl.zeros([BQ], tl.float32)  # sum of exp2(scaled score - top)")
            return
        out.comment("Go on from the routes before this one.")
        out.line('lse = tl.load(Lse + row, mask=there, other=float("-inf"))')
        out.line("lse = tl.reshape(lse, [BQ])")
        out.line(f'top = tl.where(lse == float("-inf"), -3.0e38, lse * {LOG2_E})')
        out.line('total = tl.where(lse == float("-inf"), 0.0, 1.0)')
        out.call("accumulated = tl.load(", [
            "Before + row * DV + value_dims[None, :]", f"mask={self.inside(True)}", "other=0.0",
        ], ")  # [BQ, DV]")  # fmt: skip

    # -------------------------------------------------------------------------------- the columns

    def walk_units(self) -> None:
        out, own = self.out, self.keys
        if self.queries.kind == "whole" and not self.plan.ahead and own.kind == "row":
            self._cut()
        size = own.tokens
        if self.whole_tiles:
            parts = size // self.sides.k
            if parts > 1:
                out.line(f"PARTS_K: tl.constexpr = {parts}  # tiles of a key unit")
            turns = "count" if parts == 1 else "count * PARTS_K"
            with out.block(f"for it in range(0, {turns}):"):
                each = "it" if parts == 1 else "it // PARTS_K"
                more = "" if parts == 1 else " + it % PARTS_K * BK"
                out.line(f"k_first = tl.load(own + {each}) * {size}{more}")
                self.contiguous()
                out.line("k_there = k_place < nk")
                self.visit(self.doubt())
        else:
            turns = "count" if size == 1 else f"count * {size}"
            with out.block(f"for it in range(0, ({turns} + BK - 1) // BK):"):
                out.line("slot = it * BK + span")
                entry, offset = ("slot", "0") if size == 1 else ("entry", "offset")
                if size > 1:
                    out.line(f"entry = slot // {size}")
                    out.line(f"offset = slot % {size}")
                out.line(f"k_unit = tl.load(own + {entry}, mask={entry} < count, other=0)")
                in_unit(out, "k", own, "k_unit", offset, f"{entry} < count")
                out.line("near = tl.where(k_there, k_place, 0).to(tl.int64)")
                out.line("k_pos = k_place[None, :]  # [1, BK]")
                self.visit("", gathered=True)
        out.line()

    def _cut(self) -> None:
        """Print a search for the part of a list that begins no later than the last query."""
        out = self.out
        out.comment("Keys past the last query of the tile count for none: find where they begin.")
        out.line("last = tl.minimum(tile * BQ + BQ, nq) - 1" + self.rest.shift)
        out.line("low = 0")
        out.line("high = count")
        with out.block("for _ in range(0, 31):"):
            out.line("middle = (low + high) // 2")
            out.line("asked = tl.load(own + middle, mask=low < high, other=0)")
            size = "" if self.keys.tokens == 1 else f" * {self.keys.tokens}"
            out.line(f"before = (low < high) & (asked{size} <= last)")
            out.line("low, high = tl.where(before, middle + 1, low), tl.where(before, high, "
                     "tl.minimum(middle, high))")  # fmt: skip
        out.line("count = low")

    def walk_slashes(self) -> None:
        out = self.out
        out.comment(
            "Tiles lie `apart` tiles behind their queries' tile; those that exist are a stretch of "
            "the list of all that a selected distance reaches."
        )
        out.line("NQ = (nq + BQ - 1) // BQ")
        out.line("NK = (nk + BK - 1) // BK")
        out.line("chooser = b * choosers + h * choosers // heads")
        out.line("own = Apart + chooser * (NQ + NK - 1)")
        out.line("counted = Counted + chooser * (NQ + NK) + tile")
        out.line("start = tl.load(counted)")
        out.line("stop = tl.load(counted + NK)")
        assert self.sides.q == self.sides.k
        with out.block("for it in range(start, stop):"):
            out.line("k_first = (tile - tl.load(own + it)) * BK")
            self.contiguous()
            out.line("k_there = k_place < nk")
            out.line(f"apart = q_pos{self.rest.shift} - k_pos")
            out.call("inside = tl.load(", [
                "Inside + chooser * nk + tl.maximum(apart, 0)",
                "mask=(apart >= 0) & (apart < nk)", "other=0",
            ])  # fmt: skip
            self.visit("", and_also="(inside > 0)")
        out.line()

    def contiguous(self) -> None:
        """Print the places of a tile of keys in a row."""
        out = self.out
        out.line("k_place = k_first + span")
        out.line("k_pos = k_place[None, :]  # [1, BK]")
        out.comment("Past the end of the keys the last one is read again; its scores are masked.")
        out.line("near = tl.minimum(span, nk - 1 - k_first)")

    def doubt(self) -> str:
        """Return the uniform test that a tile may hold pairs that do not count; "": always."""
        if self.rest.earlier:
            return ""
        if not self.rest.asks:
            return "k_first + BK > nk"
        if not self.plan.past_free or self.queries.kind == "cell":
            return ""
        if self.grouped:
            first = "unit"
        elif self.queries.kind == "whole":
            first = "tile * BQ"
        else:
            first = f"unit * {self.queries.tokens}"
            if -(-self.queries.tokens // self.sides.q) > 1:
                first += " + tile % PARTS * BQ"
        return f"k_first + BK > tl.minimum({first}{self.rest.shift}, nk)"

    def visit(self, doubt: str, *, gathered: bool = False, and_also: str = "") -> None:
        """Print what is done with a tile of keys."""
        out = self.out
        backward = self.makes == "dq"
        for name, where, place, wide in (
            ("k", "None, :", "dims[:, None]", False),
            ("v", "None, :" if backward else ":, None",
             "value_dims[:, None]" if backward else "value_dims[None, :]", True),
        ):  # fmt: skip
            if gathered:
                start = f"{name.upper()} + near[{where}] * {name}_step + {place}"
            else:
                out.line(f"{name}_tile = {name.upper()} + tl.cast(k_first, tl.int64) * {name}_step")
                start = f"{name}_tile + near[{where}] * {name}_near + {place}"
            given, shown = [start], self.values if wide else self.dims
            if shown.endswith("_PAD"):
                given += [f"mask={place} < {shown.removesuffix('_PAD')}", "other=0.0"]
            flat = "DV" if wide else "D"
            shape = f"[{flat}, BK]" if place.endswith("[:, None]") else f"[BK, {flat}]"
            out.call(f"{name} = tl.load(", given, f")  # {shape}")
        early = [line for line in self.rest.lines("k", in_loop=True)]
        for line in early:
            out.line(line)
        out.line('s = tl.dot(q, k, input_precision="ieee")  # [BQ, BK] fp32')
        value, masked = "s", 'float("-inf")'
        if backward:
            out.line("p = tl.math.exp2(s * scale_log2 - total)")
            value, masked = "p", "0.0"
        if doubt:
            with out.block(f"if {doubt}:"):
                self.mask(value, masked, and_also)
        else:
            self.mask(value, masked, and_also)
        if backward:
            out.line('dp = tl.dot(grad_out, v, input_precision="ieee")  # [BQ, BK]')
            out.line("ds = p * (dp - delta)")
            out.line('grad_q = tl.dot(ds.to(k.dtype), tl.trans(k), grad_q, input_precision="ieee")')
            wait(out, self.plan, "grad_q")
            return
        for line in SOFTMAX:
            out.line(line)

    def mask(self, value: str, masked: str, and_also: str) -> None:
        parts = ["k_there[None, :]"] + [and_also] * bool(and_also)
        if counts := self.rest.counts(self.out):
            parts.append(counts)
        self.out.line(f"{value} = tl.where({' & '.join(parts)}, {value}, {masked})")

    # -------------------------------------------------------------------------------- the results

    def finish(self) -> None:
        out = self.out
        if self.makes == "dq":
            out.line(f"grad_q = grad_q * (scale_log2 * {LN_2})")
            out.call("tl.store(", [
                f"{self.grad} + {self.result} * D + dims[None, :]", "grad_q",
                f"mask={self.inside(False)}",
            ])  # fmt: skip
            return
        out.comment("A query without keys has total 0: out 0, lse -inf.")
        out.line("empty = total == 0.0")
        out.line("total = tl.where(empty, 1.0, total)")
        factor = f" * {LN_2}" if self.natural else ""
        lse = f"(top + tl.math.log2(total)){factor}"
        out.line(f'lse = tl.where(empty, float("-inf"), {lse})')
        out.line(f"tl.store({self.lse} + {self.result}, tl.reshape(lse, [BQ, 1]), mask=there)")
        out.line(f"result = (accumulated / total[:, None]).to({self.made}.dtype.element_ty)")
        place = f"{self.made} + {self.result} * DV + value_dims[None, :]"
        out.call("tl.store(", [place, "result", f"mask={self.inside(True)}"])


SOFTMAX = (
    "new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)",
    "p = tl.math.exp2(s * scale_log2 - new_top[:, None])  # [BQ, BK]",
    "shrink = tl.math.exp2(top - new_top)",
    "total = total * shrink + tl.sum(p, 1)",
    "accumulated = accumulated * shrink[:, None]",
    'accumulated = tl.dot(p.to(v.dtype), v, accumulated, input_precision="ieee")',
    "top = new_top",
)
