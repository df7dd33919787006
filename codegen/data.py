"""plan that is completed at the call -> torch source: its tiles, its masks, the CPU executor.

A plan of form "data" finds its tiles in the inputs of a call, by a table that both executors share
(``tables.py``). The gathered CPU executor (``cpu_gathered.py``) also serves patterns with scores.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from attnc.codegen.predicate import TILE_RANGES, HostDialect
from attnc.codegen.score import emit_channels, emit_score, is_additive
from attnc.codegen.simplify import from_first
from attnc.codegen.slopes import emit_sink_slopes, emit_slopes
from attnc.codegen.tile_test import TileTest, host_dialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import CpuPlan, ForwardPlan, LoopPlan, Plan, Segment

CUT = re.compile(r"^# --- cut: [\w ]+ ---\n", flags=re.MULTILINE)


def is_gathered(plan: CpuPlan) -> bool:
    """Whether the gathered executor runs, not the strips."""
    pattern = plan.block_mask.pattern
    if plan.boxes is not None:
        return False
    return plan.data is not None or pattern.score is not None or pattern.sink is not None


def needs_table(plan: Plan) -> bool:
    """Whether a module builds a table of tiles at each call."""
    kernels = (plan.forward, *(() if plan.backward is None else plan.backward.loops))
    return is_gathered(plan.cpu) or any(kernel.form == "data" for kernel in kernels)


def emit_tiles(plan: CpuPlan) -> str:
    """Print what both executors need to find the tiles of a call, as top-level source.

    That is ``_tile_table``, ``_keep`` (whether a pair is kept) and the test of whole tiles. The
    source expects ``predicate.HOST_HELPERS``.
    """
    out = Writer()
    data = plan.data
    imports, body = pasted("tables.py", *(["tile_bounds.py"] if data else []))
    out.line(imports)
    out.line()
    out.line()
    out.line(body)
    out.line()
    out.line()
    pattern = plan.block_mask.pattern
    kinds = {i.name: i.kind for i in pattern.inputs}
    dialect = host_dialect(kinds, pattern.heads)
    predicate = data.predicate if data else pattern.predicate
    with out.block("def _keep(q, k, h, b, nq, nk, data):"):
        out.line('"""Whether the pattern keeps a pair."""')
        out.line(f"return {dialect.boolean(predicate)}")
    out.line()
    out.line()
    TileTest(data.predicate if data else None, kinds, pattern.heads).emit(out)
    return out.text()


def emit_gathered(plan: CpuPlan) -> str:
    """Print ``_cpu_forward`` and ``_cpu_backward`` of a gathered plan, as ``cpu.py`` says.

    The source expects that of ``emit_tiles``.
    """
    out = Writer()
    imports, body = pasted(
        "cpu_diagonals.py", "cpu_gathered.py", "cpu_windows.py", "cpu_gathered_backward.py",
        *([] if plan.channels is None else ["cpu_channels.py"]),
    )
    out.line(imports)
    out.line()
    out.line()
    out.line(body)
    out.line()
    out.line()
    pattern = plan.block_mask.pattern
    emit_candidates(out, "_cpu_segments", plan.segments, pattern.heads)
    refine = plan.data is not None and plan.data.refine
    emit_rules(out, "_CPU_RULES", plan, refine=refine)
    settings = ["rules=_CPU_RULES", "keep=_keep", f"by_head={_by_head(plan)}"]
    settings.append(f"kv_heads={pattern.kv_heads}")
    dialect = host_dialect(_kinds(pattern), pattern.heads)
    if pattern.score is not None:
        out.line(emit_score(pattern.score, dialect))
        out.line()
        out.line(emit_slopes(pattern.score, dialect))
        out.line()
        settings += ["score=_score", "slopes=_slopes"]
        if not is_additive(pattern.score):
            settings.append("additive=False")
        if plan.by_distance:
            settings.append(f'by_distance="{plan.by_distance}"')
    if pattern.sink is not None:
        out.line(emit_sink_slopes(pattern.sink, dialect, kv_heads=pattern.kv_heads))
        out.line()
        settings += ["sink=_sink", "sink_slopes=_sink_slopes"]
    if plan.channels is not None:
        out.line(emit_channels(plan.channels, dialect))
        out.line()
    out.line(f"_CPU_PLAN = _Gathered({', '.join(settings)})")
    out.line()
    out.line()
    with out.block("def _cpu_forward(q, k, v, scale, *extra):"):
        out.line('"""Run the executor. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``."""')
        out.line(f"data = {data_text(pattern)}")
        if plan.channels is None:
            out.line("return _gathered_attention(_CPU_PLAN, q, k, v, scale, data)")
        else:
            out.line("how = (_CPU_PLAN, _CPU_TILES, _channels)")
            out.line("return _attend_by_channels(*how, q, k, v, scale, data)")
    out.line()
    out.line()
    with out.block(
        "def _cpu_backward(q, k, v, out, lse, grad_out, grad_lse, scale, *extra, needs):"
    ):
        out.line('"""Run it backward. Returns dq, dk, dv, those of inputs; None: not wanted."""')
        out.line(f"data = {data_text(pattern)}")
        tensors = "(), ()"
        if pattern.inputs or pattern.extents:
            out.line("names = [one.name for one in _INPUTS if one.shape]")
            tensors = "names, extra[0]"
        out.line("given = (q, k, v, out, lse, grad_out, grad_lse)")
        out.line(f"return _gathered_backward(_CPU_PLAN, *given, scale, data, {tensors}, needs)")
    return out.text()


def data_text(pattern: Pattern) -> str:
    """Return the text of what masks and scores read in a call."""
    return "_data(q, k, *extra)" if pattern.inputs or pattern.extents else "{}"


def emit_candidates(
    out: Writer, name: str, segments: tuple[Segment, ...], heads: int | None
) -> None:
    """Print the generator of the tiles that a row may visit."""
    ranges = {**TILE_RANGES, "h": (0, heads - 1 if heads else 0)}
    dialect = HostDialect({n: n for n in ("qb", "h", "nq", "nk", "NQ", "NK")}, ranges)
    with out.block(f"def {name}(qb, h, nq, nk, NQ, NK):"):
        out.line('"""Yield (first key tile, tiles, period, run, mask class) of each segment."""')
        for segment in segments:
            tiles = segment.tiles
            base = dialect.integer(tiles.base)
            count = from_first(tiles.count, tiles.base, "first", dialect.ranges)
            if "first" in ex.free_vars(count):
                dialect.name("first", tiles.base)
                out.line(f"first = {base}")
                base = "first"
            shown = dialect.integer(ex.maximum(count, ex.ZERO))
            out.line(f"yield {base}, {shown}, {tiles.period}, {tiles.run}, {segment.mask}")
        if not segments:
            out.line("yield from ()")
    out.line()
    out.line()


def emit_rules(
    out: Writer, name: str, plan: CpuPlan | ForwardPlan, *, refine: bool
) -> None:
    """Print the rules of one executor's table."""
    tiling: Tiling = plan.tiling
    segments = "_cpu_segments" if isinstance(plan, CpuPlan) else "_gpu_segments"
    settings = [
        f"q={tiling.q}", f"k={tiling.k}", f"heads={table_heads(plan)}", f"candidates={segments}",
        "query_terms=_query_terms", "key_terms=_key_terms", "test=_tile_test", "prepare=_prepare",
    ]  # fmt: skip
    settings += ["keep=_keep"] * refine
    if (names := kept_with(plan)) is not None:
        settings.append(f"extents={names!r}")
    out.call(f"{name} = _TileRules(", settings)
    out.line()
    out.line()


