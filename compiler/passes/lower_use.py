"""What expressions use beside names: pairs in patterns, scores, functions, inputs, coordinates."""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env, substitute
from attnc.compiler.passes.lower_frame import Frame
from attnc.compiler.passes.lower_set import MAX_REFERENCE_DEPTH, Lowered, SetLowering
from attnc.compiler.passes.lower_table import choose
from attnc.compiler.passes.lower_value import (
    Array,
    Item,
    Logic,
    LowerError,
    Num,
    Position,
    Real,
)
from attnc.dsl import nodes as ast
from attnc.dsl.source import Span


class UseLowering(SetLowering):
    """Answers the questions of ``lower_expr.Surroundings`` by lowering what is used."""

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
            part, shift = _without_constant(number.expr)
            legal = ex.and_(
                ex.compare(">=", part, shift), ex.compare("<", part, ex.add(length.expr, shift))
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
        """Return the value of a score over flat positions (elsewhere 0), and its head count."""
        assert isinstance(frame.item, ast.Score)
        builder = frame.item.body
        env = replace(frame.env, scoring=True)
        query = self.stretch(builder.query_segment, frame.query, env, 0)
        key = self.stretch(builder.key_segment, frame.key, env, 1)
        inner = self.placed(builder, query, key, env)
        heads = frame.heads if (frame.heads or 1) > 1 and builder.head is not None else None
        if builder.head is not None:
            inner = inner.bind(builder.head, inner.head if heads else lv.const(0))
        if query.is_empty or key.is_empty:
            return lv.const(0), None
        with self.exprs.written_out("h"):
            value = self.exprs.value(builder.predicate, inner)
        assert isinstance(value, Num | Real), "checked: a score is a number"
        starts, inside = self.placement(query, key, frame)
        moved = substitute(value, starts)
        assert isinstance(moved, Num | Real)
        test = lv.logic(inside, 1 + 2 * len(starts), builder.span)
        return choose(test, moved, lv.const(0), builder.span), heads

    def coordinate(self, position: Position, axis: int, env: Env, span: Span) -> Num:
        """Return coordinate number ``axis`` of a position."""
        return self.spaces.coordinate(position, axis, env, span)

    def holds(self, array: Array, part: Num, env: Env, span: Span) -> Logic:
        """Return whether the last axis of an input has an entry."""
        return self.inputs.holds(array, part, env, span)

    def unknown(self, names: frozenset[str], span: Span) -> LowerError | None:
        """Return the error for a size that has no value yet, None where none of them is one."""
        sizes = (*self.sizes, *self.spaces.extents)
        missing = next((name for name in sizes if name in names), None)
        if missing is None:
            return None
        return LowerError(
            "ATT0213", f"the size `{missing}` is not known", span,
            label="it must be known at compile time here",
            help=f"give it, as `-D {missing}=...`, or an input that has it as a side",
        )  # fmt: skip


def _without_constant(expr: ex.IntExpr) -> tuple[ex.IntExpr, ex.IntExpr]:
    """Return ``(part, shift)`` with ``expr == part - shift``."""
    match expr:
        case ex.Add((*terms, ex.Const(value))):
            return ex.add(*terms), ex.Const(-value)
    return expr, ex.ZERO
