"""CPU plan -> the CPU part of a written module: strips as functions, and the pasted executor."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from attnc.codegen.cpu_box_text import emit_cpu_boxes
from attnc.codegen.data import emit_gathered, is_gathered
from attnc.codegen.predicate import HOST_HELPERS, TILE_RANGES, TOKEN_RANGES, HostDialect
from attnc.codegen.simplify import from_first
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import TILE_VARS, TOKEN_VARS, Progression
from attnc.compiler.ir.plan import CpuDistances, CpuPlan

_CUT = re.compile(r"^# --- cut: \w+ ---\n", flags=re.MULTILINE)
PASTED = ("cpu_schedule.py", "cpu_executor.py", "cpu_windows.py", "cpu_backward.py")
"""Files whose text below the cut line stands, verbatim, in every written module."""

DISTANCES = "cpu_distances.py"
"""The same for a plan that takes distances one by one."""

PARTS = "cpu_parts.py"
"""The same for a plan that has parts in other token orders; ``DISTANCES`` goes before it."""

BOXES = "cpu_boxes.py"
"""The same for a plan on boxes of a grid."""

_NOT_PASTED = ("__future__", *(f"attnc.codegen.{name[:-3]}" for name in (*PASTED, DISTANCES)))


def emit_cpu(plan: CpuPlan) -> str:
    """Print ``_cpu_forward`` and ``_cpu_backward`` and all they need, as top-level source.

    ``_cpu_forward(q, k, v, scale, *extra) -> (out, lse)``;
    ``_cpu_backward(q, k, v, out, lse, grad_out, grad_lse, scale, *extra, needs) -> (dq, dk, dv,
    [gradient of each input tensor])``: ``needs`` has a bool for each of these, None stands for what
    is not wanted, grad_lse may be None.
    The text opens with its imports and holds ``predicate.HOST_HELPERS``, once for a whole module.
    A plan that is completed at the call is printed by ``data.py``.
    """
    if is_gathered(plan):
        return _emit_channel_tiles(plan) + emit_gathered(plan)
    imports, executor = pasted(PASTED + _more(plan))
    out = Writer()
    out.line(imports)
    out.line()
    out.line()
    out.line(HOST_HELPERS.strip())
    out.line()
    out.line()
    out.line(executor)
    out.line()
    out.line()
    if plan.boxes is not None:
        emit_cpu_boxes(out, plan.boxes)
        what, forward = "_CPU_BOXES", "_cpu_in_boxes"
    elif plan.parts:
        what, forward = _emit_parts(out, plan)
    else:
        _emit_tiles(out, plan, "", "_CPU_TILES")
        what, forward = "_CPU_TILES", "_cpu_attention"
    out.line()
    out.line()
    with out.block("def _cpu_forward(q, k, v, scale, *extra):"):
        out.line('"""Run the executor. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``."""')
        out.line(f"return {forward}({what}, q, k, v, scale)")
    out.line()
    out.line()
    with out.block(
        "def _cpu_backward(q, k, v, out, lse, grad_out, grad_lse, scale, *extra, needs):"
    ):
        out.line('"""Run it backward. Returns dq, dk, dv, those of inputs; None: not wanted."""')
        out.line("given = (q, k, v, out, lse, grad_out, grad_lse)")
        out.line(f"grads = {forward}_backward({what}, *given, scale, needs)")
        out.line("return *grads, [None for tensors in extra[:1] for _ in tensors]")
    return out.text()


def _emit_channel_tiles(plan: CpuPlan) -> str:
    """Print the strips of a gathered plan whose score may be channels of q and k, if it has any."""
    if plan.channels is None:
        return ""
    out = Writer()
    imports, executor = pasted(("cpu_schedule.py", "cpu_executor.py"))
    out.line(imports)
    out.line()
    out.line(executor)
    out.line()
    out.line()
    _emit_tiles(out, replace(plan, strips=plan.channels.strips), "", "_CPU_TILES")
    out.line()
    out.line()
    return out.text()


def _more(plan: CpuPlan) -> tuple[str, ...]:
    """Return which files a plan needs beside those of every module."""
    if plan.boxes is not None:
        return (BOXES,)
    if not plan.parts:
        return ()
    alone = all(isinstance(part, CpuDistances) for part in plan.parts)
    return (DISTANCES,) if alone else (DISTANCES, PARTS)


def _emit_parts(out: Writer, plan: CpuPlan) -> tuple[str, str]:
    """Print the parts of a plan. Returns the name of their table, and of what runs it."""
    own = []
    for number, part in enumerate(plan.parts, start=1):
        if isinstance(part, CpuDistances):
            with out.block("_CPU_DISTANCES: tuple[int, ...] = ("):
                for first in range(0, len(part.distances), 8):
                    some = part.distances[first : first + 8]
                    out.line(" ".join(f"{distance}," for distance in some))
            out.line(")")
            own.append("_CPU_DISTANCES")
            continue
        one = CpuPlan(block_mask=part.block_mask, strips=part.strips)
        _emit_tiles(out, one, f"_part_{number}", f"_CPU_TILES_{number}")
        own.append(f"({part.modulus}, _CPU_TILES_{number})")
    if own == ["_CPU_DISTANCES"]:
        return own[0], "_cpu_by_distance"
    kinds = [isinstance(part, CpuDistances) for part in plan.parts]
    tiles = [entry for entry, distances in zip(own, kinds, strict=True) if not distances]
    with out.block("_CPU_PARTS: _Parts = ("):
        for entry in tiles:
            out.line(f"{entry},")
    out.line(")")
    return f"_CPU_PARTS, {'_CPU_DISTANCES' if any(kinds) else '()'}", "_cpu_in_parts"


def _emit_tiles(out: Writer, plan: CpuPlan, part: str, name: str) -> None:
    """Print the strips of a plan, or of a part of one, as functions and a ``_CpuTiles``."""
    heads = plan.block_mask.pattern.heads
    strips, full = [], []
    for number, strip in enumerate(plan.strips, start=1):
        own = f"{part}_strip_{number}"
        emit_rows(out, f"{own}_rows", strip.tiles, heads, f"Key tiles of strip {number}")
        settings = [f"rows={own}_rows"]
        if strip.residual != ex.TRUE:
            _emit_keep(out, f"{own}_keep", strip.residual, heads, number)
            settings.append(f"keep={own}_keep")
            if "h" in ex.free_vars(strip.residual):
                settings.append("by_head=True")
        settings += _gaps(strip.tiles)
        if strip.shift is not None:
            settings.append(f"shift={strip.shift}")
            if strip.shift_from:
                settings.append(f"shift_from={strip.shift_from}")
        strips.append(f"_Strip({', '.join(settings)})")
    for number, tiles in enumerate(full_pieces(plan), start=1):
        own = f"{part}_full_{number}_rows"
        emit_rows(out, own, tiles, heads, f"Key tiles that keep every pair, piece {number}")
        full.append(f"_Strip({', '.join([f'rows={own}', *_gaps(tiles)])})")
    own = part.upper() if part else "_CPU"
    _emit_tuple(out, f"{own}_STRIPS", strips)
    _emit_tuple(out, f"{own}_FULL", full)
    tiling = plan.tiling
    kv_heads = ", kv_heads=True" if plan.block_mask.pattern.kv_heads else ""
    out.line(
        f"{name} = _CpuTiles(q={tiling.q}, k={tiling.k}, heads={heads}, "
        f"strips={own}_STRIPS, full={own}_FULL{kv_heads})"
    )


def pasted(files: tuple[str, ...] = PASTED) -> tuple[str, str]:
    """Return the imports and the bodies of the pasted files."""
    imports, bodies = [], []
    for name in files:
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        head, body = _CUT.split(text)
        imports += [
            ast.unparse(node)
            for node in ast.parse(head).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            and not (isinstance(node, ast.ImportFrom) and node.module in _NOT_PASTED)
        ]
        bodies.append(body.strip())
    return "\n".join(dict.fromkeys(imports)), "\n\n\n".join(bodies)


def full_pieces(plan: CpuPlan) -> Iterator[Progression]:
    """Yield the tiles that keep every pair and lie in a strip that has something to check.

    The executor runs long stretches of them without a mask.
    """
    if any(strip.residual != ex.TRUE for strip in plan.strips):
        yield from (piece.tiles for piece in plan.block_mask.pieces if piece.full)


def emit_rows(
    out: Writer, name: str, tiles: Progression, heads: int | None, what: str
) -> None:
    """Print a function of a query tile that returns the first key tile of a progression, and how
    many there are."""
    ranges = {**TILE_RANGES, "h": (0, heads - 1 if heads else 0)}
    dialect = HostDialect({n: n for n in TILE_VARS}, ranges)
    with out.block(f"def {name}(qb, h, nq, nk, NQ, NK):"):
        out.line(f'"""{what}: the first, how many."""')
        out.line(f"{dialect.name('base', tiles.base)} = {dialect.integer(tiles.base)}")
        count = from_first(tiles.count, tiles.base, "base", dialect.ranges)
        out.line(f"count = {dialect.integer(count)}")
        out.line("return base, count")
    out.line()
    out.line()


def _emit_keep(
    out: Writer, name: str, residual: ex.BoolExpr, heads: int | None, number: int
) -> None:
    ranges = {**TOKEN_RANGES, "h": (0, heads - 1 if heads else 0)}
    dialect = HostDialect({n: n for n in TOKEN_VARS}, ranges)
    with out.block(f"def {name}(q, k, h, nq, nk):"):
        out.line(f'"""Whether the pattern keeps a pair inside strip {number}."""')
        out.line(f"return {dialect.boolean(residual)}")
    out.line()
    out.line()


def _gaps(tiles: Progression) -> list[str]:
    gaps = {"period": tiles.period, "run": tiles.run}
    return [f"{name}={value}" for name, value in gaps.items() if value != 1]


def _emit_tuple(out: Writer, name: str, items: list[str]) -> None:
    if not items:
        out.line(f"{name}: tuple[_Strip, ...] = ()")
        return
    with out.block(f"{name} = ("):
        for item in items:
            out.line(f"{item},")
    out.line(")")
