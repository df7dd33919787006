"""Shapes of inputs, spaces and lengths -> every size of a pattern, by equations of one unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attnc.compiler.oracle_expr import Env
from attnc.dsl.diagnostics import CompileError, Diagnostic
from attnc.dsl.source import Span


class Sizes:
    """The lengths ``nq`` and ``nk``, symbolic extents and size variables found so far.

    ``fixed`` are names with a value of another kind (parameters); they come first. ``n`` is
    another name of ``nk``.
    """

    def __init__(self, fixed: Env, known: dict[str, int]) -> None:
        self.fixed = fixed
        self.known = known

    @property
    def env(self) -> dict[str, Any]:
        """The values of all names, sizes as run-time numbers."""
        env: dict[str, Any] = {name: np.int64(size) for name, size in self.known.items()}
        if "nk" in env:
            env["n"] = env["nk"]
        return {**env, **self.fixed}

    def unknown(self, names: set[str]) -> set[str]:
        """Return which of the names have no value yet."""
        named = {"nk" if n == "n" else n for n in names if n not in self.fixed}
        return named - self.known.keys()

    def demand(self, names: set[str], value: Callable[[Env], Any], size: int | None) -> int | None:
        """Return the value of an expression of the names, as far as it is known.

        With ``size``, what it must be, a single unknown name is solved for where the expression
        is affine in it; whether it is ``size`` is for the caller to compare.
        """
        unknown = self.unknown(names)
        if not unknown:
            return int(value(self.env))
        if size is None or len(unknown) > 1:
            return None
        (name,) = unknown
        try:
            at = [int(value(self._with(name, x))) for x in (0, 1)]
            step = at[1] - at[0]
            if step == 0 or (size - at[0]) % step:
                return None
            found = (size - at[0]) // step
            if found < 0 or int(value(self._with(name, found))) != size:
                return None
        except (ArithmeticError, IndexError, CompileError):
            return None
        self.known[name] = found
        return size

    def _with(self, name: str, size: int) -> dict[str, Any]:
        return {**Sizes(self.fixed, {**self.known, name: size}).env}


def refused(code: str, message: str, span: Span, help: str = "") -> CompileError:
    """Return an error of one diagnostic."""
    return CompileError([Diagnostic(code=code, message=message, span=span, help=help)])
