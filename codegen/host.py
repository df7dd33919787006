"""forward plan -> the torch side of a kernel launch.

The emitted ``_gpu_forward`` computes the grid and the strides and launches. What a kernel reads
besides Q, K, V and inputs (row order, tile table) is built by torch on the device: once per lengths
and kept, or at each call where the tiles depend on its inputs. Nothing waits for the device, but
for the size of such a table where it has too many candidates (``tables.py``).
"""

from __future__ import annotations

from attnc.codegen.boxes import emit_box_build, emit_box_tables
from attnc.codegen.data import data_text, emit_candidates, emit_rules
from attnc.codegen.kernel_inputs import InputArgument, input_arguments
from attnc.codegen.triton_forward import KERNEL, STRIDES, heads_in_order, parameters
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import MAX_LENGTH, ForwardPlan, LoopPlan

ALIGN_BYTES = 16
"""Widest load of a GPU thread."""

SECTION_BYTES = 24 * 2**20
"""Keys and values that heads running at the same time may hold in the L2 cache (40 to 60 MB)."""

KEPT_SCHEDULES = 32


def emit_host(plan: ForwardPlan) -> str:
    """Print ``_gpu_forward(q, k, v, scale, out, lse, *extra)`` and what it needs.

    The top-level source expects ``torch`` imported, the kernel of the same plan and, for a plan
    that sorts rows or builds a table, ``predicate.HOST_HELPERS``; of form "data" that of
    ``data.emit_tiles``. ``out`` and ``lse`` are contiguous.
    """
    out = Writer()
    out.line("import math")
    if needs_schedule(plan):
        out.line("import threading")
        out.line("from collections import OrderedDict")
        out.line("from concurrent.futures import ThreadPoolExecutor")
    out.line()
    out.line("import torch")
    out.line()
    out.line()
    heads = plan.block_mask.pattern.heads
    if (needs_schedule(plan) and plan.boxes is None) or plan.form == "data":
        emit_candidates(out, "_gpu_segments", plan.segments, heads)
    if needs_schedule(plan):
        emit_store(out)
        together = heads_in_order(plan)
        if plan.boxes is None:
            emit_build(out, plan, "_gpu_build_schedule", "_gpu_segments", by_head=together)
        else:
            emit_box_tables(out)
            emit_box_build(out, plan, "_gpu_build_schedule", "_gpu_boxes", by_head=together)
    if plan.form == "data":
        refine = plan.data is not None and plan.data.refine
        emit_rules(out, "_GPU_RULES", plan, refine=refine)
    _emit_launch(out, plan)
    return out.text()


def needs_schedule(plan: LoopPlan) -> bool:
    """Whether the kernel reads tensors that depend on the lengths (row order, tile table)."""
    return plan.form == "table" or (plan.form == "ranges" and plan.row_order == "sorted")


def emit_store(out: Writer) -> None:
    """Print ``_gpu_schedule``, which keeps what kernels read for some lengths."""
    out.line("_GPU_SCHEDULES = OrderedDict()  # (build, nq, nk, device) -> tensors, oldest first")
    out.line("_GPU_LOCK = threading.Lock()")
    out.line("_GPU_PINNED = []  # tensors that a captured CUDA graph reads: never freed")
    out.line()
    out.line()
    with out.block("def _gpu_schedule(build, nq, nk, device):"):
        out.line('"""Return the tensors a kernel reads for these lengths; build them if new."""')
        out.line("key = (build, nq, nk, device)")
        out.line('on_gpu = device.type == "cuda"')
        out.line("capturing = on_gpu and torch.cuda.is_current_stream_capturing()")
        with out.block("with _GPU_LOCK:"):
            with out.block("if key not in _GPU_SCHEDULES:"):
                with out.block("if capturing:"):
                    out.line("raise RuntimeError(")
                    with out.indented():
                        out.line('"attnc: call the op once with these lengths before capturing "')
                        out.line('"it in a CUDA graph: the first call builds its schedule"')
                    out.line(")")
                out.comment(
                    "In a thread of its own, whose memory comes from no CUDA graph's pool and whose"
                    " modes (default device, inference) are none of the caller's."
                )
                with out.block("with ThreadPoolExecutor(1) as thread:"):
                    out.line("built = thread.submit(build, nq, nk, device).result()")
                out.line("_GPU_SCHEDULES[key] = built")
                with out.block("if on_gpu:"):
                    out.comment("Other streams may read it next, and may still read an old one.")
                    out.line("torch.cuda.synchronize(device)")
                with out.block(f"while len(_GPU_SCHEDULES) > {KEPT_SCHEDULES}:"):
                    out.line("_GPU_SCHEDULES.popitem(last=False)")
            out.line("_GPU_SCHEDULES.move_to_end(key)")
            with out.block("if capturing:"):
                out.line("_GPU_PINNED.append(_GPU_SCHEDULES[key])")
            out.line("return _GPU_SCHEDULES[key]")
    out.line()
    out.line()


