"""Route IR: which units of keys each unit of queries is routed to, by their content.

A route is a function of q ``[B, Hq, nq, D]``, k ``[B, Hkv, nk, D]`` and inputs to a relation of
units, in three stages: *score* (represent the units of both sides, multiply, normalise, reduce),
*select* (what competes within a budget, what is kept anyway), *emit* (what a selected pair means
for tokens). All values are bound; ``compiler/route_oracle.py`` defines the meaning in float64.

Each field changes one thing only: grains and ``reduce`` alone change shapes, ``compete`` alone
changes the pool that one budget is shared in, ``keep`` never changes a score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, TypeAlias

# ------------------------------------------------------------------------------------- score

GrainKind = Literal["token", "block", "cell", "last", "head", "cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grain:
    """The units that one side is seen in. Unit ``u`` holds the tokens ``t`` with ``unit(t) == u``.

    ``token``: each token by itself. ``block``: ``sizes[0]`` tokens in a row, counted from the first
    of its side; the last block may be shorter. ``cell``: boxes of sides ``sizes`` on the grid of
    that side, row-major, cut at the border. ``last`` (queries): the last ``sizes[0]`` queries, or
    all if there are fewer, each a row of its own until a ``reduce`` over ``query`` or ``diagonal``
    makes one of them that stands for every query of the head. ``head``: all tokens are one unit.
    ``cluster`` (queries): ``sizes[0]`` centroids, which choose tokens of both sides themselves.

    Where a token *stands* (``visible``, ``own``, distances): key j at j, query i where ``align`` of
    the pattern puts it, at i or at i + nk - nq.
    """

    kind: GrainKind
    sizes: tuple[int, ...] = ()


RepKind = Literal["id", "mean", "max", "min", "minmax", "fold", "unit", "external"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rep:
    """What stands for a unit in the score, a vector (``minmax``: two of them).

    ``id``: the token itself (scores then have token grain, whatever the unit is). ``unit``: the
    token divided by its Euclidean norm (0 stays 0), at token grain too. ``mean``, ``max``, ``min``:
    over the tokens of the unit, channel by channel; ``minmax``: both. ``fold``: ``size`` tokens in
    a row, their channels one after the other (``flip``: the tokens in reverse order), tokens past
    the end being 0; the score then has a grain of ``size`` tokens. ``external``: the input
    ``input`` is it, ``[B, H, units, D']`` (a learned projection, a PCA, a compressed key), H being
    1, Hkv or Hq.
    ``center``: the mean over all tokens of the side is taken off first (SLA, SageAttention).
    ``window`` (keys): what is represented are not the units but windows of ``window[0]`` tokens
    every ``window[1]`` tokens, those that fit as a whole; the score has their grain until a
    ``reduce`` over ``overlap`` makes units of them (NSA, InfLLM-v2).
    """

    kind: RepKind
    size: int = 1
    flip: bool = False
    center: bool = False
    input: str | None = None
    window: tuple[int, int] | None = None


ScoreKind = Literal["dot", "bound", "relu_heads", "external"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How two representations are compared: a number, float32, for each pair of units.

    ``dot``: their product. ``bound``: ``sum_c max(q_c * kmax_c, q_c * kmin_c)`` of a ``minmax``
    key, which no key of the unit exceeds. ``relu_heads``: ``sum_j w_j * relu(q_j . k)`` over heads
    ``j``; ``weights`` is the input ``[B, nq, J]``, ``query_rep`` external ``[B, J, nq, D']``,
    ``key_rep`` external ``[B, 1, nk, D']``. ``external``: the input ``input`` is the score, ``[B,
    H, query units or 1, key units]`` (``[B, H, tokens]`` for ``members``), H being 1, Hkv or Hq.
    ``scale``: a factor; "head_dim" is 1 / sqrt(D), D being the channels of q. None: 1. ``divisor``
    divides it further (XAttention: by the tokens folded).
    A score that is not finite is refused.
    """

    kind: ScoreKind
    scale: Fraction | Literal["head_dim"] | None = None
    divisor: int = 1
    weights: str | None = None
    input: str | None = None


Visible = Literal["past", "completed", "reached", "all"]
"""Which key units a query unit may score, at the grain of the score.

``past``: the last token of the key unit stands before the first of the query unit. ``completed``:
it stands no later than the last of the query unit. ``reached``: the first token of the key unit
stands no later than the last of the query unit. ``all``: every one. What is not visible has score
-inf, takes no part in a norm or reduce, and is never selected (unless kept). After a reduce, what
any visible pair went into is visible.
"""

Norm = Literal["none", "softmax", "minmax"]
"""What is made of scores before they are reduced, over what is visible.

``softmax``: over the keys of a row. ``minmax``: ``(s - least) / (largest - least)`` over the pool
that ``compete`` says; 1 where all are equal.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce:
    """One step that makes a score coarser (or smoother), in the order written, over visible pairs.

    ``cell``: from the grain of the score to that of the selection, both sides. ``query``: over all
    query rows (``last``). ``diagonal``: over all pairs of equal ``q - k`` (``last``); the key axis
    then counts distances, 0 to nk - 1. ``group``: over the query heads of a KV head. ``heads``:
    over all heads. ``overlap``: from the windows of ``key_rep`` to key blocks, over the windows
    that share a stride (``window[1]`` tokens, which divide both) with the block; a sum counts a
    window once for each stride shared, and a mean is that sum by the strides counted. ``smooth``:
    running, over ``width`` key units (odd), centred; what is beyond the ends or not visible is 0
    and counts; visible stays what was.
    """

    over: Literal["cell", "query", "diagonal", "group", "heads", "overlap", "smooth"]
    op: Literal["sum", "mean", "max"] = "sum"
    width: int = 1


# ------------------------------------------------------------------------------------ select


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The best of a pool, ``count`` for each row it has; of equals the lowest index first.

    A pool of one row (``compete`` "row", "column") has a budget of ``count``, the pool of a head
    ``count`` times its query units, of all heads that times the heads. Fewer visible: all.
    """

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The best ``share`` of those that compete in a pool, rounded down, but ``least`` at least.

    Those that compete are the visible ones and the counted kept ones, without the other kept ones.
    """

    share: Fraction
    least: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TopP:
    """The best ones until their sum reaches ``mass`` of the pool's (negative scores are refused).

    The sum begins with the counted kept ones (0 where they are not visible). ``crossing``: whether
    the one that reaches it is taken (``in``: taken while the sum before it is less) or not
    (``out``: while the sum with it is less). ``least`` of those not kept are taken at any rate, as
    far as there are so many. A mass of 1 takes all.
    """

    mass: Fraction
    crossing: Literal["in", "out"] = "in"
    least: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Above:
    """Those with a score greater than ``threshold`` (a number, or an input ``[H]`` by name)."""

    threshold: Fraction | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """Those whose score is at most ``difference`` below the row's anchor.

    The anchor of a query unit is the mean over its queries of the largest product, scaled as the
    score is, with a key that the attention keeps anyway (``Routed.kept``). Queries without such a
    key do not count; where no query has one, all that is visible is selected.
    """

    difference: Fraction


Select: TypeAlias = TopK | Ratio | TopP | Above | Near
Compete = Literal["row", "column", "head", "all"]
"""The pool of one budget: the keys of one query unit; the query units of one key unit, or for
``members`` the tokens for one centroid or head (expert choice); all pairs of a head; all pairs of
all heads of a batch item. The lowest index is that of the pool in row-major order: head, query,
key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Units selected at any rate, where they are reached at all.

    ``own``: those that hold a place where a token of the query unit stands (for a row of ``last``:
    any of these queries). ``first``: the first ``count``. ``recent``: the ``count`` that end with
    the last own one. ``nearest``: distances below ``count``. Reached: under ``visible`` "all" every
    unit, else those whose first token stands no later than the last of the query unit.
    ``counted``: they take up the budget, as if their score were largest (of ``TopP`` their own mass
    is charged first); otherwise they come on top, and do not compete. Kept ones beyond the budget
    stay.
    """

    what: Literal["own", "first", "recent", "nearest"]
    count: int = 1
    counted: bool = True


# -------------------------------------------------------------------------------------- emit

Emit = Literal["units", "slashes", "members"]
"""``units``: every query of the query unit may see every key of the key unit (blocks, pages,
columns, tokens: by the grains). ``slashes``: distances ``q - k``. ``members``: the queries and the
keys that a centroid, or a head, chose attend among themselves, one softmax for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A content-dependent relation between tokens: ``(b, h, q, k)`` is in it or not.

    ``widen``: after the selection, so many query units in a row see what any of them selected.
    ``capacity``: the most key units that a (widened) row may have where the selection does not say
    it (a number, or a share of all key units, rounded up); ``overflow``: what a row with more does,
    raise or leave out its lowest scores (the largest of the rows widened counts; kept ones last;
    of equals the highest index first). None: as many as there are.
    ``combine``: what members' results become: their mean over the members that chose the query
    (one in which it sees no key counts, with 0), or their sum weighted by the score of the query.
    ``grad``: "none": gradients go through the attended values alone. "weight": the score of a
    member multiplies its result and learns by it.
    ``refresh``: how many decode steps a selection serves; 1: each.
    ``causal``: what the author states of ``is_causal``; None: nothing.
    """

    name: str
    query: Grain
    key: Grain
    query_rep: Rep
    key_rep: Rep
    score: Score
    visible: Visible
    norm: Norm = "none"
    reduce: tuple[Reduce, ...] = ()
    compete: Compete = "row"
    select: Select
    keep: tuple[Keep, ...] = ()
    widen: int = 1
    emit: Emit = "units"
    capacity: int | Fraction | None = None
    overflow: Literal["error", "drop"] = "error"
    combine: Literal["mean", "score"] = "mean"
    grad: Literal["none", "weight"] = "none"
    refresh: int = 1
    causal: bool | None = None
    source_text: str = field(default="", compare=False)

    @property
    def heads(self) -> Literal["query", "kv", "one"]:
        """Whose selection it is: each query head's, each KV head's, or one for all heads."""
        over = {step.over for step in self.reduce}
        if "heads" in over or self.score.kind == "relu_heads":
            return "one"
        return "kv" if "group" in over else "query"

    @property
    def is_causal(self) -> bool:
        """Whether what a query selects depends on no later token, so that training may use it.

        Blocks of queries pool queries that come after the first of them; budgets that many queries
        share depend on all of these. An external score or representation is taken as given.
        """
        return (
            self.query.kind == "token"
            and self.compete == "row"
            and self.visible in ("past", "completed")
            and not (self.query_rep.center or self.key_rep.center)
            and self.widen == 1
        )

    def room(self, units: int) -> int:
        """Return how many key units a row of the selection has room for, of ``units`` there are.

        What the selection and ``keep`` say by themselves, ``capacity`` where it is stated, and all
        of them where neither says it. It depends on lengths alone, so results have known shapes.
        """
        if self.capacity is not None:
            stated = self.capacity
            most = stated if isinstance(stated, int) else -(-stated.numerator * units //
                                                            stated.denominator)  # fmt: skip
        elif self.compete != "row" or self.widen > 1 or not isinstance(self.select, TopK | Ratio):
            most = units
        else:
            most = self.chosen(units) + sum(
                self.kept_units(keep) for keep in self.keep if not keep.counted
            )
            counted = sum(self.kept_units(keep) for keep in self.keep if keep.counted)
            most = max(most, counted)
        return min(most, units)

    def chosen(self, units: int) -> int:
        """Return the budget of ``TopK`` or ``Ratio`` in a pool of ``units``."""
        if isinstance(self.select, TopK):
            return self.select.count
        assert isinstance(self.select, Ratio)
        share = self.select.share
        return max(units * share.numerator // share.denominator, self.select.least)

    def kept_units(self, keep: Keep) -> int:
        """Return how many key units a query unit keeps by one clause, at most."""
        if keep.what != "own":
            return keep.count
        if self.query.kind != self.key.kind:
            return 1 if self.query.kind == "token" else max(self.query.sizes[0], 1)
        pairs = zip(self.query.sizes, self.key.sizes, strict=True)
        own = 1
        for query, key in pairs:
            own *= 1 if key % query == 0 else -(-query // key) + (query % key != 0)
        return own
