"""An item with what was given -> its parameters, inputs, lengths and sizes: where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.binding import INPUT_HELP, bind, read_array, show_value
from attnc.compiler.oracle_expr import Env, Evaluator, Missing, Tensor, to_real
from attnc.compiler.oracle_sizes import Sizes, refused
from attnc.compiler.oracle_space import Stretch, free_names, lay_out, total
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.resolve import Module, Named
from attnc.dsl.source import Span

if TYPE_CHECKING:
    from attnc.compiler.oracle_scope import Scope

Whole: TypeAlias = ast.PatternDef | ast.Score | ast.Attention
Lengths: TypeAlias = tuple[int | None, int | None]
LENGTHS = " lengths"
"""The name of the lengths that a pattern in ``(q, k) in p`` has."""


@dataclass(frozen=True)
class Chosen:
    """A pattern or a score with its arguments: also the value of a parameter of type pattern."""

    named: Named[Any]
    given: tuple[tuple[str, Any], ...] = ()


@dataclass(eq=False)
class World:
    """What is the same for all items of one evaluation: inputs given by name, and the layer."""

    inputs: Mapping[str, object]
    layer: int | None = None
    scopes: dict[tuple[object, ...], Scope] = field(default_factory=dict)


class Functions:
    """What an ``fn`` may use: the parameters of its file, and other functions."""

    def __init__(self, module: Module, shared: Mapping[str, Any]) -> None:
        self.module = module
        self.shared = shared
        self.value = Evaluator(self)

    def call(self, function: str, args: list[Any], names: tuple[str | None, ...], env: Env) -> Any:
        """Return the value of a call of an ``fn``."""
        named = self.module.find_fn(function)
        assert named is not None
        home = self
        if named.module is not self.module:
            home = Functions(named.module, {})
            home.shared = home.bound(named.module.params, {}, {})
        return home.applied(named.item, args, names)

    def applied(self, fn: ast.Fn, args: list[Any], names: tuple[str | None, ...]) -> Any:
        """Return the value of an ``fn`` of this file."""
        own = [p.name for p in fn.params]
        given = {n or own[i]: a for i, (n, a) in enumerate(zip(names, args, strict=True))}
        env: dict[str, Any] = dict(self.shared)
        for param in fn.params:
            if param.name in given:
                value = given[param.name]
            else:
                assert param.default is not None
                value = self.value(param.default, env)
            env[param.name] = to_real(value) if param.type.kind == "real" else value
        inside = Functions(self.module, self.shared)
        return inside.value(fn.body, env)

    def name(self, name: str, env: Env) -> Any:
        """Return the choice of that name."""
        return name

    def keeps(self, pattern: ast.PatternValue, query: Any, key: Any, env: Env) -> Any:
        """Patterns are not seen here: the checker refused it."""
        raise AssertionError(pattern)

    def pattern(self, value: ast.Expr, env: Env) -> Any:
        """Patterns are not seen here: the checker refused it."""
        raise AssertionError(value)

    def bound(
        self, params: tuple[ast.Param, ...], given: Mapping[str, Any], env: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return ``env`` and the values of parameters, patterns looked up."""
        wrong: list[Diagnostic] = []
        values: dict[str, Any] = bind(params, given, env, self.known, wrong.append)
        if wrong:
            raise CompileError(wrong)
        for param in params:
            if isinstance(values[param.name], ast.Expr):
                values[param.name] = self.pattern(values[param.name], values)
        return values

    def known(self, expr: ast.Expr, env: Mapping[str, Any]) -> Any:
        """Return the value of a compile-time expression."""
        value = self.value(expr, env)
        return bool(value) if isinstance(value, np.bool_) else value


