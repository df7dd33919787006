"""What every part of the checker stands on: names in scope, and how findings are reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic, Severity
from attnc.dsl.kinds import BROKEN, INT, Kind, Time, Unit, describe, fits, of_patterns, show_type
from attnc.dsl.resolve import Module, Named
from attnc.dsl.source import Span
from attnc.dsl.suggest import did_you_mean

MAX_FOUND, MAX_SUGGESTIONS, MAX_KNOWN = 100, 20, 500
"""Diagnostics of one file, those with a suggestion, and the names a suggestion is sought among."""

Shape: TypeAlias = "tuple[int, ...] | None"
"""The axes of each segment of a space, None where they depend on parameters."""
Owner: TypeAlias = ast.Param | ast.Input | ast.FnParam


@dataclass(frozen=True, slots=True)
class Place:
    """Where a position lives: in a segment (``axes``), or in a space of several (``segments``).

    ``axes`` is None where they have no names (``grid(*shape)``), and empty on a plain sequence.
    ``of`` tells the segments apart, for units. Not ``known``: an error was reported, stay silent.
    """

    axes: tuple[str, ...] | None
    of: str
    segments: tuple[str, ...] = ()
    known: bool = True

    def unit(self) -> Unit:
        """Return the unit of a position here."""
        return Unit("token", self.of)

    def axis_unit(self, axis: str) -> Unit:
        """Return the unit of a coordinate; on a single axis it is the position."""
        single = self.axes is not None and len(self.axes) == 1
        return self.unit() if single else Unit(f"axis {axis}", self.of)


@dataclass
class Side:
    """The space of the queries or of the keys.

    ``segments`` are the places of its segments by name, ``""`` where it has none; ``families``
    the names that need an index; ``whole`` is where a position without ``in`` lives.
    """

    whole: Place
    segments: dict[str, Place] = field(default_factory=dict)
    families: set[str] = field(default_factory=set)
    extents: dict[str, Span] = field(default_factory=dict)  # symbolic ones, and where declared
    broken: bool = False  # a space that is named was not found

    @property
    def shape(self) -> Shape:
        """The axes of each segment, None where that is not known here."""
        axes = [p.axes for p in self.segments.values()]
        if self.broken or self.families or None in axes:
            return None
        return tuple(len(a) for a in axes if a is not None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in scope: its kind, the parameter or input that it reads, where a position lives."""

    kind: Kind
    owner: Owner | None = None
    place: Place | None = None


Scope = dict[str, Entry]
LENGTHS: Scope = {name: Entry(Kind(INT, Time.RUN)) for name in ("n", "nq", "nk")}


@dataclass
class Memory:
    """What the checkers of one run share."""

    used: set[int] = field(default_factory=set)  # the ids of parameters, fns, spaces that are read
    fns: dict[tuple[object, ...], tuple[Kind, Diagnostic | None]] = field(default_factory=dict)
    sides: dict[tuple[int, str], Side] = field(default_factory=dict)  # by space item
    levels: dict[int, int] = field(default_factory=dict)  # of the formulas of fns
    routed: dict[int, bool] = field(default_factory=dict)  # by pattern: whether it holds a route
    shapes: dict[int, tuple[Shape, Shape] | None] = field(default_factory=dict)  # by item


