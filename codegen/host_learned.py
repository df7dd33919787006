"""backward plan -> the torch side of what learned inputs of the score get."""

from __future__ import annotations

from attnc.codegen.data import pasted
from attnc.codegen.learned import Learned, learned, measured
from attnc.codegen.predicate import TOKEN_RANGES, HostDialect
from attnc.codegen.triton_backward import KERNELS
from attnc.codegen.writer import Writer
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import MAX_LENGTH, LoopPlan


def emit_sums(out: Writer, plan: LoopPlan, *, packed: bool = False) -> None:
    """Print what the launch calls: the sums, and which elements diagonals belong to."""
    for text in pasted("learned_sums.py"):
        out.line(text)
        out.line()
        out.line()
    heads = plan.block_mask.pattern.heads
    ranges = {**TOKEN_RANGES, "q": (-MAX_LENGTH, MAX_LENGTH), "h": (0, heads - 1 if heads else 0)}
    dialect = HostDialect({"q": "d", "h": "h", "nq": "nq", "nk": "nk"}, ranges)
    for number, one in enumerate(learned(plan, packed=packed)):
        if one.way == "diagonal":
            with out.block(f"def _learned_{number}(d, h, nq, nk, data):"):
                out.line(f'"""The index of `{one.name}` that pairs with `q - k = d` read."""')
                places = [dialect.integer(place) for place in one.by_difference]
                out.call("return [", places, "]")
            out.line()
            out.line()


def needed(pattern: Pattern, plan: LoopPlan) -> str:
    """Return the test that something is asked for that the kernel makes."""
    names = [one.name for one in pattern.inputs if one.dims]
    read = {one.name for one in learned(plan)}
    places = [place for place, name in enumerate(names, start=3) if name in read]
    return " or ".join(f"needs[{place}]" for place in places)


def emit_shapes(out: Writer, plan: LoopPlan, *, packed: bool = False) -> list[str]:
    """Print the sums and the numbers they are made with; return the texts of ``sum_strides``."""
    every = learned(plan, packed=packed)
    pattern = plan.block_mask.pattern
    own = "kv_heads" if pattern.kv_heads and pattern.heads else "heads"
    with out.block("shapes = ["):
        for one in every:
            shape = f"data[{one.name!r}].shape"
            if one.way == "diagonal":
                shape = f"(len(data[{one.name!r}]), {own}, nq + nk - 1)"
            out.line(f"{shape},")
    out.line("]")
    out.line("copies = _copies(shapes)")
    out.line(
        "sums = [torch.zeros(copies, *s, dtype=torch.int64, device=q.device) for s in shapes]"
    )
    out.line("apart = [n for x in sums for n in (x[0].numel(), (len(x[0]) > 1) * x[0, 0].numel())]")
    out.comment("The largest slope of each: of those that are no constants it is found first.")
    out.line(f"slopes = torch.zeros({len(every)}, dtype=torch.float64, device=q.device)")
    for number, one in enumerate(every):
        if isinstance(one.slope, sc.RealConst):
            out.line(f"slopes[{number}] = {abs(one.slope.value)!r}")
    arriving = "grad_out.transpose(0, 1)" if packed else "grad_out"
    out.line(f"bound = _largest_change(v, {arriving}, total, delta)")
    if measured(plan):
        out.line(f"most = torch.zeros({len(every)}, dtype=torch.int32, device=q.device)")
    out.line("steps, units = _fixed_steps(bound * slopes)")
    return ["copies", "*apart"]


def emit_calls(
    out: Writer, plan: LoopPlan, arguments: list[str], *, packed: bool = False
) -> None:
    """Print the launches, and the return of gradients by name."""
    call = f"{KERNELS['learned']}[(programs,)]("
    if measured(plan):
        out.call(call, [*arguments, "MEASURE=True"])
        out.line("slopes = torch.maximum(slopes, most.view(torch.float32))")
        out.line("steps, units = _fixed_steps(bound * slopes)")
        arguments = [*arguments, "MEASURE=False"]
    out.call(call, arguments)
    out.line("found = {}")
    for number, one in enumerate(learned(plan, packed=packed)):
        out.line(f"part = {_table(number, one)}")
        out.line(f"part = part.double() * units[{number}]")
        before = f"found[{one.name!r}] + " if one.name in _names(plan, number) else ""
        out.line(f"found[{one.name!r}] = {before}part")
    out.line("return found")


def _table(number: int, one: Learned) -> str:
    """Return the text of the sums in the shape of the input."""
    total = f"sums[{number}].sum(0)"
    if one.way != "diagonal":
        return total
    lines = "torch.arange(1 - nk, nq, device=q.device)"
    heads = f"torch.arange({total[:-7]}.shape[2], device=q.device)[:, None]"
    index = f"_learned_{number}({lines}, {heads}, nq, nk, data)"
    return f"_from_diagonals({total}, {index}, data[{one.name!r}].shape)"


def _names(plan: LoopPlan, before: int) -> list[str]:
    return [one.name for one in learned(plan)[:before]]
