"""Calls: built-in functions, fns, scores; what they take and give."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import Checker, Entry, Scope, latest
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.functions import BUILTINS, TRANSFORMS, Builtin
from attnc.dsl.kinds import (
    BOOL,
    BROKEN,
    INT,
    REAL,
    Kind,
    Time,
    describe,
    is_number,
    join,
    show_type,
)  # fmt: skip
from attnc.dsl.resolve import Module, Named
from attnc.dsl.source import Span

Callee: TypeAlias = "ast.PatternDef | ast.Score | ast.Route | ast.Attention"
Written: TypeAlias = "tuple[str | None, ast.Expr, Span]"
"""An argument: its name where it has one, its value, and where both were written."""

MAX_FN_LEVELS = 512
"""How deep the formulas of fns that call each other may nest, one in the other."""


class CallChecker(Checker):
    """Types calls."""

    def call(self, expr: ast.Call, scope: Scope) -> Kind:
        where = expr.name_span if expr.name_span.source else expr.span
        fn = self.module.find_fn(expr.function)
        if fn is not None:
            return self.fn_call(expr, fn, scope)
        builtin = BUILTINS.get(expr.function)
        if builtin is not None:
            return self.builtin(expr, builtin, scope, where)
        if self.scores_named and (score := self.module.find_score(expr.function)) is not None:
            return self.score_call(expr.function, written(expr), expr.span, score, scope)
        for arg in expr.args:
            self.raw(arg, scope)
        return self.no_function(expr.function, where)

    def no_function(self, name: str, where: Span) -> Kind:
        if name in TRANSFORMS:
            return self.error(
                "ATT0314", f"`{name}` takes whole arrays", where,
                label="here values are read one by one",
                help=f"compute an input with it: `input y: int[n] = {TRANSFORMS[name].usage}`",
            )  # fmt: skip
        sort = self.module.sort(name)
        if sort in ("pattern", "score", "attention"):
            return self.other_sort(name, sort, where)
        known = chain(BUILTINS, self.module.own.fns, self.module.imported.fns)
        return self.error(
            "ATT0208", f"there is no function `{name}`", where,
            help=self.suggest(name, known)
            or f"the functions are {', '.join(f'`{b}`' for b in BUILTINS)}",
        )  # fmt: skip

    def other_sort(self, name: str, sort: str, where: Span) -> Kind:
        """Report a pattern, score or attention that stands where a value is needed."""
        article = "an" if sort == "attention" else "a"
        return self.error(
            "ATT0214", f"`{name}` is {article} {sort}, not a value", where,
            help=f"test a pair with it: `(q, k) in {name}`" if sort == "pattern"
            else "scores are named in an attention: `attention a = softmax(dot + "
            f"{name}, over: ...)`" if sort == "score"
            else "an attention is loaded by its name; nothing can be built from it",
        )  # fmt: skip

    # ---------------------------------------------------------------------------- built-ins

    def builtin(self, expr: ast.Call, builtin: Builtin, scope: Scope, where: Span) -> Kind:
        count = len(expr.args)
        name = next((n for n in expr.names if n is not None), None)
        if name is not None:
            return self.error(
                "ATT0206", f"`{builtin.name}` has no parameter `{name}`", where,
                help=f"write `{builtin.usage}`",
            )  # fmt: skip
        if count < builtin.least or (builtin.most is not None and count > builtin.most):
            least = f"{builtin.least} argument{'s' * (builtin.least != 1)}"
            return self.error(
                "ATT0302",
                f"`{builtin.name}` takes {'at least ' * (builtin.most is None)}{least}, "
                f"found {count}",
                where,
                help=f"write `{builtin.usage}`",
            )
        match builtin.name:
            case "len":
                return self.length(expr.args[0], scope)
            case "fill":
                times = self.need(expr.args[0], scope, INT)
                item = self.expr(expr.args[1], scope)
                self.known(expr.args[0], times, "the length of a list")
                if None in (times.type, item.type):
                    return BROKEN
                return Kind(ast.Type(kind="list", item=item.type), item.time)
            case "min" | "max" if count == 1:
                return self.extreme_of_list(expr, scope)
            case "is_pow2" | "bit" | "bit_length":
                result = INT if builtin.result == "int" else BOOL
                return latest(result, [self.need(a, scope, INT) for a in expr.args])
        kinds = [self.need(arg, scope, REAL) for arg in expr.args]
        if any(k.type is None for k in kinds):
            return BROKEN
        time = max(k.time for k in kinds)
        if builtin.result == "real":
            return self.real(REAL, time, expr)
        if builtin.result == "int":
            late = time == Time.RUN and any(k.type == REAL for k in kinds)
            return self.real(REAL, time, expr) if late else Kind(INT, time)
        common = kinds[0].type
        for kind in kinds[1:]:
            assert common is not None
            assert kind.type is not None
            common = join(common, kind.type)
        assert common is not None
        units = {k.unit for k in kinds if k.unit is not None}
        unit = units.pop() if len(units) == 1 and builtin.name != "abs" else None
        return Kind(self.real(common, time, expr).type, time, unit)

    def length(self, items: ast.Expr, scope: Scope) -> Kind:
        """Check the argument of ``len``."""
        kind = self.raw(items, scope)
        if kind.type is None or (kind.type.kind == "list" and not kind.dims):
            return Kind(kind.type and INT, Time.COMPILE)
        found = "an input" if kind.dims else describe(kind.type)
        return self.error(
            "ATT0301", f"expected a list, found {found}", items.span,
            help="name the side of the input, `input ids: int[count]`, and write `count`"
            if kind.dims else "only lists have a length; `n` is that of the sequence",
        )  # fmt: skip

    def real(self, type_: ast.Type, time: Time, expr: ast.Expr) -> Kind:
        """Return a kind; refuse a real number that is known only at run time outside of scores."""
        if type_ == REAL and time == Time.RUN and not self.scoring:
            return self.error(
                "ATT0313", "a real number that is known only at run time", expr.span,
                label="a set of pairs is exact: ints and rationals at run time",
                help="round a compile-time number with `floor(...)`, or say it with ints; in a "
                "`score` real numbers are fine",
            )  # fmt: skip
        return Kind(type_, time)

    def extreme_of_list(self, expr: ast.Call, scope: Scope) -> Kind:
        kind = self.expr(expr.args[0], scope)
        if kind.type is None:
            return BROKEN
        item = kind.type.item if kind.type.kind == "list" else None
        if item is not None and is_number(item):
            return Kind(item, kind.time)
        if kind.type.kind == "list":
            return self.error(
                "ATT0301", "expected a list of numbers", expr.args[0].span,
                label=f"this has type {show_type(kind.type)}",
                help=f"compare items one by one, or give numbers: `{expr.function}(x, y)`",
            )  # fmt: skip
        return self.error(
            "ATT0302", f"`{expr.function}` of one number is that number", expr.span,
            help=f"give two or more numbers, or a list: `{expr.function}(x, y)`",
        )  # fmt: skip

    # -------------------------------------------------------------------------- fns and scores

    def fn_call(self, expr: ast.Call, fn: Named[ast.Fn], scope: Scope) -> Kind:
        """Check a call of an fn: its arguments, and its body at the times they are known."""
        self.use(fn.item)
        params = {p.name: p for p in fn.item.params}
        inside = ", ".join(f"{p.name}: {show_type(p.type)}" for p in fn.item.params)
        given: dict[str, Kind] = {}
        args = written(expr)
        shown = f"`{expr.function}({inside})`"
        for name, arg in self.matched(args, list(params), params, expr.function, shown):
            if name is None:
                self.expr(arg, scope)
            else:
                given[name] = self.need(arg, scope, params[name].type)
        unmatched = len(given) < len(args)
        broken = unmatched or any(k.type is None for k in given.values())
        for name, param in params.items():
            if name not in given and param.default is None and not unmatched:
                broken = True
                self.error(
                    "ATT0207", f"`{expr.function}` needs a value for `{name}`", expr.span,
                    help=f"write `{expr.function}({', '.join(params)})`",
                )  # fmt: skip
        if broken:
            return BROKEN
        whole, wrong = self.fn_body(fn, {})
        if wrong is not None or whole.type is None:
            return BROKEN  # reported where it is defined
        kind, wrong = self.fn_body(fn, {n: k.time for n, k in given.items()})
        if wrong is not None:
            where = (
                f"line {wrong.span.line} of {wrong.span.source.name}: " if wrong.span.source else ""
            )
            inner = wrong.message.startswith("in `")
            message = wrong.message if inner else f"in `{expr.function}`: {wrong.message}"
            return self.error(
                wrong.code, message, expr.span, label="with these arguments", help=wrong.help,
                notes=(f"{where}{wrong.label}",) if wrong.label else (),
            )  # fmt: skip
        return kind

    def fn_body(
        self, fn: Named[ast.Fn], times: Mapping[str, Time]
    ) -> tuple[Kind, Diagnostic | None]:
        """Return the kind of an fn whose arguments are known at ``times`` (absent: when it is
        compiled), and the first thing wrong with it."""
        key = (fn, self.scoring, *(times.get(p.name, Time.COMPILE) for p in fn.item.params))
        known = self.memory.fns.get(key)
        if known is not None:
            return known
        if self.levels(fn, MAX_FN_LEVELS) > MAX_FN_LEVELS:
            if any(self.memory.levels.get(id(f.item), 0) > MAX_FN_LEVELS for f in _called(fn)):
                return BROKEN, None  # reported there
            deep = Diagnostic(
                code="ATT0312", message="fns that call each other nest too deeply",
                span=fn.item.name_span, label=f"more than {MAX_FN_LEVELS} levels",
                help="make the formulas flatter, or the chain of calls shorter",
            )  # fmt: skip
            return BROKEN, deep
        self.memory.fns[key] = BROKEN, None  # a cycle is reported once, elsewhere
        checker = self.inside(fn.module)
        scope: Scope = {p.name: Entry(Kind(p.type, Time.COMPILE), p) for p in fn.module.params}
        for param in fn.item.params:
            time = times.get(param.name, Time.COMPILE)
            scope[param.name] = Entry(Kind(param.type, time), param)
        kind = checker.expr(fn.item.body, scope).plain()
        wrong = next((d for d in checker.found if d.severity == "error"), None)
        self.memory.fns[key] = kind, wrong
        return kind, wrong

    def levels(self, fn: Named[ast.Fn], most: int) -> int:
        """Return how deep an fn and those it calls nest; ``most + 1`` where that is deeper."""
        known = self.memory.levels.get(id(fn.item))
        if known is not None:
            return known
        self.memory.levels[id(fn.item)] = 0  # a cycle is reported elsewhere
        own = _levels(fn.item.body)
        below = 0
        for called in _called(fn) if own <= most else ():
            below = max(below, self.levels(called, most - own))
            if own + below > most:
                break
        if own + below <= most or most == MAX_FN_LEVELS:
            self.memory.levels[id(fn.item)] = min(own + below, most + 1)
        else:
            del self.memory.levels[id(fn.item)]
        return min(own + below, most + 1)

    def score_call(
        self, name: str, args: Sequence[Written], span: Span, score: Named[ast.Score], scope: Scope
    ) -> Kind:
        """Check the use of a score in an attention."""
        self.given(name, args, span, score, scope)
        return Kind(REAL, Time.RUN)

    def given(
        self,
        name: str,
        args: Sequence[Written],
        span: Span,
        target: Named[Callee],
        scope: Scope,
    ) -> None:
        """Check the arguments of a pattern or a score that is used by name."""
        wanted = arguments(target, self.module)
        own = [p.name for p in target.item.params]
        given: set[str] = set()
        self.same_space(name, target, span)
        for found, value in self.matched(args, own, wanted, name, signature(target)):
            if found is None:
                self.expr(value, scope)
                continue
            given.add(found)
            param = wanted[found]
            if isinstance(param, ast.Input):
                self.input_argument(value, param, name, scope)
                continue
            kind = self.need(value, scope, param.type)
            self.known(
                value, kind, f"argument `{param.name}` of `{name}`",
                "patterns take compile-time values; write this one out as a set",
            )  # fmt: skip
        for missing, param in wanted.items():
            needed = isinstance(param, ast.Param) and param.default is None
            if needed and missing not in given and len(given) == len(args):
                self.error(
                    "ATT0207", f"`{name}` needs a value for `{missing}`", span,
                    help=f"write `{name}({missing}: ...)`",
                )  # fmt: skip

    def input_argument(self, value: ast.Expr, param: ast.Input, target: str, scope: Scope) -> None:
        """Check that an argument for an input is an input of the same type and axes."""
        kind = self.raw(value, scope)
        entry = scope.get(value.name) if isinstance(value, ast.Name) else None
        if kind.type is None:
            return
        if entry is None or not isinstance(entry.owner, ast.Input):
            self.error(
                "ATT0301", f"expected an input for `{param.name}` of `{target}`", value.span,
                help=f"declare one beside this pattern: `input {param.name}: "
                f"{show_input(param)}`, and pass its name",
            )  # fmt: skip
        elif kind.type != param.type or len(entry.owner.dims) != len(param.dims):
            wanted = show_input(param)
            self.error(
                "ATT0301", f"expected an input {wanted}, found {show_input(entry.owner)}",
                value.span, help=f"`{target}` declares it as `{param.name}`",
            )  # fmt: skip

    def matched(
        self,
        args: Sequence[Written],
        own: list[str],
        wanted: Collection[str],
        target: str,
        shown: str,
    ) -> Iterator[tuple[str | None, ast.Expr]]:
        """Yield for each argument the parameter it is for, None after a report."""
        given: set[str] = set()
        for position, (name, value, span) in enumerate(args):
            found = name
            if name is None and position >= len(own):
                most = f"{len(own)} argument{'s' * (len(own) != 1)}"
                self.error(
                    "ATT0302", f"`{target}` takes {most if own else 'no arguments'}", span,
                    help=f"it is declared as {shown}",
                )  # fmt: skip
            elif name is None:
                found = own[position]
            elif name not in wanted:
                found = None
                self.error(
                    "ATT0206", f"`{target}` has no parameter `{name}`", span,
                    help=self.suggest(name, wanted) or f"it is declared as {shown}",
                )  # fmt: skip
            if found is not None and found in given:
                self.error(
                    "ATT0206", f"`{target}` gets `{found}` twice", span, help="keep one of the two"
                )
                found = None
            if found is not None:
                given.add(found)
            yield found, value


def _called(fn: Named[ast.Fn]) -> Iterator[Named[ast.Fn]]:
    """Yield the fns that an fn calls."""
    for node in ast.walk(fn.item.body):
        called = fn.module.find_fn(node.function) if isinstance(node, ast.Call) else None
        if called is not None:
            yield called


def _levels(expr: ast.Expr) -> int:
    """Return how deep a formula nests."""
    deepest = 0
    stack: list[tuple[ast.Node, int]] = [(expr, 1)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        stack += [(child, level + 1) for child in ast.children(node)]
    return deepest


def written(expr: ast.Call) -> tuple[Written, ...]:
    """Return the arguments of a call."""
    names = expr.names or (None,) * len(expr.args)
    return tuple((n, a, a.span) for n, a in zip(names, expr.args, strict=True))


def arguments(target: Named[Callee], caller: Module | None) -> dict[str, ast.Param | ast.Input]:
    """Return the parameters and inputs a reference may give: its own and, from another file, by
    name only, those of its file."""
    params: list[ast.Param | ast.Input] = list(target.item.params)
    if target.module is not caller:
        params += (*target.module.params, *target.module.inputs)
    return {p.name: p for p in params}


def signature(target: Named[Callee]) -> str:
    """Return the head line of a pattern or score, for messages."""
    inside = ", ".join(
        f"input {p.name}: {show_input(p)}" if isinstance(p, ast.Input)
        else f"{p.name}: {show_type(p.type)}"
        for p in target.item.params
    )  # fmt: skip
    return f"`{target.item.name}({inside})`" if inside else f"`{target.item.name}`"


def show_input(declared: ast.Input) -> str:
    """Return the type of an input as it was written, formulas of sides left out: ``int[n, .]``."""
    sides = ("*" if d.extent is None else d.extent for d in declared.dims)
    axes = ", ".join(
        s if isinstance(s, str) else s.name if isinstance(s, ast.Name)
        else s.text if isinstance(s, ast.Number) else "."
        for s in sides
    )  # fmt: skip
    return f"{declared.type.kind}[{axes}]" if axes else declared.type.kind
