"""Text, files and zoo names -> patterns, masks and diagnostics: the compiler's front door."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.loaded import UNKNOWN_SIZE, Loaded
from attnc.dsl import nodes as ast
from attnc.dsl.check import check
from attnc.dsl.check_base import MAX_FOUND
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.limits import deep_recursion, read_source
from attnc.dsl.resolve import (
    Module,
    Named,
    library_names,
    load_module,
    route_names,
    stdlib_module,
    stdlib_names,
)
from attnc.dsl.source import Source
from attnc.dsl.suggest import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnc.compiler.oracle import Scores

Params = Mapping[str, object]
T = TypeVar("T")

CHECK_WORK, WARN_WORK = 100_000, 400
"""AST nodes one check lowers over all patterns of a file, and what a question to isl counts as."""


def load_file(
    path: str | Path, pattern: str | None = None, params: Params | None = None
) -> Pattern:
    """Compile one pattern of a file to the pattern IR.

    ``pattern`` None means the one called like the file, else the last one in it. Parameter values
    may be Python numbers, lists, or text as in ``-D rates=[1,2]``; inputs and sizes go by name too.

    Raises: CompileError with everything that is wrong.
    """
    return loaded_file(path, pattern, params).ir


def load_text(
    text: str,
    pattern: str | None = None,
    params: Params | None = None,
    *,
    name: str = "<text>",
    folder: str | Path | None = None,
) -> Pattern:
    """Compile one pattern of a text; ``folder`` is where its imports are looked up."""
    return loaded_text(text, pattern, params, name=name, folder=folder).ir


def load_zoo(name: str, params: Params | None = None) -> Pattern:
    """Compile a stdlib pattern. Raises: CompileError with a suggestion for an unknown name."""
    return loaded_zoo(name, params).ir


def loaded_file(
    path: str | Path, pattern: str | None = None, params: Params | None = None
) -> Loaded:
    """Check a file and take in what is given; lowering waits until the IR is asked for."""
    return _within_limits(lambda: _load(_module_of_file(path), pattern, params))


def loaded_text(
    text: str,
    pattern: str | None = None,
    params: Params | None = None,
    *,
    name: str = "<text>",
    folder: str | Path | None = None,
) -> Loaded:
    """Check a text, as ``loaded_file`` does; ``folder`` is where its imports are looked up."""
    return _within_limits(lambda: _load(_module_of_text(text, name, folder), pattern, params))


def loaded_zoo(name: str, params: Params | None = None) -> Loaded:
    """Look a stdlib item up, as ``loaded_file`` does."""
    return _within_limits(lambda: Loaded(_zoo(name), params))


def open_file(
    path: str | Path, pattern: str | None = None, params: Params | None = None
) -> tuple[Pattern, Loaded]:
    """Compile like ``load_file``, and return the oracle of the same text too: nq, nk -> mask."""
    loaded = loaded_file(path, pattern, params)
    return loaded.ir, loaded


def open_text(
    text: str,
    pattern: str | None = None,
    params: Params | None = None,
    *,
    name: str = "<text>",
    folder: str | Path | None = None,
) -> tuple[Pattern, Loaded]:
    """Compile like ``load_text``, and return the oracle too."""
    loaded = loaded_text(text, pattern, params, name=name, folder=folder)
    return loaded.ir, loaded


def open_zoo(name: str, params: Params | None = None) -> tuple[Pattern, Loaded]:
    """Compile like ``load_zoo``, and return the oracle too."""
    loaded = loaded_zoo(name, params)
    return loaded.ir, loaded


def zoo_names() -> tuple[str, ...]:
    """Return the names of the patterns that come with attnc, sorted."""
    return stdlib_names()


def zoo_routes() -> tuple[str, ...]:
    """Return the names of the attentions by content that come with attnc, sorted."""
    return route_names()


def zoo_all() -> tuple[str, ...]:
    """Return the names of all that comes with attnc: patterns first."""
    return library_names()


def zoo_text(name: str) -> str:
    """Return the ``.attn`` text of a stdlib pattern, to read, copy and change."""
    return stdlib_module(_known(name)).source.text


def zoo_summary(name: str) -> str:
    """Return the first line of a stdlib pattern's comment."""
    lines = zoo_text(name).splitlines()
    return lines[0].lstrip("# ").rstrip() if lines else ""


