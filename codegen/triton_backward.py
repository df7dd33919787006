"""backward plan -> Triton kernels: dQ by query tiles, dK and dV by key tiles.

With p the weights, dP = dO V^T and d the row sums of dO * O, less what flows into the log-sum-exp:

    dS = p * (dP - d)    dQ = scale * dS K    dK = scale * dS^T Q    dV = p^T dO

Weights are made again from the scores and the log-sum-exp. A row of a kernel is a tile whose sums
it keeps while it loops over the tiles of the other side, as in the forward kernel: nothing is added
atomically, so that two runs agree in every bit. Where query heads share keys, the loop of a key
tile goes through all of them: one loop, since a loop inside another costs registers. Only heads
that differ in what they see have rows of their own (``heads_apart``).
"""

from __future__ import annotations

from typing import Literal

from attnc.codegen.boxes import crosses, token_lines
from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.kernel_terms import KernelTerms, Sides, heads_apart
from attnc.codegen.learned import learned, sum_pointers, sum_strides
from attnc.codegen.loop_text import LoopText, class_tests, one_line
from attnc.codegen.triton_predicate import pointer_argument
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import LoopPlan
from attnc.compiler.passes.tiles import padded

Kernel = Literal["dq", "dkdv", "dv", "dk", "learned"]
"""What a kernel makes; "learned": what inputs of the score get."""

KERNELS: dict[Kernel, str] = {
    "dq": "_grad_queries", "dkdv": "_grad_keys_values", "dv": "_grad_values", "dk": "_grad_keys",
    "learned": "_grad_learned",
}  # fmt: skip
"""Names of the kernels in the emitted source."""

_ALIGNED = "Strides come in units of ALIGN elements, so loads are known to be aligned."

STRIDES = tuple(f"{x}_{part}" for x in ("q", "k", "v", "o") for part in ("batch", "head", "row"))
"""Stride arguments, int64, in units of ALIGN elements; ``o`` is the gradient of the output."""


def parameters(plan: LoopPlan, kernel: Kernel) -> tuple[tuple[str, str], ...]:
    """Return the run-time arguments of a kernel in order, with their Triton types.

    As those of the forward kernel: a type ``*`` is a pointer to the dtype of the call; ALIGN and
    WIDE, constexpr, follow. Gradients are written to contiguous tensors; ``codegen/learned.py``
    says where those of learned inputs go.
    """
    made = {"dq": ("GradQ",), "dkdv": ("GradK", "GradV"), "dv": ("GradV",), "dk": ("GradK",)}
    results = sum_pointers(plan) if kernel == "learned" else [(name, "*") for name in made[kernel]]
    pointers = [("Q", "*"), ("K", "*"), ("V", "*"), ("GradOut", "*")]
    pointers += [("Total", "*fp32"), ("Delta", "*fp32"), *results]
    if plan.row_order == "sorted":
        pointers.append(("Order", "*i32"))
    if plan.form != "ranges":
        pointers += [("RowStart", "*i64"), ("Entries", "*i32")]
    integers = ["nq", "nk", "heads", "group", "batch", "section"]
    table = ["table_batch", "table_head"] if plan.form == "data" else []
    table += sum_strides(plan) if kernel == "learned" else []
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


def emit_kernel(plan: LoopPlan, kernel: Kernel) -> tuple[list[str], str]:
    """Print a kernel: the helpers it calls, and its own source.

    The source expects ``triton`` and ``triton.language as tl`` to be imported.
    """
    from attnc.codegen.triton_learned import LearnedKernel

    writer: BackwardKernel
    match kernel:
        case "dq":
            writer = QueryKernel(plan, kernel)
        case "learned":
            writer = LearnedKernel(plan)
        case _:
            writer = KeyKernel(plan, kernel)
    text = writer.text()
    return writer.terms.helpers(), text


