"""The built-in functions of the language: names, arity, meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Result = Literal["same", "int", "bool", "real", "other"]


@dataclass(frozen=True, slots=True)
class Builtin:
    """A built-in function; ``most`` is None where any number of arguments may follow.

    ``result``: "same" as the arguments (numbers), "int", "bool", "real", or a rule of its own.
    """

    name: str
    usage: str
    least: int
    most: int | None
    meaning: str
    result: Result = "same"


BUILTINS: dict[str, Builtin] = {
    b.name: b
    for b in (
        Builtin("abs", "abs(x)", 1, 1, "the distance of `x` from 0"),
        Builtin("min", "min(x, y, ...)", 1, None, "the least argument, or the least list item"),
        Builtin("max", "max(x, y, ...)", 1, None, "the greatest argument, or list item"),
        Builtin("clamp", "clamp(x, low, high)", 3, 3, "`min(max(x, low), high)`"),
        Builtin("floor", "floor(x)", 1, 1, "the greatest integer that is at most `x`", "int"),
        Builtin("ceil", "ceil(x)", 1, 1, "the least integer that is at least `x`", "int"),
        Builtin("is_pow2", "is_pow2(x)", 1, 1, "`x` is one of 1, 2, 4, ..., 2**40", "bool"),
        Builtin(
            "bit_length", "bit_length(x)", 1, 1,
            "how many binary digits `x >= 0` has: `bit_length(8) == 4`", "int",
        ),
        Builtin("bit", "bit(x, i)", 2, 2, "binary digit `i` (from 0) of `x >= 0` is 1", "bool"),
        Builtin("len", "len(items)", 1, 1, "how many items a list has", "other"),
        Builtin("fill", "fill(count, value)", 2, 2, "a list of `count` equal items", "other"),
        Builtin("exp", "exp(x)", 1, 1, "e to the power `x`", "real"),
        Builtin("log", "log(x)", 1, 1, "the natural logarithm of `x`", "real"),
        Builtin("sqrt", "sqrt(x)", 1, 1, "the square root of `x`", "real"),
        Builtin("tanh", "tanh(x)", 1, 1, "the hyperbolic tangent of `x`", "real"),
        Builtin("f32", "f32(x)", 1, 1, "`x` rounded to a 32-bit float", "real"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transform:
    """A function of whole arrays, for the formula of a computed input.

    ``args``: for each argument its least number of axes, 0 for a number. The result has the axes
    of the first argument and ``more``; ``result`` None: elements as in the first argument.
    """

    name: str
    usage: str
    args: tuple[int, ...]
    meaning: str
    result: Literal["int", "bool"] | None = None
    more: int = 0


TRANSFORMS: dict[str, Transform] = {
    t.name: t
    for t in (
        Transform(
            "next_where", "next_where(flags)", (1,),
            "along the last axis, the first place from here on with a flag, else the length", "int",
        ),
        Transform(
            "prefix_sum", "prefix_sum(x)", (1,),
            "along the last axis, the sum of all before; one longer, ending in the total",
        ),
        Transform(
            "sums_between", "sums_between(x)", (1,),
            "for each two positions the sum of the items after one up to the other", None, 1,
        ),
        Transform(
            "differences", "differences(x)", (1,), "each item but the first less the one before"
        ),
        Transform(
            "repeat", "repeat(counts)", (1,), "0 `counts[0]` times, 1 `counts[1]` times, ...", "int"
        ),
        Transform(
            "khop", "khop(adjacency, hops)", (2, 0),
            "which nodes are at most `hops` steps away, the node itself included", "bool",
        ),
        Transform(
            "merge_ranges", "merge_ranges(verticals, slashes, block, n)", (1, 1, 0, 0),
            "for each row of blocks, the columns that vertical-slash kernels visit", "bool", 1,
        ),
        Transform(
            "members", "members(lists, size)", (1, 0),
            "for each list, which of `0..size - 1` it holds", "bool",
        ),
        Transform("transpose", "transpose(x)", (2,), "the last two axes exchanged"),
    )
}  # fmt: skip