def check_file(
    path: str | Path, pattern: str | None = None, params: Params | None = None
) -> tuple[Diagnostic, ...]:
    """Return all that is wrong with a file, errors before warnings.

    Every pattern is checked as far as its parameters allow: the named one with ``params``, the
    others with their defaults.
    """
    return _diagnosed(lambda: _check(_module_of_file(path), pattern, params))


def check_text(
    text: str,
    name: str = "<text>",
    pattern: str | None = None,
    params: Params | None = None,
    *,
    folder: str | Path | None = None,
) -> tuple[Diagnostic, ...]:
    """Return all that is wrong with a text, errors before warnings."""
    return _diagnosed(lambda: _check(_module_of_text(text, name, folder), pattern, params))


def check_zoo(name: str, params: Params | None = None) -> tuple[Diagnostic, ...]:
    """Return all that is wrong with a zoo item for the given values, errors before warnings."""
    return _diagnosed(lambda: _check((stdlib_module(name), ()), None, params))


def dense(
    file: str | Path,
    pattern: str | None,
    params: Params | None,
    nq: int | None = None,
    nk: int | None = None,
    **given: Any,
) -> NDArray[np.bool_]:
    """Return the mask of a file's pattern, or of a zoo name, by the oracle (``Loaded.__call__``).

    Shape: ``[heads or 1, nq, nk]``.
    """
    return _lowered(loaded_any(file, pattern, params))(nq, nk, **given)


def dense_text(
    text: str,
    pattern: str | None,
    params: Params | None,
    nq: int | None = None,
    nk: int | None = None,
    **given: Any,
) -> NDArray[np.bool_]:
    """Return the mask of a text's pattern by the oracle. Shape: ``[heads or 1, nq, nk]``."""
    return _lowered(loaded_text(text, pattern, params))(nq, nk, **given)


def scores(
    file: str | Path,
    pattern: str | None,
    params: Params | None,
    nq: int | None = None,
    nk: int | None = None,
    **given: Any,
) -> Scores:
    """Return the scores of a score or attention by the oracle (``Loaded.scores``)."""
    return _lowered(loaded_any(file, pattern, params)).scores(nq, nk, **given)


def scores_text(
    text: str,
    pattern: str | None,
    params: Params | None,
    nq: int | None = None,
    nk: int | None = None,
    **given: Any,
) -> Scores:
    """Return the scores of a text's score or attention by the oracle."""
    return _lowered(loaded_text(text, pattern, params)).scores(nq, nk, **given)


def _lowered(loaded: Loaded) -> Loaded:
    """Return it after lowering, which reports what only values show: zero divisors, long loops."""
    loaded.lower_early()
    return loaded


def loaded_any(file: str | Path, pattern: str | None, params: Params | None) -> Loaded:
    """Load a path, else the zoo item of that name. A path wins."""
    if not Path(file).exists() and str(file) in library_names():
        return loaded_zoo(str(file), params)
    return loaded_file(file, pattern, params)


# ------------------------------------------------------------------------------------- steps

_Loaded = tuple["Module | None", tuple[Diagnostic, ...]]


def _within_limits(job: Callable[[], T]) -> T:
    """Run a job over trees as deep as the parser lets through."""
    with deep_recursion():
        return job()


def _diagnosed(job: Callable[[], tuple[Diagnostic, ...]]) -> tuple[Diagnostic, ...]:
    try:
        return _within_limits(job)
    except CompileError as error:
        return error.diagnostics


def _module_of_file(path: str | Path) -> _Loaded:
    source, found = read_source(path)
    if source is None:
        return None, found
    where = Path(path).resolve()
    return load_module(source, where.parent, (where,))


def _module_of_text(text: str, name: str, folder: str | Path | None) -> _Loaded:
    return load_module(Source(name, text), None if folder is None else Path(folder).resolve())


def _checked(loaded: _Loaded) -> tuple[Module, tuple[Diagnostic, ...]]:
    """Return a module without errors and its warnings. Raises: CompileError."""
    module, found = loaded
    if module is not None:
        found = (*found, *check(module))
    if module is None or any(d.severity == "error" for d in found):
        raise CompileError(found)
    return module, found


def _load(loaded: _Loaded, pattern: str | None, params: Params | None) -> Loaded:
    module, warnings = _checked(loaded)
    return Loaded(_choose(module, pattern), params, warnings)