class Setting(Functions):
    """An item, its values and its sizes at one pair of lengths.

    ``strict``: the lengths given must be those of the spaces; otherwise they only stand in where
    the spaces leave a length open. ``outer`` are the sizes of whoever uses the item; ``known``
    those that were given by name. Not ``complete``: the sizes that can be found, and no more.
    """

    def __init__(
        self,
        world: World,
        chosen: Chosen,
        lengths: Lengths,
        outer: Mapping[str, int],
        known: Mapping[str, int],
        *,
        strict: bool,
        complete: bool = True,
    ) -> None:
        super().__init__(chosen.named.module, {})
        self.world, self.chosen = world, chosen
        self.item: Whole = chosen.named.item
        given = dict(chosen.given)
        self.shared = self.bound(self.module.params, given, {})
        own = tuple(p for p in self.item.params if isinstance(p, ast.Param))
        self.values = self.bound(own, given, self.shared)
        written = (*self.module.inputs, *self.item.params)
        self.inputs = tuple(i for i in written if isinstance(i, ast.Input))
        self.tensors: dict[str, NDArray[Any]] = {}
        for one in self.inputs:
            self.read(one, given)
        self.sizes = Sizes({**self.choices(), **self.values}, dict(known))
        self.solve(lengths, outer, strict)
        if not complete:
            return
        self.need_lengths()
        self.require()
        self.query, self.key = (self.laid_out(side) for side in self.spaces())
        self.heads = self.head_count()
        self.env = self.surrounding()

    def read(self, one: ast.Input, given: Mapping[str, Any]) -> None:
        """Take in the tensor of an input: from an argument, else from what was given by name."""
        raw = given.get(one.name, self.world.inputs.get(one.name))
        if raw is None:
            return
        try:
            self.tensors[one.name] = read_array(raw, one)
        except ValueError as wrong:
            message = f"input `{one.name}`: {wrong}"
            raise refused("ATT0511", message, one.span, INPUT_HELP) from wrong

    def choices(self) -> dict[str, str]:
        """Return the words that parameters may be, which stand for themselves."""
        params = (*self.module.params, *self.item.params)
        return {word: word for param in params for word in param.type.choices}

    def size_names(self) -> set[str]:
        """Return the symbolic extents and the sizes that inputs and the head count are said by."""
        parts = [dim for one in self.inputs for dim in one.dims]
        written: list[ast.Node] = [p for p in (self.item.on, self.item.heads) if p is not None]
        names = (free_names(part, self.module) for part in (*parts, *written))
        return set().union(*names) - self.sizes.fixed.keys()

    def require(self) -> None:
        """Raise what the first ``require`` that does not hold says; one that waits is passed."""
        demands = self.item.requires if isinstance(self.item, ast.PatternDef) else ()
        for demand in demands:
            names = free_names(demand.condition, self.module)
            if self.sizes.unknown(names & self.size_names()):
                continue
            if self.value(demand.condition, self.sizes.env):
                continue
            shown = [f"`{n}` = {show_value(v)}" for n, v in self.values.items() if n in names]
            raise CompileError(
                [
                    Diagnostic(
                        code="ATT0315", message=demand.message, span=demand.span,
                        notes=(f"with {', '.join(shown)}",) if shown else (),
                        help="choose other values; the condition is written after `require`",
                    )
                ]
            )  # fmt: skip

    # -------------------------------------------------------------------------------- sizes

    def solve(self, lengths: Lengths, outer: Mapping[str, int], strict: bool) -> None:
        """Find all sizes that what is given determines."""
        hints = {n: v for n, v in zip(("nq", "nk"), lengths, strict=True) if v is not None}
        if strict:
            self.sizes.known.update(hints)
        self.equations()
        for name, size in {**outer, **hints}.items():
            if name not in self.sizes.known:
                self.sizes.known[name] = size
                self.equations()
        one = {"nq", "nk"} & self.sizes.known.keys()
        if not one:
            used = self.used_sizes()
            self.sizes.known.update({n: used[n] for n in ("nq", "nk") if n in used})
            self.equations()
            one = {"nq", "nk"} & self.sizes.known.keys()
        if len(one) == 1:  # as many queries as keys
            self.sizes.known.update(dict.fromkeys(("nq", "nk"), self.sizes.known[one.pop()]))
            self.equations()

    def used_sizes(self) -> dict[str, int]:
        """Return the lengths and sizes that used items have by their inputs and spaces."""
        return {}

    def need_lengths(self) -> None:
        """Raise what has no value where a length is not known."""
        for side, name in zip(self.spaces(), ("nq", "nk"), strict=True):
            if name not in self.sizes.known:
                names = set() if side is None else free_names(side, self.module)
                self.missing(min(self.sizes.unknown(names), default="n"))

    def equations(self) -> None:
        """Apply every equation until nothing new is found."""
        before = -1
        while before != len(self.sizes.known) + len(self.tensors):
            before = len(self.sizes.known) + len(self.tensors)
            for one in self.inputs:
                self.compute(one)
                self.match(one)
            for name, side in zip(("nq", "nk"), self.spaces(), strict=True):
                self.fill(name, side)
            if self.item.heads is not None:
                self.count_heads(self.item.heads)

    def demand(self, expr: ast.Expr, size: int | None) -> int | None:
        """Return the value of an expression of sizes as far as it is known (``Sizes.demand``)."""
        names = free_names(expr, self.module)
        return self.sizes.demand(names, lambda env: self.value(expr, env), size)

    def count_heads(self, clause: ast.Heads) -> None:
        """Let the clause say the size ``heads``, or that size the clause."""
        size = self.sizes.known.get("heads")
        count = self.demand(clause.count, size)
        if size is not None and count is not None and count != size:
            raise refused(
                "ATT0509", f"`{self.item.name}` has {count} heads, an input has {size}",
                clause.span,
            )  # fmt: skip
        if count is not None:
            self.sizes.known["heads"] = count

    def fill(self, name: str, side: ast.Space | None) -> None:
        """Let the grids of a side say its length, or the length the last extent."""
        if side is None:
            return
        length = self.sizes.known.get(name)
        tokens = self.sizes.demand(
            free_names(side, self.module),
            lambda env: total(lay_out(side, self.module, self.value, env)),
            length,
        )
        if tokens is None:
            return
        if length is not None and tokens != length:
            what = "queries" if name == "nq" else "keys"
            raise refused(
                "ATT0508", f"`{self.item.name}` has {tokens} {what}, not {length}", side.span,
                f"its space fixes the length: leave the length out, or give {tokens}",
            )  # fmt: skip
        self.sizes.known[name] = tokens

    def compute(self, one: ast.Input) -> None:
        """Evaluate the default of an input as soon as everything in it is known."""
        if one.default is None or one.name in self.tensors:
            return
        names = free_names(one.default, self.module) - self.tensors.keys()
        if names & {i.name for i in self.inputs} or self.sizes.unknown(names):
            return
        try:
            array = np.asarray(self.value(one.default, {**self.sizes.env, **self.tensors}))
        except ValueError as wrong:
            message = f"input `{one.name}`: {wrong}"
            help_ = "it is computed: change the inputs that its formula reads, or give it itself"
            raise refused("ATT0511", message, one.span, help_) from wrong
        if array.ndim != len(one.dims):  # one value for all
            sides = [None if d.extent is None else self.demand(d.extent, None) for d in one.dims]
            if None in sides:
                return
            array = np.broadcast_to(array, [side for side in sides if side is not None])
        self.tensors[one.name] = array

    def match(self, one: ast.Input) -> None:
        """Let the sides of a tensor say sizes, or compare them."""
        array = self.tensors.get(one.name)
        if array is None:
            return
        if not one.dims and array.dtype.kind == "i":
            self.sizes.known.setdefault(one.name, int(array))
        for axis, (dim, side) in enumerate(zip(one.dims, array.shape, strict=True)):
            wanted = None if dim.extent is None else self.demand(dim.extent, side)
            if wanted is not None and wanted != side:
                shape = ", ".join(map(str, array.shape))
                raise refused(
                    "ATT0509",
                    f"input `{one.name}` is [{shape}]: axis {axis} has {side}, not {wanted}",
                    dim.span, "the sides of inputs, the lengths and the heads must agree",
                )  # fmt: skip

    # --------------------------------------------------------------------------- what is known

    def spaces(self) -> tuple[ast.Space | None, ast.Space | None]:
        """Return the spaces of queries and of keys."""
        on = self.item.on
        return (None, None) if on is None else (on.query, on.key or on.query)

    def laid_out(self, side: ast.Space | None) -> tuple[Stretch, ...]:
        """Return the stretches of a side, none without a space."""
        if side is None:
            return ()
        for name in sorted(self.sizes.unknown(free_names(side, self.module))):
            self.missing(name, side.span)
        return lay_out(side, self.module, self.value, self.sizes.env)

    def head_count(self) -> int | None:
        """Return the number of heads the clause says, None without a clause."""
        clause = self.item.heads or self.module.heads
        if clause is None:
            return None
        for name in sorted(self.sizes.unknown(free_names(clause.count, self.module))):
            self.missing(name, clause.count.span)
        return int(self.value(clause.count, self.sizes.env))

    def layer_count(self) -> int | None:
        """Return the number of layers the clause says, None without a clause."""
        clause = self.item.layers if isinstance(self.item, ast.PatternDef) else None
        return None if clause is None else int(self.value(clause.count, self.sizes.env))

    def surrounding(self) -> dict[str, Any]:
        """Return the values of all names that hold everywhere in the item."""
        env: dict[str, Any] = {}
        for name in self.size_names():
            env[name] = Missing(lambda name=name: self.missing(name))  # type: ignore[misc]
        for one in self.inputs:
            env[one.name] = Missing(lambda one=one: self.no_input(one))  # type: ignore[misc]
        env |= {name: Tensor(array) for name, array in self.tensors.items()}
        env |= {n: v for n, v in self.sizes.env.items() if n not in self.tensors}
        if isinstance(self.item, ast.PatternDef) and self.item.layers is not None:
            env[self.item.layers.var] = self.world.layer
        env[LENGTHS] = (self.sizes.known["nq"], self.sizes.known["nk"])
        return env

    def missing(self, name: str, span: Span | None = None) -> Any:
        """Raise that a size has no value."""
        raise refused(
            "ATT0213", f"the size `{name}` of `{self.item.name}` is not known",
            span or self.item.name_span,
            f"give it, as `--shape {name}=...`, or give an input that has it as a side",
        )  # fmt: skip

    def no_input(self, one: ast.Input) -> Any:
        """Raise that an input that is read was not given."""
        raise refused(
            "ATT0510", f"input `{one.name}` of `{self.item.name}` is missing", one.span,
            f"give it: `-I {one.name}=FILE.npy`, or `inputs={{'{one.name}': ...}}`",
        )  # fmt: skip
