"""pattern, decode plan -> one readable Python module with its decode step.

It is a file of its own beside the module of the op: a model that trains needs no cache, and one
that generates is told at its first step.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap

from attnc import __version__
from attnc.codegen import module as whole
from attnc.codegen.data import data_text, emit_candidates, pasted
from attnc.codegen.host import ALIGN_BYTES, passed
from attnc.codegen.inputs import argument, described, emit_inputs, signature, takes_inputs
from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.score import emit_score
from attnc.codegen.tile_test import host_dialect
from attnc.codegen.triton_decode import (
    KERNEL,
    MERGE,
    emit_decode_kernels,
    parameters,
    shares_tiles,
)
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import ForwardPlan
from attnc.compiler.passes.build_decode import MAX_QUERIES

_TAKEN = frozenset({"k_cache", "v_cache", "lengths", "block_table"})
_TARGET_PROGRAMS = 2
"""Programs for each multiprocessor that a step is split into."""


def emit_decode(pattern: Pattern, plan: ForwardPlan) -> str:
    """Print the decode step of a pattern as one file that needs only torch, and triton on a GPU.

    It defines ``decode`` and registers it with torch.library as ``attnc::<name>_<hash>_decode``.
    """
    digest = hashlib.sha256(f"{__version__} {whole.codegen_fingerprint()}\n".encode())
    for token in (*whole.canonical(pattern), *whole.canonical(plan)):
        digest.update(f"{token}\n".encode())
    imports, contract = pasted("decode_contract.py")
    inputs, launch, executor = emit_inputs(pattern), _launch(pattern, plan), _executor(plan)
    sections = [
        ("Arguments of the pattern", inputs + _space(pattern)),
        ("GPU kernels", emit_decode_kernels(plan)),
        ("Bounds of both executors", whole.used_helpers(inputs + launch + executor)),
        ("GPU launch", launch),
        ("CPU executor", executor),
        ("Checks and registration", f"{imports}\n\n\n{contract}"),
    ]
    head, bodies, _ = whole.hoist_imports(sections)
    text = "\n".join(
        [
            _docstring(pattern, plan),
            "from __future__ import annotations\n",
            *head,
            "",
            whole.GUARDED_TRITON,
            _constants(pattern, plan, digest.hexdigest()),
            _function(pattern, plan),
            *(f"\n{whole.rule(title)}\n\n{b.strip()}\n" for title, b in bodies if b.strip()),
        ]
    )
    ast.parse(text)
    return text


def _docstring(pattern: Pattern, plan: ForwardPlan) -> str:
    name = whole.in_docstring(pattern.name)
    return f'''\
"""A decode step of {name}: sparse attention, written by attnc {__version__}.

Some last queries of each sequence against its cache; {plan.target}, {plan.dtype}, tile
{plan.tiling}, head dim {plan.head_dim} (q, k), {plan.value_dim} (v). attnc wrote this file; to
change it, change the pattern and compile again. It needs torch, and triton on a GPU, but not attnc.
The generated code belongs to you; the parts copied from attnc (checks, CPU executor, registration)
are Apache-2.0.
"""
'''


def _constants(pattern: Pattern, plan: ForwardPlan, digest: str) -> str:
    name = whole.module_name(pattern)
    types = "(torch.float32,)" if plan.dtype == "fp32" else "(torch.bfloat16, torch.float16)"
    return f'''
NAME = "{name}.decode"
OP = "{whole.ascii_name(name)}_{digest[:12]}_decode"
HEADS: int | None = {None if pattern.kv_heads else pattern.heads}
HEAD_DIM = {plan.head_dim}
VALUE_DIM = {plan.value_dim}
MAX_QUERIES = {MAX_QUERIES}
GPU_DTYPES = {types}
'''


def _function(pattern: Pattern, plan: ForwardPlan) -> str:
    heads = "Hq" if pattern.heads is None or pattern.kv_heads else str(pattern.heads)
    kv = str(pattern.heads) if pattern.kv_heads else "Hkv"
    d, dv = plan.head_dim, plan.value_dim
    parameters_text = "".join(f"    {text},\n" for text in signature(pattern, _TAKEN))
    lines = "".join(
        f"{textwrap.fill(line, 96, initial_indent=' ' * 8, subsequent_indent=' ' * 12)}\n"
        for line in described(pattern, _TAKEN)
    )
    own = pattern.scale
    scale = "scale" if own is None else f"{float(own)!r} if scale is None else scale"
    factor = f"1 / sqrt({d})" if own is None else f"{own}"
    extra = prepare = ""
    if takes_inputs(pattern):
        given = ", ".join(f'"{i.name}": {argument(i.name, _TAKEN)}' for i in pattern.inputs)
        extents = "extents" if pattern.extents else "None"
        prepare = f"""\
    arguments = _arguments(q, k_cache, {{{given}}}, {extents})
