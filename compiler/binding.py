"""Parameter values: read from Python or text, checked against types and bounds, shown again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.check_expr import describe
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.kinds import show_type
from attnc.dsl.parser import parse_expression
from attnc.dsl.source import UNKNOWN, Span
from attnc.dsl.suggest import did_you_mean

Value: TypeAlias = "int | Fraction | bool | str | tuple[Value, ...]"
"""A compile-time value: a rational parameter is a Fraction, an enum choice is a str."""
Evaluate: TypeAlias = Callable[[ast.Expr, Mapping[str, Value]], Value]


def read_value(given: object, param: ast.Param) -> Value:
    """Turn a Python value, or the text of one (``-D w=8``), into a value of the parameter's type.

    A float is read as its shortest decimal text: 0.1 is exactly 1/10.
    Raises: ValueError with a message that names what was expected.
    """
    if isinstance(given, str) and param.type.kind != "enum":
        given = _read_text(given, param)
    return _read(given, param.type)


def _read(given: object, type_: ast.Type) -> Value:
    match type_.kind:
        case "list":
            if isinstance(given, str) or not hasattr(given, "__iter__"):
                raise ValueError(f"expected {describe(type_)}, found {given!r}")
            assert type_.item is not None
            return tuple(_read(item, type_.item) for item in given)
        case "bool":
            if type(given).__name__ in ("bool", "bool_"):
                return bool(given)
        case "enum":
            if isinstance(given, str) and given in type_.choices:
                return given
            hint = did_you_mean(given, type_.choices) if isinstance(given, str) else ""
            raise ValueError(f"expected {describe(type_)}, found {given!r}; {hint}".rstrip("; "))
        case "int":
            number = _number(given)
            if number is not None and number.denominator == 1 and not isinstance(given, float):
                return int(number)
        case "rational":
            number = _number(given)
            if number is not None:
                return number
    raise ValueError(f"expected {describe(type_)}, found {given!r}")


def _number(given: object) -> Fraction | None:
    """Return the exact number in a Python or NumPy scalar, or None when it is none."""
    if type(given).__name__ in ("bool", "bool_"):
        return None
    if isinstance(given, Fraction):
        return given
    if isinstance(given, Decimal):
        return Fraction(given) if given.is_finite() else None
    try:
        return Fraction(operator.index(given))  # type: ignore[arg-type]
    except TypeError:
        pass
    if isinstance(given, float):
        try:
            exact = Decimal(repr(float(given)))
        except InvalidOperation:  # pragma: no cover - repr of a float is a decimal
            return None
        return Fraction(exact) if exact.is_finite() else None
    return None


def _read_text(text: str, param: ast.Param) -> object:
    """Read the text of a value: a number, a quotient, ``true``, or a list of these."""
    if param.type.kind == "list" and not text.strip().startswith("["):
        text = f"[{text}]"  # -D rates=1,2,4 needs no quotes in a shell
    try:
        return _literal(parse_expression(text), text, param)
    except CompileError as error:
        raise ValueError(f"expected {describe(param.type)}, found {text!r}") from error


def _literal(expr: ast.Expr, text: str, param: ast.Param) -> object:
    match expr:
        case ast.Number(value=value):
            return int(value) if value.denominator == 1 else value
        case ast.Bool(value=value):
            return value
        case ast.Name(name=name):
            return name
        case ast.ListOf(items=items):
            return [_literal(item, text, param) for item in items]
        case ast.Unary(op="-", operand=ast.Number(value=value)):
            return int(-value) if value.denominator == 1 else -value
        case ast.Binary(op="/", left=left, right=ast.Number(value=value)) if value:
            over = _literal(left, text, param)
            if isinstance(over, int | Fraction) and not isinstance(over, bool):
                quotient = Fraction(over) / value
                return int(quotient) if quotient.denominator == 1 else quotient
    raise ValueError(f"expected {describe(param.type)}, found {text!r}")


def fit(value: Value, type_: ast.Type) -> Value:
    """Return a computed value in the form its parameter keeps it: an int in a rational widens."""
    if isinstance(value, tuple):
        assert type_.item is not None
        return tuple(fit(item, type_.item) for item in value)
    if type_.kind == "rational" and isinstance(value, int):
        return Fraction(value)
    if type_.kind == "int" and isinstance(value, Fraction):
        assert value.denominator == 1
        return int(value)
    return value


def show_value(value: Value) -> str:
    """Return a value in the syntax of the language: ``8``, ``0.25``, ``1/3``, ``[1, 2]``."""
    match value:
        case bool():
            return "true" if value else "false"
        case tuple():
            return f"[{', '.join(map(show_value, value))}]"
        case Fraction():
            rest = value.denominator
            for prime in (2, 5):
                while rest % prime == 0:
                    rest //= prime
            if rest == 1 and value.denominator <= 10**6:
                return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
            return f"{value.numerator}/{value.denominator}"
        case _:
            return str(value)


def bind(
    params: tuple[ast.Param, ...],
    given: Mapping[str, Value],
    env: Mapping[str, Value],
    evaluate: Evaluate,
    report: Callable[[Diagnostic], None],
    spans: Mapping[str, Span] | None = None,
) -> dict[str, Value]:
    """Return ``env`` extended by the parameters: given values, else defaults, inside their bounds.

    ``spans`` says where a given value was written (nowhere: it came from the command line).
    """
    bound = dict(env)
    for param in params:
        if param.name in given:
            value = given[param.name]
            span = (spans or {}).get(param.name, UNKNOWN)
        elif param.default is not None:
            value = fit(evaluate(param.default, bound), param.type)
            span = param.default.span
        else:
            report(
                Diagnostic(
                    code="ATT0207",
                    message=f"parameter `{param.name}` needs a value",
                    span=param.span,
                    help=f"give it one: `-D {param.name}=...`, or a default in the file",
                )
            )
            continue
        bound[param.name] = value
        low = None if param.low is None else evaluate(param.low, bound)
        high = None if param.high is None else evaluate(param.high, bound)
        for item in value if isinstance(value, tuple) else (value,):
            if (low is not None and _less(item, low)) or (high is not None and _less(high, item)):
                ends = f"{'' if low is None else show_value(low)}..{_or_blank(high)}"
                report(
                    Diagnostic(
                        code="ATT0303",
                        message=f"`{param.name}` = {show_value(item)} is outside {ends}",
                        span=span,
                        notes=(f"declared as `{param.name}: {show_type(param.type)} in {ends}`",),
                        help="give a value inside the range",
                    )
                )
                break
    return bound


def _less(one: Value, other: Value) -> bool:
    assert isinstance(one, int | Fraction)
    assert isinstance(other, int | Fraction)
    return one < other


def _or_blank(value: Value | None) -> str:
    return "" if value is None else show_value(value)
