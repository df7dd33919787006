"""pattern IR -> its block mask, and whether the tiles are told apart at the call.

They are where the predicate reads data or leaves linear arithmetic, and where isl gives up on
segments, on a grid or on a sequence of fixed length: there, tests of the tiles at given lengths
find what the projection did not.
"""

from __future__ import annotations

from functools import lru_cache

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import DataTiles
from attnc.compiler.passes import classify as cl
from attnc.compiler.passes.eliminate import eliminate
from attnc.compiler.passes.hull import candidates, core
from attnc.compiler.passes.sides import KEY, QUERY, split
from attnc.compiler.passes.tile_test import MAX_BOX

MAX_SHOWN = 100
"""Longest sub-expression that a note shows, in characters."""


@lru_cache(maxsize=256)
def tiles_of(
    pattern: Pattern, tiling: Tiling, *, tested: bool = False
) -> tuple[BlockMask, DataTiles | None, tuple[str, ...]]:
    """Return the block mask, how its waiting tiles are tested (None: no need), and why.

    Units: ``tiling`` in tokens. ``tested``: test tiles in any case.
    """
    predicate = eliminate(pattern).predicate
    if ex.is_static(predicate):
        mask = cl.classify(pattern, tiling)
        if not tested and not (mask.widened and _is_laid_out(pattern)):
            return mask, None, ()
        reason = "tiles are tested once their lengths are known: isl gave up on them"
    else:
        reason = f"tiles are told apart at the call: {_outside(predicate)}"
    mask = candidates(pattern, tiling)
    if not mask.pieces:
        return mask, None, ()
    loose = _loose(pattern, predicate)
    data = DataTiles(predicate=predicate, core=core(predicate), refine=loose is not None)
    if loose is None:
        return mask, data, (reason,)
    return mask, data, (
        reason,
        f"tiles that bounds leave open are evaluated pair by pair: `{_short(loose)}` depends on"
        " query and key at once",
    )


def _is_laid_out(pattern: Pattern) -> bool:
    """Whether a side has coordinates of several axes or segments, or both a fixed length."""
    spaces = (s for s in (pattern.query_space, pattern.key_space) if s is not None)
    return None not in pattern.lengths or any(
        len(s.segments) > 1 or len(s.segments[0].extents) > 1 for s in spaces
    )


def _outside(predicate: ex.BoolExpr) -> str:
    """Say which sub-expression isl cannot hold, the first and innermost one."""
    for node in ex.walk(predicate):
        if ex.is_static(node) or not all(map(ex.is_static, ex.children(node))):
            continue
        text = f"`{_short(node)}`"
        match node:
            case ex.Read(_, ()):
                return f"{text} is a number known then"
            case ex.Read(name):
                return f"{text} reads `{name}`"
            case ex.Mul():
                return f"{text} is a product"
            case _:
                return f"{text} divides by a number known then"
    raise AssertionError(f"static: {predicate}")


def _loose(pattern: Pattern, predicate: ex.BoolExpr) -> ex.Expr | None:
    """Return a sub-expression whose bounds in a tile say little, None: there is none.

    Comparisons of query terms with key terms keep their bounds, under sums, ``div``, ``min``,
    ``max`` and ``abs``; a truth value is counted in its box of the input.
    """
    truths = {one.name for one in pattern.inputs if one.kind == "bool"}
    sides = split(predicate)
    for node in ex.walk(sides.test):
        if _is_loose(node, truths):
            terms = {f"{QUERY}{i}": term for i, term in enumerate(sides.query)}
            terms |= {f"{KEY}{i}": term for i, term in enumerate(sides.key)}
            found: ex.Expr = ex.substitute(node, terms)
            return found
    return None


def _is_loose(node: ex.Expr, truths: set[str]) -> bool:
    match node:
        case ex.Read(name, index):
            chosen = [part for part in index if _sides(part)]
            boxed = name in truths and len(chosen) <= MAX_BOX
            return len(_sides(node)) == 2 and not boxed
        case ex.Add(parts):  # the bounds of its parts do not go together
            return sum(len(_sides(part)) == 2 for part in parts) > 1
        case ex.Mod() | ex.Rem() | ex.Mul() | ex.IsPow2() | ex.Member():
            return len(_sides(node)) == 2
        case ex.Quot(_, by):
            return len(_sides(node)) == 2 and bool(_sides(by))
        case _:
            return False


def _sides(expr: ex.Expr) -> set[str]:
    names = ex.free_vars(expr)
    return {start for start in (QUERY, KEY) if any(name.startswith(start) for name in names)}


def _short(expr: ex.Expr) -> str:
    text = ex.show(expr)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
