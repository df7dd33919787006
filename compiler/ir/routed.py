"""Routed IR: a static pattern, what of it is kept at any rate, and the routes that choose the rest.

    mask = base & (kept | route 1 | route 2 | ...)

``base`` and ``kept`` are ordinary patterns, so all that is projected from a pattern is projected
from them; the routes are decided at the call, by q and k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from attnc.compiler.ir.pattern import Complement, Intersection, Pattern
from attnc.compiler.ir.route import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteInput:
    """A tensor that a route reads at the call; a batch dimension may be 1, shared by all.

    ``role``: "q rep" ``[B, H, query units, D']``, "k rep" ``[B, H, key units or windows, D']``,
    "score" ``[B, H, query units or 1, key units]`` or ``[B, H, tokens]`` (members), "weights" ``[B,
    nq, J]``, "centroids" ``[H, C, D]``, "threshold" ``[H]``. H is 1, Hkv or Hq.
    """

    name: str
    route: str
    role: Literal["q rep", "k rep", "score", "weights", "centroids", "threshold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """An attention whose keys are chosen by content, as far as ``kept`` leaves it open.

    ``base``: what every attended pair meets; it carries the name, heads, spaces, inputs, score
    terms, sink and scale. ``kept``: the pairs attended at any rate, inside ``base`` (its body is
    False where there are none). ``routes``: each adds pairs inside ``base``; a pair that several
    choose counts once. A route that emits ``members`` stands alone, and ``kept`` is empty; its
    result is no softmax over a row, so it has no log-sum-exp.
    """

    base: Pattern
    kept: Pattern
    routes: tuple[Route, ...]
    inputs: tuple[RouteInput, ...] = ()

    @property
    def name(self) -> str:
        """The name it was defined with."""
        return self.base.name

    @property
    def rest(self) -> Pattern:
        """What routes may add: ``base - kept``. Disjoint from ``kept``: no pair counts twice."""
        return replace(
            self.base, body=Intersection((self.base.body, Complement(self.kept.body)))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One attention of a gated sum: ``gate * attention(q, keys, values)``.

    ``gate``: the input that multiplies its output, ``[B, Hq or 1, nq or 1]``; None: 1. ``keys``:
    the name of a second key stream, which the op takes as ``<keys>_k`` and ``<keys>_v``, ``[B, Hkv,
    K2, D]``; None: k and v.
    """

    attention: Pattern | Routed
    gate: str | None = None
    keys: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """``out = sum of gate * attention``: each term has its own softmax; there is no lse."""

    name: str
    terms: tuple[Term, ...]


AnyAttention: TypeAlias = Pattern | Routed | Combined
