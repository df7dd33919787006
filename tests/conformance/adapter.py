"""Zoo name and published parameters -> the dense mask of attnc, in the shape the masks have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnc.compiler import driver
from attnc.dsl.resolve import stdlib


def dense(pattern: str, params: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return what the oracle says. ``n`` is the length; the rest are the pattern's parameters."""
    given = dict(params)
    length = given.pop("n")
    return _shaped(pattern, driver.dense(pattern, None, given, length, length))


def dense_ir(pattern: str, params: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return what the pattern IR evaluates to."""
    given = dict(params)
    length = given.pop("n")
    return _shaped(pattern, driver.load_zoo(pattern, given).mask(length, length))


def _shaped(pattern: str, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop the head axis of a pattern that declares no heads."""
    return mask if stdlib(pattern).pattern.heads is not None else mask[0]