def kept_with(plan: CpuPlan | LoopPlan) -> tuple[str, ...] | None:
    """Return the extents on which a table depends beside the lengths, None: it reads data too."""
    tiles = (e for s in plan.segments for e in (s.tiles.base, s.tiles.count))
    asked = [*tiles, *([plan.data.predicate] if plan.data is not None else [])]
    names = {read.name for one in asked for read in ex.reads(one)}
    pattern = plan.block_mask.pattern
    return tuple(sorted(names)) if names <= {*pattern.extents, *pattern.sizes} else None


def table_heads(plan: CpuPlan | LoopPlan) -> int:
    """Return how many heads of the mask have rows of their own in the table."""
    used = frozenset().union(
        *(ex.free_vars(e) for s in plan.segments for e in (s.tiles.base, s.tiles.count))
    )
    if plan.data is not None:
        used |= ex.free_vars(plan.data.predicate)
    return (plan.block_mask.pattern.heads or 1) if "h" in used else 1


def pasted(*names: str) -> tuple[str, str]:
    """Return the imports and the bodies of files that are pasted into modules."""
    imports, bodies = [], []
    for name in names:
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        head, body = CUT.split(text)
        imports += [
            ast.unparse(node)
            for node in ast.parse(head).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            and not (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").partition(".")[0] in ("__future__", "attnc")
            )
        ]
        bodies.append(body.strip())
    return "\n".join(dict.fromkeys(imports)), "\n\n\n".join(bodies)


def _kinds(pattern: Pattern) -> dict[str, str]:
    return {i.name: i.kind for i in pattern.inputs}


def _by_head(plan: CpuPlan) -> bool:
    """Whether rows, masks or scores of heads differ."""
    pattern = plan.block_mask.pattern
    used = ex.free_vars(plan.data.predicate if plan.data else pattern.predicate)
    if pattern.score is not None:
        used |= sc.free_vars(pattern.score)
    return "h" in used or table_heads(plan) > 1
