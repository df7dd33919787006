"""Strips of a CPU plan + lengths -> calls of torch's CPU flash kernel.

``codegen/cpu.py`` pastes what stands below the cut line, verbatim, into every written module.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

# --- cut: schedule ---

# Query tiles are folded into the batch of one call to torch's CPU flash kernel: strided views of K
# and V, no copies. `_schedule` decides once for each pair of lengths which tiles share a call:
# those whose rows and keys advance in equal steps, under one mask. Each op call walks that list.

_STACK = 8  # query tiles that share one tall call over the keys that all of them keep
_LONG = 8192  # a row with this many keys kept without a check runs them in a call without a mask
_MASK_KEYS = 32768  # most keys under one mask
_KEPT_MASK_BYTES = 32 << 20  # masks held for later calls, for each pair of lengths
_ALL_MASK_BYTES = 256 << 20  # and for all of them


class _Strip(NamedTuple):
    """Key tiles ``base + period * (i div run) + i mod run``, ``i < count``, of each query tile."""

    rows: Callable[..., tuple[Any, Any]]  # qb, h, nq, nk, NQ, NK -> base, count
    keep: Callable[..., Any] | None = None  # q, k, h, nq, nk -> bool; None: every pair is kept
    period: int = 1
    run: int = 1
    # (p, c): what is kept repeats when a query moves by p tiles and a key by c; None: not known.
    shift: tuple[int, int] | None = None
    shift_from: int = 0  # from this query tile on
    by_head: bool = False  # whether `keep` reads h


class _CpuTiles(NamedTuple):
    """A CPU plan: tile sides in tokens, strips, and the tiles known to keep every pair."""

    q: int
    k: int
    heads: int | None  # heads with masks of their own; None: one mask for all
    strips: tuple[_Strip, ...]
    full: tuple[_Strip, ...] = ()
    kv_heads: bool = False  # whether these are heads of k, each with a group of heads of q


class _Keys(NamedTuple):
    """The keys a batch sees: all in order, or every tile of one residue class, gathered."""

    positions: torch.Tensor | None = None
    rest: int = 0
    period: int = 1
    run: int = 1

    def tile(self, index: torch.Tensor) -> torch.Tensor:
        """Return which key tile the given one of this sequence is."""
        return self.rest + self.period * (index // self.run) + index % self.run


class _Spans(NamedTuple):
    """Rows and the keys ``start .. stop - 1`` each of them sees. ``stack`` rows ``gap`` apart."""

    rows: torch.Tensor  # first query tile
    start: torch.Tensor
    stop: torch.Tensor
    strip: _Strip | None = None  # whose `keep` is the mask; None: no mask
    stack: int = 1
    gap: torch.Tensor | int = 0


class _Call(NamedTuple):
    """One call of the kernel over ``spans`` in equal steps. Positions and steps in tokens."""

    number: int
    spans: int
    first_query: int
    query_step: int
    queries: int
    stack: int
    stack_step: int
    first_key: int
    key_step: int
    keys: int
    fresh: bool  # whether nothing was written for these queries before
    strip: _Strip | None
    shared: bool  # whether one mask serves all spans


class _Batch(NamedTuple):
    """Calls over the same heads (None: all) and keys."""

    heads: tuple[int, ...] | None
    keys: _Keys
    calls: list[_Call]


class _Masks:
    """Additive masks, and which rows they leave without keys, held for later calls.

    All schedules share one allowance, so that many lengths may be kept.
    """

    held_bytes = 0  # by all schedules

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int, torch.dtype], tuple[Any, Any]] = {}
        self.own_bytes = 0

    def keep(self, name: tuple[int, int, int, torch.dtype], mask: Any, dead: Any) -> None:
        """Hold a mask, if there is room."""
        size = 0 if mask is None else mask.nbytes
        fits = self.own_bytes + size <= _KEPT_MASK_BYTES
        if fits and self.held_bytes + size <= _ALL_MASK_BYTES:
            self.found[name] = mask, dead
            self.own_bytes += size
            self.__class__.held_bytes += size

    def __del__(self) -> None:
        self.__class__.held_bytes -= self.own_bytes


class _Schedule(NamedTuple):
    """All calls for one pair of lengths."""

    batches: list[_Batch]
    merges: bool  # whether some query gets its result from several calls
    prefill: bool  # whether out must start as 0 and lse as -inf: not all is written before read
    masks: _Masks


@functools.lru_cache(maxsize=64)
def _schedule(tiles: _CpuTiles, nq: int, nk: int) -> _Schedule:
    """Decide which tiles share a call."""
    number_q, number_k = -(-nq // tiles.q), -(-nk // tiles.k)
    shape = (tiles.heads or 1, number_q)
    qb, h = torch.arange(number_q)[None, :], torch.arange(shape[0])[:, None]

    def table(strip: _Strip) -> tuple[torch.Tensor, torch.Tensor]:  # 2 x [heads, NQ]
        base, count = strip.rows(qb, h, nq, nk, number_q, number_k)
        counts = torch.as_tensor(count).expand(shape).clamp(min=0)
        return torch.as_tensor(base).expand(shape).where(counts > 0, 0), counts

    tables, full_tables = [table(s) for s in tiles.strips], [table(s) for s in tiles.full]
    batches: list[_Batch] = []
    merges = prefill = False
    number = itertools.count()
    for heads in _equal_heads(tiles, tables):
        head = heads[0] if heads else 0
        full = [(s, b[head], c[head]) for s, (b, c) in zip(tiles.full, full_tables, strict=True)]
        covered = torch.zeros(number_q, dtype=torch.bool)
        for strip, (base, count) in zip(tiles.strips, tables, strict=True):
            in_head = base[head], count[head]
            for keys, whole, low, high in _key_classes(tiles, strip, *in_head, full, nk):
                calls: list[_Call] = []
                for spans in _split(tiles, whole, low, high, nq):
                    rows = spans.rows[:, None] + torch.arange(spans.stack) * (
                        spans.gap[:, None] if isinstance(spans.gap, torch.Tensor) else 0
                    )
                    fresh = ~covered[rows].any(1)
                    merges |= not bool(fresh.all())
                    prefill |= not bool((fresh | covered[rows].all(1)).all())
                    covered[rows] = True
                    calls += _gather_calls(tiles, keys, spans, in_head, fresh, nq, number)
                batches.append(_Batch(heads, keys, calls))
        prefill |= not bool(covered.all())
    return _Schedule(batches, merges, prefill, _Masks())


def _equal_heads(
    tiles: _CpuTiles, tables: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[tuple[int, ...] | None]:
    """Gather the heads that see the same tiles under the same masks; None stands for all."""
    if tiles.heads is None or not tables:
        return [None]
    if any(strip.by_head for strip in tiles.strips):
        return [(head,) for head in range(tiles.heads)]
    _, label = torch.cat([x for pair in tables for x in pair], 1).unique(dim=0, return_inverse=True)
    found = [(label == i).nonzero()[:, 0].tolist() for i in range(int(label.max()) + 1)]
    return [tuple(heads) if len(heads) < tiles.heads else None for heads in found]


def _key_classes(
    tiles: _CpuTiles,
    strip: _Strip,
    base: torch.Tensor,
    count: torch.Tensor,
    full: list[tuple[_Strip, torch.Tensor, torch.Tensor]],
    nk: int,
) -> Iterator[tuple[_Keys, _Spans, torch.Tensor, torch.Tensor]]:
    """Turn a strip into rows of consecutive keys, and the part of them known to need no mask.

    A strip with gaps becomes its few runs one by one, or its residue classes with gathered keys:
    whichever are fewer.
    """
    rows = count.nonzero()[:, 0]
    if not rows.numel():
        return
    base, count = base[rows], count[rows]
    runs = -(-int(count.max()) // strip.run)
    classes: list[tuple[_Keys, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    if strip.period == strip.run or runs == 1:
        classes.append((_Keys(), rows, base, base + count))
    elif runs < strip.period:
        for i in range(runs):
            part = (count - i * strip.run).clamp(max=strip.run)
            some, start = part > 0, base + i * strip.period
            classes.append((_Keys(), rows[some], start[some], (start + part)[some]))
    else:
        number = -(-nk // tiles.k)
        for rest in (base % strip.period).unique().tolist():
            some = base % strip.period == rest
            start = (base[some] - rest) // strip.period * strip.run
            member = torch.arange(rest, number, strip.period)[:, None] + torch.arange(strip.run)
            position = member.view(-1, 1) * tiles.k + torch.arange(tiles.k)
            keys = _Keys(position[position < nk], rest, strip.period, strip.run)
            classes.append((keys, rows[some], start, start + count[some]))
    for keys, rows, start, stop in classes:
        low, high = (start, stop) if strip.keep is None else (start, start)
        for piece, first, length in full if strip.keep is not None else ():
            first, last = first[rows], first[rows] + length[rows]
            if keys.positions is None:
                known = (piece.period == piece.run) | (length[rows] <= piece.run)
            else:
                alike = (piece.period, piece.run) == (strip.period, strip.run)
                known = torch.as_tensor(alike) & (first % keys.period == keys.rest)
                first = (first - keys.rest) // keys.period * keys.run
                last = first + length[rows]
            first, last = first.maximum(start), last.minimum(stop)
            better = known & (last - first > high - low)
            low, high = first.where(better, low), last.where(better, high)
        end = nk if keys.positions is None else len(keys.positions)
        ends = [(x * tiles.k).clamp(max=end) for x in (start, stop, low, high)]
        yield keys, _Spans(rows, ends[0], ends[1], strip), ends[2], ends[3]


def _split(
    tiles: _CpuTiles, whole: _Spans, low: torch.Tensor, high: torch.Tensor, nq: int
) -> Iterator[_Spans]:
    """Cut off the long stretches ``low .. high - 1`` that need no mask, neighbouring rows at once.

    Rows of unequal length (causal) cannot fold. A stack of them runs the keys all its rows keep as
    one tall call; what is left and right of these has few lengths, the same in every stack.
    """
    strip, rows = whole.strip, whole.rows
    assert strip is not None
    number = len(rows) // _STACK

    def blocks(x: torch.Tensor) -> torch.Tensor:
        return x[: number * _STACK].view(number, _STACK)

    def alike(x: torch.Tensor) -> torch.Tensor:
        return (x == x[:, :1]).all(1)

    first, last = blocks(low).amax(1), blocks(high).amin(1)
    gap = blocks(rows).diff(dim=1)
    tall = alike(gap) & (last - first >= _STACK * tiles.q)
    tall &= (blocks(rows)[:, -1] + 1) * tiles.q <= nq
    if strip.keep is None or strip.shift is not None:  # rows in equal steps fold as they are
        equal = alike(blocks(whole.stop - whole.start)) & alike(blocks(whole.start).diff(dim=1))
        tall &= ~equal
    first, last = first[tall], last[tall]
    if len(first):
        yield _Spans(blocks(rows)[tall, 0], first, last, None, _STACK, gap[tall, 0])
    in_stack = torch.zeros(len(rows), dtype=torch.bool)
    in_stack[: number * _STACK] = tall.repeat_interleave(_STACK)
    low, high = low.clone(), high.clone()
    low[in_stack], high[in_stack] = (x.repeat_interleave(_STACK) for x in (first, last))
    alone = ~in_stack & (high - low >= _LONG) & (strip.keep is not None)
    if alone.any():
        yield _Spans(rows[alone], low[alone], high[alone])
    cut = in_stack | alone
    for some, start, stop in (
        (~cut, whole.start, whole.stop), (cut, whole.start, low), (cut, high, whole.stop)
    ):
        if strip.keep is None:
            some = some & (stop > start)
            if some.any():
                yield _Spans(rows[some], start[some], stop[some])
            continue
        while (some := some & (stop > start)).any():
            end = stop.minimum(start + _MASK_KEYS)
            yield _Spans(rows[some], start[some], end[some], strip)
            start = end


def _gather_calls(
    tiles: _CpuTiles,
    keys: _Keys,
    spans: _Spans,
    table: tuple[torch.Tensor, torch.Tensor],
    fresh: torch.Tensor,
    nq: int,
    number: Iterator[int],
) -> Iterator[_Call]:
    """Gather the spans that one call serves: equal shape, equal mask, equal steps."""
    rows, strip = spans.rows, spans.strip
    length = spans.stop - spans.start
    queries = (nq - rows * tiles.q).clamp(max=tiles.q)
    gap = torch.as_tensor(spans.gap).expand_as(rows)
    columns = [queries, length, fresh, gap]
    shift = strip.shift if strip is not None else None
    if strip is not None and shift is not None:
        index = spans.start // tiles.k
        place = torch.where(rows < strip.shift_from, -1 - rows, rows % shift[0])
        columns += [place, keys.tile(index) - shift[1] * (rows // shift[0]), index % keys.run]
    _, group = torch.stack(columns, 1).unique(dim=0, return_inverse=True)
    order = group.argsort(stable=True)
    for i, count, step, key_step in _progressions(group[order], rows[order], spans.start[order]):
        at = int(order[i])
        row, first, last = int(rows[at]), int(spans.start[at]), int(spans.stop[at])
        shared = False
        if strip is not None and shift is not None:
            ends = keys.tile(torch.tensor([first // tiles.k, (last - 1) // tiles.k])).tolist()
            in_chain = torch.arange(row, row + step * (count - 1) + 1, shift[0])
            shared = count == 1 or _chained(strip, shift, table, in_chain, *ends)
        yield _Call(
            number=next(number), spans=count,
            first_query=row * tiles.q, query_step=step * tiles.q, queries=int(queries[at]),
            stack=spans.stack, stack_step=int(gap[at]) * tiles.q,
            first_key=first, key_step=key_step, keys=last - first,
            fresh=bool(fresh[at]), strip=strip, shared=shared,
        )  # fmt: skip


def _chained(
    strip: _Strip,
    shift: tuple[int, int],
    table: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor,
    first: int,
    last: int,
) -> bool:
    """Whether the strip holds tiles first .. last, moved along, in each of these rows.

    The shift is proved from a tile of the strip to a tile of the strip, so a mask is carried to a
    far row only through rows that have the tile too.
    """
    base, count = table[0][rows], table[1][rows]
    moved = torch.arange(len(rows)) * shift[1]
    end = base + strip.period * ((count - 1) // strip.run) + (count - 1) % strip.run
    in_step = (base - moved - base[0]) % strip.period == 0
    return bool(((count > 0) & in_step & (base <= first + moved) & (end >= last + moved)).all())


def _progressions(
    group: torch.Tensor, rows: torch.Tensor, start: torch.Tensor
) -> list[tuple[int, int, int, int]]:
    """Cut spans, sorted by group, into progressions: first, count, step of rows, step of keys."""
    found = _runs(group, rows, start)
    usual = statistics.mode(count for _, count, *_ in found)
    if len(found) > _STACK and usual > 1:
        # Groups that start again and again (block-local): take every usual-th span instead.
        place = torch.arange(len(group)) - torch.searchsorted(group, group)
        other = group * usual + place % usual
        order = other.argsort(stable=True)
        folded = _runs(other[order], rows[order], start[order])
        if len(folded) < len(found):
            return [(int(order[i]), *rest) for i, *rest in folded]  # type: ignore[misc]
    return found


def _runs(
    group: torch.Tensor, rows: torch.Tensor, start: torch.Tensor
) -> list[tuple[int, int, int, int]]:
    """Cut spans into progressions of neighbours, greedily."""
    row_step, key_step = rows.diff(), start.diff()
    joined = (group.diff() == 0) & (key_step >= 0)
    same = joined[1:] & joined[:-1] & (row_step.diff() == 0) & (key_step.diff() == 0)
    breaks = (~same).nonzero()[:, 0] + 1
    ends = torch.cat([breaks, torch.tensor([len(joined)])])
    end = ends[torch.searchsorted(breaks, torch.arange(len(joined)), right=True)].tolist()
    found, i = [], 0
    while i < len(group):
        count = end[i] - i + 1 if i < len(joined) and joined[i] else 1
        steps = (int(row_step[i]), int(key_step[i])) if count > 1 else (0, 0)
        found.append((i, count, *steps))
        i += count
    return found
