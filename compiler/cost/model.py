"""Cost: operations, bytes and microseconds by cause; costs of kernels add."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

Term: TypeAlias = Literal["matrix", "softmax", "l2", "mask", "row", "tail", "hbm"]
TERMS: tuple[Term, ...] = ("matrix", "softmax", "l2", "mask", "row", "tail", "hbm")

MEANING: dict[Term, str] = {
    "matrix": "matrix products",
    "softmax": "softmax between the products",
    "l2": "keys and values from the L2 cache",
    "mask": "checks in partial tiles",
    "row": "start and end of rows",
    "tail": "processors that wait for the last rows",
    "hbm": "device memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What kernels cost that run one after the other.

    Units: ``flops`` are those of the products over all pairs computed, ``hbm_bytes`` and
    ``l2_bytes`` what goes through memory and cache; times in microseconds. Times are disjoint parts
    of one, so they add up. Where memory takes longer than all else, a kernel's time is ``hbm_us``
    alone: the rest is hidden behind it.
    """

    flops: int = 0
    hbm_bytes: int = 0
    l2_bytes: int = 0
    matrix_us: float = 0.0
    softmax_us: float = 0.0
    l2_us: float = 0.0
    mask_us: float = 0.0
    row_us: float = 0.0
    tail_us: float = 0.0
    hbm_us: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    @property
    def terms(self) -> dict[Term, float]:
        """Microseconds by cause."""
        times = (
            self.matrix_us, self.softmax_us, self.l2_us, self.mask_us, self.row_us, self.tail_us,
            self.hbm_us,
        )
        return dict(zip(TERMS, times, strict=True))

    @property
    def time_us(self) -> float:
        """The time of all kernels."""
        return sum(self.terms.values())

    @property
    def bound_by(self) -> Term:
        """The cause of most of the time."""
        terms = self.terms
        return max(TERMS, key=lambda term: terms[term])
