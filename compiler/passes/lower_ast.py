"""Checked AST + parameter values -> pattern IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

from attnc.compiler.binding import Value, show_value
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir import score as sc
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_expr import ExprLowering
from attnc.compiler.passes.lower_set import Lowered
from attnc.compiler.passes.lower_table import to_real
from attnc.compiler.passes.lower_use import UseLowering
from attnc.compiler.passes.lower_value import Item, LowerError, Num, Real
from attnc.dsl import nodes as ast
from attnc.dsl.check_base import MAX_FOUND
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.resolve import Named
from attnc.dsl.source import Span

_SOURCE_LINES = 200  # a longer file does not go whole into the header of a written module


def lower(
    named: Named[Any],
    given: Mapping[str, Value],
    exprs: ExprLowering | None = None,
    *,
    layer: int | None = None,
) -> pat.Pattern:
    """Lower a checked pattern, attention or score with its parameter values (the file's too).

        pattern p(w: int) = causal & { q -> k : q - k < w }      w = 8
        -->  Intersection(Where(k <= q), Where(q - k < 8))

    ``given`` may also hold sizes that are known: symbolic extents and sides of inputs, by name.
    ``exprs`` counts the work that was done. A score by itself keeps all pairs.

    Raises: CompileError with one diagnostic per set that cannot be lowered; [ATT0213] where a size
    must be known and is not, [ATT0512] where the pattern has layers and none is chosen.
    """
    exprs = exprs or ExprLowering()
    lowering = Lowering(exprs, layer)
    exprs.around = lowering
    return lowering.run(named, given)


@dataclass
class _Softmax:
    """What an attention or a score says beside its mask."""

    score: sc.RealExpr | None = None
    sink: sc.RealExpr | None = None
    scale: Fraction | None = None


class Lowering(UseLowering):
    """Lowers one item; what goes wrong gathers in ``found``, one diagnostic per set."""

    def run(self, named: Named[Any], given: Mapping[str, Value]) -> pat.Pattern:
        item = named.item
        params = (*named.module.params, *item.params)
        names = {p.name for p in params if isinstance(p, ast.Param)}
        self.known = {n: v for n, v in given.items() if n not in names and isinstance(v, int)}
        values = {n: v for n, v in given.items() if n in names}
        shared = self.file_values(named.module, values, {})
        frame = None
        try:
            frame = self.frame(named, {}, shared, values, {}, None)
        except LowerError as error:
            self.found.append(error.diagnostic)
        lowered, softmax = Lowered(pat.Where(ex.FALSE), None), _Softmax()
        if frame is not None and not self.found:
            try:
                lowered, softmax = self._whole(frame.env, item, frame)
            except LowerError as error:
                self.found.append(error.diagnostic)
        if not self.found and _is_larger(lowered.node, lv.MAX_SIZE):
            self.found.append(
                Diagnostic(
                    code="ATT0312", message=f"pattern `{item.name}` is too large",
                    span=item.name_span,
                    label=f"written out it has more than {lv.MAX_SIZE} parts",
                    help="a pattern that is used twice counts twice; simplify the formula",
                )
            )  # fmt: skip
        if self.found or frame is None:
            raise CompileError(_distinct(self.found))
        return self._pattern(item.name, item.span, frame.values, lowered, softmax)

    def _pattern(
        self,
        name: str,
        span: Span,
        values: Mapping[str, Value],
        lowered: Lowered,
        softmax: _Softmax,
    ) -> pat.Pattern:
        scores = [s for s in (softmax.score, softmax.sink) if s is not None]
        query, key = lowered.sides
        roots = {r.name for r in ex.reads(pat.predicate(lowered.node))}
        roots = roots.union(*map(sc.reads, scores))
        for side in lowered.sides:
            if side is not None:
                roots |= {r.name for r in ex.reads(side.length.expr)}
        inputs = self.inputs.used(frozenset(roots), frozenset(self.sizes))
        extents = tuple(n for n in self.spaces.extents if n in roots or query or key)
        return pat.Pattern(
            name=name,
            heads=lowered.heads,
            body=lowered.node,
            kv_heads=lowered.kv and lowered.heads is not None,
            query_space=None if query is None else query.space,
            key_space=None if key is None else key.space,
            extents=extents,
            inputs=inputs,
            score=softmax.score,
            sink=softmax.sink,
            scale=softmax.scale,
            params=tuple((n, show_value(v)) for n, v in values.items()),
            source_text=_as_written(span),
            warnings=tuple(self.exprs.notes),
        )

    def _whole(self, env: Env, item: Any, frame: Any) -> tuple[Lowered, _Softmax]:
        """Lower an item with all it says."""
        match item:
            case ast.PatternDef():
                return self.body(frame, item.body), _Softmax()
            case ast.Score():
                value, heads = self.scored(frame)
                softmax = _Softmax(score=self._real(value, item.body.span))
                sides = (frame.query, frame.key)
                return Lowered(pat.Where(ex.TRUE), heads, sides=sides), softmax
        assert isinstance(item, ast.Attention)
        lowered = self.body(frame, item.over)
        scope = replace(env, scoring=True).bind("dot", Real(sc.Dot(), 1))
        if item.heads is not None:
            scope = scope.bind(item.heads.var, scope.head)
        self.heads_seen, self.sides_seen = [], []
        with self.exprs.written_out("h"):
            score = self._real(self.exprs.value(item.score, scope), item.score.span)
            sink = None
            if item.sink is not None:
                sink = self._real(self.exprs.value(item.sink, scope), item.sink.span)
        parts = [lowered, *(Lowered(lowered.node, h) for h in self.heads_seen)]
        heads = self.same_heads(parts, item.span)
        own = frame.heads if item.heads is not None and (frame.heads or 1) > 1 else None
        sides = lowered.sides
        for seen in self.sides_seen:
            sides = self.same_sides(sides, seen, item.span)
        whole = replace(lowered, heads=own or heads, sides=sides)
        scale = None
        if item.scale is not None:
            factor = self.exprs.constant(self.exprs.value(item.scale, env), item.scale.span)
            assert isinstance(factor, int | float | Fraction)
            scale = Fraction(factor)
        return whole, _Softmax(None if score == sc.Dot() else score, sink, scale)

    def _real(self, value: Item, span: Span) -> sc.RealExpr:
        assert isinstance(value, Num | Real), "checked: a score is a number"
        return to_real(value, span).expr


def _as_written(span: Span) -> str:
    """Return the text a pattern stands in: the file, or the pattern alone out of a long one."""
    if span.source is None:
        return ""
    text = span.source.text
    return text if text.count("\n") <= _SOURCE_LINES else text[span.start : span.stop]


def _is_larger(node: pat.Node, limit: int) -> bool:
    """Return whether a set has over ``limit`` parts; a shared part counts at every use."""
    stack: list[pat.Node] = [node]
    count = 0
    while stack and count <= limit:
        count += 1
        match stack.pop():
            case pat.Where(predicate):
                count += sum(1 for _ in islice(ex.walk(predicate), limit + 1))
            case pat.Union(parts) | pat.Intersection(parts):
                stack += parts
            case pat.Difference(left, right):
                stack += (left, right)
            case pat.Complement(part):
                stack.append(part)
    return count > limit


def _distinct(found: list[Diagnostic]) -> list[Diagnostic]:
    """Return one diagnostic per place and code: a pattern that is used twice fails once."""
    seen: dict[tuple[object, ...], Diagnostic] = {}
    for d in found:
        source = d.span.source.name if d.span.source else d.message
        seen.setdefault((d.code, source, d.span.start, d.span.stop), d)
    return list(seen.values())[:MAX_FOUND]
