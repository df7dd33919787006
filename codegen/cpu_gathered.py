"""q, k, v + a table of tiles -> attention, with masks and scores made at the call.

``codegen/data.py`` pastes what stands below the cut line, verbatim, into the written modules of
patterns that read inputs or have score terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from attnc.codegen.cpu_diagonals import _Diagonals, _diagonals
from attnc.codegen.tables import _Data, _Table, _tile_table, _TileRules

# --- cut: gathered executor ---

# Rows with equally many tiles share a call to torch's CPU flash kernel. Their keys are views where
# the tiles follow each other in equal steps, else copies, a bounded number of bytes at a time.
# Neighbouring rows that see equal tiles whole are one tall row. Masks and terms added to the
# product are one float mask; other scores take matrix products.

_KEYS_AT_ONCE = 8192  # keys of a row in one call; longer rows merge by log-sum-exp
_COPY_BYTES = 32 << 20  # keys and values held at once
_SCORES_AT_ONCE = 1 << 22  # elements of a mask, or scores, held at once
_PAIRS_AT_ONCE_MASKED = 1 << 17  # pairs whose predicate is evaluated at once
_WORTH_A_CALL_BYTES = 1 << 20  # keys whose copy costs more than a call of their own
_MOST_STACKED = 16  # query tiles in a tall row
_STACKED_LONG = 8  # those in a tall row whose mask is a view, so that it may see more tiles
_LONG_ROW = 32  # tiles of rows that are worth it
_flash_gathered = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_Pair = tuple[torch.Tensor, torch.Tensor]


class _Gathered(NamedTuple):
    """A CPU plan whose masks or scores are made at the call."""

    rules: _TileRules
    keep: Callable[..., Any]  # q, k, h, b, nq, nk, data -> bool
    by_head: bool  # whether rows, masks or scores of heads differ
    kv_heads: bool  # whether a head of the pattern is a head of k
    score: Callable[..., Any] | None = None  # dot, q, k, h, b, nq, nk, data -> number; None: dot
    additive: bool = True  # whether the score is the dot plus a number
    sink: Callable[..., Any] | None = None  # q, k, data -> logit beside the keys [B, Hq]
    # As score -> its slope by the dot, [(input, index, slope by that element)].
    slopes: Callable[..., Any] | None = None
    by_distance: str = ""  # what depends on q - k alone: "", the "score", or "all", masks too
    sink_slopes: Callable[..., Any] | None = None  # as sink -> [(input, index, slope)]


class _Stretch(NamedTuple):
    """Rows with equally many tiles of one batch item and head: their tiles and classes."""

    rows: torch.Tensor  # [R * stack]
    tiles: torch.Tensor  # [R, T]
    partial: torch.Tensor  # [R, T] bool: whether the pairs of a tile are looked at
    step: int | None  # tiles from the keys of a row to those of the next; None: copied
    stack: int = 1  # query tiles in a tall row

    def piece(self, rows: slice, tiles: slice) -> _Stretch:
        """Return some tiles of some (tall) rows."""
        own = self.rows[rows.start * self.stack : rows.stop * self.stack]
        tile, partial = self.tiles[rows, tiles], self.partial[rows, tiles]
        return _Stretch(own, tile, partial, self.step, self.stack)

    def of_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Pick the rows. Shape: ``[E, G, tiles, BQ, ...] -> [E, G, R, stack * BQ, ...]``."""
        tall: torch.Tensor = x[:, :, self.rows].unflatten(2, (-1, self.stack)).flatten(3, 4)
        return tall

    def apart(self, x: torch.Tensor) -> torch.Tensor:
        """Cut tall rows. Shape: ``[E, G, R, stack * BQ, ...] -> [E, G, R * stack, BQ, ...]``."""
        tiles: torch.Tensor = x.unflatten(3, (self.stack, -1)).flatten(2, 3)
        return tiles


class _Share(NamedTuple):
    """A part of batch and heads, under one mask, or one for each head."""

    b: int  # item of the inputs
    h: int | torch.Tensor  # head of the pattern; a tensor: one of each head of q, or of k
    items: slice
    q_heads: slice
    k_heads: slice


