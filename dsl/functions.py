"""The built-in functions of the language: names, arity, meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in function; ``most`` is None where any number of arguments may follow."""

    name: str
    usage: str
    least: int
    most: int | None
    meaning: str


BUILTINS: dict[str, Builtin] = {
    b.name: b
    for b in (
        Builtin("abs", "abs(x)", 1, 1, "the distance of `x` from 0"),
        Builtin("min", "min(x, y, ...)", 1, None, "the least argument, or the least list item"),
        Builtin("max", "max(x, y, ...)", 1, None, "the greatest argument, or list item"),
        Builtin("clamp", "clamp(x, low, high)", 3, 3, "`min(max(x, low), high)`"),
        Builtin("floor", "floor(x)", 1, 1, "the greatest integer that is at most `x`"),
        Builtin("ceil", "ceil(x)", 1, 1, "the least integer that is at least `x`"),
        Builtin("is_pow2", "is_pow2(x)", 1, 1, "`x` is one of 1, 2, 4, ..., 2**40"),
        Builtin(
            "bit_length", "bit_length(x)", 1, 1,
            "how many binary digits `x >= 0` has, known at compile time: `bit_length(8) == 4`",
        ),
        Builtin("len", "len(items)", 1, 1, "how many items a list has"),
    )
}  # fmt: skip
