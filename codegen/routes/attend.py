"""Routed plan -> torch source of the CPU executor of what its routes select, both ways."""

from __future__ import annotations

from attnc.codegen.route_shapes import count_text
from attnc.codegen.routes.selections import cells_text
from attnc.codegen.tile_test import host_dialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Space
from attnc.compiler.ir.route import Grain, Route
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.route_plan import CPU_RATES, fixed_form, unit_tokens

LIBRARIES = (
    "walks_cpu.py", "attend_cpu.py", "attend_cpu_backward.py", "members_cpu.py", "scores.py"
)  # fmt: skip


def emit_attend(plan: RoutedPlan) -> str:
    """Print ``_cpu_routed_forward`` and ``_cpu_routed_backward``; it calls into ``LIBRARIES``.

    ``_cpu_routed_forward(q, k, v, scale, selections, inputs) -> (out, lse)``, of selected pairs
    alone; ``_cpu_routed_backward(q, k, v, out, lse, grad_out, grad_lse, scale, selections, inputs,
    needs) -> (dq, dk, dv, [gradients of the selections' tensors])``, given the results of all
    pairs.
    """
    out = Writer()
    _emit_rule(out, plan)
    members = [route for route in plan.routed.routes if route.emit == "members"]
    if members:
        (route,) = members
        _emit_members(out, route)
    else:
        _emit_relations(out, plan)
    return out.text().rstrip()


def _emit_rule(out: Writer, plan: RoutedPlan) -> None:
    rest = plan.rest
    base = plan.routed.base
    keep = "None"
    if rest != ex.TRUE:
        dialect = host_dialect({i.name: i.kind for i in base.inputs}, base.heads)
        with out.block("def _counts(q, k, h, b, nq, nk, data):"):
            out.line('"""Whether a selected pair counts: not attended anyway, and not masked."""')
            if base.kv_heads:
                out.line("h = h // (data['heads'] // data['kv_heads'])")
            out.line(f"return {dialect.boolean(rest)}")
        out.line()
        out.line()
        keep = "_counts"
    by_head = "h" in ex.free_vars(rest) or any("h" in ex.free_vars(r) for r in ex.reads(rest))
    out.line(
        f"_RULE = _Rule(keep={keep}, past_free={plan.past_free}, itself={plan.itself}, "
        f"ahead={plan.ahead}, by_head={by_head}, bottom_right={base.align == 'bottom-right'})"
    )
    out.line()
    out.line()


def _emit_relations(out: Writer, plan: RoutedPlan) -> None:
    base = plan.routed.base
    with out.block("def _relations(q, k, selections, inputs):"):
        out.line('"""Return what the routes selected, in their units."""')
        out.line("nq, nk = q.shape[2], k.shape[2]")
        names = [f"selected_{n}" for n in range(len(plan.routed.routes))]
        out.line(f"{', '.join(names)}{',' if len(names) == 1 else ''} = selections")
        with out.block("return ["):
            for name, route in zip(names, plan.routed.routes, strict=True):
                queries = _units(route.query, "nq", base.query_space, route.widen)
                keys = _units(
                    Grain(kind="token") if route.emit == "slashes" else route.key, "nk",
                    base.key_space, 1,
                )
                walk = _form(route, name, plan.head_dim + plan.value_dim)
                out.line(f"_Relation({walk}, *{name}, {queries}, {keys}),")
        out.line("]")
    out.line()
    out.line()
    with out.block("def _cpu_routed_forward(q, k, v, scale, selections, inputs):"):
        out.line('"""Attend to what is selected. Shape: out ``[B, Hq, Q, Dv]``, lse likewise."""')
        out.line("relations = _relations(q, k, selections, inputs)")
        out.line("return _routed_attention(relations, _RULE, q, k, v, scale, inputs)")
    out.line()
    out.line()
    _backward_head(out)
    with out.indented():
        out.line('"""Return dq, dk, dv; selections get no gradients."""')
        out.line("relations = _relations(q, k, selections, inputs)")
        out.line("given = (q, k, v, out, lse, grad_out, grad_lse, scale)")
        out.line("grads = _routed_gradients(relations, _RULE, *given, inputs)")
        out.line("return *grads, [None for tensors in selections for _ in tensors]")


def _emit_members(out: Writer, route: Route) -> None:
    score = "score" if route.combine == "score" else "None"
    took = "(queries, keys, score)," if route.combine == "score" else "(queries, keys),"
    with out.block("def _cpu_routed_forward(q, k, v, scale, selections, inputs):"):
        out.line('"""Attend among members. Shape: out ``[B, Hq, Q, Dv]``; lse says nothing."""')
        out.line(f"{took} = selections")
        out.line(f"given = (queries, keys, {score}, _RULE, q, k, v)")
        out.line("return _member_attention(*given, scale, inputs)")
    out.line()
    out.line()
    _backward_head(out)
    with out.indented():
        out.line('"""Return dq, dk, dv, and what the tensors of the selection get."""')
        out.line(f"{took} = selections")
        out.line(f"given = (queries, keys, {score}, _RULE, q, k, v)")
        out.line("*grads, learned = _member_gradients(*given, grad_out, scale, inputs)")
        out.line(f"return *grads, [None, None{', learned' if score == 'score' else ''}]")


def _backward_head(out: Writer) -> None:
    out.line("def _cpu_routed_backward(")
    with out.indented():
        out.line("q, k, v, out, lse, grad_out, grad_lse, scale, selections, inputs, needs")
    out.line("):")


def _form(route: Route, name: str, channels: int) -> str:
    """Return which loop walks what a route selected, as text: a name, or what decides at a call."""
    form = fixed_form(route)
    if form is not None:
        return f'"{form}"'
    rates = CPU_RATES
    return (
        f"_form({name}, q, k, {unit_tokens(route)}, {channels}, call={rates.call}, "
        f"merge={rates.merge}, pair={rates.pair}, copy={rates.copy})"
    )


def _units(grain: Grain, length: str, space: Space | None, widen: int) -> str:
    if grain.kind == "cell":
        return f"_cells_of({cells_text(grain, space)}, {count_text(grain, length, space)})"
    if grain.kind == "last":
        return f"_Units(1, max({length}, 1), {length})"
    tokens = (grain.sizes[0] if grain.kind == "block" else 1) * widen
    return f"_Units(-(-{length} // {tokens}), {tokens}, {length})"
