"""Routed plan: what a written module of a routed attention holds, every decision already made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.plan import Plan, Target
from attnc.compiler.ir.routed import Routed


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedPlan:
    """The parts of a routed attention; they are disjoint, and merge by log-sum-exp.

    ``kept``: the plan of what is attended at any rate (and of the sink); None: there is nothing.
    ``rest``: what a selected pair has to meet to count: in the base, and not kept at any rate.
    ``past_free``: proved that every key that stands before the query meets it. ``itself``: proved
    that the one that stands where the query does meets it. ``ahead``: whether a key that stands
    after the query may meet it (False: proved that none does).
    ``refuses_training``: why gradients would be of no use: a query's selection depends on later
    tokens, under a mask that hides these. "" where nothing is wrong.
    """

    routed: Routed
    kept: Plan | None
    rest: ex.BoolExpr
    past_free: bool
    itself: bool
    ahead: bool
    head_dim: int
    value_dim: int
    dtype: Literal["fp32", "bf16", "fp16"]
    target: Target
    refuses_training: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)
