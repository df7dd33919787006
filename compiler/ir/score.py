"""Score terms: real-valued expressions of the product, positions, heads and learned tables.

Kept apart from masks, which are exact: these are evaluated in float32 by kernels (float64 beside
float64 inputs) and in float64 by ``evaluate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnc.compiler.ir import expr as ex


@dataclass(frozen=True, slots=True)
class Dot:
    """The product of query and key times the scale."""


@dataclass(frozen=True, slots=True)
class RealConst:
    """A number, as float64."""

    value: float


@dataclass(frozen=True, slots=True)
class FromInt:
    """An integer expression of positions, heads, lengths and inputs."""

    part: ex.IntExpr


@dataclass(frozen=True, slots=True)
class RealRead:
    """``bias[h, k - q]``: an element of a real input; an index outside the tensor reads 0."""

    name: str
    index: tuple[ex.IntExpr, ...] = ()


@dataclass(frozen=True, slots=True)
class RealAdd:
    """The sum of the parts, left to right."""

    parts: tuple[RealExpr, ...]


@dataclass(frozen=True, slots=True)
class RealMul:
    """``left * right``."""

    left: RealExpr
    right: RealExpr


@dataclass(frozen=True, slots=True)
class RealDiv:
    """``left / right``."""

    left: RealExpr
    right: RealExpr


RealFunction = Literal["exp", "exp2", "log", "log2", "sqrt", "tanh", "abs", "min", "max", "floor"]


@dataclass(frozen=True, slots=True)
class RealCall:
    """A real function; ``min`` and ``max`` take two arguments, the others one."""

    function: RealFunction
    args: tuple[RealExpr, ...]


@dataclass(frozen=True, slots=True)
class RealSelect:
    """``then`` where the condition holds, else ``otherwise``."""

    condition: ex.BoolExpr
    then: RealExpr
    otherwise: RealExpr


RealExpr: TypeAlias = (
    Dot | RealConst | FromInt | RealRead | RealAdd | RealMul | RealDiv | RealCall | RealSelect
)
