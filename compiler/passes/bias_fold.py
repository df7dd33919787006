"""Pattern IR -> its score for a tile of queries, without what no key changes.

    dot + slope[h] * (k - q) + a[q]   -->   dot + slope[h] * (k - q0), and
                                            slope[h] * (q0 - q) + a[q] once a row

A term f is *separable* where ``f(q, k) - f(q0, k)`` depends on no key: proved on the linear form of
its positions, after absolute values whose sign the mask settles are taken off. Then a softmax over
keys is the same with ``f(q0, k)``, one number for each key of a tile, and the difference joins the
log-sum-exp of the row. ``q0`` is the query in the middle of the tile, so positions are subtracted
as integers, and small, before anything is rounded: at a distance of a million tokens as at one.

Error: a score that was ``x`` is held as ``x + d`` with ``|d| <= spread``, what the terms move by
over half a tile of queries. Rounding in float32 then moves it by up to ``spread * 2**-24`` more,
and its weight by the same share of itself. ``FREE`` bounds the spread so that this is an eighth of
an ulp of a half type, or an ulp of float32, of which the error rule grants eight. Slopes that the
call brings have no bound, so their terms are added pair by pair; so is everything in the backward.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import BiasFold, Channels
from attnc.compiler.passes.bands import distances
from attnc.compiler.passes.tiles import DType

Bias: TypeAlias = Literal["auto", "add", "fold"]
"""How separable terms of a score are added: by cost, pair by pair, or key by key."""

ORIGIN = "q0"
"""The variable of the query that folded terms are taken at."""

FREE: dict[DType, float] = {"fp32": 2.0, "bf16": 8192.0, "fp16": 1024.0}
"""Largest spread of folded terms over half a tile: see above."""

MAX_CHANNELS = 4
"""On a CPU a channel costs about what adding a mask does, which has to be made besides."""

SHARE = 8
"""The question for a sign gets one part in so many of isl's budget."""


def read_bias(bias: object) -> Bias:
    """Return a way to add biases.

    Raises: ValueError.
    """
    for known in ("auto", "add", "fold"):
        if bias == known:
            return known
    raise ValueError(f"bias must be 'auto', 'add' or 'fold', got {bias!r}")


def fold_bias(pattern: Pattern, rows: int, dtype: DType, bias: Bias) -> BiasFold | None:
    """Fold what is separable in a score, for tiles of ``rows`` queries; None: add pair by pair.

    "auto" folds where fewer operations a pair are left.
    Raises: ValueError where "fold" finds nothing that may be folded, and says why.
    """
    if bias == "add":
        return None
    why = "it has no score"
    if pattern.score is not None:
        found = _fold(pattern, pattern.score, rows, FREE[dtype])
        if isinstance(found, BiasFold):
            fewer = pair_terms(found.score) < pair_terms(pattern.score)
            return found if fewer or bias == "fold" else None
        why = found
    if bias == "fold":
        raise ValueError(f"bias 'fold': nothing of `{pattern.name}` can be folded: {why}")
    return None


def by_distance(pattern: Pattern) -> Literal["", "score", "all"]:
    """Say what depends on ``q - k`` alone (and the head): the score's terms, the mask too, nothing.

    ``slope[h] * (k - q)`` and ``table[h][min(q - k, 9)]`` do: no key is left after ``q = k + d``.
    """
    if pattern.score is None:
        return ""
    parts = _addends(pattern.score)
    added = [part for part in parts if part != sc.Dot()]
    if len(added) != len(parts) - 1:
        return ""
    distance = {"q": ex.add(ex.Var("k"), ex.Var("d"))}
    for part in added:
        if any(isinstance(node, sc.Dot) for node in sc.walk(part)):
            return ""
        if sc.free_vars(sc.substitute(part, distance)) & {"q", "k"}:
            return ""
    try:
        with sets.budget(share=SHARE):
            return "score" if distances(pattern.predicate) is None else "all"
    except sets.OverBudget:
        return "score"


