"""Kernel families -> constants that were fitted to published times, with the error that is left.

A fit says what one tile and one row cost a processor. ``tests/test_cost_published.py`` computes the
errors again from the published points.
"""

from __future__ import annotations

from dataclasses import dataclass

FITTED_TILE = 128
"""Queries and keys of a tile of the dense fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFit:
    """A dense kernel on one device, in tiles of 128 x 128.

    Units: microseconds for ``tile_us``, ``row_us``; ``diagonal`` is the cost of a causal tile on
    the diagonal, in tiles. ``error`` is the largest relative error at the points of the fit.
    """

    family: str
    device: str
    head_dim: int
    backward: bool
    tile_us: float
    row_us: float
    diagonal: float
    error: float
    source: str


_CSV = "cuDNN 9.19 on an H200, the cudnn-frontend repository's benchmark table"

DENSE_FITS = (
    DenseFit(
        family="cudnn", device="h200", head_dim=128, backward=False, tile_us=1.55, row_us=2.0,
        diagonal=2.75, error=0.019, source=f"{_CSV}: 64/8 heads, 2k to 32k, full and causal",
    ),
    DenseFit(
        family="cudnn", device="h200", head_dim=128, backward=True, tile_us=4.4, row_us=13.0,
        diagonal=3.0, error=0.081, source=f"{_CSV}: 64/8 heads, 2k to 32k, full and causal",
    ),
    DenseFit(
        family="cudnn", device="h200", head_dim=64, backward=False, tile_us=0.86, row_us=4.5,
        diagonal=1.0, error=0.026, source=f"{_CSV}: causal window of 1024, 64/8 heads, batch 2",
    ),
    DenseFit(
        family="cudnn", device="b200", head_dim=128, backward=False, tile_us=0.925, row_us=2.0,
        diagonal=2.75, error=0.125, source="NATTEN's profiler documentation: three dense times",
    ),
)

TRITON_EFFICIENCY = 0.83
"""Part of the modelled rate that plain Triton reaches.

Fitted on an H100: the forward of Triton's tutorial 06, fp16, 4 x 32 heads of 128, 1k to 16k tokens
(407, 428, 460, 464 and 487 TFLOP/s), with tiles of 128 x 64; largest error 1.7%.
"""

TRITON_ROW_US = 3.2
"""Microseconds of a row of plain Triton, from the same fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFit:
    """NATTEN's kernel for an H100: all visited tiles pay for the mask unless none needs one.

    ``tile_us`` and ``row_us`` are fitted to two rows of its documentation (1-D stride 2048, 2-D
    stride 16 x 16), ``factor`` was counted in the machine code of another kernel; the other five
    rows are predictions.
    """

    tile_us: float = 1.6
    row_us: float = 4.0
    factor: float = 1.64


NATTEN_H100 = WindowFit()
