"""Text -> pattern IR or block-mask IR: the inverse of ``show.py``."""

from __future__ import annotations

import re
from fractions import Fraction

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression, Tiling
from attnc.compiler.ir.gridmask import BoxTiling, GridMask, GridPiece
from attnc.compiler.ir.read_expr import (
    formula,
    integer,
    integer_of,
    number_of,
    predicate,
    score,
    truth_of,
)
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError
from attnc.dsl.parser import parse
from attnc.dsl.source import Source

_INTERVAL = re.compile(r"kb(?:_\d+)? in (?P<first>.*) \.\. (?P<last>.*)")
_SEGMENTS = re.compile(r"segment (\d+) -> (\d+): ")
_TILES = re.compile(
    r"kb(?:_\d+)? = (?P<base>.*) \+"
    r" (?:(?P<period>\d+) \* (?:i|\(i div (?P<run>\d+)\) \+ i mod \d+)|i)"
    r" for i < (?P<count>.*)"
)


def read(text: str) -> pat.Pattern | BlockMask | GridMask:
    """Parse the text of a pattern or of a block mask.

    Raises: ValueError if a line has no known form, CompileError if an expression does not parse.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    first = re.fullmatch(r"blocks tile ([\dx]+)(,[\dx]+)?", lines[0]) if lines else None
    if first is None:
        return _pattern(lines)
    body = next((i for i, line in enumerate(lines) if line.startswith("  keep ")), 0)
    pattern = _pattern(lines[1 : body + 1])
    pieces: list[tuple[str, ex.BoolExpr]] = []
    widened: list[str] = []
    for line in lines[body + 1 :]:
        kind, _, rest = line.partition(" ")
        if kind == "widened":
            widened.append(rest)
        elif kind == "full":
            pieces.append((rest.strip(), ex.TRUE))
        elif kind == "partial":
            tiles, _, check = rest.partition(" check ")
            pieces.append((tiles.strip(), predicate(check)))
        else:
            raise ValueError(f"not a line of a block mask: {line!r}")
    sides = tuple(map(int, first[1].split("x")))
    if first[2] is None:
        found = tuple(Piece(tiles=_tiles(tiles), residual=check) for tiles, check in pieces)
        return BlockMask(
            pattern=pattern, tiling=Tiling(*sides), pieces=found, widened=tuple(widened)
        )
    key_sides = tuple(map(int, first[2][1:].split("x")))
    return GridMask(
        pattern=pattern, tiling=BoxTiling(sides, key_sides), widened=tuple(widened),
        pieces=tuple(_grid_piece(tiles, check) for tiles, check in pieces),
    )


def _grid_piece(text: str, check: ex.BoolExpr) -> GridPiece:
    segments = _SEGMENTS.match(text)
    axes = (text[segments.end() :] if segments is not None else text).split(" by ")
    return GridPiece(
        queries=int(segments[1]) if segments is not None else 0,
        keys=int(segments[2]) if segments is not None else 0,
        tiles=tuple(map(_tiles, axes)), residual=check,
    )


def _tiles(text: str) -> Progression:
    interval = _INTERVAL.fullmatch(text)
    if interval is not None:
        first, last = integer(interval["first"]), integer(interval["last"])
        return Progression(base=first, count=ex.add(ex.sub(last, first), ex.ONE))
    found = _TILES.fullmatch(text)
    if found is None:
        raise ValueError(f"not a progression of tiles: {text!r}")
    return Progression(
        base=integer(found["base"]), count=integer(found["count"]),
        period=int(found["period"] or 1), run=int(found["run"] or 1),
    )


_HEAD = re.compile(r"pattern (\S+)(?: (kv_heads|heads) h: (\d+))?")


def _pattern(lines: list[str]) -> pat.Pattern:
    head = _HEAD.fullmatch(lines[0]) if lines else None
    if head is None or not lines[-1].startswith("  keep "):
        raise ValueError("a pattern starts with `pattern NAME` and ends with `keep SET`")
    facts: dict[str, list[str]] = {}
    for line in lines[1:]:
        word, _, rest = line.strip().partition(" ")
        facts.setdefault(word, []).append(rest)
    unknown = facts.keys() - {
        "queries", "keys", "extent", "input", "param", "score", "sink", "scale", "align",
        "keep",
    }  # fmt: skip
    if unknown:
        raise ValueError(f"not a line of a pattern: {sorted(unknown)}")

    def only(word: str) -> str | None:
        return facts[word][0] if word in facts else None

    queries, keys = only("queries"), only("keys")
    scores, sink, scale = only("score"), only("sink"), only("scale")
    split = (line.partition(" = ") for line in facts.get("param", ()))
    return pat.Pattern(
        name=head[1],
        heads=int(head[3]) if head[3] else None,
        body=_set(facts["keep"][0]),
        kv_heads=head[2] == "kv_heads",
        query_space=None if queries is None else _space(queries),
        key_space=None if keys is None else _space(keys),
        extents=tuple(facts.get("extent", ())),
        inputs=tuple(map(_input, facts.get("input", ()))),
        score=None if scores is None else score(scores),
        sink=None if sink is None else score(sink),
        scale=None if scale is None else Fraction(scale),
        align="bottom-right" if only("align") == "bottom-right" else "top-left",
        params=tuple((name, value) for name, _, value in split),
    )


def _item(text: str) -> ast.Item:
    file, diagnostics = parse(Source("<ir>", f"{text}\n"))
    if file is None or diagnostics:
        raise CompileError(diagnostics)
    return file.items[0]


def _set(text: str) -> pat.Node:
    item = _item(f"pattern p = {text}")
    assert isinstance(item, ast.PatternDef)
    return _node(item.body)


def _space(text: str) -> pat.Space:
    item = _item(f"space s = {text}")
    assert isinstance(item, ast.SpaceDef)
    return pat.Space(segments=tuple(_grid(segment) for segment in item.space.segments))


def _grid(segment: ast.Segment) -> pat.Grid:
    grid = segment.grid
    if grid is None:
        raise ValueError(f"IR text holds no references to spaces: {segment.name}")
    listed = grid.shape
    extents = listed.items if isinstance(listed, ast.ListOf) else [a.extent for a in grid.axes]
    tile = grid.tile.items if isinstance(grid.tile, ast.ListOf) else None
    return pat.Grid(
        name=segment.name or "",
        axes=tuple(axis.name for axis in grid.axes),
        extents=tuple(map(integer_of, extents)),
        tile=None if tile is None else tuple(map(number_of, tile)),
    )


def _input(text: str) -> pat.Input:
    declared, _, computed = text.partition(" = ")
    item = _item(f"input {declared}")
    assert isinstance(item, ast.Input)
    kind = item.type.kind
    assert kind in ("int", "bool", "real")
    return pat.Input(
        name=item.name,
        kind=kind,
        dims=tuple(None if d.extent is None else integer_of(d.extent) for d in item.dims),
        formula=_formula(computed) if computed else None,
    )


def _formula(text: str) -> ar.ArrayExpr:
    if not text.startswith("blocks("):
        return formula(text)
    text, _, lengths = text.partition(" over ")
    nq, _, nk = lengths.partition(" x ")
    item = _item(f"pattern p = {text}")
    assert isinstance(item, ast.PatternDef)
    rounded = item.body
    assert isinstance(rounded, ast.Rounded)
    where = _node(rounded.part)
    match rounded.threshold:
        case ast.Binary(op="/", left=left, right=right):
            threshold, denominator = number_of(left), number_of(right)
        case node:
            assert node is not None
            threshold, denominator = number_of(node), 1
    assert isinstance(where, pat.Where)
    assert rounded.block_k is not None
    assert rounded.op is not None
    return ar.BlockCount(
        predicate=where.predicate, block_q=number_of(rounded.block_q),
        block_k=number_of(rounded.block_k), op=rounded.op, threshold=threshold,
        denominator=denominator, density=rounded.rule == "density",
        nq=integer(nq or "nq"), nk=integer(nk or "nk"),
    )  # fmt: skip


def _node(node: ast.Set) -> pat.Node:
    match node:
        case ast.Builder():
            return pat.Where(truth_of(node.predicate))
        case ast.SetUnion():
            return pat.Union(tuple(map(_node, node.parts)))
        case ast.SetIntersection():
            return pat.Intersection(tuple(map(_node, node.parts)))
        case ast.SetDifference():
            return pat.Difference(_node(node.left), _node(node.right))
        case ast.SetComplement():
            return pat.Complement(_node(node.part))
        case _:
            raise ValueError("IR text holds no references and no conditionals between sets")
