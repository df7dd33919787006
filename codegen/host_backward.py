"""backward plan -> the torch side of its kernel launches.

The emitted ``_gpu_backward`` prepares the rows (one kernel), then launches a kernel for each
gradient that is wanted. Row orders and tile tables come as in the forward: kept by lengths, or made
at the call from its inputs; those of key tiles belong to the inverse of the pattern.
"""

from __future__ import annotations

from attnc.codegen.boxes import emit_box_build, emit_box_tables
from attnc.codegen.data import data_text, emit_candidates, kept_with, table_heads
from attnc.codegen.host import (
    ALIGN_BYTES,
    SECTION_BYTES,
    emit_build,
    emit_store,
    needs_schedule,
    passed,
)
from attnc.codegen.host_learned import emit_calls, emit_shapes, emit_sums, needed
from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.kernel_terms import heads_apart
from attnc.codegen.learned import learned, measured
from attnc.codegen.triton_backward import KERNELS, Kernel, emit_kernel, parameters
from attnc.codegen.triton_forward import emit_kernel as emit_forward
from attnc.codegen.triton_learned import LEARNED_HELPERS
from attnc.codegen.triton_parts import emit_part_kernels
from attnc.codegen.triton_prepare import PREPARE
from attnc.codegen.writer import Writer
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import BackwardPlan, LoopPlan, Plan
from attnc.compiler.passes.tiles import padded

PREPARED_ROWS = 32
"""Queries that a program of the first kernel prepares."""


def kernels(backward: BackwardPlan) -> dict[Kernel, LoopPlan]:
    """Return the kernels of a plan, in the order they run."""
    found: dict[Kernel, LoopPlan] = {"dq": backward.dq, "dkdv": backward.dkdv}
    if backward.dk is not None:
        found = {"dq": backward.dq, "dv": backward.dkdv, "dk": backward.dk}
    return found if backward.learned is None else {**found, "learned": backward.learned}


def emit_backward(plan: Plan) -> str:
    """Print ``_gpu_backward`` with its kernels, as top-level source.

    It expects what the forward of the same plan defines, by ``emit_kernel``, ``emit_host`` and
    ``data.emit_tiles``, and does not repeat it.
    """
    assert plan.backward is not None
    given = emit_part_kernels(plan) if plan.parts else emit_forward(plan.forward)
    loops = kernels(plan.backward)
    found = {kernel: emit_kernel(loop, kernel) for kernel, loop in loops.items()}
    helpers = dict.fromkeys(helper for shared, _ in found.values() for helper in shared)
    own = [helper for helper in helpers if helper not in given]
    own += [LEARNED_HELPERS] if "learned" in loops else []
    texts = [text for _, text in found.values()]
    return "\n\n".join([PREPARE, *own, *texts, _host(plan, loops)])


def _host(plan: Plan, loops: dict[Kernel, LoopPlan]) -> str:
    out = Writer()
    out.line("import math")
    scheduled = [loop for loop in loops.values() if needs_schedule(loop)]
    stored = not plan.parts and needs_schedule(plan.forward)  # by the forward
    if scheduled and not stored:
        out.line("import threading")
        out.line("from collections import OrderedDict")
        out.line("from concurrent.futures import ThreadPoolExecutor")
    out.line()
    out.line("import torch")
    out.line()
    out.line()
    if scheduled and not stored:
        emit_store(out)
    if plan.backward is not None and plan.backward.dkdv.form == "data":
        _emit_inverse(out)
    if plan.forward.boxes is None and any(loop.boxes is not None for loop in loops.values()):
        emit_box_tables(out)
    for kernel, loop in loops.items():
        if kernel == "learned":
            emit_sums(out, loop)
        segments, schedule = f"_gpu_{kernel}_segments", f"_gpu_{kernel}_schedule"
        if loop.boxes is not None:
            emit_box_build(out, loop, schedule, f"_gpu_{kernel}_boxes", by_head=False)
            continue
        if loop.form == "data" or needs_schedule(loop):
            emit_candidates(out, segments, loop.segments, loop.block_mask.pattern.heads)
        if needs_schedule(loop):
            emit_build(out, loop, schedule, segments, by_head=False)
        if loop.form == "data":
            _emit_rules(out, kernel, loop)
    for kernel, loop in loops.items():
        _emit_launch(out, kernel, loop)
    _emit_backward(out, plan, loops)
    return out.text()


