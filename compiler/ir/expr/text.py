"""Expressions as text, in the syntax of the language."""

from __future__ import annotations

from attnc.compiler.ir.expr.nodes import (
    Abs,
    Add,
    And,
    Compare,
    Const,
    Exists,
    Expr,
    FloorDiv,
    IsPow2,
    Max,
    Member,
    Min,
    Mod,
    Mul,
    Not,
    Or,
    Quot,
    Read,
    Rem,
    Scale,
    Select,
    Truth,
    Var,
)

_LEVEL = {"or": 1, "and": 2, "not": 3, "compare": 4, "sum": 5, "product": 6, "atom": 8}

MAX_RANK = 8
"""Most axes of a grid whose coordinates have names in the IR."""

VARIABLES = frozenset({"q", "k", "h", "nq", "nk", "qb", "kb", "NQ", "NK"}) | {
    f"{name}_{axis}" for name in ("q", "k", "qb", "kb") for axis in range(MAX_RANK)
}
"""What a bare name always means; an input without brackets of that name is ``scalar(q)``."""


def show(expr: Expr) -> str:
    """Return the expression in the syntax of the language; ``read.py`` parses it back."""
    return _show(expr)[0]


def _show(expr: Expr) -> tuple[str, int]:
    def at(e: Expr, level: int) -> str:
        text, own = _show(e)
        return text if own >= level else f"({text})"

    match expr:
        case Const(value):
            return str(value), _LEVEL["atom"] if value >= 0 else _LEVEL["sum"]
        case Truth(value):
            return ("true" if value else "false"), _LEVEL["atom"]
        case Var(name):
            return name, _LEVEL["atom"]
        case Add(parts):
            text = at(parts[0], _LEVEL["sum"])
            for part in parts[1:]:
                shown = at(part, _LEVEL["sum"])
                text += f" - {shown[1:]}" if shown.startswith("-") else f" + {shown}"
            return text, _LEVEL["sum"]
        case Scale(-1, part):
            return f"-{at(part, _LEVEL['atom'])}", _LEVEL["sum"]
        case Scale(factor, part):
            level = _LEVEL["product"] if factor > 0 else _LEVEL["sum"]
            return f"{factor} * {at(part, _LEVEL['atom'])}", level
        case FloorDiv(part, divisor):
            return f"{at(part, _LEVEL['atom'])} div {divisor}", _LEVEL["product"]
        case Mod(part, divisor):
            return f"{at(part, _LEVEL['atom'])} mod {divisor}", _LEVEL["product"]
        case Mul(left, right):
            text = f"{at(left, _LEVEL['atom'])} * {at(right, _LEVEL['atom'])}"
            return text, _LEVEL["product"]
        case Quot(part, by):
            text = f"{at(part, _LEVEL['atom'])} div {at(by, _LEVEL['atom'])}"
            return text, _LEVEL["product"]
        case Rem(part, by):
            text = f"{at(part, _LEVEL['atom'])} mod {at(by, _LEVEL['atom'])}"
            return text, _LEVEL["product"]
        case Read(name, ()):
            return (f"scalar({name})" if name in VARIABLES else name), _LEVEL["atom"]
        case Read(name, index):
            return name + "".join(f"[{show(i)}]" for i in index), _LEVEL["atom"]
        case Min(parts):
            return f"min({', '.join(map(show, parts))})", _LEVEL["atom"]
        case Max(parts):
            return f"max({', '.join(map(show, parts))})", _LEVEL["atom"]
        case Abs(part):
            return f"abs({show(part)})", _LEVEL["atom"]
        case Select(condition, then, otherwise):
            return f"(if {show(condition)} then {show(then)} else {show(otherwise)})", 8
        case Compare(op, left, right):
            text = f"{at(left, _LEVEL['sum'])} {op} {at(right, _LEVEL['sum'])}"
            return text, _LEVEL["compare"]
        case IsPow2(part):
            return f"is_pow2({show(part)})", _LEVEL["atom"]
        case Member(part, values):
            listed = ", ".join(map(str, values))
            return f"{at(part, _LEVEL['sum'])} in [{listed}]", _LEVEL["compare"]
        case And(parts):
            return " and ".join(at(p, _LEVEL["not"]) for p in parts), _LEVEL["and"]
        case Or(parts):
            return " or ".join(at(p, _LEVEL["and"]) for p in parts), _LEVEL["or"]
        case Not(part):
            return f"not {at(part, _LEVEL['atom'])}", _LEVEL["not"]
        case Exists(var, low, high, body):
            return f"(exists {var} in {show(low)}..{show(high)} : {show(body)})", 8
    raise AssertionError(expr)
