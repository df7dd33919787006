"""decode plan -> Triton kernels of a step: one for parts of the keys, one that merges them.

A program of the first computes some rows, queries of the heads that share a head of keys, over its
share of the key tiles that their query tile visits. It asks the predicate of each key before it
loads, so dead keys (and pages that hold none other) are never read.
"""

from __future__ import annotations

from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.kernel_terms import KernelTerms
from attnc.codegen.loop_text import LoopText, one_line
from attnc.codegen.triton_predicate import pointer_argument
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.plan import ForwardPlan
from attnc.compiler.passes.tiles import padded

KERNEL, MERGE = "_decode_part", "_decode_merge"
"""Names of the kernels in the emitted source."""

STRIDES = (
    "q_batch", "q_head", "q_row", "k_page", "k_head", "k_row", "v_page", "v_head", "v_row",
)  # fmt: skip
"""Stride arguments, int64, in units of ALIGN elements; a page of a contiguous cache is an item."""


def parameters(plan: ForwardPlan) -> tuple[tuple[str, str], ...]:
    """Return the run-time arguments in order, with their Triton types.

    A type ``*`` is a pointer to the dtype of the call. PAGED, ROWS (rows of a program) and ALIGN,
    constexpr, follow them. ``Part [splits, B, Hq, T, Dv]`` and ``PartLse [splits, B, Hq, T]`` are
    the results; ``space`` is the length of the pattern's space, 0 where it has none.
    """
    given = [(one.argument, one.kind) for one in input_arguments(plan)]
    integers = "heads group queries capacity page table_row splits blocks parts space".split()
    return (
        ("Q", "*"), ("K", "*"), ("V", "*"), ("Lengths", "*i64"), ("Table", "*i32"),
        ("Part", "*fp32"), ("PartLse", "*fp32"),
        *(one for one in given if one[1].startswith("*")),
        ("scale_log2", "fp32"),
        *((name, "i64") for name in STRIDES),
        *((name, "i32") for name in integers),
        *(one for one in given if not one[1].startswith("*")),
    )  # fmt: skip


def shares_tiles(plan: ForwardPlan) -> bool:
    """Whether all query heads of a head of keys visit the same tiles, so go together."""
    bounds = (e for s in plan.segments for e in (s.tiles.base, s.tiles.count))
    return plan.block_mask.pattern.kv_heads or not any("h" in ex.free_vars(e) for e in bounds)


def emit_decode_kernels(plan: ForwardPlan) -> str:
    """Print both kernels, with the helpers they call, as top-level Python source.

    The source expects ``triton`` and ``triton.language as tl`` to be imported.
    """
    terms = KernelTerms(plan, [1])
    out = Writer()
    given = parameters(plan)
    fixed = [f'"{n}"' for n, kind in given if not kind.startswith("*") and kind != "fp32"]
    out.call("@triton.jit(do_not_specialize=[", fixed, "])")
    names = [
        n if kind.startswith("*") or kind == "fp32" else f"{n}: tl.int{kind[1:]}"
        for n, kind in given
    ]
    constant = [f"{name}: tl.constexpr" for name in ("PAGED", "ROWS", "ALIGN")]
    out.call(f"def {KERNEL}(", [*names, *constant], "):")
    with out.indented():
        _rows(out, plan, terms)
        loop = LoopText(plan, terms, [], out)
        loop.segments()
        for line in terms.once:
            out.line(line)
        _start(out, terms.sink)
        if plan.segments:
            _loop(out, plan, terms, loop)
        _finish(out)
    kernel = out.text()
    return "\n\n".join([*terms.helpers(), kernel, _merge(plan)])