class _Place(NamedTuple):
    """What masks and scores are told besides q and k."""

    h: int | torch.Tensor  # a tensor [E]: each lane has a head of its own
    b: int
    nq: int
    nk: int
    data: _Data
    diagonals: _Diagonals | None = None  # of a score that depends on q - k alone

    def evaluate(self, score: Callable[..., Any], dot: Any, q: Any, k: Any) -> Any:
        """Call a score for positions ``[1, ...]``. Shape: ``[E or 1, ...]``."""
        return score(dot, q, k, *self.told(k.dim() - 1))

    def told(self, behind: int = 2) -> tuple[Any, ...]:
        """Return the arguments behind q and k; ``behind`` dimensions stand behind that of lanes."""
        h = self.h
        if isinstance(h, torch.Tensor):
            h = h.view(-1, *[1] * behind)
        return h, self.b, self.nq, self.nk, self.data


def _gathered_attention(
    plan: _Gathered, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, data: _Data
) -> _Pair:
    """Run a plan. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``; no length is 0."""
    nq, nk = q.shape[2], k.shape[2]
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    tensors = {n: x for n, x in data.items() if isinstance(x, torch.Tensor)}
    own = max((len(x) for x in tensors.values()), default=1)
    data = data | {n: x.to(exact) for n, x in tensors.items() if x.is_floating_point()}
    table = _tile_table(plan.rules, nq, nk, own, data, q.device)
    logit = None if plan.sink is None else plan.sink(q, k, data).to(exact)
    q, k, v = _tiled(q, plan.rules.q), _tiled(k, plan.rules.k), _tiled(v, plan.rules.k)
    out = q.new_zeros((*q.shape[:4], v.shape[4]), dtype=exact)
    lse = q.new_full(q.shape[:4], -math.inf, dtype=exact)
    if plan.by_head and not plan.kv_heads and table.heads == 1:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    for share in _shares(plan, own > 1, table.heads == 1, q, k, v):
        on_q, on_k = (share.items, share.q_heads), (share.items, share.k_heads)
        lanes = [x[on_k].flatten(0, 1) for x in (k, v)]  # [E, tiles, BK, D or Dv]
        sizes = (len(k[on_k]), k[on_k].shape[1], -1)  # E = B * Hkv; G heads of q for each
        queries = q[on_q].unflatten(1, sizes[1:]).flatten(0, 1)  # [E, G, tiles, BQ, D]
        place = _Place(share.h, share.b, nq, nk, data)
        place = _with_diagonals(plan, table, place, exact, tall=True)
        for part in _stretches(plan, table, place, lanes):
            whole, total = _attend_rows(plan, part, place, scale, queries, *lanes)
            rows = (slice(None),) * 3 + (part.rows,)
            out[on_q].unflatten(1, sizes[1:])[rows] = whole.unflatten(0, sizes[:2])
            lse[on_q].unflatten(1, sizes[1:])[rows] = total.unflatten(0, sizes[:2])
    if logit is not None:
        total = torch.logaddexp(lse, logit[..., None, None])
        out *= (lse - total.masked_fill(total == -math.inf, 0)).exp_()[..., None]
        lse = total
    out = out.flatten(2, 3)[:, :, :nq].to(k.dtype)
    return out.contiguous(), lse.flatten(2, 3)[:, :, :nq].contiguous()


def _tiled(x: torch.Tensor, side: int) -> torch.Tensor:
    """View ``[B, H, N, D]`` as ``[B, H, tiles, side, D]``; the last tile is filled with zeros."""
    rest = -x.shape[2] % side
    filled = F.pad(x, (0, 0, 0, rest)) if rest else x
    tiles: torch.Tensor = filled.unflatten(2, (-1, side))
    return tiles