class BackwardKernel:
    """What both kernels print alike; ``row`` and ``column`` are the letters of their sides.

    ``triton_varlen_backward.py`` overrides where sequences lie: ``given``, ``which_row``,
    ``segments``, ``base``, ``first_row`` and ``result_row``.
    """

    packed = False

    def __init__(self, plan: LoopPlan, kernel: Kernel) -> None:
        self.plan, self.kernel = plan, kernel
        sides = Sides(inverse=kernel not in ("dq", "learned"))
        self.row, self.column = sides.row, sides.column
        tests = list(class_tests(plan))
        classes = [number for number, _ in tests]
        reads = learned(plan, packed=self.packed) if kernel == "learned" else ()
        self.terms = KernelTerms(plan, classes, sides, backward=True, learned=reads)
        self.switches: tuple[str, ...] = ("ALIGN", "WIDE")
        self.out = Writer()
        self.loop = LoopText(plan, self.terms, tests, self.out)
        ragged = plan.boxes is not None and crosses(plan.boxes.queries)
        self.there = f"{self.row}_there" if ragged else f"{self.row}_pos < n{self.row}"
        self.dims = "D" if padded(plan.head_dim) == plan.head_dim else "D_PAD"
        self.value_dims = "DV" if padded(plan.value_dim) == plan.value_dim else "DV_PAD"

    def head(self, what: str) -> None:
        """Print the signature and the constants."""
        out, plan, pattern = self.out, self.plan, self.plan.block_mask.pattern
        given = self.given()
        plain = [n for n, kind in given if kind.startswith("*") or kind == "fp32"]
        fixed = [f'"{n}"' for n, _ in given if n not in plain]
        out.call("@triton.jit(do_not_specialize=[", fixed, "])")
        names = [n if n in plain else f"{n}: tl.int{kind[1:]}" for n, kind in given]
        out.call(
            f"def {KERNELS[self.kernel]}(",
            [*names, *(f"{switch}: tl.constexpr" for switch in self.switches)], "):",
        )
        with out.indented():
            out.line(f'"""Make {what}: {one_line(pattern.name)}, rows x tiles {plan.tiling}."""')
            sides = {self.row: plan.tiling.q, self.column: plan.tiling.k}
            out.line(f"BQ: tl.constexpr = {sides['q']}  # queries a tile")
            out.line(f"BK: tl.constexpr = {sides['k']}  # keys a tile")
            for name, dim, of in (
                ("D", plan.head_dim, "q and k"), ("DV", plan.value_dim, "v and out")
            ):
                out.line(f"{name}: tl.constexpr = {dim}  # head dim of {of}")
                if padded(dim) != dim:
                    out.line(f"{name}_PAD: tl.constexpr = {padded(dim)}")
            out.line()

    def given(self) -> tuple[tuple[str, str], ...]:
        """Return the run-time arguments with their types."""
        return parameters(self.plan, self.kernel)

    def segments(self) -> None:
        """Print where the segments of a row begin and end."""
        self.loop.segments()

    def base(self, letter: str) -> str:
        """Return where the first token of the sequence lies in a tensor."""
        return f"b * ({letter}_batch * ALIGN)"

    def first_row(self, side: str, heads: str, head: str) -> str:
        """Return the number of the first row of a head, in what has a row for each token."""
        return f"(b.to(tl.int64) * {heads} + {head}) * n{side}"

    def result_row(self, heads: str, head: str) -> str:
        """Return the rows of a result."""
        return f"{self.first_row(self.row, heads, head)} + {self.row}_pos"

    def which_row(self, heads: str, head: str) -> None:
        """Print which tile of which head a program has."""
        out, tile, tiles = self.out, f"{self.row}b", f"N{self.row.upper()}"
        if self.plan.boxes is None:
            out.line("NQ = (nq + BQ - 1) // BQ")
            out.line("NK = (nk + BK - 1) // BK")
        else:
            side = {"q": "queries", "k": "keys"}[self.row]
            out.line(f"{tiles} = {self.plan.boxes.tiles()[0]}  # boxes of {side}")
        out.line("program = tl.program_id(0)")
        out.comment("Heads go in sections that share the L2 cache, and walk the rows together.")
        out.line(f"first_head = program // ({tiles} * section) * section")
        out.line(f"width = tl.minimum(section, batch * {heads} - first_head)")
        out.line(f"rest = program - first_head * {tiles}")
        out.line(f"b = (first_head + rest % width) // {heads}")
        out.line(f"{head} = (first_head + rest % width) % {heads}")
        match self.plan.row_order:
            case "forward":
                out.line(f"{tile} = rest // width")
            case "reversed":
                out.line(f"{tile} = {tiles} - 1 - rest // width")
            case "sorted":
                out.line(f"{tile} = tl.load(Order + rest // width)")
        for given in input_arguments(self.plan):
            if given.source == "batch":
                out.line(f"{pointer_argument(given.name)} += b * {given.argument}")
        out.line()

    def addresses(self, near: tuple[str, str]) -> None:
        """Print steps and lanes; ``near`` names the two tensors that the loop reads."""
        out = self.out
        for name in near:
            out.line(f"{name}_step = {name}_row * ALIGN")
        out.line(f"dims = tl.arange(0, {self.dims})")
        out.line(f"value_dims = tl.arange(0, {self.value_dims})")
        size = f"B{self.row.upper()}"
        lanes = f"tl.arange(0, {size})[:, None]"
        if self.plan.boxes is None:
            out.line(f"{self.row}_pos = {self.row}b * {size} + {lanes}  # [{size}, 1]")
        else:
            out.line(f"lane = {lanes}")
            for line in token_lines(self.row, self.plan.boxes.queries, row=True):
                out.line(line)
        out.line(f"span = tl.arange(0, B{self.column.upper()})")
        out.comment("Offsets inside a tile fit 32 bits unless rows lie very far apart.")
        a, b = near
        with out.block("if WIDE:"):
            out.line(f"{a}_near, {b}_near = {a}_step, {b}_step")
        with out.block("else:"):
            out.line(f"{a}_near, {b}_near = {a}_step.to(tl.int32), {b}_step.to(tl.int32)")

    def load_row(self, name: str, source: str, wide: bool) -> None:
        """Load the tile of a row; past the end of its side it is 0."""
        pos, dims, size = f"{self.row}_pos", "value_dims" if wide else "dims", self.size(wide)
        mask = self.inside(wide)
        letter = source[0].lower() if source != "GradOut" else "o"
        start = f"{source} + {pos} * ({letter}_row * ALIGN) + {dims}[None, :]"
        shape = f"[B{self.row.upper()}, {size.removesuffix('_PAD')}]"
        self.out.call(f"{name} = tl.load(", [start, f"mask={mask}", "other=0.0"], f")  # {shape}")

    def load_tile(self, name: str, source: str, step: str, wide: bool, across: bool) -> None:
        """Load the tile of an iteration, tokens down, or ``across``: the product's right side."""
        column = self.column
        dims, size = "value_dims" if wide else "dims", self.size(wide)
        lanes, tokens = ("[:, None]", "[None, :]") if across else ("[None, :]", "[:, None]")
        start = source
        if self.plan.boxes is None:
            start = f"{name}_tile"
            place = f"tl.cast({column}b, tl.int64) * B{column.upper()} * {step}_step"
            self.out.line(f"{start} = {source} + {place}")
        given = [f"{start} + near{tokens} * {step}_near + {dims}{lanes}"]
        if size.endswith("_PAD"):
            given += [f"mask={dims}{lanes} < {size.removesuffix('_PAD')}", "other=0.0"]
        sides = [size.removesuffix("_PAD"), f"B{column.upper()}"]
        shape = ", ".join(sides if across else sides[::-1])
        self.out.call(f"{name} = tl.load(", given, f")  # [{shape}]")

    def inside(self, wide: bool) -> str:
        """Return the test that elements of a row's tile exist."""
        size = self.size(wide)
        if not size.endswith("_PAD"):
            return self.there
        dims = "value_dims" if wide else "dims"
        return f"({self.there}) & ({dims}[None, :] < {size.removesuffix('_PAD')})"

    def size(self, wide: bool) -> str:
        """Return the padded head dim, of values where ``wide``."""
        return self.value_dims if wide else self.dims

    def once(self) -> None:
        """Load and compute what is the same for all tiles of a row."""
        for line in self.terms.once:
            self.out.line(line)
        if self.terms.once:
            self.out.line()

    def tile(self) -> None:
        """Print which tile an iteration visits, and which of its tokens exist."""
        out, column = self.out, self.column
        size = f"B{column.upper()}"
        self.loop.tile()
        if self.plan.boxes is None:
            out.line(f"{column}_pos = {column}b * {size} + span[None, :]  # [1, {size}]")
            out.comment("Past the end the last one is read again; its weights are masked.")
            out.line(f"near = tl.minimum(span, n{column} - 1 - {column}b * {size})")
            return
        for line in token_lines(column, self.plan.boxes.keys, row=False):
            out.line(line)
        out.line(f"{column}_pos = {column}_place[None, :]  # [1, {size}]")
        if crosses(self.plan.boxes.keys):
            out.comment("Past the end of an axis the first one is read; its weights are masked.")
            out.line(f"near = tl.where({column}_there, {column}_place, 0)")
        else:
            out.line(f"near = {column}_place")

    def weights(self, product: str) -> None:
        """Print the weights of a tile, masked ones 0."""
        out, terms = self.out, self.terms
        for line in terms.early:
            out.line(line)
        out.line(f's = tl.dot({product}, input_precision="ieee")')
        self.slopes()
        if terms.score:
            out.comment("The score, times log2(e).")
            out.line(f"s = {terms.score}")
        scale = "" if terms.score else " * scale_log2"
        out.line(f"p = tl.math.exp2(s{scale} - total)")
        self.loop.masks("p", "0.0")

    def slopes(self) -> None:
        """Print what is made of the products of a tile before its scores are."""
        if self.terms.by_dot:
            self.out.comment("The derivative of the score by the scaled product.")
            self.out.line(f"by_dot = {self.terms.by_dot}")

    def score_gradient(self) -> None:
        """Print the gradient of the scaled products."""
        self.out.line("ds = p * (dp - delta)")
        if self.terms.by_dot:
            self.out.comment("Where no gradient arrives the derivative may be no number.")
            self.out.line("ds = tl.where(ds == 0.0, 0.0, ds * by_dot)")

    def wait(self, last: str) -> None:
        """Print a use of the last product of an iteration, which Hopper has to wait for.

        In flight across iterations it may make the assembler serialise all products (C7515).
        """
        if self.plan.target != "sm_90" or self.plan.dtype == "fp32":
            return
        self.out.comment("Always so, but not known to be: the product ends with its iteration.")
        self.out.line(f"{last} = tl.where(group > 0, {last}, 0.0)")

    @property
    def visits(self) -> bool:
        """Whether a row visits any tile."""
        return bool(self.plan.segments if self.plan.boxes is None else self.plan.boxes.pieces)

    def ends(self) -> None:
        """Print which tile of the loop is the first that crosses the end; boxes have a mask."""
        if self.plan.boxes is None:
            other = self.column
            self.out.line(f"whole_tiles = n{other} // B{other.upper()}")

    def store(self, target: str, value: str, wide: bool) -> None:
        """Store the sums of a row."""
        dims, size = ("value_dims", "DV") if wide else ("dims", "D")
        place = f"{target} + row * {size} + {dims}[None, :]"
        self.out.line(f"result = ({value}).to({target}.dtype.element_ty)")
        self.out.call("tl.store(", [place, "result", f"mask={self.inside(wide)}"])


