"""The CPU executor of selected pairs, pasted into written modules, function by function.

What is selected is walked in *groups*: some query rows, some keys, and which of their pairs count.
A group is one call of torch's flash kernel; where a row has several groups they merge by
log-sum-exp. Rows and keys of a group are distinct, and groups come in a fixed order, so sums are
the same from run to run. Pairs outside of ``rest`` (the attention's mask without what is attended
at any rate) never count, nor do pairs that an earlier route selected too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

_EXACT_TYPES = (torch.float32, torch.float64)

# --- cut: attend ---

_TALL = 256  # query rows of a unit that one group takes
_MASKED = 128  # and those that stand near their keys, where some pairs do not count
_PAIRS_AT_ONCE = 1 << 21  # pairs of a group, where each query has keys of its own
_routed_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class _Units(NamedTuple):
    """The units of one side: tokens in a row, or those of each cell of a grid."""

    number: int
    tokens: int  # in a row; of cells the most that one has
    length: int  # tokens of the side
    order: torch.Tensor | None = None  # of cells: their tokens, one cell after the other
    starts: torch.Tensor | None = None  # [number + 1], where the tokens of a cell begin there

    def of(self, units: torch.Tensor) -> torch.Tensor:
        """Return the tokens of some units, in order."""
        if self.order is None or self.starts is None:
            at = torch.arange(self.tokens)
            every = (units.long()[:, None] * self.tokens + at).flatten()
            return every[every < self.length]
        first, last = self.starts[units.long()], self.starts[units.long() + 1]
        spans = [self.order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        return torch.cat(spans) if spans else self.order[:0]

    def unit_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the unit of each token."""
        if self.order is None or self.starts is None:
            return tokens // self.tokens
        where = torch.empty_like(self.order)
        sizes = self.starts[1:] - self.starts[:-1]
        where[self.order] = torch.arange(self.number).repeat_interleave(sizes)
        return where[tokens]


class _Relation(NamedTuple):
    """What one route selected, and in what units; ``form`` says how it is walked."""

    form: str  # "rows", "keys", "tokens" or "slashes"
    chosen: torch.Tensor  # int32 [B, H', rows, room]
    counts: torch.Tensor
    queries: _Units
    keys: _Units


class _Group(NamedTuple):
    """Query rows, keys and which of their pairs count (None: all), of some heads."""

    b: int
    heads: slice  # query heads
    kv: slice
    rows: torch.Tensor
    keys: torch.Tensor
    keep: torch.Tensor | None  # bool [rows, keys]


class _Rule(NamedTuple):
    """Which selected pairs count."""

    keep: Callable[..., Any] | None  # q, k, h, b, nq, nk, data -> bool; None: every one
    past_free: bool  # whether it keeps every key that stands before the query
    ahead: bool  # whether it may keep a key that stands after the query
    by_head: bool  # whether it reads h
    bottom_right: bool  # whether queries stand at the end of the keys


def _cells_of(cell: torch.Tensor, cells: int) -> _Units:
    """Return the cells of a grid as units, from the cell of each token."""
    sizes = torch.bincount(cell, minlength=cells)
    starts = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
    return _Units(cells, int(sizes.max()), len(cell), cell.argsort(stable=True), starts)


def _groups(
    relations: Sequence[_Relation], rule: _Rule, q: torch.Tensor, k: torch.Tensor, data: Any
) -> Iterator[_Group]:
    """Yield all groups of all routes, but those of form "tokens"."""
    for at, relation in enumerate(relations):
        if relation.form == "tokens":
            continue
        earlier = [_membership(r) for r in relations[:at]]
        single = bool(earlier) or rule.by_head
        for b, heads, kv, chooser in _head_blocks(relation, q, k, single):
            keep = _Keep(rule, earlier, b, heads, q.shape, k.shape, data)
            walk = {"rows": _by_rows, "keys": _by_keys, "slashes": _by_tiles}[relation.form]
            for rows, keys, mask in walk(relation, b, chooser, keep):
                yield _Group(b, heads, kv, rows, keys, mask)


