"""route -> the shapes of its selection, and the torch source that works them out at a call."""

from __future__ import annotations

from fractions import Fraction

from attnc.codegen.predicate import HostDialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Space
from attnc.compiler.ir.route import Grain, Ratio, Route, TopK
from attnc.compiler.ir.routed import Routed


def selection_names(route: Route) -> tuple[str, ...]:
    """Return what the tensors of a route's selection are called, in order."""
    if route.emit == "members":
        scored = ("score",) if route.combine == "score" else ()
        return ("queries", "keys", *scored)
    return ("index", "count")


def emit_shapes(routed: Routed) -> str:
    """Print ``_shapes_of(route, q, k)``: shape and dtype of each tensor of a route's selection."""
    out = Writer()
    with out.block("def _shapes_of(route, q, k):"):
        out.line('"""Return shape and dtype of each tensor of a route\'s selection."""')
        out.line("batch, heads, nq = q.shape[:3]")
        out.line("kv_heads, nk = k.shape[1:3]")
        for route in routed.routes:
            with out.block(f'if route == "{route.name}":'):
                for line in _lines(route, routed):
                    out.line(line)
        out.line("raise AssertionError(route)")
    return out.text().rstrip()


def _lines(route: Route, routed: Routed) -> list[str]:
    heads = {"one": "1", "kv": "kv_heads", "query": "heads"}[route.heads]
    if route.emit == "members":
        sides = [(name, _members(route, length)) for name, length in (("q", "nq"), ("k", "nk"))]
        count = route.query.sizes[0] if route.query.kind == "cluster" else 1
        shapes = [f"((batch, {heads}, {count}, {width}), torch.int32)" for _, width in sides]
        if route.combine == "score":
            shapes.append(f"((batch, {heads}, {count}, {sides[0][1]}), exact)")
        exact = "exact = torch.float64 if q.dtype == torch.float64 else torch.float32"
        return [*([exact] if route.combine == "score" else []), f"return [{', '.join(shapes)}]"]
    rows = count_text(route.query, "nq", routed.base.query_space)
    if route.widen > 1:
        rows = f"-(-({rows}) // {route.widen})"
    units = count_text(route.key, "nk", routed.base.key_space)
    if route.emit == "slashes":
        units = "nk"
    return [
        f"rows, units = {rows}, {units}",
        f"room = {room_text(route)}",
        f"shape = (batch, {heads}, rows)",
        "return [((*shape, room), torch.int32), (shape, torch.int32)]",
    ]


def _members(route: Route, length: str) -> str:
    """Return how many tokens a centroid or a head chooses, as text."""
    if isinstance(route.select, TopK):
        return f"min({route.select.count}, {length})"
    raise AssertionError("members are chosen by top")


def count_text(grain: Grain, length: str, space: Space | None) -> str:
    """Return how many units a side has, as a formula of its length."""
    match grain.kind:
        case "token":
            return length
        case "block":
            return f"-(-{length} // {grain.sizes[0]})"
        case "cell":
            assert space is not None
            dialect = HostDialect({"nq": "nq", "nk": "nk"}, {})
            (grid,) = space.segments
            sides = [
                f"-(-{extent.value if isinstance(extent, ex.Const) else dialect.integer(extent)} "
                f"// {side})"
                for extent, side in zip(grid.extents, grain.sizes, strict=True)
            ]
            return " * ".join(sides)
        case _:
            return "1"


def room_text(route: Route) -> str:
    """Return ``Route.room`` as a formula of ``units``."""
    probe = 1 << 40
    most = route.room(probe)
    if isinstance(route.capacity, Fraction):
        share = route.capacity
        return f"min(-(-{share.numerator} * units // {share.denominator}), units)"
    if most < probe and not isinstance(route.select, Ratio):
        return f"min({most}, units)"
    plain = route.capacity is None and route.compete == "row" and route.widen == 1
    if plain and isinstance(route.select, Ratio):
        share, least = route.select.share, route.select.least
        more = sum(route.kept_units(keep) for keep in route.keep if not keep.counted)
        counted = sum(route.kept_units(keep) for keep in route.keep if keep.counted)
        chosen = f"max(units * {share.numerator} // {share.denominator}, {least})"
        return f"min(max({chosen} + {more}, {counted}), units)"
    return f"min({most}, units)" if most < probe else "units"
