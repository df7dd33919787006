"""Files -> modules: imports followed, items found by name, duplicates refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.limits import read_source
from attnc.dsl.parser import parse
from attnc.dsl.source import Source, Span
from attnc.dsl.suggest import did_you_mean

MAX_DUPLICATES = 20
"""Duplicate names that are reported of one file."""

STDLIB = Path(__file__).resolve().parent / "stdlib"

ItemT = TypeVar("ItemT", covariant=True)


@dataclass(frozen=True, eq=False)
class Named(Generic[ItemT]):
    """An item and the module whose names it may use. Compared by identity."""

    item: ItemT
    module: Module


@dataclass(frozen=True, eq=False)
class Definition(Named[ast.PatternDef]):
    """A pattern and the module whose names its body may use."""

    @property
    def pattern(self) -> ast.PatternDef:
        """The pattern as it was written."""
        return self.item


@dataclass(eq=False)
class Names:
    """What a file defines, or what it imports, by sort and name, in the order of the file."""

    patterns: dict[str, Definition] = field(default_factory=dict)
    scores: dict[str, Named[ast.Score]] = field(default_factory=dict)
    attentions: dict[str, Named[ast.Attention]] = field(default_factory=dict)
    fns: dict[str, Named[ast.Fn]] = field(default_factory=dict)
    spaces: dict[str, Named[ast.SpaceDef]] = field(default_factory=dict)
    inputs: dict[str, Named[ast.Input]] = field(default_factory=dict)
    routes: dict[str, Named[ast.Route]] = field(default_factory=dict)
    combines: dict[str, Named[ast.Combine]] = field(default_factory=dict)

    def add(self, item: ast.Item, module: Module) -> None:
        """Take in an item that defines a name; of two with one name the first counts."""
        match item:
            case ast.PatternDef():
                self.patterns.setdefault(item.name, Definition(item, module))
            case ast.Score():
                self.scores.setdefault(item.name, Named(item, module))
            case ast.Attention():
                self.attentions.setdefault(item.name, Named(item, module))
            case ast.Fn():
                self.fns.setdefault(item.name, Named(item, module))
            case ast.SpaceDef():
                self.spaces.setdefault(item.name, Named(item, module))
            case ast.Input():
                self.inputs.setdefault(item.name, Named(item, module))
            case ast.Route():
                self.routes.setdefault(item.name, Named(item, module))
            case ast.Combine():
                self.combines.setdefault(item.name, Named(item, module))
            case ast.Import() | ast.Param() | ast.Heads() | ast.Tune():
                pass

    def take(self, name: str, other: Names) -> bool:
        """Take in all that another file calls ``name``; return whether there was anything."""
        found = False
        for mine, theirs in zip(self._sorts(), other._sorts(), strict=True):
            if name in theirs:
                mine.setdefault(name, theirs[name])
                found = True
        return found

    def sort(self, name: str) -> str:
        """Return "pattern", "score", ... for what ``name`` is, "" where it is nothing."""
        words = ("pattern", "score", "attention", "fn", "space", "input", "route", "combine")
        return next((w for w, s in zip(words, self._sorts(), strict=True) if name in s), "")

    def modules(self) -> Iterator[Module]:
        """Yield the module of each item."""
        return (named.module for sort in self._sorts() for named in sort.values())

    def __iter__(self) -> Iterator[str]:
        return chain(*self._sorts())

    def _sorts(self) -> tuple[dict[str, Any], ...]:
        return (
            self.patterns, self.scores, self.attentions, self.fns, self.spaces, self.inputs,
            self.routes, self.combines,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Module:
    """One file: what it defines and what it imports. Compared by identity."""

    source: Source
    folder: Path | None
    file: ast.File
    own: Names = field(default_factory=Names)
    imported: Names = field(default_factory=Names)
    missing: set[str] = field(default_factory=set)  # imported names that were not found

    @property
    def patterns(self) -> dict[str, Definition]:
        """The patterns that the file defines."""
        return self.own.patterns

    @property
    def params(self) -> tuple[ast.Param, ...]:
        """The parameters of the file, shared by all its patterns."""
        return tuple(i for i in self.file.items if isinstance(i, ast.Param))

    @property
    def inputs(self) -> tuple[ast.Input, ...]:
        """The inputs of the file, imported ones first, shared by all its patterns."""
        return tuple(n.item for n in {**self.imported.inputs, **self.own.inputs}.values())

    @property
    def heads(self) -> ast.Heads | None:
        """The ``heads`` line of the file: the head count of its patterns that bind a head."""
        return next((i for i in self.file.items if isinstance(i, ast.Heads)), None)

    @property
    def main(self) -> str | None:
        """What a file is loaded for: the pattern, attention, score or fn called like the file.

        Else its last pattern or attention, else its last score, else its last fn.
        """
        own = self.own
        stem = Path(self.source.name).stem
        if own.sort(stem) in ("pattern", "attention", "combine", "score", "fn"):
            return stem
        kinds = (ast.PatternDef, ast.Attention, ast.Combine)
        whole = [i.name for i in self.file.items if isinstance(i, kinds)]
        return next(chain(reversed(whole), reversed(own.scores), reversed(own.fns)), None)

    def find(self, name: str) -> Definition | None:
        """Return the pattern called ``name``: of this file, else imported, else of the stdlib."""
        found = self.own.patterns.get(name) or self.imported.patterns.get(name)
        return found or _in_stdlib(name).patterns.get(name)

    def find_score(self, name: str) -> Named[ast.Score] | None:
        """Return the score called ``name``, looked up as a pattern is."""
        found = self.own.scores.get(name) or self.imported.scores.get(name)
        return found or _in_stdlib(name).scores.get(name)

    def find_attention(self, name: str) -> Named[ast.Attention] | None:
        """Return the attention called ``name``, looked up as a pattern is."""
        found = self.own.attentions.get(name) or self.imported.attentions.get(name)
        return found or _in_stdlib(name).attentions.get(name)

    def find_route(self, name: str) -> Named[ast.Route] | None:
        """Return the route called ``name``, looked up as a pattern is."""
        found = self.own.routes.get(name) or self.imported.routes.get(name)
        return found or _in_stdlib(name).routes.get(name)

    def is_route(self, name: str) -> bool:
        """Whether a name is a route here; a pattern of that name comes first."""
        return self.find(name) is None and self.find_route(name) is not None

    def find_fn(self, name: str) -> Named[ast.Fn] | None:
        """Return the fn called ``name``, looked up as a pattern is."""
        found = self.own.fns.get(name) or self.imported.fns.get(name)
        return found or _in_stdlib(name).fns.get(name)

    def find_space(self, name: str) -> Named[ast.SpaceDef] | None:
        """Return the space called ``name``: of this file, else imported."""
        return self.own.spaces.get(name) or self.imported.spaces.get(name)

    def sort(self, name: str) -> str:
        """Return what ``name`` is here: "pattern", "score", ...; "" where it is nothing."""
        found = self.own.sort(name) or self.imported.sort(name)
        return found or _in_stdlib(name).sort(name)

    def names(self) -> Iterator[str]:
        """Yield every name that this file may use for a pattern, a score or a function."""
        return chain(library_names(), self.imported, self.own)


@cache
def stdlib_names() -> tuple[str, ...]:
    """Return the names of the stdlib files; each defines an item called like the file."""
    return tuple(sorted(p.stem for p in STDLIB.glob("*.attn")))


@cache
def route_names() -> tuple[str, ...]:
    """Return the names of the stdlib files of routes; each defines an attention of its name."""
    return tuple(sorted(p.stem for p in (STDLIB / "routes").glob("*.attn")))


def library_names() -> tuple[str, ...]:
    """Return the names of all files that come with attnc: patterns, scores and the like, routes."""
    return (*stdlib_names(), *route_names())


@cache
def _in_library() -> frozenset[str]:
    return frozenset(library_names())


@cache
def stdlib_module(name: str) -> Module:
    """Return a stdlib file; only this file, and what it uses, is parsed."""
    folder = "routes/" if name in route_names() else ""
    path = STDLIB / f"{folder}{name}.attn"
    source = Source(f"stdlib/{folder}{name}.attn", path.read_text(encoding="utf-8"))
    module, diagnostics = load_module(source, path.parent, (path,))
    if module is None or not module.own.sort(name):
        raise AssertionError(f"{path}: {diagnostics}")
    return module


def stdlib(name: str) -> Definition:
    """Return a stdlib pattern."""
    return stdlib_module(name).patterns[name]


_NOTHING = Names()


def _in_stdlib(name: str) -> Names:
    """Return what the stdlib file called ``name`` defines, nothing where there is none."""
    return stdlib_module(name).own if name in _in_library() else _NOTHING


def as_set(expr: ast.Expr) -> ast.Reference | ast.SetIndex | None:
    """Return the pattern that an argument or default of type ``pattern`` names, None if none.

    ``window(left: 8)`` and ``causal`` are parsed as expressions there.
    """
    match expr:
        case ast.Name(name=name, span=span):
            return ast.Reference(name=name, args=(), span=span, name_span=span)
        case ast.Call(function=name, args=args):
            names = expr.names or (None,) * len(args)
            given = tuple(
                ast.Argument(name=n, value=a, span=a.span) for n, a in zip(names, args, strict=True)
            )
            return ast.Reference(name=name, args=given, span=expr.span, name_span=expr.name_span)
        case ast.Index(base=ast.Name(name=name, span=span), index=index):
            return ast.SetIndex(name=name, index=index, span=expr.span, name_span=span)
        case _:
            return None


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
        if isinstance(item, ast.Import):
            diagnostics += _follow(module, item, above)
            module.missing.update(n for n in item.names if not module.imported.sort(n))
        module.own.add(item, module)
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
        if not module.imported.take(name, other.own):
            known = did_you_mean(name, other.own)
            has = ", ".join(f"`{n}`" for n in other.own) or "nothing to import"
            yield refuse(f'"{item.path}" has no `{name}`', known or f"it has {has}")


def _duplicates(file: ast.File) -> Iterator[Diagnostic]:
    """Yield one diagnostic for every name that a file gives to two things of one sort.

    Patterns, scores, attentions and fns share their names; so do parameters and inputs.
    """
    definitions: dict[str, Span] = {}
    values: dict[str, Span] = {}
    spaces: dict[str, Span] = {}
    tunes: dict[str, Span] = {}
    heads: Span | None = None
    for item in file.items:
        match item:
            case ast.Import(names=names):
                for name in names:
                    yield from _once(definitions, name, item.span, "import")
            case ast.PatternDef(name=name):
                yield from _once(definitions, name, item.name_span, "pattern")
            case ast.Score(name=name):
                yield from _once(definitions, name, item.name_span, "score")
            case ast.Attention(name=name):
                yield from _once(definitions, name, item.name_span, "attention")
            case ast.Fn(name=name):
                yield from _once(definitions, name, item.name_span, "fn")
            case ast.Route(name=name):
                yield from _once(definitions, name, item.name_span, "route")
            case ast.Combine(name=name):
                yield from _once(definitions, name, item.name_span, "combine")
            case ast.Tune(name=name):
                yield from _once(
                    tunes, name, item.name_span, "tune", "write all clauses in one of them"
                )
            case ast.SpaceDef(name=name):
                yield from _once(spaces, name, item.span, "space")
            case ast.Param(name=name):
                yield from _once(values, name, item.span, "parameter")
            case ast.Input(name=name):
                yield from _once(values, name, item.span, "input")
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
        if isinstance(
            item, ast.PatternDef | ast.Score | ast.Attention | ast.Route | ast.Combine
        ):
            own = dict(values)
            for param in item.params:
                sort = "input" if isinstance(param, ast.Input) else "parameter"
                yield from _once(own, param.name, param.span, sort)
        elif isinstance(item, ast.Fn):
            own = {}
            for argument in item.params:
                yield from _once(own, argument.name, argument.span, "parameter")


def _once(
    seen: dict[str, Span], name: str, span: Span, sort: str, help: str = "rename one of the two"
) -> Iterator[Diagnostic]:
    if name not in seen:
        seen[name] = span
        return
    yield Diagnostic(
        code="ATT0203",
        message=f"{sort} `{name}` is defined twice",
        span=span,
        notes=(f"first defined on line {seen[name].line}",),
        help=help,
    )
