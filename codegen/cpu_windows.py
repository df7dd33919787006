"""gradients of overlapping windows of keys -> their sum, the same in every run.

``codegen/cpu.py`` and ``codegen/data.py`` paste what stands below the cut line, verbatim.
"""

from __future__ import annotations

import torch

# --- cut: windows ---


def _add_windows(whole: torch.Tensor, part: torch.Tensor, start: int, step: int) -> None:
    """Add windows of keys, ``step`` tokens from one to the next, the first at ``start``.

    Shape: whole ``[E, K, D]``, part ``[E, count, keys, D]``. Where all of E share their keys whole
    has stride 0.
    """
    if whole.shape[0] > 1 and whole.stride(0) == 0:
        whole, part = whole[:1], part.sum(0, keepdim=True)
    _, count, keys, _ = part.shape
    if count > 1 and step == 0:
        part, count = part.sum(1, keepdim=True), 1
    if count * step < keys or count == 1:  # fewer windows than slices
        for i in range(count):
            whole[:, start + i * step : start + i * step + keys] += part[:, i]
        return
    token = whole.stride(1)
    for left in range(0, keys, step):  # slices of this width never overlap
        slices = part[:, :, left : left + step]
        whole.as_strided(
            slices.shape,
            (whole.stride(0), step * token, token, 1),
            whole.storage_offset() + (start + left) * token,
        ).add_(slices)
