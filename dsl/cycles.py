"""Module -> one diagnostic for every pattern, fn or space that is defined by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.kinds import of_patterns
from attnc.dsl.resolve import Definition, Module, Named, as_set, stdlib_names
from attnc.dsl.source import Span

Item: TypeAlias = ast.PatternDef | ast.Fn | ast.SpaceDef


@dataclass(frozen=True)
class _Use:
    """One item that another one names, and where."""

    target: Named[Item]
    span: Span


def cycles(module: Module) -> Iterator[Diagnostic]:
    """Yield one diagnostic for every use by which an item of the file leads back to itself."""
    done: set[Named[Item]] = set()
    starts: list[Named[Item]] = [
        *module.patterns.values(), *module.own.fns.values(), *module.own.spaces.values(),
    ]  # fmt: skip
    for start in starts:
        if start in done:
            continue
        path: dict[Named[Item], None] = {start: None}
        walk = [(start, _uses(start))]
        while walk:
            item, rest = walk[-1]
            use = next(rest, None)
            if use is None:
                done.add(item)
                del path[item]
                walk.pop()
            elif use.target in path:
                yield _cycle(use, [n.item.name for n in path])
            elif use.target not in done:
                path[use.target] = None
                walk.append((use.target, _uses(use.target)))


def _uses(named: Named[Item]) -> Iterator[_Use]:
    """Yield the patterns, fns and spaces that an item names, in the order they are written."""
    item, module = named.item, named.module
    params = item.params if isinstance(item, ast.PatternDef) else ()
    hidden = {p.name for p in params if isinstance(p, ast.Param) and of_patterns(p.type)}
    for param in params:
        if isinstance(param, ast.Param) and of_patterns(param.type) and param.default is not None:
            yield from _in_values((param.default,), module, hidden)
    for node in ast.walk(item):
        match node:
            case ast.Reference():
                yield from _in_sets((node,), module, hidden)
            case ast.Call(function=name) if (fn := module.find_fn(name)) is not None:
                yield _Use(fn, node.span)
            case ast.Segment(name=str(name), grid=None):
                space = module.find_space(name)
                if space is not None:
                    yield _Use(space, node.span)
            case _:
                pass


def _in_sets(
    references: tuple[ast.Reference, ...], module: Module, hidden: set[str]
) -> Iterator[_Use]:
    """Yield the patterns that references name, those in their arguments too."""
    for reference in references:
        target = module.find(reference.name)
        if reference.name in hidden or target is None:
            continue
        yield _Use(target, reference.span)
        yield from _in_values(_pattern_arguments(reference, target), module, hidden)


def _in_values(values: tuple[ast.Expr, ...], module: Module, hidden: set[str]) -> Iterator[_Use]:
    for value in values:
        if isinstance(value, ast.ListOf):
            yield from _in_values(value.items, module, hidden)
        elif isinstance(reference := as_set(value), ast.Reference):
            yield from _in_sets((reference,), module, hidden)


def _pattern_arguments(reference: ast.Reference, target: Definition) -> tuple[ast.Expr, ...]:
    """Return the arguments of a reference that stand for parameters of type ``pattern``."""
    params = target.pattern.params
    by_name = {p.name: p for p in params}
    found: list[ast.Expr] = []
    for position, argument in enumerate(reference.args):
        if argument.name is not None:
            param = by_name.get(argument.name)
        else:
            param = params[position] if position < len(params) else None
        if isinstance(param, ast.Param) and of_patterns(param.type):
            found.append(argument.value)
    return tuple(found)


def _cycle(use: _Use, path: list[str]) -> Diagnostic:
    item = use.target.item
    name = item.name
    loop = path[path.index(name) :]
    chain = " -> ".join((*loop, name)) if len(loop) < 8 else f"{name} -> ... -> {name}"
    match item:
        case ast.PatternDef():
            sort = "pattern"
            help_ = "a pattern is a set, not a procedure: write the union of its steps"
            if name in stdlib_names() and len(loop) == 1:
                help_ = (
                    f"to build on the `{name}` of the standard library, give this pattern another "
                    "name"
                )
        case ast.Fn():
            sort = "fn"
            help_ = "an fn is a formula, not a procedure: use `sum`, `exists` or `for` over a range"
        case ast.SpaceDef():
            sort = "space"
            help_ = "a space is a list of grids: write them out"
    return Diagnostic(
        code="ATT0204",
        message=f"{sort} `{name}` uses itself",
        span=use.span,
        notes=(f"the cycle is {chain}",) if len(loop) > 1 else (),
        help=help_,
    )
