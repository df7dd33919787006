"""Routed IR -> routed plan: the part that is kept at any rate gets a kernel plan of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attnc.compiler import sets
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Plan, Target
from attnc.compiler.ir.routed import AnyAttention, Combined, Routed
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.hull import hull
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.resolve import Named


def build_routed(
    routed: Routed,
    plan: Callable[[Pattern], Plan],
    *,
    head_dim: int,
    value_dim: int,
    dtype: Literal["fp32", "bf16", "fp16"],
    target: Target,
) -> RoutedPlan:
    """Decide everything codegen needs; ``plan`` makes the kernel plan of an ordinary pattern.

    A sink belongs to the kept part, which then exists even where it keeps no pair.
    """
    kept = None
    if routed.base.sink is not None or not is_nothing(routed.kept):
        kept = plan(routed.kept)
    notes = [] if kept is None else [f"kept part: {note}" for note in kept.notes]
    why = refusal(routed)
    if why:
        notes.append(f"for inference only: {why}")
    base = routed.base
    rest = (base if is_nothing(routed.kept) else routed.rest).predicate
    behind, ahead = _sides(base)
    itself = ex.and_(ex.not_(behind), ex.not_(ahead))
    return RoutedPlan(
        routed=routed, kept=kept, rest=rest,
        past_free=never(base, ex.and_(behind, ex.not_(rest))),
        itself=never(base, ex.and_(itself, ex.not_(rest))),
        ahead=not never(base, ex.and_(ahead, hull(rest))), refuses_training=why,
        head_dim=head_dim, value_dim=value_dim, dtype=dtype, target=target, notes=tuple(notes),
    )


def _sides(base: Pattern) -> tuple[ex.BoolExpr, ex.BoolExpr]:
    """Return the pairs whose key stands before the query, and those whose key stands after it."""
    place: ex.IntExpr = ex.Var("q")
    if base.align == "bottom-right":
        place = ex.add(place, ex.Var("nk"), ex.mul(ex.Const(-1), ex.Var("nq")))
    key = ex.Var("k")
    return ex.compare("<", key, place), ex.compare("<", place, key)


def never(pattern: Pattern, predicate: ex.BoolExpr) -> bool:
    """Whether isl proves that a predicate holds of no pair of a pattern's tokens."""
    if not ex.is_static(predicate):
        return False
    names = ["nq", "nk", *(["h"] if pattern.heads is not None else [])]
    domain = "0 <= q < nq and 0 <= k < nk"
    if pattern.heads is not None:
        domain += f" and 0 <= h < {pattern.heads}"
    try:
        with sets.budget(share=sets.WARNING_SHARE):
            return bool(sets.pair_map(predicate, names, domain).is_empty())
    except sets.OverBudget:
        return False


def is_nothing(pattern: Pattern) -> bool:
    """Whether a pattern keeps no pair, as far as that can be said."""
    if pattern.predicate == ex.FALSE:
        return True
    return never(pattern, pattern.predicate)


def is_causal(pattern: Pattern) -> bool:
    """Whether isl proves that no query sees a later key, whatever data says."""
    _, ahead = _sides(pattern)
    return never(pattern, ex.and_(ahead, hull(pattern.predicate)))


def refusal(routed: Routed) -> str:
    """Return why a routed attention cannot train a model that predicts the next token; "" if not.

    A selection that depends on later tokens is of no harm where the mask hides none of them.
    """
    ahead = [route.name for route in routed.routes if not route.is_causal]
    if not ahead or not is_causal(routed.base):
        return ""
    names = ", ".join(f"`{name}`" for name in ahead)
    return (
        f"what {names} selects for a query depends on later tokens, which the mask hides from it; "
        "a model would learn from what it cannot see when it generates"
    )


def looks_ahead(attention: AnyAttention, definition: Named[Any]) -> tuple[Diagnostic, ...]:
    """Return a warning for each attention that is for inference only."""
    if isinstance(attention, Combined):
        found = [looks_ahead(term.attention, definition) for term in attention.terms]
        return tuple(d for each in found for d in each)[:1]
    why = refusal(attention) if isinstance(attention, Routed) else ""
    if not why:
        return ()
    return (
        Diagnostic(
            code="ATT0334", severity="warning", span=definition.item.name_span,
            message=f"`{attention.name}` is for inference, not for training", notes=(why,),
            label="calls with gradients are refused",
            help="nothing is wrong with that; to train, let whole tokens choose completed blocks",
        ),
    )  # fmt: skip
