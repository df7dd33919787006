"""Sums of what learned inputs get, as 64-bit integers -> gradients.

``codegen/host_learned.py`` pastes what stands below the cut line, verbatim, into written modules
that learn inputs of a score. A sum of integers is the same in any order, so kernels add to it
atomically and runs agree in every bit. The unit is a power of two: a bound on the sum of all
absolute values is below 2**60 units, so nothing overflows, and rounding moves a sum of ``n``
numbers by at most ``n / 2**60`` of that bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

# --- cut: learned sums ---

_LEARNED_COPIES = 32  # at most: programs that run side by side add to different ones
_LEARNED_BYTES = 32 << 20  # of all copies, beside the first


def _copies(shapes: Sequence[Sequence[int]]) -> int:
    """Return how many copies of sums there are room for."""
    needed = 8 * sum(math.prod(shape) for shape in shapes)
    return max(1, min(_LEARNED_COPIES, _LEARNED_BYTES // max(needed, 1)))


def _largest_change(
    v: torch.Tensor, grad_out: torch.Tensor, total: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    """Bound the sum of |dS| over all pairs: the weights of a row add up to 1. Shape: ``[]``."""
    widest = torch.linalg.vector_norm(v, math.inf).double()
    rows = torch.linalg.vector_norm(grad_out, math.inf, dim=-1).double() * widest * v.shape[-1]
    return torch.where(total == math.inf, 0, rows + delta.double().abs()).sum()


def _fixed_steps(bound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors that make units of numbers, float32 ``[n, 2]``, and the units, ``[n]``.

    Units are NaN where a bound is no number: so is what comes out.
    """
    _, exponent = torch.frexp(bound)  # bound < 2**exponent
    shift = torch.where(bound.isfinite(), 60 - exponent, 0).clamp(-240, 240)
    half = shift.div(2, rounding_mode="floor")
    steps = torch.stack([half, shift - half], 1).double().exp2().to(torch.float32)
    return steps, torch.where(bound.isfinite(), (-shift.double()).exp2(), math.nan)


def _from_diagonals(
    sums: torch.Tensor, index: Sequence[Any], shape: Sequence[int]
) -> torch.Tensor:
    """Add sums of diagonals to the elements they read.

    Shape: sums ``[B or 1, heads, diagonals]``, each index broadcast to the last two.
    """
    place = torch.zeros(sums.shape[1:], dtype=torch.int64, device=sums.device)
    inside = torch.ones_like(place, dtype=torch.bool)
    for i, side in zip(index, shape[1:], strict=True):
        at = i + torch.zeros_like(place)
        inside &= (at >= 0) & (at < side)
        place = place * side + at
    found = sums.new_zeros(shape[0], math.prod(shape[1:]))
    place = torch.where(inside, place, 0).flatten()
    return found.index_add_(1, place, torch.where(inside, sums, 0).flatten(1)).view(*shape)