"""
        extra = ", *arguments"
    return f'''
def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
{parameters_text}    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend from the last T queries of each sequence to the cached keys that the pattern keeps.

    Query t of item b stands at position ``lengths[b] - T + t`` of a sequence of ``lengths[b]``
    tokens; those in front of it are out 0. No other keys are read: neither they nor pages that
    hold none other need exist. Inputs as long as the sequence come as long as the cache.

    Args:
        q: ``[B, {heads}, T, {d}]``, T from 1 to {MAX_QUERIES}.
        k_cache: ``[B, {kv}, C, {d}]``, or pages ``[pages, {kv}, page, {d}]``.
        v_cache: ``[B, {kv}, C, {dv}]``, or pages ``[pages, {kv}, page, {dv}]``.
        lengths: integers ``[B]`` on the device of q: tokens in the cache, these T among them.
        block_table: integers ``[B, most pages]``: where each page of a sequence lies.
{lines}        scale: factor on ``q @ k``; {factor} when not given.
        return_lse: also return the log-sum-exp of each query's scores.
    Returns: out ``[B, {heads}, T, {dv}]`` in the dtype of q, or ``(out, lse)``.
    Raises: ValueError for a wrong shape, dtype, device, stride or scale; on a CPU also for lengths
        and pages out of range (a GPU is not waited for: longer ones count as the whole cache).
    """
    _tensors(q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths)
{prepare}    out, lse = _call(
        q, k_cache, v_cache, lengths, block_table, {scale}{extra}
    )
    return (out, lse) if return_lse else out


