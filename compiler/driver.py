"""Text, files and zoo names -> patterns, masks and diagnostics: the compiler's front door."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attnc.compiler.binding import Value, read_value
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes.lower_ast import lower
from attnc.compiler.passes.lower_expr import ExprLowering
from attnc.compiler.passes.warn import warn
from attnc.dsl.check import check
from attnc.dsl.check_expr import MAX_FOUND
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.limits import deep_recursion, read_source
from attnc.dsl.resolve import STDLIB, Definition, Module, load_module, stdlib, stdlib_names
from attnc.dsl.source import Source
from attnc.dsl.suggest import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Params = Mapping[str, object]
Oracle = Callable[[int, int], "NDArray[np.bool_]"]
T = TypeVar("T")

CHECK_WORK, WARN_WORK = 100_000, 400
"""AST nodes one check lowers over all patterns of a file, and what a question to isl counts as."""


def load_file(
    path: str | Path, pattern: str | None = None, params: Params | None = None
) -> Pattern:
    """Compile one pattern of a file to the pattern IR.

    ``pattern`` None means the pattern called like the file, else the last one in it. Parameter
    values may be Python numbers, lists, or text as in ``-D rates=[1,2]``.

    Raises: CompileError with everything that is wrong.
    """
    return _within_limits(lambda: _load(_module_of_file(path), pattern, params))


def load_text(
    text: str,
    pattern: str | None = None,
    params: Params | None = None,
    *,
    name: str = "<text>",
    folder: str | Path | None = None,
) -> Pattern:
    """Compile one pattern of a text; ``folder`` is where its imports are looked up."""
    return _within_limits(lambda: _load(_module_of_text(text, name, folder), pattern, params))


def load_zoo(name: str, params: Params | None = None) -> Pattern:
    """Compile a stdlib pattern. Raises: CompileError with a suggestion for an unknown name."""
    return _within_limits(lambda: _lower(_zoo(name), params, ()))


def open_file(
    path: str | Path, pattern: str | None = None, params: Params | None = None
) -> tuple[Pattern, Oracle]:
    """Compile like ``load_file``, and return the oracle of the same text too: nq, nk -> mask."""
    return _within_limits(lambda: _open(_module_of_file(path), pattern, params))


def open_text(
    text: str,
    pattern: str | None = None,
    params: Params | None = None,
    *,
    name: str = "<text>",
    folder: str | Path | None = None,
) -> tuple[Pattern, Oracle]:
    """Compile like ``load_text``, and return the oracle too."""
    return _within_limits(lambda: _open(_module_of_text(text, name, folder), pattern, params))


def open_zoo(name: str, params: Params | None = None) -> tuple[Pattern, Oracle]:
    """Compile like ``load_zoo``, and return the oracle too."""
    return _within_limits(lambda: _opened(_zoo(name), params, ()))


def zoo_names() -> tuple[str, ...]:
    """Return the names of the patterns that come with attnc, sorted."""
    return stdlib_names()


def zoo_text(name: str) -> str:
    """Return the ``.attn`` text of a stdlib pattern, to read, copy and change."""
    return _zoo(name).module.source.text


def zoo_summary(name: str) -> str:
    """Return the first line of a stdlib pattern's comment."""
    lines = (STDLIB / f"{_known(name)}.attn").read_text(encoding="utf-8").splitlines()
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


def dense(
    file: str | Path, pattern: str | None, params: Params | None, nq: int, nk: int
) -> NDArray[np.bool_]:
    """Return the mask of a file's pattern, or of a zoo name, by the oracle.

    Shape: ``[heads or 1, nq, nk]``.
    """
    def mask() -> NDArray[np.bool_]:
        if not Path(file).exists() and str(file) in stdlib_names():
            return _dense(_zoo(str(file)), params, nq, nk)
        return _dense(_choose(_checked(_module_of_file(file))[0], pattern), params, nq, nk)

    return _within_limits(mask)


def dense_text(
    text: str, pattern: str | None, params: Params | None, nq: int, nk: int
) -> NDArray[np.bool_]:
    """Return the mask of a text's pattern by the oracle. Shape: ``[heads or 1, nq, nk]``."""
    def mask() -> NDArray[np.bool_]:
        module, _ = _checked(_module_of_text(text, "<text>", None))
        return _dense(_choose(module, pattern), params, nq, nk)

    return _within_limits(mask)


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


def _load(loaded: _Loaded, pattern: str | None, params: Params | None) -> Pattern:
    module, warnings = _checked(loaded)
    return _lower(_choose(module, pattern), params, warnings)


def _open(loaded: _Loaded, pattern: str | None, params: Params | None) -> tuple[Pattern, Oracle]:
    module, warnings = _checked(loaded)
    return _opened(_choose(module, pattern), params, warnings)


def _opened(
    definition: Definition, params: Params | None, warnings: tuple[Diagnostic, ...]
) -> tuple[Pattern, Oracle]:
    given = dict(params or {})

    def oracle(nq: int, nk: int) -> NDArray[np.bool_]:
        return _within_limits(lambda: _dense(definition, given, nq, nk))

    return _lower(definition, given, warnings), oracle