def emit_build(out: Writer, plan: LoopPlan, name: str, segments: str, *, by_head: bool) -> None:
    """Print the builder of a schedule, over the candidates that the function ``segments`` yields.

    Args: ``by_head``: rows of all heads of the mask are sorted together, not one order for all.
    """
    heads = plan.block_mask.pattern.heads or 1
    with out.block(f"def {name}(nq, nk, device):"):
        out.line('"""Count the tiles of each row' + (
            ', fill the table' if plan.form == "table" else ""
        ) + (', sort the rows' if plan.row_order == "sorted" else "") + '."""')
        out.line(f"NQ, NK = -(-nq // {plan.tiling.q}), -(-nk // {plan.tiling.k})")
        out.line("qb = torch.arange(NQ, device=device)[None, :]")
        out.line(f"h = torch.arange({heads}, device=device)[:, None]")
        out.line("zero = torch.zeros_like(h + qb)  # [heads, NQ]")
        if plan.form == "table":
            for line in _BUILD_TABLE:
                out.line(line.replace("_gpu_segments", segments))
            in_row = "counts.sum(1)"
        else:
            out.line("tiles = zero.clone()")
            with out.block(f"for _, count, _, _, _ in {segments}(qb, h, nq, nk, NQ, NK):"):
                out.line("tiles += count")
            in_row = "tiles.flatten()"
        if heads > 1 and not by_head:
            in_row += f".view({heads}, NQ).sum(0)"
        results = []
        if plan.row_order == "sorted":
            out.comment("Heavy rows first, so that no long row starts last.")
            out.line(f"order = torch.sort({in_row}, descending=True, stable=True).indices")
            results.append("order.to(torch.int32)")
        if plan.form == "table":
            results += ["row_start", "entries"]
        out.line(f"return {', '.join(results)}{',' if len(results) == 1 else ''}")
    out.line()
    out.line()


_BUILD_TABLE = (
    "segments = list(_gpu_segments(qb, h, nq, nk, NQ, NK))",
    "bases = torch.stack([zero + s[0] for s in segments], -1).flatten()  # [heads * NQ * segments]",
    "counts = torch.stack([zero + s[1] for s in segments], -1).flatten(0, 1)",
    "period, run, mask = torch.tensor([s[2:] for s in segments], device=device).T",
    "starts = counts.flatten().cumsum(0)",
    "# One wait for the device: the exact size of the table.",
    "total = int(starts[-1])",
    "row_start = torch.cat([starts.new_zeros(1), starts[len(segments) - 1 :: len(segments)]])",
    "owner = torch.repeat_interleave(",
    "    torch.arange(starts.numel(), device=device), counts.flatten(), output_size=total",
    ")",
    "i = torch.arange(total, device=device) - (starts - counts.flatten())[owner]",
    "kind = owner % len(segments)",
    "period, run, mask = period[kind], run[kind], mask[kind]",
    "entries = ((bases[owner] + period * (i // run) + i % run) * 8 + mask).to(torch.int32)",
)


def emit_limits(out: Writer) -> None:
    """Print the sizes of a call, what is done where nothing is kept, and what is too long."""
    out.line("batch, heads, nq, _ = q.shape")
    out.line("group, nk = heads // k.shape[1], k.shape[2]")
    with out.block("if lse.numel() == 0:"):
        out.line("return")
    with out.block("if nk == 0:"):
        out.line("out.zero_()")
        out.line("lse.fill_(-math.inf)")
        out.line("return")
    with out.block(f"if max(nq, nk) > {MAX_LENGTH}:"):
        out.line("raise ValueError(")
        with out.indented():
            out.line(f'f"{{nq}} queries and {{nk}} keys; the kernel takes up to {MAX_LENGTH}"')
        out.line(")")


def emit_strides(out: Writer) -> None:
    """Print the check of ``programs``, the sign of ``scale``, and ``strides`` and ``align``."""
    with out.block("if programs >= 2**31:"):
        out.line("raise ValueError(")
        with out.indented():
            out.line('f"{batch} x {heads} heads x {nq} queries need {programs} programs; "')
            out.line('"a GPU runs 2**31 - 1 at once: split the batch"')
        out.line(")")
    with out.block("if scale < 0:"):
        out.comment("The kernel wants the row maximum of the products: one pass over q.")
        out.line("q, scale = -q, -scale")
    out.comment("A stride along a dimension of one element means nothing: drop it.")
    out.line(
        "strides = [s if n > 1 else 0 for t in (q, k, v) "
        "for s, n in zip(t.stride()[:3], t.shape)]"
    )
    out.comment(f"All strides are multiples of `align` elements, {ALIGN_BYTES} bytes at best.")
    out.line(f"align = math.gcd({ALIGN_BYTES} // q.element_size(), *strides)")


