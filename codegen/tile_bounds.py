"""Bounds of what both sides of a tile choose from an input, by torch.

``codegen/data.py`` pastes what stands below the cut line, verbatim, into the written modules whose
tiles are known at the call only.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch


def _read(tensor: torch.Tensor, b: Any, *index: Any) -> Any:
    raise NotImplementedError("a written module defines this: predicate.HOST_HELPERS")


# --- cut: bounds ---


def _listed_in(low: Any, high: Any, values: list[int]) -> Any:
    """Count those of a few numbers that lie between two bounds, ends included."""
    total: Any = 0
    for value in values:
        total = total + ((low <= value) & (value <= high)) * 1
    return total


def _extremes(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and greatest element of each item of a batch, 0 among them. Shape: [B]."""
    rows = torch.nn.functional.pad(table.flatten(1).to(torch.int64), (0, 1))
    return rows.amin(1), rows.amax(1)


def _element(table: torch.Tensor, b: Any, box: list[tuple[Any, Any]], extremes: Any) -> Any:
    """Return bounds of the elements in a box: exact where it is one place."""
    exact = _read(table, b, *(low for low, _ in box))
    known: Any = True
    for low, high in box:
        known = known & (low == high)
    least, most = (x[b if len(x) > 1 else 0] for x in extremes)
    if isinstance(known, bool):
        return (exact, exact) if known else (least, most)
    return torch.where(known, exact, least), torch.where(known, exact, most)


def _counted(table: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return the running counts of true elements along some axes, each one longer, 0 in front."""
    total = table.to(torch.int32 if table.numel() < 1 << 31 else torch.int64)
    for axis in axes:
        behind = table.dim() - 2 - axis
        total = total.cumsum(axis + 1, dtype=total.dtype)
        total = torch.nn.functional.pad(total, (*(0, 0) * behind, 1, 0))
    return total


def _count_in(
    counted: torch.Tensor, b: Any, box: list[tuple[Any, Any]], axes: tuple[int, ...]
) -> Any:
    """Count the true elements in a box, ends included; only ``axes`` have over one place.

    ``counted`` is that of ``_counted``, for the same axes.
    """
    ends: list[list[tuple[int, Any]]] = []
    for axis, ((low, high), side) in enumerate(zip(box, counted.shape[1:], strict=True)):
        if axis in axes:
            ends.append([(-1, _within(low, side - 1)), (1, _within(high + 1, side - 1))])
        else:
            ends.append([(1, low)])
    total: Any = 0
    for corner in itertools.product(*ends):
        sign = 1
        for one, _ in corner:
            sign *= one
        total = total + sign * _read(counted, b, *(place for _, place in corner))
    return total


def _within(x: Any, last: int) -> Any:
    """Return x, brought into 0 .. last."""
    return x.clamp(0, last) if isinstance(x, torch.Tensor) else min(max(x, 0), last)