class QueryKernel(BackwardKernel):
    """dQ: a row is a query tile."""

    made = "the gradient of one query tile of one head"

    def text(self) -> str:
        """Print the kernel."""
        out = self.out
        self.head(self.made)
        with out.indented():
            self.which_row("heads", "h")
            if self.terms.head != "h":
                out.line(f"{self.terms.head} = h // group  # the mask speaks of heads of keys")
            out.comment(_ALIGNED)
            for name, letter, head in (
                ("Q", "q", "h"), ("GradOut", "o", "h"), ("K", "k", "h // group"),
                ("V", "v", "h // group"),
            ):  # fmt: skip
                out.line(f"{name} += {self.base(letter)} + {head} * ({letter}_head * ALIGN)")
            self.addresses(("k", "v"))
            self.load_row("q", "Q", wide=False)
            self.load_row("grad_out", "GradOut", wide=True)
            out.line(f"row = {self.first_row('q', 'heads', 'h')} + q_pos  # [BQ, 1]")
            out.line(f'total = tl.load(Total + row, mask={self.there}, other=float("inf"))')
            out.line(f"delta = tl.load(Delta + row, mask={self.there}, other=0.0)")
            out.line()
            self.segments()
            self.once()
            self.start()
            if self.visits:
                self._loop()
            self.finish()
        return out.text()

    def _loop(self) -> None:
        out = self.out
        self.ends()
        with out.block(f"for it in range(0, {self.loop.end}):"):
            self.tile()
            self.load_tile("k", "K", "k", wide=False, across=True)
            self.load_tile("v", "V", "v", wide=True, across=True)
            self.weights("q, k")
            out.line('dp = tl.dot(grad_out, v, input_precision="ieee")  # [BQ, BK]')
            self.add()

    def start(self) -> None:
        """Print the sums of a row before its first tile."""
        self.out.line(f"grad_q = tl.zeros([BQ, {self.dims}], tl.float32)")

    def add(self) -> None:
        """Print what a tile adds to the sums of its row."""
        self.score_gradient()
        self.out.line(
            'grad_q = tl.dot(ds.to(k.dtype), tl.trans(k), grad_q, input_precision="ieee")'
        )
        self.wait("grad_q")

    def finish(self) -> None:
        """Print where the sums of a row go."""
        self.store("GradQ", "grad_q * (scale_log2 * 0.6931471805599453)", wide=False)


