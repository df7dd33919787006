"""Route IR -> the same, or why its parts do not go together."""

from __future__ import annotations

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern, Space
from attnc.compiler.ir.route import Near, Rep, Route, TopK, TopP
from attnc.compiler.passes.lower_value import LowerError
from attnc.dsl.source import Span

LARGEST = 2**30
"""Units, budgets and distances are below it, as lengths are."""


def verify_route(route: Route, base: Pattern, has_kept: bool, span: Span) -> None:
    """Check that grains, representations, score, reductions and selection fit each other.

    Raises: LowerError[ATT0333] with what does not go with what, [ATT0335] where `causal: true` is
    stated and not so.
    """
    for message, help in (
        _sizes(route) or _grains(route, base) or _representations(route) or _reductions(route)
        or _selection(route, has_kept)
    ):  # fmt: skip
        raise LowerError("ATT0333", f"route `{route.name}`: {message}", span, help=help)
    if route.causal and not route.is_causal:
        raise LowerError(
            "ATT0335", f"route `{route.name}` is said to be causal, and is not", span,
            label="what it selects for a query depends on later tokens",
            help="let `queries` be `token`, `visible` be `past` or `completed`, and each row "
            "compete alone; or write `causal: false`",
        )  # fmt: skip


_Found = list[tuple[str, str]]


def _sizes(route: Route) -> _Found:
    numbers = {
        "a size of `queries`": route.query.sizes, "a size of `keys`": route.key.sizes,
        "`widen`": (route.widen,), "`refresh`": (route.refresh,),
        "a fold": (route.query_rep.size, route.key_rep.size),
        "a window": (*(route.query_rep.window or ()), *(route.key_rep.window or ())),
        "what is kept": tuple(keep.count for keep in route.keep),
        "a budget": (route.select.count,) if isinstance(route.select, TopK) else (),
        "a capacity": (route.capacity,) if isinstance(route.capacity, int) else (),
    }  # fmt: skip
    for what, values in numbers.items():
        for value in values:
            if not 1 <= value <= LARGEST:
                return [(f"{what} is {value}", "write a number from 1 to 2**30")]
    if isinstance(route.select, TopP) and not 0 <= route.select.mass <= 1:
        return [(f"a mass is {route.select.mass}", "write a share from 0 to 1")]
    share = getattr(route.select, "share", None)
    if share is not None and not 0 <= share <= 1:
        return [(f"a ratio is {share}", "write a share from 0 to 1")]
    if route.capacity is not None and not isinstance(route.capacity, int):
        if not 0 < route.capacity <= 1:
            return [(f"a capacity is {route.capacity}", "write a share above 0, up to 1")]
    return []


def _axes(space: Space | None) -> int:
    return len(space.segments[0].extents) if space is not None and len(space.segments) == 1 else 0


def _grains(route: Route, base: Pattern) -> _Found:
    for side, grain, space in (
        ("queries", route.query, base.query_space), ("keys", route.key, base.key_space)
    ):
        if grain.kind != "cell":
            continue
        if _axes(space) != len(grain.sizes):
            return [(
                f"`{side}` are cells of {len(grain.sizes)} axes, on a space of {_axes(space)}",
                "give a cell one side for each axis, and the attention one grid: `on grid(...)`",
            )]  # fmt: skip
        if space is not None and not _is_fixed(space):
            return [(
                "cells of a grid whose extents wait for the call",
                "give the extents as numbers or parameters",
            )]  # fmt: skip
    members = route.query.kind in ("cluster", "head")
    if members != (route.emit == "members"):
        word = "members" if members else "units"
        return [(
            f"`queries: {route.query.kind}` and `emit: {route.emit}` do not go together",
            f"write `emit: {word}`",
        )]  # fmt: skip
    if members and (route.compete != "column" or not isinstance(route.select, TopK)):
        return [(
            "centroids and heads choose tokens, a number of them each",
            "write `compete: column` and `select: top(...)`",
        )]  # fmt: skip
    if route.query.kind == "head" and route.score.kind != "external":
        return [("a head chooses tokens by a router", "write `score: external(router)`")]
    if members and (route.reduce or route.norm != "none" or route.key.kind != "token"):
        return [("members are tokens, chosen by plain scores", "remove `reduce` and `norm`")]
    return []


def _is_fixed(space: Space) -> bool:
    return all(isinstance(e, ex.Const) for grid in space.segments for e in grid.extents)


def _fine(rep: Rep) -> bool:
    """Whether a representation has another grain than its unit."""
    return rep.kind in ("id", "unit", "fold") or rep.window is not None