def channels(pattern: Pattern) -> Channels | None:
    """Write the terms of a score as products of one of the query and one of the key, if they are.

        dot + a[h][q] * b[k] + c[k]   -->   a[h][q] against b[k], 1 against c[k]

    None where a term is no such product, where they are more than ``MAX_CHANNELS``, or where the
    distance says it all, which is cheaper, or beside a sink. Terms of the query alone leave the
    softmax.
    """
    if pattern.score is None or pattern.sink is not None or by_distance(pattern):
        return None
    parts = _addends(pattern.score)
    added = [part for part in parts if part != sc.Dot()]
    if len(added) != len(parts) - 1:
        return None
    pairs: dict[sc.RealExpr, sc.RealExpr] = {}  # what a query has, and the sum of what meets it
    rest: list[sc.RealExpr] = []
    for part in added:
        if not sc.free_vars(part) & {"k"} and _sides(part) != frozenset("qk"):
            rest.append(part)
            continue
        of_query: sc.RealExpr = sc.RealConst(1.0)
        of_key: sc.RealExpr = sc.RealConst(1.0)
        for factor in _factors(part):
            used = sc.free_vars(factor)
            if "k" not in used and _sides(factor) != frozenset("qk"):
                of_query = sc.real_mul(of_query, factor)
            elif not used & {"q", "h"} and _sides(factor) != frozenset("qk"):
                of_key = sc.real_mul(of_key, factor)
            else:
                return None
        met = pairs.get(of_query)
        pairs[of_query] = of_key if met is None else sc.real_add(met, of_key)
    if not 0 < len(pairs) <= MAX_CHANNELS:
        return None
    row = sc.real_add(*rest) if rest else sc.RealConst(0.0)
    return Channels(of_query=tuple(pairs), of_key=tuple(pairs.values()), of_row=row)


def _factors(expr: sc.RealExpr) -> tuple[sc.RealExpr, ...]:
    match expr:
        case sc.RealMul(left, right):
            return (*_factors(left), *_factors(right))
        case sc.RealDiv(left, right):
            return (*_factors(left), sc.real_div(sc.RealConst(1.0), right))
    return (expr,)


def pair_terms(score: sc.RealExpr) -> int:
    """Count the operations of a score that are done for each pair of a tile.

    What one side decides alone is worked out once for a row or a column, and the first addition to
    the product is one instruction with its scale.
    """
    if len(_sides(score)) < 2 or score == sc.Dot():
        return 0
    match score:
        case sc.RealAdd():
            parts = _addends(score)
            sides = [_sides(part) for part in parts]
            alone = {side for side in sides if len(side) == 1}
            joins = sum(len(side) == 2 for side in sides) + len(alone) - 1
            fused = 1 if sc.Dot() in parts else 0
            return max(joins - fused, 0) + sum(map(pair_terms, parts))
        case sc.FromInt(part):
            return 1 + _pair_nodes(part)
        case sc.RealRead(_, index):
            return 1 + sum(map(_pair_nodes, index))
        case sc.RealSelect(condition, then, otherwise):
            return 1 + _pair_nodes(condition) + pair_terms(then) + pair_terms(otherwise)
        case sc.RealMul(left, right) | sc.RealDiv(left, right):
            return 1 + pair_terms(left) + pair_terms(right)
        case sc.RealCall(_, args):
            return 1 + sum(map(pair_terms, args))
        case _:
            return 0


def _sides(score: sc.RealExpr) -> frozenset[str]:
    """Return which of query and key a score depends on; the product depends on both."""
    if any(isinstance(node, sc.Dot) for node in sc.walk(score)):
        return frozenset("qk")
    return frozenset(name[0] for name in sc.free_vars(score) if name in ("q", "k"))


def _pair_nodes(part: ex.Expr) -> int:
    """Count the operations of an integer or truth value that depend on both sides."""
    return sum(
        {"q", "k"} <= ex.free_vars(node) for node in ex.walk(part) if ex.children(node)
    )