def _head_blocks(
    relation: _Relation, q: torch.Tensor, k: torch.Tensor, single: bool
) -> Iterator[tuple[int, slice, slice, int]]:
    """Yield batch item, query heads, their key heads, and the head of the selection."""
    hq, hkv, choosers = q.shape[1], k.shape[1], relation.chosen.shape[1]
    width = 1 if single else hq // max(choosers, 1)
    group = hq // hkv
    for b in range(q.shape[0]):
        for first in range(0, hq, width):
            heads = slice(first, first + width)
            kv = slice(first // group, (first + width - 1) // group + 1)
            yield b, heads, kv, first * choosers // hq


class _Keep:
    """Which pairs of some heads count."""

    def __init__(
        self, rule: _Rule, earlier: Sequence[Any], b: int, heads: slice, q: Any, k: Any, data: Any
    ) -> None:
        self.rule, self.earlier, self.b, self.h = rule, earlier, b, heads.start
        self.hq, self.nq, self.nk, self.data = q[1], q[2], k[2], data
        self.shift = self.nk - self.nq if rule.bottom_right else 0

    def mask(self, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | None:
        """Return which pairs count: bool ``[rows, keys]``, or None: all of them."""
        q, k = rows[:, None], keys[None, :] if keys.dim() == 1 else keys
        found = None
        if self.rule.keep is not None:
            found = self.rule.keep(q, k, self.h, self.b, self.nq, self.nk, self.data)
        for chosen in self.earlier:
            other = ~chosen(self.b, self.h, self.hq, q, k, self.shift)
            found = other if found is None else found & other
        if found is None:
            return None
        shape = torch.broadcast_shapes(q.shape, k.shape)
        return torch.as_tensor(found).expand(shape)

    def split(
        self, rows: torch.Tensor, keys: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Yield the pairs of ascending rows and keys that count: those without a mask apart."""
        if self.rule.keep is None and not self.earlier:
            yield rows, keys, None
            return
        least, most = int(rows.amin()) + self.shift, int(rows.amax()) + self.shift
        if not self.rule.ahead:
            keys = keys[keys <= most]
        if self.rule.past_free and not self.earlier:
            before = keys < least
            if bool(before.any()):
                yield rows, keys[before], None
                keys = keys[~before]
        if len(keys):
            mask = self.mask(rows, keys)
            if mask is None or bool(mask.all()):
                yield rows, keys, None
            elif bool(mask.any()):
                yield rows, keys, mask


def _membership(relation: _Relation) -> Callable[..., Any]:
    """Return the test whether a route selected pairs: b, h, Hq, q, k, shift -> bool."""
    room = relation.keys.length if relation.form == "slashes" else relation.keys.number
    index = relation.chosen.long()
    table = torch.zeros((*index.shape[:3], room + 1), dtype=torch.bool)
    table.scatter_(3, index.where(index >= 0, room), True)
    table[..., room] = False

    def chosen(b: int, h: int, hq: int, q: Any, k: Any, shift: int) -> Any:
        own = table[b, h * table.shape[1] // hq]
        if relation.form == "slashes":
            distance = q + shift - k
            inside = (distance >= 0) & (distance < room)
            return own[0][distance.clamp(0, room)] & inside
        unit = torch.zeros_like(q) if relation.queries.number == 1 else relation.queries.unit_of(q)
        return own[unit, relation.keys.unit_of(k)]

    return chosen


# -------------------------------------------------------------------------------------- three forms


def _by_rows(relation: _Relation, b: int, chooser: int, keep: _Keep) -> Iterator[Any]:
    """Walk query units, each with all its keys."""
    for row, count in enumerate(relation.counts[b, chooser].tolist()):
        if not count:
            continue
        rows = relation.queries.of(torch.tensor([row]))
        keys = relation.keys.of(relation.chosen[b, chooser, row, :count])
        for part in rows.split(_TALL):
            yield from keep.split(part, keys)


def _by_keys(relation: _Relation, b: int, chooser: int, keep: _Keep) -> Iterator[Any]:
    """Walk key units, each with the queries that selected it."""
    index = relation.chosen[b, chooser].long()
    row, slot = (index >= 0).nonzero(as_tuple=True)
    unit = index[row, slot]
    order = unit.argsort(stable=True)
    row, sizes = row[order], torch.bincount(unit, minlength=relation.keys.number)
    for number, rows in enumerate(row.split(sizes.tolist())):
        if not len(rows):
            continue
        keys = relation.keys.of(torch.tensor([number]))
        if keep.rule.past_free and not keep.earlier:  # queries behind the whole unit need no mask
            behind = rows + keep.shift > int(keys.amax())
            if bool(behind.any()):
                yield rows[behind], keys, None
                rows = rows[~behind]
        for part in rows.split(_MASKED):
            yield from keep.split(part, keys)


def _by_tiles(relation: _Relation, b: int, chooser: int, keep: _Keep) -> Iterator[Any]:
    """Walk tiles of queries, each with the tiles of keys that some selected distance reaches."""
    side, nq, nk = 64, keep.nq, keep.nk
    inside = torch.zeros(nk + 1, dtype=torch.bool)
    count = int(relation.counts[b, chooser, 0])
    inside[relation.chosen[b, chooser, 0, :count].long()] = True
    before = torch.cat((torch.zeros(1, dtype=torch.long), inside[:nk].cumsum(0)))
    first = torch.arange(0, nk, side)
    last = (first + side - 1).clamp(max=nk - 1)
    for top in range(0, nq, side):
        rows = torch.arange(top, min(top + side, nq))
        least, most = top + keep.shift, int(rows[-1]) + keep.shift
        low = (least - last).clamp(0, nk)
        high = (most - first + 1).clamp(0, nk)
        tiles = (before[high] > before[low.minimum(high)]).nonzero().flatten()
        keys = (tiles[:, None] * side + torch.arange(side)).flatten()
        keys = keys[keys < nk]
        if not len(keys):
            continue
        distance = rows[:, None] + keep.shift - keys[None, :]
        found = inside[distance.clamp(0, nk)] & (distance >= 0)
        mask = keep.mask(rows, keys)
        found = found if mask is None else found & mask
        if bool(found.any()):
            yield rows, keys, None if bool(found.all()) else found


def _stacks(
    relation: _Relation, rule: _Rule, earlier: Sequence[Any], q: torch.Tensor, k: torch.Tensor,
    data: Any,
) -> Iterator[tuple[int, slice, slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield stacks of rows with keys of their own: keys ``[rows, n]``, which count likewise."""
    single = bool(earlier) or rule.by_head
    tokens = relation.keys.tokens
    at = torch.arange(tokens)
    for b, heads, kv, chooser in _head_blocks(relation, q, k, single):
        keep = _Keep(rule, earlier, b, heads, q.shape, k.shape, data)
        index = relation.chosen[b, chooser].long()
        wide = max(index.shape[1] * tokens, 1)
        for rows in torch.arange(index.shape[0]).split(max(_PAIRS_AT_ONCE // wide, 1)):
            own = index[rows, : max(int(relation.counts[b, chooser, rows].amax()), 0)]
            if not own.shape[1]:
                continue
            keys = (own[:, :, None] * tokens + at).flatten(1)
            counts = (own >= 0).repeat_interleave(tokens, 1) & (keys < keep.nk)
            keys = keys.clamp(0, keep.nk - 1)
            mask = keep.mask(rows, keys)
            yield b, heads, kv, rows, keys, counts if mask is None else counts & mask


# ------------------------------------------------------------------------------------------ forward


def _routed_attention(
    relations: Sequence[_Relation], rule: _Rule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    scale: float, data: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to what is selected. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=exact)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=exact)
    if k.shape[2] == 0 or lse.numel() == 0:
        return out.to(q.dtype), lse
    wide = max(q.shape[3], v.shape[3])  # torch's kernel wants one width
    q_, k_, v_ = (torch.nn.functional.pad(x, (0, wide - x.shape[3])) for x in (q, k, v))
    for b, heads, kv, rows, keys, keep in _groups(relations, rule, q, k, data):
        part = _one_group(
            q_[b, heads][:, rows], k_[b, kv][:, keys], v_[b, kv][:, keys], scale, keep
        )
        _take_in(out[b, heads], lse[b, heads], rows, part[0][..., : v.shape[3]], part[1])
    for at, relation in enumerate(relations):
        if relation.form != "tokens":
            continue
        earlier = [_membership(r) for r in relations[:at]]
        for b, heads, kv, rows, keys, counts in _stacks(relation, rule, earlier, q, k, data):
            part = _one_stack(q[b, heads][:, rows], k[b, kv], v[b, kv], keys, counts, scale)
            _take_in(out[b, heads], lse[b, heads], rows, *part)
    return out.to(q.dtype), lse


def _one_group(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in one group. Shape: q ``[H, rows, D]``, k and v ``[heads of k, keys, D]``."""
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    mask = None
    if keep is not None:
        mask = torch.zeros(keep.shape, dtype=q.dtype).masked_fill_(~keep, -math.inf)[None, None]
    out, lse = _routed_flash(q[None], k[None], v[None], 0.0, False, attn_mask=mask, scale=scale)
    out, lse = out[0], lse[0]
    if keep is not None:
        nothing = ~keep.any(1)  # the kernel makes 0, or no number, of a row without keys
        if bool(nothing.any()):
            out = out.masked_fill(nothing[:, None], 0.0)
            lse = lse.masked_fill(nothing, -math.inf)
    return out, lse


def _one_stack(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, counts: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from each row to keys of its own. Shape: q ``[H, rows, D]``, keys ``[rows, n]``."""
    p, lse = _stack_weights(q, k, keys, counts, scale)
    values = v[:, keys].to(p.dtype)  # [heads of k, rows, n, Dv]
    grouped = p.unflatten(0, (k.shape[0], -1))
    return torch.einsum("ghrn,grnd->ghrd", grouped, values).flatten(0, 1), lse


def _stack_weights(
    q: torch.Tensor, k: torch.Tensor, keys: torch.Tensor, counts: torch.Tensor, scale: float,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of a stack, by its own log-sum-exp or a given one. ``[H, rows, n]``."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = q.to(exact).unflatten(0, (k.shape[0], -1))
    s = torch.einsum("ghrd,grnd->ghrn", grouped, k[:, keys].to(exact)).flatten(0, 1) * scale
    s = s.masked_fill(~counts, -math.inf)
    own = s.logsumexp(-1) if lse is None else lse
    shift = own.masked_fill(own == -math.inf, 0.0)
    return (s - shift[..., None]).exp(), own


def _take_in(
    out: torch.Tensor, lse: torch.Tensor, rows: torch.Tensor, part: torch.Tensor, own: torch.Tensor
) -> None:
    """Merge a part into the rows of a result. Shape: out ``[H, Q, Dv]``, part ``[H, rows, Dv]``."""
    before = lse[:, rows]
    after = torch.logaddexp(before, own)
    keep, new = (torch.exp(x - after).nan_to_num_(0.0)[..., None] for x in (before, own))
    out[:, rows] = out[:, rows] * keep + part * new
    lse[:, rows] = after.to(lse.dtype)
