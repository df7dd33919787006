"""Module -> diagnostics: names, types, arity, and when each value is known."""

from __future__ import annotations

from itertools import islice
from typing import TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import LENGTHS, MAX_FOUND, Entry, Memory, Scope
from attnc.dsl.check_call import arguments
from attnc.dsl.check_space import PLAIN
from attnc.dsl.check_tune import TuneChecker
from attnc.dsl.cycles import cycles
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.kinds import BOOL, INT, LAYER, Kind, Time, of_patterns, show_type
from attnc.dsl.resolve import Module

__all__ = ["arguments", "check"]

_Whole: TypeAlias = "ast.PatternDef | ast.Score | ast.Attention"


def check(module: Module) -> tuple[Diagnostic, ...]:
    """Return what is wrong with a module and the files it imports, errors before warnings.

    Values that depend on parameters (bounds, zero divisors, list lengths) are checked when a
    pattern is lowered with its parameters. At most ``MAX_FOUND`` are returned.
    """
    found: list[Diagnostic] = []
    memory = Memory()
    seen: set[int] = set()
    pending = [module]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        checker = _Checker(current, memory)
        checker.file()
        found += checker.found[: MAX_FOUND - len(found)]
        if current is module and not any(d.severity == "error" for d in checker.found):
            found += checker.unused()  # beside an error, such as a misspelt name, it is an echo
        pending += current.imported.modules()
    return tuple(sorted(found, key=lambda d: d.severity != "error"))


class _Checker(TuneChecker):
    """Checks one module; diagnostics gather in ``found``."""

    def inside(self, module: Module) -> _Checker:
        checker = _Checker(module, self.memory)
        checker.scoring = self.scoring
        return checker

    def file(self) -> None:
        self.found += islice(cycles(self.module), MAX_FOUND)
        shared: Scope = dict(LENGTHS)
        for param in self.module.params:
            self.param(param, shared)
        values = {n: e for n, e in shared.items() if n not in LENGTHS}
        self.inputs(self.module.inputs, shared, self.module.heads)
        if self.module.heads is not None:
            self.head_count(self.module.heads, shared)
        for item in self.module.file.items:
            match item:
                case ast.Fn():
                    self.fn(item, values)
                case ast.SpaceDef():
                    self.side(item.space, dict(shared), "")
                case ast.PatternDef() | ast.Score() | ast.Attention():
                    self.whole(item, dict(shared))
                case ast.Route() | ast.Combine():
                    scope = dict(values)
                    for own in item.params:
                        if isinstance(own, ast.Param):
                            self.param(own, scope)
                        else:
                            self.error(
                                "ATT0330", "routes declare no inputs", own.span,
                                help="the names in `external(...)` and the like are its inputs",
                            )  # fmt: skip
                    if isinstance(item, ast.Route):
                        self.route(item, scope)
                    else:
                        self.combine(item, scope)
                case ast.Tune():
                    self.tune(item)
                case ast.Import() | ast.Param() | ast.Heads() | ast.Input():
                    pass

    def param(self, param: ast.Param, scope: Scope) -> None:
        """Check a parameter's type, bounds and default, then bring it into scope."""
        type_ = scalar = param.type
        while scalar.item is not None:
            scalar = scalar.item
        for bound in (param.low, param.high):
            if bound is None:
                continue
            if scalar.kind not in ("int", "rational", "real"):
                self.error(
                    "ATT0301",
                    f"a parameter of type {show_type(type_)} cannot have a range",
                    bound.span,
                    help="ranges are for numbers; for a few words use `one of a, b`",
                )
                break
            self.known(bound, self.need(bound, scope, scalar), "the end of a range")
        if param.default is not None:
            kind = self.need(param.default, scope, type_)
            self.known(param.default, kind, "a default value")
        for choice in type_.choices:
            if type_.choices.count(choice) > 1:
                self.error(
                    "ATT0203", f"choice `{choice}` is listed twice", type_.span,
                    help="each choice is one word, once",
                )  # fmt: skip
                break
        scope[param.name] = Entry(Kind(type_, Time.COMPILE), param)

    def fn(self, fn: ast.Fn, values: Scope) -> None:
        """Check an fn for arguments that are known at compile time; calls check it for theirs."""
        for param in fn.params:
            if of_patterns(param.type):
                self.error(
                    "ATT0301", "an fn takes no patterns", param.span,
                    help="fns compute values; a `pattern` may take patterns",
                )  # fmt: skip
            if param.default is not None:
                kind = self.need(param.default, values, param.type)
                self.known(param.default, kind, "a default value")
        _, wrong = self.fn_body(self.module.own.fns[fn.name], {})
        if wrong is not None:
            self.found.append(wrong)

    def head_count(self, heads: ast.Heads, scope: Scope) -> None:
        self.known(heads.count, self.need(heads.count, scope, INT), "the number of heads")

    def whole(self, item: _Whole, scope: Scope) -> None:
        """Check a pattern, a score or an attention."""
        self.heads = item.heads or self.module.heads
        layers = item.layers if isinstance(item, ast.PatternDef) else None
        for param in item.params:
            if isinstance(param, ast.Param):
                self.param(param, scope)
        inputs = tuple(p for p in item.params if isinstance(p, ast.Input))
        self.inputs(inputs, scope, self.heads, layers)
        self.sides = self.on(item.on, scope)
        if item.heads is not None:
            self.head_count(item.heads, scope)
        if layers is not None:
            self.known(layers.count, self.need(layers.count, scope, INT), "the number of layers")
            scope[layers.var] = Entry(Kind(INT, Time.COMPILE, LAYER))
        match item:
            case ast.PatternDef():
                for require in item.requires:
                    kind = self.need(require.condition, scope, BOOL)
                    self.known(require.condition, kind, "a demand on the parameters")
                self.routed(item.body, scope)
            case ast.Score():
                self.score(item.body, scope)
            case ast.Attention():
                self.attention(item, scope)
        self.heads, self.sides = None, (PLAIN, PLAIN)

    # ------------------------------------------------------------------------------- warnings

    def unused(self) -> list[Diagnostic]:
        """Return a warning for every parameter, input, fn and space that nothing reads."""
        idle: list[tuple[ast.Param | ast.Input | ast.Fn | ast.SpaceDef, str]] = []
        items = self.module.file.items
        whole = [i for i in items if isinstance(i, ast.PatternDef | ast.Score | ast.Attention)]
        for item in items:
            match item:
                case ast.Param() | ast.Input():
                    idle.append((item, "nothing"))
                case ast.Fn() | ast.SpaceDef() if whole:
                    idle.append((item, "nothing"))
                case (
                    ast.PatternDef() | ast.Score() | ast.Attention() | ast.Route() | ast.Combine()
                ):
                    word = type(item).__name__.removesuffix("Def").lower()
                    idle += [(p, f"{word} `{item.name}` never") for p in item.params]
                case _:
                    pass
        found = []
        for node, who in islice((i for i in idle if id(i[0]) not in self.memory.used), MAX_FOUND):
            sort = {"Param": "parameter", "SpaceDef": "space"}.get(type(node).__name__, "")
            sort = sort or type(node).__name__.lower()
            reads = "no pattern" if who == "nothing" and sort == "parameter" else who
            found.append(
                Diagnostic(
                    code="ATT0210",
                    severity="warning",
                    message=f"{sort} `{node.name}` is never used",
                    span=node.name_span if isinstance(node, ast.Fn) else node.span,
                    label=f"{reads} reads it",
                    help="use it or remove it",
                )
            )
        return found