def _choose(module: Module, pattern: str | None) -> Definition:
    """Return the pattern asked for: by default the one called like the file, else the last."""
    name = pattern or module.main
    if name is None:
        raise _refusal(
            "ATT0202", f"`{module.source.name}` defines no pattern",
            "write one: `pattern p = { q -> k : k <= q }`",
        )  # fmt: skip
    if name not in module.patterns:
        has = ", ".join(f"`{p}`" for p in module.patterns) or "none"
        raise _refusal(
            "ATT0202", f"`{module.source.name}` has no pattern `{name}`",
            did_you_mean(name, module.patterns) or f"its patterns: {has}",
        )  # fmt: skip
    return module.patterns[name]


def _known(name: str) -> str:
    if name not in stdlib_names():
        raise _refusal(
            "ATT0202", f"there is no zoo pattern `{name}`",
            did_you_mean(name, stdlib_names()) or "`attnc zoo` lists the names",
        )  # fmt: skip
    return name


def _zoo(name: str) -> Definition:
    return stdlib(_known(name))


def _refusal(code: str, message: str, help: str) -> CompileError:
    return CompileError([Diagnostic(code=code, message=message, help=help)])


def _lower(
    definition: Definition, params: Params | None, warnings: tuple[Diagnostic, ...]
) -> Pattern:
    pattern = lower(definition, _values(definition, params or {}))
    return replace(pattern, warnings=(*warnings, *warn(pattern, definition)))


def _dense(
    definition: Definition, params: Params | None, nq: int, nk: int
) -> NDArray[np.bool_]:
    from attnc.compiler.oracle import dense as oracle

    for name, length in (("nq", nq), ("nk", nk)):
        if length < 0:
            raise ValueError(f"{name} is {length}; a length is 0 or more")
    values = _values(definition, params or {})
    lower(definition, values)  # reports what only parameter values show, zero divisors and such
    return oracle(definition, values, nq, nk)


def _values(definition: Definition, given: Params) -> dict[str, Value]:
    """Read parameter values given from outside, each for the file's or the pattern's parameter."""
    params = {p.name: p for p in (*definition.module.params, *definition.pattern.params)}
    values: dict[str, Value] = {}
    found: list[Diagnostic] = []
    for name, value in given.items():
        if name not in params:
            has = ", ".join(f"`{p}`" for p in params) or "no parameters"
            found.append(
                Diagnostic(
                    code="ATT0206",
                    message=f"`{definition.pattern.name}` has no parameter `{name}`",
                    help=did_you_mean(name, params) or f"it has {has}",
                )
            )
            continue
        try:
            values[name] = read_value(value, params[name])
        except ValueError as error:
            found.append(
                Diagnostic(
                    code="ATT0301",
                    message=f"parameter `{name}`: {error}",
                    notes=(f"declared in {definition.module.source.name}, "
                           f"line {params[name].span.line}",),
                    help="give a value of that type",
                )
            )  # fmt: skip
    if found:
        raise CompileError(found)
    return values


def _check(
    loaded: _Loaded, pattern: str | None, params: Params | None
) -> tuple[Diagnostic, ...]:
    module, found = _checked(loaded)
    if not module.patterns and not pattern:
        return found
    chosen = _choose(module, pattern)
    wrong: list[Diagnostic] = list(found)
    shared = {p.name for p in module.params}
    others = [d for d in module.patterns.values() if d is not chosen]
    work = 0
    for definition in (chosen, *others):
        given = dict(params or {})
        if definition is not chosen:
            given = {n: v for n, v in given.items() if n in shared}
        if definition is not chosen or not given:
            every = (*module.params, *definition.pattern.params)
            if any(p.default is None and p.name not in given for p in every):
                continue  # its values come from a command, or from the patterns that use it
        if work > CHECK_WORK or len(wrong) >= MAX_FOUND:
            wrong.append(_unchecked(definition))
            break
        counter = ExprLowering()
        try:
            values = _values(definition, given)
            wrong += warn(lower(definition, values, counter), definition)
        except CompileError as error:
            wrong += error.diagnostics
        work += counter.work + WARN_WORK
    distinct: dict[tuple[object, ...], Diagnostic] = {}
    for d in wrong:  # one place is reported once, whoever uses it
        source = d.span.source.name if d.span.source else d.message
        distinct.setdefault((d.severity, d.code, source, d.span.start, d.span.stop), d)
    return tuple(sorted(distinct.values(), key=lambda d: d.severity != "error"))


def _unchecked(definition: Definition) -> Diagnostic:
    where = definition.pattern.name_span
    return Diagnostic(
        code="ATT0312", severity="note", span=where,
        message="the patterns from here on were checked for names and types only",
        label="the file is too large to lower all of it",
        help=f"check one of them with `--pattern {definition.pattern.name}`, or split the file",
    )  # fmt: skip
