"""loop plan -> the expressions of its kernel as text: masks, score terms, the sink.

Printed before the kernel that holds them, so that what is the same for all keys is known before the
loop is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnc.codegen.boxes import Side, coordinate_names, coordinate_ranges, crosses
from attnc.codegen.learned import Learned
from attnc.codegen.predicate import MAX_REST, TILE_RANGES, TOKEN_RANGES, input_ranges
from attnc.codegen.score import TritonScore
from attnc.codegen.simplify import Ranges, simplify_bool
from attnc.codegen.triton_predicate import TRITON_HELPERS, Load, TritonDialect
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir import score_derivative as sd
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import ForwardPlan, LoopPlan


@dataclass(frozen=True, slots=True)
class Sides:
    """Which side has the rows of a kernel; the loop runs over the other.

    ``inverse``: the plan is that of a transposed pattern, whose ``q`` are the keys.
    """

    inverse: bool = False

    @property
    def row(self) -> Side:
        """The letter of the side of the rows, in the names of the kernel."""
        return "k" if self.inverse else "q"

    @property
    def column(self) -> Side:
        """The letter of the other side."""
        return "q" if self.inverse else "k"

    @property
    def tiles(self) -> str:
        """What the other side is called in front of a noun."""
        return "query" if self.inverse else "key"

    @property
    def tokens(self) -> str:
        """What its tokens are called."""
        return "queries" if self.inverse else "keys"

    def tile_names(self) -> dict[str, str]:
        """Name the variables of bounds."""
        r, c = self.row, self.column
        return {
            "qb": f"{r}b", "nq": f"n{r}", "nk": f"n{c}", "NQ": f"N{r.upper()}",
            "NK": f"N{c.upper()}",
        }  # fmt: skip

    def token_names(self) -> dict[str, str]:
        """Name the variables of masks and scores."""
        r, c = self.row, self.column
        return {"q": f"{r}_pos", "k": f"{c}_pos", "nq": f"n{r}", "nk": f"n{c}"}


@dataclass(frozen=True, slots=True)
class Term:
    """An expression, and the loads of keys that stand in front of it."""

    text: str
    loads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LearnedTerm:
    """What a kernel adds to the gradient of an input: ``slope`` times that of the score.

    ``lines`` make the ``offset`` of the element, in the shape of what changes with it; ``inside``
    is the test that there is one ("": always). Of sums along diagonals these are empty.
    """

    slope: str
    lines: tuple[str, ...] = ()
    offset: str = ""
    inside: str = ""


class KernelTerms:
    """The dialects of one kernel, which gather helpers and loads, and what they printed.

    ``head`` is the name of the head of the mask, ``there`` the test that tokens of a tile exist,
    ``masks`` the test of each mask class in use, ``score`` the scores times log2(e) ("": the scaled
    product), ``by_dot`` of a backward kernel the score's derivative by that product ("": 1),
    ``of_row`` what joins the log-sum-exps of a folded score ("": nothing),
    ``sink`` the sink's logit times log2(e), ``learned`` what is added for each of the elements it
    was made for, ``once`` the lines in front of the loop,
    ``early`` those in front of a tile's product: loads of the score, and of masks that load an
    element for each pair. Behind the product, or in a branch, such loads would make Hopper wait for
    each matrix instruction.
    """

    def __init__(
        self, plan: LoopPlan, classes: Iterable[int], sides: Sides | None = None, *,
        backward: bool = False, learned: tuple[Learned, ...] = (),
    ) -> None:
        pattern = plan.block_mask.pattern
        self.sides = sides or Sides()
        shared = bool(pattern.heads and pattern.kv_heads)
        if self.sides.inverse:
            shared = not heads_apart(plan)
        self.head = "kv_head" if shared else "h"
        ranges, inputs = known_ranges(pattern), {one.name: one for one in pattern.inputs}
        self.tile = TritonDialect(
            {**self.sides.tile_names(), "h": self.head}, {**TILE_RANGES, **ranges}, inputs
        )
        self.there = f"{self.sides.column}_pos < n{self.sides.column}"
        names, places = self.sides.token_names(), dict(TOKEN_RANGES)
        if plan.boxes is not None:
            if crosses(plan.boxes.keys):
                self.there = f"{self.sides.column}_there[None, :]"
            names |= coordinate_names(plan.boxes, self.sides.row, self.sides.column)
            places |= coordinate_ranges(plan.boxes)
        fold = plan.fold if isinstance(plan, ForwardPlan) else None
        if fold is not None:
            names, places = {**names, "q0": "q_middle"}, {**places, "q0": places["q"]}
        self._token = TritonDialect({**names, "h": self.head}, {**places, **ranges}, inputs)
        scores = TritonScore(self._token)
        self.sink = "" if pattern.sink is None or backward else scores.once(pattern.sink)
        self.of_row = "" if fold is None else scores.at_end(fold.of_row)
        score = pattern.score if fold is None else fold.score
        self.score = "" if score is None else self._score(scores, score)
        self.by_dot = ""
        if pattern.score is not None and backward and not learned:
            slope = sd.derivative(pattern.score).dot
            self.by_dot = "" if slope == sd.ONE else scores.factor(slope)
        self.learned = [self._learned(scores, i, one) for i, one in enumerate(learned)]
        early = self._token.loads
        found = dict(early)
        self.masks: dict[int, Term] = {}
        for number in classes:
            known = early | {e: load for e, load in found.items() if not load.in_loop}
            self._token.loads = dict(known)
            text = self._keep(plan.masks[number - 1])
            new = {e: load for e, load in self._token.loads.items() if e not in known}
            found |= new
            if any(load.side == "both" for load in new.values()):
                early = self._token.loads
                new = {}
            self.masks[number] = Term(text, _lines(new.values(), in_loop=True))
        self.once = [
            *_lines(found.values(), in_loop=False),
            *(f"{name} = {text}" for text, name in scores.lines.items()),
        ]
        self.early = _lines(early.values(), in_loop=True)

    def helpers(self) -> list[str]:
        """Return the functions that the text calls so far."""
        return [TRITON_HELPERS[name] for name in sorted(self.tile.helpers | self._token.helpers)]

    def _score(self, scores: TritonScore, score: sc.RealExpr) -> str:
        if score == sc.Dot():
            return ""
        text = scores.text(score)
        if not any(isinstance(node, sc.Dot) for node in sc.walk(score)):
            shape = f"[B{self.sides.row.upper()}, B{self.sides.column.upper()}]"
            text = f"tl.zeros({shape}, tl.float32) + {text}"
        return text

    def _learned(self, scores: TritonScore, number: int, one: Learned) -> LearnedTerm:
        slope = "" if one.slope == sd.ONE else scores.factor(one.slope)
        if one.way == "diagonal":
            return LearnedTerm(slope)
        lines, offset, inside = self._token.place(one.name, one.index, f"at_{number}")
        return LearnedTerm(slope, tuple(lines), offset, inside)

    def _keep(self, mask: ex.BoolExpr) -> str:
        """Return the test of a tile of one class."""
        residual = simplify_bool(mask, self._token.ranges)
        keep = self._token.boolean(residual)
        match residual:
            case ex.Truth(True):
                return self.there
            case ex.Truth(False):
                return f"{self.sides.column}_pos < 0"
            case ex.And():
                return f"{keep} & ({self.there})"
            case _:
                return f"({keep}) & ({self.there})"


def heads_apart(plan: LoopPlan) -> bool:
    """Whether query heads differ in what they see or add to scores: their loops are not alike.

    Then dK and dV are made for each query head, and added up by the host.
    """
    pattern = plan.block_mask.pattern
    if pattern.heads is None or pattern.kv_heads:
        return False
    score = frozenset() if pattern.score is None else sc.free_vars(pattern.score)
    return "h" in ex.free_vars(pattern.predicate) | score


def _lines(loads: Iterable[Load], *, in_loop: bool) -> tuple[str, ...]:
    return tuple(line for load in loads if load.in_loop == in_loop for line in load.lines)


def known_ranges(pattern: Pattern) -> Ranges:
    """Return what is known of heads, lengths and inputs of one pattern."""
    heads = {"h": (0, pattern.heads - 1 if pattern.heads else 2**20)}
    lengths: dict[str, tuple[int | None, int | None]] = {}
    for name, length in zip(("q", "k"), pattern.lengths, strict=True):
        if length is not None:
            lengths |= {f"n{name}": (length, length), name: (0, length + MAX_REST)}
    return {**heads, **lengths, **input_ranges(pattern)}
