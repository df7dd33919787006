"""parts of a plan -> the torch side of their launches, one after the other.

Rows of out stand in float32 between the parts; the last one writes the dtype of the call.
"""

from __future__ import annotations

from attnc.codegen.host import emit_limits, emit_section, emit_strides
from attnc.codegen.triton_forward import KERNEL
from attnc.codegen.triton_parts import part_loop
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import DistancePart, Plan, TilePart


def emit_part_launches(plan: Plan) -> str:
    """Print ``_gpu_forward(q, k, v, scale, out, lse, *extra)`` for a plan of parts.

    The top-level source expects ``torch`` imported and the kernels of the same plan.
    """
    out = Writer()
    out.line("import bisect")
    out.line("import math")
    out.line()
    out.line("import torch")
    out.line()
    out.line()
    for number, part in enumerate(plan.parts, start=1):
        if isinstance(part, DistancePart):
            out.call(f"_DISTANCES_{number} = [", [str(d) for d in part.distances], "]")
            out.line()
            out.line()
    sides = [part_loop(part, plan.forward).tiling for part in plan.parts]
    moduli = [part.modulus if isinstance(part, TilePart) else 1 for part in plan.parts]
    with out.block("def _gpu_forward(q, k, v, scale, out, lse, *extra):"):
        out.line(
            '"""Launch the parts in turn: fill out [B, Hq, Q, Dv] and lse [B, Hq, Q], no wait."""'
        )
        emit_limits(out)
        least = min(side.q for side in sides)
        most = max(moduli)
        out.line(f"programs = (nq // {least} + {most}) * batch * heads  # at most, of a part")
        emit_strides(out)
        reach = max(side.k * modulus for side, modulus in zip(sides, moduli, strict=True))
        out.line(f"wide = max(strides[5], strides[8]) * {reach} + 256 >= 2**31")
        emit_section(out, plan.forward)
        out.line("scale_log2 = max(scale * 1.4426950408889634, 1e-37)")
        if len(plan.parts) > 1:
            out.comment("Rows of out between the parts.")
            out.line("rows = torch.empty_like(out, dtype=torch.float32)")
        with out.block("with torch.cuda.device_of(q):"):
            for number, part in enumerate(plan.parts, start=1):
                _emit_part(out, plan, part, number)
    return out.text()


def _emit_part(out: Writer, plan: Plan, part: TilePart | DistancePart, number: int) -> None:
    loop = part_loop(part, plan.forward)
    batch, queries, numbers = "batch", "nq", []
    if isinstance(part, TilePart) and part.modulus > 1:
        batch, queries = f"batch * {part.modulus}", f"-(-nq // {part.modulus})"
        out.comment(f"In classes of tokens {part.modulus} apart.")
    elif isinstance(part, DistancePart):
        out.comment("The distances that these lengths have: q - k lies between -nk and nq.")
        for end, length in (("first", "1 - nk"), ("stop", "nq")):
            out.line(f"reach_{end} = bisect.bisect_left(_DISTANCES_{number}, {length})")
        numbers = ["reach_first", "reach_stop"]
    last = number == len(plan.parts)
    arguments = [
        "q", "k", "v", "out" if last else "rows", "lse", *([] if number == 1 else ["rows"]),
        "scale_log2",
        "*(s // align for s in strides)",
        *("nq", "nk", "heads", "group", batch, "section"),
        *numbers,
        "ALIGN=align",
        "WIDE=wide",
        f"num_warps={loop.warps}",
        f"num_stages={loop.stages}",
    ]
    programs = f"-(-({queries}) // {loop.tiling.q}) * {batch} * heads"
    out.call(f"{KERNEL}_{number}[({programs},)](", arguments)
