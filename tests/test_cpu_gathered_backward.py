"""The gathered CPU executor's backward: masks of data, scores, sinks, learned tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import attnc
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.test_data_op import TEXTS, inputs_of, tensors

MORE: dict[str, str] = {
    "coarse": """
        pattern coarse(input keep: bool[6, 6]) = { q -> k : keep[q div 100][k div 100] or q == k }
    """,
    "alibi_learned": """
        score bias(input slope: real[heads]) heads h: 4 = { q -> k, h : -slope[h] * (q - k) }
        attention alibi_learned heads h: 4 = softmax(dot + bias, over: { q -> k : k <= q })
    """,
    "relative": """
        score bias(input table: real[4, *], input rows: real[n]) heads h: 4 =
            { q -> k, h : table[h][q - k + 20] + 2 * rows[k] }
        attention relative heads h: 4 = softmax(dot + bias, over: { q -> k : abs(q - k) <= 30 })
    """,
    "weighted": """
        score weight(input w: real[n]) = { q -> k : log(w[k]) }
        attention weighted = softmax(dot + weight, over: { q -> k : k <= q })
    """,
    "gated": """
        score bias(input a: real[n], input c: real[n]) =
            { q -> k : if q == k then 0 else max(a[k], c[q]) * abs(a[q]) }
        attention gated = softmax(2 * tanh(dot / 2) * 1.5 + bias, over: { q -> k : k <= q })
    """,
}
LEARNED = ("alibi_learned", "relative", "weighted", "gated", "capped", "sink")


def given(name: str, n: int, batch: int | None = None) -> dict[str, Any]:
    make = torch.Generator().manual_seed(n)
    front = () if batch is None else (batch,)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*front, *shape, generator=make)

    match name:
        case "coarse":
            return {"keep": torch.rand(6, 6, generator=make) < 0.5}
        case "alibi_learned":
            return {"slope": some(4) * 0.1}
        case "relative":
            return {"table": some(4, 45), "rows": some(n)}
        case "weighted":
            return {"w": some(n).abs() + 0.01}
        case "gated":
            return {"a": some(n), "c": some(n)}
    return inputs_of(name, n)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    ops: dict[str, Any] = {}

    def compile_text(name: str) -> Any:
        if name not in ops:
            text = {**TEXTS, **MORE}[name]
            ops[name] = attnc.compile(
                attnc.parse(text, pattern=name), head_dim=16, tile=(16, 16)
            )
        return ops[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield compile_text


class Case:
    """An op, its arguments, and what it must compute."""

    def __init__(self, op: Any, n: tuple[int, int], inputs: dict[str, Any], **shape: Any) -> None:
        self.module = SimpleNamespace(**op._function.__globals__)
        self.q, self.k, self.v = tensors(*n, **shape)
        if self.q.dtype == torch.float64:
            inputs = {
                name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for name, x in inputs.items()
            }
        self.pattern = op._ir
        self.scale = 0.3 if self.pattern.scale is None else float(self.pattern.scale)
        self.extents = inputs.get("extents")
        self.inputs = {name: x for name, x in inputs.items() if name != "extents"}
        self.extra: tuple[Any, ...] = ()
        self.tensors = [one.name for one in getattr(self.module, "_INPUTS", ()) if one.shape]
        if hasattr(self.module, "_INPUTS"):
            asked = {one.name: self.inputs.get(one.name) for one in self.module._INPUTS}
            self.extra = self.module._arguments(self.q, self.k, asked, self.extents)
        self.learned = [
            name for name in self.tensors
            if name in self.inputs and self.inputs[name].is_floating_point()
        ]  # fmt: skip

    def backward(self, grad_out: Any, grad_lse: Any = None, needs: Any = None) -> list[Any]:
        given = (self.q, self.k, self.v)
        out, lse = self.module._cpu_forward(*given, self.scale, *self.extra)
        needs = needs or [True] * 3 + [name in self.learned for name in self.tensors]
        grads = (grad_out, grad_lse, self.scale)
        *found, learned = self.module._cpu_backward(
            *given, out, lse, *grads, *self.extra, needs=needs
        )
        assert len(learned) == len(self.tensors)
        return [*found, *(x for x, n in zip(learned, self.tensors, strict=True)
                          if n in self.learned)]  # fmt: skip

    def check(self, with_lse: bool = True) -> None:
        make = torch.Generator().manual_seed(1)
        grad_out = torch.randn(
            (*self.q.shape[:3], self.v.shape[3]), generator=make
        ).to(self.q.dtype)
        grad_lse = torch.randn(self.q.shape[:3], generator=make) if with_lse else None
        call = Backward(
            pattern=self.pattern, q=self.q, k=self.k, v=self.v, grad_out=grad_out,
            grad_lse=grad_lse, inputs=self.inputs, extents=self.extents, scale=self.scale,
        )  # fmt: skip
        assert call.learned == tuple(self.learned)
        assert_gradients_within(self.backward(grad_out, grad_lse), call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [n for n in (*TEXTS, *MORE) if n != "static_kv_heads"])
def test_gradients_are_within_the_error_rule(compiled: Any, name: str, dtype: torch.dtype) -> None:
    for n in (7, 77):
        Case(compiled(name), (n, n), given(name, n), dtype=dtype).check(n == 77)


def test_stacked_rows(compiled: Any) -> None:
    """Rows that see the same tiles whole are run as one."""
    Case(compiled("coarse"), (410, 410), given("coarse", 410)).check()


@pytest.mark.parametrize("name", ["phase", "capped", "alibi", "relative"])
def test_lengths_that_differ(compiled: Any, name: str) -> None:
    for n in ((33, 90), (90, 33), (1, 50)):
        Case(compiled(name), n, given(name, n[1])).check()


@pytest.mark.parametrize("name", ["documents", "relative", "weighted"])
def test_inputs_with_a_batch_dimension(compiled: Any, name: str) -> None:
    """Gradients of learned inputs have it too; of one item they are sums over the batch."""
    for batch in (1, 3):
        if name == "documents":
            inputs = {"doc": torch.randint(0, 3, (batch, 40))}
        else:
            inputs = given(name, 40, batch)
        Case(compiled(name), (40, 40), inputs, batch=3).check()


@pytest.mark.parametrize(
    "limits", [{"_WEIGHTS_AT_ONCE": 1 << 11}, {"_COPIED_AT_ONCE": 1 << 13}, {"_COPY_BYTES": 4000}],
    ids=str,
)
@pytest.mark.parametrize("name", ["documents", "vertical_slash", "relative", "capped"])
def test_portions_do_not_change_the_result(
    compiled: Any, monkeypatch: pytest.MonkeyPatch, name: str, limits: dict[str, int]
) -> None:
    where = compiled(name)._function.__globals__
    for limit, value in limits.items():
        monkeypatch.setitem(where, limit, value)
    Case(compiled(name), (130, 130), given(name, 130)).check()


@pytest.mark.parametrize("name", ["documents", "relative", "sink"])
def test_only_what_is_wanted(compiled: Any, name: str) -> None:
    case = Case(compiled(name), (50, 50), given(name, 50))
    grad_out = torch.ones_like(case.q)
    whole = case.backward(grad_out)
    for wanted in range(len(whole)):
        needs = [i == wanted for i in range(3)] + [False] * len(case.tensors)
        if wanted >= 3:
            needs[3 + case.tensors.index(case.learned[wanted - 3])] = True
        found = case.backward(grad_out, needs=needs)
        assert [x is None for x in found] == [i != wanted for i in range(len(whole))]
        assert torch.equal(found[wanted], whole[wanted])


@pytest.mark.parametrize("name", ["documents", "relative", "gated", "sink"])
def test_two_runs_are_equal(compiled: Any, name: str) -> None:
    case = Case(compiled(name), (300, 300), given(name, 300))
    grad_out = torch.randn_like(case.q)
    one, two = case.backward(grad_out), case.backward(grad_out)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("nq", "nk"), [(0, 0), (5, 0)])
def test_length_0(compiled: Any, nq: int, nk: int) -> None:
    """Without keys only the sink learns: lse is its logit."""
    module = SimpleNamespace(**compiled("sink")._function.__globals__)
    q, k, v = tensors(nq, nk)
    logit = torch.tensor([0.5, -3.0, 2.0, -math.inf])
    lse = logit[None, :, None].expand(2, 4, nq).contiguous()
    extra = module._arguments(q, k, {"logit": logit}, None)
    grads = module._cpu_backward(
        q, k, v, torch.zeros_like(q), lse, torch.ones_like(q), torch.ones_like(lse), 0.3, *extra,
        needs=(True,) * 4,
    )
    assert [x.shape for x in grads[:3]] == [q.shape, k.shape, v.shape]
    assert not any(x.any() for x in grads[:3])
    assert grads[3][0].tolist() == [2 * nq, 2 * nq, 2 * nq, 0]


def test_scores_of_minus_infinity_change_nothing(compiled: Any) -> None:
    """The slope of log(0) is infinite; a weight of 0 passes no gradient on."""
    w = torch.ones(40)
    w[3:9] = 0
    case = Case(compiled("weighted"), (40, 40), {"w": w})
    dq, dk, dv, dw = case.backward(torch.randn_like(case.q))
    assert all(x.isfinite().all() for x in (dq, dk, dv, dw))
    assert not dk[:, :, 3:9].any()
    assert not dw[3:9].any()
