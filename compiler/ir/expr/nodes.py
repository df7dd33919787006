"""The nodes of the expression language: integers and truth values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

POW2_MAX_EXPONENT = 40
"""``IsPow2`` holds for 2**0 .. 2**40 and for nothing else."""


@dataclass(frozen=True, slots=True)
class Const:
    """An integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Var:
    """A variable, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Add:
    """The sum of the parts."""

    parts: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """``factor * part``."""

    factor: int
    part: IntExpr


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """``floor(part / divisor)``, ``divisor > 0``."""

    part: IntExpr
    divisor: int


@dataclass(frozen=True, slots=True)
class Mod:
    """``part - divisor * floor(part / divisor)``, ``divisor > 0``: never negative."""

    part: IntExpr
    divisor: int


@dataclass(frozen=True, slots=True)
class Min:
    """The least of the parts."""

    parts: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Max:
    """The greatest of the parts."""

    parts: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Abs:
    """``|part|``."""

    part: IntExpr


@dataclass(frozen=True, slots=True)
class Select:
    """``then`` where the condition holds, else ``otherwise``."""

    condition: BoolExpr
    then: IntExpr
    otherwise: IntExpr


@dataclass(frozen=True, slots=True)
class Read:
    """``doc[q]``: an element of a run-time input; a truth value reads as 0 or 1.

    No index: a number known at the call (an input without brackets, a symbolic extent). An index
    outside the tensor reads 0.
    """

    name: str
    index: tuple[IntExpr, ...] = ()


@dataclass(frozen=True, slots=True)
class Mul:
    """``left * right``, neither of them constant: outside integer linear arithmetic."""

    left: IntExpr
    right: IntExpr


@dataclass(frozen=True, slots=True)
class Quot:
    """``floor(part / by)`` by a run-time divisor; 0 where ``by`` is below 1."""

    part: IntExpr
    by: IntExpr


@dataclass(frozen=True, slots=True)
class Rem:
    """``part mod by``, never negative, by a run-time divisor; 0 where ``by`` is below 1."""

    part: IntExpr
    by: IntExpr


IntExpr: TypeAlias = (
    Const | Var | Add | Scale | FloorDiv | Mod | Min | Max | Abs | Select | Read | Mul | Quot | Rem
)
CompareOp = Literal["<=", "<", "==", "!=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Truth:
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """``left op right``."""

    op: CompareOp
    left: IntExpr
    right: IntExpr


@dataclass(frozen=True, slots=True)
class IsPow2:
    """``part`` is one of 1, 2, 4, ..., 2**40."""

    part: IntExpr


@dataclass(frozen=True, slots=True)
class Member:
    """``part`` is one of ``values`` (sorted, distinct)."""

    part: IntExpr
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class And:
    """Every part holds."""

    parts: tuple[BoolExpr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part holds."""

    parts: tuple[BoolExpr, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: BoolExpr


@dataclass(frozen=True, slots=True)
class Exists:
    """Some integer ``low <= var <= high`` satisfies the body; every use of ``var`` is linear.

    Only the pattern IR holds it: classification eliminates it (isl), residuals never show it.
    """

    var: str
    low: IntExpr
    high: IntExpr
    body: BoolExpr


BoolExpr: TypeAlias = Truth | Compare | IsPow2 | Member | And | Or | Not | Exists
Expr: TypeAlias = IntExpr | BoolExpr

TRUE, FALSE = Truth(True), Truth(False)
ZERO, ONE = Const(0), Const(1)
