"""score terms that depend on q - k alone -> masks that are views of one table.

``codegen/data.py`` pastes what stands below the cut line, verbatim, into the written modules of
patterns with such scores, in front of the gathered executor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# --- cut: diagonals ---

# What is added at a distance q - k is evaluated once for each distance, not for each pair: the same
# number, bit for bit. A tile of queries sees a slice of the table that has a row for each of its
# queries, each moved by one; tiles that lie alike share it.

_TABLE_BYTES = 64 << 20  # of a table; larger ones are cut from the numbers for each portion


class _Diagonals(NamedTuple):
    """What is added at distances ``last``, ``last - 1``, ...: ``values`` ``[E or 1, L]``.

    ``table`` ``[E or 1, side, L - side + 1]``: column x of row i is at distance ``last - side + 1 -
    x + i``. ``kept`` ``[E or 1, L + 1]``: how many values before each are not -inf. ``masked``:
    whether they are -inf where the pattern keeps nothing.
    """

    last: int
    side: int  # most queries of a slice
    values: torch.Tensor
    kept: torch.Tensor
    masked: bool
    table: torch.Tensor | None

    def slice(self, distance: int, queries: int, keys: int) -> torch.Tensor:
        """Return the terms of some queries and keys, the first of both ``distance`` apart."""
        if self.table is not None:
            first = self.last - self.side + 1 - distance
            return self.table[:, :queries, first : first + keys]
        first = self.last - queries + 1 - distance
        return _rows_of_values(self.values[:, first : first + keys + queries - 1], queries)

    def dead(self, distance: int, queries: int, keys: int) -> torch.Tensor:
        """Return which of these queries have no key: ``[E or 1, queries]``."""
        first = self.last - distance - torch.arange(queries, device="cpu")
        return self.kept[:, first + keys] == self.kept[:, first]

    def none_up_to(self, distance: int) -> bool:
        """Return whether no pair is kept at this distance and below."""
        index = min(max(self.last - distance, 0), self.kept.shape[1] - 1)
        return bool((self.kept[:, index] == self.kept[:, -1]).all())


def _rows_of_values(values: torch.Tensor, side: int) -> torch.Tensor:
    """Move row i by ``side - 1 - i``. Shape: ``[E, L] -> [E, side, L - side + 1]``."""
    moved: torch.Tensor = values.unfold(1, values.shape[1] - side + 1, 1)
    return moved.flip(1).contiguous()


def _diagonals(
    term: Callable[..., Any], keep: Callable[..., Any] | None, first: int, last: int, side: int,
    exact: torch.dtype,
) -> _Diagonals:
    """Evaluate what is added at distances ``first .. last``; ``keep`` None: masks are made apart.

    ``term`` and ``keep`` take positions ``[1, L]`` and ``[1, 1]``.
    """
    k = torch.full((1, 1), max(0, -first), device="cpu")
    q = k + torch.arange(last, first - 1, -1, device="cpu")
    values = torch.as_tensor(term(q, k)).to(exact)
    values = values.expand(len(values) if values.dim() > 1 else 1, q.shape[1])
    if keep is not None:
        kept = torch.as_tensor(keep(q, k))
        values = values.masked_fill(~kept, -math.inf)
    count = (values != -math.inf).cumsum(1)
    before = torch.cat([count.new_zeros(len(count), 1), count], 1)
    table = None
    if values.numel() * side * values.element_size() <= _TABLE_BYTES:
        table = _rows_of_values(values, side)
    return _Diagonals(last, side, values, before, keep is not None, table)
