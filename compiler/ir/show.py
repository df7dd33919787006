"""IR -> text: one fact a line, in a fixed order, nothing generated; ``read.py`` reads it back."""

from __future__ import annotations

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression
from attnc.compiler.ir.gridmask import GridMask, GridPiece
from attnc.compiler.ir.plan import DataTiles, ForwardPlan, Plan, Segment


def show(ir: pat.Pattern | BlockMask | GridMask | Plan) -> str:
    """Return the text of any IR, without a final newline."""
    match ir:
        case pat.Pattern():
            return "\n".join(_pattern(ir))
        case BlockMask():
            return "\n".join(_block_mask(ir))
        case GridMask():
            return "\n".join(_grid_mask(ir))
        case Plan():
            return "\n".join(_plan(ir))


def _pattern(pattern: pat.Pattern) -> list[str]:
    word = "kv_heads" if pattern.kv_heads else "heads"
    heads = f" {word} h: {pattern.heads}" if pattern.heads is not None else ""
    lines = [f"pattern {pattern.name}{heads}"]
    for side, space in (("queries", pattern.query_space), ("keys", pattern.key_space)):
        if space is not None:
            lines.append(f"  {side} {' ++ '.join(map(_grid, space.segments))}")
    lines += [f"  extent {name}" for name in pattern.extents]
    lines += [f"  input {_input(one)}" for one in pattern.inputs]
    lines += [f"  param {name} = {value}" for name, value in pattern.params]
    lines += [f"  score {sc.show(pattern.score)}"] if pattern.score is not None else []
    lines += [f"  sink {sc.show(pattern.sink)}"] if pattern.sink is not None else []
    lines += [f"  scale {pattern.scale}"] if pattern.scale is not None else []
    return [*lines, f"  keep {show_node(pattern.body, pattern.heads is not None)}"]


def _grid(grid: pat.Grid) -> str:
    name = f"{grid.name}: " if grid.name else ""
    if grid.axes:
        pairs = zip(grid.axes, grid.extents, strict=True)
        inside = ", ".join(f"{axis}: {ex.show(extent)}" for axis, extent in pairs)
    else:
        inside = f"*[{', '.join(map(ex.show, grid.extents))}]"
    tile = "" if grid.tile is None else f" tiled [{', '.join(map(str, grid.tile))}]"
    return f"{name}grid({inside}){tile}"


def _input(one: pat.Input) -> str:
    sides = ", ".join("*" if side is None else ex.show(side) for side in one.dims)
    dims = f"[{sides}]" if one.dims else ""
    formula = "" if one.formula is None else f" = {ar.show(one.formula)}"
    return f"{one.name}: {one.kind}{dims}{formula}"


def show_node(node: pat.Node, heads: bool) -> str:
    """Return a set in the syntax of the language; ``heads``: whether builders bind ``h``."""
    match node:
        case pat.Where(predicate):
            head = ", h" if heads and "h" in ex.free_vars(predicate) else ""
            return f"{{ q -> k{head} : {ex.show(predicate)} }}"
        case pat.Union(parts):
            return " | ".join(_operand(p, heads) for p in parts)
        case pat.Intersection(parts):
            return " & ".join(_operand(p, heads) for p in parts)
        case pat.Difference(left, right):
            return f"{_operand(left, heads)} - {_operand(right, heads)}"
        case pat.Complement(part):
            return f"~{_operand(part, heads)}"


def _operand(node: pat.Node, heads: bool) -> str:
    text = show_node(node, heads)
    return text if isinstance(node, pat.Where | pat.Complement) else f"({text})"


def _block_mask(mask: BlockMask) -> list[str]:
    lines = [f"blocks tile {mask.tiling}", *_pattern(mask.pattern)]
    lines += [_piece(piece) for piece in mask.pieces]
    return lines + [f"widened {note}" for note in mask.widened]


def _piece(piece: Piece) -> str:
    return _classed(show_tiles(piece.tiles), piece.residual)


def _grid_mask(mask: GridMask) -> list[str]:
    lines = [f"blocks tile {mask.tiling}", *_pattern(mask.pattern)]
    several = max(len(mask.queries), len(mask.keys)) > 1
    lines += [_grid_piece(piece, several) for piece in mask.pieces]
    return lines + [f"widened {note}" for note in mask.widened]


def _grid_piece(piece: GridPiece, several: bool) -> str:
    axes = [show_tiles(tiles, f"kb_{axis}") for axis, tiles in enumerate(piece.tiles)]
    where = f"segment {piece.queries} -> {piece.keys}: " if several else ""
    return _classed(where + " by ".join(axes), piece.residual)


def _classed(tiles: str, residual: ex.BoolExpr) -> str:
    if residual == ex.TRUE:
        return f"full    {tiles}"
    return f"partial {tiles} check {ex.show(residual)}"


def show_tiles(tiles: Progression, name: str = "kb") -> str:
    """Return ``kb in first .. last`` (both included), or ``kb = first + ... for i < count``."""
    if tiles.period == 1:
        last = ex.sub(ex.add(tiles.base, tiles.count), ex.ONE)
        if ex.add(ex.sub(last, tiles.base), ex.ONE) == tiles.count:
            return f"{name} in {ex.show(tiles.base)} .. {ex.show(last)}"
    if tiles.run > 1:
        steps = f"{tiles.period} * (i div {tiles.run}) + i mod {tiles.run}"
    else:
        steps = "i" if tiles.period == 1 else f"{tiles.period} * i"
    return f"{name} = {ex.show(tiles.base)} + {steps} for i < {ex.show(tiles.count)}"


def _plan(plan: Plan) -> list[str]:
    lines = [*_pattern(plan.pattern), *_forward(plan.forward), f"cpu tile {plan.cpu.tiling}"]
    lines += [_segment(segment) for segment in plan.cpu.segments]
    lines += _data(plan.cpu.data)
    for strip in plan.cpu.strips:
        line = f"  strip {show_tiles(strip.tiles)}"
        if strip.residual != ex.TRUE:
            line += f" check {ex.show(strip.residual)}"
        if strip.shift is not None:
            rows, tiles = strip.shift
            line += f" mask repeats every {rows} rows, {tiles} tiles on"
            line += f", from row {strip.shift_from}" if strip.shift_from else ""
        lines.append(line)
    return lines + [f"note {note}" for note in plan.notes]


def _forward(forward: ForwardPlan) -> list[str]:
    lines = [
        f"forward {forward.target} {forward.dtype} head_dim {forward.head_dim} value_dim"
        f" {forward.value_dim}",
        f"  tile {forward.tiling} warps {forward.warps} stages {forward.stages}",
        f"  loop over {forward.form}, rows {forward.row_order}",
    ]
    lines += [_segment(segment) for segment in forward.segments]
    for number, mask_expr in enumerate(forward.masks, start=1):
        lines.append(f"  mask {number} check {ex.show(mask_expr)}")
    return lines + _data(forward.data)


def _segment(segment: Segment) -> str:
    mask = f" mask {segment.mask}" if segment.mask else ""
    return f"  segment {show_tiles(segment.tiles)}{mask}"


def _data(data: DataTiles | None) -> list[str]:
    if data is None:
        return []
    full = "" if data.core == ex.FALSE else f", full where {ex.show(data.core)}"
    left = "evaluated pair by pair" if data.refine else "masked"
    return [f"  tiles tested at the call{full}, open ones {left}"]
