"""Checked AST + parameter values -> pattern IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

from attnc.compiler.binding import Value, bind, fit, show_value
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_expr import (
    UNROLL_LIMIT,
    Env,
    ExprLowering,
    NeedsUnroll,
    from_item,
    to_item,
)
from attnc.compiler.passes.lower_value import Item, LowerError
from attnc.dsl import nodes as ast
from attnc.dsl.check import arguments
from attnc.dsl.check_expr import MAX_FOUND
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.resolve import Definition, Module
from attnc.dsl.source import Span

MAX_REFERENCE_DEPTH = 64
_SOURCE_LINES = 200  # a longer file does not go whole into the header of a written module
_EMPTY, _ALL = pat.Where(ex.FALSE), pat.Where(ex.TRUE)
_LENGTHS: Env = {
    "n": lv.var("nk", lv.POSITION_BOUND),
    "nk": lv.var("nk", lv.POSITION_BOUND),
    "nq": lv.var("nq", lv.POSITION_BOUND),
}


def lower(
    definition: Definition, given: Mapping[str, Value], exprs: ExprLowering | None = None
) -> pat.Pattern:
    """Lower a checked pattern with its parameter values (the file's and its own).

        pattern p(w: int) = causal & { q -> k : q - k < w }      w = 8
        -->  Intersection(Where(k <= q), Where(q - k < 8))

    ``exprs`` counts the work that was done.

    Raises: CompileError with one diagnostic per set that cannot be lowered.
    """
    return LowerAst(exprs or ExprLowering()).run(definition, given)


@dataclass(frozen=True, slots=True)
class _Lowered:
    """A lowered set and the head count it needs, None where every head is the same."""

    node: pat.Node
    heads: int | None


@dataclass
class _Frame:
    """One pattern being expanded: its module, its values, its heads, and who asked for it."""

    definition: Definition
    file_values: dict[str, Value]
    values: dict[str, Value]
    env: dict[str, Item]
    heads: int | None
    above: tuple[ast.Reference, ...]


class LowerAst:
    """Lowers one pattern; what goes wrong gathers in ``found``, one diagnostic per set."""

    def __init__(self, exprs: ExprLowering) -> None:
        self.found: list[Diagnostic] = []
        self.exprs = exprs
        self.done: dict[tuple[object, ...], _Lowered] = {}
        self.spent: dict[tuple[object, ...], int] = {}

    def run(self, definition: Definition, given: Mapping[str, Value]) -> pat.Pattern:
        shared = self.file_values(definition.module, given, {})
        frame = self.frame(definition, given, shared, {}, ())
        lowered = _Lowered(_EMPTY, None)
        if not self.found:
            lowered = self.body(frame)
        if not self.found and _is_larger(lowered.node, lv.MAX_SIZE):
            self.found.append(
                Diagnostic(
                    code="ATT0312",
                    message=f"pattern `{definition.pattern.name}` is too large",
                    span=definition.pattern.name_span,
                    label=f"written out it has more than {lv.MAX_SIZE} parts",
                    help="a pattern that is used twice counts twice; simplify the formula",
                )
            )
        if self.found:
            raise CompileError(_distinct(self.found))
        params = tuple((n, show_value(v)) for n, v in frame.values.items())
        source = _as_written(definition.pattern.span)
        return pat.Pattern(
            name=definition.pattern.name,
            heads=lowered.heads,
            body=lowered.node,
            params=params,
            source_text=source,
        )

    # ------------------------------------------------------------------------ parameter values

    def evaluate(self, expr: ast.Expr, values: Mapping[str, Value]) -> Value:
        """Return the value of a compile-time expression."""
        used = {n.name for n in ast.walk(expr) if isinstance(n, ast.Name) and n.name in values}
        return from_item(self.exprs.value(expr, {n: to_item(values[n]) for n in used}))

    def file_values(
        self, module: Module, given: Mapping[str, Value], spans: Mapping[str, Span]
    ) -> dict[str, Value]:
        try:
            return bind(module.params, given, {}, self.evaluate, self.found.append, spans)
        except LowerError as error:
            self.found.append(error.diagnostic)
            return {}

    def frame(
        self,
        definition: Definition,
        given: Mapping[str, Value],
        shared: dict[str, Value],
        spans: Mapping[str, Span],
        above: tuple[ast.Reference, ...],
    ) -> _Frame:
        """Return the scope of a pattern's body, its head count evaluated."""
        before = len(self.found)
        values: dict[str, Value] = dict(shared)
        heads: int | None = None
        try:
            self.exprs.spend(len(values), definition.pattern.name_span)
            values = bind(
                definition.pattern.params, given, shared, self.evaluate, self.found.append, spans
            )
            clause = definition.pattern.heads or definition.module.heads
            if clause is not None and len(self.found) == before:
                count = self.evaluate(clause.count, values)
                assert isinstance(count, int)
                heads = count
                if not 1 <= heads <= UNROLL_LIMIT:
                    raise LowerError(
                        "ATT0303", f"the number of heads is {heads}", clause.count.span,
                        help=f"a pattern has 1 to {UNROLL_LIMIT} heads",
                    )  # fmt: skip
        except LowerError as error:
            self.found.append(error.diagnostic)
        if above:
            self.found[before:] = [_used_by(d, above) for d in self.found[before:]]
        env: dict[str, Item] = {**_LENGTHS, **{n: to_item(v) for n, v in values.items()}}
        return _Frame(definition, shared, values, env, heads, above)

    # ---------------------------------------------------------------------------------- sets

    def body(self, frame: _Frame) -> _Lowered:
        """Lower a pattern's set. A `heads` clause of its own fixes the head count."""
        lowered = self.set(frame.definition.pattern.body, frame)
        clause = frame.definition.pattern.heads
        if clause is None or frame.heads is None:
            return lowered
        if lowered.heads not in (None, frame.heads):
            self.found.append(
                Diagnostic(
                    code="ATT0309",
                    message=f"`{frame.definition.pattern.name}` has {frame.heads} "
                    f"head{'s' * (frame.heads != 1)} and uses a pattern of {lowered.heads}",
                    span=clause.span,
                    help="give both the same number of heads",
                )
            )
        # One head serves every head: a mask for h = 0 alone says nothing about the others.
        return replace(lowered, heads=frame.heads if frame.heads > 1 else None)

    def set(self, part: ast.Set, frame: _Frame) -> _Lowered:
        match part:
            case ast.Builder():
                try:
                    return self.builder(part, frame)
                except LowerError as error:
                    self.found.append(_used_by(error.diagnostic, frame.above))
                    return _Lowered(_EMPTY, None)
            case ast.Reference():
                return self.reference(part, frame)
            case ast.SetUnion(parts=parts):
                return self.junction(pat.Union, [self.set(p, frame) for p in parts], part)
            case ast.SetIntersection(parts=parts):
                return self.junction(pat.Intersection, [self.set(p, frame) for p in parts], part)
            case ast.SetDifference():
                # a - b - c is a - (b | c): as flat as it is long
                taken: list[ast.Set] = []
                first: ast.Set = part
                while isinstance(first, ast.SetDifference):
                    taken.append(first.right)
                    first = first.left
                left = self.set(first, frame)
                rest = [self.set(t, frame) for t in reversed(taken)]
                right = self.junction(pat.Union, rest, part)
                heads = self.same_heads([left, right], part)
                if right.node == _EMPTY:
                    return _Lowered(left.node, heads)
                return _Lowered(pat.Difference(left.node, right.node), heads)
            case ast.SetComplement(part=inner):
                lowered = self.set(inner, frame)
                return _Lowered(pat.Complement(lowered.node), lowered.heads)
            case ast.SetIf():
                try:
                    chosen = self.exprs.truth(part.condition, frame.env).expr
                except LowerError as error:
                    self.found.append(_used_by(error.diagnostic, frame.above))
                    return _Lowered(_EMPTY, None)
                assert isinstance(chosen, ex.Truth), "checked: known at compile time"
                return self.set(part.then if chosen.value else part.otherwise, frame)

    def junction(
        self, kind: type[pat.Union] | type[pat.Intersection], parts: list[_Lowered], where: ast.Set
    ) -> _Lowered:
        """Join sets; a part that changes nothing is left out."""
        heads = self.same_heads(parts, where)
        neutral = _EMPTY if kind is pat.Union else _ALL
        kept = [p.node for p in parts if p.node != neutral]
        if len(kept) > 1:
            return _Lowered(kind(tuple(kept)), heads)
        return _Lowered(kept[0] if kept else neutral, heads)

    def same_heads(self, parts: list[_Lowered], where: ast.Set) -> int | None:
        counts = list(dict.fromkeys(p.heads for p in parts if p.heads is not None))
        if len(counts) > 1:
            self.found.append(
                Diagnostic(
                    code="ATT0309",
                    message=f"a set of {counts[0]} heads meets a set of {counts[1]} heads",
                    span=where.span,
                    help="give both patterns the same number of heads",
                )
            )
        return counts[0] if counts else None

    def reference(self, reference: ast.Reference, frame: _Frame) -> _Lowered:
        """Expand a pattern in place, once for each list of argument values."""
        caller = frame.definition.module
        target = caller.find(reference.name)
        assert target is not None, "checked: the name is known"
        above = (*frame.above, reference)
        try:
            if len(above) > MAX_REFERENCE_DEPTH:
                raise LowerError(
                    "ATT0312", f"patterns use each other more than {MAX_REFERENCE_DEPTH} deep",
                    reference.span, help="write some of them out in one set",
                )  # fmt: skip
            given, spans = self.given(reference, target, frame)
        except LowerError as error:
            self.found.append(_used_by(error.diagnostic, frame.above))
            return _Lowered(_EMPTY, None)
        inside = target.module is caller
        before = len(self.found)
        shared = frame.file_values if inside else self.file_values(target.module, given, spans)
        inner = self.frame(target, given, shared, spans, above)
        if len(self.found) > before:
            return _Lowered(_EMPTY, None)
        key = (id(target), tuple((n, type(v), v) for n, v in inner.values.items()))
        if key not in self.done:
            start = self.exprs.work
            self.done[key] = self.body(inner)
            self.spent[key] = self.exprs.work - start
        else:
            # A set that is used twice is written out twice by everything that comes later.
            try:
                self.exprs.spend(self.spent[key], reference.span)
            except LowerError as error:
                self.found.append(_used_by(error.diagnostic, frame.above))
        return self.done[key]

    def given(
        self, reference: ast.Reference, target: Definition, frame: _Frame
    ) -> tuple[dict[str, Value], dict[str, Span]]:
        params = arguments(target, frame.definition.module)
        own = target.pattern.params
        given: dict[str, Value] = {}
        spans: dict[str, Span] = {}
        for position, argument in enumerate(reference.args):
            param = params[argument.name] if argument.name else own[position]
            given[param.name] = fit(
                from_item(self.exprs.value(argument.value, frame.env)), param.type
            )
            spans[param.name] = argument.value.span
        return given, spans

    # ------------------------------------------------------------------------------- builders

    def builder(self, builder: ast.Builder, frame: _Frame) -> _Lowered:
        env: dict[str, Item] = {
            **frame.env,
            builder.query: lv.var("q", lv.POSITION_BOUND),
            builder.key: lv.var("k", lv.POSITION_BOUND),
        }
        if builder.head is None:
            return _Lowered(pat.Where(self.exprs.truth(builder.predicate, env).expr), None)
        heads = frame.heads
        assert heads is not None, "checked: a head is bound where heads are declared"
        if heads == 1:
            only = self.exprs.truth(builder.predicate, {**env, builder.head: lv.const(0)})
            return _Lowered(pat.Where(only.expr), None)
        try:
            with self.exprs.written_out("h"):
                each = self.exprs.truth(
                    builder.predicate, {**env, builder.head: lv.var("h", heads - 1)}
                )
            return _Lowered(pat.Where(each.expr), heads)
        except NeedsUnroll:
            return _Lowered(pat.Where(self.per_head(builder, env, heads)), heads)

    def per_head(self, builder: ast.Builder, env: Env, heads: int) -> ex.BoolExpr:
        """Write a predicate out head by head; heads with one predicate share it.

            (q - k) mod rate[h] == 0,  rate = [1, 2, 2]
            -->  h == 0 or h >= 1 and (q - k) mod 2 == 0
        """
        assert builder.head is not None
        groups: dict[ex.BoolExpr, list[int]] = {}
        for head in range(heads):
            part = self.exprs.truth(builder.predicate, {**env, builder.head: lv.const(head)})
            groups.setdefault(part.expr, []).append(head)
        if len(groups) == 1:
            return next(iter(groups))
        return ex.or_(*(ex.and_(_heads_test(hs, heads), part) for part, hs in groups.items()))


def _as_written(span: Span) -> str:
    """Return the text a pattern stands in: the file, or the pattern alone out of a long one."""
    if span.source is None:
        return ""
    text = span.source.text
    return text if text.count("\n") <= _SOURCE_LINES else text[span.start : span.stop]


def _heads_test(listed: list[int], heads: int) -> ex.BoolExpr:
    """Return the test for ``h in listed``: two comparisons for a run, else a list."""
    h = ex.Var("h")
    first, last = listed[0], listed[-1]
    if len(listed) == 1 or last - first + 1 > len(listed):
        return ex.member(h, listed)
    low = ex.TRUE if first == 0 else ex.compare(">=", h, ex.Const(first))
    high = ex.TRUE if last == heads - 1 else ex.compare("<=", h, ex.Const(last))
    return ex.and_(low, high)


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


def _used_by(diagnostic: Diagnostic, above: tuple[ast.Reference, ...]) -> Diagnostic:
    """Add where a pattern was used, nearest first: its arguments may be what is wrong."""
    notes = tuple(
        f"in `{r.name}` as used at {r.span.source.name}:{r.span.line}:{r.span.column}"
        for r in reversed(above[-3:])
        if r.span.source is not None
    )
    return replace(diagnostic, notes=(*diagnostic.notes, *notes))


def _distinct(found: list[Diagnostic]) -> list[Diagnostic]:
    """Return one diagnostic per place and code: a pattern that is used twice fails once."""
    seen: dict[tuple[object, ...], Diagnostic] = {}
    for d in found:
        source = d.span.source.name if d.span.source else d.message
        seen.setdefault((d.code, source, d.span.start, d.span.stop), d)
    return list(seen.values())[:MAX_FOUND]
