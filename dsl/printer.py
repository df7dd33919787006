"""AST -> text with the fewest parentheses: ``parse(show_file(x)) == x``."""

from __future__ import annotations

from fractions import Fraction

from attnc.dsl import nodes as ast

# How tightly an expression binds; an operand that binds less tightly than its place asks for
# stands in parentheses. OPEN: exists, forall, sum, count, if and let, which reach as far right as
# they can.
_OPEN, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _POSTFIX = range(10)


def show_expr(expr: ast.Expr) -> str:
    """Return an expression as it is written in a file."""
    return _expr(expr, _OPEN)


def show_set(node: ast.Set) -> str:
    """Return a set as it is written in a file."""
    return _set(node, 0)


def show_file(file: ast.File) -> str:
    """Return a file of one line an item."""
    return "".join(f"{show_item(item)}\n" for item in file.items)


def show_item(item: ast.Item) -> str:
    """Return an item on one line."""
    match item:
        case ast.Import(names=names, path=path):
            return f'import {", ".join(names)} from "{path}"'
        case ast.Param():
            return f"param {show_param(item)}"
        case ast.Heads(var=var, count=count, kv=kv):
            return f"{'kv_heads' if kv else 'heads'} {var}: {_expr(count, _SUM)}"
        case ast.PatternDef(layers=layers, requires=requires, body=body):
            clauses = (
                [] if layers is None else [f"layers {layers.var}: {_expr(layers.count, _SUM)}"]
            )
            clauses += [f'require {show_expr(r.condition)} else "{r.message}"' for r in requires]
            return f"{' '.join(('pattern', _header(item), *clauses))} = {show_set(body)}"
        case ast.SpaceDef(name=name, space=space):
            return f"space {name} = {show_space(space)}"
        case ast.Input():
            return show_param(item)
        case ast.Fn(name=name, params=params, body=body):
            return f"fn {name}({', '.join(map(_fn_param, params))}) = {show_expr(body)}"
        case ast.Score(body=body):
            return f"score {_header(item)} = {show_set(body)}"
        case ast.Attention(score=score, over=over, sink=sink, scale=scale):
            text = f"attention {_header(item)} = softmax({show_expr(score)}, over: {show_set(over)}"
            text += "" if sink is None else f", sink: {show_expr(sink)}"
            return text + ("" if scale is None else f", scale: {show_expr(scale)}") + ")"
        case ast.Route(name=name, clauses=clauses):
            said = ", ".join(f"{c.name}: {show_expr(c.value)}" for c in clauses)
            return f"route {name}{_given(item.params)} = {{ {said} }}"
        case ast.Tune(name=name, clauses=clauses):
            said = ", ".join(f"{c.name}: {show_expr(c.value)}" for c in clauses)
            return f"tune {name} = {{ {said} }}"
        case ast.Combine(name=name, body=body):
            return f"combine {name}{_given(item.params)} = {show_expr(body)}"


def _given(params: tuple[ast.Param | ast.Input, ...]) -> str:
    return f"({', '.join(map(show_param, params))})" if params else ""


def _header(item: ast.PatternDef | ast.Score | ast.Attention) -> str:
    """Return the name, the parameters, the spaces and the heads of an item."""
    text = item.name + _given(item.params)
    if item.on is not None:
        text += f" on {show_space(item.on.query)}"
        text += "" if item.on.key is None else f" -> {show_space(item.on.key)}"
    return text if item.heads is None else f"{text} {show_item(item.heads)}"


def show_space(space: ast.Space) -> str:
    """Return a space as it is written in a file."""
    return " ++ ".join(map(_segment, space.segments))


def _segment(segment: ast.Segment) -> str:
    if segment.grid is None:
        assert segment.name is not None
        return segment.name
    grid, name = _grid(segment.grid), segment.name
    if segment.low is None or segment.high is None:
        return grid if name is None else f"{name}: {grid}"
    ends = f"{_expr(segment.low, _SUM)}..{_expr(segment.high, _SUM)}"
    return f"{name}[{segment.var} in {ends}]: {grid}"


