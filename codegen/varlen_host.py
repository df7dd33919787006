"""plan of packed sequences -> the torch side of its kernel launches.

Nothing is read from the device: a grid has a program for each slot of ``triton_varlen.py``, whose
number follows from the sizes of the tensors.
"""

from __future__ import annotations

from attnc.codegen.data import data_text
from attnc.codegen.host import ALIGN_BYTES, SECTION_BYTES, passed
from attnc.codegen.host_backward import PREPARED_ROWS, emit_return, emit_sinks
from attnc.codegen.host_learned import emit_calls, emit_shapes, emit_sums, needed
from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.kernel_terms import heads_apart
from attnc.codegen.learned import learned, measured
from attnc.codegen.triton_backward import KERNELS, Kernel
from attnc.codegen.triton_forward import KERNEL
from attnc.codegen.triton_varlen import parameters
from attnc.codegen.triton_varlen_backward import loops_of
from attnc.codegen.triton_varlen_backward import parameters as parameters_back
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import LoopPlan, Plan
from attnc.compiler.passes.tiles import padded

_SIZES = ("len(q)", "len(k)", "heads", "group", "len(starts_q) - 1", "section")
"""The texts of ``triton_varlen.INTEGERS``."""


def emit_launches(plan: Plan) -> str:
    """Print ``_gpu_forward`` and ``_gpu_backward``, and what they need.

    ``_gpu_forward(q, k, v, scale, out, lse, starts_q, starts_k, *extra)`` fills out and lse;
    ``_gpu_backward(q, k, v, out, lse, grad_out, grad_lse, scale, starts_q, starts_k, *extra,
    needs)`` returns dq, dk, dv and a list of those of inputs.
    """
    out = Writer()
    for line in ("import math", "", "import torch", "", ""):
        out.line(line)
    _emit_steps(out)
    _emit_forward(out, plan)
    assert plan.backward is not None
    loops = loops_of(plan.backward)
    if "learned" in loops:
        emit_sums(out, loops["learned"], packed=True)
    for kernel, loop in loops.items():
        _emit_launch(out, kernel, loop)
    _emit_backward(out, plan, loops)
    return out.text()


def _emit_steps(out: Writer) -> None:
    with out.block("def _steps(*tensors):"):
        out.line('"""Strides of heads and tokens; along one element they mean nothing: 0."""')
        out.line("order = [(t.stride(d), t.shape[d]) for t in tensors for d in (1, 0)]")
        out.line("return [stride if size > 1 else 0 for stride, size in order]")
    out.line()
    out.line()


def _emit_grid(out: Writer, plan: LoopPlan, row: str, across: str, shared: str) -> None:
    """Print ``section`` and ``programs``. ``shared``: heads that read the same keys or queries."""
    other = "k" if row == "q" else "q"
    width = plan.head_dim + plan.value_dim
    out.line(f"slots = len({row}) // {plan.tiling.q} + len(starts_{row}) - 1")
    out.line(f"programs = slots * {across}")
    with out.block("if programs >= 2**31:"):
        out.line("raise ValueError(")
        with out.indented():
            out.line('f"{NAME}: {programs} programs; a GPU runs 2**31 - 1 at once"')
        out.line(")")
    out.line(f"head_bytes = max(len({other}), 1) * {width} * q.element_size()")
    out.line(f"section = min(max({SECTION_BYTES} // head_bytes, 1) * {shared}, {across})")


