"""Module -> diagnostics: names, types, arity, and when each value is known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from attnc.dsl import nodes as ast
from attnc.dsl.check_expr import LENGTHS, MAX_FOUND, Entry, ExprChecker, Scope
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.kinds import BOOL, INT, Kind, Time, show_type
from attnc.dsl.resolve import Definition, Module, cycles
from attnc.dsl.source import Span


def check(module: Module) -> tuple[Diagnostic, ...]:
    """Return what is wrong with a module and the files it imports, errors before warnings.

    Values that depend on parameters (bounds, zero divisors, list lengths) are checked when a
    pattern is lowered with its parameters. At most ``MAX_FOUND`` are returned.
    """
    found: list[Diagnostic] = []
    seen: set[int] = set()
    pending = [module]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        checker = _Checker(current)
        checker.file()
        found += checker.found[: MAX_FOUND - len(found)]
        if current is module and not checker.found:
            found += checker.unused()  # beside an error, such as a misspelt name, it is an echo
        pending += [d.module for d in current.imports.values()]
    return tuple(sorted(found, key=lambda d: d.severity != "error"))


class _Checker(ExprChecker):
    """Checks one module; diagnostics gather in ``found``."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def file(self) -> None:
        self.found += islice(cycles(self.module), MAX_FOUND)
        shared: Scope = dict(LENGTHS)
        for param in self.module.params:
            self.param(param, shared)
        if self.module.heads is not None:
            self.heads(self.module.heads, shared)
        for item in self.module.file.items:
            if isinstance(item, ast.PatternDef):
                self.pattern(item, dict(shared))

    def param(self, param: ast.Param, scope: Scope) -> None:
        """Check a parameter's type, bounds and default, then bring it into scope."""
        type_ = param.type
        scalar = type_.item if type_.kind == "list" and type_.item else type_
        for bound in (param.low, param.high):
            if bound is None:
                continue
            if scalar.kind not in ("int", "rational"):
                self.error(
                    "ATT0301",
                    f"a parameter of type {show_type(type_)} cannot have a range",
                    bound.span,
                    help="ranges are for int and rational; for a few words use `one of a, b`",
                )
                break
            self.known(bound, self.need(bound, scope, scalar), "the end of a range")
        if param.default is not None:
            kind = self.need(param.default, scope, type_)
            self.known(param.default, kind, "a default value")
        for choice in type_.choices:
            if type_.choices.count(choice) > 1:
                self.error("ATT0203", f"choice `{choice}` is listed twice", type_.span)
                break
        scope[param.name] = Entry(Kind(type_, Time.COMPILE), param)

    def heads(self, heads: ast.Heads, scope: Scope) -> None:
        self.known(heads.count, self.need(heads.count, scope, INT), "the number of heads")

    def pattern(self, pattern: ast.PatternDef, scope: Scope) -> None:
        for param in pattern.params:
            self.param(param, scope)
        heads = pattern.heads or self.module.heads
        if pattern.heads is not None:
            self.heads(pattern.heads, scope)
        self.pairs(pattern.body, scope, heads)

    def pairs(self, part: ast.Set, scope: Scope, heads: ast.Heads | None) -> None:
        # A stack, not recursion: `a - b - c ...` is a chain as deep as it is long.
        stack: list[ast.Set] = [part]
        while stack:
            match stack.pop():
                case ast.Builder() as builder:
                    self.builder(builder, scope, heads)
                case ast.Reference() as reference:
                    self.reference(reference, scope)
                case ast.SetUnion(parts=parts) | ast.SetIntersection(parts=parts):
                    stack += reversed(parts)
                case ast.SetDifference(left=left, right=right):
                    stack += (right, left)
                case ast.SetComplement(part=inner):
                    stack.append(inner)
                case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
                    kind = self.need(condition, scope, BOOL)
                    self.known(
                        condition, kind, "a condition that chooses between sets",
                        "put a condition on positions inside the set: `{ q -> k : c and ... }`",
                    )  # fmt: skip
                    stack += (otherwise, then)

    def builder(self, builder: ast.Builder, scope: Scope, heads: ast.Heads | None) -> None:
        inner = dict(scope)
        names = [builder.query, builder.key, *([builder.head] if builder.head else [])]
        for name in names:
            if names.count(name) > 1:
                self.error(
                    "ATT0203", f"`{name}` names two coordinates of one set", builder.span,
                    help="give the query, the key and the head different names",
                )  # fmt: skip
                return
        for name in names[:2]:
            inner[name] = Entry(Kind(INT, Time.RUN))
        if builder.head:
            inner[builder.head] = Entry(Kind(INT, Time.EACH))
            if heads is None:
                self.error(
                    "ATT0209", "the number of heads is not known here", builder.span,
                    help=f"say it after the name: `pattern p heads {builder.head}: 8 = ...`",
                )  # fmt: skip
        self.head_name = heads.var if heads and heads.var not in inner else None
        self.need(builder.predicate, inner, BOOL)
        self.head_name = None

    def reference(self, reference: ast.Reference, scope: Scope) -> None:
        target = self.module.find(reference.name)
        if reference.name in self.module.missing - self.module.patterns.keys():
            for argument in reference.args:  # the import of the name has been reported
                self.expr(argument.value, scope)
            return
        if target is None:
            shape = f"`{{ q -> k : ... }}`, or define `pattern {reference.name} = ...`"
            self.error(
                "ATT0202", f"there is no pattern `{reference.name}`",
                reference.name_span if reference.name_span.source else reference.span,
                help=self.suggest(reference.name, self.module.names()) or f"write a set, {shape}",
            )  # fmt: skip
            for argument in reference.args:
                self.expr(argument.value, scope)
            return
        wanted = arguments(target, self.module)
        given: set[str] = set()
        own = [p.name for p in target.pattern.params]
        for position, argument in enumerate(reference.args):
            param = self.argument(argument, position, target, wanted, own, given)
            if param is None:
                self.expr(argument.value, scope)
                continue
            given.add(param.name)
            kind = self.need(argument.value, scope, param.type)
            self.known(
                argument.value, kind, f"argument `{param.name}` of `{reference.name}`",
                "patterns take compile-time values; write this one out as a set",
            )  # fmt: skip
        for name, param in wanted.items():
            if name not in given and param.default is None:
                self.error(
                    "ATT0207", f"`{reference.name}` needs a value for `{name}`", reference.span,
                    help=f"write `{reference.name}({name}: ...)`",
                )  # fmt: skip

    def argument(
        self,
        argument: ast.Argument,
        position: int,
        target: Definition,
        wanted: Mapping[str, ast.Param],
        own: list[str],
        given: set[str],
    ) -> ast.Param | None:
        """Return the parameter that an argument is for, or report and return None."""
        name = target.pattern.name
        if argument.name is None:
            if position >= len(own):
                most = f"{len(own)} argument{'s' * (len(own) != 1)}"
                self.error(
                    "ATT0302", f"`{name}` takes {most if own else 'no arguments'}", argument.span,
                    help=f"it is declared as {signature(target)}",
                )  # fmt: skip
                return None
            if own[position] in given:
                self.twice(own[position], name, argument.span)
                return None
            return wanted[own[position]]
        if argument.name in given:
            self.twice(argument.name, name, argument.span)
            return None
        if argument.name not in wanted:
            self.error(
                "ATT0206", f"`{name}` has no parameter `{argument.name}`", argument.span,
                help=self.suggest(argument.name, wanted)
                or f"it is declared as {signature(target)}",
            )  # fmt: skip
            return None
        return wanted[argument.name]

    def twice(self, param: str, pattern: str, span: Span) -> None:
        self.error("ATT0206", f"`{pattern}` gets `{param}` twice", span, help="keep one of the two")

    def unused(self) -> list[Diagnostic]:
        """Return a warning for every parameter that nothing reads."""
        owners: list[tuple[ast.Param, str]] = [(p, "no pattern") for p in self.module.params]
        for item in self.module.file.items:
            if isinstance(item, ast.PatternDef):
                owners += [(p, f"pattern `{item.name}` never") for p in item.params]
        idle = ((param, who) for param, who in owners if id(param) not in self.used)
        return [
            Diagnostic(
                code="ATT0210",
                severity="warning",
                message=f"parameter `{param.name}` is never used",
                span=param.span,
                label=f"{who} reads it",
                help="use it or remove it",
            )
            for param, who in islice(idle, MAX_FOUND)
        ]


def arguments(target: Definition, caller: Module | None) -> dict[str, ast.Param]:
    """Return the parameters a reference may give: the pattern's own and, from another file, by
    name only, those of the pattern's file."""
    params = list(target.pattern.params)
    if target.module is not caller:
        params += target.module.params
    return {p.name: p for p in params}


def signature(target: Definition) -> str:
    """Return a pattern's head line, for messages."""
    inside = ", ".join(f"{p.name}: {show_type(p.type)}" for p in target.pattern.params)
    return f"`{target.pattern.name}({inside})`" if inside else f"`{target.pattern.name}`"
