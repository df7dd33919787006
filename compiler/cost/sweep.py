"""Prediction at many lengths -> times against n, and the length from which on sparse wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnc.compiler.cost.predict import Prediction

At = Callable[[int], Prediction]

SHORTEST, STEP = 128, 128
"""Lengths are looked at from here on, in these steps. Units: tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Times at some lengths; ``crossover`` is the shortest one at which sparse is faster.

    ``crossover`` None: dense attention is faster up to the longest length.
    """

    lengths: tuple[int, ...]
    sparse_us: tuple[float, ...]
    dense_us: tuple[float, ...]
    crossover: int | None


def sweep(at: At, longest: int) -> Sweep:
    """Predict at lengths that double up to ``longest``, and find the crossover between two."""
    lengths = [SHORTEST]
    while lengths[-1] * 2 <= longest:
        lengths.append(lengths[-1] * 2)
    if lengths[-1] != longest and longest > SHORTEST:
        lengths.append(longest)
    found = [at(n) for n in lengths]
    return Sweep(
        lengths=tuple(lengths), sparse_us=tuple(p.time_us for p in found),
        dense_us=tuple(p.dense.time_us for p in found),
        crossover=_crossover(at, lengths, [p.speedup_over_dense > 1 for p in found]),
    )


def _crossover(at: At, lengths: Sequence[int], wins: Sequence[bool]) -> int | None:
    """Return the shortest length behind which sparse wins at all that were looked at."""
    if not wins[-1]:
        return None
    losses = [i for i, won in enumerate(wins) if not won]
    if not losses:
        return lengths[0]
    low, high = lengths[losses[-1]], lengths[losses[-1] + 1]
    while high - low > STEP:
        middle = (low + high) // 2 // STEP * STEP
        if middle <= low:
            break
        if at(middle).speedup_over_dense > 1:
            high = middle
        else:
            low = middle
    return high


def plot(found: Sweep, title: str, path: Path) -> None:
    """Draw times against n, both logarithmic; the suffix of the path says the format.

    Raises: ImportError without matplotlib, ValueError for a format that it does not write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(found.lengths, found.dense_us, color="0.5", marker="s", label="dense")
    axes.loglog(found.lengths, found.sparse_us, color="C0", marker="o", label=title.split(":")[0])
    if found.crossover is not None and found.crossover > found.lengths[0]:
        axes.axvline(found.crossover, color="C3", linestyle=":")
        axes.annotate(
            f"crossover at n = {found.crossover:,}", (found.crossover, min(found.sparse_us)),
            color="C3", xytext=(4, 0), textcoords="offset points",
        )
    axes.set_xlabel("n, tokens")
    axes.set_ylabel("predicted time, us")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path)