def emit_section(out: Writer, plan: LoopPlan, batch: str = "batch") -> None:
    """Print ``section``: so many heads share the L2 cache."""
    out.line(f"head_bytes = nk * {plan.head_dim + plan.value_dim} * q.element_size()")
    out.line(f"section = min(max({SECTION_BYTES} // head_bytes, 1) * group, {batch} * heads)")


def _emit_launch(out: Writer, plan: ForwardPlan) -> None:
    waits = "" if plan.form == "data" else ", no wait"
    with out.block("def _gpu_forward(q, k, v, scale, out, lse, *extra):"):
        out.line(f'"""Launch the kernel: fill out [B, Hq, Q, Dv] and lse [B, Hq, Q]{waits}."""')
        emit_limits(out)
        rows = f"-(-nq // {plan.tiling.q})" if plan.boxes is None else str(plan.boxes.tiles()[0])
        out.line(f"programs = {rows} * batch * heads")
        emit_strides(out)
        reach = str(plan.tiling.k) if plan.boxes is None else "nk"  # tokens, from the base of loads
        out.line(f"wide = max(strides[5], strides[8]) * {reach} + 256 >= 2**31")
        if heads_in_order(plan):
            out.line("section = 1  # rows of all heads are sorted together")
        else:
            emit_section(out, plan)
        pointers, numbers = _emit_call_data(out, plan)
        arguments = [
            "q", "k", "v", "out", "lse", *pointers,
            "max(scale * 1.4426950408889634, 1e-37)",
            "*(s // align for s in strides)",
            *("nq", "nk", "heads", "group", "batch", "section"),
            *numbers,
            "ALIGN=align",
            "WIDE=wide",
            f"num_warps={plan.warps}",
            f"num_stages={plan.stages}",
        ]
        assert len(STRIDES) == 9  # three of each of q, k, v, as the launch passes them
        with out.block("with torch.cuda.device_of(q):"):
            out.call(f"{KERNEL}[(programs,)](", arguments)


def _emit_call_data(out: Writer, plan: ForwardPlan) -> tuple[list[str], list[str]]:
    """Print how the launch gets its schedule or table and its inputs.

    Returns: the texts of these pointers, and those of the numbers behind ``section``.
    """
    given = input_arguments(plan)
    pointers: list[str] = []
    numbers: list[str] = []
    if needs_schedule(plan):
        out.line("schedule = _gpu_schedule(_gpu_build_schedule, nq, nk, q.device)")
        pointers.append("*schedule")
    if given or plan.form == "data":
        out.line(f"data = {data_text(plan.block_mask.pattern)}")
    if plan.form == "data":
        out.line("own = max([len(x) for x in data.values() if isinstance(x, torch.Tensor)] + [1])")
        out.line("table = _tile_table(_GPU_RULES, nq, nk, own, data, q.device)")
        out.line(f"rows = -(-nq // {plan.tiling.q})  # of one head")
        if plan.row_order == "sorted":
            out.comment("The row with the most tiles of all heads first.")
            out.line("in_row = table.starts.diff().view(-1, rows).sum(0)")
            out.line("order = in_row.sort(descending=True, stable=True).indices")
            pointers.append("order.to(torch.int32)")
        pointers += ["table.starts", "table.entries"]
        numbers += [
            "table.heads * rows if table.batch > 1 else 0", "rows if table.heads > 1 else 0",
        ]
    for one in given:
        (pointers if one.kind.startswith("*") else numbers).append(passed(one))
    names = [name for name, _ in parameters(plan)]
    ends = names.index("scale_log2"), names.index("section") + 1
    assert len(pointers) + (len(schedule_names(plan)) - 1 if needs_schedule(plan) else 0) + 5 == (
        ends[0]
    )
    assert len(numbers) == len(names) - ends[1]
    return pointers, numbers


def schedule_names(plan: ForwardPlan) -> list[str]:
    """Return the kernel's pointers to tensors that depend on the lengths."""
    return [n for n, _ in parameters(plan) if n in ("Order", "RowStart", "Entries")]


def passed(one: InputArgument) -> str:
    """Return the text of an argument for an input."""
    tensor = f'data["{one.name}"]'
    match one.source:
        case "tensor" if one.kind == "*u8":
            return f"{tensor}.view(torch.uint8)"
        case "tensor" if one.kind == "*fp32":
            return f"{tensor}.to(torch.float32)"
        case "batch":
            return f"{tensor}[0].numel() if len({tensor}) > 1 else 0"
        case "side":
            return f"{tensor}.shape[{one.place + 1}]"
        case _:
            return tensor