def _emit_inverse(out: Writer) -> None:
    with out.block("def _inverse(function):"):
        out.line('"""A function of positions and both lengths, for keys that see queries."""')
        out.line("return lambda at, h, b, nq, nk, data: function(at, h, b, nk, nq, data)")
    out.line()
    out.line()


def _emit_rules(out: Writer, kernel: Kernel, plan: LoopPlan) -> None:
    """Print the rules of a kernel's table: those of the pattern, or of its inverse."""
    if kernel in ("dq", "learned"):
        rules = ["query_terms=_query_terms", "key_terms=_key_terms", "test=_tile_test"]
        keep = "keep=_keep"
    else:
        rules = [
            "query_terms=_inverse(_key_terms)", "key_terms=_inverse(_query_terms)",
            "test=lambda k, q, h, b, nk, nq, data: _tile_test(q, k, h, b, nq, nk, data)",
        ]  # fmt: skip
        keep = "keep=lambda k, q, h, b, nk, nq, data: _keep(q, k, h, b, nq, nk, data)"
    refine = plan.data is not None and plan.data.refine
    arguments = [
        f"q={plan.tiling.q}", f"k={plan.tiling.k}", f"heads={table_heads(plan)}",
        f"candidates=_gpu_{kernel}_segments", *rules, "prepare=_prepare", *[keep] * refine,
    ]  # fmt: skip
    if (names := kept_with(plan)) is not None:
        arguments.append(f"extents={names!r}")
    with out.block(f"_GPU_{kernel.upper()}_RULES = _TileRules("):
        for argument in arguments:
            out.line(f"{argument},")
    out.line(")")
    out.line()
    out.line()


