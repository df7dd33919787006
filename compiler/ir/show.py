"""IR -> text: one fact a line, in a fixed order, nothing generated; ``read.py`` reads it back."""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression, Tiling
from attnc.compiler.ir.gridmask import BoxTiling, GridMask, GridPiece
from attnc.compiler.ir.plan import (
    BackwardPlan,
    CpuDistances,
    DataTiles,
    DistancePart,
    ForwardPlan,
    LoopPlan,
    Plan,
    Segment,
    Strip,
    TilePart,
)
from attnc.compiler.ir.transpose import transposed


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
    lines += [f"  align {pattern.align}"] if pattern.align != "top-left" else []
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
    return _classed(_boxes(piece, several), piece.residual)


def _boxes(piece: GridPiece, several: bool, name: str = "kb") -> str:
    axes = [show_tiles(tiles, f"{name}_{axis}") for axis, tiles in enumerate(piece.tiles)]
    where = f"segment {piece.queries} -> {piece.keys}: " if several else ""
    return where + " by ".join(axes)


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
    lines = [*_pattern(plan.pattern), *_forward(plan.forward, plan.parts)]
    lines += _backward(plan.backward, plan.forward) if plan.backward is not None else []
    if plan.cpu.boxes is not None:
        lines.append(f"cpu boxes {plan.cpu.boxes.tiling}")
        lines += [f"  {_grid_piece(piece, True)}" for piece in plan.cpu.boxes.pieces]
        return lines + [f"note {note}" for note in plan.notes]
    lines.append(f"cpu tile {plan.cpu.tiling}")
    if plan.cpu.by_distance:
        mask = " and masks" if plan.cpu.by_distance == "all" else ""
        lines.append(f"  score terms{mask} by distance")
    if plan.cpu.channels is not None:
        sides = zip(plan.cpu.channels.of_query, plan.cpu.channels.of_key, strict=True)
        lines += [f"  channel {sc.show(a)} of the query, {sc.show(b)} of the key" for a, b in sides]
        lines.append(f"  once a row {sc.show(plan.cpu.channels.of_row)}")
    lines += [_segment(segment) for segment in plan.cpu.segments]
    lines += _data(plan.cpu.data)
    lines += map(_strip, plan.cpu.strips)
    for part in plan.cpu.parts:
        if isinstance(part, CpuDistances):
            lines.append(f"  distances {' '.join(map(str, part.distances))}")
        else:
            lines += [f"  in classes of {part.modulus}", *map(_strip, part.strips)]
    return lines + [f"note {note}" for note in plan.notes]


def _strip(strip: Strip) -> str:
    line = f"  strip {show_tiles(strip.tiles)}"
    if strip.residual != ex.TRUE:
        line += f" check {ex.show(strip.residual)}"
    if strip.shift is not None:
        rows, tiles = strip.shift
        line += f" mask repeats every {rows} rows, {tiles} tiles on"
        line += f", from row {strip.shift_from}" if strip.shift_from else ""
    return line


def _forward(forward: ForwardPlan, parts: tuple[TilePart | DistancePart, ...]) -> list[str]:
    lines = [
        f"forward {forward.target} {forward.dtype} head_dim {forward.head_dim} value_dim"
        f" {forward.value_dim}"
    ]
    if not parts:
        return [*lines, *_loop(forward)]
    for number, part in enumerate(parts, start=1):
        if isinstance(part, TilePart):
            lines += [f"forward part {number} in classes of {part.modulus}", *_loop(part.loop)]
        else:
            shown = " ".join(map(str, part.distances))
            lines.append(f"forward part {number} rows {part.rows} warps {part.warps}")
            lines.append(f"  distances {shown}")
    return lines


def _backward(backward: BackwardPlan, forward: ForwardPlan) -> list[str]:
    """Show its loops in the names of the pattern that was written."""
    dq = _loop(backward.dq)
    lines = ["backward dq as forward"] if dq == _loop(forward) else ["backward dq", *dq]
    lines += ["backward dkdv" if backward.dk is None else "backward dv", *_of_keys(backward.dkdv)]
    lines += ["backward dk", *_of_keys(backward.dk)] if backward.dk is not None else []
    if backward.learned is None:
        return lines
    learned = _loop(backward.learned)
    if learned == dq:
        return [*lines, "backward learned as dq"]
    return [*lines, "backward learned", *learned]


def _loop(loop: LoopPlan) -> list[str]:
    lines = [
        f"  tile {loop.boxes.tiling if loop.boxes else loop.tiling}"
        f" warps {loop.warps} stages {loop.stages}",
        f"  loop over {loop.form}, rows {loop.row_order}",
    ]
    lines += [_segment(segment) for segment in loop.segments]
    for piece in loop.boxes.pieces if loop.boxes is not None else ():
        lines.append(f"  boxes {_boxes(piece, True)}{'' if piece.full else ' masked'}")
    lines += _masks(loop.masks)
    return lines + _data(loop.data)


def _of_keys(loop: LoopPlan) -> list[str]:
    """Show a loop over query tiles for each key tile."""
    sides: Tiling | BoxTiling = Tiling(loop.tiling.k, loop.tiling.q)
    if loop.boxes is not None:
        sides = BoxTiling(loop.boxes.tiling.key, loop.boxes.tiling.query)
    lines = [
        f"  tile {sides} warps {loop.warps} stages {loop.stages}",
        f"  loop over {loop.form}, key tiles {loop.row_order}",
    ]
    for segment in loop.segments:
        lines.append(_segment(replace(segment, tiles=_inverse(segment.tiles)), "qb"))
    for piece in loop.boxes.pieces if loop.boxes is not None else ():
        own = replace(piece, tiles=tuple(map(_inverse, piece.tiles)))
        lines.append(f"  boxes {_boxes(own, True, 'qb')}{'' if piece.full else ' masked'}")
    lines += _masks(tuple(map(transposed, loop.masks)))
    data = loop.data
    return lines + _data(None if data is None else replace(data, core=transposed(data.core)))


def _inverse(tiles: Progression) -> Progression:
    return replace(tiles, base=transposed(tiles.base), count=transposed(tiles.count))


def _masks(masks: tuple[ex.BoolExpr, ...]) -> list[str]:
    return [f"  mask {n} check {ex.show(mask)}" for n, mask in enumerate(masks, start=1)]


def _segment(segment: Segment, name: str = "kb") -> str:
    mask = f" mask {segment.mask}" if segment.mask else ""
    return f"  segment {show_tiles(segment.tiles, name)}{mask}"


def _data(data: DataTiles | None) -> list[str]:
    if data is None:
        return []
    full = "" if data.core == ex.FALSE else f", full where {ex.show(data.core)}"
    left = "evaluated pair by pair" if data.refine else "masked"
    return [f"  tiles tested at the call{full}, open ones {left}"]
