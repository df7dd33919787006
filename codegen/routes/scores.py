"""Scores of routes in torch, function by function pasted into written modules that call them.

Places: key j stands at j, query i at i + shift. Units are given by the place of their first and
last token. Shapes: ``B`` batch, ``H`` heads, ``R`` query rows, ``U`` key units, at the grain of the
score. Sums are float32 (float64 for float64). Invisible scores are -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

NAME = "moba"

# --- cut: scores ---

_WORKSPACE_BYTES = 4 << 20  # scores of a stretch of query rows; on a CPU they fit the cache
_GPU_WORKSPACE_BYTES = 32 << 20


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return numbers in which sums are taken."""
    return x if x.dtype == torch.float64 else x.float()


def _stretches(
    rows: int, row_bytes: int, step: int, device: torch.device
) -> Iterator[tuple[int, int]]:
    """Cut rows into stretches, multiples of ``step``, whose scores fit the workspace."""
    room = _WORKSPACE_BYTES if device.type == "cpu" else _GPU_WORKSPACE_BYTES
    most = max(room // max(row_bytes, 1) // step, 1) * step
    for top in range(0, rows, most):
        yield top, min(top + most, rows)


# ---------------------------------------------------------------------------- what stands for units


def _centered(x: torch.Tensor) -> torch.Tensor:
    """Take off the mean over all tokens. Shape: ``[B, H, N, D]``."""
    return _wide(x) - _wide(x).mean(2, keepdim=True)


def _normed(x: torch.Tensor) -> torch.Tensor:
    """Divide each token by its Euclidean norm; 0 stays 0."""
    norm = torch.linalg.vector_norm(_wide(x), dim=-1, keepdim=True)
    return _wide(x) / torch.where(norm > 0, norm, 1.0)


def _in_blocks(x: torch.Tensor, tokens: int, fill: float) -> torch.Tensor:
    """Return blocks, the last one filled up. Shape: ``[B, H, blocks, tokens, D]``."""
    missing = -x.shape[2] % tokens
    whole = F.pad(_wide(x), (0, 0, 0, missing), value=fill) if missing else _wide(x).contiguous()
    return whole.view(*whole.shape[:2], -1, tokens, whole.shape[3])


def _block_mean(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the mean of each block. Shape: ``[B, H, blocks, D]``."""
    total = _in_blocks(x, tokens, 0.0).sum(3)
    count = torch.full((total.shape[2], 1), float(tokens), dtype=total.dtype, device=x.device)
    count[-1:] -= -x.shape[2] % tokens
    return total / count


def _block_max(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the largest of each channel in each block. Shape: ``[B, H, blocks, D]``."""
    return _in_blocks(x, tokens, float("-inf")).amax(3)


def _block_min(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the least of each channel in each block. Shape: ``[B, H, blocks, D]``."""
    return _in_blocks(x, tokens, float("inf")).amin(3)


def _folded(x: torch.Tensor, tokens: int, flip: bool = False) -> torch.Tensor:
    """Return the channels of some tokens in a row as one vector. Shape: ``[B, H, blocks, t D]``."""
    blocks = _in_blocks(x, tokens, 0.0)
    return (blocks.flip(3) if flip else blocks).flatten(3)


def _windows(x: torch.Tensor, tokens: int, stride: int) -> torch.Tensor:
    """Return windows that fit as a whole. Shape: ``[B, H, windows, D, tokens]``."""
    if x.shape[2] < tokens:
        return _wide(x).new_empty((*x.shape[:2], 0, x.shape[3], tokens))
    return _wide(x).unfold(2, tokens, stride)


def _cell_order(
    extents: Sequence[int], sides: Sequence[int], tile: Sequence[int] | None, device: torch.device
) -> torch.Tensor:
    """Return the cell that each token of a grid lies in, cells row-major. Shape: ``[N]`` int64."""
    places = [torch.arange(extent, device=device) for extent in extents]
    coordinates = [x.flatten() for x in torch.meshgrid(*places, indexing="ij")]
    if tile is not None:  # tokens stand tile by tile
        order = torch.zeros_like(coordinates[0])
        for x, extent, side in zip(coordinates, extents, tile, strict=True):
            order = order * (extent // side) + x // side
        for x, side in zip(coordinates, tile, strict=True):
            order = order * side + x % side
        coordinates = [x[order.argsort()] for x in coordinates]
    cell = torch.zeros_like(coordinates[0])
    for x, extent, side in zip(coordinates, extents, sides, strict=True):
        cell = cell * -(-extent // side) + x // side
    return cell


def _cell_pool(x: torch.Tensor, cell: torch.Tensor, cells: int, how: str) -> torch.Tensor:
    """Pool the tokens of each cell: "mean", "amax" or "amin". Shape: ``[B, H, cells, D]``."""
    index = cell[None, None, :, None].expand(*x.shape[:2], -1, x.shape[3])
    out = _wide(x).new_zeros((*x.shape[:2], cells, x.shape[3]))
    return out.scatter_reduce(2, index, _wide(x), how, include_self=False)


# ------------------------------------------------------------------------------------------- places


def _block_places(
    length: int, tokens: int, shift: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the first and the last token of each block stand. Shape: ``[blocks]`` each."""
    first = torch.arange(0, length, tokens, device=device)
    return first + shift, (first + tokens - 1).clamp(max=length - 1) + shift


def _window_places(
    length: int, tokens: int, stride: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the first and the last token of each window stand. Shape: ``[windows]``."""
    first = torch.arange(0, max(length - tokens + 1, 0), stride, device=device)
    return first, first + tokens - 1


def _cell_places(cell: torch.Tensor, cells: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the first and the last token of each cell stand. Shape: ``[cells]`` each."""
    places = torch.arange(len(cell), device=cell.device)
    first = places.new_zeros(cells).scatter_reduce(0, cell, places, "amin", include_self=False)
    last = places.new_zeros(cells).scatter_reduce(0, cell, places, "amax", include_self=False)
    return first + shift, last + shift


def _seen(
    visible: str, queries: tuple[torch.Tensor, torch.Tensor],
    keys: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return which key units a query unit may score. Shape: bool ``[R, U]``."""
    if visible == "past":
        return keys[1] < queries[0][:, None]
    if visible == "completed":
        return keys[1] <= queries[1][:, None]
    if visible == "reached":
        return keys[0] <= queries[1][:, None]
    return torch.ones((len(queries[0]), len(keys[0])), dtype=torch.bool, device=keys[0].device)


# ------------------------------------------------------------------------------------------- scores


def _product(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Multiply each query head with its key head. Shape: ``[B, Hq, R, U]``."""
    heads = k.shape[1]
    if q.shape[1] < heads:
        q = q.repeat_interleave(heads // q.shape[1], 1)
    grouped = _wide(q).unflatten(1, (heads, -1)).flatten(2, 3)
    found: torch.Tensor = grouped @ _wide(k).transpose(-1, -2)
    groups = q.shape[1] // heads
    return found.view(found.shape[0], heads * groups, q.shape[2], found.shape[3])


def _bound(q: torch.Tensor, most: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Return what no product with a key of a unit exceeds. Shape: ``[B, Hq, R, U]``."""
    return _product(_wide(q).clamp(min=0), most) + _product(_wide(q).clamp(max=0), least)


def _relu_heads(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return ``sum_j w_j relu(q_j . k)``. Shape: q ``[B, J, R, D]``, weights ``[B, R, J]``."""
    found = _product(q, k).relu_()
    return (found * _wide(weights).transpose(1, 2)[..., None]).sum(1, keepdim=True)


def _only(scores: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return scores, -inf elsewhere. They are no NaN: a minimum is cheaper than a choice."""
    return torch.minimum(scores, torch.where(where, float("inf"), float("-inf")))


def _first_of_all(scores: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return scores, inf there."""
    return torch.maximum(scores, torch.where(where, float("inf"), float("-inf")))


def _finite(route: str, scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Return scores, -inf where invisible. Raises: ValueError for others that are no numbers."""
    if scores.device.type == "cpu":
        if bool(scores.sum().isfinite()):  # then each of them is, too
            return _only(scores, visible)
        if not bool((scores.isfinite() | ~visible).all()):
            raise ValueError(f"{NAME}: the route {route} has scores that are not finite")
    return scores.masked_fill(~visible, float("-inf"))


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Return the shares of the visible keys of each row, 0 for the others."""
    return scores.softmax(-1).nan_to_num_(0.0)


def _minmax(scores: torch.Tensor, visible: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Return ``(s - least) / (largest - least)`` over a pool; 1 where all are equal."""
    if not scores.numel():
        return scores
    least = scores.masked_fill(~visible, float("inf")).amin(dims, keepdim=True)
    most = scores.masked_fill(~visible, float("-inf")).amax(dims, keepdim=True)
    wide = most > least
    return torch.where(wide, (scores - least) / torch.where(wide, most - least, 1.0), 1.0)


# ----------------------------------------------------------------------------------------- reducing


def _pooled(
    x: torch.Tensor, visible: torch.Tensor, op: str, dims: tuple[int, ...]
) -> torch.Tensor:
    """Reduce visible scores over dimensions by "sum", "mean" or "max" (-inf where none is)."""
    if op == "max":
        return _only(x, visible).amax(dims)
    total = x.masked_fill(~visible, 0.0)
    for dim in dims:  # one after the other is faster
        total = total.sum(dim, keepdim=True)
    total = total.squeeze(dims)
    if op == "sum":
        return total
    count = visible.expand(x.shape).sum(dims).clamp(min=1)
    return total / count


def _to_cells(
    scores: torch.Tensor, visible: torch.Tensor, rows: int, keys: int, op: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce ``rows`` by ``keys`` neighbouring scores to one, and what is visible."""
    pad = (0, -scores.shape[-1] % keys, 0, -scores.shape[-2] % rows)
    x = F.pad(scores, pad).unflatten(-1, (-1, keys)).unflatten(-3, (-1, rows))
    seen = F.pad(visible, pad).unflatten(-1, (-1, keys)).unflatten(-3, (-1, rows))
    return _pooled(x, seen, op, (-3, -1)), seen.any(-1).any(-2)


def _over_queries(
    scores: torch.Tensor, visible: torch.Tensor, op: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce all query rows to one."""
    return _pooled(scores, visible, op, (-2,))[..., None, :], visible.any(-2, keepdim=True)


def _over_diagonals(
    scores: torch.Tensor, visible: torch.Tensor, places: torch.Tensor, op: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce scores of equal distance; the keys then count distances. ``places``: of the rows."""
    length = scores.shape[-1]
    keys = places[:, None] - torch.arange(length, device=scores.device)  # [R, distances]
    inside = (keys >= 0) & (keys < length)
    at = keys.clamp(0, max(length - 1, 0))
    seen = visible.gather(-1, at) & inside
    found = scores.gather(-1, at.expand(scores.shape))
    return _pooled(found, seen, op, (-2,))[..., None, :], seen.any(-2, keepdim=True)


def _over_heads(
    scores: torch.Tensor, visible: torch.Tensor, heads: int, op: str
) -> torch.Tensor:
    """Reduce the query heads to ``heads`` groups."""
    return _pooled(scores.unflatten(1, (heads, -1)), visible, op, (2,))


def _over_windows(
    scores: torch.Tensor, visible: torch.Tensor, units: int, strides: tuple[int, int], op: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce windows to blocks. ``strides``: how many strides a window and a block have."""
    window, block = strides
    pad = (window - 1, max(units * block - scores.shape[-1], 0))
    x = F.pad(scores, pad)[..., : units * block + window - 1].unfold(-1, block + window - 1, block)
    seen = F.pad(visible, pad)[..., : units * block + window - 1]
    seen = seen.unfold(-1, block + window - 1, block)
    at = torch.arange(block + window - 1, device=scores.device)
    shared = torch.minimum(at, at.new_tensor(block - 1)) - (at - window + 1).clamp(min=0) + 1
    if op == "max":
        found = _pooled(x, seen, "max", (-1,))
    else:
        weights = shared.to(x.dtype)
        found = x.masked_fill(~seen, 0.0) @ weights
        if op == "mean":
            found = found / (seen.to(x.dtype) @ weights).clamp(min=1)
    return found, seen.any(-1)


def _smoothed(
    scores: torch.Tensor, visible: torch.Tensor, width: int, op: str
) -> torch.Tensor:
    """Run over ``width`` key units, centred; what is beyond the ends or not visible is 0."""
    x = F.pad(scores.masked_fill(~visible, 0.0), (width // 2, width // 2)).unfold(-1, width, 1)
    return x.amax(-1) if op == "max" else x.sum(-1) if op == "sum" else x.mean(-1)


# ------------------------------------------------------------------------------------------ inputs


def _represented(
    route: str, side: str, x: torch.Tensor, heads: int, units: int, q: torch.Tensor,
    channels: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return what was given to stand for units. Raises: ValueError for a wrong shape.

    Args: ``heads`` are those that it is broadcast to, 0 for any; ``channels`` those of the other
        side.
    """
    fits = x.dim() == 4 and x.shape[0] in (1, q.shape[0]) and heads % max(x.shape[1], 1) == 0
    if not fits or x.shape[2] != units or channels not in (None, x.shape[3]):
        many = f"a divisor of {heads}" if heads > 1 else "1" if heads else "any heads"
        raise ValueError(
            f"{NAME}: the {side} of the route {route} have the shape {tuple(x.shape)}, expected "
            f"[{q.shape[0]} or 1, {many}, {units}, {channels or 'any'}]"
        )
    return x


def _weights(route: str, weights: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return what weighs the heads of a score. Raises: ValueError for a wrong shape."""
    b, heads, rows = query.shape[:3]
    if weights.dim() != 3 or weights.shape[0] not in (1, b) or weights.shape[1:] != (rows, heads):
        raise ValueError(
            f"{NAME}: the weights of the route {route} have the shape {tuple(weights.shape)}, "
            f"expected [{b} or 1, {rows}, {heads}]"
        )
    return weights


def _gate(route: str, gate: torch.Tensor, q: torch.Tensor, rows: int, units: int) -> torch.Tensor:
    """Return scores given from outside for every row. Shape: ``[B, Hq, rows, units]``."""
    b, heads = q.shape[:2]
    fits = gate.dim() == 4 and gate.shape[0] in (1, b) and heads % gate.shape[1] == 0
    if not fits or gate.shape[2] not in (1, rows) or gate.shape[3] != units:
        raise ValueError(
            f"{NAME}: the score of the route {route} has the shape {tuple(gate.shape)}, expected "
            f"[{b} or 1, a divisor of {heads}, {rows} or 1, {units}]"
        )
    return gate.repeat_interleave(heads // gate.shape[1], 1).expand(b, heads, rows, units)


def _each_head(threshold: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the threshold of each head that selects. Shape: ``[heads, 1, 1]``."""
    if threshold.dim() != 1 or heads % len(threshold):
        raise ValueError(
            f"{NAME}: a threshold has the shape {tuple(threshold.shape)}, expected [{heads}]"
        )
    return _wide(threshold).repeat_interleave(heads // len(threshold))[:, None, None]


def _routers(score: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the scores by which each head chooses tokens. Shape: ``[B, Hq, 1, N]``."""
    b, heads, tokens = q.shape[:3]
    if score.dim() != 3 or heads % score.shape[1] or score.shape[2] != tokens:
        raise ValueError(
            f"{NAME}: a router has the shape {tuple(score.shape)}, expected [{b} or 1, a divisor "
            f"of {heads}, {tokens}]"
        )
    each = _wide(score).repeat_interleave(heads // score.shape[1], 1)[:, :, None]
    return each.expand(b, heads, 1, tokens)


def _nearness(centroids: torch.Tensor, x: torch.Tensor, heads: int, count: int) -> torch.Tensor:
    """Return the product of each centroid with each token. Shape: ``[B, Hq, C, N]``."""
    if heads % centroids.shape[1] or tuple(centroids.shape[2:]) != (count, x.shape[-1]):
        raise ValueError(
            f"{NAME}: centroids have the shape {tuple(centroids.shape[1:])}, expected [a divisor "
            f"of {heads}, {count}, {x.shape[-1]}]"
        )
    wide = centroids.repeat_interleave(heads // centroids.shape[1], 1)
    return wide @ _wide(x).repeat_interleave(heads // x.shape[1], 1).transpose(-1, -2)


# ----------------------------------------------------------------------------------------- anchors


def _anchors(
    q: torch.Tensor, k: torch.Tensor, scale: float, tokens: int, pieces: Sequence[Any],
    keeps: Callable[..., Any], by_head: bool, data: Any,
) -> torch.Tensor:
    """Return the mean over units of queries of their largest kept product. ``[B, Hq, units]``."""
    (b, hq, nq), nk = q.shape[:3], k.shape[2]
    side = 64
    count_q, count_k = -(-nq // side), -(-nk // side)
    h = torch.arange(hq, device=q.device)[:, None, None]
    item = torch.arange(b, device=q.device)[:, None, None, None]
    top = _wide(q).new_full((b, hq, nq), float("-inf"))
    for tile in range(count_q):
        rows = torch.arange(tile * side, min(tile * side + side, nq), device=q.device)
        found: set[int] = set()
        for head in range(hq) if by_head else (0,):
            for span, period, run in pieces:
                first, count = span(tile, head, nq, nk, count_q, count_k)
                found |= {first + period * (i // run) + i % run for i in range(count)}
        if not found:
            continue
        tiles = torch.tensor(sorted(found), device=q.device)
        keys = (tiles[:, None] * side + torch.arange(side, device=q.device)).flatten()
        keys = keys[keys < nk]
        products = _product(q[:, :, rows], k[:, :, keys]) * scale
        kept = torch.as_tensor(keeps(rows[:, None], keys[None, :], h, item, nq, nk, data))
        top[:, :, rows] = products.masked_fill(~kept, float("-inf")).amax(-1)
    blocks = F.pad(top, (0, -nq % tokens), value=float("-inf")).view(b, hq, -1, tokens)
    has = blocks > float("-inf")
    total = blocks.masked_fill(~has, 0.0).sum(-1) / has.sum(-1).clamp(min=1)
    return total.masked_fill(~has.any(-1), float("-inf"))
