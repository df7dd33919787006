"""Pattern IR -> the same, for queries that are the last tokens of the keys' sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir import score as sc
from attnc.dsl.diagnostics import CompileError, Diagnostic

_POSITION = ex.add(ex.Var("q"), ex.Var("nk"), ex.scale(-1, ex.Var("nq")))
_LENGTHS: Mapping[str, ex.IntExpr] = {"nq": ex.Var("nk")}
_VALUES: Mapping[str, ex.IntExpr] = {"q": _POSITION, **_LENGTHS}


def aligned(pattern: pat.Pattern, align: pat.Align) -> pat.Pattern:
    """Put query i where ``align`` says: at i, or at i + nk - nq.

        { q -> k : k <= q }   --bottom-right-->   { q -> k : 0 <= q + nk - nq and k <= q + nk - nq }

    The mask is the last ``nq`` rows of the one at ``nk`` queries and ``nk`` keys; with more queries
    than keys the first rows are empty. Inputs are as long as that sequence: a side ``nq`` is
    ``nk``. Where both sides have the same space, their lengths are equal, and nothing changes.
    Raises: CompileError[ATT0411] for queries and keys in different spaces.
    """
    if align == pattern.align or pattern.query_space == pattern.key_space is not None:
        return pattern
    assert pattern.align == "top-left", "a pattern is aligned once"
    if pattern.query_space != pattern.key_space:
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0411",
                    message=f"queries and keys of `{pattern.name}` stand in different spaces, so "
                    f"they have no alignment `{align}`",
                    help="write the position of a query among the keys into the pattern",
                )
            ]
        )
    return replace(
        pattern,
        body=_moved(pattern.body),
        inputs=tuple(map(_lengthened, pattern.inputs)),
        score=None if pattern.score is None else sc.substitute(pattern.score, _VALUES),
        sink=None if pattern.sink is None else sc.substitute(pattern.sink, _VALUES),
        align=align,
    )


def _moved(body: pat.Node) -> pat.Node:
    there = pat.Where(ex.compare(">=", _POSITION, ex.ZERO))
    match _substituted(body):
        case pat.Where(predicate):
            return pat.Where(ex.and_(there.predicate, predicate))
        case pat.Intersection(parts):
            return pat.Intersection((there, *parts))
        case node:
            return pat.Intersection((there, node))


def _substituted(node: pat.Node) -> pat.Node:
    match node:
        case pat.Where(predicate):
            return pat.Where(ex.substitute(predicate, _VALUES))
        case pat.Union(parts):
            return pat.Union(tuple(map(_substituted, parts)))
        case pat.Intersection(parts):
            return pat.Intersection(tuple(map(_substituted, parts)))
        case pat.Difference(left, right):
            return pat.Difference(_substituted(left), _substituted(right))
        case pat.Complement(part):
            return pat.Complement(_substituted(part))


def _lengthened(one: pat.Input) -> pat.Input:
    return replace(
        one,
        dims=tuple(None if side is None else ex.substitute(side, _LENGTHS) for side in one.dims),
        formula=None if one.formula is None else ar.substitute(one.formula, _LENGTHS),
    )