def _rows(out: Writer, plan: ForwardPlan, terms: KernelTerms) -> None:
    """Print which rows a program has, where they stand, and the load of q."""
    pattern = plan.block_mask.pattern
    out.line(f'"""Attend some last queries to a share of their keys: {one_line(pattern.name)}."""')
    for name, value in (
        ("BQ", plan.tiling.q), ("BK", plan.tiling.k), ("D", plan.head_dim),
        ("D_PAD", padded(plan.head_dim)), ("DV", plan.value_dim),
        ("DV_PAD", padded(plan.value_dim)),
    ):  # fmt: skip
        out.line(f"{name}: tl.constexpr = {value}")
    out.line("split = tl.program_id(0)")
    out.line("b = tl.program_id(2).to(tl.int64)")
    out.comment("The queries lie in two query tiles at most: a program has those of one.")
    out.line("part = tl.program_id(1) % parts")
    out.line("block = tl.program_id(1) // parts % blocks")
    out.line("first_head = tl.program_id(1) // parts // blocks * group")
    if shares_tiles(plan):
        out.line("kv_head = first_head // group")
        out.line("width = group  # heads of q in this program")
    else:
        out.line("first_head = first_head // group")
        out.line("kv_head = first_head // group")
        out.line("width = 1  # each head of q visits tiles of its own")
    out.line("length = tl.minimum(tl.maximum(tl.load(Lengths + b), 0), capacity).to(tl.int32)")
    if pattern.query_space is None:
        out.line("nq = length")
    else:
        out.line("nq = space")
    out.line("nk = nq")
    out.line("NQ = (nq + BQ - 1) // BQ")
    out.line("NK = (nk + BK - 1) // BK")
    out.line("qb = tl.maximum(length - queries, 0) // BQ + part")
    out.line("row = block * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]")
    out.line("head = first_head + tl.minimum(row // queries, width - 1)")
    out.line("at = length - queries + row % queries")
    out.line("there = (row < width * queries) & (at >= 0) & (at // BQ == qb)")
    out.line("q_pos = tl.maximum(at, 0)")
    if terms.head == "h":
        out.line("h = head" if shares_tiles(plan) else "h = first_head")
    for given in input_arguments(plan):
        if given.source == "batch":
            out.line(f"{pointer_argument(given.name)} += b * {given.argument}")
    out.line("dims = tl.arange(0, D_PAD)")
    out.line("value_dims = tl.arange(0, DV_PAD)")
    out.line("span = tl.arange(0, BK)")
    out.line("q_at = b * q_batch + head * q_head + row % queries * q_row  # [ROWS, 1] int64")
    out.line(
        "q = tl.load(Q + q_at * ALIGN + dims[None, :], mask=there & (dims[None, :] < D), other=0.0)"
    )
    out.line("K += kv_head * k_head * ALIGN")
    out.line("V += kv_head * v_head * ALIGN")
    out.line()


def _start(out: Writer, sink: str) -> None:
    out.line("accumulated = tl.zeros([ROWS, DV_PAD], tl.float32)")
    if not sink:
        out.line("top = tl.full([ROWS], -3.0e38, tl.float32)  # largest scaled score so far")
        out.line("total = tl.zeros([ROWS], tl.float32)  # sum of exp2(scaled score - top)")
        return
    out.comment("The sink is a key without a value that every query sees: in one share.")
    out.line(f"sink = tl.reshape(tl.zeros([ROWS, 1], tl.float32) + {sink}, [ROWS])")
    out.line('sink = tl.where(split == 0, sink, float("-inf"))')
    out.line("top = tl.maximum(sink, -3.0e38)  # largest scaled score so far")
    out.line("total = tl.math.exp2(sink - top)  # sum of exp2(scaled score - top)")