def _grid(grid: ast.Grid) -> str:
    listed = ", ".join(map(_axis, grid.axes))
    text = f"grid({listed})" if grid.shape is None else f"grid(*{_expr(grid.shape, _SUM)})"
    return text if grid.tile is None else f"{text} tiled {_expr(grid.tile, _SUM)}"


def _axis(axis: ast.Axis) -> str:
    if axis.extent == ast.Name(name=axis.name):
        return axis.name
    return f"{axis.name}: {show_expr(axis.extent)}"


def _fn_param(param: ast.FnParam) -> str:
    text = f"{param.name}: {show_type(param.type)}"
    return text if param.default is None else f"{text} = {show_expr(param.default)}"


def show_param(param: ast.Param | ast.Input) -> str:
    """Return a parameter as it is declared: ``window: int in 1..4096 = 512``."""
    text = f"{param.name}: {show_type(param.type)}"
    if isinstance(param, ast.Input):
        sides = ["*" if d.extent is None else show_expr(d.extent) for d in param.dims]
        text = f"input {text}[{', '.join(sides)}]" if sides else f"input {text}"
    elif param.low is not None or param.high is not None:
        low = "" if param.low is None else _expr(param.low, _SUM)
        high = "" if param.high is None else _expr(param.high, _SUM)
        text += f" in {low}..{high}"
    return text if param.default is None else f"{text} = {show_expr(param.default)}"


def show_type(type_: ast.Type) -> str:
    """Return a type: ``int``, ``list[int]``, ``one of a, b``."""
    if type_.kind == "enum":
        return f"one of {', '.join(type_.choices)}"
    return f"list[{show_type(type_.item)}]" if type_.item is not None else type_.kind


def show_number(value: Fraction) -> str:
    """Return a rational as a literal, or as a quotient where no decimal literal is exact."""
    if value.denominator == 1:
        return str(value.numerator)
    digits, rest = 0, value.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        digits = max(digits, power)
    if rest != 1:
        return f"({value.numerator} / {value.denominator})"
    scaled = str(abs(value) * 10**digits).rjust(digits + 1, "0")
    return f"{'-' if value < 0 else ''}{scaled[:-digits]}.{scaled[-digits:]}"


def _expr(expr: ast.Expr, least: int) -> str:
    text, level = _expr_and_level(expr)
    return text if level >= least else f"({text})"


def _expr_and_level(expr: ast.Expr) -> tuple[str, int]:
    match expr:
        case ast.Number(value=value):
            return show_number(value), _POSTFIX if value >= 0 else _SIGN
        case ast.Bool(value=value):
            return ("true" if value else "false"), _POSTFIX
        case ast.Name(name=name):
            return name, _POSTFIX
        case ast.ListOf(items=items):
            return f"[{', '.join(map(show_expr, items))}]", _POSTFIX
        case ast.Index(base=base, index=index):
            return f"{_expr(base, _POSTFIX)}[{show_expr(index)}]", _POSTFIX
        case ast.ListFor(var=var, low=low, high=high, body=body):
            ends = f"{_expr(low, _SUM)}..{_expr(high, _SUM)}"
            return f"[for {var} in {ends} : {show_expr(body)}]", _POSTFIX
        case ast.Attribute(base=name, axis=axis):
            return f"{name}.{axis}", _POSTFIX
        case ast.Call(function=function, args=args, names=names):
            given = zip(names, map(show_expr, args), strict=True)
            return f"{function}({', '.join(map(_argument, given))})", _POSTFIX
        case ast.Unary(op="-", operand=operand):
            return f"-{_expr(operand, _SIGN)}", _SIGN
        case ast.Unary(operand=operand):
            return f"not {_expr(operand, _NOT)}", _NOT
        case ast.Binary(op="**", left=left, right=right):
            return f"{_expr(left, _POSTFIX)}**{_expr(right, _SIGN)}", _POWER
        case ast.Binary(op=op, left=left, right=right):
            level = _SUM if op in ("+", "-") else _PRODUCT
            return f"{_expr(left, level)} {op} {_expr(right, level + 1)}", level
        case ast.Compare(operands=operands, ops=ops):
            text = _expr(operands[0], _SUM)
            for sign, operand in zip(ops, operands[1:], strict=True):
                text += f" {sign} {_expr(operand, _SUM)}"
            return text, _COMPARE
        case ast.BoolOp(op=word, parts=parts):
            level = _OR if word == "or" else _AND
            return f" {word} ".join(_expr(part, level + 1) for part in parts), level
        case ast.PairIn(query=query, key=key, pattern=pattern, negated=negated):
            pair = f"({show_expr(query)}, {show_expr(key)})"
            return f"{pair} {'not in' if negated else 'in'} {_set(pattern, 3)}", _COMPARE
        case (
            ast.Quantifier(op=kind, var=var, low=low, high=high, body=body)
            | ast.Reduce(op=kind, var=var, low=low, high=high, body=body)
        ):
            ends = f"{_expr(low, _SUM)}..{_expr(high, _SUM)}"
            return f"{kind} {var} in {ends} : {show_expr(body)}", _OPEN
        case ast.IfExpr(condition=condition, then=then, otherwise=otherwise):
            parts3 = show_expr(condition), show_expr(then), show_expr(otherwise)
            return "if {} then {} else {}".format(*parts3), _OPEN
        case ast.Let(name=name, value=value, body=body):
            shown = f"({show_expr(value)})" if _shows_in(value) else _expr(value, _OR)
            return f"let {name} = {shown} in {show_expr(body)}", _OPEN


