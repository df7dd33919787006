"""The gathered CPU executor: masks and scores made at the call, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnc.codegen import cpu_gathered as cg
from attnc.codegen.cpu_gathered import _Gathered, _gathered_attention
from attnc.codegen.tables import _TileRules
from attnc.runtime.reference import assert_within, error_bound, reference

Keep = Callable[..., torch.Tensor]


def causal(q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    return k <= q


def late(q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    return (k <= q - 40) & (k % 3 != 1)


def of_head(q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    return (q - k).abs() <= 9 + 30 * h


def packed(q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    doc = data["doc"]
    item = b if len(doc) > 1 else 0
    return doc[item, q.clamp(max=nq - 1)] == doc[item, k.clamp(max=nk - 1)]


def everything(q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    return True


def plan_of(
    keep: Keep, *, tile: tuple[int, int] = (32, 16), full: Callable[..., Any] | None = None,
    heads: int = 1, **options: Any,
) -> _Gathered:
    """Candidates are all tiles; those of which ``full`` (qb, kb, h) says so have no mask."""
    from attnc.codegen.tables import _Data

    def candidates(qb: Any, h: Any, nq: int, nk: int, NQ: int, NK: int) -> Any:
        for kb in range(NK):
            sure = (qb * 0 + h * 0).bool() if full is None else full(qb, kb, h)
            yield kb, sure.long(), 1, 1, 0
            yield kb, (~sure).long(), 1, 1, 1

    def nothing(x: Any, h: Any, b: Any, nq: int, nk: int, data: _Data) -> list[Any]:
        return []

    def open_test(*_: Any) -> tuple[bool, bool]:
        return True, False

    rules = _TileRules(
        q=tile[0], k=tile[1], heads=heads, candidates=candidates, query_terms=nothing,
        key_terms=nothing, test=open_test, prepare=dict,
    )
    settings: dict[str, Any] = {"by_head": False, "kv_heads": False, **options}
    return _Gathered(rules=rules, keep=keep, **settings)


def tensors(
    nq: int, nk: int, *, batch: int = 2, heads: int = 4, kv: int = 2, dim: int = 16,
    value_dim: int | None = None, dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(nq * 1000 + nk)
    shapes = (batch, heads, nq, dim), (batch, kv, nk, dim), (batch, kv, nk, value_dim or dim)
    q, k, v = (torch.randn(*s, generator=make).to(dtype) for s in shapes)
    return q, k, v


def mask_of(keep: Keep, nq: int, nk: int, data: Any, batch: int, heads: int) -> torch.Tensor:
    """Evaluate a mask densely. Shape: ``[batch, heads, nq, nk]``."""
    q, k = torch.arange(nq)[:, None], torch.arange(nk)
    rows = [
        torch.stack([
            torch.as_tensor(keep(q, k, h, b, nq, nk, data)).expand(nq, nk) for h in range(heads)
        ])
        for b in range(batch)
    ]
    return torch.stack(rows)


LENGTHS = [(1, 1), (33, 70), (70, 33), (200, 200)]


@pytest.mark.parametrize("keep", [causal, late, everything])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_masks(keep: Keep, dtype: torch.dtype) -> None:
    """Odd lengths, GQA, rows without keys, value dims beside the head dim, every dtype."""
    for nq, nk in LENGTHS:
        q, k, v = tensors(nq, nk, dtype=dtype, value_dim=24 if nq == 33 else 8)
        out, lse = _gathered_attention(plan_of(keep), q, k, v, 0.3, {})
        assert (out.dtype, lse.dtype) == (
            dtype, torch.float64 if dtype == torch.float64 else torch.float32
        )
        assert out.is_contiguous()
        assert_within(out, lse, q, k, v, mask_of(keep, nq, nk, {}, 2, 4), 0.3)


def test_full_tiles_need_no_mask() -> None:
    """Their pairs are not looked at, but the ends of the sequences are."""
    asked: list[int] = []

    def watched(q: Any, k: Any, *rest: Any) -> Any:
        asked.extend(set((k // 16).flatten().tolist()))
        return k <= q

    def left_of_diagonal(qb: Any, kb: int, h: Any) -> Any:
        return (kb + 1) * 16 <= qb * 32

    q, k, v = tensors(70, 40)
    out, lse = _gathered_attention(plan_of(watched, full=left_of_diagonal), q, k, v, 0.3, {})
    assert_within(out, lse, q, k, v, mask_of(causal, 70, 40, {}, 1, 1), 0.3)
    asked.clear()
    q, k, v = tensors(64, 32)
    _gathered_attention(plan_of(watched, full=lambda qb, kb, h: qb >= 1), q, k, v, 0.3, {})
    assert set(asked) == {0, 1}


@pytest.mark.parametrize("kv_heads", [False, True])
@pytest.mark.parametrize("heads_in_table", [False, True])
def test_heads(kv_heads: bool, heads_in_table: bool) -> None:
    count = 2 if kv_heads else 4
    plan = plan_of(
        of_head, by_head=True, kv_heads=kv_heads, heads=count if heads_in_table else 1
    )
    q, k, v = tensors(90, 75)
    out, lse = _gathered_attention(plan, q, k, v, 0.3, {})
    mask = mask_of(of_head, 90, 75, {}, 1, count).repeat_interleave(4 // count, 1)
    assert_within(out, lse, q, k, v, mask, 0.3)


@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_of_a_batch(batch: int) -> None:
    make = torch.Generator().manual_seed(0)
    doc = torch.randint(0, 4, (batch, 80), generator=make)
    q, k, v = tensors(80, 80, batch=3)
    out, lse = _gathered_attention(plan_of(packed), q, k, v, 0.3, {"doc": doc})
    mask = mask_of(packed, 80, 80, {"doc": doc}, batch, 1)
    assert_within(out, lse, q, k, v, mask, 0.3)


def biased(dot: Any, q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    return dot - (q - k).abs() * 0.1 * (h + 1)


def capped(dot: Any, q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
    return 0.5 * torch.tanh((dot - (q - k) * 0.01) * 2)


def dense_scores(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, score: Any, by_head: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend densely in the dtype of q, with a score."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    dot = q @ k.mT * 0.3
    at = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    rows = [
        score(dot[:, h], *at, h if by_head else 0, 0, q.shape[2], k.shape[2], {})
        for h in range(q.shape[1])
    ]
    scores = torch.stack(rows, 1).masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -math.inf, 0)[..., None]).exp()
    return weights.to(v.dtype) @ v, lse


@pytest.mark.parametrize("score", [biased, capped])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_scores(score: Any, dtype: torch.dtype) -> None:
    additive = score is biased
    plan = plan_of(late, by_head=additive, score=score, additive=additive)
    for nq, nk in ((70, 33), (200, 150)):
        q, k, v = tensors(nq, nk, dtype=dtype, value_dim=24)
        out, lse = _gathered_attention(plan, q, k, v, 0.3, {})
        mask = mask_of(late, nq, nk, {}, 1, 1)
        exact, exact_lse = dense_scores(
            q.double(), k.double(), v.double(), mask, score, additive
        )
        bound = error_bound(q, k, v, mask, 0.3)
        assert float((out.double() - exact).abs().max()) <= bound.out
        assert torch.equal(torch.isneginf(lse), torch.isneginf(exact_lse))
        there = torch.isfinite(exact_lse)
        assert float((lse - exact_lse)[there].abs().max()) <= bound.lse + 1e-5


@pytest.mark.parametrize(
    "limits",
    [
        {"_KEYS_AT_ONCE": 32, "_SCORES_AT_ONCE": 2000},
        {"_COPY_BYTES": 4000},
        {"_WORTH_A_CALL_BYTES": 0},
        {"_WORTH_A_CALL_BYTES": 1 << 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("score", [None, capped])
def test_portions_do_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], score: Any
) -> None:
    """Portions of few keys, lanes and rows; keys as views and as copies."""
    for name, value in limits.items():
        monkeypatch.setattr(cg, name, value)
    plan = plan_of(late, score=score, additive=score is None)
    q, k, v = tensors(130, 150)
    out, lse = _gathered_attention(plan, q, k, v, 0.3, {})
    mask = mask_of(late, 130, 150, {}, 1, 1)
    if score is None:
        assert_within(out, lse, q, k, v, mask, 0.3)
    else:
        exact, _ = dense_scores(q.double(), k.double(), v.double(), mask, score, False)
        torch.testing.assert_close(out, exact.float(), atol=1e-5, rtol=0)


def test_keys_are_views_where_tiles_follow_each_other() -> None:
    tiles = torch.tensor([[0, 1], [1, 2], [2, 3], [5, 9], [7, 8], [3, 4], [3, 4]])
    found = [(rows.tolist(), step) for rows, step in cg._equal_steps(tiles, 2)]
    assert found == [([0, 1, 2], 1), ([5, 6], 0), ([3, 4], None)]
    assert [(r.tolist(), s) for r, s in cg._equal_steps(tiles[:1], 1)] == [([0], 0)]


def test_strided_inputs() -> None:
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors(70, 64))
    out, _ = _gathered_attention(plan_of(causal), q, k, v, 0.3, {})
    exact, _ = reference(q, k, v, mask_of(causal, 70, 64, {}, 1, 1), 0.3)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=0)


def test_rows_that_see_the_same_tiles_whole_are_stacked() -> None:
    rows = torch.arange(22)
    tiles = torch.tensor([[1, 4]] * 18 + [[1, 5]] * 2 + [[2, 5]] * 2)
    whole = torch.tensor([True] * 21 + [False])
    found = [(first.tolist(), stack) for first, stack in cg._equal_tiles(rows, tiles, whole)]
    assert found == [([20, 21], 1), ([16, 18], 2), ([0], 16)]


def test_stacked_rows() -> None:
    """Blocks of rows with equal keys, gathered once, beside rows with masks; heads grouped."""

    def blocks(q: Any, k: Any, h: Any, b: Any, nq: int, nk: int, data: Any) -> Any:
        return ((q // 96 + k // 32) % 3 != 1) | (k <= q - 300)

    def full(qb: Any, kb: int, h: Any) -> Any:
        return (qb // 3 + kb // 2) % 3 != 1

    for nk in (320, 315):
        q, k, v = tensors(410, nk, value_dim=24)
        out, lse = _gathered_attention(plan_of(blocks, full=full), q, k, v, 0.3, {})
        assert_within(out, lse, q, k, v, mask_of(blocks, 410, nk, {}, 1, 1), 0.3)