class KeyKernel(BackwardKernel):
    """dK, dV or both: a row is a key tile."""

    def text(self) -> str:
        """Print the kernel."""
        out, kernel = self.out, self.kernel
        made = {"dkdv": "keys and values", "dk": "keys", "dv": "values"}[kernel]
        self.head(f"the gradients of one tile of {made} of one head")
        apart = heads_apart(self.plan)
        with out.indented():
            if apart:
                self.which_row("heads", "h")
                out.line("kv_head = h // group")
            else:
                out.line("kv_heads = heads // group")
                self.which_row("kv_heads", "kv_head")
            out.comment(_ALIGNED)
            for name, letter in (("K", "k"), ("V", "v")):
                out.line(f"{name} += {self.base(letter)} + kv_head * ({letter}_head * ALIGN)")
            for name, letter in (("Q", "q"), ("GradOut", "o")):
                out.line(f"{name} += {self.base(letter)}")
            self.addresses(("q", "o"))
            self.load_row("k", "K", wide=False)
            if kernel != "dv":
                self.load_row("v", "V", wide=True)
                out.line(f"grad_k = tl.zeros([BK, {self.dims}], tl.float32)")
            if kernel != "dk":
                out.line(f"grad_v = tl.zeros([BK, {self.value_dims}], tl.float32)")
            out.line()
            if self.visits:
                self.ends()
                self.segments()
                self.once()
                self._loop(apart)
            heads, head = ("heads", "h") if apart else ("kv_heads", "kv_head")
            out.line(f"row = {self.result_row(heads, head)}  # [BK, 1]")
            if kernel != "dv":
                self.store("GradK", "grad_k * (scale_log2 * 0.6931471805599453)", wide=False)
            if kernel != "dk":
                self.store("GradV", "grad_v", wide=True)
        return out.text()

    def _loop(self, apart: bool) -> None:
        """Print the loop over the query tiles of one head, or of all heads that share the keys."""
        out, end = self.out, self.loop.end
        if apart:
            self._bases()
        else:
            out.comment("The query heads that share these keys come one after the other.")
            out.line(f"each = tl.maximum({end}, 1)  # tiles of one of them")
        turns = f"it in range(0, {end})" if apart else f"turn in range(0, group * {end})"
        with out.block(f"for {turns}:"):
            if not apart:
                out.line("it = turn % each")
                out.line("h = kv_head * group + turn // each")
                self._bases()
            self.tile()
            self.load_tile("q", "q_base", "q", wide=False, across=True)
            self.load_tile("grad_out", "o_base", "o", wide=True, across=False)
            first = "first_row + qb * BQ" if self.plan.boxes is None else "first_row"
            out.line(f"first = {first}")
            out.line("total = tl.load(Total + first + near[None, :])  # [1, BQ]")
            if self.kernel != "dv":
                out.line("delta = tl.load(Delta + first + near[None, :])")
            self.weights("k, q")
            if self.kernel != "dk":
                out.line("weights = p.to(grad_out.dtype)  # [BK, BQ]")
                out.line('grad_v = tl.dot(weights, grad_out, grad_v, input_precision="ieee")')
            if self.kernel != "dv":
                out.line('dp = tl.dot(v, tl.trans(grad_out), input_precision="ieee")  # [BK, BQ]')
                self.score_gradient()
                out.line(
                    'grad_k = tl.dot(ds.to(q.dtype), tl.trans(q), grad_k, input_precision="ieee")'
                )
            self.wait("grad_v" if self.kernel == "dv" else "grad_k")

    def _bases(self) -> None:
        """Print where the rows of a query head begin."""
        self.out.line("q_base = Q + h * (q_head * ALIGN)")
        self.out.line("o_base = GradOut + h * (o_head * ALIGN)")
        self.out.line(f"first_row = {self.first_row('q', 'heads', 'h')}")
