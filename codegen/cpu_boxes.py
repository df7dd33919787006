"""q, k, v on a grid + boxes of queries -> attention by torch's CPU flash kernel, box by box.

``codegen/cpu.py`` pastes what stands below the cut line, verbatim, into every written module whose
CPU plan has boxes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from attnc.codegen.cpu_backward import _flash_backward, _Gradients, _prepared
from attnc.codegen.cpu_executor import _flash, _lanes, _select
from attnc.codegen.cpu_schedule import _Masks

# --- cut: boxes ---

# The keys that some query of a box needs are copied together, a few boxes at a time, and each box
# is a batch of its own in one call of the flash kernel: no result is merged with another. Extents
# are known, so `_box_calls` decides once which boxes share a call: those that see as many keys of
# each piece. Where these lie, and what is masked, is made of small tables along each axis.

_BOX_BYTES = 4 << 20  # keys and values that one call copies
_ALIKE_MASKS = 4  # boxes of a call that share a mask on average, if they are to share it in a call
_AxisTest = Callable[..., Any]  # h, q, k: a head and positions along an axis -> bool


class _BoxSide(NamedTuple):
    """A segment of the tokens, from ``start`` on: a grid cut into boxes."""

    start: int
    extents: tuple[int, ...]
    box: tuple[int, ...]
    order: tuple[int, ...] | None  # the tokens stand box by box of these sides; None: row-major

    def tokens(self, at: list[torch.Tensor]) -> torch.Tensor:
        """Return the flat positions of coordinates, one tensor for each axis."""
        place: Any = self.start
        sides = self.order or (1,) * len(at)
        parts = [(x // s, e // s) for x, s, e in zip(at, sides, self.extents, strict=True)]
        parts += [(x % s, s) for x, s in zip(at, sides, strict=True) if self.order]
        step = math.prod(self.extents)
        for x, extent in parts:
            step //= extent
            place = place + x * step
        return torch.as_tensor(place)


class _BoxPiece(NamedTuple):
    """Keys of a segment that boxes of queries see: a product of progressions along the axes."""

    queries: int  # number of the segment
    keys: int
    tiles: Callable[..., Any]  # h, coordinates of the box -> base, count, period, run of each axis
    # A pair is kept where all tests of some alternative hold, one for each axis; None: they hold.
    keep: tuple[tuple[_AxisTest | None, ...], ...] = ()  # none at all: every pair is kept


class _CpuBoxes(NamedTuple):
    """A CPU plan on boxes: the segments of both sides, and which keys boxes of queries see."""

    heads: int | None  # heads with masks of their own; None: one mask for all
    queries: tuple[_BoxSide, ...]
    keys: tuple[_BoxSide, ...]
    pieces: tuple[_BoxPiece, ...]
    kv_heads: bool = False  # whether these are heads of k, each with a group of heads of q


class _Seen(NamedTuple):
    """The keys of a piece, as many for each box of a call: along each axis, its positions."""

    keys: _BoxSide
    places: list[torch.Tensor]  # [boxes, number]
    tables: list[list[torch.Tensor | None]]  # alternatives, [boxes or 1, queries, number] each


class _BoxCall(NamedTuple):
    """Boxes of queries that share calls of the kernel."""

    number: int
    queries: _BoxSide
    places: list[torch.Tensor]  # positions of the queries along each axis, [boxes, side]
    seen: list[_Seen]
    keys: int  # how many each box sees
    shared: bool  # whether one mask serves all boxes


class _BoxCalls(NamedTuple):
    """All calls, by head; ``every``: whether each query is in one of them."""

    heads: list[tuple[tuple[int, ...] | None, list[_BoxCall]]]
    every: bool
    held: _Masks


@functools.lru_cache(maxsize=64)
def _box_calls(boxes: _CpuBoxes) -> _BoxCalls:
    """Decide which boxes share a call."""
    number = itertools.count()
    found: list[tuple[tuple[int, ...] | None, list[_BoxCall]]] = []
    every = True
    for head in range(boxes.heads or 1):
        calls: list[_BoxCall] = []
        for index, side in enumerate(boxes.queries):
            pieces = [piece for piece in boxes.pieces if piece.queries == index]
            own = list(_calls_of(boxes, side, pieces, head, number)) if pieces else []
            in_calls = sum(len(x.places[0]) * math.prod(p.shape[1] for p in x.places) for x in own)
            every &= in_calls == math.prod(side.extents)
            calls += own
        found.append((None if boxes.heads is None else (head,), calls))
    return _BoxCalls(found, every, _Masks())


def _calls_of(
    boxes: _CpuBoxes,
    side: _BoxSide,
    pieces: list[_BoxPiece],
    head: int,
    number: Iterator[int],
) -> Iterator[_BoxCall]:
    """Gather the boxes of a segment that see as many keys, and are as large."""
    grid = [-(-extent // box) for extent, box in zip(side.extents, side.box, strict=True)]
    at = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid))  # [boxes, rank]
    box, extents = torch.tensor(side.box), torch.tensor(side.extents)
    sizes = (extents - at * box).minimum(box)
    bases, counts, steps = [], [], []
    for piece in pieces:
        axes = piece.tiles(head, *at.unbind(1))
        base, count = (
            torch.stack([torch.as_tensor(axis[i]).expand(len(at)) for axis in axes], 1)
            for i in (0, 1)
        )
        there = (count > 0).all(1, keepdim=True)
        bases.append(base)
        counts.append(count * there)
        steps.append([(period, run) for _, _, period, run in axes])
    kinds, kind = torch.cat([sizes, *counts], 1).unique(dim=0, return_inverse=True)
    for i, shape in enumerate(kinds.tolist()):
        rows = (kind == i).nonzero()[:, 0]
        sides = [shape[n : n + len(grid)] for n in range(0, len(shape), len(grid))]
        places = [
            (at[rows, axis] * box[axis])[:, None] + torch.arange(size)
            for axis, size in enumerate(sides[0])
        ]
        seen = [
            _seen(boxes.keys[piece.keys], piece, head, places, base[rows], count, step)
            for piece, base, count, step in zip(pieces, bases, sides[1:], steps, strict=True)
            if count[0]
        ]
        if seen:
            yield from _alike(side, places, seen, sum(map(math.prod, sides[1:])), number)


def _seen(
    keys: _BoxSide,
    piece: _BoxPiece,
    head: int,
    queries: list[torch.Tensor],
    base: torch.Tensor,
    count: list[int],
    steps: list[tuple[int, int]],
) -> _Seen:
    """Return where the keys of a piece are, and what is kept of them along each axis."""
    places = []
    for axis, (number, (period, run)) in enumerate(zip(count, steps, strict=True)):
        i = torch.arange(number)
        places.append(base[:, axis, None] + period * (i // run) + i % run)

    def table(test: _AxisTest | None, axis: int) -> torch.Tensor | None:
        if test is None:
            return None
        q, k = queries[axis][:, :, None], places[axis][:, None, :]
        return torch.as_tensor(test(head, q, k)).expand(len(q), q.shape[1], k.shape[2])

    tables = [[table(test, axis) for axis, test in enumerate(tests)] for tests in piece.keep]
    return _Seen(keys, places, tables)


def _alike(
    side: _BoxSide,
    places: list[torch.Tensor],
    seen: list[_Seen],
    keys: int,
    number: Iterator[int],
) -> Iterator[_BoxCall]:
    """Cut boxes by their masks, where few masks serve many boxes."""
    tables = [t.flatten(1) for one in seen for tests in one.tables for t in tests if t is not None]
    boxes = len(places[0])
    if not tables:
        yield _BoxCall(next(number), side, places, seen, keys, True)
        return
    masks, mask = torch.cat(tables, 1).unique(dim=0, return_inverse=True)
    few = len(masks) * _ALIKE_MASKS <= boxes or len(masks) == 1
    for i in range(len(masks) if few else 1):
        rows = (mask == i).nonzero()[:, 0] if few else torch.arange(boxes)
        some = rows[:1] if few else rows
        own = [
            _Seen(
                one.keys, [x[rows] for x in one.places],
                [[None if t is None else t[some] for t in tests] for tests in one.tables],
            )
            for one in seen
        ]  # fmt: skip
        yield _BoxCall(next(number), side, [x[rows] for x in places], own, keys, few)


def _product(axes: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return coordinates of all points of boxes. Shape: ``[boxes, number] -> [boxes, points]``."""
    rank = len(axes)
    spread = [x.view(len(x), *(-1 if i == a else 1 for i in range(rank))) for a, x in
              enumerate(axes)]  # fmt: skip
    return [x.flatten(1) for x in torch.broadcast_tensors(*spread)]


