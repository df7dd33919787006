"""Candidate tiles, inputs -> the tiles to visit, as CSR rows on the device of the inputs.

``codegen/data.py`` pastes what stands below the cut line, verbatim, into the written modules whose
tiles are known at the call only.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

# --- cut: tables ---

# Which tiles a query tile visits depends on the inputs of a call. Candidates come from formulas of
# the lengths; each is tested by the least and greatest values of its side terms: it may hold a kept
# pair, or it must keep every pair. On a GPU at most one thing waits for the device: the size of the
# table, and only where the candidates are too many to keep a place for each. A table that depends
# on lengths and extents alone is built by the first call with these, and kept.

_PLACES = 1 << 24  # candidates with a place each: no wait for the device
_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}  # candidates tested at once
_PAIRS_AT_ONCE = 1 << 24  # pairs evaluated at once
_POSITIONS_AT_ONCE = 1 << 22  # positions whose side terms are evaluated at once
_COLLECTED = ("cpu",)  # devices that are asked after each portion: asking takes no wait
_KEPT_TABLES = 32
_Data = dict[str, Any]  # inputs [B or 1, ...] and numbers, by name


class _TileRules(NamedTuple):
    """A tiling and what was written for it; sides in tokens."""

    q: int
    k: int
    heads: int  # masks of different heads; 1: one for all
    candidates: Callable[..., Iterator[Any]]  # qb, h, nq, nk, NQ, NK -> base, count, period, ...
    query_terms: Callable[..., list[Any]]  # q, h, b, nq, nk, data -> values
    key_terms: Callable[..., list[Any]]  # k, h, b, nq, nk, data -> values
    test: Callable[..., tuple[Any, Any]]  # query, key, h, b, nq, nk, data -> may, must
    prepare: Callable[[_Data], _Data]  # inputs -> inputs, and what the test asks of whole ones
    keep: Callable[..., Any] | None = None  # q, k, h, b, nq, nk, data -> bool; None: not refined
    extents: tuple[str, ...] | None = None  # all of `data` that counts; None: inputs count too


class _Table(NamedTuple):
    """Rows ``[batch, heads, NQ]``: entries ``starts[r] .. starts[r + 1] - 1`` of row r.

    An entry is ``kb * 8 + class``: class 0 keeps every existing pair, class 1 some.
    """

    starts: torch.Tensor  # [rows + 1] int64
    entries: torch.Tensor  # [at least starts[-1]] int32
    batch: int
    heads: int


class _Rows(NamedTuple):
    """Rows of a table: batch, head and query tile of each. Shape: ``[R]``."""

    b: torch.Tensor
    h: torch.Tensor
    qb: torch.Tensor

    def pick(self, index: torch.Tensor) -> _Rows:
        return _Rows(self.b[index], self.h[index], self.qb[index])


_TABLES: OrderedDict[tuple[Any, ...], _Table] = OrderedDict()  # those kept, oldest first
_TABLES_LOCK = threading.Lock()
_PINNED_TABLES: list[_Table] = []  # what a captured CUDA graph reads: never freed


def _tile_table(
    rules: _TileRules, nq: int, nk: int, batch: int, data: _Data, device: torch.device
) -> _Table:
    """Return the table of one call; ``batch`` is 1 where no input has a batch dimension.

    Raises: RuntimeError while a CUDA graph is captured and the table is neither kept nor built
    without a wait.
    """
    if rules.extents is None:
        return _new_table(rules, nq, nk, batch, data, device)
    read = {name: data[name] for name in rules.extents}
    key = (rules, nq, nk, *read.values(), device)
    on_gpu = device.type == "cuda"
    capturing = on_gpu and torch.cuda.is_current_stream_capturing()
    with _TABLES_LOCK:
        if key not in _TABLES:
            if capturing:
                raise RuntimeError(
                    "attnc: call the op once with these lengths before capturing it in a CUDA "
                    "graph: the first call builds its table"
                )
            # In a thread of its own, whose memory comes from no CUDA graph's pool and whose modes
            # (default device, inference) are none of the caller's.
            with ThreadPoolExecutor(1) as thread:
                _TABLES[key] = thread.submit(_new_table, rules, nq, nk, 1, read, device).result()
            if on_gpu:  # other streams may read it next, and may still read an old one
                torch.cuda.synchronize(device)
            while len(_TABLES) > _KEPT_TABLES:
                _TABLES.popitem(last=False)
        _TABLES.move_to_end(key)
        if capturing:
            _PINNED_TABLES.append(_TABLES[key])
        return _TABLES[key]


def _new_table(
    rules: _TileRules, nq: int, nk: int, batch: int, data: _Data, device: torch.device
) -> _Table:
    """Build a table.

    Memory in proportion to the visited tiles, or to the candidates where they are few.
    Raises: RuntimeError while a CUDA graph is captured and the size of the table is not known.
    """
    data = rules.prepare(data)
    counts = _candidate_counts(rules, nq, nk).repeat(batch)
    candidates, rows = int(counts.sum()), counts.numel()
    pairs = candidates * rules.q * rules.k
    places = candidates
    sure = candidates <= _PLACES and (rules.keep is None or pairs <= _PAIRS_AT_ONCE)
    query = _ranges(rules.query_terms, rules.q, nq, rules.heads, batch, nq, nk, data, device)
    key = _ranges(rules.key_terms, rules.k, nk, rules.heads, batch, nq, nk, data, device)

    def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for first, stop, total in _portions(counts, _AT_ONCE[device.type]):
            yield _tested(rules, first, stop, total, query, key, nq, nk, data, device)

    in_row = torch.zeros(rows, dtype=torch.int64, device=device)
    partial = candidates
    if device.type in _COLLECTED:
        parts = [(row[visit], entry[visit]) for row, entry, visit in chunks()]
        entries = torch.cat([entry for _, entry in parts] or [in_row.to(torch.int32)[:0]])
        for row, _ in parts:
            in_row.index_add_(0, row, torch.ones_like(row))
        partial = int((entries & 7).sum())
    else:
        if not sure:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"attnc: {candidates} candidate tiles: their table has a size that only the "
                    "device knows, and a CUDA graph cannot wait for it; run this op outside"
                )
            sizes = torch.zeros(2, dtype=torch.int64, device=device)
            for _, entry, visit in chunks():
                sizes += torch.stack([visit.sum(), (visit & (entry & 7 == 1)).sum()])
            places, partial = sizes.tolist()
        entries = torch.zeros(places + 1, dtype=torch.int32, device=device)
        filled = torch.zeros((), dtype=torch.int64, device=device)
        for row, entry, visit in chunks():
            in_row.index_add_(0, row, visit.to(torch.int64))
            filled = _packed(entries, filled, entry, visit)
    starts = torch.nn.functional.pad(in_row.cumsum(0), (1, 0))
    table = _Table(starts, entries, batch, rules.heads)
    return table if rules.keep is None else _refined(rules, table, partial, nq, nk, data)


@functools.lru_cache(maxsize=32)
def _candidate_counts(rules: _TileRules, nq: int, nk: int) -> torch.Tensor:
    """Count the candidates of each row. Shape: ``[heads * NQ]``, on the CPU."""
    with torch.device("cpu"):  # whatever the default device is
        tiles = -(-nq // rules.q), -(-nk // rules.k)
        qb, h = torch.arange(tiles[0])[None, :], torch.arange(rules.heads)[:, None]
        total = torch.zeros(rules.heads, tiles[0], dtype=torch.int64)
        for _, count, *_ in rules.candidates(qb, h, nq, nk, *tiles):
            total += count
    return total.flatten()


def _portions(counts: torch.Tensor, most: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows into stretches of at most ``most`` candidates, or one row: first, stop, how many."""
    ends = counts.cumsum(0)
    first = before = 0
    while first < len(counts):
        stop = int(torch.searchsorted(ends, before + most, right=True))
        stop = min(max(stop, first + 1), len(counts))
        total = int(ends[stop - 1]) - before
        if total:
            yield first, stop, total
        first, before = stop, before + total


