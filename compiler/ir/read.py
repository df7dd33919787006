"""Text -> pattern IR or block-mask IR: the inverse of ``show.py``."""

from __future__ import annotations

import re

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression, Tiling
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError
from attnc.dsl.parser import parse, parse_expression
from attnc.dsl.source import Source

_INTERVAL = re.compile(r"kb in (?P<first>.*) \.\. (?P<last>.*)")
_TILES = re.compile(
    r"kb = (?P<base>.*) \+ (?:(?P<period>\d+) \* (?:i|\(i div (?P<run>\d+)\) \+ i mod \d+)|i)"
    r" for i < (?P<count>.*)"
)


def read(text: str) -> pat.Pattern | BlockMask:
    """Parse the text of a pattern or of a block mask.

    Raises: ValueError if a line has no known form, CompileError if an expression does not parse.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    first = re.fullmatch(r"blocks tile (\d+)x(\d+)", lines[0]) if lines else None
    if first is None:
        return _pattern(lines)
    body = next((i for i, line in enumerate(lines) if line.startswith("  keep ")), 0)
    pattern = _pattern(lines[1 : body + 1])
    pieces: list[Piece] = []
    widened: list[str] = []
    for line in lines[body + 1 :]:
        kind, _, rest = line.partition(" ")
        if kind == "widened":
            widened.append(rest)
        elif kind == "full":
            pieces.append(Piece(tiles=_tiles(rest.strip())))
        elif kind == "partial":
            tiles, _, check = rest.partition(" check ")
            pieces.append(Piece(tiles=_tiles(tiles.strip()), residual=predicate(check)))
        else:
            raise ValueError(f"not a line of a block mask: {line!r}")
    return BlockMask(
        pattern=pattern, tiling=Tiling(int(first[1]), int(first[2])), pieces=tuple(pieces),
        widened=tuple(widened),
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


def _pattern(lines: list[str]) -> pat.Pattern:
    head = re.fullmatch(r"pattern (\S+)(?: heads h: (\d+))?", lines[0]) if lines else None
    if head is None or not lines[-1].startswith("  keep "):
        raise ValueError("a pattern starts with `pattern NAME` and ends with `keep SET`")
    split = (line.strip()[len("param ") :].partition(" = ") for line in lines[1:-1])
    params = tuple((name, value) for name, _, value in split)
    source = Source("<ir>", f"pattern p = {lines[-1][len('  keep ') :]}\n")
    file, diagnostics = parse(source)
    if file is None or diagnostics:
        raise CompileError(diagnostics)
    item = file.items[0]
    assert isinstance(item, ast.PatternDef)
    heads = int(head[2]) if head[2] else None
    return pat.Pattern(name=head[1], heads=heads, body=_node(item.body), params=params)


def _node(node: ast.Set) -> pat.Node:
    match node:
        case ast.Builder():
            return pat.Where(_bool(node.predicate))
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


def integer(text: str) -> ex.IntExpr:
    """Parse an integer expression over variables."""
    return _int(parse_expression(text))


def predicate(text: str) -> ex.BoolExpr:
    """Parse a predicate over variables."""
    return _bool(parse_expression(text))


def _int(node: ast.Expr) -> ex.IntExpr:
    match node:
        case ast.Number():
            return ex.Const(int(node.value))
        case ast.Name():
            return ex.Var(node.name)
        case ast.Unary(op="-"):
            return ex.scale(-1, _int(node.operand))
        case ast.Binary(op="+"):
            return ex.add(_int(node.left), _int(node.right))
        case ast.Binary(op="-"):
            return ex.sub(_int(node.left), _int(node.right))
        case ast.Binary(op="*", left=ast.Number() | ast.Unary()):
            factor = _int(node.left)
            assert isinstance(factor, ex.Const)
            return ex.scale(factor.value, _int(node.right))
        case ast.Binary(op="div", right=ast.Number(value=divisor)):
            return ex.floordiv(_int(node.left), int(divisor))
        case ast.Binary(op="mod", right=ast.Number(value=divisor)):
            return ex.mod(_int(node.left), int(divisor))
        case ast.Call(function="min" | "max" | "abs"):
            args = [_int(a) for a in node.args]
            if node.function == "abs":
                return ex.absolute(args[0])
            return (ex.minimum if node.function == "min" else ex.maximum)(*args)
        case ast.IfExpr():
            return ex.select(_bool(node.condition), _int(node.then), _int(node.otherwise))
        case _:
            raise ValueError(f"not an integer expression of the IR: {node}")


def _bool(node: ast.Expr) -> ex.BoolExpr:
    match node:
        case ast.Bool():
            return ex.Truth(node.value)
        case ast.Compare(ops=("in",), operands=(part, ast.ListOf() as listed)):
            values = [_int(item) for item in listed.items]
            return ex.member(_int(part), [v.value for v in values if isinstance(v, ex.Const)])
        case ast.Compare():
            pairs = zip(node.operands, node.ops, node.operands[1:], strict=False)
            return ex.and_(*(ex.compare(op, _int(a), _int(b)) for a, op, b in pairs))  # type: ignore[arg-type]
        case ast.BoolOp():
            return (ex.and_ if node.op == "and" else ex.or_)(*map(_bool, node.parts))
        case ast.Unary(op="not"):
            return ex.not_(_bool(node.operand))
        case ast.Call(function="is_pow2"):
            return ex.is_pow2(_int(node.args[0]))
        case ast.Quantifier(op="exists"):
            return ex.Exists(node.var, _int(node.low), _int(node.high), _bool(node.body))
        case _:
            raise ValueError(f"not a predicate of the IR: {node}")
