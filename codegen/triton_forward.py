"""forward plan -> Triton kernel source.

One program computes one query tile of one head. Its key tiles come from one loop over the
concatenated segments of the plan (or over a table row), so the loads of a later segment are in
flight while an earlier one is computed; what a tile still has to check stands behind a branch that
the whole program takes together. The running maximum starts at a finite number and masked scores
are -inf, so no row, masked out or not, meets inf - inf. What is the same for all keys is loaded and
computed in front of the loop.
"""

from __future__ import annotations

from attnc.codegen.boxes import crosses, token_lines
from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.kernel_terms import KernelTerms
from attnc.codegen.loop_text import LoopText, class_tests, one_line
from attnc.codegen.triton_predicate import pointer_argument
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import ForwardPlan
from attnc.compiler.passes.tiles import padded

KERNEL = "_attend"
"""Name of the kernel in the emitted source."""

STRIDES = ("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row", "v_batch", "v_head", "v_row")
"""Stride arguments, int64, in units of ALIGN elements."""


def parameters(plan: ForwardPlan) -> tuple[tuple[str, str], ...]:
    """Return the run-time arguments of the kernel in order, with their Triton types.

    A type ``*`` is a pointer to the dtype of the call. ALIGN and WIDE, constexpr, follow them;
    ``scale_log2`` is positive. Row ``(b, h, qb)`` of a table of form "data" is
    ``b * table_batch + h * table_head + qb``, h the head of the mask. ``kernel_inputs.py`` says
    what the arguments for inputs hold.
    """
    pointers: list[tuple[str, str]] = [("Q", "*"), ("K", "*"), ("V", "*"), ("Out", "*")]
    pointers.append(("Lse", "*fp32"))
    if plan.row_order == "sorted":
        pointers.append(("Order", "*i32"))
    if plan.form != "ranges":
        pointers += [("RowStart", "*i64"), ("Entries", "*i32")]
    integers = ["nq", "nk", "heads", "group", "batch", "section"]
    table = ["table_batch", "table_head"] if plan.form == "data" else []
    given = [(one.argument, one.kind) for one in input_arguments(plan)]
    return (
        *pointers,
        *(one for one in given if one[1].startswith("*")),
        ("scale_log2", "fp32"),
        *((name, "i64") for name in STRIDES),
        *((name, "i32") for name in integers),
        *((name, "i64") for name in table),
        *(one for one in given if not one[1].startswith("*")),
    )


def heads_in_order(plan: ForwardPlan) -> bool:
    """Whether ``Order`` lists the rows of all heads of the mask together, not those of one."""
    heads = plan.block_mask.pattern.heads
    return plan.row_order == "sorted" and plan.form != "data" and heads is not None


def emit_kernel(plan: ForwardPlan) -> str:
    """Print the kernel of a plan, with the helpers it calls, as top-level Python source.

    The source expects ``triton`` and ``triton.language as tl`` to be imported.
    """
    return ForwardKernel(plan).text()


