"""Plan on boxes of a grid -> the text that turns tiles into tokens, and the build of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from attnc.codegen.data import pasted
from attnc.codegen.predicate import HostDialect
from attnc.codegen.simplify import Ranges
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.gridmask import GridMask, Part
from attnc.compiler.ir.plan import LoopPlan

Side = Literal["q", "k"]


def coordinate_names(boxes: GridMask, row: Side, column: Side) -> dict[str, str]:
    """Return the kernel's names of the coordinates that masks read; ``row`` has the rows."""
    return {
        f"{side}_{axis}": f"{letter}_{axis}{shape}"
        for side, letter, shape in (("q", row, ""), ("k", column, "[None, :]"))
        for axis in range(boxes.rank)
    }


def coordinate_ranges(boxes: GridMask) -> Ranges:
    """Return bounds of all coordinates, those of lanes beyond the end of an axis included."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for side, parts in (("q", boxes.queries), ("k", boxes.keys)):
        for axis in range(boxes.rank):
            ends = [p.grid[axis] * p.box[axis] - 1 for p in parts if p.tokens]
            found[f"{side}_{axis}"] = (0, max(ends, default=0))
    return found


def crosses(parts: tuple[Part, ...]) -> bool:
    """Whether some box crosses the end of an axis: it has places without a token."""
    return any(
        extent % side
        for part in parts if part.tokens
        for extent, side in zip(part.extents, part.box, strict=True)
    )  # fmt: skip


def token_lines(side: Side, parts: tuple[Part, ...], *, row: bool) -> Iterator[str]:
    """Yield the lines that make ``q_0``, ..., ``q_pos`` of a tile ``qb`` that is a row.

    ``q_there`` says whether there is such a token, where boxes cross the end of an axis.

    A row's positions are ``[BQ, 1]``, along ``lane``; those of the tiles it visits are ``k_place``,
    ``[BK]``, along ``span``.
    """
    used = [part for part in parts if part.tokens]
    names = [f"{side}_{axis}" for axis in range(len(used[0].extents))]
    position = f"{side}_pos" if row else f"{side}_place"
    lanes = "lane" if row else "span"
    for number, part in enumerate(used):
        after = "" if len(used) == 1 else f"_{'abcdefghijklmnopqrstuvwxyz'[number % 26]}{number}"
        texts = _coordinates(side, lanes, part)
        for name, text in zip(names, texts, strict=True):
            yield f"{name}{after} = {text}"
        axes = [f"{name}{after}" for name in names]
        yield f"{position}{after} = {_position(axes, part)}"
        ends = [
            f"({axis} < {extent})"
            for axis, extent, box in zip(axes, part.extents, part.box, strict=True)
            if extent % box
        ]
        if crosses(parts):
            there = " & ".join(ends) if len(ends) > 1 else "".join(ends).strip("()")
            yield f"{side}_there{after} = {there or f'{axes[0]} >= 0'}"
    if len(used) == 1:
        return
    for name in (*names, position, *([f"{side}_there"] if crosses(parts) else [])):
        text = f"{name}_a0"
        for number, part in enumerate(used[1:], start=1):
            after = f"_{'abcdefghijklmnopqrstuvwxyz'[number % 26]}{number}"
            text = f"tl.where({side}b >= {part.first_tile}, {name}{after}, {text})"
        yield f"{name} = {text}"


def _coordinates(side: Side, lanes: str, part: Part) -> Iterator[str]:
    """Yield the text of each coordinate: that of the tile, times its side, plus that inside it."""
    tile = f"{side}b" if not part.first_tile else f"({side}b - {part.first_tile})"
    for axis, box in enumerate(part.box):
        outer = _digit(tile, part.grid, axis)
        inner = _digit(lanes, part.box, axis)
        inner = inner if inner != "0" else f"{lanes} * 0"  # one for each lane all the same
        outer = outer if box == 1 else f"{outer} * {box}"
        yield inner if outer.startswith("0") else f"{outer} + {inner}"


def _digit(number: str, sides: tuple[int, ...], axis: int) -> str:
    """Return the text of one coordinate of a number in a row-major box."""
    if sides[axis] == 1:
        return "0"
    below = math.prod(sides[axis + 1 :])
    text = number if below == 1 else f"{number} // {below}"
    first = all(side == 1 for side in sides[:axis])
    return text if first else f"{text} % {sides[axis]}"


def _position(axes: list[str], part: Part) -> str:
    """Return the text of the flat position of coordinates."""
    if part.order is None:
        return _flat(axes, part.extents, part.start)
    boxes = tuple(extent // side for extent, side in zip(part.extents, part.order, strict=True))
    outer = [f"{axis} // {side}" for axis, side in zip(axes, part.order, strict=True)]
    inner = [f"{axis} % {side}" for axis, side in zip(axes, part.order, strict=True)]
    return _flat([*outer, *inner], (*boxes, *part.order), part.start)


def _flat(digits: list[str], sides: tuple[int, ...], start: int) -> str:
    text = digits[0]
    for digit, side in zip(digits[1:], sides[1:], strict=True):
        if side == 1:
            continue
        text = f"{text if text.isidentifier() else f'({text})'} * {side} + {digit}"
    return f"{text} + {start}" if start else text


# ------------------------------------------------------------------------- the launch


def emit_box_tables(out: Writer) -> None:
    """Print what all builders of tables of boxes call."""
    for text in pasted("box_tables.py"):
        out.line(text)
        out.line()
        out.line()


def emit_box_build(
    out: Writer, plan: LoopPlan, name: str, boxes_name: str, *, by_head: bool
) -> None:
    """Print the builder of a schedule: the table of tiles, and the order of rows.

    Args: ``boxes_name`` begins the names of what it reads; ``by_head``: rows of all heads of the
        mask are sorted together, not one order for all.
    """
    boxes = plan.boxes
    assert boxes is not None
    pieces = []
    for number, piece in enumerate(boxes.pieces):
        queries, keys = boxes.queries[piece.queries], boxes.keys[piece.keys]
        emit_piece(out, boxes, number, f"{boxes_name}_{number}")
        whole = tuple(e // side for e, side in zip(keys.extents, keys.box, strict=True))
        mask = 0 if piece.full else _class(plan, piece.residual)
        ends = len(plan.masks) if piece.full and plan.masks else mask
        pieces.append(
            f"_Boxes({queries.grid}, {queries.first_tile}, {keys.grid}, {keys.first_tile},"
            f" {whole}, {boxes_name}_{number}, {mask}, {ends})"
        )
    with out.block(f"{boxes_name.upper()}: tuple[_Boxes, ...] = ("):
        for text in pieces:
            out.line(f"{text},")
    out.line(")")
    out.line()
    out.line()
    heads, rows = boxes.pattern.heads or 1, boxes.tiles()[0]
    with out.block(f"def {name}(nq, nk, device):"):
        out.line('"""Fill the table of tiles, and sort its rows where they differ."""')
        table = f"_box_table({boxes_name.upper()}, {heads}, {rows}, device)"
        out.line(f"row_start, entries = {table}")
        if plan.row_order == "sorted":
            out.comment("Heavy rows first, so that no long row starts last.")
            in_row = "row_start.diff()"
            if heads > 1 and not by_head:
                in_row += f".view({heads}, {rows}).sum(0)"
            out.line(f"order = torch.sort({in_row}, descending=True, stable=True).indices")
            out.line("return order.to(torch.int32), row_start, entries")
        else:
            out.line("return row_start, entries")
    out.line()
    out.line()


def _class(plan: LoopPlan, residual: ex.BoolExpr) -> int:
    """Return the mask class of a piece; one class for all holds the whole predicate."""
    return plan.masks.index(residual) + 1 if residual in plan.masks else 1


def emit_piece(out: Writer, boxes: GridMask, number: int, name: str) -> None:
    """Print the function that says which boxes of keys a piece has for a box of queries."""
    piece = boxes.pieces[number]
    rows = [f"qb_{axis}" for axis in range(boxes.rank)]
    grid = boxes.queries[piece.queries].grid
    ranges: dict[str, tuple[int | None, int | None]] = {
        name: (0, side - 1) for name, side in zip(rows, grid, strict=True)
    }
    ranges["h"] = (0, (boxes.pattern.heads or 1) - 1)
    dialect = HostDialect({name: name for name in (*rows, "h")}, ranges)
    with out.block(f"def {name}(h, {', '.join(rows)}):"):
        out.line('"""Return (first tile, tiles, period, run) along each axis."""')
        with out.block("return ("):
            for tiles in piece.tiles:
                out.line(
                    f"({dialect.integer(tiles.base)}, {dialect.integer(tiles.count)},"
                    f" {tiles.period}, {tiles.run}),"
                )
        out.line(")")
    out.line()
    out.line()