def _emit_forward(out: Writer, plan: Plan) -> None:
    loop = plan.forward
    with out.block("def _gpu_forward(q, k, v, scale, out, lse, starts_q, starts_k, *extra):"):
        out.line('"""Launch the kernel: fill out [total_q, Hq, Dv] and lse [Hq, total_q]."""')
        out.line("heads, group = q.shape[1], q.shape[1] // k.shape[1]")
        with out.block("if lse.numel() == 0:"):
            out.line("return")
        _emit_grid(out, loop, "q", "heads", "group")
        with out.block("if scale < 0:"):
            out.comment("The kernel wants the row maximum of the products: one pass over q.")
            out.line("q, scale = -q, -scale")
        out.line("strides = _steps(q, k, v)")
        out.line(f"align = math.gcd({ALIGN_BYTES} // q.element_size(), *strides)")
        out.line(f"wide = max(strides[3], strides[5]) * {loop.tiling.k} + 256 >= 2**31")
        pointers, numbers = _inputs(out, plan, loop)
        arguments = [
            "q", "k", "v", "out", "lse", "starts_q", "starts_k", *pointers,
            "max(scale * 1.4426950408889634, 1e-37)", "*(s // align for s in strides)", *_SIZES,
            *numbers, "ALIGN=align", "WIDE=wide", f"num_warps={loop.warps}",
            f"num_stages={loop.stages}",
        ]  # fmt: skip
        assert len(arguments) == len(parameters(loop)) - 5 + 4  # six strides in one, four settings
        out.line("starts_q, starts_k = starts_q.contiguous(), starts_k.contiguous()")
        with out.block("with torch.cuda.device_of(q):"):
            out.call(f"{KERNEL}[(programs,)](", arguments)
    out.line()
    out.line()


def _inputs(out: Writer, plan: Plan, loop: LoopPlan) -> tuple[list[str], list[str]]:
    """Print what a launch reads of the inputs; return the texts of pointers and of numbers."""
    given = [one for one in input_arguments(loop) if one.source != "batch"]
    if given:
        out.line(f"data = {packed_data(plan)}")
    pointers = [passed(one) for one in given if one.kind.startswith("*")]
    return pointers, [passed(one) for one in given if not one.kind.startswith("*")]


def packed_data(plan: Plan) -> str:
    """Return the text of what masks and scores read in a call."""
    return data_text(plan.pattern).replace("(q, k, ", "(*_views(q, k), ")


def _emit_launch(out: Writer, kernel: Kernel, loop: LoopPlan) -> None:
    """Print the launch of one backward kernel."""
    of_queries = kernel in ("dq", "learned")
    apart = not of_queries and heads_apart(loop)
    made = {
        "dq": ("grad_q",), "dkdv": ("grad_k", "grad_v"), "dv": ("grad_v",), "dk": ("grad_k",),
        "learned": (),
    }[kernel]  # fmt: skip
    arguments = "q, k, v, grad_out, total, delta, scale, starts_q, starts_k, data"
    with out.block(f"def _gpu_{kernel}({arguments}):"):
        out.line(f'"""Launch {KERNELS[kernel]}; return what it makes."""')
        out.line("heads, kv_heads = q.shape[1], k.shape[1]")
        out.line("group = heads // kv_heads")
        for name in made:
            of = name[-1]
            if apart:
                out.line(f"kind = {of}.dtype if group == 1 else torch.float32")
                shape = f"len({of}), heads, {of}.shape[2]"
                out.line(f"{name} = torch.empty({shape}, dtype=kind, device=q.device)")
            else:
                like = f"{of}, memory_format=torch.contiguous_format"
                out.line(f"{name} = torch.empty_like({like})")
        across = "heads" if of_queries or apart else "kv_heads"
        _emit_grid(out, loop, "q" if of_queries else "k", across,
                   "group" if of_queries or apart else "1")
        out.line("strides = _steps(q, k, v, grad_out)")
        out.line(f"align = math.gcd({ALIGN_BYTES} // q.element_size(), *strides)")
        near = (3, 5) if of_queries else (1, 7)
        far = f"max(strides[{near[0]}], strides[{near[1]}])"
        out.line(f"wide = {far} * {loop.tiling.k} + 256 >= 2**31")
        given = [one for one in input_arguments(loop) if one.source != "batch"]
        numbers: list[str] = []
        if kernel == "learned":
            out.line("nq, nk = len(q), len(k)  # of all sequences")
            made = "*sums", "steps", *["most"] * measured(loop)
            numbers = emit_shapes(out, loop, packed=True)
        texts = [
            "q", "k", "v", "grad_out", "total", "delta", *made, "starts_q", "starts_k",
            *(passed(one) for one in given if one.kind.startswith("*")),
            "scale * 1.4426950408889634", "*(s // align for s in strides)", *_SIZES, *numbers,
            *(passed(one) for one in given if not one.kind.startswith("*")),
            "ALIGN=align", "WIDE=wide", f"num_warps={loop.warps}", f"num_stages={loop.stages}",
        ]  # fmt: skip
        held = len(parameters_back(loop, kernel)) - 7 + 4  # eight strides in one
        if kernel == "learned":
            assert len(texts) == held - 3 * len(learned(loop)) + 2  # sums, and their strides
            emit_calls(out, loop, texts, packed=True)
            out.line()
            out.line()
            return
        assert len(texts) == held
        out.call(f"{KERNELS[kernel]}[(programs,)](", texts)
        if apart:
            with out.block("if group > 1:"):
                out.comment("Query heads that share keys have made sums of their own.")
                for name in made:
                    total = f"{name}.unflatten(1, (kv_heads, group)).sum(2)"
                    out.line(f"{name} = {total}.to({name[-1]}.dtype)")
        out.line(f"return {', '.join(made)}")
    out.line()
    out.line()


