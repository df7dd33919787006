"""Sets of the AST -> nodes of the pattern IR; references are expanded in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env, substitute
from attnc.compiler.passes.lower_expr import ExprLowering, NeedsUnroll
from attnc.compiler.passes.lower_frame import Frame, FrameLowering, plain_value, used_by
from attnc.compiler.passes.lower_space import Side, Stretch
from attnc.compiler.passes.lower_value import Array, Chosen, Item, Logic, LowerError, Num, Position
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.resolve import Named
from attnc.dsl.source import Span

MAX_REFERENCE_DEPTH = 64
MAX_BLOCK = 1 << 20
"""How many tokens one side of a block may have."""
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
    """Lowers sets. It also is what expressions stand in: it answers for pairs, scores, functions.

    ``heads_seen`` and ``sides_seen`` gather what pairs and scores inside an expression need.
    """

    def __init__(self, exprs: ExprLowering, layer: int | None) -> None:
        super().__init__(exprs, layer)
        self.done: dict[tuple[object, ...], Lowered] = {}
        self.spent: dict[tuple[object, ...], int] = {}
        self.heads_seen: list[int] = []
        self.sides_seen: list[_Sides] = []
        exprs.around = self

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
                return self.rounded(part, frame, env)

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
            self.found.append(
                Diagnostic(
                    code="ATT0309", message="a set of query heads meets a set of key/value heads",
                    span=where, help="declare both with `heads`, or both with `kv_heads`",
                )
            )  # fmt: skip
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
        """Lower what is used, in positions ``q`` and ``k`` of its own, at the lengths of ``env``."""
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
            number = lv.var(variable, lv.POSITION_BOUND)
            inner = inner.bind(name, Position(number, stretch if stretch.extents else None))
        return inner

    def flat(
        self, found: ex.BoolExpr, query: Stretch, key: Stretch, frame: Frame, inner: Env
    ) -> ex.BoolExpr:
        """Return a predicate over positions of two segments as one over flat positions."""
        if frame.query is None and frame.key is None:
            return found
        found = ex.tidy_truth(found, inner.ranges)
        starts: dict[str, ex.IntExpr] = {}
        tests: list[ex.BoolExpr] = []
        for name, stretch, side in (("q", query, frame.query), ("k", key, frame.key)):
            if side is None:
                continue
            variable = ex.Var(name)
            start, length = stretch.start.expr, stretch.length.expr
            starts[name] = ex.sub(variable, start)
            end = ex.add(start, length)
            if start != ex.ZERO:
                tests.append(ex.compare(">=", variable, start))
            if end != side.length.expr:
                tests.append(ex.compare("<", variable, end))
        if not all(v == ex.Var(n) for n, v in starts.items()):
            found = ex.substitute(found, starts)
        return ex.and_(*tests, found)

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

    # ---------------------------------------------------------------------------- whole blocks

    def rounded(self, part: ast.Rounded, frame: Frame, env: Env) -> Lowered:
        """Round a set to whole blocks.

        any: some pair of the block is in the set; all: every existing one is. ``count`` and
        ``density`` become a table that is computed at run time.
        """
        inner = self.set(part.part, frame, env)
        sizes = []
        for side in (part.block_q, part.block_k or part.block_q):
            size = self.exprs.compile_time(self.exprs.number(side, env), side.span)
            if not 1 <= size <= MAX_BLOCK:
                raise LowerError(
                    "ATT0303", f"a block of {size} tokens", side.span,
                    help=f"a block has 1 to {MAX_BLOCK} tokens along each side",
                )  # fmt: skip
            sizes.append(int(size))
        block_q, block_k = sizes
        predicate = pat.predicate(inner.node)
        if part.rule in ("any", "all") and ex.is_static(predicate):
            exact = _any_in_block if part.rule == "any" else _all_in_block
            lengths = tuple(length.expr for length in env.lengths)
            return replace(inner, node=pat.Where(exact(predicate, block_q, block_k, lengths)))
        op, threshold = part.op or (">" if part.rule == "any" else ">="), Fraction(0)
        if part.threshold is not None:
            threshold = self.exprs.compile_time(
                self.exprs.number(part.threshold, env), part.threshold.span
            )
        elif part.rule == "all":
            threshold = Fraction(1)
        count = ar.BlockCount(
            predicate=predicate, block_q=block_q, block_k=block_k, op=op,
            threshold=threshold.numerator, denominator=threshold.denominator,
            density=part.rule in ("all", "density"),
            nq=env.lengths[0].expr, nk=env.lengths[1].expr,
        )  # fmt: skip
        heads = inner.heads if "h" in ex.free_vars(predicate) else None
        sides = (
            ex.Const(heads or 1),
            ex.floordiv(ex.add(count.nq, ex.Const(block_q - 1)), block_q),
            ex.floordiv(ex.add(count.nk, ex.Const(block_k - 1)), block_k),
        )
        table = self.inputs.add(
            pat.Input(name=f"{frame.item.name}_blocks", kind="bool", dims=sides, formula=count),
            part.span,
        )
        at = (
            ex.Var("h") if heads else ex.ZERO,
            ex.floordiv(ex.Var("q"), block_q),
            ex.floordiv(ex.Var("k"), block_k),
        )
        self.exprs.note("a count of the pairs of a block", part.span)
        return replace(inner, node=pat.Where(ex.compare("!=", ex.Read(table.name, at), ex.ZERO)))

    # --------------------------------------------------------------- what expressions stand in

    def keeps(self, pair: ast.PairIn, env: Env) -> Logic:
        """Return whether a pattern keeps a pair: its predicate at other positions."""
        query, key = self.exprs.number(pair.query, env), self.exprs.number(pair.key, env)
        chosen = self.choose(pair.pattern, env)
        link = ast.Reference(
            name=chosen.definition.pattern.name, args=(), span=pair.span, name_span=pair.span
        )
        if len(env.above) >= MAX_REFERENCE_DEPTH:
            raise LowerError(
                "ATT0312", f"patterns use each other more than {MAX_REFERENCE_DEPTH} deep",
                pair.span, help="write some of them out in one set",
            )  # fmt: skip
        inner = replace(env, above=(*env.above, link))
        before = len(self.found)
        lowered = self.expanded(chosen, inner, pair.span, local=True)
        if len(self.found) > before:
            return Logic(ex.FALSE, 1)
        if lowered.heads is not None:
            self.heads_seen.append(lowered.heads)
        lengths = self.local_lengths(lowered, env)
        predicate = pat.predicate(lowered.node)
        at = {"q": query.expr, "k": key.expr, "h": env.head.expr}
        size = 1 + sum(1 for _ in ex.walk(predicate))
        lv.logic(ex.Compare("<=", ex.ZERO, ex.ZERO), size, pair.span)
        found = ex.substitute(predicate, at)
        if not ex.is_static(found):
            self.exprs.write_out(Logic(found, size))
        tests: list[ex.BoolExpr] = []
        for number, name, length, here in zip(
            (query, key), "qk", lengths, env.lengths, strict=True
        ):
            if number.expr == ex.Var(name) and length == here:
                continue
            lv.fits_machine((number,), pair.span)
            legal = ex.and_(
                ex.compare(">=", number.expr, ex.ZERO), ex.compare("<", number.expr, length.expr)
            )
            tests.append(ex.tidy_truth(legal, env.ranges))
        kept = ex.and_(*tests, found)
        result = lv.logic(ex.not_(kept) if pair.negated else kept, size + 4, pair.span)
        return result

    @staticmethod
    def local_lengths(lowered: Lowered, env: Env) -> tuple[Num, Num]:
        """Return the lengths of a pattern inside a pair: of its spaces, else those around it."""
        q, k = (
            here if side is None else side.length
            for side, here in zip(lowered.sides, env.lengths, strict=True)
        )
        return q, k

    def apply(self, call: ast.Call, env: Env) -> Item | None:
        """Return the value of an ``fn``: it sees its own parameters and those of its file."""
        named = env.module.find_fn(call.function)
        if named is None:
            return None
        own = named.item.params
        names = call.names or (None,) * len(call.args)
        given = {
            name or own[i].name: self.exprs.value(arg, env)
            for i, (name, arg) in enumerate(zip(names, call.args, strict=True))
        }
        inside = named.module is env.module
        shared = env.shared if inside else self.file_values(named.module, {}, {})
        scope = replace(
            env, module=named.module, shared=shared,
            names={n: self.held(v, named.module) for n, v in shared.items()},
        )  # fmt: skip
        for param in own:
            if param.name in given:
                item = given[param.name]
            else:
                assert param.default is not None, "checked: it has a value"
                item = self.exprs.value(param.default, scope)
            scope = scope.bind(param.name, lv.fitted(item, param.type.kind, call.span))
        return self.exprs.value(named.item.body, scope)

    def score(self, name: str, call: ast.Call | None, env: Env, span: Span) -> Item | None:
        """Return the value of a score at the positions around."""
        named = env.module.find_score(name)
        if named is None:
            return None
        args = [] if call is None else list(
            zip(call.names or (None,) * len(call.args), call.args, strict=True)
        )  # fmt: skip
        given = dict(self.given(named, args, env))
        frame = self.used_frame(named, given, env, span, local=False)
        if frame is None:
            raise LowerError("ATT0207", f"`{name}` misses a value", span)
        value, heads = self.scored(frame)
        if heads is not None:
            self.heads_seen.append(heads)
        self.sides_seen.append((frame.query, frame.key))
        return substitute(value, {"h": env.head.expr})

    def scored(self, frame: Frame) -> tuple[Item, int | None]:
        """Return the value of a score's builder over flat positions, and its head count."""
        assert isinstance(frame.item, ast.Score)
        builder = frame.item.body
        env = replace(frame.env, scoring=True)
        query = self.stretch(builder.query_segment, frame.query, env, 0)
        key = self.stretch(builder.key_segment, frame.key, env, 1)
        inner = self.placed(builder, query, key, env)
        heads = frame.heads if (frame.heads or 1) > 1 and builder.head is not None else None
        if builder.head is not None:
            inner = inner.bind(builder.head, inner.head if heads else lv.const(0))
        with self.exprs.written_out("h"):
            value = self.exprs.value(builder.predicate, inner)
        return value, heads

    def coordinate(self, position: Position, axis: int, env: Env, span: Span) -> Num:
        """Return coordinate number ``axis`` of a position."""
        return self.spaces.coordinate(position, axis, env, span)

    def holds(self, array: Array, part: Num, env: Env, span: Span) -> Logic:
        """Return whether the last axis of an input has an entry."""
        return self.inputs.holds(array, part, env, span)

    def unknown(self, names: frozenset[str], span: Span) -> LowerError | None:
        """Return the error for a size that has no value yet, None where none of them is one."""
        missing = next((n for n in sorted(names) if n in self.sizes or n in self.spaces.extents), None)
        if missing is None:
            return None
        return LowerError(
            "ATT0213", f"the size `{missing}` is not known", span,
            label="it must be known at compile time here",
            help=f"give it, as `-D {missing}=...`, or an input that has it as a side",
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


def _any_in_block(
    predicate: ex.BoolExpr, block_q: int, block_k: int, lengths: tuple[ex.IntExpr, ...]
) -> ex.BoolExpr:
    """Return that some existing pair of the block of (q, k) satisfies a predicate."""
    found, positions = predicate, {}
    bound: list[tuple[str, int]] = []
    taken = {n.var for n in ex.walk(predicate) if isinstance(n, ex.Exists)}
    for name, block, length in zip("qk", (block_q, block_k), lengths, strict=True):
        if block == 1:
            continue
        variable = next(v for v in (f"b{name}" + "_" * i for i in range(99)) if v not in taken)
        start = ex.scale(block, ex.floordiv(ex.Var(name), block))
        place = ex.add(start, ex.Var(variable))
        positions[name] = place
        bound.append((variable, block))
        found = ex.and_(found, ex.compare("<", ex.Var(name), length))
    found = ex.substitute(found, positions)
    for variable, block in bound:
        found = ex.Exists(variable, ex.ZERO, ex.Const(block - 1), found)
    return found


def _all_in_block(
    predicate: ex.BoolExpr, block_q: int, block_k: int, lengths: tuple[ex.IntExpr, ...]
) -> ex.BoolExpr:
    """Return that all existing pairs of the block of (q, k) satisfy a predicate."""
    return ex.not_(_any_in_block(ex.not_(predicate), block_q, block_k, lengths))