def _loop(out: Writer, plan: ForwardPlan, terms: KernelTerms, loop: LoopText) -> None:
    out.line(f"tiles = tl.where(tl.max(there.to(tl.int32)) > 0, {loop.end}, 0)")
    out.line("share = (tiles + splits - 1) // splits")
    with out.block("for it in range(split * share, tl.minimum((split + 1) * share, tiles)):"):
        loop.tile()
        out.line("k_pos = kb * BK + span[None, :]  # [1, BK]")
        for line in (*terms.early, *terms.masks[1].loads):
            out.line(line)
        out.line(f"kept = there & (k_pos < length) & ({terms.masks[1].text})")
        out.line("alive = tl.max(kept.to(tl.int32), 0) > 0  # [BK]")
        out.line("place = kb * BK + span")
        out.comment("Dead keys are not read: neither they nor the page they lie in need exist.")
        with out.block("if PAGED:"):
            out.line("row_of_table = Table + b * table_row + place // page")
            out.line("number = tl.load(row_of_table, mask=alive, other=0).to(tl.int64)")
            out.line("place = place % page")
        with out.block("else:"):
            out.line("number = b")
        for name, where, dims, dim, shape in (
            ("k", "[None, :]", "dims[:, None]", "D", "[D_PAD, BK]"),
            ("v", "[:, None]", "value_dims[None, :]", "DV", "[BK, DV_PAD]"),
        ):
            out.line(f"{name}_at = number * {name}_page + place * {name}_row  # [BK] int64")
            place = f"{name.upper()} + {name}_at{where} * ALIGN + {dims}"
            mask = f"mask=alive{where} & ({dims} < {dim})"
            out.call(f"{name} = tl.load(", [place, mask, "other=0.0"], f")  # {shape}")
        out.line('s = tl.dot(q, k, input_precision="ieee")  # [ROWS, BK] fp32')
        scale = " * scale_log2"
        if terms.score:
            out.comment("The score, times log2(e).")
            out.line(f"s = {terms.score}".replace("[BQ, BK]", "[ROWS, BK]"))
            scale = ""
        out.line('s = tl.where(kept, s, float("-inf"))')
        out.line(f"new_top = tl.maximum(top, tl.max(s, 1){scale})")
        out.line(f"p = tl.math.exp2(s{scale} - new_top[:, None])  # [ROWS, BK]")
        out.line("shrink = tl.math.exp2(top - new_top)")
        out.line("total = total * shrink + tl.sum(p, 1)")
        out.line("accumulated = accumulated * shrink[:, None]")
        out.line('accumulated = tl.dot(p.to(v.dtype), v, accumulated, input_precision="ieee")')
        out.line("top = new_top")
    out.line()


def _finish(out: Writer) -> None:
    out.comment("Base two; without keys -inf. Queries in front of the sequence go with part 0.")
    out.line("safe = tl.where(total > 0.0, total, 1.0)")
    out.line('part_lse = tl.where(total > 0.0, top + tl.math.log2(safe), float("-inf"))')
    out.line("item = split * tl.num_programs(2) + b")
    out.line("out_row = (item * heads + head) * queries + row % queries")
    out.line("before = at < part * -1073741824  # in front of the sequence; never in part 1")
    out.line("mine = (row < width * queries) & (there | before)")
    out.line("tl.store(PartLse + out_row, tl.reshape(part_lse, [ROWS, 1]), mask=mine)")
    out.line("result = accumulated / safe[:, None]")
    out.call("tl.store(", [
        "Part + out_row * DV + value_dims[None, :]", "result",
        "mask=mine & (value_dims[None, :] < DV)",
    ])  # fmt: skip


def _merge(plan: ForwardPlan) -> str:
    """Print the kernel that merges the shares of one row a program."""
    return f'''\
@triton.jit(do_not_specialize=["rows", "splits"])
def {MERGE}(Part, PartLse, Out, Lse, rows: tl.int64, splits: tl.int32, SPLITS: tl.constexpr):
    """Merge the shares of a row by log-sum-exp."""
    DV: tl.constexpr = {plan.value_dim}
    DV_PAD: tl.constexpr = {padded(plan.value_dim)}
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    value_dims = tl.arange(0, DV_PAD)
    lse = tl.load(PartLse + split * rows + row, mask=split < splits, other=float("-inf"))
    top = tl.maximum(tl.max(lse, 0), -3.0e38)
    weight = tl.math.exp2(lse - top)
    total = tl.sum(weight, 0)
    place = (split[:, None] * rows + row) * DV + value_dims[None, :]
    inside = (split[:, None] < splits) & (value_dims[None, :] < DV)
    part = tl.load(Part + place, mask=inside, other=0.0)  # [SPLITS, DV_PAD]
    safe = tl.where(total > 0.0, total, 1.0)
    out = tl.sum(part * weight[:, None], 0) / safe
    whole = tl.where(total > 0.0, (top + tl.math.log2(safe)) * 0.6931471805599453, float("-inf"))
    tl.store(Lse + row, whole)
    tl.store(
        Out + row * DV + value_dims, out.to(Out.dtype.element_ty), mask=value_dims < DV
    )
'''
