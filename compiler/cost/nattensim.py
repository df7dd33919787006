"""Neighbourhood attention -> key tiles of the worst query tile: NATTENSim's bound, and a time.

The bound knows tiles and no time: all key tiles over those that the worst query tile visits. The
time is that of NATTEN's kernel for an H100, all of whose visited tiles pay for the mask unless no
tile needs one.

Source: Hassani et al., "Generalized Neighborhood Attention", arXiv 2504.16922, section 3.2; the
windows are those of the zoo's ``gna``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attnc.compiler.cost.devices import DEVICES
from attnc.compiler.cost.fits import NATTEN_H100, WindowFit
from attnc.compiler.cost.simulate import Rates, Rows, simulate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """Windows on a grid, and the boxes a kernel walks. Units: tokens, one number for each axis.

    ``tiling``: "static" has key tiles at multiples of their side, "dynamic" from the first key of
    the query tile on.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    query_tile: tuple[int, ...]
    key_tile: tuple[int, ...]
    dilation: tuple[int, ...] = ()
    causal: tuple[bool, ...] = ()
    tiling: Literal["static", "dynamic"] = "static"

    def __post_init__(self) -> None:
        sides = (self.window, self.stride, self.query_tile, self.key_tile)
        given = (*sides, *(x for x in (self.dilation, self.causal) if x))
        if any(len(side) != len(self.shape) for side in given):
            raise ValueError(f"shape {self.shape} needs one number for each axis everywhere")
        for axis in self.axes:
            if axis.window * axis.dilation > axis.length:
                raise ValueError(f"a window of {axis.window} is wider than {axis.length} tokens")
            if not 1 <= axis.stride <= axis.window:
                raise ValueError(f"a stride of {axis.stride} does not fit window {axis.window}")

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes one by one."""
        dilation = self.dilation or (1,) * len(self.shape)
        causal = self.causal or (False,) * len(self.shape)
        sides = zip(self.shape, self.window, self.stride, dilation, causal, strict=True)
        tiles = zip(self.query_tile, self.key_tile, strict=True)
        dynamic = self.tiling == "dynamic"
        return tuple(Axis(*own, *box, dynamic) for own, box in zip(sides, tiles, strict=True))

    @property
    def key_tiles(self) -> int:
        """Key tiles that a dense kernel walks for each query tile."""
        return math.prod(-(-axis.length // axis.key_tile) for axis in self.axes)

    @property
    def flop_speedup(self) -> float:
        """Pairs of full attention over pairs kept; causal axes count as windows that are whole."""
        return math.prod(axis.length / axis.window for axis in self.axes)

    @property
    def speedup(self) -> float:
        """All key tiles over those of the worst query tile."""
        return self.key_tiles / math.prod(max(axis.rows(0)) for axis in self.axes)

    @property
    def block_sparse(self) -> bool:
        """Whether no tile needs a mask: windows and strides are multiples of tiles."""
        return all(
            not axis.causal and axis.dilation == 1
            and axis.window % axis.key_tile == 0 and axis.stride % axis.query_tile == 0
            for axis in self.axes
        )  # fmt: skip

    def rows(self) -> NDArray[np.int64]:
        """Count the key tiles of each query tile. Shape: ``[query tiles]``, all residue classes."""
        import numpy as np

        found = np.ones((1,), dtype=np.int64)
        for axis in self.axes:
            classes = [axis.rows(rest) for rest in range(axis.dilation)]
            found = np.multiply.outer(found, np.concatenate(classes)).reshape(-1)
        return found

    def time_us(self, heads: int, fit: WindowFit = NATTEN_H100) -> float:
        """Predict the time of NATTEN's kernel on an H100, head dim 128, half precision.

        Units: microseconds, without the permutation of tokens in front of and behind it.
        """
        factor = 1.0 if self.block_sparse else fit.factor
        rates = Rates(
            tile_us=fit.tile_us * factor, row_us=fit.row_us, factors=(1.0,),
            workers=DEVICES["h100"].units,
        )
        rows = self.rows()[None, :]
        return simulate(Rows(tiles=rows, copies=heads), rates).time_us


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a neighbourhood."""

    length: int
    window: int
    stride: int
    dilation: int
    causal: bool
    query_tile: int
    key_tile: int
    dynamic: bool

    def rows(self, rest: int) -> list[int]:
        """Count the key tiles of each query tile among the positions ``rest`` mod ``dilation``."""
        members = -(-(self.length - rest) // self.dilation)
        found = []
        for start in range(0, members, self.query_tile):
            ends = [self._keys(q, members) for q in range(
                start, min(start + self.query_tile, members)
            )]  # fmt: skip
            low, high = min(first for first, _ in ends), max(last for _, last in ends)
            if self.dynamic:
                found.append(-(-(high - low + 1) // self.key_tile))
            else:
                found.append(high // self.key_tile - low // self.key_tile + 1)
        return found

    def _keys(self, query: int, members: int) -> tuple[int, int]:
        """Return the first and the last key that a query sees."""
        first = query // self.stride * self.stride
        if self.causal:
            leader = min(first + self.stride - 1, members - 1)
            return max(leader - self.window + 1, 0), query
        leader = min(first + self.stride // 2, members - 1)
        low = min(max(leader - self.window // 2, 0), members - self.window)
        return low, low + self.window - 1