def _argument(given: tuple[str | None, str]) -> str:
    name, value = given
    return value if name is None else f"{name}: {value}"


def _shows_in(expr: ast.Expr) -> bool:
    """Whether an ``in`` of the expression would end the value of a ``let`` too early."""
    match expr:
        case ast.Compare(ops=ops):
            return "in" in ops or "not in" in ops
        case ast.PairIn():
            return True
        case ast.BoolOp(parts=parts):
            return any(map(_shows_in, parts))
        case ast.Unary(op="not", operand=operand):
            return _shows_in(operand)
        case _:
            return False


def _set(node: ast.Set, least: int) -> str:
    text, level = _set_and_level(node)
    return text if level >= least else f"({text})"


def _set_and_level(node: ast.Set) -> tuple[str, int]:
    """Return the text and its level: 0 ``if``, 1 ``|`` and ``-``, 2 ``&``, 3 what needs none."""
    match node:
        case ast.Builder(query=query, key=key, head=head, predicate=predicate):
            bound = f"{query}{_place(node.query_segment)} -> {key}{_place(node.key_segment)}"
            bound += "" if head is None else f", {head}"
            return f"{{ {bound} : {show_expr(predicate)} }}", 3
        case ast.Reference(name=name, args=args):
            listed = [_argument((a.name, show_expr(a.value))) for a in args]
            return (f"{name}({', '.join(listed)})" if listed else name), 3
        case ast.SetIndex(name=name, index=index):
            return f"{name}[{show_expr(index)}]", 3
        case ast.UnionOver(var=var, low=low, high=high, body=body):
            ends = f"{_expr(low, _SUM)}..{_expr(high, _SUM)}"
            return f"union over {var} in {ends} : {show_set(body)}", 0
        case ast.Rounded(part=part, block_q=block_q, block_k=block_k, rule=rule, op=op):
            sides = [_expr(side, _SUM) for side in (block_q, block_k) if side is not None]
            least = "" if node.threshold is None else f" {op} {_expr(node.threshold, _SUM)}"
            return f"blocks({', '.join((show_set(part), *sides, rule + least))})", 3
        case ast.SetUnion(parts=parts):
            return " | ".join(_set(part, 2) for part in parts), 1
        case ast.SetIntersection(parts=parts):
            return " & ".join(_set(part, 3) for part in parts), 2
        case ast.SetDifference(left=left, right=right):
            # `-` never stands beside a bare `|` or `&`.
            chained = isinstance(left, ast.SetDifference)
            return f"{_set(left, 1 if chained else 3)} - {_set(right, 3)}", 1
        case ast.SetComplement(part=part):
            return f"~{_set(part, 3)}", 3
        case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
            shown = show_expr(condition), show_set(then), show_set(otherwise)
            return "if {} then {} else {}".format(*shown), 0


def _place(segment: ast.SegmentName | None) -> str:
    if segment is None:
        return ""
    index = "" if segment.index is None else f"[{show_expr(segment.index)}]"
    return f" in {segment.name}{index}"