def _positions(
    held: _Masks, call: _BoxCall, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the queries and the keys of some boxes, one after the other."""
    name = (call.number, first, count, torch.int64)
    if name not in held.found:
        some = slice(first, first + count)
        with torch.device("cpu"):  # whatever the default device is
            q = call.queries.tokens(_product([x[some] for x in call.places])).flatten()
            k = [one.keys.tokens(_product([x[some] for x in one.places])) for one in call.seen]
            keys = torch.cat(k, 1).flatten()
        held.keep(name, keys, q)
        return q, keys
    keys, q = held.found[name]
    return q, keys


def _box_mask(
    held: _Masks, call: _BoxCall, first: int, count: int, dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the additive mask of some boxes and which rows it leaves without keys (None: none)."""
    if not any(one.tables for one in call.seen):
        return None, None
    if call.shared:
        first, count = 0, 1
    name = (call.number, first, count, dtype)
    if name in held.found:
        return held.found[name]
    parts = [_kept(call, one, first, count) for one in call.seen]
    kept = torch.cat(parts, 2)
    mask = dead = None
    if not kept.all():
        mask = kept.new_zeros((1, *kept.shape), dtype=dtype).masked_fill_(~kept, -math.inf)
        some = ~kept.any(-1)
        dead = some[None] if some.any() else None
    held.keep(name, mask, dead)
    return mask, dead


def _kept(call: _BoxCall, seen: _Seen, first: int, count: int) -> torch.Tensor:
    """Return which pairs of a piece are kept. Shape: ``[count, queries, keys]``."""
    rank = len(seen.places)
    sides = [x.shape[1] for x in (*call.places, *seen.places)]
    kept = torch.full((1,) * (2 * rank + 1), not seen.tables, device="cpu")
    for tests in seen.tables:
        own = torch.full_like(kept, True)
        for axis, table in enumerate(tests):
            if table is not None:
                shape = [-1, *(n if i % rank == axis else 1 for i, n in enumerate(sides))]
                own = own & table[first : first + count].reshape(shape)
        kept = kept | own
    whole = kept.expand(count, *sides)
    return whole.reshape(count, math.prod(sides[:rank]), -1)


def _box_portions(
    held: _Masks, call: _BoxCall, lane: Sequence[torch.Tensor]
) -> Iterator[tuple[int, int, list[torch.Tensor], torch.Tensor, torch.Tensor]]:
    """Yield boxes whose keys fit the cache: the first, how many; some heads; queries, keys."""
    q, k = lane[:2]
    boxes = len(call.places[0])
    alone = 2 * call.keys * k.shape[2] * k.element_size()  # of one box and head
    heads = max(1, min(len(q), _BOX_BYTES // alone))
    most = max(1, min(boxes, _BOX_BYTES // (alone * heads)))
    for first in range(0, boxes, most):
        count = min(most, boxes - first)
        at_q, at_k = _positions(held, call, first, count)
        for start in range(0, len(q), heads):
            yield first, count, [x[start : start + heads] for x in lane], at_q, at_k


def _copied(x: torch.Tensor, at: torch.Tensor, count: int) -> torch.Tensor:
    """Copy tokens, in boxes. Shape: ``[E, tokens, ...] -> [E, count, tokens of each, ...]``."""
    whole = x[:1] if len(x) > 1 and x.stride(0) == 0 else x  # heads that share their keys
    tokens = whole.index_select(1, at)
    found = tokens.view(len(whole), count, -1, *tokens.shape[2:])
    return found.expand(len(x), *found.shape[1:])


def _cpu_in_boxes(
    boxes: _CpuBoxes, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a plan. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``, both contiguous."""
    value_dim = v.shape[3]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty((*q.shape[:3], value_dim))
    lse = q.new_empty(q.shape[:3], dtype=exact)
    with torch.device("cpu"):  # whatever the default device is
        calls = _box_calls(boxes)
    if not calls.every or k.shape[2] == 0:
        out.zero_()
        lse.fill_(-math.inf)
    if lse.numel() == 0:
        return out, lse
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    wider = value_dim - q.shape[3]  # the kernel wants equal widths; zeros change no product
    if wider > 0:
        q, k = F.pad(q, (0, wider)), F.pad(k, (0, wider))
    elif wider < 0:
        v = F.pad(v, (0, -wider))
    for of_heads, own in calls.heads:
        for _, part in _select(boxes.kv_heads, of_heads, q, k, v, out, lse):
            for lane in _lanes(*part):
                for call in own:
                    for first, count, some, at_q, at_k in _box_portions(calls.held, call, lane):
                        mask, dead = _box_mask(calls.held, call, first, count, q.dtype)
                        asked, keys, values = (
                            _copied(x, at, count)
                            for x, at in zip(some, (at_q, at_k, at_k), strict=False)
                        )
                        found, found_lse = _flash(
                            asked, keys, values, 0.0, False, attn_mask=mask, scale=scale
                        )
                        found = found[..., :value_dim]
                        if dead is not None:  # the kernel says lse 0 for a row without keys
                            found = found.masked_fill(dead[..., None], 0)
                            found_lse = found_lse.masked_fill(dead, -math.inf)
                        some[3].index_copy_(1, at_q, found.flatten(1, 2))
                        some[4].index_copy_(1, at_q, found_lse.flatten(1, 2))
    return out, lse


def _cpu_in_boxes_backward(
    boxes: _CpuBoxes,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    scale: float,
    needs: Sequence[bool],
) -> _Gradients:
    """Run a plan backward. Returns: dq, dk, dv, contiguous; None where ``needs`` says so."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    grads = [x.new_zeros(x.shape, dtype=exact) for x in (q, k, v)]
    with torch.device("cpu"):  # whatever the default device is
        calls = _box_calls(boxes)
    if lse.numel() > 0:
        parts = [*_prepared(q, k, v, out, lse, grad_out, grad_lse), *grads]
        for of_heads, own in calls.heads:
            for _, part in _select(boxes.kv_heads, of_heads, *parts):
                for lane in _lanes(*part):
                    for call in own:
                        _run_boxes_backward(calls.held, call, lane, scale)
    dq, dk, dv = (
        x.to(q.dtype) if wanted else None for x, wanted in zip(grads, needs, strict=False)
    )
    return dq, dk, dv


def _run_boxes_backward(
    held: _Masks, call: _BoxCall, lane: list[torch.Tensor], scale: float
) -> None:
    """Run one call backward and add its shares to the gradients."""
    for first, count, some, at_q, at_k in _box_portions(held, call, lane):
        mask, _ = _box_mask(held, call, first, count, some[0].dtype)
        q, k, v, out, lse, grad_out = (
            _copied(x, at_k if i in (1, 2) else at_q, count) for i, x in enumerate(some[:6])
        )
        share, *shares = _flash_backward(
            grad_out, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale
        )
        dq, dk, dv = some[6:]
        dq.index_copy_(1, at_q, share[..., : dq.shape[2]].flatten(1, 2))
        for whole, own in ((dk, shares[0]), (dv, shares[1])):
            part = own[..., : whole.shape[2]].flatten(1, 2)
            if len(whole) > 1 and whole.stride(0) == 0:  # heads that share their keys
                whole, part = whole[:1], part.sum(0, keepdim=True)
            whole.index_add_(1, at_k, part)
