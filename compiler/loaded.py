"""A checked item with what was given for it -> its pattern IR, its mask, its scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attnc.compiler.binding import INPUT_HELP, Value, names_patterns, read_array, read_value
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.routed import AnyAttention
from attnc.dsl import nodes as ast
from attnc.dsl.check import check
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.limits import deep_recursion
from attnc.dsl.resolve import Module, Named, Names
from attnc.dsl.suggest import did_you_mean
from attnc.dsl.tunes import stated

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnc.compiler.oracle import Given, Scores

UNKNOWN_SIZE, NO_LAYER = "ATT0213", "ATT0512"


class Loaded:
    """A pattern, score or attention that was checked, and what was given for it by name.

    ``given`` may hold parameters, inputs (run-time tensors), sizes (symbolic extents, sides of
    inputs) and ``layer``. Called with lengths, it is the oracle: ``loaded(16, 16)`` is the mask.
    """

    def __init__(
        self,
        named: Named[Any],
        given: Mapping[str, object] | None = None,
        warnings: tuple[Diagnostic, ...] = (),
        layer: int | None = None,
    ) -> None:
        self.named = named
        self.values: dict[str, Value] = {}
        self.inputs: dict[str, object] = {}
        self.sizes: dict[str, int] = {}
        self.found = warnings
        self.layer = layer
        self._ir: Pattern | None = None
        self._routed: AnyAttention | None = None
        self._take(dict(given or {}))

    @property
    def name(self) -> str:
        """The name it was defined with."""
        name: str = self.named.item.name
        return name

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """What was found so far and is not an error."""
        return self.found if self._ir is None else self._ir.warnings

    @property
    def ir(self) -> Pattern:
        """The pattern IR, with general sizes as far as that can be.

        Raises: CompileError where the values do not fit, or a size that must be known is not, and
            for what is decided by content: that has no pattern IR.
        """
        self._refuse_routed()
        if self._ir is None:
            with deep_recursion():
                self._ir = self._lowered()
        return self._ir

    @cached_property
    def is_routed(self) -> bool:
        """Whether it is decided by content: it holds routes, or is a sum of attentions."""
        from attnc.compiler.passes.lower_route import holds_routes

        return holds_routes(self.named)

    @property
    def routed(self) -> AnyAttention:
        """The routed IR, or that of a sum of attentions; the pattern IR of anything else.

        Raises: CompileError as ``ir``.
        """
        if not self.is_routed:
            return self.ir
        if self._routed is None:
            from attnc.compiler.passes.lower_route import lower_routed

            with deep_recursion():
                self._routed = lower_routed(
                    self.named, {**self.values, **self.sizes}, layer=self.layer
                )
        return self._routed

    @property
    def tuned(self) -> dict[str, Any]:
        """What the file states of the compiler's choices for this item: tile, orders and so on.

        Raises: CompileError where these are no choices of what is decided by content.
        """
        items = self.named.module.file.items
        own = [i for i in items if isinstance(i, ast.Tune) and i.name == self.name]
        if own and self.is_routed:
            raise CompileError([Diagnostic(
                code="ATT0340", span=own[0].name_span,
                message=f"`{self.name}` is chosen by content, and a tune is of a pattern whose "
                "pairs are known",
                help="leave the tune out",
            )])  # fmt: skip
        return dict(stated(own[0])) if own else {}

    def lower_early(self) -> None:
        """Raise what is wrong with the values; what waits for sizes or a layer is for later."""
        try:
            self.routed  # noqa: B018
        except CompileError as error:
            if any(d.code not in (UNKNOWN_SIZE, NO_LAYER) for d in error.diagnostics):
                raise

    @property
    def says_lengths(self) -> bool:
        """Whether a space or an input may say the lengths, so that they may be left out."""
        spaces = any(_on(named) is not None for named in _reachable(self.named))
        return spaces or bool(self._input_names())

    def at_layer(self, layer: int) -> Loaded:
        """Return the same for one layer."""
        other = Loaded(self.named, {}, self.found, layer)
        other.values, other.inputs, other.sizes = self.values, self.inputs, self.sizes
        return other

    def with_inputs(self, inputs: Mapping[str, object] | None) -> Loaded:
        """Return the same with more inputs given: their sides may say a number of heads."""
        if not inputs:
            return self
        other = Loaded(self.named, {}, self.found, self.layer)
        other.values, other.sizes = self.values, self.sizes
        other.inputs = {**self.inputs, **inputs}
        return other

    def __call__(
        self,
        nq: int | None = None,
        nk: int | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
        layer: int | None = None,
    ) -> NDArray[np.bool_]:
        """Return the mask by the oracle; lengths that the rest determines may be left out.

        Shape: ``[heads or 1, nq, nk]``, with layers of which none is chosen in front.
        Raises: CompileError where something is missing or does not fit.
        """
        from attnc.compiler.oracle import dense

        self._refuse_routed()
        given = self._given(nq, nk, inputs, extents, layer)
        try:
            return dense(self.named, given)
        except (ArithmeticError, IndexError):
            self._explain()
            raise

    def arrays(self, inputs: Mapping[str, object] | None = None) -> dict[str, NDArray[Any]]:
        """Return the inputs that were given, now and before, as checked arrays by name."""
        self._refuse_unknown(inputs or {}, self._input_names(), "input")
        declared: dict[str, ast.Input] = {}
        for param in (p for named in _reachable(self.named) for p in _params(named)):
            if isinstance(param, ast.Input):
                declared.setdefault(param.name, param)
        arrays = {}
        for name, given in {**self.inputs, **(inputs or {})}.items():
            try:
                arrays[name] = read_array(given, declared[name])
            except ValueError as wrong:
                where = declared[name].span
                found = Diagnostic(
                    code="ATT0511", message=f"input `{name}`: {wrong}", span=where, help=INPUT_HELP
                )  # fmt: skip
                raise CompileError([found]) from wrong
        return arrays

    def shape(
        self,
        nq: int | None = None,
        nk: int | None = None,
        *,
        extents: Mapping[str, int] | None = None,
        layer: int | None = None,
    ) -> tuple[int, ...]:
        """Return the shape of the mask; no pair is looked at."""
        from attnc.compiler.oracle import shape

        self._refuse_routed()
        return shape(self.named, self._given(nq, nk, None, extents, layer))

    def scores(
        self,
        nq: int | None = None,
        nk: int | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
        layer: int | None = None,
        dot: Any = 0.0,
    ) -> Scores:
        """Return what the softmax runs over, before the mask, by the oracle.

        ``dot`` is the scaled product, broadcast to ``[heads or 1, nq, nk]``.
        """
        from attnc.compiler.oracle import scores

        self._refuse_routed()
        given = self._given(nq, nk, inputs, extents, layer)
        try:
            return scores(self.named, given, dot)
        except (ArithmeticError, IndexError):
            self._explain()
            raise

    def data(
        self,
        nq: int | None = None,
        nk: int | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
    ) -> tuple[int, int, dict[str, Any]]:
        """Return the lengths, and all that the pattern IR reads at them, by name.

        Raises: CompileError where something is missing or does not fit.
        """
        from attnc.compiler.oracle import shape, sizes

        given = self._given(nq, nk, inputs, extents, None)
        *_, q, k = shape(self.named, given)
        arrays = self.arrays(inputs)
        missing = [i.name for i in self.ir.inputs if i.formula is None and i.name not in arrays]
        if missing:
            raise CompileError(
                [
                    Diagnostic(
                        code="ATT0510", message=f"input `{name}` of `{self.name}` is missing",
                        help=f"give it: `-I {name}=FILE.npy`, or `inputs={{'{name}': ...}}`",
                    )
                    for name in missing
                ]
            )  # fmt: skip
        return q, k, self.ir.given(q, k, arrays, sizes(self.named, given))

    def _given(
        self,
        nq: int | None,
        nk: int | None,
        inputs: Mapping[str, object] | None,
        extents: Mapping[str, int] | None,
        layer: int | None,
    ) -> Given:
        from attnc.compiler.oracle import Given

        lengths = {name: n for name, n in (("nq", nq), ("nk", nk)) if n is not None}
        for name, length in (*lengths.items(), *(extents or {}).items()):
            if not _is_size(length):
                raise ValueError(f"{name} is {length!r}; a length is an integer from 0")
        all_inputs = {**self.inputs, **(inputs or {})}
        self._refuse_unknown(inputs or {}, self._input_names(), "input")
        self._refuse_unknown(extents or {}, self.size_names, "extent")
        chosen = self.layer if layer is None else layer
        return Given(self.values, (nq, nk), all_inputs, {**self.sizes, **(extents or {})}, chosen)

    def _refuse_routed(self) -> None:
        """Raise where there is no mask: what is decided by content has none before the call."""
        if self.is_routed:
            raise CompileError([_decided_by_content(self.named.item)])

    def _explain(self) -> None:
        """Raise what only parameter values show, a zero divisor say: lowering finds its place."""
        from attnc.compiler.passes.lower_ast import lower

        lower(self.named, self.values, layer=self.layer)

    def _lowered(self) -> Pattern:
        from attnc.compiler.passes.lower_ast import lower
        from attnc.compiler.passes.warn import warn

        for known in self._known_sizes():
            try:
                pattern = lower(self.named, {**self.values, **known}, layer=self.layer)
                break
            except CompileError as error:
                last = error
                if any(d.code != UNKNOWN_SIZE for d in error.diagnostics):
                    raise
        else:
            raise last
        found = (*self.found, *pattern.warnings, *warn(pattern, self.named))
        return replace(pattern, warnings=found)

    def _known_sizes(self) -> Iterator[dict[str, int]]:
        """Yield no sizes, those that head counts are made of, all: the fewer, the more general."""
        from attnc.compiler.oracle import Given, sizes
        from attnc.compiler.oracle_space import free_names

        yield {}
        given = Given(self.values, inputs=self.inputs, sizes=self.sizes)
        known = sizes(self.named, given, used=True)
        clauses = ((n.module, _heads(n) or n.module.heads) for n in _reachable(self.named))
        named = (free_names(heads.count, module) for module, heads in clauses if heads is not None)
        counts = set().union(*named)
        yield {name: size for name, size in known.items() if name in counts}
        yield sizes(self.named, given)

    # ---------------------------------------------------------------------- what was given

    def _take(self, given: dict[str, object]) -> None:
        params = {p.name: p for p in _params(self.named) if isinstance(p, ast.Param)}
        found: list[Diagnostic] = []
        for name, value in given.items():
            if name in params:
                try:
                    self.values[name] = read_value(value, params[name])
                except ValueError as error:
                    found.append(self._wrong_value(params[name], error))
                    continue
                if names_patterns(params[name].type):
                    found += self._wrong_patterns(params[name], self.values[name])
            elif name in self._input_names():
                self.inputs[name] = _literal(name, value)
            elif name == "layer" and _is_size(value):
                self.layer = int(str(value))
            elif name in self.size_names and _is_size(value):
                self.sizes[name] = int(str(value))
            else:
                found.append(self._unknown(name, "parameter"))
        if found:
            raise CompileError(found)

    def _wrong_value(self, param: ast.Param, error: ValueError) -> Diagnostic:
        where = f"{self.named.module.source.name}, line {param.span.line}"
        return Diagnostic(
            code="ATT0301", message=f"parameter `{param.name}`: {error}",
            notes=(f"declared in {where}",), help="give a value of that type",
        )  # fmt: skip

    def _wrong_patterns(self, param: ast.Param, value: Any) -> list[Diagnostic]:
        """Return what is wrong with the patterns that were given for a parameter.

        They are checked where they would stand in the file: as its default.
        """
        module, item = self.named.module, self.named.item
        given = replace(param, low=None, high=None, default=value)
        params = tuple(given if p is param else p for p in item.params)
        changed = {id(param): given, id(item): replace(item, params=params)}
        items = tuple(changed.get(id(i), i) for i in module.file.items)
        own = Names()
        copy = replace(module, file=ast.File(items=items), own=own)
        for written in items:
            own.add(written, copy)
        return [d for d in check(copy) if d.severity == "error"]

    def _refuse_unknown(
        self, given: Mapping[str, object], names: tuple[str, ...], what: str
    ) -> None:
        wrong = [self._unknown(name, what) for name in given if name not in names]
        if wrong:
            raise CompileError(wrong)

    def _unknown(self, name: str, what: str) -> Diagnostic:
        names = (*(p.name for p in _params(self.named)), *self._input_names())
        names = tuple(dict.fromkeys((*names, *self.size_names)))
        has = ", ".join(f"`{n}`" for n in names) or "no parameters"
        return Diagnostic(
            code="ATT0206", message=f"`{self.name}` has no {what} `{name}`",
            help=did_you_mean(name, names) or f"it has {has}",
        )  # fmt: skip

    def _input_names(self) -> tuple[str, ...]:
        """Return the inputs of the item and of all that it uses."""
        used = (p.name for n in _reachable(self.named) for p in _params(n)
                if isinstance(p, ast.Input))  # fmt: skip
        return tuple(dict.fromkeys(used))

    @property
    def size_names(self) -> tuple[str, ...]:
        """The symbolic extents and size variables of the item and of all that it uses."""
        from attnc.compiler.oracle_space import free_names

        names: dict[str, None] = {}
        for named in _reachable(self.named):
            module = named.module
            taken = {"n", "nq", "nk", *(p.name for p in _params(named))}
            parts: list[ast.Node] = [
                d for p in _params(named) if isinstance(p, ast.Input) for d in p.dims
            ]
            parts += [part for part in (_on(named), _heads(named)) if part is not None]
            for part in parts:
                names |= dict.fromkeys(sorted(free_names(part, module) - taken))
        return tuple(names)


def _params(named: Named[Any]) -> tuple[ast.Param | ast.Input, ...]:
    """Return the parameters and inputs of an item and of its file."""
    return (*named.module.params, *named.module.inputs, *named.item.params)


def _reachable(named: Named[Any]) -> Iterator[Named[Any]]:
    """Yield an item, and the patterns and scores that it names, directly or not."""
    seen: set[Named[Any]] = set()
    stack = [named]
    while stack:
        here = stack.pop()
        if here in seen:
            continue
        seen.add(here)
        yield here
        module: Module = here.module
        for node in ast.walk(here.item):
            match node:
                case ast.Reference(name=name) | ast.Name(name=name) | ast.Call(function=name):
                    found: list[Named[Any] | None] = [module.find(name), module.find_score(name)]
                    if isinstance(here.item, ast.Combine):
                        found.append(module.find_attention(name))
                    stack += [other for other in found if other is not None]
                case _:
                    pass


def _on(named: Named[Any]) -> ast.On | None:
    return None if isinstance(named.item, ast.Combine) else named.item.on


def _heads(named: Named[Any]) -> ast.Heads | None:
    return None if isinstance(named.item, ast.Combine) else named.item.heads


def _decided_by_content(item: ast.PatternDef | ast.Attention | ast.Combine) -> Diagnostic:
    return Diagnostic(
        code="ATT0336", message=f"`{item.name}` is decided by content", span=item.name_span,
        label="which keys a query sees is only known at the call",
        help="compile it and call it; masks, tiles and plans are of patterns without routes",
    )  # fmt: skip


def _is_size(value: object) -> bool:
    return not isinstance(value, bool) and str(value).isdecimal()


def _literal(name: str, value: object) -> object:
    """Return the value of an input that was given as text: a number, ``true``, a list."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as wrong:
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0511", message=f"input `{name}` is no number and no list: {value!r}",
                    help=f"write a list, or give a file with `-I {name}=FILE.npy`",
                )
            ]
        ) from wrong  # fmt: skip
