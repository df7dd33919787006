"""References for language models: what each method says, in loops, for one batch item.

Written from the papers and their code as ``patterns/dynamic.md`` sums them up, not from the route
primitives: q ``[Hq, nq, D]``, k ``[Hkv, nk, D]`` -> mask ``[Hq, nq, nk]``, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Inputs = Mapping[str, Any]


def top(scores: Mapping[Any, float], count: int) -> set[Any]:
    """Return the names of the largest scores; of equals the smallest names."""
    return set(sorted(scores, key=lambda name: (-scores[name], name))[: max(count, 0)])


def until(scores: Mapping[Any, float], share: Fraction, before: float = 0.0) -> list[Any]:
    """Return names by descending score, until their sum and ``before`` reach the share of all."""
    goal = float(share) * (sum(scores.values()) + before)
    taken: list[Any] = []
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if before >= goal:
            break
        taken.append(name)
        before += scores[name]
    return taken


def probabilities(scores: Mapping[Any, float]) -> dict[Any, float]:
    """Return the softmax of named scores."""
    if not scores:
        return {}
    largest = max(scores.values())
    weights = {name: math.exp(score - largest) for name, score in scores.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def blocks(length: int, tokens: int) -> list[range]:
    """Return the blocks of a sequence; the last may be shorter."""
    return [range(s, min(s + tokens, length)) for s in range(0, length, tokens)]


def empty(q: Floats, k: Floats) -> tuple[Bools, int, int, int]:
    """Return a mask that keeps nothing, the group size and both lengths."""
    (hq, nq, _), (hkv, nk, _) = q.shape, k.shape
    return np.zeros((hq, nq, nk), dtype=bool), hq // hkv, nq, nk


def moba(q: Floats, k: Floats, inputs: Inputs, tokens: int = 8, top_k: int = 3) -> Bools:
    mask, group, nq, nk = empty(q, k)
    for h in range(len(q)):
        keys = k[h // group]
        means = [keys[list(b)].mean(0) for b in blocks(nk, tokens)]
        for t in range(nq):
            own = t // tokens
            gate = {j: float(q[h, t] @ means[j]) for j in range(own)}
            for j in {own} | top(gate, top_k - 1):
                for s in blocks(nk, tokens)[j]:
                    mask[h, t, s] = s <= t
    return mask


def _window_probabilities(
    query: Floats, keys: Floats, windows: list[range], t: int, compressed: Floats | None
) -> dict[int, float]:
    scores = {}
    for i, window in enumerate(windows):
        if window[-1] <= t:
            key = keys[list(window)].mean(0) if compressed is None else compressed[i]
            scores[i] = float(query @ key) / math.sqrt(len(query))
    return probabilities(scores)


def nsa_selected(
    q: Floats, k: Floats, inputs: Inputs, tokens: int = 8, top_k: int = 4, wide: int = 4,
    stride: int = 2, first: int = 1, recent: int = 2, learned: bool = False, largest: bool = False,
) -> Bools:  # fmt: skip
    """``largest``: InfLLM-v2, the largest group sum of the windows that touch a block."""
    mask, group, nq, nk = empty(q, k)
    windows = [range(s, s + wide) for s in range(0, nk - wide + 1, stride)]
    for g in range(len(k)):
        for t in range(nq):
            compressed = inputs["k_cmp"][g] if learned else None
            per_head = [
                _window_probabilities(q[h, t], k[g], windows, t, compressed)
                for h in range(g * group, (g + 1) * group)
            ]
            own = t // tokens
            score: dict[int, float] = {}
            for j, block in enumerate(blocks(nk, tokens)):
                touching = {
                    # Strides of the block (paper, equation 9: both sums) that window i covers.
                    i: len({s // stride for s in windows[i]}
                           & set(range(j * tokens // stride, (j + 1) * tokens // stride)))
                    for i in per_head[0]
                    if set(windows[i]) & set(block)
                }  # fmt: skip
                if touching and largest:
                    score[j] = max(sum(p[i] for p in per_head) for i in touching)
                elif touching:
                    score[j] = sum(n * p[i] for i, n in touching.items() for p in per_head)
            forced = {j for j in range(first) if j <= own} | {
                j for j in range(own - recent + 1, own + 1) if j >= 0
            }
            others = {j: s for j, s in score.items() if j not in forced}
            for j in forced | top(others, top_k - len(forced)):
                for s in blocks(nk, tokens)[j]:
                    mask[g * group : (g + 1) * group, t, s] = s <= t
    return mask


def dsa(q: Floats, k: Floats, inputs: Inputs, top_k: int = 8) -> Bools:
    mask, _, nq, _ = empty(q, k)
    queries, keys, weights = inputs["q_index"], inputs["k_index"][0], inputs["w_index"]
    for t in range(nq):
        scores = {
            s: sum(
                weights[t, j] * max(0.0, float(queries[j, t] @ keys[s]))
                for j in range(len(queries))
            )
            for s in range(t + 1)
        }
        for s in top(scores, top_k):
            mask[:, t, s] = True
    return mask


def _last_rows(query: Floats, keys: Floats, last: int) -> list[tuple[int, dict[int, float]]]:
    """Return the probabilities of the last queries: where each stands, and of what keys."""
    n, rows = len(query), []
    for t in range(max(n - last, 0), n):
        scores = {s: float(query[t] @ keys[s]) / math.sqrt(len(keys[s])) for s in range(t + 1)}
        rows.append((t, probabilities(scores)))
    return rows


def minference_vertical_slash(
    q: Floats, k: Floats, inputs: Inputs, last: int = 6, columns: int = 5, slashes: int = 6,
    first: int = 2, nearest: int = 3,
) -> Bools:  # fmt: skip
    mask, group, nq, nk = empty(q, k)
    for h in range(len(q)):
        vertical = dict.fromkeys(range(nk), 0.0)
        slash = dict.fromkeys(range(nk), 0.0)
        for t, row in _last_rows(q[h], k[h // group], last):
            for s, p in row.items():
                vertical[s] += p
                slash[t - s] += p
        vertical |= {s: math.inf for s in range(first)}
        slash |= {d: math.inf for d in range(nearest)}
        chosen, distances = top(vertical, columns), top(slash, slashes)
        for t in range(nq):
            for s in range(t + 1):
                mask[h, t, s] = s in chosen or t - s in distances
    return mask


def flexprefill(
    q: Floats, k: Floats, inputs: Inputs, last: int = 8, mass: Fraction = Fraction(4, 5),
    tokens: int = 8,
) -> Bools:  # fmt: skip
    """Columns and diagonals up to a mass; the first block of columns comes on top of it."""
    mask, group, nq, nk = empty(q, k)
    for h in range(len(q)):
        vertical = dict.fromkeys(range(nk), 0.0)
        slash = dict.fromkeys(range(nk), 0.0)
        for t, row in _last_rows(q[h], k[h // group], last):
            for s, p in row.items():
                vertical[s] += p
                slash[t - s] += p
        rest = {s: p for s, p in vertical.items() if s >= tokens}
        chosen = set(until(rest, mass)) | top(rest, 2) | set(range(tokens))
        newest = slash.pop(0)
        distances = set(until(slash, mass, newest)) | {0}
        for t in range(nq):
            for s in range(t + 1):
                mask[h, t, s] = s in chosen or t - s in distances
    return mask


def _block_causal(mask: Bools, h: int, i: range, j: range) -> None:
    for t in i:
        for s in j:
            mask[h, t, s] = s <= t


def minference_block(
    q: Floats, k: Floats, inputs: Inputs, tokens: int = 8, top_k: int = 3
) -> Bools:
    mask, group, nq, nk = empty(q, k)
    for h in range(len(q)):
        for i, rows in enumerate(blocks(nq, tokens)):
            mean = q[h, list(rows)].mean(0)
            scores = {
                j: float(mean @ k[h // group, list(keys)].mean(0))
                for j, keys in enumerate(blocks(nk, tokens))
                if j <= i
            }
            for j in top(scores, top_k):
                _block_causal(mask, h, rows, blocks(nk, tokens)[j])
    return mask


def xattention(
    q: Floats, k: Floats, inputs: Inputs, cell: int = 4, tokens: int = 8,
    mass: Fraction = Fraction(3, 4),
) -> Bools:  # fmt: skip
    mask, group, nq, nk = empty(q, k)
    d, per = q.shape[2], tokens // cell
    for h in range(len(q)):
        keys = k[h // group]
        cells = -(-nq // cell)
        weight = {}
        for a in range(cells):
            scores = {}
            for c in range(a + 1):
                total = 0.0
                for r in range(cell):  # an antidiagonal of the cell
                    t, s = a * cell + cell - 1 - r, c * cell + r
                    if t < nq and s < nk:
                        total += float(q[h, t] @ keys[s])
                scores[c] = total / (math.sqrt(d) * cell)
            weight |= {(a, c): p for c, p in probabilities(scores).items()}
        for i, rows in enumerate(blocks(nq, tokens)):
            total_of = {
                j: sum(p for (a, c), p in weight.items() if a // per == i and c // per == j)
                for j in range(i + 1)
            }
            forced = {0, i}
            before = sum(total_of[j] for j in forced)
            others = {j: p for j, p in total_of.items() if j not in forced}
            for j in forced | set(until(others, mass, before)):
                _block_causal(mask, h, rows, blocks(nk, tokens)[j])
    return mask


def anchor(
    q: Floats, k: Floats, inputs: Inputs, tokens: int = 4, widen: int = 2, theta: float = 1.0,
    sink: int = 3,
) -> Bools:  # fmt: skip
    """The disjoint form: stripes between the sink and the window of a superblock."""
    mask, group, nq, _ = empty(q, k)
    wide = tokens * widen
    for h in range(len(q)):
        keys = k[h // group] / math.sqrt(q.shape[2])
        for start in range(0, nq, wide):
            queries = range(start, min(start + wide, nq))
            stripes: set[int] = set()
            for first in range(start, queries[-1] + 1, tokens):
                block = [t for t in range(first, first + tokens) if t < nq]
                kept = {t: [s for s in range(t + 1) if s < sink or s >= start] for t in block}
                best = [max(float(q[h, t] @ keys[s]) for s in kept[t]) for t in block]
                mean = q[h, block].mean(0)
                level = sum(best) / len(block) - theta
                stripes |= {s for s in range(first) if float(mean @ keys[s]) >= level}
            for t in queries:
                for s in range(t + 1):
                    mask[h, t, s] = s < sink or s >= start or s in stripes
    return mask


def seer(
    q: Floats, k: Floats, inputs: Inputs, tokens: int = 8, threshold: float = 3 / 16,
    top_k: int | None = None,
) -> Bools:  # fmt: skip
    mask, _, nq, nk = empty(q, k)
    for h in range(len(q)):
        for i, rows in enumerate(blocks(nq, tokens)):
            p = probabilities({j: float(inputs["gate"][h, i, j]) for j in range(i + 1)})
            chosen = top(p, top_k) if top_k else {j for j in p if p[j] > threshold}
            for j in chosen:
                _block_causal(mask, h, rows, blocks(nk, tokens)[j])
    return mask


def snapkv(
    q: Floats, k: Floats, inputs: Inputs, last: int = 5, top_k: int = 12, wide: int = 5,
    largest: bool = False,
) -> Bools:  # fmt: skip
    mask, group, nq, nk = empty(q, k)
    for h in range(len(q)):
        total = np.zeros(nk)
        for _, row in _last_rows(q[h], k[h // group], last):
            for s, p in row.items():
                total[s] += p
        near = wide // 2
        smooth = {}
        for s in range(nk):
            some = [total[x] if 0 <= x < nk else 0.0 for x in range(s - near, s + near + 1)]
            smooth[s] = max(some) if largest else sum(some) / wide
        window = set(range(max(nk - last, 0), nk))
        rest = {s: p for s, p in smooth.items() if s not in window}
        chosen = window | top(rest, top_k - len(window))
        for t in range(nq):
            for s in range(t + 1):
                mask[h, t, s] = s in chosen
    return mask


def quest(q: Floats, k: Floats, inputs: Inputs, page: int = 4, top_k: int = 3) -> Bools:
    """A decode step, or several: the queries are the last tokens."""
    mask, group, nq, nk = empty(q, k)
    for h in range(len(q)):
        for row in range(nq):
            t = nk - nq + row
            bound = {}
            for j, tokens in enumerate(blocks(nk, page)):
                if tokens[0] <= t:
                    keys = k[h // group, list(tokens)]
                    low, high = keys.min(0), keys.max(0)
                    channels = zip(q[h, row], low, high, strict=True)
                    bound[j] = sum(max(x * a, x * b) for x, a, b in channels)
            newest = t // page
            del bound[newest]
            for j in {newest} | top(bound, top_k - 1):
                for s in blocks(nk, page)[j]:
                    mask[h, row, s] = s <= t
    return mask


def kinetics(q: Floats, k: Floats, inputs: Inputs, page: int = 4, top_k: int = 3) -> Bools:
    mask, group, nq, nk = empty(q, k)
    for g in range(len(k)):
        heads = range(g * group, (g + 1) * group)
        for row in range(nq):
            t = nk - nq + row
            newest = t // page
            scores = {
                j: sum(float(q[h, row] @ k[g, list(tokens)].mean(0)) for h in heads) / group
                for j, tokens in enumerate(blocks(nk, page))
                if j < newest
            }
            for j in {newest} | top(scores, top_k):
                for s in blocks(nk, page)[j]:
                    mask[g * group : (g + 1) * group, row, s] = s <= t
    return mask


def by_tokens(q: Floats, k: Floats, score: Any, top_k: int | None = None) -> Bools:
    """Each query takes the best visible keys by ``score(h, t, s)``."""
    mask, _, nq, _ = empty(q, k)
    for h in range(len(q)):
        for t in range(nq):
            scores = {s: float(score(h, t, s)) for s in range(t + 1)}
            for s in top(scores, len(scores) if top_k is None else top_k):
                mask[h, t, s] = True
    return mask


def loki(q: Floats, k: Floats, inputs: Inputs) -> Bools:
    group = len(q) // len(k)
    return by_tokens(
        q, k, lambda h, t, s: inputs["q_pca"][h, t] @ inputs["k_pca"][h // group, s], 8
    )


def dma(q: Floats, k: Floats, inputs: Inputs) -> Bools:
    group = len(q) // len(k)
    return by_tokens(q, k, lambda h, t, s: inputs["bias"][h // group, 0, s], 8)


def top_theta(q: Floats, k: Floats, inputs: Inputs) -> Bools:
    mask, group, nq, _ = empty(q, k)
    for h in range(len(q)):
        for t in range(nq):
            for s in range(t + 1):
                score = float(q[h, t] @ k[h // group, s]) / math.sqrt(q.shape[2])
                mask[h, t, s] = score > inputs["theta"][h] or s == t
    return mask
