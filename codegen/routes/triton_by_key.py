"""Routed plan -> Triton kernels for tokens that chose key units: the queries of a unit, gathered.

Neighbouring tokens choose different units, so a program that holds queries would have one row.
Instead a program of ``_routed_by_key_<n>`` has one key unit and some of the tokens that chose it
(``gpu_lists.py`` lists them). What a token gets from each of its units lies in a slot of its own,
``row * room + slot``; a merging kernel takes the slots of a row in order, so two runs agree in
every bit. Some heads go at a time, as many as their slots fit a workspace.
"""

from __future__ import annotations

from attnc.codegen.routes.kernel_parts import Argument, in_unit
from attnc.codegen.routes.triton_rows import LN_2, RowKernel
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import padded


class ByKeyKernel(RowKernel):
    """Rows are tokens that chose a key unit; the columns are the tiles of that unit."""

    made, lse, grad = "Part", "PartLse", "Part"
    packs_heads = natural = False

    @property
    def name(self) -> str:
        """The name of the kernel."""
        what = "" if self.makes == "out" else "queries_"
        return f"_routed_{what}by_key_{self.number}"

    def given(self) -> list[Argument]:
        """Return the arguments in order."""
        n = self.number
        results = {
            "Out": ("Part", "part"), "Lse": ("PartLse", "part_lse"), "GradQ": ("Part", "part"),
            "Index": ("Pairs", f"chosen_{n}.pairs"), "Count": ("Starts", f"chosen_{n}.starts"),
        }  # fmt: skip
        found = []
        for one in super().given():
            name, passed = results.get(one.name, (one.name, one.passed))
            kind = "*fp32" if name in ("Part", "PartLse") else one.kind
            if one.name == "share":
                continue
            found.append(Argument(name=name, kind=kind, passed=passed))
            if name == "Starts":
                found.append(Argument(name="TileUnit", kind="*i32", passed=f"work_{n}.unit"))
                found.append(Argument(name="TileFirst", kind="*i32", passed=f"work_{n}.first"))
            if name == "room":
                found.append(Argument(name="units", kind="i32", passed=f"units_{n}"))
                found.append(Argument(name="tiles", kind="i32", passed=f"work_{n}.unit.shape[2]"))
                found.append(Argument(name="first_head", kind="i32", passed="first"))
        return found

    def programs(self) -> str:
        """Return how many programs a launch has, as text of the host."""
        return f"work_{self.number}.unit.shape[2] * some"

    def which_row(self) -> None:
        out = self.out
        out.line("program = tl.program_id(0)")
        out.line("lane = tl.arange(0, BQ)")
        out.line("place = first_head + program // tiles  # of all heads of all batch items")
        out.line("h = place % heads")
        out.line("b = (place // heads).to(tl.int64)")
        out.line("kv_head = h // group")
        for line in self.rest.batches():
            out.line(line)
        out.line("chooser = b * choosers + h * choosers // heads")
        out.comment("A tile of the tokens that chose a unit; -1: a tile that is not needed.")
        out.line("work = chooser * tiles + program % tiles")
        out.line("k_unit = tl.load(TileUnit + work)")
        out.line("stop = tl.load(Starts + chooser * (units + 1) + k_unit + 1)  # of -1: 0")
        out.line("at = tl.load(TileFirst + work) + lane")
        out.line("q_there = at < stop")
        out.line("size = chooser * rows * room")
        out.line("pair = tl.load(Pairs + size + at, mask=q_there, other=0)")
        out.line("q_place = pair // room")
        out.line("q_pos = q_place[:, None]  # [BQ, 1]")
        own = "(program // tiles).to(tl.int64) * rows * room"
        out.line(f"result_row = ({own} + pair)[:, None]  # [BQ, 1]")
        if self.plan.past_free and self.rest.asks:
            out.line("first_query = tl.min(tl.where(q_there, q_place, nq), 0)")
        out.line()

    @property
    def result(self) -> str:
        """Return the rows that results are stored in."""
        return "result_row"

    def walk_units(self) -> None:
        out, own, side = self.out, self.keys, self.sides.k
        parts = -(-own.tokens // side)
        out.line(f"parts = tl.where(k_unit >= 0, {parts}, 0)")
        with out.block("for it in range(0, parts):"):
            if self.whole_tiles:
                out.line(f"k_first = k_unit * {own.tokens} + it * BK")
                self.contiguous()
                out.line("k_there = k_place < nk")
                self.visit(self.doubt())
            else:
                out.line("offset = it * BK + span")
                inside = "" if own.tokens % side == 0 else f"offset < {own.tokens}"
                in_unit(out, "k", own, "k_unit", "offset", inside)
                out.line("near = tl.where(k_there, k_place, 0).to(tl.int64)")
                out.line("k_pos = k_place[None, :]  # [1, BK]")
                self.visit("", gathered=True)
        out.line()

    def doubt(self) -> str:
        if not self.rest.asks:
            return "k_first + BK > nk"
        if not self.plan.past_free:
            return ""
        return f"k_first + BK > tl.minimum(first_query{self.rest.shift}, nk)"


def emit_merges(plan: RoutedPlan) -> str:
    """Print the kernels that merge, or add up, the slots of each row."""
    return "\n\n".join([_merge(plan), _sum(plan.head_dim)])


MERGE_ROWS = 16
"""Rows that a program of a merging kernel has."""


def _head(name: str, pointers: str) -> str:
    return f'''\
@triton.jit(do_not_specialize=["rows", "room", "heads", "choosers", "first_head"])
def {name}(
    {pointers}, Count, rows: tl.int32, room: tl.int32, heads: tl.int32, choosers: tl.int32,
    first_head: tl.int32,
):
'''


def _merge(plan: RoutedPlan) -> str:
    return _head("_routed_merge", "Part, PartLse, Out, Lse") + f'''\
    """Merge the slots of some rows by log-sum-exp, in order."""
    ROWS: tl.constexpr = {MERGE_ROWS}
    DV: tl.constexpr = {plan.value_dim}
    DV_PAD: tl.constexpr = {padded(plan.value_dim)}
{_ROWS}\
    value_dims = tl.arange(0, DV_PAD)
    accumulated = tl.zeros([ROWS, DV_PAD], tl.float32)
    top = tl.full([ROWS], -3.0e38, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for slot in range(0, tl.max(count, 0)):
        taken = slot < count
        lse = tl.load(PartLse + first + slot, mask=taken, other=float("-inf"))
        place = Part + (first + slot)[:, None] * DV + value_dims[None, :]
        part = tl.load(place, mask=taken[:, None] & (value_dims[None, :] < DV), other=0.0)
        new_top = tl.maximum(top, lse)
        shrink = tl.math.exp2(top - new_top)
        weight = tl.math.exp2(lse - new_top)
        total = total * shrink + weight
        accumulated = accumulated * shrink[:, None] + part * weight[:, None]
        top = new_top
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), (top + tl.math.log2(total)) * {LN_2})
    tl.store(Lse + result, lse, mask=there)
    out = (accumulated / total[:, None]).to(Out.dtype.element_ty)
    inside = there[:, None] & (value_dims[None, :] < DV)
    tl.store(Out + result[:, None] * DV + value_dims[None, :], out, mask=inside)
'''


_ROWS = '''\
    tiles = (rows + ROWS - 1) // ROWS
    program = tl.program_id(0)
    row = program % tiles * ROWS + tl.arange(0, ROWS)
    there = row < rows
    place = (first_head + program // tiles).to(tl.int64)
    chooser = place // heads * choosers + place % heads * choosers // heads
    count = tl.load(Count + chooser * rows + row, mask=there, other=0)
    first = ((program // tiles).to(tl.int64) * rows + row) * room
    result = place * rows + row
'''


def _sum(dim: int) -> str:
    return _head("_routed_sum", "Part, GradQ") + f'''\
    """Add up the slots of some rows, in order."""
    ROWS: tl.constexpr = {MERGE_ROWS}
    D: tl.constexpr = {dim}
    D_PAD: tl.constexpr = {padded(dim)}
{_ROWS}\
    dims = tl.arange(0, D_PAD)
    total = tl.zeros([ROWS, D_PAD], tl.float32)
    for slot in range(0, tl.max(count, 0)):
        place = Part + (first + slot)[:, None] * D + dims[None, :]
        inside = (slot < count)[:, None] & (dims[None, :] < D)
        total += tl.load(place, mask=inside, other=0.0)
    inside = there[:, None] & (dims[None, :] < D)
    tl.store(GradQ + result[:, None] * D + dims[None, :], total, mask=inside)
'''
