"""Routed plan -> Triton kernels whose programs hold keys, and make dK and dV.

A program of ``_routed_keys_<n>`` has a tile of a key unit of one key head and walks the query units
that chose it (``gpu_lists.py`` lists them), for each query head of that key head in turn. Where one
selection serves all queries of a head, a tile is gathered from the list itself and every query that
may see it is walked; where heads of one key head have lists of their own, they go in launches of
their own. Sums are added to what is there: nothing is atomic, so two runs agree in every bit.
"""

from __future__ import annotations

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
from attnc.codegen.routes.triton_rows import LN_2
from attnc.codegen.writer import Writer
from attnc.compiler.ir.route import Route
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import TileChoice


class KeyKernel:
    """One emission of a kernel whose rows are keys."""

    def __init__(self, plan: RoutedPlan, number: int, sides: TileChoice) -> None:
        self.plan, self.number, self.sides = plan, number, sides
        self.route: Route = plan.routed.routes[number - 1]
        self.rest = Rest(plan, number)
        self.queries = units(self.route.query, self.route.widen)
        self.keys = units(self.route.key)
        self.slashes = self.route.emit == "slashes"
        self.whole = self.queries.kind == "whole" and not self.slashes
        self.out = Writer()
        self.dims, self.values = width(plan.head_dim, "D"), width(plan.value_dim, "DV")

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return f"_routed_keys_{self.number}"

    @property
    def whole_tiles(self) -> bool:
        """Whether a tile of queries lies inside one unit of tokens in a row."""
        return self.queries.kind == "row" and self.queries.tokens % self.sides.q == 0

    def given(self) -> list[Argument]:
        """Return the arguments in order."""
        n = self.number
        found = [Argument(name=x.upper(), kind="*", passed=x) for x in "qkv"]
        found += [
            Argument(name="GradOut", kind="*", passed="grad_out"),
            Argument(name="Total", kind="*fp32", passed="total"),
            Argument(name="Delta", kind="*fp32", passed="delta"),
            Argument(name="GradK", kind="*fp32", passed="grad_k"),
            Argument(name="GradV", kind="*fp32", passed="grad_v"),
        ]
        if self.slashes:
            found += [
                Argument(name="Apart", kind="*i32", passed=f"tiles_{n}.apart"),
                Argument(name="Counted", kind="*i32", passed=f"tiles_{n}.counted"),
                Argument(name="Inside", kind="*u8", passed=f"taken_{n}"),
            ]
        elif self.whole:
            found += [
                Argument(name="Index", kind="*i32", passed=f"index_{n}"),
                Argument(name="Count", kind="*i32", passed=f"count_{n}"),
            ]
        else:
            found += [
                Argument(name="Pairs", kind="*i32", passed=f"chosen_{n}.pairs"),
                Argument(name="Starts", kind="*i32", passed=f"chosen_{n}.starts"),
                *order_arguments("q", self.queries, n),
            ]
        if not self.slashes:
            found += order_arguments("k", self.keys, n)
        read = list(self.rest.arguments())
        found += [a for a in read if a.kind.startswith("*")]
        found.append(Argument(name="scale_log2", kind="fp32", passed="scale_log2"))
        found += [
            Argument(name=name, kind="i64", passed=f"strides[{at}] // align")
            for at, name in enumerate(STRIDES)
        ]
        found += [Argument(name=x, kind="i32", passed=x) for x in ("nq", "nk", "heads", "group")]
        found.append(Argument(name="choosers", kind="i32", passed=f"choosers_{n}"))
        names = [] if self.slashes else ["room"]
        if not self.slashes and not self.whole:
            names += ["rows", "units"]
        found += [Argument(name=x, kind="i32", passed=f"{x}_{n}") for x in names]
        if self.whole:
            found.append(Argument(name="first_head", kind="i32", passed="first"))
            found.append(Argument(name="share", kind="i32", passed=f"share_{n}"))
        return [*found, *(a for a in read if not a.kind.startswith("*"))]

    def programs(self) -> str:
        """Return how many programs a launch has, as text of the host."""
        n, bk = self.number, self.sides.k
        if self.slashes:
            return f"-(-nk // {bk}) * batch * k.shape[1]"
        if self.whole:
            return f"-(-room_{n} * {self.keys.tokens} // {bk}) * batch * k.shape[1]"
        return f"units_{n} * {-(-self.keys.tokens // bk)} * batch * k.shape[1]"

    def text(self) -> str:
        """Print the kernel."""
        out = self.out
        signature(out, self.name, self.given(), ["ALIGN"])
        with out.indented():
            name = one_line(self.route.name)
            out.line(f'"""Make dK and dV of what {name} selected, some keys."""')
            constants(out, self.plan, self.sides.q, self.sides.k)
            out.line()
            self._which_row()
            self._load_rows()
            self._walk()
            self._finish()
        return out.text()

    # -------------------------------------------------------------------------------- the rows

    def _which_row(self) -> None:
        out, own, bk = self.out, self.keys, self.sides.k
        parts = -(-own.tokens // bk)
        out.line("program = tl.program_id(0)")
        out.line("lane = tl.arange(0, BK)")
        if self.slashes:
            out.line("tiles = (nk + BK - 1) // BK")
        elif self.whole:
            out.line(f"tiles = (room * {own.tokens} + BK - 1) // BK")
        else:
            out.line(f"PARTS: tl.constexpr = {parts}  # tiles of a unit")
            out.line("tiles = units * PARTS")
        out.line("tile = program % tiles")
        out.line("kv_heads = heads // group")
        out.line("kv_head = program // tiles % kv_heads")
        out.line("b = (program // tiles // kv_heads).to(tl.int64)")
        if self.slashes:
            out.line("k_place = tile * BK + lane")
            out.line("k_there = k_place < nk")
        elif self.whole:
            out.comment("A tile of the list that some of the query heads share.")
            out.line("head = kv_head * group + first_head")
            out.line("chooser = b * choosers + head * choosers // heads")
            out.line("count = tl.load(Count + chooser)")
            out.line("slot = tile * BK + lane")
            entry, offset = ("slot", "0") if own == Units(kind="row") else ("entry", "offset")
            if entry == "entry":
                out.line(f"entry = slot // {own.tokens}")
                out.line(f"offset = slot % {own.tokens}")
            out.line(
                f"unit = tl.load(Index + chooser * room + {entry}, mask={entry} < count, other=0)"
            )
            in_unit(out, "k", own, "unit", offset, f"{entry} < count")
        else:
            out.line("unit = tile // PARTS")
            offset = "lane"
            if parts > 1:
                out.line("offset = tile % PARTS * BK + lane")
                offset = "offset"
            inside = f"{offset} < {own.tokens}" if own.tokens % bk and own.kind == "row" else ""
            in_unit(out, "k", own, "unit", offset, inside)
        out.line("k_pos = k_place[:, None]  # [BK, 1]")
        for line in self.rest.batches():
            out.line(line)
        out.line()

    def _load_rows(self) -> None:
        out = self.out
        out.comment("Strides come in units of ALIGN elements, so loads are known to be aligned.")
        for x in "qkv":
            head = "" if x == "q" else f" + kv_head * ({x}_head * ALIGN)"
            out.line(f"{x.upper()} += b * ({x}_batch * ALIGN){head}")
        out.line("q_step = q_row * ALIGN")
        out.line(f"dims = tl.arange(0, {self.dims})")
        out.line(f"value_dims = tl.arange(0, {self.values})")
        out.line("span = tl.arange(0, BQ)")
        out.line("there = k_there[:, None]")
        out.line("near = tl.where(k_there, k_place, 0).to(tl.int64)[:, None]")
        for x, dims, wide in (("k", "dims", False), ("v", "value_dims", True)):
            out.call(f"{x} = tl.load(", [
                f"{x.upper()} + near * ({x}_row * ALIGN) + {dims}[None, :]",
                f"mask={self._inside(wide)}", "other=0.0",
            ], f")  # [BK, {'DV' if wide else 'D'}]")  # fmt: skip
        out.line(f"grad_k = tl.zeros([BK, {self.dims}], tl.float32)")
        out.line(f"grad_v = tl.zeros([BK, {self.values}], tl.float32)")
        for line in self.rest.lines("q", in_loop=False):
            out.line(line)
        out.line()

    def _inside(self, wide: bool) -> str:
        name = self.values if wide else self.dims
        if not name.endswith("_PAD"):
            return "there"
        dims = "value_dims" if wide else "dims"
        return f"there & ({dims}[None, :] < {name.removesuffix('_PAD')})"

    # -------------------------------------------------------------------------------- the columns

    def _walk(self) -> None:
        out = self.out
        heads = "share" if self.whole else "group"
        with out.block(f"for turn in range(0, {heads}):"):
            out.line("h = head + turn" if self.whole else "h = kv_head * group + turn")
            out.line("q_base = Q + h * (q_head * ALIGN)")
            out.line("first_row = (b * heads + h) * nq")
            if self.slashes:
                self._slashes()
            elif self.whole:
                self._everyone()
            else:
                self._choosers()
        out.line()

    def _slashes(self) -> None:
        out = self.out
        out.line("NQ = (nq + BQ - 1) // BQ")
        out.line("NK = (nk + BK - 1) // BK")
        out.line("chooser = b * choosers + h * choosers // heads")
        out.line("own = Apart + chooser * (NQ + NK - 1)")
        out.comment("Those whose tile of queries exists are a stretch of the list.")
        out.line("counted = Counted + chooser * (NQ + NK) + NK - 1 - tile")
        out.line("start = tl.load(counted)")
        out.line("stop = tl.load(counted + NQ)")
        with out.block("for it in range(start, stop):"):
            out.line("q_place = (tile + tl.load(own + it)) * BQ + span")
            out.line("q_there = q_place < nq")
            out.line("q_pos = q_place[None, :]  # [1, BQ]")
            out.line(f"apart = q_pos{self.rest.shift} - k_pos")
            out.call("inside = tl.load(", [
                "Inside + chooser * nk + tl.maximum(apart, 0)",
                "mask=(apart >= 0) & (apart < nk)", "other=0",
            ])  # fmt: skip
            self._tile("(inside > 0)")

    def _everyone(self) -> None:
        out = self.out
        out.line("q_tiles = (nq + BQ - 1) // BQ")
        out.line("q_tiles = tl.where(tile * BK < count * "
                 f"{self.keys.tokens}, q_tiles, 0)")  # fmt: skip
        start = "0"
        if not self.plan.ahead:
            out.comment("No query that stands before all of these keys sees one of them.")
            least = "tl.min(tl.where(k_there, k_place, nk), 0)"
            shift = self.rest.shift.replace("+", "-")
            out.line(f"earliest = tl.maximum({least}{shift}, 0) // BQ")
            start = "earliest"
        with out.block(f"for it in range({start}, q_tiles):"):
            out.line("q_place = it * BQ + span")
            out.line("q_there = q_place < nq")
            out.line("q_pos = q_place[None, :]  # [1, BQ]")
            self._tile("")

    def _choosers(self) -> None:
        out, own = self.out, self.queries
        out.line("chooser = b * choosers + h * choosers // heads")
        out.line("started = Starts + chooser * (units + 1) + unit")
        out.line("start = tl.load(started)")
        out.line("count = tl.load(started + 1) - start")
        out.line("own = Pairs + chooser * rows * room + start")
        if self.whole_tiles:
            parts = own.tokens // self.sides.q
            each, more = ("it", "") if parts == 1 else (
                f"it // {parts}", f" + it % {parts} * BQ"
            )  # fmt: skip
            with out.block(f"for it in range(0, count{'' if parts == 1 else f' * {parts}'}):"):
                out.line(f"q_first = tl.load(own + {each}) // room * {own.tokens}{more}")
                out.line("q_place = q_first + span")
                out.line("q_there = q_place < nq")
                out.line("q_pos = q_place[None, :]  # [1, BQ]")
                self._tile("")
            return
        turns = "count" if own.tokens == 1 else f"count * {own.tokens}"
        with out.block(f"for it in range(0, ({turns} + BQ - 1) // BQ):"):
            out.line("slot = it * BQ + span")
            entry, offset = ("slot", "0") if own.tokens == 1 else ("entry", "offset")
            if own.tokens > 1:
                out.line(f"entry = slot // {own.tokens}")
                out.line(f"offset = slot % {own.tokens}")
            out.line(
                f"q_unit = tl.load(own + {entry}, mask={entry} < count, other=0) // room"
            )
            in_unit(out, "q", own, "q_unit", offset, f"{entry} < count")
            out.line("q_pos = q_place[None, :]  # [1, BQ]")
            self._tile("")

    def _tile(self, and_also: str) -> None:
        """Print what is done with a tile of queries."""
        out = self.out
        out.line("at = tl.where(q_there, q_place, 0).to(tl.int64)")
        given = ["q_base + at[None, :] * q_step + dims[:, None]"]
        if self.dims.endswith("_PAD"):
            given += ["mask=dims[:, None] < D", "other=0.0"]
        out.call("q = tl.load(", given, ")  # [D, BQ]")
        given = ["GradOut + (first_row + at)[:, None] * DV + value_dims[None, :]"]
        if self.values.endswith("_PAD"):
            given += ["mask=value_dims[None, :] < DV", "other=0.0"]
        out.call("grad_out = tl.load(", given, ")  # [BQ, DV]")
        out.line("total = tl.load(Total + first_row + at)[None, :]  # [1, BQ]")
        out.line("delta = tl.load(Delta + first_row + at)[None, :]")
        for line in self.rest.lines("q", in_loop=True):
            out.line(line)
        out.line('s = tl.dot(k, q, input_precision="ieee")  # [BK, BQ] fp32')
        out.line("p = tl.math.exp2(s * scale_log2 - total)")
        parts = ["there", "q_there[None, :]"] + [and_also] * bool(and_also)
        if counts := self.rest.counts(out):
            parts.append(counts)
        out.line(f"p = tl.where({' & '.join(parts)}, p, 0.0)")
        out.line("weights = p.to(grad_out.dtype)")
        out.line('grad_v = tl.dot(weights, grad_out, grad_v, input_precision="ieee")')
        out.line('dp = tl.dot(v, tl.trans(grad_out), input_precision="ieee")  # [BK, BQ]')
        out.line("ds = p * (dp - delta)")
        out.line('grad_k = tl.dot(ds.to(q.dtype), tl.trans(q), grad_k, input_precision="ieee")')
        wait(out, self.plan, "grad_k")

    # -------------------------------------------------------------------------------- the results

    def _finish(self) -> None:
        out = self.out
        out.comment("Each key is in one program of a launch: what other launches made is added to.")
        out.line("row = (b * kv_heads + kv_head) * nk + near  # [BK, 1]")
        for name, dim, wide, factor in (
            ("k", "D", False, f" * (scale_log2 * {LN_2})"), ("v", "DV", True, ""),
        ):  # fmt: skip
            dims, inside = "value_dims" if wide else "dims", self._inside(wide)
            out.line(f"{name}_result = Grad{name.upper()} + row * {dim} + {dims}[None, :]")
            out.line(f"before = tl.load({name}_result, mask={inside}, other=0.0)")
            out.line(f"tl.store({name}_result, before + grad_{name}{factor}, mask={inside})")
