"""Ops of patterns with inputs, extents, scores and sinks: results, refusals, what torch asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import attnc
from attnc.runtime.reference import assert_within, terms

N = 77
TEXTS: dict[str, str] = {
    "documents": """
        pattern documents(input doc: int[n]) = { q -> k : doc[q] == doc[k] and k <= q }
    """,
    "prefix": """
        pattern prefix(input length: int[docs], input doc: int[n]) =
            { q -> k : doc[q] == doc[k] and (k <= q or k < length[doc[q]]) }
    """,
    "vertical_slash": """
        pattern vertical_slash(input verticals: int[heads, *], input slashes: int[heads, *])
            heads h: 4 = { q -> k, h : k <= q and (k in verticals[h] or q - k in slashes[h]) }
    """,
    "adjacency": """
        pattern adjacency(input near: bool[n, n]) = { q -> k : near[q][k] or q == k }
    """,
    "blocks_of_heads": """
        pattern blocks_of_heads(input keep: bool[kv, rows, rows])
            kv_heads g: 2 = { q -> k, g : keep[g][q div 16][k div 16] }
    """,
    "static_kv_heads": """
        pattern static_kv_heads kv_heads g: 2 = { q -> k, g : 0 <= q - k < 5 + 30 * g }
    """,
    "grid": """
        space image = grid(y, x)
        pattern grid(radius: int = 2) on image =
            { q -> k : abs(q.y - k.y) <= radius and abs(q.x - k.x) <= radius }
    """,
    "phase": """
        pattern phase(input phase: int, input step: int = 3) =
            { q -> k : k <= q and (q - k + phase) mod 7 < step }
    """,
    "computed": """
        pattern computed(input counts: int[docs], input doc: int[n] = repeat(counts)) =
            { q -> k : doc[q] == doc[k] }
    """,
    "alibi": """
        score bias heads h: 4 = { q -> k, h : -0.25 * (h + 1) * (q - k) }
        attention alibi heads h: 4 = softmax(dot + bias, over: { q -> k : k <= q })
    """,
    "capped": """
        fn softcap(s: real, cap: real = 2) = cap * tanh(s / cap)
        score table(input bias: real[4, *]) heads h: 4 = { q -> k, h : bias[h][abs(q - k)] }
        attention capped heads h: 4 = softmax(softcap(dot) + table, over: { q -> k : k <= q - 3 })
    """,
    "sink": """
        pattern near = { q -> k : 3 <= q - k < 40 }
        attention sink(input logit: real[4]) heads h: 4 =
            softmax(dot, over: near, sink: logit[h], scale: 1 / 8)
    """,
}


def tensors(
    nq: int = N, nk: int = N, *, batch: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(nq)
    q, k, v = (
        torch.randn(batch, heads, length, 16, generator=make).to(dtype)
        for heads, length in ((4, nq), (2, nk), (2, nk))
    )
    return q, k, v


def inputs_of(name: str, n: int = N) -> dict[str, Any]:
    """Make inputs of a named text."""
    make = torch.Generator().manual_seed(n)

    def some(*shape: int, most: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=make)

    match name:
        case "documents":
            return {"doc": some(n, most=4).sort().values}
        case "prefix":
            return {"doc": some(n, most=4).sort().values, "length": some(4, most=n)}
        case "vertical_slash":
            slashes = torch.cat([some(4, 3, most=n), -torch.ones(4, 2, dtype=torch.int64)], 1)
            return {"verticals": some(4, 5, most=n), "slashes": slashes}
        case "adjacency":
            return {"near": some(n, n, most=40) == 0}
        case "blocks_of_heads":
            return {"keep": some(2, -(-n // 16), -(-n // 16), most=2) == 0}
        case "grid":
            return {"extents": {"y": 7, "x": n // 7}}
        case "phase":
            return {"phase": 5}
        case "computed":
            return {"counts": torch.tensor([3, 0, n - 5, 2])}
        case "capped":
            return {"bias": torch.randn(4, 40, generator=make)}
        case "sink":
            return {"logit": torch.tensor([0.5, -3.0, 2.0, -math.inf])}
    return {}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Compile a named text once for all tests of this file, in a cache of its own."""
    ops: dict[str, Any] = {}

    def compile_text(name: str) -> Any:
        if name not in ops:
            ops[name] = attnc.compile(
                attnc.parse(TEXTS[name], pattern=name), head_dim=16, tile=(16, 16)
            )
        return ops[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield compile_text


def check(op: Any, q: Any, k: Any, v: Any, given: dict[str, Any], **options: Any) -> None:
    """Hold an op against float64, by the definition of its pattern."""
    out, lse = op(q, k, v, return_lse=True, **given, **options)
    extents = given.get("extents")
    plain = {name: x for name, x in given.items() if name != "extents"}
    expected = terms(op._ir, q, k, plain, extents)
    scale = options.get("scale", None if op._ir.scale is None else float(op._ir.scale))
    assert_within(out, lse, q, k, v, expected, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_result_is_within_the_error_rule(compiled: Any, name: str, dtype: torch.dtype) -> None:
    op = compiled(name)
    for n in (7, 77):
        check(op, *tensors(n, n, dtype=dtype), inputs_of(name, n))