__all__ = ["decode"]
'''


def _space(pattern: Pattern) -> str:
    """Print ``_space(*extra)``: the length of the space, None for sequences."""
    length = None if pattern.query_space is None else pattern.query_space.length
    out = Writer()
    with out.block("def _space(*extra):"):
        out.line('"""How many positions the space of the pattern has; None: any number."""')
        if length is None or isinstance(length, ex.Const):
            out.line(f"return {None if length is None else length.value}")
        else:
            numbers = [i.name for i in pattern.inputs if not i.dims and i.kind != "real"]
            out.line(f"data = dict(zip({[*numbers, *pattern.extents]!r}, extra[1]))")
            dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
            out.line(f"return {dialect.integer(length)}")
    return f"\n\n\n{out.text()}"


def _launch(pattern: Pattern, plan: ForwardPlan) -> str:
    """Print ``_gpu_decode``: strides, splits, both launches; nothing waits for the device."""
    out = Writer()
    out.line("import math")
    out.line()
    out.line("import torch")
    out.line()
    out.line()
    with out.block("def _splits(device, programs, tiles):"):
        out.line('"""Into how many shares the keys of a row go, so that the device is full."""')
        out.line("wanted = 8")
        with out.block('if device.type == "cuda":'):
            out.line("units = torch.cuda.get_device_properties(device).multi_processor_count")
            out.line(f"wanted = {_TARGET_PROGRAMS} * units")
        out.line("return max(1, min(-(-wanted // max(programs, 1)), tiles, 128))")
    out.line()
    out.line()
    with out.block("def _gpu_decode(q, k_cache, v_cache, lengths, table, scale, *extra):"):
        out.line('"""Launch both kernels. Shape: out ``[B, Hq, T, Dv]``, lse ``[B, Hq, T]``."""')
        out.line("out, lse = _empty(q)")
        out.line("batch, heads, queries, _ = q.shape")
        out.line("capacity = _capacity(k_cache, table)")
        if takes_inputs(pattern) or pattern.sink is not None:
            out.line("view_q, view_k = _views(q, k_cache, table, *extra)")
        if input_arguments(plan):
            out.line(f"data = {data_text(pattern)}".replace("(q, k, ", "(view_q, view_k, "))
        with out.block("if lse.numel() == 0:"):
            out.line("return out, lse")
        with out.block("if capacity == 0:"):
            alone = "view_q, view_k, lse, *extra"
            if pattern.sink is None:
                alone = "q, k_cache, lse, *extra"
            out.line(f"return out.zero_(), _lse_without_keys({alone})")
        with out.block("if scale < 0:"):
            out.line("q, scale = -q, -scale")
        out.comment("A stride along a dimension of one element means nothing: drop it.")
        out.line(
            "strides = [s if n > 1 else 0 for t in (q, k_cache, v_cache) "
            "for s, n in zip(t.stride()[:3], t.shape)]"
        )
        out.line(f"align = math.gcd({ALIGN_BYTES} // q.element_size(), *strides)")
        out.line("group = heads // k_cache.shape[1]")
        shared = shares_tiles(plan)
        out.line(f"width = {'group' if shared else '1'} * queries  # rows of one head of keys"
                 if shared else "width = queries  # rows of one head of q")
        out.line("rows = min(max(16, 1 << (width - 1).bit_length()), 64)  # of one program")
        out.line("blocks = -(-width // rows)")
        out.line("parts = 1 if queries == 1 else 2  # query tiles that the queries may lie in")
        own = "k_cache.shape[1]" if shared else "heads"
        out.line(f"lanes = {own} * blocks * parts")
        out.line(
            f"splits = _splits(q.device, batch * lanes, -(-capacity // {plan.tiling.k}))"
        )
        out.line("part = q.new_empty((splits, *out.shape), dtype=torch.float32)")
        out.line("part_lse = q.new_empty((splits, *lse.shape), dtype=torch.float32)")
        space = "0" if pattern.query_space is None else "_space(*extra)"
        pointers = [passed(one) for one in input_arguments(plan) if one.kind.startswith("*")]
        numbers = [passed(one) for one in input_arguments(plan) if not one.kind.startswith("*")]
        arguments = [
            "q", "k_cache", "v_cache", "lengths", "lengths if table is None else table", "part",
            "part_lse", *pointers, "max(scale * 1.4426950408889634, 1e-37)",
            "*(s // align for s in strides)", "heads", "group", "queries", "capacity",
            "k_cache.shape[2]", "0 if table is None else table.stride(0)", "splits", "blocks",
            "parts", space, *numbers, "PAGED=table is not None", "ROWS=rows", "ALIGN=align",
            f"num_warps={plan.warps}", f"num_stages={plan.stages}",
        ]  # fmt: skip
        assert len(arguments) == len(parameters(plan)) - 8 + 5
        out.line("lengths = lengths.contiguous()")
        with out.block("if table is not None and table.stride(1) != 1:"):
            out.line("table = table.contiguous()")
        with out.block("with torch.cuda.device_of(q):"):
            out.call(f"{KERNEL}[(splits, lanes, batch)](", arguments)
            out.call(f"{MERGE}[(lse.numel(),)](", [
                "part", "part_lse", "out", "lse", "lse.numel()", "splits",
                "SPLITS=1 << (splits - 1).bit_length()", "num_warps=4",
            ])  # fmt: skip
        out.line("return out, lse")
    return out.text()


def _executor(plan: ForwardPlan) -> str:
    """Print ``_cpu_decode``: the tiles of a row, the predicate, the pasted executor."""
    pattern = plan.block_mask.pattern
    imports, body = pasted("decode_cpu.py")
    out = Writer()
    for text in (imports, "", "", body, "", ""):
        out.line(text)
    emit_candidates(out, "_segments", plan.segments, pattern.heads)
    dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
    with out.block("def _keep(q, k, h, b, nq, nk, data):"):
        out.line('"""Whether the pattern keeps a pair."""')
        out.line(f"return {dialect.boolean(pattern.predicate)}")
    out.line()
    out.line()
    settings = [
        f"q={plan.tiling.q}", f"k={plan.tiling.k}", "segments=_segments", "keep=_keep",
        f"by_head={_by_head(plan)}", f"kv_heads={pattern.kv_heads}",
    ]  # fmt: skip
    if pattern.score is not None:
        out.line(emit_score(pattern.score, dialect))
        out.line()
        settings.append("score=_score")
    if pattern.sink is not None:
        settings.append("sink=_sink")
    out.call("_STEP = _Step(", settings)
    out.line()
    out.line()
    with out.block("def _cpu_decode(q, k_cache, v_cache, lengths, table, scale, *extra):"):
        out.line('"""Run the executor. Shape: out ``[B, Hq, T, Dv]``, lse ``[B, Hq, T]``."""')
        out.line("views = _views(q, k_cache, table, *extra)")
        data = data_text(pattern).replace("(q, k, ", "(*views, ")
        out.line(f"data = {data}")
        logit = "None if _STEP.sink is None else _STEP.sink(*views, data)"
        out.line(f"logit = {logit}")
        out.line("cache = _Cache(k_cache, v_cache, table)")
        out.line("return _decode_attention(")
        with out.indented():
            out.line("_STEP, q, cache, lengths, scale, _space(*extra), data, logit")
        out.line(")")
    return out.text()


def _by_head(plan: ForwardPlan) -> bool:
    """Whether heads visit tiles of their own."""
    bounds = (e for s in plan.segments for e in (s.tiles.base, s.tiles.count))
    return any("h" in ex.free_vars(e) for e in bounds)