def _emit_launch(out: Writer, kernel: Kernel, plan: LoopPlan) -> None:
    """Print the launch of one kernel; rows of keys count heads of keys, unless heads are apart."""
    of_queries = kernel in ("dq", "learned")
    apart = not of_queries and heads_apart(plan)
    made = {
        "dq": ("grad_q",), "dkdv": ("grad_k", "grad_v"), "dv": ("grad_v",), "dk": ("grad_k",),
        "learned": (),
    }[kernel]  # fmt: skip
    with out.block(f"def _gpu_{kernel}(q, k, v, grad_out, total, delta, scale, data):"):
        out.line(f'"""Launch {KERNELS[kernel]}; return what it makes."""')
        out.line("batch, heads, nq, _ = q.shape")
        out.line("kv_heads, nk = k.shape[1], k.shape[2]")
        out.line("group = heads // kv_heads")
        for name in made:
            if apart:
                out.line(f"kind = {name[-1]}.dtype if group == 1 else torch.float32")
                shape = f"batch, heads, nk, {name[-1]}.shape[3]"
                out.line(f"{name} = torch.empty({shape}, dtype=kind, device=q.device)")
            else:
                like = f"{name[-1]}, memory_format=torch.contiguous_format"
                out.line(f"{name} = torch.empty_like({like})")
        own, other = ("nq", "nk") if of_queries else ("nk", "nq")
        across = "heads" if of_queries or apart else "kv_heads"
        rows = f"-(-{own} // {plan.tiling.q})" if plan.boxes is None else plan.boxes.tiles()[0]
        out.line(f"rows = {rows}  # of one head")
        out.line(f"programs = rows * batch * {across}")
        with out.block("if programs >= 2**31:"):
            out.line("raise ValueError(")
            with out.indented():
                out.line('f"{programs} programs; a GPU runs 2**31 - 1 at once: split the batch"')
            out.line(")")
        out.line(
            "strides = [s if n > 1 else 0 for t in (q, k, v, grad_out) "
            "for s, n in zip(t.stride()[:3], t.shape)]"
        )
        out.line(f"align = math.gcd({ALIGN_BYTES} // q.element_size(), *strides)")
        near = (5, 8) if of_queries else (2, 11)
        reach = plan.tiling.k if plan.boxes is None else other  # tokens, from the base of loads
        out.line(f"wide = max(strides[{near[0]}], strides[{near[1]}]) * {reach} + 256 >= 2**31")
        each = "" if of_queries or apart else " * group"
        out.line(
            f"head_bytes = {other} * {plan.head_dim + plan.value_dim} * q.element_size(){each}"
        )
        share = "group" if of_queries or apart else "1"
        out.line(
            f"section = min(max({SECTION_BYTES} // head_bytes, 1) * {share}, batch * {across})"
        )
        pointers: list[str] = []
        numbers: list[str] = []
        if needs_schedule(plan):
            out.line(f"schedule = _gpu_schedule(_gpu_{kernel}_schedule, {own}, {other}, q.device)")
            pointers.append("*schedule")
        if plan.form == "data":
            assert plan.row_order != "sorted"
            out.line(
                "items = max([len(x) for x in data.values() if isinstance(x, torch.Tensor)] + [1])"
            )
            rules = f"_GPU_{kernel.upper()}_RULES"
            out.line(f"table = _tile_table({rules}, {own}, {other}, items, data, q.device)")
            pointers += ["table.starts", "table.entries"]
            numbers += [
                "table.heads * rows if table.batch > 1 else 0", "rows if table.heads > 1 else 0",
            ]
        if kernel == "learned":
            made = "*sums", "steps", *["most"] * measured(plan)
            numbers += emit_shapes(out, plan)
        for one in input_arguments(plan):
            (pointers if one.kind.startswith("*") else numbers).append(passed(one))
        arguments = [
            "q", "k", "v", "grad_out", "total", "delta", *made, *pointers,
            "scale * 1.4426950408889634", "*(s // align for s in strides)",
            "nq", "nk", "heads", "group", "batch", "section", *numbers,
            "ALIGN=align", "WIDE=wide", f"num_warps={plan.warps}", f"num_stages={plan.stages}",
        ]  # fmt: skip
        held = len(parameters(plan, kernel)) - 11 + 4  # twelve strides in one, four settings
        held -= len(_of_schedule(plan, kernel)) - 1 if needs_schedule(plan) else 0
        if kernel == "learned":
            held -= 3 * len(learned(plan)) - 2  # sums in one, their strides in one
        assert len(arguments) == held
        if kernel == "learned":
            emit_calls(out, plan, arguments)
        else:
            out.call(f"{KERNELS[kernel]}[(programs,)](", arguments)
        if apart:
            with out.block("if group > 1:"):
                out.comment("Query heads that share keys have made sums of their own.")
                for name in made:
                    total = f"{name}.unflatten(1, (kv_heads, group)).sum(2)"
                    out.line(f"{name} = {total}.to({name[-1]}.dtype)")
        if kernel != "learned":
            out.line(f"return {', '.join(made)}")
    out.line()
    out.line()


def _of_schedule(plan: LoopPlan, kernel: Kernel) -> list[str]:
    """Return the kernel's pointers to tensors that depend on the lengths."""
    names = ("Order", "RowStart", "Entries")
    return [name for name, _ in parameters(plan, kernel) if name in names]


def emit_sinks(out: Writer) -> None:
    """Print the gradients of inputs of a sink."""
    with out.block("def _gpu_sinks(q, k, lse, delta, data):"):
        out.line('"""Gradients of inputs by name: a sink is one more key, whose value is 0."""')
        out.line("logit = _sink(q, k, data).to(lse.dtype)[..., None]")
        out.line("weight = torch.where(lse == -math.inf, 0, (logit - lse).exp())")
        out.line("change = -(weight * delta).sum(2).double()  # [B, Hq]")
        out.line("b = torch.arange(q.shape[0], device=q.device)[:, None]")
        out.line("found = {}")
        with out.block("for name, index, slope in _sink_slopes(q, k, data):"):
            out.line("shape = data[name].shape")
            out.line("if name not in found:")
            out.line("    found[name] = torch.zeros(shape, dtype=change.dtype, device=q.device)")
            out.line("place, inside = b if shape[0] > 1 else 0 * b, b >= 0")
            with out.block("for i, side in zip(index, shape[1:]):"):
                out.line("at = torch.as_tensor(i, device=q.device)")
                out.line("within = (at >= 0) & (at < side)")
                out.line("place, inside = place * side + at * within, inside & within")
            out.line("part = torch.where(inside & (change != 0), change * slope, 0)")
            out.comment("Sorted by place where it runs in parallel: the same in every run.")
            out.line("place = torch.where(inside, place, 0).expand(part.shape).flatten()")
            out.line("found[name].view(-1).index_put_((place,), part.flatten(), accumulate=True)")
        out.line("return found")
    out.line()
    out.line()