def _tested(
    rules: _TileRules, first: int, stop: int, total: int, query: Any, key: Any,
    nq: int, nk: int, data: _Data, device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List the candidates of rows first .. stop - 1: row, entry, whether it is visited."""
    tiles = -(-nq // rules.q), -(-nk // rules.k)
    rows = _rows(torch.arange(first, stop, device=device), rules.heads, tiles[0])
    qb, h = rows.qb[:, None], rows.h[:, None]
    segments = list(rules.candidates(qb, h, nq, nk, *tiles))
    zero = torch.zeros_like(qb)
    bases = torch.cat([zero + s[0] for s in segments], 1).flatten()  # [rows * segments]
    counts = torch.cat([zero + s[1] for s in segments], 1).flatten()
    owner = torch.repeat_interleave(
        torch.arange(len(counts), device=device), counts, output_size=total
    )
    i = torch.arange(total, device=device) - (counts.cumsum(0) - counts)[owner]
    row, kind = owner // len(segments), owner % len(segments)
    period, run, given = (_of_kind([s[n] for s in segments], kind) for n in (2, 3, 4))
    kb = bases[owner] + period * (i // run) + i % run
    b, h, qb = rows.pick(row)
    at_query = [(_at(low, b, h, qb), _at(high, b, h, qb)) for low, high in query]
    at_key = [(_at(low, b, h, kb), _at(high, b, h, kb)) for low, high in key]
    may, must = rules.test(at_query, at_key, h, b, nq, nk, data)
    must = torch.zeros_like(kb, dtype=torch.bool) | must | (given == 0)  # class 0: full at any data
    return row + first, (kb * 8 + ~must).to(torch.int32), must | may


def _of_kind(values: list[int], kind: torch.Tensor) -> Any:
    """Return ``values[kind]`` without a copy to the device: a number where all are equal."""
    found: Any = values[0]
    for number, value in enumerate(values[1:], start=1):
        if value != values[0] or isinstance(found, torch.Tensor):
            found = torch.where(kind == number, value, found)
    return found


def _rows(number: torch.Tensor, heads: int, tiles: int) -> _Rows:
    return _Rows(number // (heads * tiles), number // tiles % heads, number % tiles)


def _at(values: torch.Tensor, *index: torch.Tensor) -> torch.Tensor:
    """Return ``values[index]``; a dimension of one element serves every index."""
    return values[tuple(i if n > 1 else 0 for i, n in zip(index, values.shape, strict=True))]


def _packed(
    entries: torch.Tensor, filled: torch.Tensor, entry: torch.Tensor, visit: torch.Tensor
) -> torch.Tensor:
    """Append the visited entries behind the ``filled`` first ones; return how many there are.

    No wait for the device: what is not visited goes to the last place, which nobody reads.
    """
    place = visit.cumsum(0)
    entries[torch.where(visit, filled + place - 1, len(entries) - 1)] = entry
    return filled + place[-1]


def _ranges(
    terms: Callable[..., list[Any]], side: int, tokens: int, heads: int, batch: int,
    nq: int, nk: int, data: _Data, device: torch.device,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the least and greatest value of each term over the existing tokens of each tile.

    Shape: ``[batch or 1, heads or 1, tiles]`` each.
    """
    tiles = -(-tokens // side)
    h = torch.arange(heads, device=device)[:, None, None]
    b = torch.arange(batch, device=device)[:, None, None, None]
    step = max(1, _POSITIONS_AT_ONCE // (side * heads * batch))
    found = []
    for first in range(0, tiles, step):
        tile = torch.arange(first, min(first + step, tiles), device=device)[:, None]
        position = (tile * side + torch.arange(side, device=device)).clamp(max=tokens - 1)
        values = [
            x.to(torch.int64) if isinstance(x, torch.Tensor) else position.new_full((1,), x)
            for x in terms(position, h, b, nq, nk, data)
        ]
        whole = [x.reshape((1,) * (4 - x.dim()) + x.shape) for x in values]
        ends = [(x.amin(-1), x.amax(-1)) for x in whole]
        found.append([[x.expand(-1, -1, len(tile)) for x in pair] for pair in ends])
    return [
        (torch.cat([low for low, _ in term], 2), torch.cat([high for _, high in term], 2))
        for term in zip(*found, strict=True)
    ]


def _refined(
    rules: _TileRules, table: _Table, partial: int, nq: int, nk: int, data: _Data
) -> _Table:
    """Evaluate the pairs of partial tiles: each becomes full, stays partial, or goes."""
    assert rules.keep is not None
    entries, device = table.entries, table.entries.device
    if not len(entries):
        return table
    slot = torch.arange(len(entries), device=device)
    number = torch.searchsorted(table.starts[1:], slot, right=True)
    inside = slot < table.starts[-1]
    number = number.clamp(max=len(table.starts) - 2)
    rows = _rows(number, rules.heads, -(-nq // rules.q))
    asked = inside & (entries & 7 == 1)
    index = torch.zeros(partial + 1, dtype=torch.int64, device=device)
    _packed(index, torch.zeros((), dtype=torch.int64, device=device), slot, asked)
    some, every = torch.ones_like(asked), torch.zeros_like(asked)
    for part in index[:partial].split(max(1, _PAIRS_AT_ONCE // (rules.q * rules.k))):
        b, h, qb = (x[:, None, None] for x in rows.pick(part))
        q = qb * rules.q + torch.arange(rules.q, device=device)[:, None]
        k = (entries[part] >> 3)[:, None, None] * rules.k + torch.arange(rules.k, device=device)
        legal = (q < nq) & (k < nk)
        kept = rules.keep(q, k, h, b, nq, nk, data) & legal
        some[part], every[part] = kept.any(2).any(1), (kept == legal).all(2).all(1)
    visit = inside & (some | ~asked)
    refined = torch.where(asked & every, entries - 1, entries)
    left = torch.zeros_like(entries)
    _packed(left, torch.zeros((), dtype=torch.int64, device=device), refined, visit)
    in_row = torch.zeros_like(table.starts[1:]).index_add_(0, number, visit.to(torch.int64))
    starts = torch.nn.functional.pad(in_row.cumsum(0), (1, 0))
    return table._replace(starts=starts, entries=left)
