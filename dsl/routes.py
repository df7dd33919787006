"""What a route may say, clause by clause, and where a route may stand in a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.source import Span

Argument = Literal["int", "rational", "input", "flip"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands in the brackets behind a word: kinds in order, those that may be left out by
    name; ``more``: the last kind any number of times."""

    kinds: tuple[Argument, ...] = ()
    named: tuple[tuple[str, Argument], ...] = ()
    more: bool = False


_PLAIN = Shape()
_INT = Shape(("int",))
_GRAINS = {"token": _PLAIN, "block": _INT, "cell": Shape(("int",), more=True)}
_REPS = {
    "id": _PLAIN, "unit": _PLAIN, "mean": _PLAIN, "max": _PLAIN, "min": _PLAIN,
    "fold": Shape(("int",), more=False), "flipped_fold": _INT, "centered_mean": _PLAIN,
    "external": Shape(("input",)),
}  # fmt: skip

WORDS: Mapping[str, Mapping[str, Shape]] = {
    "queries": {
        **_GRAINS, "last": _INT, "head": _PLAIN, "cluster": Shape(("int", "input")),
    },
    "keys": _GRAINS,
    "query": _REPS,
    "key": {
        **_REPS, "minmax": _PLAIN, "mean_windows": Shape(("int", "int")),
        "external_windows": Shape(("input", "int", "int")),
    },
    "score": {
        "dot": _PLAIN, "scaled": _PLAIN, "bound": _PLAIN, "relu_heads": Shape(("input",)),
        "external": Shape(("input",)),
    },
    "visible": {word: _PLAIN for word in ("past", "completed", "reached", "all")},
    "norm": {word: _PLAIN for word in ("none", "softmax", "minmax")},
    "compete": {word: _PLAIN for word in ("row", "column", "head", "all")},
    "select": {
        "top": _INT, "ratio": Shape(("rational",), (("least", "int"),)),
        "mass": Shape(("rational",), (("least", "int"),)),
        "below_mass": Shape(("rational",), (("least", "int"),)),
        "above": Shape(("rational",)), "above_input": Shape(("input",)),
        "near": Shape(("rational",)),
    },
    "emit": {word: _PLAIN for word in ("units", "slashes", "members")},
    "overflow": {"error": _PLAIN, "drop": _PLAIN},
    "combine": {"mean": _PLAIN, "score": _PLAIN},
    "grad": {"none": _PLAIN, "weight": _PLAIN},
}  # fmt: skip
"""The words of each clause whose value is one word, and what each takes."""

OVER: Mapping[str, Shape] = {
    **{word: _PLAIN for word in ("cell", "query", "diagonal", "group", "heads", "overlap")},
    "smooth": _INT,
}
KEPT: Mapping[str, Shape] = {"own": _PLAIN, "first": _INT, "recent": _INT, "nearest": _INT}
NUMBERS = ("widen", "refresh")
"""Clauses whose value is a whole number."""

CLAUSES = (*WORDS, "reduce", "keep", "capacity", "causal", *NUMBERS)
NEEDED = ("queries", "keys", "select")


@dataclass(frozen=True, slots=True)
class Form:
    """A word and what stands in its brackets: ``block(64)``, ``ratio(1/3, least: 2)``."""

    name: str
    args: tuple[ast.Expr, ...]
    named: tuple[tuple[str, ast.Expr], ...]
    span: Span


def form(expr: ast.Expr) -> Form | None:
    """Return an expression as a word with arguments, None where it is none."""
    match expr:
        case ast.Name(name=name):
            return Form(name, (), (), expr.span)
        case ast.Call(function=name, args=args):
            names = expr.names or (None,) * len(args)
            plain = tuple(a for n, a in zip(names, args, strict=True) if n is None)
            named = tuple((n, a) for n, a in zip(names, args, strict=True) if n is not None)
            return Form(name, plain, named, expr.span)
        case _:
            return None


def parts(expr: ast.Expr) -> tuple[ast.Expr, ...]:
    """Return the items of a list, or the expression alone."""
    return expr.items if isinstance(expr, ast.ListOf) else (expr,)