def _shares(
    plan: _Gathered, by_item: bool, same_rows: bool, q: torch.Tensor, k: torch.Tensor,
    v: torch.Tensor,
) -> Iterator[_Share]:
    """Cut batch and heads into parts whose keys may be held at once, and that visit equal tiles.

    Heads with masks of their own go together where they visit the ``same_rows``.
    """
    batch, heads, kv_heads = q.shape[0], q.shape[1], k.shape[1]
    group = heads // kv_heads
    bytes_a_lane = _KEYS_AT_ONCE * (k.shape[4] + v.shape[4]) * k.element_size()
    most = max(1, _COPY_BYTES // bytes_a_lane)
    apart = by_item or batch * (1 if plan.by_head else kv_heads) > most
    apart |= plan.by_head and same_rows and batch > 1
    for item in range(batch) if apart else (0,):
        items = slice(item, item + 1) if apart else slice(None)
        b = item if by_item else 0
        if plan.by_head and not plan.kv_heads and not same_rows:
            for h in range(heads):
                own = h // group
                yield _Share(b, h, items, slice(h, h + 1), slice(own, own + 1))
            continue
        step = 1 if plan.by_head and not same_rows else min(kv_heads, most)
        for first in range(0, kv_heads, step):
            stop = min(first + step, kv_heads)
            in_q, in_k = slice(first * group, stop * group), slice(first, stop)
            each = plan.by_head and same_rows
            h_of_lanes = first + _arange(stop - first) if each else first
            yield _Share(b, h_of_lanes, items, in_q, in_k)


def _stretches(
    plan: _Gathered, table: _Table, place: _Place, lanes: list[torch.Tensor]
) -> Iterator[_Stretch]:
    """Gather the rows of one batch item and head that have equally many tiles."""
    tiles_q, tiles_k = -(-place.nq // plan.rules.q), -(-place.nk // plan.rules.k)
    first = (place.b if table.batch > 1 else 0) * table.heads
    if isinstance(place.h, int) and table.heads > 1:
        first += place.h
    starts = table.starts[first * tiles_q : (first + 1) * tiles_q + 1]
    counts = starts.diff()
    if place.diagonals is not None and place.diagonals.side > plan.rules.q:
        long = list(_long_stretches(plan, table, starts, place, place.diagonals))
        yield from long
        for part in long:
            counts[part.rows] = 0
    a_tile = sum(x[:, 0].numel() * x.element_size() for x in lanes)
    for count in counts.unique().tolist():
        if count == 0:
            continue
        rows = (counts == count).nonzero()[:, 0]
        entry = table.entries[starts[rows][:, None] + _arange(count)].sort(1).values
        tiles = entry >> 3
        looked_at = entry & 7 == 1
        if place.nk % plan.rules.k:  # keys beyond the end
            looked_at |= tiles == tiles_k - 1
        worth = max(1, _WORTH_A_CALL_BYTES // (count * a_tile))
        whole = ~looked_at.any(1) if plan.score is None else looked_at.new_zeros(len(rows))
        for heads, stack in _equal_tiles(rows, tiles, whole):
            own = rows[heads[:, None] + _arange(stack)]
            for some, step in _equal_steps(tiles[heads], worth):
                at = heads[some]
                yield _Stretch(own[some].flatten(), tiles[at], looked_at[at], step, stack)


def _long_stretches(
    plan: _Gathered, table: _Table, starts: torch.Tensor, place: _Place, found: _Diagonals
) -> Iterator[_Stretch]:
    """Join neighbouring rows of consecutive tiles; the mask knows which pairs each of them keeps.

    A tall row sees the tiles of all its rows, where these are a quarter more at most.
    """
    counts = starts.diff()
    stack = found.side // plan.rules.q
    ragged = place.nk % plan.rules.k and not found.none_up_to(place.nq - 1 - place.nk)
    for row in range(0, len(counts) - stack + 1, stack):
        own = counts[row : row + stack]
        if int(own.min()) == 0:
            continue
        tiles = table.entries[starts[row] : starts[row + stack]] >> 3
        ends = own.cumsum(0)
        low = torch.stack([x.min() for x in tiles.tensor_split(ends[:-1])])
        high = torch.stack([x.max() for x in tiles.tensor_split(ends[:-1])])
        first, last = int(low.min()), int(high.max())
        count = last - first + 1
        close = count * stack * 4 <= int(own.sum()) * 5 and bool((high - low + 1 == own).all())
        if close and count >= _LONG_ROW and not (ragged and (last + 1) * plan.rules.k > place.nk):
            all_tiles = _arange(count)[None] + first
            rows = row + _arange(stack)
            yield _Stretch(rows, all_tiles, torch.zeros_like(all_tiles, dtype=torch.bool), 0, stack)


def _equal_tiles(
    rows: torch.Tensor, tiles: torch.Tensor, whole: torch.Tensor
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the first of equally many neighbours that see the same tiles whole, and how many."""
    joined = whole[1:] & whole[:-1] & (rows.diff() == 1) & (tiles[1:] == tiles[:-1]).all(1)
    label = F.pad((~joined).cumsum(0), (1, 0))
    place = _arange(len(rows)) - torch.searchsorted(label, label)
    label = torch.stack([label, place // _MOST_STACKED], 1)
    _, lengths = label.unique_consecutive(dim=0, return_counts=True)
    first = lengths.cumsum(0) - lengths
    for length in lengths.unique().tolist():
        yield first[lengths == length], length


def _equal_steps(
    tiles: torch.Tensor, worth: int
) -> Iterator[tuple[torch.Tensor, int | None]]:
    """Cut rows into runs whose keys are views of one another, ``worth`` rows at least, and others.

    Returns: rows and their step; None for those whose keys are copied.
    """
    joined = (tiles.diff(dim=1) == 1).all(1)
    step = tiles[:, 0].diff()
    linked = joined[1:] & joined[:-1] & (step >= 0)
    breaks = ~linked
    breaks[1:] |= linked[:-1] & (step.diff() != 0)
    label = F.pad(breaks.cumsum(0), (1, 0))
    _, label, lengths = label.unique(return_inverse=True, return_counts=True)
    viewed = joined & (lengths[label] >= worth)
    for number in label[viewed].unique().tolist():
        rows = (label == number).nonzero()[:, 0]
        yield rows, int(step[rows[0]]) if len(rows) > 1 else 0
    if not viewed.all():
        yield (~viewed).nonzero()[:, 0], None


def _attend_rows(
    plan: _Gathered, part: _Stretch, place: _Place, scale: float,
    queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
) -> _Pair:
    """Attend some rows to all their keys, portion by portion.

    Shape: out ``[E, G, R, BQ, Dv]``, lse ``[E, G, R, BQ]``, in the dtype of sums.
    """
    (lanes, group, _, tile_q, _), tile_k = queries.shape, k.shape[2]
    exact = torch.float64 if k.dtype == torch.float64 else torch.float32
    (rows, count), side = part.tiles.shape, part.stack * tile_q
    shared = plan.additive and isinstance(place.h, int)
    held = group * side * tile_k * (1 if shared else lanes)
    if plan.score is None and not part.partial.any():
        held = 1  # no mask
    copied = lanes * tile_k * (k.shape[3] + v.shape[3]) * k.element_size()
    wide = max(1, min(count, _KEYS_AT_ONCE // tile_k, _SCORES_AT_ONCE // held))
    tall = max(1, min(_SCORES_AT_ONCE // (held * wide), _COPY_BYTES // (copied * wide)))
    out = k.new_empty((lanes, group, rows, side, v.shape[3]), dtype=exact)
    lse = k.new_empty((lanes, group, rows, side), dtype=exact)
    for top in range(0, rows, tall):
        some = slice(top, top + tall)
        asked = part.piece(some, slice(None)).of_rows(queries)
        for left in range(0, count, wide):
            piece = part.piece(some, slice(left, left + wide))
            attend = _by_flash if plan.additive else _by_products
            found, found_lse = attend(plan, piece, place, scale, asked, k, v)
            whole, whole_lse = out[:, :, some], lse[:, :, some]
            if left == 0:
                whole.copy_(found)
                whole_lse.copy_(found_lse)
                continue
            total = torch.logaddexp(whole_lse, found_lse)
            finite = total.masked_fill(total == -math.inf, 0)  # no key yet: weights 0, not NaN
            whole.mul_((whole_lse - finite).exp_()[..., None])
            whole.add_(found * (found_lse - finite).exp_()[..., None])
            whole_lse.copy_(total)
    return part.apart(out), part.apart(lse)


def _by_flash(
    plan: _Gathered, part: _Stretch, place: _Place, scale: float,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
) -> _Pair:
    """Attend by torch's flash kernel. Shape: q ``[E, G, R, BQ, D]`` -> out, lse alike."""
    group, (tile_q, dim), value_dim = q.shape[1], q.shape[3:], v.shape[3]
    bias, dead = _bias(plan, part, place, k.dtype)
    if bias is not None and group > 1:  # the same for each head of a group
        bias = bias.repeat(1, 1, group, 1)
    asked = q.transpose(1, 2).flatten(2, 3)  # [E, R, G * BQ, D]
    keys, values = (_keys_of(x, part) for x in (k, v))
    wider = value_dim - dim  # the kernel wants equal widths; zeros change no product
    if wider > 0:
        asked, keys = F.pad(asked, (0, wider)), F.pad(keys, (0, wider))
    elif wider < 0:
        values = F.pad(values, (0, -wider))
    out, lse = _flash_gathered(asked, keys, values, 0.0, False, attn_mask=bias, scale=scale)
    out, lse = (x.unflatten(2, (group, tile_q)).transpose(1, 2) for x in (out, lse))
    if dead is not None:  # the kernel says lse 0 for a row without keys
        dead = dead[:, None]
        out, lse = out.masked_fill(dead[..., None], 0), lse.masked_fill(dead, -math.inf)
    return out[..., :value_dim], lse


def _by_products(
    plan: _Gathered, part: _Stretch, place: _Place, scale: float,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
) -> _Pair:
    """Attend by matrix products, for scores that are not the dot plus a number."""
    assert plan.score is not None
    exact = torch.float64 if k.dtype == torch.float64 else torch.float32
    keys, values = (_keys_of(x, part).to(exact)[:, None] for x in (k, v))  # [E, 1, R, T * BK, D]
    dot = (q.to(exact) @ keys.mT * scale).unflatten(4, (part.tiles.shape[1], -1))
    at_q, at_k = _positions(plan, part)
    score = place.evaluate(plan.score, dot, at_q[:, None], at_k[:, None])
    score = score.expand_as(dot).clone()  # [E, G, R, BQ, T, BK]
    _masked(plan, part, place, score)
    score = score.flatten(4)
    lse = score.logsumexp(4)
    finite = lse.masked_fill(lse == -math.inf, 0)
    return (score - finite[..., None]).exp_() @ values, lse


def _bias(
    plan: _Gathered, part: _Stretch, place: _Place, dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return what is added to the products, ``[E or 1, R, BQ, T * BK]``, and rows without keys.

    None: nothing is added; every row has a key.
    """
    if plan.score is None and not part.partial.any():
        return None, None
    if place.diagonals is not None:
        return _bias_of_diagonals(plan, part, place, place.diagonals)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    tile_q, tile_k = plan.rules.q, plan.rules.k
    heads = len(place.h) if isinstance(place.h, torch.Tensor) else 1
    shape = (heads, len(part.rows), tile_q, part.tiles.shape[1], tile_k)
    bias = part.rows.new_zeros(shape, dtype=exact)
    if plan.score is not None:
        at_q, at_k = _positions(plan, part)
        dot = bias.new_zeros(())
        bias += place.evaluate(plan.score, dot, at_q, at_k)
    _masked(plan, part, place, bias)
    bias = bias.flatten(3)
    dead = bias.amax(3) == -math.inf
    return bias, dead if dead.any() else None


def _with_diagonals(
    plan: _Gathered, table: _Table, place: _Place, exact: torch.dtype, *, tall: bool = False
) -> _Place:
    """Evaluate what the score adds at the distances that some tile has, once for each of them.

    ``tall``: several rows of tiles may be walked as one, where these are long.
    """
    if plan.by_distance == "" or plan.score is None:
        return place
    counts = table.starts.diff()
    rows = _arange(len(counts)) % (-(-place.nq // plan.rules.q))
    tiles = table.entries[: int(table.starts[-1])] >> 3
    if not len(tiles):
        return place
    apart = rows.repeat_interleave(counts) * plan.rules.q - tiles.to(torch.int64) * plan.rules.k
    zero = torch.zeros((), dtype=exact, device="cpu")

    def term(q: torch.Tensor, k: torch.Tensor) -> Any:
        assert plan.score is not None
        return place.evaluate(plan.score, zero, q, k)

    def keep(q: torch.Tensor, k: torch.Tensor) -> Any:
        return plan.keep(q, k, *place.told(1))

    whole = plan.by_distance == "all"
    stack = _STACKED_LONG if tall and whole and int(counts.max()) >= _LONG_ROW else 1
    side = stack * plan.rules.q
    first, last = int(apart.min()) - plan.rules.k - side, int(apart.max()) + 2 * side
    found = _diagonals(term, keep if whole else None, first, last, side, exact)
    return place._replace(diagonals=found)


def _bias_of_diagonals(
    plan: _Gathered, part: _Stretch, place: _Place, found: _Diagonals
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``_bias``: views where tiles follow each other and rows lie alike, else copies."""
    side, tile_k = part.stack * plan.rules.q, plan.rules.k
    tiles, rows = part.tiles.to(torch.int64), part.rows[:: part.stack]
    apart = rows[:, None] * plan.rules.q - tiles * tile_k  # of the first tokens of each tile
    keys = tiles.shape[1] * tile_k
    joined = bool((tiles.diff(dim=1) == 1).all())
    alike = joined and bool((apart[:, 0] == apart[0, 0]).all())
    if alike:
        bias = found.slice(int(apart[0, 0]), side, keys)[:, None].expand(-1, len(tiles), -1, -1)
    elif joined:
        bias = torch.stack([found.slice(d, side, keys) for d in apart[:, 0].tolist()], 1)
    else:
        each = torch.stack([found.slice(d, side, tile_k) for d in apart.flatten().tolist()], 1)
        bias = each.unflatten(1, tiles.shape).transpose(2, 3).flatten(3)
    past = tiles * tile_k + tile_k > place.nk  # whether a tile has keys beyond the end
    if found.masked and past.any() and found.none_up_to(place.nq - 1 - place.nk):
        past = torch.zeros_like(past)  # no query of the sequence keeps a key beyond its end
    looked_at = past if found.masked else part.partial
    if not looked_at.any():
        if alike:
            dead = found.dead(int(apart[0, 0]), side, keys)[:, None]
        else:
            dead = bias.amax(3) == -math.inf
        return bias, dead.expand(bias.shape[:3]) if dead.any() else None
    bias = bias.clone(memory_format=torch.contiguous_format)
    _masked(plan, part._replace(partial=looked_at), place, bias.unflatten(3, (-1, tile_k)))
    dead = bias.amax(3) == -math.inf
    return bias, dead if dead.any() else None


def _positions(plan: _Gathered, part: _Stretch) -> _Pair:
    """Return the positions of queries ``[1, R, BQ, 1, 1]`` and keys ``[1, R, 1, T, BK]``."""
    q = part.rows[:, None] * plan.rules.q + _arange(plan.rules.q)
    k = part.tiles[:, :, None].to(torch.int64) * plan.rules.k + _arange(plan.rules.k)
    return q[None, :, :, None, None], k[None, :, None]


def _arange(side: int) -> torch.Tensor:
    return torch.arange(side, device="cpu")  # whatever the default device is


def _masked(plan: _Gathered, part: _Stretch, place: _Place, score: torch.Tensor) -> None:
    """Write -inf where a pair is not kept. Shape: score ``[E or 1, (G,) R, BQ, T, BK]``."""
    row, number = part.partial.nonzero().unbind(1)
    tile_q, tile_k = plan.rules.q, plan.rules.k
    by_tile = score.transpose(-2, -3).movedim((-4, -3), (0, 1))  # [R, T, E, (G,) BQ, BK]
    step = max(1, _PAIRS_AT_ONCE_MASKED // (tile_q * tile_k * score.shape[0]))
    for some in zip(row.split(step), number.split(step), strict=True):
        q = part.rows[some[0], None, None, None] * tile_q + _arange(tile_q)[:, None]
        k = part.tiles[some][:, None, None, None].to(torch.int64) * tile_k + _arange(tile_k)
        kept = plan.keep(q, k, *place.told())
        kept = kept & (k < place.nk) & (q >= 0)  # [tiles, E or 1, BQ, BK]
        if by_tile.dim() == 6:  # the same for each head of a group
            kept = kept[:, :, None]
        by_tile[some] = by_tile[some].masked_fill(~kept, -math.inf)


def _keys_of(x: torch.Tensor, part: _Stretch) -> torch.Tensor:
    """Return the keys of each row. Shape: ``[E, tiles, BK, D] -> [E, R, T * BK, D]``."""
    rows, count = part.tiles.shape
    if part.step is None:
        found = x.index_select(1, part.tiles.flatten())
        return found.view(x.shape[0], rows, count * x.shape[2], x.shape[3])
    a_tile = x.stride(1)
    start = x.storage_offset() + int(part.tiles[0, 0]) * a_tile
    return x.as_strided(
        (x.shape[0], rows, count * x.shape[2], x.shape[3]),
        (x.stride(0), part.step * a_tile, x.stride(2), x.stride(3)),
        start,
    )
