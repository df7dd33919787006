"""A definition and what was given for it -> the scope of its body: values, sizes, spaces, heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from attnc.compiler.binding import Value, bind, fit, names_patterns, show_value
from attnc.compiler.ir import expr as ex
from attnc.compiler.passes import lower_value as lv
from attnc.compiler.passes.lower_env import Env, from_item, to_item
from attnc.compiler.passes.lower_expr import UNROLL_LIMIT, ExprLowering
from attnc.compiler.passes.lower_input import InputLowering
from attnc.compiler.passes.lower_space import Side, SpaceLowering, free_names
from attnc.compiler.passes.lower_value import Array, Chosen, Item, LowerError, Num
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.resolve import Module, Named, as_set
from attnc.dsl.source import Span

Whole: TypeAlias = ast.PatternDef | ast.Score | ast.Attention
NQ, NK = lv.var("nq", lv.POSITION_BOUND), lv.var("nk", lv.POSITION_BOUND)
UNKNOWN_SIZE, NO_LAYER = "ATT0213", "ATT0512"


@dataclass(frozen=True)
class Frame:
    """One pattern or score being expanded: its scope, its heads, where its tokens stand."""

    named: Named[Any]
    env: Env
    values: Mapping[str, Value]
    heads: int | None
    query: Side | None
    key: Side | None

    @property
    def item(self) -> Whole:
        """What is expanded."""
        item: Whole = self.named.item
        return item


class FrameLowering:
    """Makes frames; what goes wrong gathers in ``found``.

    ``sizes`` are the sides of inputs that the call says, with who declares them (an item and the
    inputs it was given); ``known`` are those that were given now.
    """

    def __init__(self, exprs: ExprLowering, layer: int | None) -> None:
        self.found: list[Diagnostic] = []
        self.exprs = exprs
        self.layer = layer
        self.inputs = InputLowering(exprs)
        self.spaces = SpaceLowering(exprs)
        self.sizes: dict[str, tuple[object, ...]] = {}
        self.known: dict[str, int] = {}

    # ------------------------------------------------------------------------ parameter values

    def scope(self, module: Module, names: Mapping[str, Item]) -> Env:
        """Return a scope for compile-time values."""
        return Env(
            module=module, names=names, shared={}, lengths=(NQ, NK),
            ranges={"q": (0, None), "k": (0, None), "nq": (0, None), "nk": (0, None)},
            head=lv.var("h", 0),
        )  # fmt: skip

    def evaluate(self, module: Module, expr: ast.Expr, values: Mapping[str, Value]) -> Value:
        """Return the value of a compile-time expression."""
        used = free_names(expr)
        names = {n: self.held(values[n], module) for n in used if n in values}
        env = self.scope(module, names)
        value: Any = self.exprs.constant(self.exprs.value(expr, env), expr.span)
        return value  # type: ignore[no-any-return]

    def held(self, value: Any, module: Module) -> Item:
        """Return a value as expressions see it; the names of patterns are looked up."""
        if isinstance(value, ast.Name | ast.Call | ast.Index | ast.ListOf | ast.ListFor):
            return self.pattern(value, self.scope(module, {}))
        return to_item(value)

    def file_values(
        self, module: Module, given: Mapping[str, Value], spans: Mapping[str, Span]
    ) -> dict[str, Value]:
        """Return the values of a file's parameters."""
        try:
            return bind(
                module.params, given, {}, lambda e, v: self.evaluate(module, e, v),
                self.found.append, spans,
            )  # fmt: skip
        except LowerError as error:
            self.found.append(error.diagnostic)
            return {}

    def pattern(self, expr: ast.Expr, env: Env) -> Item:
        """Return the pattern, or the list of patterns, that an argument names."""
        match expr:
            case ast.ListOf(items=items):
                return tuple(self.pattern(i, env) for i in items)
            case ast.ListFor(var=var, body=body):
                turns = self.exprs.turns(expr.low, expr.high, env)
                return tuple(self.pattern(body, env.bind(var, lv.const(t))) for t in turns)
            case ast.Name(name=name) if name in env.names:
                return env.names[name]
        found = as_set(expr)
        assert found is not None, "checked: it names a pattern"
        return self.choose(found, env)

    def choose(self, pattern: ast.PatternValue, env: Env) -> Chosen:
        """Return a pattern with its arguments, evaluated here."""
        if isinstance(pattern, ast.SetIndex):
            listed = env.names[pattern.name]
            assert isinstance(listed, tuple)
            place = self.exprs.number(pattern.index, env)
            index = self.exprs.compile_time(place, pattern.index.span)
            if not 0 <= index < len(listed):
                raise LowerError(
                    "ATT0308", f"there is no item {index} in a list of {len(listed)} items",
                    pattern.index.span, label=f"this is {index}", help="items count from 0",
                )  # fmt: skip
            chosen = listed[int(index)]
        else:
            held = env.names.get(pattern.name)
            if not isinstance(held, Chosen):
                target = env.module.find(pattern.name)
                assert target is not None, "checked: the name is known"
                written = [(a.name, a.value) for a in pattern.args]
                return Chosen(target, self.given(target, written, env))
            chosen = held
        assert isinstance(chosen, Chosen)
        return chosen

    def given(
        self, target: Named[Any], args: list[tuple[str | None, ast.Expr]], env: Env
    ) -> tuple[tuple[str, Item], ...]:
        """Return the arguments of a reference, by the names of the parameters."""
        own = target.item.params
        kinds = {p.name: p for p in (*target.module.params, *target.module.inputs, *own)}
        given: list[tuple[str, Item]] = []
        for position, (name, value) in enumerate(args):
            param = kinds[name or own[position].name]
            if isinstance(param, ast.Param) and names_patterns(param.type):
                given.append((param.name, self.pattern(value, env)))
                continue
            held = env.names.get(value.name) if isinstance(value, ast.Name) else None
            item = held if isinstance(held, Array) else self.exprs.value(value, env)
            if isinstance(param, ast.Param):
                known: Any = self.exprs.constant(item, value.span)
                item = to_item(fit(known, param.type))  # type: ignore[arg-type]
            given.append((param.name, item))
        return tuple(given)

    # ---------------------------------------------------------------------------------- frames

    def frame(
        self,
        named: Named[Any],
        given: Mapping[str, Item],
        shared: Mapping[str, Value],
        own: Mapping[str, Value],
        spans: Mapping[str, Span],
        outer: Env | None,
        *,
        local: bool = False,
    ) -> Frame | None:
        """Return the scope of a body.

        ``own``: the values of parameters known now; ``given``: patterns and inputs. ``outer`` is
        the scope that asks; ``local``: for a pair of its own, with lengths of its own.
        Returns: None where values are wrong; ``found`` says why. Raises: LowerError.
        """
        item: Whole = named.item
        before = len(self.found)
        params = tuple(p for p in item.params if isinstance(p, ast.Param))
        self.exprs.spend(len(shared) + len(params), item.name_span)
        plain = tuple(p for p in params if not (p.name in given and names_patterns(p.type)))
        values = bind(
            plain, own, shared, lambda e, v: self.evaluate(named.module, e, v),
            self.found.append, spans,
        )  # fmt: skip
        if len(self.found) > before:
            return None
        names = {n: self.held(v, named.module) for n, v in values.items()}
        names |= {p.name: given[p.name] for p in params if p.name in given}
        self._require(item, named.module, names, values)
        nq, nk = (NQ, NK) if outer is None else outer.lengths
        env = replace(
            self.scope(named.module, {**_lengths(nq, nk), **names}),
            shared=shared, lengths=(nq, nk), above=() if outer is None else outer.above,
        )  # fmt: skip
        inputs = [i for i in (*named.module.inputs, *item.params) if isinstance(i, ast.Input)]
        env = self._sized(item, named.module, inputs, given, env)
        heads = self._heads(item, named.module, env)
        if "heads" not in env.names and heads is not None:
            env = env.bind("heads", lv.const(heads))
        query, key, env = self._sides(item, env, outer, local)
        env = self._fixed(env, values)
        for one in inputs:
            held = given.get(one.name)
            env = env.bind(one.name, held if held is not None else self.inputs.declare(one, env))
        env = env.bounded("h", 0, (heads or 1) - 1)
        env = replace(env, head=lv.var("h", (heads or 1) - 1))
        layers = item.layers if isinstance(item, ast.PatternDef) else None
        if layers is not None:
            env = env.bind(layers.var, lv.const(self._layer(layers, item.name, env)))
        return Frame(named, env, values, heads, query, key)

    def _require(
        self, item: Whole, module: Module, names: Mapping[str, Item], values: Mapping[str, Value]
    ) -> None:
        for demand in item.requires if isinstance(item, ast.PatternDef) else ():
            used = free_names(demand.condition)
            sizes = {n: lv.const(v) for n, v in self.known.items() if n in used and n not in names}
            env = self.scope(module, {**names, **sizes})
            if any(n not in env.names for n in used if self._is_size(n, item)):
                continue
            held = self.exprs.truth(demand.condition, env)
            if held.expr != ex.FALSE:
                continue
            shown = ", ".join(f"`{n}` = {show_value(values[n])}" for n in used if n in values)
            error = LowerError(
                "ATT0315", demand.message, demand.span,
                help="choose other values; the condition is written after `require`",
            )  # fmt: skip
            notes = (f"with {shown}",) if shown else ()
            error.diagnostic = replace(error.diagnostic, notes=notes)
            raise error

    @staticmethod
    def _is_size(name: str, item: Whole) -> bool:
        parts: list[ast.Node] = [] if item.heads is None else [item.heads]
        parts += [d for p in item.params if isinstance(p, ast.Input) for d in p.dims]
        return any(name in free_names(part) for part in parts)

    def _sized(
        self,
        item: Whole,
        module: Module,
        inputs: list[ast.Input],
        given: Mapping[str, Item],
        env: Env,
    ) -> Env:
        """Bind the sizes: bare names in the sides of inputs, and in the number of heads."""
        clause = item.heads or module.heads
        sides = [d for one in inputs for d in one.dims]
        passed = (held.name for held in given.values() if isinstance(held, Array))
        owner = (id(item), *passed)
        for one in inputs:  # an input of the caller brings its sides along
            held = given.get(one.name)
            for axis, dim in enumerate(one.dims if isinstance(held, Array) else ()):
                if isinstance(dim.extent, ast.Name) and dim.extent.name not in env.names:
                    assert isinstance(held, Array)
                    side = held.dims[axis] or self.inputs.found[held.name].dims[axis]
                    if side is None:
                        side = ex.Read(self._size(dim.extent.name, owner))
                        self.inputs.fix(held.name, axis, side)
                    size = Num(side, 1, 1, lv.POSITION_BOUND)
                    env = env.bind(dim.extent.name, size)
        counted = clause is not None and "heads" not in free_names(clause.count)
        scalars = {one.name for one in inputs if not one.dims}
        parts: list[ast.Node] = [*sides, *(() if clause is None else (clause.count,))]
        for part in parts:
            for name in free_names(part):
                if name in env.names or name in scalars or (name == "heads" and counted):
                    continue
                if name in self.known:
                    env = env.bind(name, lv.const(self.known[name]))
                    continue
                unique = self._size(name, owner)
                env = env.bind(name, lv.read(unique)).bounded(f"{unique}[]", 0, None)
        return env

    def _size(self, name: str, owner: tuple[object, ...]) -> str:
        """Return a name for a size of an item: others may have another of that name."""
        unique, count = name, 1
        while self.sizes.setdefault(unique, owner) != owner:
            count += 1
            unique = f"{name}_{count}"
        return unique

    def _heads(self, item: Whole, module: Module, env: Env) -> int | None:
        clause = item.heads or module.heads
        if clause is None:
            return None
        count = self.exprs.number(clause.count, env)
        heads = int(self.exprs.compile_time(count, clause.count.span))
        if not 1 <= heads <= UNROLL_LIMIT:
            raise LowerError(
                "ATT0303", f"the number of heads is {heads}", clause.count.span,
                help=f"a pattern has 1 to {UNROLL_LIMIT} heads",
            )  # fmt: skip
        return heads

    def _layer(self, clause: ast.Layers, name: str, env: Env) -> int:
        count = self.exprs.compile_time(
            self.exprs.number(clause.count, env), clause.count.span
        )
        if self.layer is None or not 0 <= self.layer < count:
            asked = "none" if self.layer is None else f"layer {self.layer}"
            raise LowerError(
                NO_LAYER, f"`{name}` has layers 0 to {int(count) - 1}, and {asked} was asked for",
                clause.span, help="choose one: `layer=0`, or `--layer 0`",
            )  # fmt: skip
        return self.layer

    # ---------------------------------------------------------------------------------- spaces

    def _sides(
        self, item: Whole, env: Env, outer: Env | None, local: bool
    ) -> tuple[Side | None, Side | None, Env]:
        if item.on is None:
            return None, None, env
        for name, size in self.known.items():
            if name not in env.names:
                env = env.bind(name, lv.const(size))
        env = self.spaces.declare(item.on, env)
        query = self.spaces.side(item.on.query, env)
        key = query if item.on.key is None else self.spaces.side(item.on.key, env)
        lengths = list(env.lengths)
        for place, (side, space) in enumerate(
            ((query, item.on.query), (key, item.on.key or item.on.query))
        ):
            fixed, used = lv.known(side.length), lv.known(lengths[place])
            if not local and fixed is not None and used is not None and fixed != used:
                what = "queries" if place == 0 else "keys"
                raise LowerError(
                    "ATT0317", f"`{item.name}` has {fixed} {what}, and is used for {used}",
                    space.span, help="give both patterns the same space",
                )  # fmt: skip
            if fixed is not None or local:
                lengths[place] = side.length
        return query, key, replace(env, lengths=(lengths[0], lengths[1]))

    @staticmethod
    def _fixed(env: Env, values: Mapping[str, Value]) -> Env:
        """Let the lengths that spaces fix be numbers."""
        ranges = dict(env.ranges)
        for name, number in zip(("q", "k"), env.lengths, strict=True):
            length = lv.known(number)
            if length is not None:
                ranges[name] = (0, max(int(length) - 1, 0))
        lengths = {n: v for n, v in _lengths(*env.lengths).items() if n not in values}
        return replace(env, names={**env.names, **lengths}, ranges=ranges)


def _lengths(nq: Num, nk: Num) -> dict[str, Item]:
    return {"n": nk, "nk": nk, "nq": nq}


def used_by(diagnostic: Diagnostic, above: tuple[ast.Reference, ...]) -> Diagnostic:
    """Add where a pattern was used, nearest first: its arguments may be what is wrong."""
    notes = tuple(
        f"in `{r.name}` as used at {r.span.source.name}:{r.span.line}:{r.span.column}"
        for r in reversed(above[-3:])
        if r.span.source is not None
    )
    return replace(diagnostic, notes=(*diagnostic.notes, *notes))


def plain_value(item: Item) -> Value | None:
    """Return the value of an argument that is a plain compile-time value, else None."""
    of_patterns = isinstance(item, tuple) and any(isinstance(i, Chosen) for i in item)
    value: Any = None if isinstance(item, Chosen) or of_patterns else from_item(item)
    return value  # type: ignore[no-any-return]