def factored(expr: ast.Expr) -> tuple[ast.Expr, str, ast.Expr | None]:
    """Return a score, the sign behind it ("*", "/" or "") and the number behind that."""
    if isinstance(expr, ast.Binary) and expr.op in ("*", "/"):
        return expr.left, expr.op, expr.right
    return expr, "", None


# ------------------------------------------------------------------------------- routes in sets


@dataclass(frozen=True, slots=True)
class Split:
    """``base & (kept | route 1 | ...)``; ``base`` and ``kept`` may be empty: all pairs, no pair."""

    base: tuple[ast.Set, ...]
    kept: tuple[ast.Set, ...]
    routes: tuple[ast.Reference, ...]


class Misplaced(Exception):
    """A route stands where no route can."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.diagnostic = Diagnostic(
            code="ATT0332", message="a route stands where it cannot", span=span,
            label="what a route selects is only known at the call",
            help="write the set as `base & (kept | route)`: a set of pairs that all meet, and in "
            "brackets what is always attended, and routes",
        )  # fmt: skip


def split(node: ast.Set, is_route: Callable[[str], bool]) -> Split | None:
    """Return a set in its normal form, None where no route is in it. Raises: Misplaced."""
    if not any(isinstance(n, ast.Reference) and is_route(n.name) for n in ast.walk(node)):
        return None
    return _split(node, is_route)


def _split(node: ast.Set, is_route: Callable[[str], bool]) -> Split:
    def has(part: ast.Set) -> bool:
        return any(isinstance(n, ast.Reference) and is_route(n.name) for n in ast.walk(part))

    match node:
        case ast.Reference() if is_route(node.name):
            return Split((), (), (node,))
        case ast.SetIntersection(parts=both):
            routed = [part for part in both if has(part)]
            if len(routed) > 1:
                raise Misplaced(routed[1].span)
            inner = _split(routed[0], is_route)
            plain = tuple(part for part in both if part is not routed[0])
            return Split((*plain, *inner.base), inner.kept, inner.routes)
        case ast.SetUnion(parts=either):
            routes = []
            for part in either:
                if has(part):
                    if not (isinstance(part, ast.Reference) and is_route(part.name)):
                        raise Misplaced(part.span)
                    routes.append(part)
            return Split((), tuple(p for p in either if not has(p)), tuple(routes))
        case _:
            raise Misplaced(node.span)


def every_pair(keep: bool) -> ast.Builder:
    """Return the set of all pairs, or of none."""
    return ast.Builder(query="q", key="k", head=None, predicate=ast.Bool(value=keep))


def base_of(found: Split) -> ast.Set:
    """Return the set that all attended pairs meet."""
    if not found.base:
        return every_pair(True)
    return found.base[0] if len(found.base) == 1 else ast.SetIntersection(parts=found.base)


def kept_of(found: Split) -> ast.Set:
    """Return the set of pairs that are attended at any rate."""
    if not found.kept:
        return every_pair(False)
    kept = found.kept[0] if len(found.kept) == 1 else ast.SetUnion(parts=found.kept)
    return ast.SetIntersection(parts=(*found.base, kept)) if found.base else kept


# ---------------------------------------------------------------------------------- gated sums


def terms(expr: ast.Expr) -> tuple[ast.Expr, ...]:
    """Return the terms of a sum."""
    found: list[ast.Expr] = []
    stack = [expr]
    while stack:
        here = stack.pop()
        if isinstance(here, ast.Binary) and here.op == "+":
            stack += [here.right, here.left]
        else:
            found.append(here)
    return tuple(found)


def factors(expr: ast.Expr) -> tuple[ast.Expr, ...]:
    """Return the factors of a product."""
    found: list[ast.Expr] = []
    stack = [expr]
    while stack:
        here = stack.pop()
        if isinstance(here, ast.Binary) and here.op == "*":
            stack += [here.right, here.left]
        else:
            found.append(here)
    return tuple(found)
