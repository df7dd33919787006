"""Formulas of computed inputs: whole-array expressions with a NumPy and a device form.

``next_where(types == 0)``: evaluated by NumPy in the oracle and by torch in the written module.
Sides broadcast as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attnc.compiler.ir import expr as ex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ArrayInput:
    """Another input, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class ArrayConst:
    """An integer; truth values are 0 and 1."""

    value: int


@dataclass(frozen=True, slots=True)
class ArrayNumber:
    """A number known at the call: an expression of lengths, scalar inputs, extents and sizes."""

    part: ex.IntExpr


@dataclass(frozen=True, slots=True)
class ArrayOp:
    """Element by element; ``div`` and ``mod`` floor, ``not`` has one part."""

    op: Literal[
        "+", "-", "*", "div", "mod", "==", "!=", "<", "<=", ">", ">=", "and", "or", "not"
    ]
    parts: tuple[ArrayExpr, ...]


Transform = Literal[
    "next_where",
    "prefix_sum",
    "sums_between",
    "differences",
    "repeat",
    "khop",
    "merge_ranges",
    "members",
    "transpose",
]


@dataclass(frozen=True, slots=True)
class ArrayCall:
    """A transform of whole arrays (``transforms.py`` says what each does)."""

    function: Transform
    args: tuple[ArrayExpr, ...]


@dataclass(frozen=True, slots=True)
class BlockCount:
    """For each block of ``block_q`` by ``block_k`` tokens: whether enough of its pairs are kept.

    Shape: ``[heads or 1, ceil(nq / block_q), ceil(nk / block_k)]``, truth values. ``density``: the
    kept share of the existing pairs is compared, ``share * denominator op threshold``; otherwise
    the number of kept pairs is. ``nq`` and ``nk`` are the lengths the predicate is counted over.
    """

    predicate: ex.BoolExpr
    block_q: int
    block_k: int
    op: Literal[">", ">="]
    threshold: int
    denominator: int
    density: bool
    nq: ex.IntExpr = field(default_factory=lambda: ex.Var("nq"))
    nk: ex.IntExpr = field(default_factory=lambda: ex.Var("nk"))


ArrayExpr: TypeAlias = ArrayInput | ArrayConst | ArrayNumber | ArrayOp | ArrayCall | BlockCount


def children(expr: ArrayExpr) -> tuple[ArrayExpr, ...]:
    """Return the direct sub-expressions, in order."""
    match expr:
        case ArrayOp(_, parts) | ArrayCall(_, parts):
            return parts
        case _:
            return ()


def walk(expr: ArrayExpr) -> Iterator[ArrayExpr]:
    """Yield the formula and all below it, parents first."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def substitute(expr: ArrayExpr, lengths: Mapping[str, ex.IntExpr]) -> ArrayExpr:
    """Put expressions in the place of lengths; a count of blocks keeps its rows and columns."""
    match expr:
        case ArrayNumber(part):
            return ArrayNumber(ex.substitute(part, lengths))
        case ArrayOp(op, parts):
            return ArrayOp(op, tuple(substitute(part, lengths) for part in parts))
        case ArrayCall(function, args):
            return ArrayCall(function, tuple(substitute(arg, lengths) for arg in args))
        case BlockCount():
            return replace(
                expr,
                predicate=ex.substitute(expr.predicate, lengths),
                nq=ex.substitute(expr.nq, lengths),
                nk=ex.substitute(expr.nk, lengths),
            )
        case ArrayInput() | ArrayConst():
            return expr


def needs(expr: ArrayExpr) -> frozenset[str]:
    """Return the names of the inputs, numbers and extents a formula is computed from."""
    found: set[str] = set()
    for node in walk(expr):
        match node:
            case ArrayInput(name):
                found.add(name)
            case ArrayNumber(part):
                found.update(r.name for r in ex.reads(part))
            case BlockCount():
                found.update(r.name for r in ex.reads(node.predicate))
            case _:
                pass
    return frozenset(found)


def evaluate(
    expr: ArrayExpr, values: Mapping[str, int], inputs: Mapping[str, Any], heads: int = 1
) -> Any:
    """Evaluate by NumPy. ``values`` has ``nq`` and ``nk``; ``inputs`` all that ``needs`` names."""
    import numpy as np

    from attnc.compiler.transforms import TRANSFORMS

    def go(e: ArrayExpr) -> Any:
        match e:
            case ArrayInput(name):
                return np.asarray(inputs[name])
            case ArrayConst(value):
                return np.int64(value)
            case ArrayNumber(part):
                return np.int64(ex.evaluate(part, values, inputs))
            case ArrayOp("not", (part,)):
                return np.logical_not(go(part))
            case ArrayOp(op, parts):
                total = go(parts[0])
                for part in parts[1:]:
                    total = _NUMPY[op](total, go(part))
                return total
            case ArrayCall(function, args):
                return TRANSFORMS[function](*map(go, args))
            case BlockCount():
                told_apart = "h" in ex.free_vars(e.predicate)
                return _block_count(e, values, inputs, heads if told_apart else 1)

    return go(expr)


_NUMPY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "div": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "and": lambda a, b: (a != 0) & (b != 0),
    "or": lambda a, b: (a != 0) | (b != 0),
}


def _block_count(
    count: BlockCount, values: Mapping[str, int], inputs: Mapping[str, Any], heads: int
) -> NDArray[np.bool_]:
    """Count one row of blocks at a time. Shape: ``[heads, rows, columns]``."""
    import numpy as np

    nq, nk = (int(ex.evaluate(length, values, inputs)) for length in (count.nq, count.nk))
    rows, columns = -(-nq // count.block_q), -(-nk // count.block_k)
    found = np.zeros((heads, rows, columns), dtype=bool)
    head = np.arange(heads, dtype=np.int64)[:, None, None]
    k = np.arange(nk, dtype=np.int64)[None, None, :]
    starts = np.arange(0, nk, count.block_k)
    for row in range(rows if columns else 0):
        q = np.arange(row * count.block_q, min((row + 1) * count.block_q, nq))[None, :, None]
        scope = {**values, "q": q, "k": k, "h": head}
        kept = np.broadcast_to(
            ex.evaluate(count.predicate, scope, inputs), (heads, q.size, nk)
        )
        pairs = np.add.reduceat(kept.sum(axis=1), starts, axis=-1)
        existing = q.size * np.diff(np.append(starts, nk))
        least = count.threshold * (existing if count.density else 1)
        share = pairs * count.denominator
        found[:, row] = share > least if count.op == ">" else share >= least
    return found


def show(expr: ArrayExpr) -> str:
    """Return a formula in the syntax of the language."""
    match expr:
        case ArrayInput(name):
            return name
        case ArrayConst(value):
            return str(value)
        case ArrayNumber(part):
            return f"number({ex.show(part)})"
        case ArrayOp("not", (part,)):
            return f"not ({show(part)})"
        case ArrayOp(op, parts):
            return f"({f' {op} '.join(map(show, parts))})"
        case ArrayCall(function, args):
            return f"{function}({', '.join(map(show, args))})"
        case BlockCount():
            rule = "density" if expr.density else "count"
            limit = str(expr.threshold)
            limit += f" / {expr.denominator}" if expr.denominator != 1 else ""
            lengths = f"{ex.show(expr.nq)} x {ex.show(expr.nk)}"
            over = "" if lengths == "nq x nk" else f" over {lengths}"
            return (
                f"blocks({{ q -> k : {ex.show(expr.predicate)} }}, {expr.block_q}, {expr.block_k},"
                f" {rule} {expr.op} {limit}){over}"
            )
