"""Parameter values: read from Python or text, checked against types and bounds, shown again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.kinds import describe, show_type
from attnc.dsl.parser import parse_expression
from attnc.dsl.printer import show_expr
from attnc.dsl.source import UNKNOWN, Span
from attnc.dsl.suggest import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

Value: TypeAlias = "int | Fraction | float | bool | str | tuple[Value, ...] | ast.Expr"
"""A compile-time value: a rational parameter is a Fraction, a real a float, an enum choice a str.

A parameter of type pattern, or a list of these, holds what was written: an expression that names
patterns. Whoever uses it looks the names up.
"""
Evaluate: TypeAlias = Callable[[ast.Expr, Mapping[str, Value]], Value]


def read_value(given: object, param: ast.Param) -> Value:
    """Turn a Python value, or the text of one (``-D w=8``), into a value of the parameter's type.

    A float is read as its shortest decimal text: 0.1 is exactly 1/10.
    Raises: ValueError with a message that names what was expected.
    """
    if names_patterns(param.type):
        return _read_patterns(given, param.type)
    if isinstance(given, str) and param.type.kind != "enum":
        given = _read_text(given, param)
    return _read(given, param.type)


def names_patterns(type_: ast.Type) -> bool:
    """Return whether a type is ``pattern``, or a list of them."""
    return type_.kind == "pattern" or (type_.item is not None and names_patterns(type_.item))


def _read_patterns(given: object, type_: ast.Type) -> ast.Expr:
    """Read the name of a pattern (``"window(left: 8)"``), or a list of them."""
    if isinstance(given, str):
        try:
            return parse_expression(given)
        except CompileError as error:
            raise ValueError(f"expected {describe(type_)}, found {given!r}") from error
    if type_.item is None:
        raise ValueError(f"expected {describe(type_)}, found {given!r}")
    return ast.ListOf(
        items=tuple(_read_patterns(item, type_.item) for item in _items(given, type_))
    )


def _items(given: object, type_: ast.Type) -> list[object]:
    """Return the items of what stands for a list. Raises: ValueError where it has none."""
    try:
        if not isinstance(given, str | Mapping):
            return list(given)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        pass
    raise ValueError(f"expected {describe(type_)}, found {given!r}")


def _read(given: object, type_: ast.Type) -> Value:
    match type_.kind:
        case "list":
            assert type_.item is not None
            return tuple(_read(item, type_.item) for item in _items(given, type_))
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
        case "real":
            number = _number(given)
            if number is not None:
                return float(number)
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


INPUT_HELP = "ints are ints, truth values are bool or 0 and 1, and every axis counts"


def read_array(given: Any, one: ast.Input) -> NDArray[Any]:
    """Turn what was given for an input into its array: int64, bool or float64.

    Lists of different lengths are filled up with -1 along axes that are declared ``*``.
    Raises: ValueError with a message that names what was expected.
    """
    import numpy as np

    sides = ", ".join("*" if d.extent is None else show_expr(d.extent) for d in one.dims)
    what = f"{one.type.kind}[{sides}]" if one.dims else f"one {one.type.kind}"
    given = given.tolist() if isinstance(given, np.ndarray) and given.dtype == object else given
    if isinstance(given, list | tuple):
        given = _filled(given, [d.extent is None for d in one.dims], what)
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if array.ndim != len(one.dims):
        raise ValueError(f"expected {what}, found {array.ndim} axes")
    kind = array.dtype.kind
    match one.type.kind:
        case "int" if kind in "iu":
            return array.astype(np.int64)
        case "bool" if kind == "b" or (kind in "iu" and np.isin(array, (0, 1)).all()):
            return array.astype(np.bool_)
        case "real" if kind in "fiu":
            return array.astype(np.float64)
    raise ValueError(f"expected {what}, found elements of type {array.dtype}")


def _filled(given: list[Any] | tuple[Any, ...], open_axes: list[bool], what: str) -> Any:
    """Return nested lists as an array, filled up with -1 where an axis may be ragged."""
    import numpy as np

    level: list[Any] = [given]
    sides: list[int] = []
    for may_differ in open_axes:
        parts = [() if part is _PADDING else part for part in level]
        if not all(hasattr(part, "__len__") and not isinstance(part, str) for part in parts):
            raise ValueError(f"expected {what}, found {len(sides)} axes")
        lengths = {len(part) for part in parts}
        if len(lengths) > 1 and not may_differ and _PADDING not in level:
            raise ValueError(f"expected {what}, axis {len(sides)} has lists of different lengths")
        sides.append(max(lengths, default=0))
        level = [i for p in parts for i in (*p, *[_PADDING] * (sides[-1] - len(p)))]
    if any(isinstance(item, list | tuple) for item in level):
        raise ValueError(f"expected {what}, found a list in place of a number")
    if not level:
        return np.zeros(sides, dtype=np.int64)
    return np.array([-1 if item is _PADDING else item for item in level]).reshape(sides)


_PADDING = object()


def fit(value: Value, type_: ast.Type) -> Value:
    """Return a computed value in the form its parameter keeps it: an int in a rational widens."""
    if isinstance(value, tuple):
        assert type_.item is not None
        return tuple(fit(item, type_.item) for item in value)
    if type_.kind == "rational" and isinstance(value, int):
        return Fraction(value)
    if type_.kind == "real" and isinstance(value, int | Fraction):
        return float(value)
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
        case int() | float() | str():
            return str(value)
        case _:
            return show_expr(value)


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
            value = param.default
            if not names_patterns(param.type):
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
        for item in _scalars(value):
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


def _scalars(value: Value) -> Iterator[Value]:
    """Yield the numbers of a list, however deep."""
    if isinstance(value, tuple):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _less(one: Value, other: Value) -> bool:
    assert isinstance(one, int | Fraction | float)
    assert isinstance(other, int | Fraction | float)
    return one < other


def _or_blank(value: Value | None) -> str:
    return "" if value is None else show_value(value)
