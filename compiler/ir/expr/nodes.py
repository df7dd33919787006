"""The nodes of the expression language: integers and truth values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

POW2_MAX_EXPONENT = 40
"""``IsPow2`` holds for 2**0 .. 2**40 and for nothing else."""


class Compound:
    """What nodes of several parts share: the place of a hash that is worked out once."""

    __slots__ = ("_hash",)
    _hash: int


C = TypeVar("C", bound=Compound)


def hashed_once(kind: type[C]) -> type[C]:
    """Let the nodes of a class keep their hash: all expressions around them ask for it, too."""
    whole = kind.__hash__

    def kept(self: C) -> int:
        found: int | None = getattr(self, "_hash", None)
        if found is None:
            found = whole(self)
            object.__setattr__(self, "_hash", found)
        return found

    kind.__hash__ = kept  # type: ignore[assignment, method-assign]
    return kind


@dataclass(frozen=True, slots=True)
class Const:
    """An integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Var:
    """A variable, by name."""

    name: str


@hashed_once
@dataclass(frozen=True, slots=True)
class Add(Compound):
    """The sum of the parts."""

    parts: tuple[IntExpr, ...]


@hashed_once
@dataclass(frozen=True, slots=True)
class Scale(Compound):
    """``factor * part``."""

    factor: int
    part: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class FloorDiv(Compound):
    """``floor(part / divisor)``, ``divisor > 0``."""

    part: IntExpr
    divisor: int


@hashed_once
@dataclass(frozen=True, slots=True)
class Mod(Compound):
    """``part - divisor * floor(part / divisor)``, ``divisor > 0``: never negative."""

    part: IntExpr
    divisor: int


@hashed_once
@dataclass(frozen=True, slots=True)
class Min(Compound):
    """The least of the parts."""

    parts: tuple[IntExpr, ...]


@hashed_once
@dataclass(frozen=True, slots=True)
class Max(Compound):
    """The greatest of the parts."""

    parts: tuple[IntExpr, ...]


@hashed_once
@dataclass(frozen=True, slots=True)
class Abs(Compound):
    """``|part|``."""

    part: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class Select(Compound):
    """``then`` where the condition holds, else ``otherwise``."""

    condition: BoolExpr
    then: IntExpr
    otherwise: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class Read(Compound):
    """``doc[q]``: an element of a run-time input; a truth value reads as 0 or 1.

    No index: a number known at the call (an input without brackets, a symbolic extent). An index
    outside the tensor reads 0.
    """

    name: str
    index: tuple[IntExpr, ...] = ()


@hashed_once
@dataclass(frozen=True, slots=True)
class Mul(Compound):
    """``left * right``, neither of them constant: outside integer linear arithmetic."""

    left: IntExpr
    right: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class Quot(Compound):
    """``floor(part / by)`` by a run-time divisor; 0 where ``by`` is below 1."""

    part: IntExpr
    by: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class Rem(Compound):
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


@hashed_once
@dataclass(frozen=True, slots=True)
class Compare(Compound):
    """``left op right``."""

    op: CompareOp
    left: IntExpr
    right: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class IsPow2(Compound):
    """``part`` is one of 1, 2, 4, ..., 2**40."""

    part: IntExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class Member(Compound):
    """``part`` is one of ``values`` (sorted, distinct)."""

    part: IntExpr
    values: tuple[int, ...]


@hashed_once
@dataclass(frozen=True, slots=True)
class And(Compound):
    """Every part holds."""

    parts: tuple[BoolExpr, ...]


@hashed_once
@dataclass(frozen=True, slots=True)
class Or(Compound):
    """Some part holds."""

    parts: tuple[BoolExpr, ...]


@hashed_once
@dataclass(frozen=True, slots=True)
class Not(Compound):
    """The part does not hold."""

    part: BoolExpr


@hashed_once
@dataclass(frozen=True, slots=True)
class Exists(Compound):
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
