"""How the CPU executor walks what routes selected, pasted into written modules.

What is selected is walked in *pieces*: some query rows, some keys, and which of their pairs count.
Rows and keys of a piece are distinct, and pieces come in a fixed order, so sums are the same from
run to run. Pairs outside of ``rest`` (the attention's mask without what is attended at any rate)
never count, nor do pairs that an earlier route selected too. Rows and keys that stand in a row are
slices, so that nothing is copied for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

# --- cut: walks ---

_At = slice | torch.Tensor  # some tokens of a side: a stretch of them, or any
_TALL = 256  # query rows of a piece, where its keys are copied for them
_MANY = 1024  # and where they are not
_LONG = 2048  # keys of a piece; so many fit the cache
_TRIANGLES = 4096  # query rows of a piece of triangles
_MASKED = 128  # query rows of a piece in which some pairs do not count
_COPIED_BYTES = 8 << 20  # keys and values of a stack, where each query has keys of its own


class _Units(NamedTuple):
    """The units of one side: tokens in a row, or those of each cell of a grid."""

    number: int
    tokens: int  # in a row; of cells the most that one has
    length: int  # tokens of the side
    order: torch.Tensor | None = None  # of cells: their tokens, one cell after the other
    starts: torch.Tensor | None = None  # [number + 1], where the tokens of a cell begin there

    def of(self, units: torch.Tensor) -> _At:
        """Return the tokens of some ascending units, in order."""
        first, last = int(units[0]), int(units[-1])
        if self.order is None or self.starts is None:
            stop = min((last + 1) * self.tokens, self.length)
            if last - first + 1 == len(units):
                return slice(first * self.tokens, stop)
            every = (units.long()[:, None] * self.tokens + torch.arange(self.tokens)).flatten()
            return every[: len(every) - ((last + 1) * self.tokens - stop)]
        if first == last:
            return self.order[self.starts[first] : self.starts[first + 1]]
        start, end = self.starts[units.long()], self.starts[units.long() + 1]
        spans = [self.order[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)]
        return torch.cat(spans)

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


class _Piece(NamedTuple):
    """Query rows, keys and which of their pairs count."""

    rows: _At
    keys: _At
    keep: torch.Tensor | None = None  # bool [rows, keys]; None: all count
    side: int = 0  # of triangles: so many rows see as many keys, each those up to its own number


class _Rule(NamedTuple):
    """Which selected pairs count."""

    keep: Callable[..., Any] | None  # q, k, h, b, nq, nk, data -> bool; None: every one
    past_free: bool  # whether it keeps every key that stands before the query
    itself: bool  # whether it keeps the key that stands where the query does
    ahead: bool  # whether it may keep a key that stands after the query
    by_head: bool  # whether it reads h
    bottom_right: bool  # whether queries stand at the end of the keys


def _form(
    selected: Sequence[torch.Tensor], q: torch.Tensor, k: torch.Tensor, tokens: int,
    channels: int, *, call: int, merge: int, pair: int, copy: int,
) -> str:  # fmt: skip
    """Return the loop that costs less where tokens chose units. The rates are nanoseconds.

    By keys, a unit is read once for all that chose it, and parts are merged; by tokens, each query
    gets copies of its keys.
    """
    counts = selected[1]
    choosers = counts.shape[0] * counts.shape[1]
    group = q.shape[0] * q.shape[1] // max(choosers, 1)
    number = int(counts.sum())
    merged = number * group * (merge + tokens * pair) * channels // 128
    copied = number * tokens * (copy + group * pair) * channels // 128
    units = choosers * -(-k.shape[2] // tokens)
    return "keys" if units * call + merged < copied else "tokens"


def _cells_of(cell: torch.Tensor, cells: int) -> _Units:
    """Return the cells of a grid as units, from the cell of each token."""
    sizes = torch.bincount(cell, minlength=cells)
    starts = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
    return _Units(cells, int(sizes.max()), len(cell), cell.argsort(stable=True), starts)


def _places(at: _At) -> torch.Tensor:
    """Return tokens by number."""
    return torch.arange(at.start, at.stop) if isinstance(at, slice) else at


def _count(at: _At) -> int:
    """Return how many tokens there are."""
    return at.stop - at.start if isinstance(at, slice) else len(at)


def _cut(at: _At, first: int, stop: int) -> _At:
    """Return those from the ``first`` on, before the one numbered ``stop`` among them."""
    if isinstance(at, slice):
        return slice(at.start + first, min(at.start + stop, at.stop))
    return at[first:stop]


def _pick(x: torch.Tensor, at: _At) -> torch.Tensor:
    """Return some tokens. Shape: x ``[H, N, ...]``."""
    return x[:, at] if isinstance(at, slice) else x.index_select(1, at)


def _before(at: _At, token: int) -> int:
    """Return how many of ascending tokens stand before one."""
    if isinstance(at, slice):
        return max(min(token, int(at.stop)) - int(at.start), 0)
    return int(torch.searchsorted(at, token))


def _pieces(
    relations: Sequence[_Relation], rule: _Rule, q: torch.Tensor, k: torch.Tensor, data: Any
) -> Iterator[tuple[int, slice, slice, _Piece]]:
    """Yield batch item, query heads, key heads and each piece of all routes but "tokens" ones."""
    for at, relation in enumerate(relations):
        if relation.form == "tokens":
            continue
        earlier = [_membership(r) for r in relations[:at]]
        single = bool(earlier) or rule.by_head
        for b, heads, kv, chooser in _head_blocks(relation, q, k, single):
            keep = _Keep(rule, earlier, b, heads, q.shape, k.shape, data)
            walk = {"rows": _by_rows, "keys": _by_keys, "slashes": _by_tiles}[relation.form]
            triangles = []
            for piece in walk(relation, b, chooser, keep):
                rows, keys, mask, side = piece
                if side:
                    triangles.append((_ends(rows)[0], _ends(keys)[0], side))
                    continue
                for first in range(0, _count(keys) if _count(rows) else 0, _LONG):
                    part = _cut(keys, first, first + _LONG)
                    own = mask if mask is None else mask[:, first : first + _LONG]
                    yield b, heads, kv, _Piece(rows, part, own)
            for piece in _joined(triangles):
                yield b, heads, kv, piece


def _joined(triangles: Sequence[tuple[int, int, int]]) -> Iterator[_Piece]:
    """Put triangles of one side that follow each other together: first row, first key, side."""
    at = 0
    while at < len(triangles):
        row, key, side = triangles[at]
        most = at + max(_TRIANGLES // side, 1)
        stop = at + 1
        while stop < min(len(triangles), most) and (
            triangles[stop] == (row + (stop - at) * side, key + (stop - at) * side, side)
        ):
            stop += 1
        rows = (stop - at) * side
        yield _Piece(slice(row, row + rows), slice(key, key + rows), None, side)
        at = stop


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
        self.whole = rule.keep is None and not earlier
        self.behind = rule.past_free and not earlier  # keys before all queries need no mask
        self.triangle = self.behind and rule.itself and not rule.ahead

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

    def split(self, rows: _At, keys: _At) -> Iterator[_Piece]:
        """Yield the pairs of ascending rows and keys that count: those without a mask apart."""
        if self.whole:
            yield _Piece(rows, keys)
            return
        least, most = (x + self.shift for x in _ends(rows))
        if not self.rule.ahead:
            keys = _cut(keys, 0, _before(keys, most + 1))
        if self.behind:
            past = _before(keys, least)
            if past:
                yield _Piece(rows, _cut(keys, 0, past))
                keys = _cut(keys, past, _count(keys))
        if not _count(keys):
            return
        lower, upper = _ends(keys)
        if upper - lower + 1 == _count(keys):
            keys = slice(lower, upper + 1)
        if self.triangle and isinstance(rows, slice) and keys == slice(least, most + 1):
            yield _Piece(rows, keys, None, most - least + 1)
        else:
            yield from self.masked(rows, keys)

    def masked(self, rows: _At, keys: _At) -> Iterator[_Piece]:
        """Yield the pairs that count, under a mask where not all do."""
        if self.whole:
            yield _Piece(rows, keys)
            return
        for first in range(0, _count(rows), _MASKED):
            part = _cut(rows, first, first + _MASKED)
            mask = self.mask(_places(part), _places(keys))
            if mask is None or bool(mask.all()):
                yield _Piece(part, keys)
            elif bool(mask.any()):
                yield _Piece(part, keys, mask)


def _ends(at: _At) -> tuple[int, int]:
    """Return the first and the last of ascending tokens."""
    return (at.start, at.stop - 1) if isinstance(at, slice) else (int(at[0]), int(at[-1]))


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


def _by_rows(relation: _Relation, b: int, chooser: int, keep: _Keep) -> Iterator[_Piece]:
    """Walk query units, each with all its keys."""
    counts = relation.counts[b, chooser].tolist()
    ascending = relation.queries.order is None and relation.keys.order is None
    for row, count in enumerate(counts):
        if not count:
            continue
        rows = relation.queries.of(torch.tensor([row]))
        keys = relation.keys.of(relation.chosen[b, chooser, row, :count])
        for first in range(0, _count(rows), _TALL):
            part = _cut(rows, first, first + _TALL)
            yield from keep.split(part, keys) if ascending else keep.masked(part, keys)


def _by_keys(relation: _Relation, b: int, chooser: int, keep: _Keep) -> Iterator[_Piece]:
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
        if relation.keys.order is not None:
            yield from keep.masked(rows, keys)
            continue
        near = len(rows)
        if keep.behind:  # queries behind the whole unit need no mask
            near = 0 if keep.whole else _before(rows, _ends(keys)[1] + 1 - keep.shift)
            for part in rows[near:].split(_MANY):
                yield _Piece(part, keys)
        for part in rows[:near].split(_TALL) if near else ():
            first, last = _ends(part)
            whole = last - first + 1 == len(part)
            yield from keep.split(slice(first, last + 1) if whole else part, keys)


def _by_tiles(relation: _Relation, b: int, chooser: int, keep: _Keep) -> Iterator[_Piece]:
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
            at = slice(top, top + len(rows))
            yield _Piece(at, keys, None if bool(found.all()) else found)


def _stacks(
    relation: _Relation, rule: _Rule, earlier: Sequence[Any], q: torch.Tensor, k: torch.Tensor,
    v: torch.Tensor, data: Any,
) -> Iterator[tuple[int, slice, slice, slice, torch.Tensor, torch.Tensor]]:
    """Yield stacks of rows with keys of their own: keys ``[rows, n]``, which count likewise."""
    single = bool(earlier) or rule.by_head
    tokens = relation.keys.tokens
    at = torch.arange(tokens)
    for b, heads, kv, chooser in _head_blocks(relation, q, k, single):
        keep = _Keep(rule, earlier, b, heads, q.shape, k.shape, data)
        index, counts = relation.chosen[b, chooser], relation.counts[b, chooser]
        wide = max(index.shape[1] * tokens, 1) * (kv.stop - kv.start)
        copied = wide * (k.shape[3] + v.shape[3]) * k.element_size()
        step = max(_COPIED_BYTES // copied, 1)
        for top in range(0, index.shape[0], step):
            rows = slice(top, min(top + step, index.shape[0]))
            most = int(counts[rows].amax())
            if not most:
                continue
            own = index[rows, :most].long()
            keys = (own[:, :, None] * tokens + at).flatten(1)
            inside = (own >= 0).repeat_interleave(tokens, 1) & (keys < keep.nk)
            keys = keys.clamp(0, keep.nk - 1)
            mask = keep.mask(_places(rows), keys)
            yield b, heads, kv, rows, keys, inside if mask is None else inside & mask