def _choose(module: Module, pattern: str | None) -> Named[Any]:
    """Return the item asked for: by default the one called like the file, else the last."""
    name = pattern or module.main
    if name is None:
        raise _refusal(
            "ATT0202", f"`{module.source.name}` defines no pattern",
            "write one: `pattern p = { q -> k : k <= q }`",
        )  # fmt: skip
    own = module.own
    found: Named[Any] | None = own.patterns.get(name) or own.attentions.get(name)
    found = found or own.combines.get(name) or own.scores.get(name)
    if found is None and name in own.fns:
        raise _refusal(
            "ATT0202", f"`{name}` is a function, not a pattern",
            f"use it in one, or in a score: `{{ q -> k : {name}(...) }}`",
        )  # fmt: skip
    if found is None:
        names = (*own.patterns, *own.attentions, *own.combines, *own.scores)
        has = ", ".join(f"`{p}`" for p in names) or "none"
        raise _refusal(
            "ATT0202", f"`{module.source.name}` has no pattern `{name}`",
            did_you_mean(name, names) or f"its patterns: {has}",
        )  # fmt: skip
    return found


def _known(name: str) -> str:
    if name not in library_names():
        raise _refusal(
            "ATT0202", f"there is no zoo pattern `{name}`",
            did_you_mean(name, library_names()) or "`attnc zoo` lists the names",
        )  # fmt: skip
    return name


def _zoo(name: str) -> Named[Any]:
    return _choose(stdlib_module(_known(name)), name)


def _refusal(code: str, message: str, help: str) -> CompileError:
    return CompileError([Diagnostic(code=code, message=message, help=help)])


def _check(
    loaded: _Loaded, pattern: str | None, params: Params | None
) -> tuple[Diagnostic, ...]:
    from attnc.compiler.passes.lower_ast import lower
    from attnc.compiler.passes.lower_expr import ExprLowering
    from attnc.compiler.passes.lower_route import holds_routes, lower_routed
    from attnc.compiler.passes.warn import warn

    module, found = _checked(loaded)
    wrong: list[Diagnostic] = list(found)
    own = module.own
    whole: list[Named[Any]] = [
        *own.patterns.values(), *own.attentions.values(), *own.combines.values()
    ]
    chosen: Named[Any] | None = None
    if pattern or module.main in (*own.patterns, *own.attentions, *own.combines):
        chosen = _choose(module, pattern)
        whole = [chosen, *(named for named in whole if named is not chosen)]
    shared = {*(p.name for p in module.params), *(i.name for i in module.inputs)}
    work = 0
    for named in whole:
        given = dict(params or {})
        if named is not chosen:
            given = {n: v for n, v in given.items() if n in shared}
        if named is not chosen or not given:
            every = (*module.params, *named.item.params)
            needed = (p for p in every if isinstance(p, ast.Param) and p.default is None)
            if any(p.name not in given for p in needed):
                continue  # its values come from a command, or from the patterns that use it
        if work > CHECK_WORK or len(wrong) >= MAX_FOUND:
            wrong.append(_unchecked(named))
            break
        counter = ExprLowering()
        try:
            # Of a pattern with layers the first is looked at.
            values = Loaded(named, given).values
            if holds_routes(named):
                from attnc.compiler.passes.build_routed import looks_ahead  # it needs isl

                wrong += looks_ahead(lower_routed(named, values, layer=0), named)
                continue
            lowered = lower(named, values, counter, layer=0)
            wrong += (*lowered.warnings, *warn(lowered, named))
        except CompileError as error:
            wrong += (d for d in error.diagnostics if d.code != UNKNOWN_SIZE)
        work += counter.work + WARN_WORK
    distinct: dict[tuple[object, ...], Diagnostic] = {}
    for d in wrong:  # one place is reported once, whoever uses it
        source = d.span.source.name if d.span.source else d.message
        distinct.setdefault((d.severity, d.code, source, d.span.start, d.span.stop), d)
    return tuple(sorted(distinct.values(), key=lambda d: d.severity != "error"))


def _unchecked(named: Named[Any]) -> Diagnostic:
    name, where = named.item.name, named.item.name_span
    return Diagnostic(
        code="ATT0312", severity="note", span=where,
        message="the patterns from here on were checked for names and types only",
        label="the file is too large to lower all of it",
        help=f"check one of them with `--pattern {name}`, or split the file",
    )  # fmt: skip