def _emit_backward(out: Writer, plan: Plan, loops: dict[Kernel, LoopPlan]) -> None:
    with_sinks = plan.pattern.sink is not None and any(i.dims for i in plan.pattern.inputs)
    if with_sinks:
        emit_sinks(out)
    head = "q, k, v, out, lse, grad_out, grad_lse, scale, starts_q, starts_k, *extra, needs"
    with out.block(f"def _gpu_backward({head}):"):
        out.line('"""Return the gradients of q, k, v (None where not needed) and of the inputs."""')
        out.line(f"data = {packed_data(plan)}")
        out.line("grad_q = grad_k = grad_v = None")
        if any(one.dims for one in plan.pattern.inputs):
            out.line("found = {}  # gradients of inputs by name")
        out.line("starts_q, starts_k = starts_q.contiguous(), starts_k.contiguous()")
        with out.block("with torch.cuda.device_of(q):"):
            out.line("total, delta = torch.empty_like(lse), torch.empty_like(lse)")
            out.line("lse_strides = (0, 0) if grad_lse is None else grad_lse.stride()")
            out.line(f"programs = -(-len(q) // {PREPARED_ROWS}) * q.shape[1]")
            with out.block("if programs:"):
                out.call("_prepare_rows[(programs,)](", [
                    "out", "lse", "grad_out", "lse if grad_lse is None else grad_lse", "total",
                    "delta", "grad_out.stride(1)", "grad_out.stride(0)", "*lse_strides", "len(q)",
                    "q.shape[1]", f"DV={plan.forward.value_dim}",
                    f"PAD={padded(plan.forward.value_dim)}", f"ROWS={PREPARED_ROWS}",
                    "WITH_LSE=grad_lse is not None",
                ])  # fmt: skip
            out.line("call = q, k, v, grad_out, total, delta, scale, starts_q, starts_k, data")
            with out.block("if needs[0]:"):
                out.line("grad_q = _gpu_dq(*call) if len(q) else torch.zeros_like(q)")
            if "dkdv" in loops:
                with out.block("if (needs[1] or needs[2]) and len(k):"):
                    out.line("grad_k, grad_v = _gpu_dkdv(*call)")
            else:
                for kernel, name, place in (("dv", "grad_v", 2), ("dk", "grad_k", 1)):
                    with out.block(f"if needs[{place}] and len(k):"):
                        out.line(f"{name} = _gpu_{kernel}(*call)")
            if "learned" in loops:
                test = needed(plan.pattern, loops["learned"])
                with out.block(f"if ({test}) and len(q) and len(k):"):
                    out.line("found = _gpu_learned(*call)")
        with out.block("if not len(k):"):
            out.line("grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)")
        if with_sinks:
            with out.block("if any(needs[3:]):"):
                out.line("sinks = _gpu_sinks(*_views(q, k), lse[None], delta[None], data)")
                with out.block("for name, part in sinks.items():"):
                    out.line("found[name] = found[name] + part if name in found else part")
        emit_return(out, plan.pattern)
    out.line()
    out.line()
