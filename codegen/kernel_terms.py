"""forward plan -> the expressions of its kernel as text: masks, score terms, the sink.

Printed before the kernel that holds them, so that what is the same for all keys is known before the
loop is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnc.codegen.boxes import coordinate_names, coordinate_ranges, crosses
from attnc.codegen.predicate import MAX_REST, TILE_RANGES, TOKEN_RANGES, input_ranges
from attnc.codegen.score import TritonScore
from attnc.codegen.simplify import Ranges, simplify_bool
from attnc.codegen.triton_predicate import TRITON_HELPERS, Load, TritonDialect
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import ForwardPlan

_TILE_NAMES = {n: n for n in ("qb", "h", "nq", "nk", "NQ", "NK")}
_TOKEN_NAMES = {"q": "q_pos", "k": "k_pos", "h": "h", "nq": "nq", "nk": "nk"}


@dataclass(frozen=True, slots=True)
class Term:
    """An expression, and the loads of keys that stand in front of it."""

    text: str
    loads: tuple[str, ...] = ()


class KernelTerms:
    """The dialects of one kernel, which gather helpers and loads, and what they printed.

    ``head`` is the name of the head of the mask, ``masks`` the test of each mask class in use,
    ``score`` the scores times log2(e) ("": the scaled product), ``sink`` the sink's logit times
    log2(e), ``once`` the lines in front of the loop, ``early`` those in front of a tile's product:
    loads of the score, and of masks that load an element for each pair. Behind the product, or in a
    branch, such loads would make Hopper wait for each matrix instruction.
    """

    def __init__(self, plan: ForwardPlan, classes: Iterable[int]) -> None:
        pattern = plan.block_mask.pattern
        self.head = "kv_head" if pattern.kv_heads and pattern.heads else "h"
        ranges, inputs = _ranges(pattern), {one.name: one for one in pattern.inputs}
        self.tile = TritonDialect(
            {**_TILE_NAMES, "h": self.head}, {**TILE_RANGES, **ranges}, inputs
        )
        self._there = "k_pos < nk"
        names, places = dict(_TOKEN_NAMES), dict(TOKEN_RANGES)
        if plan.boxes is not None:
            if crosses(plan.boxes.keys):
                self._there = "k_there[None, :]"
            names |= coordinate_names(plan.boxes)
            places |= coordinate_ranges(plan.boxes)
        self._token = TritonDialect({**names, "h": self.head}, {**places, **ranges}, inputs)
        scores = TritonScore(self._token)
        self.sink = "" if pattern.sink is None else scores.once(pattern.sink)
        self.score = "" if pattern.score is None else self._score(scores, pattern.score)
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
            text = f"tl.zeros([BQ, BK], tl.float32) + {text}"
        return text

    def _keep(self, mask: ex.BoolExpr) -> str:
        """Return the test of a tile of one class."""
        residual = simplify_bool(mask, self._token.ranges)
        keep = self._token.boolean(residual)
        match residual:
            case ex.Truth(True):
                return self._there
            case ex.Truth(False):
                return "k_pos < 0"
            case ex.And():
                return f"{keep} & ({self._there})"
            case _:
                return f"({keep}) & ({self._there})"


def _lines(loads: Iterable[Load], *, in_loop: bool) -> tuple[str, ...]:
    return tuple(line for load in loads if load.in_loop == in_loop for line in load.lines)


def _ranges(pattern: Pattern) -> Ranges:
    """Return what is known of heads, lengths and inputs of one pattern."""
    heads = {"h": (0, pattern.heads - 1 if pattern.heads else 2**20)}
    lengths: dict[str, tuple[int | None, int | None]] = {}
    for name, length in zip(("q", "k"), pattern.lengths, strict=True):
        if length is not None:
            lengths |= {f"n{name}": (length, length), name: (0, length + MAX_REST)}
    return {**heads, **lengths, **input_ranges(pattern)}
