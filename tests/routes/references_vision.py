"""References for vision and video, and for members: in loops, for one batch item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np

from tests.routes.references import (
    Bools,
    Floats,
    Inputs,
    blocks,
    empty,
    probabilities,
    top,
    until,
)

Pairs = dict[tuple[int, int, int], float]


def _gates(q: Floats, k: Floats, parts: Sequence[Sequence[int]]) -> Pairs:
    """Return the product of each head's query with the mean key of each block."""
    group = len(q) // len(k)
    return {
        (h, t, j): float(q[h, t] @ k[h // group, list(part)].mean(0))
        for h, t, (j, part) in product(range(len(q)), range(q.shape[1]), enumerate(parts))
    }


def vmoba(
    q: Floats, k: Floats, inputs: Inputs, parts: Sequence[Sequence[int]], top_k: int, pool: str
) -> Bools:
    """``pool``: of a query, a block, a head or all; ``top_k`` blocks for each query on average."""
    gates = _gates(q, k, parts)
    own = {t: j for j, part in enumerate(parts) for t in part}
    pools: dict[tuple[int, ...], Pairs] = {}
    for (h, t, j), gate in gates.items():
        name = {"row": (h, t), "column": (h, j), "head": (h,), "all": ()}[pool]
        pools.setdefault(name, {})[h, t, j] = math.inf if own[t] == j else gate
    mask, _, nq, _ = empty(q, k)
    rows = {"row": 1, "column": 1, "head": nq, "all": len(q) * nq}[pool]
    for members in pools.values():
        forced = sum(gate == math.inf for gate in members.values())
        for h, t, j in top(members, max(top_k * rows, forced)):
            mask[h, t, list(parts[j])] = True
    return mask


def vmoba_mass(
    q: Floats, k: Floats, inputs: Inputs, pool: str, tokens: int = 8,
    mass: Fraction = Fraction(1, 2),
) -> Bools:  # fmt: skip
    """Gates min-max normalised in the pool; own blocks are charged first, one other at least."""
    mask, _, nq, nk = empty(q, k)
    parts = blocks(nk, tokens)
    gates = _gates(q, k, parts)
    for h in range(len(q)):
        for rows in [[t] for t in range(nq)] if pool == "row" else [list(range(nq))]:
            some = {(t, j): gates[h, t, j] for t in rows for j in range(len(parts))}
            low, high = min(some.values()), max(some.values())
            share = {
                name: (gate - low) / (high - low) if high > low else 1.0
                for name, gate in some.items()
            }
            own = {(t, t // tokens) for t in rows}
            others = {name: s for name, s in share.items() if name not in own}
            taken = set(until(others, mass, sum(share[name] for name in own))) | top(others, 1)
            for t, j in own | taken:
                mask[h, t, list(parts[j])] = True
    return mask


def boxes(extents: Sequence[int], sides: Sequence[int]) -> list[list[int]]:
    """Return the tokens of each box of a grid, row-major, cut at the border."""
    counts = [range(-(-e // s)) for e, s in zip(extents, sides, strict=True)]
    strides = [math.prod(extents[a + 1 :]) for a in range(len(extents))]
    found = []
    for corner in product(*counts):
        axes = [
            range(c * s, min((c + 1) * s, e))
            for c, s, e in zip(corner, sides, extents, strict=True)
        ]
        places = (zip(place, strides, strict=True) for place in product(*axes))
        found.append(sorted(sum(x * n for x, n in place) for place in places))
    return found


def biformer(q: Floats, k: Floats, inputs: Inputs) -> Bools:
    """6 x 8 tokens in regions of 3 x 2, three regions for each, heads put together."""
    mask, group, _, _ = empty(q, k)
    regions = boxes((6, 8), (3, 2))
    for i, rows in enumerate(regions):
        query = np.concatenate([q[h, rows].mean(0) for h in range(len(q))])
        scores = {
            j: float(query @ np.concatenate([k[h // group, keys].mean(0) for h in range(len(q))]))
            for j, keys in enumerate(regions)
        }
        assert i < len(regions)
        for j in top(scores, 3):
            for t in rows:
                mask[:, t, regions[j]] = True
    return mask


def _by_means(q: Floats, k: Floats, queries: int, tokens: int) -> Pairs:
    group = len(q) // len(k)
    return {
        (h, i, j): float(q[h, list(rows)].mean(0) @ k[h // group, list(keys)].mean(0))
        for h in range(len(q))
        for i, rows in enumerate(blocks(q.shape[1], queries))
        for j, keys in enumerate(blocks(k.shape[1], tokens))
    }


def sla(q: Floats, k: Floats, inputs: Inputs, share: Fraction = Fraction(1, 3)) -> Bools:
    mask, _, nq, nk = empty(q, k)
    scores = _by_means(q, k - k.mean(1, keepdims=True), 8, 8)
    parts = blocks(nk, 8)
    for h, (i, rows) in product(range(len(q)), enumerate(blocks(nq, 8))):
        row = {j: scores[h, i, j] for j in range(len(parts))}
        for j in top(row, max(math.floor(share * len(parts)), 1)):
            mask[h, rows[0] : rows[-1] + 1, list(parts[j])] = True
    return mask


def sparge(
    q: Floats, k: Floats, inputs: Inputs, mass: float = 0.5, causal: bool = False
) -> Bools:
    """128 x 64 of the paper is 16 x 8 here; the block that crosses the mass is left out."""
    mask, _, nq, nk = empty(q, k)
    scores = _by_means(q, k, 16, 8)
    parts = blocks(nk, 8)
    for h, (i, rows) in product(range(len(q)), enumerate(blocks(nq, 16))):
        seen = [j for j, part in enumerate(parts) if not causal or part[0] <= rows[-1]]
        p = probabilities({j: scores[h, i, j] / math.sqrt(q.shape[2]) for j in seen})
        total, chosen = 0.0, []
        for j in sorted(p, key=lambda j: (-p[j], j)):
            total += p[j]
            if total >= mass and chosen:
                break
            chosen.append(j)
            if total >= mass:
                break
        for t in rows:
            for s in (s for j in chosen for s in parts[j]):
                mask[h, t, s] = not causal or s <= t
    return mask


def sparsed(q: Floats, k: Floats, inputs: Inputs, share: Fraction = Fraction(2, 5)) -> Bools:
    mask, group, nq, nk = empty(q, k)
    parts = blocks(nk, 8)
    for h in range(len(q)):
        p = [
            probabilities(
                {s: float(q[h, t] @ k[h // group, s]) / math.sqrt(q.shape[2]) for s in range(nk)}
            )
            for t in range(nq)
        ]
        for rows in blocks(nq, 8):
            row = {
                j: sum(p[t][s] for t in rows for s in part) / (len(rows) * len(part))
                for j, part in enumerate(parts)
            }
            for j in top(row, max(math.floor(share * len(parts)), 1)):
                mask[h, rows[0] : rows[-1] + 1, list(parts[j])] = True
    return mask


def sparse_vggt(q: Floats, k: Floats, inputs: Inputs) -> Bools:
    """Of blocks in descending order: a third of them, or more if these are not 7/8 of the mass."""
    mask, _, nq, nk = empty(q, k)
    scores = _by_means(q, k, 16, 8)
    parts = blocks(nk, 8)
    for h, (i, rows) in product(range(len(q)), enumerate(blocks(nq, 16))):
        p = probabilities({j: scores[h, i, j] / math.sqrt(q.shape[2]) for j in range(len(parts))})
        count = max(len(parts) // 3, 1, len(until(p, Fraction(7, 8))))
        for j in top(p, count):
            mask[h, rows[0] : rows[-1] + 1, list(parts[j])] = True
    return mask


def sparsifiner(q: Floats, k: Floats, inputs: Inputs) -> Bools:
    """Each query takes a quarter of the keys by its low-rank scores; query 0 takes all."""
    mask, group, nq, nk = empty(q, k)
    for h, t in product(range(len(q)), range(nq)):
        low = inputs["k_low"][h // group]
        scores = {s: float(inputs["q_low"][h, t] @ low[s]) for s in range(nk)}
        for s in top(scores, nk if t == 0 else max(nk // 4, 1)):
            mask[h, t, s] = True
    return mask


# ------------------------------------------------------------------------------------- outputs


def attention(q: Floats, k: Floats, v: Floats, mask: Bools) -> tuple[Floats, Floats]:
    """Return what a mask gives, row by row: out 0 and lse -inf where it keeps nothing."""
    group = len(q) // len(k)
    out = np.zeros((*q.shape[:2], v.shape[2]))
    lse = np.full(q.shape[:2], -np.inf)
    for h, t in product(range(len(q)), range(q.shape[1])):
        scores = {
            s: float(q[h, t] @ k[h // group, s]) / math.sqrt(q.shape[2])
            for s in mask[h, t].nonzero()[0]
        }
        for s, p in probabilities(scores).items():
            out[h, t] += p * v[h // group, s]
        if scores:
            largest = max(scores.values())
            lse[h, t] = largest + math.log(sum(math.exp(x - largest) for x in scores.values()))
    return out, lse


def _among(
    q: Floats, k: Floats, v: Floats, queries: set[int], keys: set[int], causal: bool
) -> dict[int, Floats]:
    """Return what the queries of one head get from these keys; 0 where there is none for them."""
    found = {}
    for t in queries:
        scores = {
            s: float(q[t] @ k[s]) / math.sqrt(q.shape[1])
            for s in sorted(keys) if s <= t or not causal
        }  # fmt: skip
        some = [p * v[s] for s, p in probabilities(scores).items()]
        found[t] = sum(some, start=np.zeros(v.shape[1]))
    return found


def mosa(q: Floats, k: Floats, v: Floats, inputs: Inputs, top_k: int = 9, first: int = 1) -> Floats:
    """Each head takes its tokens; results are multiplied by the router and added in place."""
    out = np.zeros((*q.shape[:2], v.shape[2]))
    group = len(q) // len(k)
    for h in range(len(q)):
        router = {t: float(x) for t, x in enumerate(inputs["router"][h])}
        rest = {t: x for t, x in router.items() if t >= first}
        chosen = set(range(first)) | top(rest, top_k - first)
        for t, x in _among(q[h], k[h // group], v[h // group], chosen, chosen, True).items():
            out[h, t] += router[t] * x
    return out


def routing_transformer(
    q: Floats, k: Floats, v: Floats, inputs: Inputs, width: int = 8, causal: bool = True
) -> Floats:
    """Mean over the clusters that took the query; nothing where none did."""
    out = np.zeros((*q.shape[:2], v.shape[2]))
    group = len(q) // len(k)
    for h in range(len(q)):
        count = np.zeros(q.shape[1])
        keys = k[h // group]
        for centroid in inputs["centroids"][h]:
            near_q = {t: float(centroid @ x) / float(np.linalg.norm(x)) for t, x in enumerate(q[h])}
            near_k = {s: float(centroid @ x) / float(np.linalg.norm(x)) for s, x in enumerate(keys)}
            queries, chosen = top(near_q, width), top(near_k, width)
            found = _among(q[h], keys, v[h // group], queries, chosen, causal)
            for t, x in found.items():
                out[h, t] += x
                count[t] += 1
        out[h] /= np.maximum(count, 1)[:, None]
    return out


def nsa(q: Floats, k: Floats, v: Floats, inputs: Inputs, selected: Bools, near: int = 12) -> Floats:
    """Three attentions by their gates: compressed keys whose window has ended, selected, local."""
    n = q.shape[1]
    windows = inputs["compressed_k"].shape[1]
    ended = np.array([[2 * i + 3 <= t for i in range(windows)] for t in range(n)])
    local = np.array([[s <= t and t - s < near for s in range(n)] for t in range(n)])
    parts = (
        ("gate_c", inputs["compressed_k"], inputs["compressed_v"], ended),
        ("gate_s", k, v, selected),
        ("gate_w", k, v, local),
    )
    out = np.zeros((*q.shape[:2], v.shape[2]))
    for gate, keys, values, mask in parts:
        mask = np.broadcast_to(mask, (len(q), *mask.shape[-2:]))
        out += inputs[gate][..., None] * attention(q, keys, values, mask)[0]
    return out
