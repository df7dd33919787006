"""Routes and sets that hold them -> routed IR: values put in, and what must go together checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from attnc.compiler.binding import Value, bind
from attnc.compiler.ir.route import (
    Above,
    Grain,
    Keep,
    Near,
    Ratio,
    Reduce,
    Rep,
    Route,
    Score,
    Select,
    TopK,
    TopP,
)
from attnc.compiler.ir.routed import AnyAttention, Combined, Routed, RouteInput, Term
from attnc.compiler.passes.lower_ast import Lowering, lower
from attnc.compiler.passes.lower_expr import ExprLowering
from attnc.compiler.passes.lower_frame import plain_value
from attnc.compiler.passes.lower_value import LowerError
from attnc.compiler.passes.route_rules import verify_route
from attnc.dsl import nodes as ast
from attnc.dsl import routes
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.resolve import Module, Named

Number = Callable[[ast.Expr], Any]


def holds_routes(named: Named[Any]) -> bool:
    """Whether an item is, or holds, what is decided by content."""
    match named.item:
        case ast.Combine():
            return True
        case ast.PatternDef(body=body) | ast.Attention(over=body):
            return routes.split(body, named.module.is_route) is not None
        case _:
            return False


def lower_routed(
    named: Named[Any], given: Mapping[str, Value], *, layer: int | None = None
) -> AnyAttention:
    """Lower a checked item with its parameter values.

        attention a = softmax(dot, over: causal & (sink(4) | chosen(64)))
        -->  Routed(base=causal, kept=causal & sink(4), routes=(chosen with 64,))

    Raises: CompileError where values do not fit, or clauses do not go together.
    """
    item = named.item
    if isinstance(item, ast.Combine):
        return _combined(named, given, layer)
    body = item.body if isinstance(item, ast.PatternDef) else item.over
    found = routes.split(body, named.module.is_route)
    if found is None:
        return lower(named, given, layer=layer)
    base = lower(_with_set(named, routes.base_of(found)), given, layer=layer)
    kept = lower(_with_set(named, routes.kept_of(found)), given, layer=layer)
    kept = replace(kept, inputs=base.inputs, extents=base.extents)
    lowering = _Routes(ExprLowering(), layer)
    lowering.exprs.around = lowering
    lowered: list[Route] = []
    inputs: list[RouteInput] = []
    try:
        scope = lowering.caller(_with_set(named, routes.base_of(found)), given)
        for reference in found.routes:
            route, own = lowering.route(reference, named.module, scope, given)
            route = replace(route, name=_unused(route.name, [r.name for r in lowered]))
            verify_route(route, base, bool(found.kept), reference.span)
            lowered.append(route)
            inputs += (replace(one, route=route.name) for one in own)
        if any(r.emit == "members" for r in lowered) and (len(lowered) > 1 or found.kept):
            raise LowerError(
                "ATT0333", "a route with members stands beside other keys", found.routes[0].span,
                help="members have a softmax of their own: write `base & route`, nothing else",
            )  # fmt: skip
    except LowerError as error:
        raise CompileError([error.diagnostic]) from error
    if lowering.found:
        raise CompileError(lowering.found)
    distinct = {one.name: one for one in reversed(inputs)}
    return Routed(
        base=base, kept=kept, routes=tuple(lowered), inputs=tuple(reversed(distinct.values()))
    )


def _with_set(named: Named[Any], body: ast.Set) -> Named[Any]:
    item = named.item
    over = {"body": body} if isinstance(item, ast.PatternDef) else {"over": body}
    return Named(replace(item, **over), named.module)


def _unused(name: str, taken: list[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    return unique


# ---------------------------------------------------------------------------------- gated sums


def _combined(named: Named[Any], given: Mapping[str, Value], layer: int | None) -> Combined:
    item: ast.Combine = named.item
    module = named.module
    lowering = _Routes(ExprLowering(), layer)
    lowering.exprs.around = lowering
    names = {p.name for p in (*module.params, *item.params)}
    shared = lowering.file_values(module, {n: v for n, v in given.items() if n in names}, {})
    own = {n: v for n, v in given.items() if n in {p.name for p in item.params}}
    params = tuple(p for p in item.params if isinstance(p, ast.Param))
    values = bind(
        params, own, shared, lambda e, v: lowering.evaluate(module, e, v), lowering.found.append, {}
    )
    if lowering.found:
        raise CompileError(lowering.found)
    terms = []
    for expr in routes.terms(item.body):
        gate, stream, held = None, None, None
        for factor in routes.factors(expr):
            word = routes.form(factor)
            assert word is not None, "checked"
            if word.name == "over_keys" and len(word.args) == 2:
                name = word.args[1]
                assert isinstance(name, ast.Name), "checked"
                stream, word = name.name, routes.form(word.args[0])
                assert word is not None, "checked"
            if module.sort(word.name) in ("attention", "pattern"):
                held = word
            else:
                gate = word.name
        assert held is not None, "checked"
        target: Named[Any] | None = module.find(held.name) or module.find_attention(held.name)
        assert target is not None, "checked"
        own_params = [p for p in target.item.params if isinstance(p, ast.Param)]
        args = {p.name: e for p, e in zip(own_params, held.args, strict=False)} | dict(held.named)
        found = {n: lowering.evaluate(module, e, {**shared, **values}) for n, e in args.items()}
        if target.module is module:
            found = {**{p.name: shared[p.name] for p in module.params}, **found}
        attention = lower_routed(target, found, layer=layer)
        if isinstance(attention, Combined):
            raise CompileError([_nested(item)])
        terms.append(Term(attention=attention, gate=gate, keys=stream))
    return Combined(name=item.name, terms=tuple(terms))


def _nested(item: ast.Combine) -> Diagnostic:
    return Diagnostic(
        code="ATT0333", message="a sum of attentions stands in another one", span=item.name_span,
        help="write out the terms of the inner one",
    )  # fmt: skip


# -------------------------------------------------------------------------------------- routes


class _Routes(Lowering):
    """Lowers routes; numbers are evaluated with the values of their parameters."""

    def caller(self, named: Named[Any], given: Mapping[str, Value]) -> Any:
        """Return the scope in which arguments of routes are evaluated."""
        params = (*named.module.params, *named.item.params)
        names = {p.name for p in params if isinstance(p, ast.Param)}
        self.known = {
            n: v for n, v in given.items() if n not in names and isinstance(v, int)
        }
        values = {n: v for n, v in given.items() if n in names}
        shared = self.file_values(named.module, values, {})
        frame = self.frame(named, {}, shared, values, {}, None)
        if frame is None:
            raise CompileError(self.found)
        return frame.env

    def route(
        self, reference: ast.Reference, caller: Module, scope: Any, given: Mapping[str, Value]
    ) -> tuple[Route, list[RouteInput]]:
        """Return a route with the arguments of a reference, and what it reads."""
        target = caller.find_route(reference.name)
        assert target is not None, "checked: the route is known"
        written = [(a.name, a.value) for a in reference.args]
        own = {n: plain_value(v) for n, v in self.given(target, written, scope)}
        same = {n: v for n, v in given.items() if target.module is caller}
        names = {p.name for p in target.module.params}
        shared = self.file_values(
            target.module, {n: v for n, v in same.items() if n in names}, {}
        )
        params = tuple(p for p in target.item.params if isinstance(p, ast.Param))
        values = bind(
            params, {n: v for n, v in own.items() if v is not None}, shared,
            lambda e, v: self.evaluate(target.module, e, v), self.found.append, {},
        )  # fmt: skip
        if self.found:
            raise CompileError(self.found)
        read = _Clauses(
            target.item, lambda e: self.evaluate(target.module, e, {**shared, **values})
        )
        return read.route(), read.inputs


class _Clauses:
    """Reads the clauses of one route; ``number`` evaluates what is known at compile time."""

    def __init__(self, item: ast.Route, number: Number) -> None:
        self.item, self.number = item, number
        self.said = {clause.name: clause.value for clause in item.clauses}
        self.inputs: list[RouteInput] = []

    def word(self, name: str, default: str) -> routes.Form:
        value = self.said.get(name)
        found = None if value is None else routes.form(value)
        return found or routes.Form(default, (), (), self.item.span)

    def reads(self, expr: ast.Expr, role: Any) -> str:
        assert isinstance(expr, ast.Name), "checked: it is a name"
        self.inputs.append(RouteInput(name=expr.name, route=self.item.name, role=role))
        return expr.name

    def grain(self, name: str) -> Grain:
        found = self.word(name, "token")
        kind: Any = found.name
        args = found.args
        if kind == "cluster":
            self.reads(args[1], "centroids")
            args = args[:1]
        return Grain(kind=kind, sizes=tuple(int(self.number(a)) for a in args))

    def rep(self, name: str) -> Rep:
        found = self.word(name, "id")
        role = "q rep" if name == "query" else "k rep"
        match found.name:
            case "fold" | "flipped_fold":
                size = int(self.number(found.args[0]))
                return Rep(kind="fold", size=size, flip=found.name == "flipped_fold")
            case "centered_mean":
                return Rep(kind="mean", center=True)
            case "external":
                return Rep(kind="external", input=self.reads(found.args[0], role))
            case "mean_windows":
                return Rep(kind="mean", window=self._window(found.args))
            case "external_windows":
                read = self.reads(found.args[0], role)
                return Rep(kind="external", input=read, window=self._window(found.args[1:]))
        kind: Any = found.name
        return Rep(kind=kind)

    def _window(self, args: tuple[ast.Expr, ...]) -> tuple[int, int]:
        tokens, stride = (int(self.number(a)) for a in args)
        return tokens, stride

    def score(self) -> Score:
        value, sign, factor = routes.factored(self.said.get("score", ast.Name(name="dot")))
        found = routes.form(value)
        assert found is not None, "checked: it is a word"
        kind: Any = "dot" if found.name == "scaled" else found.name
        scale: Any = "head_dim" if found.name == "scaled" else None
        divisor = 1
        if factor is not None:
            number = Fraction(self.number(factor))
            if sign == "/" and number.denominator == 1 and number > 0:
                divisor = int(number)
            elif found.name == "scaled":
                raise LowerError(
                    "ATT0333", "a scaled score has another factor", factor.span,
                    help="divide it by a whole number, or write `dot * number`",
                )  # fmt: skip
            else:
                scale = 1 / number if sign == "/" else number
        weights = self.reads(found.args[0], "weights") if kind == "relu_heads" else None
        given = self.reads(found.args[0], "score") if kind == "external" else None
        return Score(kind=kind, scale=scale, divisor=divisor, weights=weights, input=given)

    def select(self) -> Select:
        found = self.word("select", "")
        named = {n: self.number(e) for n, e in found.named}
        first = found.args[0]
        match found.name:
            case "top":
                return TopK(count=int(self.number(first)))
            case "ratio":
                return Ratio(share=Fraction(self.number(first)), least=int(named.get("least", 1)))
            case "mass" | "below_mass":
                return TopP(
                    mass=Fraction(self.number(first)),
                    crossing="in" if found.name == "mass" else "out",
                    least=int(named.get("least", 0)),
                )
            case "above":
                return Above(threshold=Fraction(self.number(first)))
            case "above_input":
                return Above(threshold=self.reads(first, "threshold"))
        return Near(difference=Fraction(self.number(first)))

    def reduce(self) -> tuple[Reduce, ...]:
        steps = []
        for part in routes.parts(self.said.get("reduce", ast.ListOf(items=()))):
            outer = routes.form(part)
            assert outer is not None, "checked"
            inner = routes.form(outer.args[0])
            assert inner is not None, "checked"
            width = int(self.number(inner.args[0])) if inner.args else 1
            op: Any = outer.name
            over: Any = inner.name
            steps.append(Reduce(over=over, op=op, width=width))
        return tuple(steps)

    def keep(self) -> tuple[Keep, ...]:
        found = []
        for part in routes.parts(self.said.get("keep", ast.ListOf(items=()))):
            outer = routes.form(part)
            assert outer is not None, "checked"
            for arg in outer.args:
                inner = routes.form(arg)
                assert inner is not None, "checked"
                what: Any = inner.name
                count = int(self.number(inner.args[0])) if inner.args else 1
                found.append(Keep(what=what, count=count, counted=outer.name == "counted"))
        return tuple(found)

    def capacity(self) -> int | Fraction | None:
        value = self.said.get("capacity")
        if value is None:
            return None
        held = routes.form(value)
        if held is not None and held.name == "share":
            return Fraction(self.number(held.args[0]))
        return int(self.number(value))

    def route(self) -> Route:
        item = self.item
        words: dict[str, Any] = {
            name: self.word(name, default).name
            for name, default in (
                ("visible", "all"), ("norm", "none"), ("compete", "row"), ("emit", "units"),
                ("overflow", "error"), ("combine", "mean"), ("grad", "none"),
            )
        }
        numbers: dict[str, Any] = {
            name: int(self.number(self.said[name])) for name in routes.NUMBERS if name in self.said
        }
        causal = self.said.get("causal")
        source = item.span.source
        text = "" if source is None else source.text[item.span.start : item.span.stop]
        return Route(
            name=item.name, query=self.grain("queries"), key=self.grain("keys"),
            query_rep=self.rep("query"), key_rep=self.rep("key"), score=self.score(),
            reduce=self.reduce(), select=self.select(), keep=self.keep(), capacity=self.capacity(),
            causal=causal.value if isinstance(causal, ast.Bool) else None, source_text=text,
            **words, **numbers,
        )