class ForwardKernel:
    """One emission: the writer and the two dialects, which gather the helpers they use.

    ``triton_varlen.py`` and ``triton_parts.py`` override what is public: where sequences lie
    (``given``, ``which_row``, ``base``, ``segments``, ``places``), and what a row starts from.
    """

    name = KERNEL

    def __init__(self, plan: ForwardPlan) -> None:
        self.plan = plan
        self.pattern = plan.block_mask.pattern
        self.tests = list(class_tests(plan))
        self.terms = KernelTerms(plan, [number for number, _ in self.tests])
        ragged = plan.boxes is not None and crosses(plan.boxes.queries)
        self.inside = "q_there" if ragged else "q_pos < nq"
        self.out = Writer()
        self.loop = LoopText(plan, self.terms, self.tests, self.out)

    def text(self) -> str:
        self._head()
        with self.out.indented():
            self._constants()
            self.which_row()
            self._load_query()
            self.segments()
            self._once()
            self.start(self.terms.sink)
            self.walk()
            self._finish()
        kernel = self.out.text()
        return "\n\n".join([*self.terms.helpers(), kernel])

    def given(self) -> tuple[tuple[str, str], ...]:
        """Return the run-time arguments with their types."""
        return parameters(self.plan)

    def segments(self) -> None:
        """Print where the segments of a row begin and end."""
        self.loop.segments()

    def _head(self) -> None:
        out, given = self.out, self.given()
        fixed = [f'"{n}"' for n, kind in given if not kind.startswith("*") and kind != "fp32"]
        out.call("@triton.jit(do_not_specialize=[", fixed, "])")
        names = [
            n if kind.startswith("*") or kind == "fp32" else f"{n}: tl.int{kind[1:]}"
            for n, kind in given
        ]
        out.call(f"def {self.name}(", [*names, "ALIGN: tl.constexpr", "WIDE: tl.constexpr"], "):")

    def _constants(self) -> None:
        out, plan = self.out, self.plan
        pattern = self.pattern
        params = ", ".join(f"{n} = {v}" for n, v in pattern.params)
        out.line(
            f'"""Attend one query tile of one head: {one_line(pattern.name)}, '
            f'tile {plan.tiling}."""'
        )
        if params:
            out.comment(one_line(params))
        out.line(f"BQ: tl.constexpr = {plan.tiling.q}  # queries a tile")
        out.line(f"BK: tl.constexpr = {plan.tiling.k}  # keys a tile")
        for name, dim, what in (
            ("D", plan.head_dim, "q and k"), ("DV", plan.value_dim, "v and out")
        ):
            out.line(f"{name}: tl.constexpr = {dim}  # head dim of {what}")
            if padded(dim) != dim:
                out.line(f"{name}_PAD: tl.constexpr = {padded(dim)}")
        out.line()

    def which_row(self) -> None:
        """Print which row of which head of which sequence a program has."""
        out, plan = self.out, self.plan
        if plan.boxes is None:
            out.line("NQ = (nq + BQ - 1) // BQ")
            out.line("NK = (nk + BK - 1) // BK")
        else:
            out.line(f"NQ = {plan.boxes.tiles()[0]}  # boxes of queries")
        out.line("program = tl.program_id(0)")
        if heads_in_order(plan) and self.pattern.kv_heads:
            out.comment("Rows of all key heads, most key tiles first, each for its query heads.")
            out.line("row = tl.load(Order + program // (batch * group))")
            out.line("b = program % batch")
            out.line("h = row // NQ * group + program // batch % group")
            out.line("qb = row % NQ")
        elif heads_in_order(plan):
            out.comment("Rows of all heads, most key tiles first.")
            out.line("row = tl.load(Order + program // batch)")
            out.line("b = program % batch")
            out.line("h = row // NQ")
            out.line("qb = row % NQ")
        else:
            out.comment(
                "Heads go in sections whose keys and values share the L2 cache; inside a section "
                "all heads walk the rows together, "
                + {
                    "forward": "first row first.",
                    "reversed": "last row first: it has the most key tiles.",
                    "sorted": "the row with the most key tiles first.",
                }[plan.row_order]
            )
            out.line("first_head = program // (NQ * section) * section")
            out.line("width = tl.minimum(section, batch * heads - first_head)")
            out.line("rest = program - first_head * NQ")
            out.line("b = (first_head + rest % width) // heads")
            out.line("h = (first_head + rest % width) % heads")
            slot = "rest // width"
            match plan.row_order:
                case "forward":
                    out.line(f"qb = {slot}")
                case "reversed":
                    out.line(f"qb = NQ - 1 - {slot}")
                case "sorted":
                    out.line(f"qb = tl.load(Order + {slot})")
        if self.terms.head != "h":
            out.line(f"{self.terms.head} = h // group  # the mask speaks of heads of keys")
        for given in input_arguments(plan):
            if given.source == "batch":
                out.line(f"{pointer_argument(given.name)} += b * {given.argument}")
        out.line()

    def _load_query(self) -> None:
        out, plan = self.out, self.plan
        d_pad, dv_pad = self.pads()
        out.comment("Strides come in units of ALIGN elements, so loads are known to be aligned.")
        for name, head in (("Q", "h"), ("K", "h // group"), ("V", "h // group")):
            low = name.lower()
            out.line(f"{name} += {self.base(low)} + {head} * ({low}_head * ALIGN)")
        out.line("k_step = k_row * ALIGN")
        out.line("v_step = v_row * ALIGN")
        out.line(f"dims = tl.arange(0, {d_pad})")
        out.line(f"value_dims = tl.arange(0, {dv_pad})")
        if plan.boxes is None:
            out.line("q_pos = qb * BQ + tl.arange(0, BQ)[:, None]  # [BQ, 1]")
        else:
            out.line("lane = tl.arange(0, BQ)[:, None]")
            for line in token_lines("q", plan.boxes.queries, row=True):
                out.line(line)
        if self.terms.of_row:
            out.line("q_middle = qb * BQ + BQ // 2  # where terms of query and key are taken")
        out.line("span = tl.arange(0, BK)")
        mask = self.inside if plan.head_dim == padded(plan.head_dim) else (
            f"({self.inside}) & (dims[None, :] < D)"
        )
        start = "Q + q_pos * (q_row * ALIGN) + dims[None, :]"
        out.call("q = tl.load(", [start, f"mask={mask}", "other=0.0"], ")  # [BQ, D]")
        self.steps()
        out.line()

    def steps(self) -> None:
        """Print the steps from key to key, inside a tile."""
        out = self.out
        out.comment("Offsets inside a key tile fit 32 bits unless rows lie very far apart.")
        with out.block("if WIDE:"):
            out.line("k_near, v_near = k_step, v_step")
        with out.block("else:"):
            out.line("k_near, v_near = k_step.to(tl.int32), v_step.to(tl.int32)")

    def base(self, tensor: str) -> str:
        """Return where the first token of the sequence lies in a tensor."""
        return f"b * ({tensor}_batch * ALIGN)"

    def places(self) -> tuple[str, str]:
        """Print where the row's results go; return their places in lse and, in rows, in out."""
        self.out.line("row = (b.to(tl.int64) * heads + h) * nq + q_pos  # [BQ, 1]")
        return "row", "row"

    def pads(self) -> tuple[str, str]:
        """Return the names of the widths of q and v that a program holds."""
        plan = self.plan
        return (
            "D" if padded(plan.head_dim) == plan.head_dim else "D_PAD",
            "DV" if padded(plan.value_dim) == plan.value_dim else "DV_PAD",
        )

    def _once(self) -> None:
        """Load and compute what is the same for all keys."""
        for line in self.terms.once:
            self.out.line(line)
        if self.terms.once:
            self.out.line()

    def start(self, sink: str) -> None:
        """Print what a row holds before its first key."""
        out = self.out
        out.line(f"accumulated = tl.zeros([BQ, {self.pads()[1]}], tl.float32)")
        if not sink:
            out.line("top = tl.full([BQ], -3.0e38, tl.float32)  # largest scaled score so far")
            out.line("total = tl.zeros([BQ], tl.float32)  # sum of exp2(scaled score - top)")
            return
        out.comment("The sink is a key without a value that every query sees.")
        out.line(f"sink = tl.reshape(tl.zeros([BQ, 1], tl.float32) + {sink}, [BQ])")
        out.line("top = tl.maximum(sink, -3.0e38)  # largest scaled score so far")
        out.line("total = tl.math.exp2(sink - top)  # sum of exp2(scaled score - top)")

    def walk(self) -> None:
        """Print the loop over the key tiles of a row."""
        out, plan = self.out, self.plan
        if not plan.segments and (plan.boxes is None or not plan.boxes.pieces):
            out.comment("The pattern keeps no pair: no key tile is visited.")
            return
        if plan.boxes is None:
            out.line("whole_tiles = nk // BK")
        with out.block(f"for it in range(0, {self.loop.end}):"):
            self.loop.tile()
            self._scores()
            self.loop.masks()
            scale = "" if self.terms.score else " * scale_log2"
            out.line(f"new_top = tl.maximum(top, tl.max(s, 1){scale})")
            out.line(f"p = tl.math.exp2(s{scale} - new_top[:, None])  # [BQ, BK]")
            for line in _SOFTMAX:
                out.line(line)
        out.line()

    def _scores(self) -> None:
        """Multiply q by a tile of keys; score terms make powers of two of the products."""
        out, score = self.out, self.terms.score
        d_pad, dv_pad = self.pads()
        if self.plan.boxes is None:
            out.line("k_pos = kb * BK + span[None, :]  # [1, BK]")
            out.comment(
                "Past the end of the keys the last one is read again; its scores are masked."
            )
            out.line("near = tl.minimum(span, nk - 1 - kb * BK)")
            out.line("k_tile = K + tl.cast(kb, tl.int64) * BK * k_step")
            out.line("v_tile = V + tl.cast(kb, tl.int64) * BK * v_step")
        else:
            for line in token_lines("k", self.plan.boxes.keys, row=False):
                out.line(line)
            out.line("k_pos = k_place[None, :]  # [1, BK]")
            if crosses(self.plan.boxes.keys):
                out.comment("Past the end of an axis the first key is read; its scores are masked.")
                out.line("near = tl.where(k_there, k_place, 0)")
            else:
                out.line("near = k_place")
            out.line("k_tile, v_tile = K, V")
        for name, where, place, padded_dim, shape in (
            ("k", "None, :", "dims[:, None]", d_pad != "D" and "D", "[D, BK]"),
            ("v", ":, None", "value_dims[None, :]", dv_pad != "DV" and "DV", "[BK, DV]"),
        ):
            given = [f"{name}_tile + near[{where}] * {name}_near + {place}"]
            if padded_dim:
                given += [f"mask={place} < {padded_dim}", "other=0.0"]
            out.call(f"{name} = tl.load(", given, f")  # {shape}")
        for line in self.terms.early:
            out.line(line)
        out.line('s = tl.dot(q, k, input_precision="ieee")  # [BQ, BK] fp32')
        if score:
            out.comment("The score, times log2(e).")
            out.line(f"s = {score}")

    def _finish(self) -> None:
        out, dv_pad = self.out, self.pads()[1]
        out.comment("A query without keys has total 0: out 0, lse -inf.")
        out.line("empty = total == 0.0")
        out.line("total = tl.where(empty, 1.0, total)")
        out.line("lse = (top + tl.math.log2(total)) * 0.6931471805599453")
        if self.terms.of_row:
            out.comment("What each query adds to all of its scores.")
            out.line(
                f"lse += tl.reshape(tl.zeros([BQ, 1], tl.float32) + {self.terms.of_row}, [BQ])"
            )
        out.line('lse = tl.where(empty, float("-inf"), lse)')
        lse_row, out_row = self.places()
        out.line(f"tl.store(Lse + {lse_row}, tl.reshape(lse, [BQ, 1]), mask={self.inside})")
        mask = self.inside if dv_pad == "DV" else (
            f"({self.inside}) & (value_dims[None, :] < DV)"
        )
        if self.terms.of_row:
            out.comment("One that adds -inf has no key either.")
            out.line('accumulated = tl.where((lse == float("-inf"))[:, None], 0.0, accumulated)')
        out.line("result = (accumulated / total[:, None]).to(Out.dtype.element_ty)")
        place = f"Out + {out_row} * DV + value_dims[None, :]"
        out.call("tl.store(", [place, "result", f"mask={mask}"])


_SOFTMAX = (
    "shrink = tl.math.exp2(top - new_top)",
    "total = total * shrink + tl.sum(p, 1)",
    "accumulated = accumulated * shrink[:, None]",
    'accumulated = tl.dot(p.to(v.dtype), v, accumulated, input_precision="ieee")',
    "top = new_top",
)
