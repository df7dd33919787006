"""Files -> modules: imports followed, patterns found by name, cycles and duplicates refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.limits import read_source
from attnc.dsl.parser import parse
from attnc.dsl.source import Source, Span
from attnc.dsl.suggest import did_you_mean

MAX_DUPLICATES = 20
"""Duplicate names that are reported of one file."""

STDLIB = Path(__file__).resolve().parent / "stdlib"


@dataclass(frozen=True, eq=False)
class Definition:
    """A pattern and the module whose names its body may use."""

    pattern: ast.PatternDef
    module: Module


@dataclass(frozen=True, eq=False)
class Module:
    """One file: what it defines and what it imports. Compared by identity."""

    source: Source
    folder: Path | None
    file: ast.File
    patterns: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, Definition] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)  # imported names that were not found

    @property
    def params(self) -> tuple[ast.Param, ...]:
        """The parameters of the file, shared by all its patterns."""
        return tuple(i for i in self.file.items if isinstance(i, ast.Param))

    @property
    def heads(self) -> ast.Heads | None:
        """The ``heads`` line of the file: the head count of its patterns that bind a head."""
        return next((i for i in self.file.items if isinstance(i, ast.Heads)), None)

    @property
    def main(self) -> str | None:
        """The pattern a file is loaded for: the one called like the file, else its last."""
        stem = Path(self.source.name).stem
        return stem if stem in self.patterns else next(reversed(self.patterns), None)

    def find(self, name: str) -> Definition | None:
        """Return the pattern called ``name``: of this file, else imported, else of the stdlib."""
        found = self.patterns.get(name) or self.imports.get(name)
        return found or (stdlib(name) if name in stdlib_names() else None)

    def names(self) -> Iterator[str]:
        """Yield every pattern name that a reference in this file may use."""
        return chain(stdlib_names(), self.imports, self.patterns)


@cache
def stdlib_names() -> tuple[str, ...]:
    """Return the names of the stdlib patterns; a file there is called like its pattern."""
    return tuple(sorted(p.stem for p in STDLIB.glob("*.attn")))


@cache
def stdlib(name: str) -> Definition:
    """Return a stdlib pattern; only this file, and what it uses, is parsed."""
    path = STDLIB / f"{name}.attn"
    source = Source(f"stdlib/{name}.attn", path.read_text(encoding="utf-8"))
    module, diagnostics = load_module(source, None)
    if module is None or name not in module.patterns:
        raise AssertionError(f"{path}: {diagnostics}")
    return module.patterns[name]


def load_module(
    source: Source, folder: Path | None, above: tuple[Path, ...] = ()
) -> tuple[Module | None, tuple[Diagnostic, ...]]:
    """Parse a file and everything it imports; ``above`` are the files that led here."""
    file, found = parse(source)
    if file is None:
        return None, found
    diagnostics = list(found)
    module = Module(source, folder, file)
    for item in file.items:
        match item:
            case ast.Import():
                diagnostics += _follow(module, item, above)
                module.missing.update(n for n in item.names if n not in module.imports)
            case ast.PatternDef():
                module.patterns.setdefault(item.name, Definition(item, module))
            case _:
                pass
    diagnostics += islice(_duplicates(file), MAX_DUPLICATES)
    return module, tuple(diagnostics)


def _follow(module: Module, item: ast.Import, above: tuple[Path, ...]) -> Iterator[Diagnostic]:
    def refuse(message: str, help: str = "") -> Diagnostic:
        return Diagnostic(code="ATT0205", message=message, span=item.span, help=help)

    if module.folder is None:
        yield refuse(
            "text that is not in a file cannot import other files",
            "save it to a file, or load it with the folder that its imports are relative to",
        )
        return
    path = (module.folder / item.path).resolve()
    if path in above:
        yield refuse(
            f'"{item.path}" imports this file again',
            "move the patterns that both files use to a third file",
        )
        return
    source, problems = read_source(path)
    if source is None:
        yield refuse(f'cannot import "{item.path}": {"; ".join(p.message for p in problems)}')
        return
    other, diagnostics = load_module(source, path.parent, (*above, path))
    yield from diagnostics
    if other is None:
        return
    for name in item.names:
        if name in other.patterns:
            module.imports.setdefault(name, other.patterns[name])
        else:
            known = did_you_mean(name, other.patterns)
            has = ", ".join(f"`{p}`" for p in other.patterns) or "no pattern"
            yield refuse(f'"{item.path}" has no pattern `{name}`', known or f"it has {has}")


def _duplicates(file: ast.File) -> Iterator[Diagnostic]:
    """Yield one diagnostic for every name that a file gives to two things of one sort."""
    patterns: dict[str, Span] = {}
    params: dict[str, Span] = {}
    heads: Span | None = None
    for item in file.items:
        match item:
            case ast.Import(names=names):
                for name in names:
                    yield from _once(patterns, name, item.span, "pattern")
            case ast.PatternDef(name=name):
                yield from _once(patterns, name, item.name_span, "pattern")
            case ast.Param(name=name):
                yield from _once(params, name, item.span, "parameter")
            case ast.Heads():
                if heads is not None:
                    yield Diagnostic(
                        code="ATT0203",
                        message="the file has two `heads` lines",
                        span=item.span,
                        notes=(f"the first is on line {heads.line}",),
                        help="give a pattern its own count: `pattern p heads h: 4 = ...`",
                    )
                heads = heads or item.span
    for item in file.items:
        if isinstance(item, ast.PatternDef):
            own = dict(params)
            for param in item.params:
                yield from _once(own, param.name, param.span, "parameter")


def _once(seen: dict[str, Span], name: str, span: Span, sort: str) -> Iterator[Diagnostic]:
    if name not in seen:
        seen[name] = span
        return
    yield Diagnostic(
        code="ATT0203",
        message=f"{sort} `{name}` is defined twice",
        span=span,
        notes=(f"first defined on line {seen[name].line}",),
        help="rename one of the two",
    )


def references(part: ast.Set) -> Iterator[ast.Reference]:
    """Yield the pattern references in a set, in the order they are written."""
    stack: list[ast.Set] = [part]
    while stack:
        match stack.pop():
            case ast.Reference() as found:
                yield found
            case ast.SetUnion(parts=parts) | ast.SetIntersection(parts=parts):
                stack += reversed(parts)
            case ast.SetDifference(left=left, right=right):
                stack += (right, left)
            case ast.SetComplement(part=inner):
                stack.append(inner)
            case ast.SetIf(then=then, otherwise=otherwise):
                stack += (otherwise, then)
            case ast.Builder():
                pass


def cycles(module: Module) -> Iterator[Diagnostic]:
    """Yield one diagnostic for every reference by which a pattern of the file uses itself."""
    done: set[Definition] = set()
    for start in module.patterns.values():
        path: dict[Definition, None] = {}
        walk: list[tuple[Definition, Iterator[ast.Reference]]] = []

        def enter(
            definition: Definition,
            path: dict[Definition, None] = path,
            walk: list[tuple[Definition, Iterator[ast.Reference]]] = walk,
        ) -> None:
            path[definition] = None
            walk.append((definition, references(definition.pattern.body)))

        if start not in done:
            enter(start)
        while walk:
            definition, rest = walk[-1]
            reference = next(rest, None)
            if reference is None:
                done.add(definition)
                del path[definition]
                walk.pop()
                continue
            target = definition.module.find(reference.name)
            if target in path:
                yield _cycle(reference, target, [d.pattern.name for d in path])
            elif target is not None and target not in done:
                enter(target)


def _cycle(reference: ast.Reference, target: Definition, path: list[str]) -> Diagnostic:
    name = target.pattern.name
    loop = path[path.index(name):]
    chain = " -> ".join((*loop, name)) if len(loop) < 8 else f"{name} -> ... -> {name}"
    help_ = "a pattern is a set, not a procedure: write the union of its steps"
    if name in stdlib_names() and len(loop) == 1:
        help_ = f"to build on the `{name}` of the standard library, give this pattern another name"
    return Diagnostic(
        code="ATT0204",
        message=f"pattern `{name}` uses itself",
        span=reference.span,
        notes=(f"the cycle is {chain}",) if len(loop) > 1 else (),
        help=help_,
    )
