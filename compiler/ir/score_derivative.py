"""score -> its derivatives: by the scaled product, and by each element of an input it reads.

    50 * tanh(dot / 50) + bias[k]   -->   by dot: 1 - tanh(dot / 50) ** 2, by bias[k]: 1
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from attnc.compiler.ir.score import (
    Dot,
    FromInt,
    RealAdd,
    RealCall,
    RealConst,
    RealDiv,
    RealExpr,
    RealMul,
    RealRead,
    RealSelect,
    real_add,
    real_call,
    real_div,
    real_mul,
    real_select,
    walk,
)

ZERO, ONE = RealConst(0.0), RealConst(1.0)


@dataclass(frozen=True, slots=True)
class Derivative:
    """What a score changes by; where it has a corner (``abs``, ``min``), something between.

    ``dot``: by the scaled product. ``reads``: by each element of a real input, in the order they
    are read, those without influence left out; numbers (reads without an index) too.
    """

    dot: RealExpr
    reads: tuple[tuple[RealRead, RealExpr], ...]


def derivative(score: RealExpr) -> Derivative:
    """Differentiate a score, or the logit of a sink."""
    read = dict.fromkeys(node for node in walk(score) if isinstance(node, RealRead))
    found = ((one, _by(score, one)) for one in read)
    return Derivative(
        dot=_by(score, Dot()), reads=tuple((one, part) for one, part in found if part != ZERO)
    )


def _by(score: RealExpr, what: RealExpr) -> RealExpr:
    """Return the derivative of a score by one of its leaves; 0 where it does not occur."""
    if score == what:
        return ONE
    match score:
        case Dot() | RealConst() | FromInt() | RealRead():
            return ZERO
        case RealAdd(parts):
            return real_add(*(_by(part, what) for part in parts))
        case RealMul(left, right):
            return real_add(_times(_by(left, what), right), _times(_by(right, what), left))
        case RealDiv(left, right):
            by_right = _times(_by(right, what), real_div(left, real_mul(right, right)))
            by_left = _by(left, what)
            kept = ZERO if by_left == ZERO else real_div(by_left, right)
            return real_add(kept, _times(RealConst(-1.0), by_right))
        case RealCall(_, args):
            inner = [_by(part, what) for part in args]
            return real_add(*(
                _times(part, slope)
                for part, slope in zip(inner, _slopes(score), strict=True)
                if part != ZERO
            ))
        case RealSelect(condition, then, otherwise):
            return real_select(condition, _by(then, what), _by(otherwise, what))


def _times(left: RealExpr, right: RealExpr) -> RealExpr:
    return ZERO if ZERO in (left, right) else real_mul(left, right)


def _slopes(call: RealCall) -> Iterator[RealExpr]:
    """Yield the derivative of a call by each of its arguments."""
    args = call.args
    match call.function:
        case "exp":
            yield call
        case "exp2":
            yield real_mul(RealConst(math.log(2)), call)
        case "log":
            yield real_div(ONE, args[0])
        case "log2":
            yield real_div(RealConst(1 / math.log(2)), args[0])
        case "sqrt":
            yield real_div(RealConst(0.5), call)
        case "tanh":
            yield real_add(ONE, real_mul(RealConst(-1.0), real_mul(call, call)))
        case "abs":
            yield real_call("sign", args[0])
        case "min" | "max":
            sign = real_call("sign", real_add(args[0], real_mul(RealConst(-1.0), args[1])))
            half = RealConst(0.5 if call.function == "max" else -0.5)
            yield real_add(RealConst(0.5), real_mul(half, sign))
            yield real_add(RealConst(0.5), real_mul(RealConst(-half.value), sign))
        case "f32":
            yield ONE
        case "floor" | "sign":
            yield ZERO
