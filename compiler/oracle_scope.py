"""One pattern, score or attention at its lengths -> what it says for one head.

Sets are boolean matrices, scores real ones. Used items have scopes of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.binding import fit
from attnc.compiler.oracle_expr import Env, Tensor, bounded, to_real
from attnc.compiler.oracle_setting import LENGTHS, Chosen, Setting, World
from attnc.compiler.oracle_sizes import refused
from attnc.compiler.oracle_space import Stretch, free_names
from attnc.dsl import nodes as ast
from attnc.dsl.resolve import Named, as_set

Mask: TypeAlias = NDArray[np.bool_]
HEAD, DOT = " head", "dot"
"""The names of the head that is computed, and of the scaled product of query and key."""


class Scope(Setting):
    """An item at one pair of lengths; masks and scores come head by head."""

    def __init__(self, world: World, chosen: Chosen, *args: Any, **options: Any) -> None:
        self.masks: dict[int, Mask] = {}
        super().__init__(world, chosen, *args, **options)

    # --------------------------------------------------------------- what expressions may use

    def call(self, function: str, args: list[Any], names: tuple[str | None, ...], env: Env) -> Any:
        """Return the value of a call of an ``fn``, or of a score with arguments."""
        if self.module.find_fn(function) is not None:
            return super().call(function, args, names, env)
        return self.score_of(function, args, names, env).score(env[HEAD], 0.0)

    def name(self, name: str, env: Env) -> Any:
        """Return the value of a name that is no variable: in attentions a score, else a choice."""
        if DOT not in env or self.module.find_score(name) is None:
            return name
        return self.score_of(name, [], (), env).score(env[HEAD], 0.0)

    def keeps(self, pattern: ast.PatternValue, query: Any, key: Any, env: Env) -> Any:
        """Return whether a pattern keeps pairs; a pair outside its lengths is not in it."""
        inner = self.used(self.choose(pattern, env), env, strict=False)
        mask = inner.mask(env[HEAD])
        rows, columns = mask.shape
        legal = np.logical_and(
            np.logical_and(query >= 0, query < rows), np.logical_and(key >= 0, key < columns)
        )
        if mask.size == 0:
            return np.logical_and(legal, False)
        kept = mask[np.clip(query, 0, rows - 1), np.clip(key, 0, columns - 1)]
        return np.logical_and(legal, kept)

    def pattern(self, value: ast.Expr, env: Env) -> Any:
        """Return the pattern, or the list of them, that an argument stands for."""
        match value:
            case ast.ListOf(items=items):
                return tuple(self.pattern(i, env) for i in items)
            case ast.ListFor(var=var, body=body):
                turns, _ = self.value.turns(value, env)
                return tuple(self.pattern(body, {**env, var: turn}) for turn, _ in turns)
            case ast.Name(name=name) if name in env:
                return env[name]
        found = as_set(value)
        assert found is not None
        return self.choose(found, env)

    def choose(self, pattern: ast.PatternValue, env: Env) -> Chosen:
        """Return a pattern with its arguments, evaluated here."""
        if isinstance(pattern, ast.SetIndex):
            item: Chosen = env[pattern.name][int(self.value(pattern.index, env))]
            return item
        if isinstance(held := env.get(pattern.name), Chosen):
            return held
        target = self.module.find(pattern.name)
        assert target is not None
        own = [p.name for p in target.pattern.params]
        given: list[tuple[str, Any]] = []
        for position, argument in enumerate(pattern.args):
            name = argument.name or own[position]
            if _is_pattern(_declared(target, name).type):
                given.append((name, self.pattern(argument.value, env)))
            else:
                value = self.value(argument.value, env)
                given.append((name, _fitted(target, name, value)))
        return self.chosen_with(target, tuple(given))

    def chosen_with(self, named: Named[Any], given: tuple[tuple[str, Any], ...]) -> Chosen:
        """Return an item with its arguments; one of this file shares the parameters of the file."""
        shared = self.shared.items() if named.module is self.module else ()
        return Chosen(named, (*shared, *given))

    def used(self, chosen: Chosen, env: Env, *, strict: bool = True) -> Scope:
        """Return the scope of a used item, at the lengths it is used at."""
        outer = {n: s for n, s in self.sizes.known.items() if n not in ("nq", "nk")}
        key = (_key(chosen), env[LENGTHS], tuple(sorted(outer.items())), strict)
        if key not in self.world.scopes:
            inner = Scope(self.world, chosen, env[LENGTHS], outer, {}, strict=strict)
            self.world.scopes[key] = inner
        return self.world.scopes[key]

    def used_sizes(self) -> dict[str, int]:
        """Return the lengths and sizes that used patterns have by their inputs and spaces."""
        if isinstance(self.item, ast.Score):
            return {}
        env = {**self.sizes.env, **{n: Tensor(array) for n, array in self.tensors.items()}}
        outer = dict(self.sizes.known)
        found: dict[str, int] = {}
        for reference in _references(_body(self.item)):
            names = set().union(*(free_names(a.value, self.module) for a in reference.args))
            if names <= env.keys() and not isinstance(env.get(reference.name), tuple):
                chosen = self.choose(reference, env)
                inner = Scope(
                    self.world, chosen, (None, None), outer, {}, strict=True, complete=False
                )
                found = {**inner.used_sizes(), **inner.sizes.known, **found}
        return found

    # ---------------------------------------------------------------------------------- sets

    def mask(self, head: int) -> Mask:
        """Return the pairs that a head keeps, all of a score. Shape: ``[nq, nk]``."""
        if isinstance(self.item, ast.Score):
            return np.ones(self.env[LENGTHS], dtype=np.bool_)
        if head not in self.masks:
            self.masks[head] = self.set(_body(self.item), self.at(head))
        return self.masks[head]

    def at(self, head: int) -> dict[str, Any]:
        """Return the values of all names for one head."""
        env = {**self.env, HEAD: head}
        if self.item.heads is not None:
            env[self.item.heads.var] = 0 if self.heads == 1 else head
        return env

    def set(self, part: ast.Set, env: Env) -> Mask:
        """Return the pairs that a set keeps. Shape: ``[nq, nk]``."""
        match part:
            case ast.Builder():
                none = np.zeros(env[LENGTHS], dtype=np.bool_)
                return self.built(part, env, none).astype(np.bool_)
            case ast.Reference() | ast.SetIndex():
                return self.used(self.choose(part, env), env).mask(env[HEAD])
            case ast.SetUnion(parts=parts):
                return reduce(operator.or_, [self.set(p, env) for p in parts])
            case ast.SetIntersection(parts=parts):
                return reduce(operator.and_, [self.set(p, env) for p in parts])
            case ast.SetDifference(left=left, right=right):
                return self.set(left, env) & ~self.set(right, env)
            case ast.SetComplement(part=inner):
                return ~self.set(inner, env)
            case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
                return self.set(then if self.value(condition, env) else otherwise, env)
            case ast.UnionOver(var=var, body=body):
                none = np.zeros(env[LENGTHS], dtype=np.bool_)
                turns = self.turns(part, env)
                return reduce(operator.or_, (self.set(body, {**env, var: t}) for t in turns), none)
            case ast.Rounded():
                return self.rounded(part, env)

    def turns(self, union: ast.UnionOver, env: Env) -> range:
        """Return the values of the variable of a union."""
        low, high = int(self.value(union.low, env)), int(self.value(union.high, env))
        return bounded(low, high, union.span)

    def built(self, builder: ast.Builder, env: Env, whole: NDArray[Any]) -> NDArray[Any]:
        """Return ``whole`` with the values of a builder where it speaks of pairs."""
        query = self.stretch(builder.query_segment, self.query, env, env[LENGTHS][0])
        key = self.stretch(builder.key_segment, self.key, env, env[LENGTHS][1])
        inner = {
            **env,
            LENGTHS: (query.length, key.length),
            builder.query: query.positions(is_query=True),
            builder.key: key.positions(is_query=False),
        }
        if builder.head is not None:
            inner[builder.head] = 0 if self.heads == 1 else env[HEAD]
        value = np.asarray(self.value(builder.predicate, inner))
        value = to_real(value) if value.dtype == object else value
        filled = whole.astype(np.result_type(whole, value))
        rows = slice(query.start, query.start + query.length)
        filled[rows, key.start : key.start + key.length] = value
        return filled

    def stretch(
        self, segment: ast.SegmentName | None, side: tuple[Stretch, ...], env: Env, length: int
    ) -> Stretch:
        """Return the tokens a builder speaks of: a segment, else all, with coordinates if any."""
        if segment is None:
            return side[0] if len(side) == 1 else Stretch(None, None, 0, length)
        turn = None if segment.index is None else int(self.value(segment.index, env))
        for stretch in side:
            if (stretch.name, stretch.turn) == (segment.name, turn):
                return stretch
        raise refused("ATT0303", f"there is no segment `{segment.name}[{turn}]`", segment.span)

    def rounded(self, part: ast.Rounded, env: Env) -> Mask:
        """Return whole blocks, those in which enough existing pairs are kept."""
        kept = self.set(part.part, env)
        nq, nk = kept.shape
        block_q = int(self.value(part.block_q, env))
        block_k = block_q if part.block_k is None else int(self.value(part.block_k, env))
        for side, written in ((block_q, part.block_q), (block_k, part.block_k or part.block_q)):
            if side < 1:
                raise refused("ATT0303", f"the side of a block is {side}", written.span)
        if kept.size == 0:
            return kept
        rows, columns = np.arange(0, nq, block_q), np.arange(0, nk, block_k)
        counts = np.add.reduceat(np.add.reduceat(kept.astype(np.int64), rows, 0), columns, 1)
        existing = np.outer(np.minimum(block_q, nq - rows), np.minimum(block_k, nk - columns))
        chosen = self.enough(part, counts, existing, env)
        return chosen.repeat(block_q, 0)[:nq].repeat(block_k, 1)[:, :nk]

    def enough(self, part: ast.Rounded, counts: Any, existing: Any, env: Env) -> Mask:
        """Return the blocks whose count of kept pairs satisfies the rule."""
        match part.rule:
            case "any":
                least, sign = np.ones_like(existing), ">="
            case "all":
                least, sign = existing, ">="
            case "count" | "density":
                assert part.threshold is not None
                threshold = Fraction(self.value(part.threshold, env))
                of = existing if part.rule == "density" else np.ones_like(existing)
                least, sign = of * threshold.numerator, part.op or ">="
                counts = counts * threshold.denominator
        chosen: Mask = counts > least if sign == ">" else counts >= least
        return chosen

    # -------------------------------------------------------------------------------- scores

    def score(self, head: int, dot: Any) -> NDArray[Any]:
        """Return what a score or an attention says for one head. Shape: ``[nq, nk]``."""
        env = self.at(head)
        if isinstance(self.item, ast.Score):
            return self.built(self.item.body, env, np.zeros(env[LENGTHS], dtype=np.int64))
        assert isinstance(self.item, ast.Attention)
        value = self.value(self.item.score, {**env, DOT: dot})
        return np.broadcast_to(np.asarray(to_real(value)), env[LENGTHS])

    def sink(self, head: int) -> float | None:
        """Return the logit beside the keys of one head, None where there is none."""
        if not isinstance(self.item, ast.Attention) or self.item.sink is None:
            return None
        return float(self.value(self.item.sink, self.at(head)))

    def scale(self) -> float | None:
        """Return the factor of the product, None for the default."""
        if not isinstance(self.item, ast.Attention) or self.item.scale is None:
            return None
        return float(self.value(self.item.scale, self.env))

    # ------------------------------------------------------------------------- heads, layers

    def told_apart(self) -> int | None:
        """Return how many heads the item tells apart, None where all are the same."""
        own = None if self.heads == 1 else self.heads
        if self.item.heads is not None:
            return own
        for part in self.inside():
            if isinstance(part, Scope):
                if (heads := part.told_apart()) is not None:
                    return heads
            elif part.head is not None:
                return own
        return None

    def layers(self) -> int | None:
        """Return how many layers the item has, its own or those of what it uses."""
        if (own := self.layer_count()) is not None:
            return own
        used = (part.layers() for part in self.inside() if isinstance(part, Scope))
        return next((layers for layers in used if layers is not None), None)

    def inside(self) -> Iterator[Scope | ast.Builder]:
        """Yield the builders of the item and the scopes of what it uses."""
        if isinstance(self.item, ast.Score):
            yield self.item.body
            return
        env = self.at(0)
        if isinstance(self.item, ast.Attention):
            yield from self.scores_in(self.item.score, env)
        stack: list[tuple[ast.Set, Env]] = [(_body(self.item), env)]
        while stack:
            node, here = stack.pop()
            match node:
                case ast.Builder():
                    yield node
                    yield from self.tested(node, here)
                case ast.Reference() | ast.SetIndex():
                    yield self.used(self.choose(node, here), here)
                case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
                    stack.append((then if self.value(condition, here) else otherwise, here))
                case ast.UnionOver(var=var, body=body):
                    stack += [(body, {**here, var: turn}) for turn in self.turns(node, here)]
                case ast.SetUnion(parts=parts) | ast.SetIntersection(parts=parts):
                    stack += [(part, here) for part in reversed(parts)]
                case ast.SetDifference(left=left, right=right):
                    stack += [(right, here), (left, here)]
                case ast.SetComplement(part=inner) | ast.Rounded(part=inner):
                    stack.append((inner, here))

    def tested(self, builder: ast.Builder, env: Env) -> Iterator[Scope]:
        """Yield the scopes of patterns whose pairs a builder tests, where they are known here."""
        for part in ast.walk(builder.predicate):
            if not isinstance(part, ast.PairIn):
                continue
            held = env.get(part.pattern.name)
            if held is None:
                assert isinstance(part.pattern, ast.Reference)
                named = self.module.find(part.pattern.name)
                if named is None or named.pattern.heads is None:
                    continue
                held = self.choose(part.pattern, env)
            for chosen in held if isinstance(held, tuple) else (held,):
                yield self.used(chosen, env, strict=False)

    def scores_in(self, expr: ast.Expr, env: Env) -> Iterator[Scope]:
        """Yield the scopes of the scores that a score expression names."""
        for part in ast.walk(expr):
            match part:
                case ast.Name(name=name) if name not in env and self.module.find_score(name):
                    yield self.score_of(name, [], (), env)
                case ast.Call(function=name, args=args) if self.module.find_score(name):
                    names = part.names or (None,) * len(args)
                    yield self.score_of(name, [self.value(a, env) for a in args], names, env)
                case _:
                    pass

    def score_of(
        self, name: str, args: list[Any], names: tuple[str | None, ...], env: Env
    ) -> Scope:
        """Return the scope of a score with its arguments."""
        score = self.module.find_score(name)
        assert score is not None
        own = [p.name for p in score.item.params]
        given = [(n or own[i], a) for i, (n, a) in enumerate(zip(names, args, strict=True))]
        fitted = tuple((n, _fitted(score, n, value)) for n, value in given)
        return self.used(self.chosen_with(score, fitted), env)


def _body(item: ast.PatternDef | ast.Attention) -> ast.Set:
    return item.body if isinstance(item, ast.PatternDef) else item.over


def _references(body: ast.Set) -> Iterator[ast.Reference]:
    """Yield the patterns that a set is made of: not those whose pairs a builder tests."""
    stack: list[ast.Set] = [body]
    while stack:
        match stack.pop():
            case ast.Reference() as reference:
                yield reference
            case ast.SetUnion(parts=parts) | ast.SetIntersection(parts=parts):
                stack += parts
            case ast.SetDifference(left=one, right=other) | ast.SetIf(then=one, otherwise=other):
                stack += (one, other)
            case ast.SetComplement(part=part) | ast.Rounded(part=part) | ast.UnionOver(body=part):
                stack.append(part)
            case ast.Builder() | ast.SetIndex():
                pass


def _declared(target: Named[Any], name: str) -> ast.Param | ast.Input:
    """Return the parameter or input that an argument is for."""
    all_of: tuple[ast.Param | ast.Input, ...] = (
        *target.item.params, *target.module.params, *target.module.inputs,
    )  # fmt: skip
    return next(p for p in all_of if p.name == name)


def _is_pattern(kind: ast.Type) -> bool:
    return kind.kind == "pattern" or (kind.item is not None and _is_pattern(kind.item))


def _fitted(target: Named[Any], name: str, value: Any) -> Any:
    """Return an argument in the form its parameter keeps it, an input as its array."""
    declared = _declared(target, name)
    if isinstance(declared, ast.Input):
        return value.values if isinstance(value, Tensor) else value
    return fit(value.item() if isinstance(value, np.generic) else value, declared.type)


def _key(value: Any) -> Any:
    """Return what tells values apart; arrays are told apart by identity."""
    if isinstance(value, Chosen):
        return value.named, tuple((name, _key(given)) for name, given in value.given)
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    return id(value) if isinstance(value, np.ndarray) else value