def _representations(route: Route) -> _Found:
    query, key, kind = route.query_rep, route.key_rep, route.score.kind
    if (key.kind == "minmax") != (kind == "bound"):
        return [("`bound` and `minmax` go together", "write `key: minmax` with `score: bound`")]
    if kind == "relu_heads":
        tokens = route.query.kind == route.key.kind == "token"
        if not tokens or {query.kind, key.kind} != {"external"} or route.reduce:
            return [(
                "`relu_heads` compares tokens by vectors from outside",
                "write `queries: token`, `keys: token`, `query: external(...)` and `key: "
                "external(...)`",
            )]  # fmt: skip
    if (query.kind == "fold") != (key.kind == "fold") or query.size != key.size:
        return [("both sides fold alike, or none", "give `query` and `key` the same fold")]
    for side, rep, grain in (("query", query, route.query), ("key", key, route.key)):
        if rep.kind == "fold" and (grain.kind != "block" or grain.sizes[0] % rep.size):
            return [(f"the fold of `{side}` does not divide its blocks",
                     "choose blocks that are a multiple of the fold")]  # fmt: skip
        if rep.window is not None:
            wide, stride = rep.window
            if grain.kind != "block" or wide % stride or grain.sizes[0] % stride:
                return [("the stride of windows does not divide windows and blocks",
                         "choose windows and blocks that are multiples of the stride")]  # fmt: skip
        pooled = rep.kind in ("mean", "max", "min", "minmax") and rep.window is None
        if pooled and grain.kind in ("last", "cluster", "head"):
            return [(f"`{side}` is a mean over {grain.kind}", f"write `{side}: id`")]
    return []


def _reductions(route: Route) -> _Found:
    over = [step.over for step in route.reduce]
    if len(set(over)) != len(over):
        return [("one reduction is written twice", "remove one")]
    if route.emit == "members" or route.score.kind == "external":
        wrong = set(over) - {"group", "heads", "smooth"}
        return [(f"nothing is there to reduce over `{min(wrong)}`", "remove it")] if wrong else []
    for side, rep, grain in (
        ("queries", route.query_rep, route.query), ("keys", route.key_rep, route.key)
    ):
        folded = rep.kind == "fold" and grain.sizes == (rep.size,)
        coarse = grain.kind == "cell" or (grain.kind == "block" and not folded)
        if coarse and _fine(rep) and rep.window is None and "cell" not in over:
            return [(
                f"scores are finer than the units of `{side}`",
                "reduce them, `reduce: sum(cell)`, or pool the tokens: `mean`",
            )]  # fmt: skip
        if grain.kind == "cell" and _fine(rep):
            return [(f"the cells of `{side}` are compared token by token",
                     "pool their tokens: `mean`, `max` or `min`")]  # fmt: skip
    if (route.key_rep.window is not None) != ("overlap" in over):
        return [("windows and `overlap` go together", "write `reduce: sum(overlap)`")]
    if (route.query.kind == "last") != bool({"query", "diagonal"} & set(over)):
        return [(
            "`last` queries speak for all, by `query` or `diagonal`",
            "write `queries: last(...)` with `reduce: sum(query)` or `sum(diagonal)`",
        )]  # fmt: skip
    if ("diagonal" in over) != (route.emit == "slashes"):
        return [("`diagonal` and `slashes` go together", "write `emit: slashes`")]
    if any(step.over == "smooth" and step.width % 2 == 0 for step in route.reduce):
        return [("a running mean has an odd width", "write `smooth(5)`")]
    return []


def _selection(route: Route, has_kept: bool) -> _Found:
    nonnegative = route.norm != "none" or route.score.kind == "external"
    if isinstance(route.select, TopP) and not nonnegative:
        return [("a mass needs scores that are not negative", "write `norm: softmax`")]
    if isinstance(route.select, Near) and (not has_kept or route.heads != "query"):
        return [(
            "`near` compares with the best key that is attended anyway",
            "keep some: `base & (kept | route)`, and let each head select",
        )]  # fmt: skip
    if route.compete == "column" and route.emit != "members" and route.query.kind == "last":
        return [("`last` has one row", "remove `compete`")]
    if route.widen > 1 and (route.compete != "row" or route.query.kind in ("last", "cell")):
        return [("`widen` joins rows of blocks that select alone", "remove `widen`")]
    kinds = {"slashes": {"nearest"}, "members": {"first"}}.get(
        route.emit, {"own", "first", "recent"}
    )
    for keep in route.keep:
        if keep.what not in kinds:
            listed = ", ".join(f"`{k}`" for k in sorted(kinds))
            return [(f"{route.emit} cannot keep `{keep.what}`", f"keep one of {listed}")]
    if route.emit == "members" and any(not keep.counted for keep in route.keep):
        return [("members keep the first tokens within their budget", "write `counted(...)`")]
    if route.key.kind == "cell" and any(k.what == "own" for k in route.keep) and (
        route.query.kind not in ("token", "cell")
        or (route.query.kind == "cell" and route.query.sizes != route.key.sizes)
    ):
        return [("a query unit has no own cell", "let `queries` be `token`, or cells as of keys")]
    if (route.combine == "score" or route.grad == "weight") and (
        route.emit != "members" or route.query.kind != "head"
    ):
        return [("only the members of heads are weighted by a score",
                 "remove `combine: score` and `grad: weight`")]  # fmt: skip
    return []