class Checker(ABC):
    """Types expressions; a broken part is ``BROKEN`` and raises no second error."""

    def __init__(self, module: Module, memory: Memory) -> None:
        self.module = module
        self.memory = memory
        self.found: list[Diagnostic] = []
        self.head_name: str | None = None  # a head that could be bound here, for a hint
        self.scoring = False  # in a score: real numbers at run time
        self.scores_named = False  # in an attention: scores by name
        self.pairs_tested = False  # in a set: `(q, k) in causal`

    def error(
        self, code: str, message: str, span: Span, *, label: str = "", help: str = "",
        notes: tuple[str, ...] = (), severity: Severity = "error",
    ) -> Kind:  # fmt: skip
        if len(self.found) < MAX_FOUND:
            self.found.append(
                Diagnostic(
                    code=code, message=message, span=span, label=label, help=help, notes=notes,
                    severity=severity,
                )
            )  # fmt: skip
        return BROKEN

    def suggest(self, name: str, known: Iterable[str]) -> str:
        """Return "did you mean ...?", or "" where nothing is near or the search would take long."""
        # One letter is near any other; guessing from it would mislead.
        if len(name) < 2 or len(self.found) > MAX_SUGGESTIONS:
            return ""
        return did_you_mean(name, islice(known, MAX_KNOWN))

    def use(self, node: ast.Node) -> None:
        """Note that something reads a parameter, an input, an fn or a space."""
        self.memory.used.add(id(node))

    def need(self, expr: ast.Expr, scope: Scope, wanted: ast.Type) -> Kind:
        """Check that an expression has a type; return BROKEN after a report."""
        if of_patterns(wanted):
            return self.pattern_value(expr, scope, wanted)
        kind = self.expr(expr, scope, wanted)
        if kind.type is None or fits(kind.type, wanted):
            return kind
        help_ = ""
        rounded = isinstance(expr, ast.Call) and expr.function in ("floor", "ceil")
        if kind.type.kind == "real" and wanted.kind == "int" and rounded:
            help_ = (
                "at run time reals are not exact, so they index nothing; list the values at "
                "compile time: `[for x in 0..128 : floor(...)]`, as `t5_bucket` does"
            )
        elif kind.type.kind in ("rational", "real") and wanted.kind == "int":
            help_ = "round it with `floor(...)` or `ceil(...)`"
            help_ += ", or divide with `div`" if kind.type.kind == "rational" else ""
        elif wanted.kind == "bool" and kind.type.kind in ("int", "rational", "real"):
            help_ = "compare it with something: `... == 0`"
        elif wanted.kind in ("int", "rational", "real") and kind.type.kind == "bool":
            help_ = "turn it into a number with `if ... then 1 else 0`"
        elif wanted.kind == "list" and wanted.item and fits(kind.type, wanted.item):
            help_ = "a list of one item is written in brackets: `[...]`"
        elif kind.type.kind == "pattern" and wanted.kind == "bool":
            help_ = "test a pair: `(q, k) in ...`"
        return self.error(
            "ATT0301", f"expected {describe(wanted)}, found {describe(kind.type)}", expr.span,
            label=f"this has type {show_type(kind.type)}", help=help_,
        )  # fmt: skip

    def known(self, expr: ast.Expr, kind: Kind, what: str, help: str = "") -> None:
        """Report an expression that must be a compile-time value and is not."""
        if kind.type is not None and kind.time != Time.COMPILE:
            self.error(
                "ATT0306", f"{what} must be known at compile time", expr.span,
                label="this depends on positions, lengths or heads",
                help=help or "use parameters and numbers only",
            )  # fmt: skip

    def expr(self, expr: ast.Expr, scope: Scope, expect: ast.Type | None = None) -> Kind:
        """Return the kind of an expression; ``expect`` only tells what a bare word may mean."""
        kind = self.raw(expr, scope, expect)
        if kind.type is not None and kind.dims:
            axes = f"{len(kind.dims)} more ax{'e' if len(kind.dims) > 1 else 'i'}s"
            return self.error(
                "ATT0316", "an input is read without an index", expr.span,
                label=f"this has {axes}", help="index every axis: `doc[q]`, `table[h][q - k]`",
            )  # fmt: skip
        return kind

    @abstractmethod
    def raw(self, expr: ast.Expr, scope: Scope, expect: ast.Type | None = None) -> Kind:
        """Return the kind of an expression, which may be an input that is not indexed yet."""

    @abstractmethod
    def pattern_value(self, expr: ast.Expr, scope: Scope, wanted: ast.Type) -> Kind:
        """Check an expression that stands for a pattern, or for a list of patterns."""

    @abstractmethod
    def inside(self, module: Module) -> Checker:
        """Return a checker for something of a module; what it finds stays apart."""

    @abstractmethod
    def same_space(self, name: str, target: Named[Any], span: Span) -> None:
        """Report a pattern or score that is on another space than what uses it."""


def latest(type_: ast.Type, kinds: Iterable[Kind]) -> Kind:
    """Return ``type_`` at the time the last of the parts is known, broken if any part is."""
    time = Time.COMPILE
    for kind in kinds:
        if kind.type is None:
            return BROKEN
        time = max(time, kind.time)
    return Kind(type_, time)
