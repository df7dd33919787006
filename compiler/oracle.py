"""Checked AST -> dense mask and scores: the definition that every later form must equal.

Written apart from lowering on purpose, as the language reads: lengths are numbers, positions are
NumPy arrays, heads and quantifiers are loops, rationals are Python fractions. Memory and time are
in proportion to the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.binding import Value
from attnc.compiler.oracle_scope import Scope
from attnc.compiler.oracle_setting import Chosen, Lengths, World
from attnc.compiler.oracle_sizes import refused
from attnc.dsl.limits import deep_recursion
from attnc.dsl.resolve import Named


@dataclass(frozen=True, eq=False)
class Scores:
    """What the softmax runs over, before the mask, in float64.

    Shape: ``values`` ``[heads or 1, nq, nk]``, ``sink`` ``[heads or 1]`` or None; ``scale`` is the
    factor of the product, None for ``1 / sqrt(D)``. ``is_whole``: the values are of type int.
    """

    values: NDArray[np.float64]
    sink: NDArray[np.float64] | None = None
    scale: float | None = None
    is_whole: bool = False


@dataclass(frozen=True, eq=False)
class Given:
    """What a pattern is evaluated at.

    ``values`` of parameters; ``inputs`` by name; ``sizes``: symbolic extents and size variables by
    name; ``lengths`` are None where the rest says them; ``layer`` None: all of them.
    """

    values: Mapping[str, Value]
    lengths: Lengths = (None, None)
    inputs: Mapping[str, object] | None = None
    sizes: Mapping[str, int] | None = None
    layer: int | None = None


def dense(named: Named[Any], given: Given) -> NDArray[np.bool_]:
    """Return the mask of a checked pattern or attention: true where query q may see key k.

    Shape: ``[heads or 1, nq, nk]``; a pattern with layers, none of them chosen, has a leading
    axis of layers.
    Raises: CompileError where a size or an input is missing or does not fit.
    """
    with deep_recursion():
        scope, layers = _opened(named, given)
        if layers is None:
            return _masks(scope)
        return np.stack([_masks(_scope(named, given, layer)) for layer in range(layers)])


def shape(named: Named[Any], given: Given) -> tuple[int, ...]:
    """Return the shape that ``dense`` has; no pair is looked at. Raises: as ``dense`` for sizes."""
    with deep_recursion():
        scope, layers = _opened(named, given)
        lengths = scope.sizes.known["nq"], scope.sizes.known["nk"]
        return (*(() if layers is None else (layers,)), scope.told_apart() or 1, *lengths)


def _opened(named: Named[Any], given: Given) -> tuple[Scope, int | None]:
    """Return the scope of the layer asked for, else that of the first and how many there are."""
    scope = _scope(named, given, given.layer or 0)
    layers = scope.layers()
    if given.layer is None:
        return scope, layers
    if not 0 <= given.layer < (layers or 0):
        has = "no layers" if layers is None else f"layers 0 to {layers - 1}"
        raise refused(
            "ATT0512", f"`{scope.item.name}` has {has}, and layer {given.layer} was asked for",
            scope.item.name_span,
        )  # fmt: skip
    return scope, None


def scores(named: Named[Any], given: Given, dot: Any = 0.0) -> Scores:
    """Return the scores of a score or an attention; ``dot`` is the scaled product.

    Shape: ``dot`` broadcasts to ``[heads or 1, nq, nk]``.
    """
    with deep_recursion():
        scope = _scope(named, given, given.layer or 0)
        product = np.asarray(dot, dtype=np.float64)
        alone = product.shape[0] if product.ndim == 3 else 1
        heads = max(scope.told_apart() or 1, alone)
        values = np.stack(
            [
                scope.score(head, product[head % alone] if product.ndim == 3 else product)
                for head in range(heads)
            ]
        )
        sinks = [scope.sink(head) for head in range(heads)]
        found = [sink for sink in sinks if sink is not None]
        return Scores(
            values.astype(np.float64), np.array(found) if found else None, scope.scale(),
            is_whole=values.dtype.kind in "iu",
        )  # fmt: skip


def sizes(named: Named[Any], given: Given, *, used: bool = False) -> dict[str, int]:
    """Return the symbolic extents and size variables that inputs and spaces determine.

    ``used``: those of used patterns as well; of two with one name, that of the user counts.
    """
    with deep_recursion():
        chosen = Chosen(named, tuple(given.values.items()))
        known = dict(given.sizes or {})
        world = World(given.inputs or {})
        scope = Scope(world, chosen, given.lengths, {}, known, strict=True, complete=False)
        found = {**(scope.used_sizes() if used else {}), **scope.sizes.known}
        return {name: size for name, size in found.items() if name not in ("nq", "nk")}


def _scope(named: Named[Any], given: Given, layer: int) -> Scope:
    world = World(given.inputs or {}, layer)
    chosen = Chosen(named, tuple(given.values.items()))
    return Scope(world, chosen, given.lengths, {}, given.sizes or {}, strict=True)


def _masks(scope: Scope) -> NDArray[np.bool_]:
    return np.stack([scope.mask(head) for head in range(scope.told_apart() or 1)])
