"""Sets of the AST -> nodes of the pattern IR; references are expanded in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_blocks import rounded
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_expr import ExprLowering, NeedsUnroll
from attnc.compiler.passes.lower_frame import Frame, FrameLowering, plain_value, used_by
from attnc.compiler.passes.lower_space import Side, Stretch
from attnc.compiler.passes.lower_value import Chosen, Item, LowerError, Position
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.resolve import Named
from attnc.dsl.source import Span

MAX_REFERENCE_DEPTH = 64
_EMPTY, _ALL = pat.Where(ex.FALSE), pat.Where(ex.TRUE)
_Sides = tuple["Side | None", "Side | None"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered set, the head count it needs (None: all alike), and where its tokens stand.

    ``kv``: the heads are key/value heads.
    """

    node: pat.Node
    heads: int | None
    kv: bool = False
    sides: _Sides = (None, None)


class SetLowering(FrameLowering):
    """Lowers sets; ``heads_seen`` and ``sides_seen`` gather what expressions inside need."""

    def __init__(self, exprs: ExprLowering, layer: int | None) -> None:
        super().__init__(exprs, layer)
        self.done: dict[tuple[object, ...], Lowered] = {}
        self.spent: dict[tuple[object, ...], int] = {}
        self.heads_seen: list[int] = []
        self.sides_seen: list[_Sides] = []

    # ------------------------------------------------------------------------------------ sets

    def body(self, frame: Frame, body: ast.Set) -> Lowered:
        """Lower a pattern's set. A `heads` clause of its own fixes the head count."""
        lowered = self.set(body, frame, frame.env)
        sides = self.same_sides((frame.query, frame.key), lowered.sides, frame.item.name_span)
        lowered = replace(lowered, sides=sides)
        clause = frame.item.heads
        if clause is None or frame.heads is None:
            return lowered
        if lowered.heads not in (None, frame.heads):
            self.found.append(
                Diagnostic(
                    code="ATT0309",
                    message=f"`{frame.item.name}` has {frame.heads} "
                    f"head{'s' * (frame.heads != 1)} and uses a pattern of {lowered.heads}",
                    span=clause.span,
                    help="give both the same number of heads",
                )
            )
        if lowered.heads is not None and lowered.kv != clause.kv:
            self.found.append(_other_heads(clause.span))
        # One head serves every head: a mask for h = 0 alone says nothing about the others.
        heads = frame.heads if frame.heads > 1 else None
        return replace(lowered, heads=heads, kv=clause.kv)

    def set(self, part: ast.Set, frame: Frame, env: Env) -> Lowered:
        """Lower a set; a fault in it is reported, and it is empty."""
        try:
            return self._set(part, frame, env)
        except LowerError as error:
            self.found.append(used_by(error.diagnostic, env.above))
            return Lowered(_EMPTY, None)

    def _set(self, part: ast.Set, frame: Frame, env: Env) -> Lowered:
        match part:
            case ast.Builder():
                return self.builder(part, frame, env)
            case ast.Reference() | ast.SetIndex():
                return self.reference(part, env)
            case ast.SetUnion(parts=parts):
                return self.junction(pat.Union, [self.set(p, frame, env) for p in parts], part.span)
            case ast.SetIntersection(parts=parts):
                inside = [self.set(p, frame, env) for p in parts]
                return self.junction(pat.Intersection, inside, part.span)
            case ast.SetDifference():
                # a - b - c is a - (b | c): as flat as it is long
                taken: list[ast.Set] = []
                first: ast.Set = part
                while isinstance(first, ast.SetDifference):
                    taken.append(first.right)
                    first = first.left
                left = self.set(first, frame, env)
                rest = [self.set(t, frame, env) for t in reversed(taken)]
                right = self.junction(pat.Union, rest, part.span)
                both = self.joined([left, right], part.span)
                if right.node == _EMPTY:
                    return replace(both, node=left.node)
                return replace(both, node=pat.Difference(left.node, right.node))
            case ast.SetComplement(part=inner):
                lowered = self.set(inner, frame, env)
                return replace(lowered, node=pat.Complement(lowered.node))
            case ast.SetIf(condition=condition):
                chosen = self.exprs.constant(self.exprs.truth(condition, env), condition.span)
                return self.set(part.then if chosen else part.otherwise, frame, env)
            case ast.UnionOver(var=var, body=body):
                turns = self.exprs.turns(part.low, part.high, env)
                inside = [self.set(body, frame, env.bind(var, lv.const(t))) for t in turns]
                return self.junction(pat.Union, inside, part.span)
            case ast.Rounded():
                return rounded(self, part, frame, env)

    def junction(
        self, kind: type[pat.Union] | type[pat.Intersection], parts: list[Lowered], where: Span
    ) -> Lowered:
        """Join sets; a part that changes nothing is left out."""
        both = self.joined(parts, where)
        neutral = _EMPTY if kind is pat.Union else _ALL
        kept = [p.node for p in parts if p.node != neutral]
        if len(kept) > 1:
            return replace(both, node=kind(tuple(kept)))
        return replace(both, node=kept[0] if kept else neutral)

    def joined(self, parts: list[Lowered], where: Span) -> Lowered:
        """Return the heads and sides that sets have in common."""
        sides: _Sides = (None, None)
        for part in parts:
            sides = self.same_sides(sides, part.sides, where)
        heads = self.same_heads(parts, where)
        kinds = {p.kv for p in parts if p.heads is not None}
        if len(kinds) > 1:
            self.found.append(_other_heads(where))
        return Lowered(_EMPTY, heads, kinds == {True}, sides)

    def same_heads(self, parts: list[Lowered], where: Span) -> int | None:
        """Return the head count of sets that are joined."""
        counts = list(dict.fromkeys(p.heads for p in parts if p.heads is not None))
        if len(counts) > 1:
            self.found.append(
                Diagnostic(
                    code="ATT0309",
                    message=f"a set of {counts[0]} heads meets a set of {counts[1]} heads",
                    span=where,
                    help="give both patterns the same number of heads",
                )
            )
        return counts[0] if counts else None

    def same_sides(self, one: _Sides, other: _Sides, where: Span) -> _Sides:
        """Return where the tokens of sets stand that are joined; spaces may differ in names."""
        for a, b in zip(one, other, strict=True):
            if a is not None and b is not None and _shape(a) != _shape(b):
                self.found.append(
                    Diagnostic(
                        code="ATT0317", message="patterns of different spaces meet", span=where,
                        notes=(f"one stands on {_show(a)}", f"the other on {_show(b)}"),
                        help="give both the same space: equal extents, in the same order",
                    )
                )  # fmt: skip
        return one[0] or other[0], one[1] or other[1]

    # ------------------------------------------------------------------------------ references

    def reference(self, reference: ast.PatternValue, env: Env) -> Lowered:
        """Expand a pattern in place, once for each list of argument values."""
        chosen = self.choose(reference, env)
        link = reference if isinstance(reference, ast.Reference) else ast.Reference(
            name=chosen.definition.pattern.name, args=(), span=reference.span,
            name_span=reference.name_span,
        )  # fmt: skip
        above = (*env.above, link)
        if len(above) > MAX_REFERENCE_DEPTH:
            raise LowerError(
                "ATT0312", f"patterns use each other more than {MAX_REFERENCE_DEPTH} deep",
                reference.span, help="write some of them out in one set",
            )  # fmt: skip
        return self.expanded(chosen, replace(env, above=above), reference.span, local=False)

    def expanded(self, chosen: Chosen, env: Env, where: Span, *, local: bool) -> Lowered:
        """Lower what is used, in positions of its own, at the lengths of ``env``."""
        target = chosen.definition
        given = dict(chosen.given)
        key = (id(target), chosen.given, env.lengths, local)
        if key in self.done:
            # A set that is used twice is written out twice by everything that comes later.
            self.exprs.spend(self.spent[key], where)
            return self.done[key]
        before, start = len(self.found), self.exprs.work
        frame = self.used_frame(target, given, env, where, local=local)
        if frame is None:
            self.found[before:] = [used_by(d, env.above) for d in self.found[before:]]
            return Lowered(_EMPTY, None)
        self.done[key] = self.body(frame, target.pattern.body)
        self.spent[key] = self.exprs.work - start
        return self.done[key]

    def used_frame(
        self, target: Named[Any], given: Mapping[str, Item], env: Env, where: Span, *, local: bool
    ) -> Frame | None:
        """Return the frame of what is referred to."""
        values = {n: plain_value(item) for n, item in given.items()}
        own = {n: v for n, v in values.items() if v is not None}
        spans = dict.fromkeys(own, where)
        inside = target.module is env.module
        shared = env.shared if inside else self.file_values(target.module, own, spans)
        return self.frame(target, given, shared, own, spans, env, local=local)

    # -------------------------------------------------------------------------------- builders

    def builder(self, builder: ast.Builder, frame: Frame, env: Env) -> Lowered:
        """Lower a builder: in positions of its segments first, then of the whole sides."""
        seen_heads, seen_sides = self.heads_seen, self.sides_seen
        self.heads_seen, self.sides_seen = [], []
        try:
            predicate, heads = self.predicate(builder, frame, env)
            parts = [Lowered(_EMPTY, h, bool(self._is_kv(frame))) for h in self.heads_seen]
        finally:
            self.heads_seen, self.sides_seen = seen_heads, seen_sides
        own = Lowered(_EMPTY, heads, self._is_kv(frame))
        both = self.joined([own, *parts], builder.span)
        return replace(both, node=pat.Where(predicate))

    @staticmethod
    def _is_kv(frame: Frame) -> bool:
        clause = frame.item.heads or frame.named.module.heads
        return clause is not None and clause.kv

    def predicate(
        self, builder: ast.Builder, frame: Frame, env: Env
    ) -> tuple[ex.BoolExpr, int | None]:
        """Return the predicate of a builder over flat positions, and its head count."""
        query = self.stretch(builder.query_segment, frame.query, env, 0)
        key = self.stretch(builder.key_segment, frame.key, env, 1)
        if query.is_empty or key.is_empty:
            return ex.FALSE, None
        inner = self.placed(builder, query, key, env)
        heads = frame.heads if builder.head is not None else None
        if builder.head is None:
            found = self.exprs.truth(builder.predicate, inner).expr
        elif frame.heads == 1:
            inner = inner.bind(builder.head, lv.const(0))
            found, heads = self.exprs.truth(builder.predicate, inner).expr, None
        else:
            assert heads is not None, "checked: a head is bound where heads are declared"
            found = self.of_heads(builder, inner, heads)
        return self.flat(found, query, key, frame, inner), heads

    def placed(self, builder: ast.Builder, query: Stretch, key: Stretch, env: Env) -> Env:
        """Return the scope of a builder's body: positions from the start of its segments."""
        inner = replace(env, lengths=(query.length, key.length))
        for name, variable, stretch in (
            (builder.query, "q", query), (builder.key, "k", key),
        ):  # fmt: skip
            length = lv.known(stretch.length)
            if length is not None:
                inner = inner.bounded(variable, 0, int(length) - 1)
            number = lv.var(variable, lv.POSITION_BOUND - 1)
            inner = inner.bind(name, Position(number, stretch if stretch.extents else None))
        return inner

    def flat(
        self, found: ex.BoolExpr, query: Stretch, key: Stretch, frame: Frame, inner: Env
    ) -> ex.BoolExpr:
        """Return a predicate over positions of two segments as one over flat positions."""
        if frame.query is None and frame.key is None:
            return found
        starts, inside = self.placement(query, key, frame)
        found = ex.tidy_truth(found, inner.ranges)
        return ex.and_(inside, ex.substitute(found, starts) if starts else found)

    @staticmethod
    def placement(
        query: Stretch, key: Stretch, frame: Frame
    ) -> tuple[dict[str, ex.IntExpr], ex.BoolExpr]:
        """Return what segment positions are in flat ones, and the test for being in the segments.

            image at 2 .. 5 of 9:  q  -->  q - 2,  q >= 2 and q < 6
        """
        starts: dict[str, ex.IntExpr] = {}
        tests: list[ex.BoolExpr] = []
        for name, stretch, side in (("q", query, frame.query), ("k", key, frame.key)):
            if side is None:
                continue
            variable, start = ex.Var(name), stretch.start.expr
            end = ex.add(start, stretch.length.expr)
            if start != ex.ZERO:
                starts[name] = ex.sub(variable, start)
                tests.append(ex.compare(">=", variable, start))
            if end != side.length.expr:
                tests.append(ex.compare("<", variable, end))
        return starts, ex.and_(*tests)

    def stretch(
        self, segment: ast.SegmentName | None, side: Side | None, env: Env, place: int
    ) -> Stretch:
        """Return the tokens a builder speaks of: a segment, else all, with coordinates if any."""
        if segment is None:
            if side is not None and len(side.segments) == 1:
                return side.segments[0]
            return Stretch("", None, lv.const(0), env.lengths[place])
        assert side is not None, "checked: the pattern has that segment"
        turn = None
        if segment.index is not None:
            number = self.exprs.number(segment.index, env)
            turn = int(self.exprs.compile_time(number, segment.index.span))
        found = side.find(segment.name, turn)
        if found is None:
            raise LowerError(
                "ATT0303", f"there is no segment `{segment.name}[{turn}]`", segment.span,
                help="the space says which there are: `levels[i in 0..3]: grid(...)`",
            )  # fmt: skip
        return found

    def of_heads(self, builder: ast.Builder, env: Env, heads: int) -> ex.BoolExpr:
        """Keep a predicate that is linear in the head; write any other out."""
        assert builder.head is not None
        inner = env.bind(builder.head, lv.var("h", heads - 1)).bounded("h", 0, heads - 1)
        before = len(self.exprs.notes)
        try:
            with self.exprs.written_out("h"):
                return self.exprs.truth(builder.predicate, inner).expr
        except NeedsUnroll as need:
            if need.var != "h":
                raise
            del self.exprs.notes[before:]
        return self.per_head(builder, env, heads)

    def per_head(self, builder: ast.Builder, env: Env, heads: int) -> ex.BoolExpr:
        """Write a predicate out head by head; heads with one predicate share it.

            (q - k) mod rate[h] == 0,  rate = [1, 2, 2]
            -->  h == 0 or h >= 1 and (q - k) mod 2 == 0
        """
        assert builder.head is not None
        groups: dict[ex.BoolExpr, list[int]] = {}
        for head in range(heads):
            inner = env.at_head(head).bind(builder.head, lv.const(head))
            part = self.exprs.truth(builder.predicate, inner)
            groups.setdefault(part.expr, []).append(head)
        if len(groups) == 1:
            return next(iter(groups))
        return ex.or_(*(ex.and_(_heads_test(hs, heads), part) for part, hs in groups.items()))


def _other_heads(where: Span) -> Diagnostic:
    return Diagnostic(
        code="ATT0309", message="a set of query heads meets a set of key/value heads", span=where,
        help="declare both with `heads`, or both with `kv_heads`",
    )  # fmt: skip


def _shape(side: Side) -> tuple[object, ...]:
    return tuple((s.extents, s.tile) for s in side.segments)


def _show(side: Side) -> str:
    grids = ("x".join(ex.show(e.expr) for e in s.extents or ()) for s in side.segments)
    return " ++ ".join(grids)


def _heads_test(listed: list[int], heads: int) -> ex.BoolExpr:
    """Return the test for ``h in listed``: two comparisons for a run, else a list."""
    h = ex.Var("h")
    first, last = listed[0], listed[-1]
    if len(listed) == 1 or last - first + 1 > len(listed):
        return ex.member(h, listed)
    low = ex.TRUE if first == 0 else ex.compare(">=", h, ex.Const(first))
    high = ex.TRUE if last == heads - 1 else ex.compare("<=", h, ex.Const(last))
    return ex.and_(low, high)