def _fold(
    pattern: Pattern, score: sc.RealExpr, rows: int, free: float
) -> BiasFold | str:
    """Return the folded score, or why there is none."""
    parts = _addends(score)
    if pattern.sink is not None:
        return "a sink stands beside the scores of a row"
    if parts.count(sc.Dot()) != 1 or any(
        part != sc.Dot() and isinstance(node, sc.Dot) for part in parts for node in sc.walk(part)
    ):
        return "its terms are not added to the scaled product alone"
    kept: list[sc.RealExpr] = []
    rest: list[sc.RealExpr] = []
    found = total = 0.0
    for part in parts:
        if not sc.free_vars(part) & {"q"} or part == sc.Dot():
            kept.append(part)
            continue
        if "k" not in sc.free_vars(part):
            rest.append(part)
            continue
        plain = _without_abs(part, pattern)
        moved = _difference(plain)
        if moved is None:
            kept.append(part)
            continue
        found = _spread(moved, pattern.heads or 1, rows // 2)
        if total + found > free:
            kept.append(part)
            continue
        total += found
        kept.append(sc.substitute(plain, {"q": ex.Var(ORIGIN)}))
        rest.append(moved)
    if not rest:
        if found > free:
            return f"half a tile of queries moves a term by {found:.3g}, more than {free:g}"
        return "no term is separable"
    return BiasFold(score=sc.real_add(*kept), of_row=sc.real_add(*rest))


def _addends(score: sc.RealExpr) -> tuple[sc.RealExpr, ...]:
    if not isinstance(score, sc.RealAdd):
        return (score,)
    return tuple(one for part in score.parts for one in _addends(part))


def _difference(expr: sc.RealExpr) -> sc.RealExpr | None:
    """Return ``f(q) - f(q0)``, None where it depends on the key (or is not seen not to)."""
    used = sc.free_vars(expr)
    if "q" not in used:
        return sc.RealConst(0.0)
    match expr:
        case sc.FromInt(part):
            moved = ex.sub(part, ex.substitute(part, {"q": ex.Var(ORIGIN)}))
            return None if "k" in ex.free_vars(moved) else sc.from_int(moved)
        case sc.RealAdd(parts):
            several = [_difference(part) for part in parts]
            known = [part for part in several if part is not None]
            return sc.real_add(*known) if len(known) == len(several) else None
        case sc.RealMul(left, right):
            for factor, other in ((left, right), (right, left)):
                if not sc.free_vars(factor) & {"q", "k"}:
                    inner = _difference(other)
                    return None if inner is None else sc.real_mul(factor, inner)
            return None
        case sc.RealDiv(left, right) if not sc.free_vars(right) & {"q", "k"}:
            inner = _difference(left)
            return None if inner is None else sc.real_div(inner, right)
        case sc.RealSelect(condition, then, otherwise) if not (
            ex.free_vars(condition) & {"q", "k"}
        ):
            one, other_ = _difference(then), _difference(otherwise)
            if one is None or other_ is None:
                return None
            return sc.real_select(condition, one, other_)
    return None


def _spread(moved: sc.RealExpr, heads: int, half: int) -> float:
    """Return the largest difference within ``half`` a tile; infinite where nothing bounds it."""
    import numpy as np

    shifted = sc.substitute(moved, {"q": ex.add(ex.Var(ORIGIN), ex.Var("t"))})
    if sc.reads(shifted) or not sc.free_vars(shifted) <= {"t", "h"}:
        return np.inf
    at = {"t": np.arange(-half, half + 1), "h": np.arange(heads)[:, None]}
    return float(np.max(np.abs(sc.evaluate(shifted, at))))


def _without_abs(expr: sc.RealExpr, pattern: Pattern) -> sc.RealExpr:
    """Take absolute values off that the mask settles: kept pairs are what counts."""
    match expr:
        case sc.FromInt(part):
            return sc.from_int(_signed(part, pattern))
        case sc.RealCall("abs", (sc.FromInt(part),)):
            plain = _signed(ex.absolute(part), pattern)
            return expr if isinstance(plain, ex.Abs) else sc.from_int(plain)
        case sc.RealAdd(parts):
            return sc.real_add(*(_without_abs(part, pattern) for part in parts))
        case sc.RealMul(left, right):
            return sc.real_mul(_without_abs(left, pattern), _without_abs(right, pattern))
        case sc.RealDiv(left, right):
            return sc.real_div(_without_abs(left, pattern), right)
    return expr


def _signed(part: ex.IntExpr, pattern: Pattern) -> ex.IntExpr:
    match part:
        case ex.Abs(inner):
            for plain in (inner, ex.scale(-1, inner)):
                if _never_negative(plain, pattern.predicate):
                    return plain
        case ex.Add(parts):
            return ex.add(*(_signed(one, pattern) for one in parts))
        case ex.Scale(factor, inner):
            return ex.scale(factor, _signed(inner, pattern))
    return part


def _never_negative(part: ex.IntExpr, body: ex.BoolExpr) -> bool:
    """Whether a number of q and k is 0 or more at all kept pairs, by what isl can hold of them."""
    conjuncts = body.parts if isinstance(body, ex.And) else (body,)
    known = [c for c in conjuncts if ex.is_static(c) and ex.free_vars(c) <= {"q", "k"}]
    test = ex.compare(">=", part, ex.ZERO)
    if not known or not ex.is_static(test) or not ex.free_vars(test) <= {"q", "k"}:
        return False
    try:
        with sets.budget(share=SHARE):
            pairs = sets.pair_map(ex.and_(*known), [], "1 = 1")
            return bool(sets.within(pairs, sets.pair_map(test, [], "1 = 1")))
    except sets.OverBudget:
        return False