def _emit_backward(out: Writer, plan: Plan, loops: dict[Kernel, LoopPlan]) -> None:
    with_sinks = plan.pattern.sink is not None and any(i.dims for i in plan.pattern.inputs)
    if with_sinks:
        emit_sinks(out)
    arguments = "q, k, v, out, lse, grad_out, grad_lse, scale, *extra, needs"
    with out.block(f"def _gpu_backward({arguments}):"):
        out.line('"""Return the gradients of q, k, v (None where not needed) and of the inputs."""')
        out.line(f"data = {data_text(plan.pattern)}")
        out.line("grad_q = grad_k = grad_v = None")
        if any(one.dims for one in plan.pattern.inputs):
            out.line("found = {}  # gradients of inputs by name")
        with out.block("if q.numel() == 0 or k.numel() == 0:"):
            out.line("grad_q, grad_k, grad_v = (torch.zeros_like(t) for t in (q, k, v))")
            if with_sinks:
                out.comment("A sink alone decides nothing of out, and lse is the sink.")
                with out.block("if any(needs[3:]) and grad_lse is not None and q.numel():"):
                    out.line("found = _gpu_sinks(q, k, lse, -grad_lse, data)")
        with out.block("else:"), out.block("with torch.cuda.device_of(q):"):
            _emit_kernels(out, plan, loops, with_sinks)
        emit_return(out, plan.pattern)


def emit_return(out: Writer, pattern: Pattern) -> None:
    """Print the return of what was needed of ``grad_q`` ..., and of ``found``, those of inputs."""
    out.line("kept = [g if n else None for g, n in zip((grad_q, grad_k, grad_v), needs)]")
    names = [one.name for one in pattern.inputs if one.dims]
    if not names:
        out.line("return *kept, []")
        return
    out.comment("What no score or sink changes with gets 0.")
    out.line("grads = [")
    with out.indented():
        out.line("None if not n else torch.zeros_like(t) if name not in found")
        out.line("else found[name].view(t.shape).to(t.dtype)")
        out.line(f"for name, t, n in zip({names!r}, extra[0], needs[3:])")
    out.line("]")
    out.line("return *kept, grads")


def _emit_kernels(
    out: Writer, plan: Plan, loops: dict[Kernel, LoopPlan], with_sinks: bool
) -> None:
    """Print the launches of what is needed."""
    out.line("batch, heads, nq, _ = q.shape")
    out.line("total, delta = torch.empty_like(lse), torch.empty_like(lse)")
    out.line("lse_strides = (0, 0, 0) if grad_lse is None else grad_lse.stride()")
    out.line(f"programs = -(-nq // {PREPARED_ROWS}) * batch * heads")
    out.call("_prepare_rows[(programs,)](", [
        "out", "lse", "grad_out", "lse if grad_lse is None else grad_lse", "total", "delta",
        "*grad_out.stride()[:3]", "*lse_strides", "nq", "heads",
        f"DV={plan.forward.value_dim}", f"PAD={padded(plan.forward.value_dim)}",
        f"ROWS={PREPARED_ROWS}", "WITH_LSE=grad_lse is not None",
    ])  # fmt: skip
    out.line("call = q, k, v, grad_out, total, delta, scale, data")
    with out.block("if needs[0]:"):
        out.line("grad_q = _gpu_dq(*call)")
    if "dkdv" in loops:
        with out.block("if needs[1] or needs[2]:"):
            out.line("grad_k, grad_v = _gpu_dkdv(*call)")
    else:
        for kernel, name, place in (("dv", "grad_v", 2), ("dk", "grad_k", 1)):
            with out.block(f"if needs[{place}]:"):
                out.line(f"{name} = _gpu_{kernel}(*call)")
    if "learned" in loops:
        with out.block(f"if {needed(plan.pattern, loops['learned'])}:"):
            out.line("found = _gpu_learned(*call)")
    if with_sinks:
        with out.block("if any(needs[3:]):"):
            with out.block("for name, part in _gpu_sinks(q, k, lse, delta, data).items():"):
                out.line("found[name] = found[name] + part if name in found else part")
