"""Grain -> its units: which tokens each holds, and where the first and the last of them stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Space
from attnc.compiler.ir.route import Grain, Rep


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one side, in order.

    Shape: ``member`` bool ``[U, tokens]``; ``first``, ``last`` int ``[U]``, where the first and the
    last token of a unit stand.
    """

    member: NDArray[np.bool_]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.member)


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a call: its tokens, what the first is moved by, and their grid, if they have one.

    Shape: ``coordinates`` int ``[tokens, axes]``, ``extents`` int ``[axes]``.
    """

    length: int
    shift: int = 0
    extents: tuple[int, ...] = ()
    coordinates: NDArray[np.int64] | None = None


def side(
    space: Space | None, length: int, nq: int, nk: int, known: Mapping[str, Any], shift: int = 0
) -> Side:
    """Return a side whose tokens stand in ``space``; ``known`` has its symbolic extents."""
    if space is None or len(space.segments) != 1:
        return Side(length, shift)
    grid = space.segments[0]
    extents = tuple(int(ex.evaluate(e, {"nq": nq, "nk": nk}, known)) for e in grid.extents)
    found = coordinates(extents, grid.tile)
    if len(found) != length:
        raise ValueError(f"the grid has {len(found)} tokens, not {length}")
    return Side(length, shift, extents, found)


def coordinates(extents: tuple[int, ...], tile: tuple[int, ...] | None) -> NDArray[np.int64]:
    """Return where each token stands on a grid, row-major or tile by tile. Shape: [tokens, axes]"""
    axes = len(extents)
    if tile is None:
        found: NDArray[np.int64] = np.indices(extents).reshape(axes, -1).T
        return found
    outer = np.indices([e // t for e, t in zip(extents, tile, strict=True)]).reshape(axes, -1).T
    inner = np.indices(tile).reshape(axes, -1).T
    found = (outer[:, None, :] * np.array(tile) + inner[None, :, :]).reshape(-1, axes)
    return found


def units(grain: Grain, of: Side) -> Units:
    """Return the units of a grain; of ``last`` each query is one, before any reduction."""
    tokens = np.arange(of.length)
    match grain.kind:
        case "token":
            return _units(np.eye(of.length, dtype=bool), of)
        case "block":
            return _units(_indicator(tokens // grain.sizes[0]), of)
        case "cell":
            return _units(_indicator(_cells(grain.sizes, of)), of)
        case "last":
            return _units(np.eye(of.length, dtype=bool)[-grain.sizes[0] :], of)
        case "head":
            return _units(np.ones((1, of.length), dtype=bool), of)
        case "cluster":
            raise ValueError("clusters are no units of tokens: centroids choose them")


def score_units(grain: Grain, rep: Rep, of: Side) -> Units:
    """Return the units at the grain of the score: what is represented on this side."""
    if rep.window is not None:
        return windows(rep.window, of)
    if grain.kind == "last":
        return units(grain, of)
    if rep.kind in ("id", "unit"):
        return units(Grain(kind="token"), of)
    if rep.kind == "fold":
        return units(Grain(kind="block", sizes=(rep.size,)), of)
    return units(grain, of)


def windows(window: tuple[int, int], of: Side) -> Units:
    """Return windows of ``window[0]`` tokens every ``window[1]``, those that fit as a whole."""
    tokens, stride = window
    starts = np.arange(0, of.length - tokens + 1, stride)[:, None]
    places = np.arange(of.length)[None, :]
    return _units((places >= starts) & (places < starts + tokens), of)


def together(of: Units, count: int) -> Units:
    """Return units made of ``count`` units in a row each."""
    groups = range(0, of.count, count)
    return Units(
        np.array([of.member[g : g + count].any(0) for g in groups]).reshape(
            -1, of.member.shape[1]
        ),
        np.array([of.first[g : g + count].min() for g in groups], dtype=np.int64),
        np.array([of.last[g : g + count].max() for g in groups], dtype=np.int64),
    )


def strides_shared(of: Units, window: tuple[int, int], block_tokens: int) -> NDArray[np.float64]:
    """Return how many strides each window shares with each block. Shape: ``[blocks, windows]``."""
    tokens, stride = window
    if tokens % stride or block_tokens % stride:
        raise ValueError(f"a stride of {stride} must divide {tokens} and {block_tokens}")
    per = block_tokens // stride
    blocks = -(-of.member.shape[1] // block_tokens)
    found = np.zeros((blocks, of.count))
    for one in range(of.count):
        for own in range(one, one + tokens // stride):
            found[own // per, one] += 1
    return found


def _cells(sizes: tuple[int, ...], of: Side) -> NDArray[np.int64]:
    if of.coordinates is None or len(sizes) != len(of.extents):
        raise ValueError(f"cells of {len(sizes)} axes need one grid of as many")
    counts = [-(-extent // size) for extent, size in zip(of.extents, sizes, strict=True)]
    found = np.zeros(of.length, dtype=np.int64)
    for axis, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        found = found * count + of.coordinates[:, axis] // size
    return found


def _indicator(unit: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which unit holds which token, from the unit of each."""
    index: NDArray[np.int64] = np.arange(int(unit.max()) + 1 if unit.size else 0)
    return np.equal(index[:, None], unit[None, :])


def _units(member: NDArray[np.bool_], of: Side) -> Units:
    if not member.shape[1]:
        nothing = np.zeros(len(member), dtype=np.int64)
        return Units(member, nothing, nothing - 1)
    first = member.argmax(1) + of.shift
    last = member.shape[1] - 1 - member[:, ::-1].argmax(1) + of.shift
    return Units(member, first, last)
