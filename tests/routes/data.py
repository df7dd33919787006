"""Data for routes: q, k, v whose selection is the same in every precision, or full of ties.

Scores of integers are sums of integers, exact in float32 as in float64, so that selections compare
bit by bit. Means of blocks of 2, 4, 8 tokens are exact as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.routes.cases import Shape, whole

Floats = NDArray[np.float64]
QKV = tuple[Floats, Floats, Floats]


def exact(shape: Shape, seed: int = 0, reach: int = 3) -> QKV:
    """Return q, k of small integers, and v."""
    rng = np.random.default_rng(seed)
    q = whole(rng, shape.b, shape.hq, shape.nq, shape.d, reach=reach)
    k = whole(rng, shape.b, shape.hkv, shape.nk, shape.d, reach=reach)
    return q, k, rng.normal(size=(shape.b, shape.hkv, shape.nk, shape.dv))


def tied(shape: Shape, seed: int = 0) -> QKV:
    """Return q, k of 0 and 1 in few channels: most scores have equals."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 2, (shape.b, shape.hq, shape.nq, shape.d)).astype(np.float64)
    k = rng.integers(0, 2, (shape.b, shape.hkv, shape.nk, shape.d)).astype(np.float64)
    q[..., 2:] = 0
    return q, k, rng.normal(size=(shape.b, shape.hkv, shape.nk, shape.dv))


def real(shape: Shape, seed: int = 0) -> QKV:
    """Return normal q, k, v: scores have no equals, but may be near each other."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(shape.b, shape.hq, shape.nq, shape.d)),
        rng.normal(size=(shape.b, shape.hkv, shape.nk, shape.d)),
        rng.normal(size=(shape.b, shape.hkv, shape.nk, shape.dv)),
    )


def as_relation(index: Any, count: Any, keys: int) -> NDArray[np.bool_]:
    """Return the relation of a selection's lists. Shape: ``[B, H', RQ, keys]``.

    Checks what all executors promise: ascending indices, valid ones first, then -1.
    """
    index, count = np.asarray(index), np.asarray(count)
    found = np.zeros((*index.shape[:3], keys), dtype=bool)
    for at in np.ndindex(*index.shape[:3]):
        valid = index[at][: count[at]]
        assert (index[at][count[at] :] == -1).all(), f"{at}: something after the valid ones"
        assert (np.diff(valid) > 0).all(), f"{at}: not ascending: {valid}"
        assert valid.size == 0 or (0 <= valid[0] and valid[-1] < keys), f"{at}: out of range"
        found[at][valid] = True
    return found
