"""Boxes of a CPU plan -> what ``cpu_boxes.py`` reads: segments, pieces, tests along each axis."""

from __future__ import annotations

from attnc.codegen.boxes import coordinate_ranges, emit_piece
from attnc.codegen.predicate import HostDialect
from attnc.codegen.simplify import Ranges
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.gridmask import GridMask, Part


def emit_cpu_boxes(out: Writer, boxes: GridMask) -> None:
    """Print ``_CPU_BOXES`` and the functions that it names."""
    from attnc.compiler.passes.coordinates import conjunctions  # loads isl

    pieces: list[tuple[str, list[str]]] = []
    for number, piece in enumerate(boxes.pieces):
        own = f"_cpu_box_{number}"
        emit_piece(out, boxes, number, own)
        tests: list[str] = []
        queries, keys = boxes.queries[piece.queries], boxes.keys[piece.keys]
        if not piece.full:
            found = conjunctions(piece.residual, queries, keys) or [{0: ex.FALSE}]
            for i, one in enumerate(found):
                for axis, test in sorted(one.items()):
                    _emit_test(out, boxes, f"{own}_keep_{i}_{axis}", axis, test)
                names = (
                    f"{own}_keep_{i}_{axis}" if axis in one else "None"
                    for axis in range(boxes.rank)
                )
                tests.append(f"({', '.join(names)})")
        pieces.append((f"{piece.queries}, {piece.keys}, {own}", tests))
    with out.block("_CPU_BOXES = _CpuBoxes("):
        out.line(f"heads={boxes.pattern.heads},")
        for side, parts in (("queries", boxes.queries), ("keys", boxes.keys)):
            with out.block(f"{side}=("):
                for part in parts:
                    out.line(f"{_side(part)},")
            out.line("),")
        with out.block("pieces=("):
            for text, tests in pieces:
                if not tests:
                    out.line(f"_BoxPiece({text}),")
                    continue
                with out.block(f"_BoxPiece({text}, ("):
                    for one_of in tests:
                        out.line(f"{one_of},")
                out.line(")),")
        out.line("),")
        if boxes.pattern.kv_heads:
            out.line("kv_heads=True,")
    out.line(")")


def _emit_test(
    out: Writer, boxes: GridMask, name: str, axis: int, test: ex.BoolExpr
) -> None:
    """Print whether a pair is kept as far as one axis says."""
    q, k = f"q_{axis}", f"k_{axis}"
    every = coordinate_ranges(boxes)
    ranges: Ranges = {q: every[q], k: every[k], "h": (0, (boxes.pattern.heads or 1) - 1)}
    dialect = HostDialect({q: "q", k: "k", "h": "h"}, ranges)
    with out.block(f"def {name}(h, q, k):"):
        out.line(f'"""Whether a pair may be kept, by its positions along axis {axis}."""')
        out.line(f"return {dialect.boolean(test)}")
    out.line()
    out.line()


def _side(part: Part) -> str:
    return f"_BoxSide({part.start}, {part.extents}, {part.box}, {part.order})"
