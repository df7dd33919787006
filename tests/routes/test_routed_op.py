"""The whole op of each method: outputs and gradients are those of the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attnc.compiler.ir.routed import Combined, Routed
from attnc.compiler.passes.build_routed import is_causal
from attnc.compiler.route_oracle import attend, mask
from attnc.runtime.options import Options, options
from attnc.runtime.routed import RoutedOp, compile_routed
from tests.routes.cases import CASES, Case, Shape

NAMES = [name for name, case in CASES.items() if not isinstance(case(), Combined)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def chosen(head_dim: int = 16, value_dim: int | None = None, align: str = "top-left") -> Options:
    return options(
        head_dim=head_dim, value_dim=value_dim, dtype="fp32", target=None, tile=None,
        cpu_tile=None, align=align,
    )  # fmt: skip


def compiled(routed: Routed, shape: Shape) -> RoutedOp:
    return compile_routed(routed, chosen(shape.d, shape.dv, routed.base.align), keep=False)


def drawn(case: Case, seed: int, **sizes: int) -> tuple[Shape, list[Any], dict[str, Any]]:
    shape = case.shape(d=16, dv=16, **sizes) if "dv" not in sizes else case.shape(d=16, **sizes)
    rng = np.random.default_rng(seed)
    sides = [(shape.hq, shape.nq, shape.d), (shape.hkv, shape.nk, shape.d),
             (shape.hkv, shape.nk, shape.dv)]  # fmt: skip
    tensors = [rng.normal(size=(shape.b, *side)) for side in sides]
    return shape, tensors, case.inputs(shape, rng)


def reference_gradients(
    routed: Routed, q: Any, k: Any, v: Any, grad: Any, grad_lse: Any, seen: Any
) -> list[Any]:
    """Differentiate dense float64 attention under a mask."""
    q, k, v = (torch.tensor(x, requires_grad=True) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    s = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    s = s.masked_fill(~torch.tensor(seen), float("-inf"))
    empty = ~torch.tensor(seen).any(-1)
    out = s.masked_fill(empty[..., None], 0.0).softmax(-1).masked_fill(empty[..., None], 0.0)
    lse = s.masked_fill(empty[..., None], 0.0).logsumexp(-1).masked_fill(empty, 0.0)
    loss = ((out @ v.repeat_interleave(group, 1)) * grad).sum() + (lse * grad_lse).sum()
    return list(torch.autograd.grad(loss, (q, k, v)))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_definition(name: str) -> None:
    case = CASES[name]
    routed = case()
    op = None
    for seed, sizes in enumerate([{}, {"nq": 64, "nk": 64}, {"nq": 5, "nk": 5}]):
        if seed and (case.fixed or case.decode):
            continue
        shape, (q, k, v), inputs = drawn(case, seed, **sizes)
        op = op or compiled(routed, shape)
        given = {n: torch.tensor(x) for n, x in inputs.items()}
        tensors = [torch.tensor(x) for x in (q, k, v)]
        expected, lse = attend(routed, q, k, v, inputs)
        if lse is None:
            out = op(*tensors, **given)
        else:
            out, own = op(*tensors, return_lse=True, **given)
            np.testing.assert_allclose(own.numpy(), lse, atol=1e-9)
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("name", ["moba", "nsa_selected", "dsa", "xattention", "vmoba_cells"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_keeps_the_error_rule(name: str, dtype: torch.dtype) -> None:
    """Selections are made in float64 here, so that only the attention rounds."""
    case = CASES[name]
    routed = case()
    shape, arrays, inputs = drawn(case, 3)
    op = compiled(routed, shape)
    given = {n: torch.tensor(x) for n, x in inputs.items()}
    q, k, v = (torch.tensor(x).to(dtype) for x in arrays)
    exact = [x.double() for x in (q, k, v)]
    selection = op.select(*exact[:2], **given)
    seen = torch.tensor(mask(routed, exact[0].numpy(), exact[1].numpy(), inputs))
    out = op(q, k, v, selection=selection, **given)
    expected = op(*exact, selection=selection, **given)
    group = shape.hq // shape.hkv
    s = (q @ k.repeat_interleave(group, 1).transpose(-1, -2)) * shape.d**-0.5
    dense = s.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    dense = dense @ v.repeat_interleave(group, 1)
    ulps = {torch.float32: 8, torch.float64: 256}.get(dtype, 1)
    allowed = 2 * (dense.double() - expected).abs().max()
    allowed += ulps * torch.finfo(dtype).eps * expected.abs().max()
    assert (out.double() - expected).abs().max() <= allowed
    assert out.dtype == dtype


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(("mosa", "routing"))])
def test_gradients_are_those_of_dense_attention_under_the_mask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where training is refused, too: what it would compute is right."""
    case = CASES[name]
    routed = case()
    shape, (q, k, v), inputs = drawn(case, 5, b=1)
    op = compiled(routed, shape)
    monkeypatch.setitem(op._function.__globals__, "_REFUSES_TRAINING", "")
    rng = np.random.default_rng(1)
    grad = torch.tensor(rng.normal(size=(1, shape.hq, shape.nq, shape.dv)))
    seen = mask(routed, q, k, inputs)
    grad_lse = torch.tensor(rng.normal(size=grad.shape[:3])) * torch.tensor(seen).any(-1)
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    given = {n: torch.tensor(x) for n, x in inputs.items()}
    out, lse = op(*tensors, return_lse=True, **given)
    lse = lse.masked_fill(lse == -np.inf, 0.0)
    found = torch.autograd.grad((out * grad).sum() + (lse * grad_lse).sum(), tensors)
    expected = reference_gradients(routed, q, k, v, grad, grad_lse, seen)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own.numpy(), other.numpy(), atol=1e-9)


@pytest.mark.parametrize("name", ["mosa", "routing_transformer_open"])
def test_gradients_of_members(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences, the router's as well: the score multiplies what a member gets."""
    case = CASES[name]
    shape, arrays, inputs = drawn(case, 2, b=1, nq=12, nk=12, hq=2, hkv=1)
    op = compiled(case(), shape)
    monkeypatch.setitem(op._function.__globals__, "_REFUSES_TRAINING", "")
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    given = {n: torch.tensor(x, requires_grad=n == "router") for n, x in inputs.items()}
    selection = op.select(*tensors[:2], **given)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        *qkv, router = tensors
        return op(*qkv, selection=selection, **({"router": router} if "router" in given else given))

    learned = given.get("router", torch.zeros(1, dtype=torch.float64))
    assert torch.autograd.gradcheck(run, (*tensors, learned), fast_mode=True)


def test_a_selection_that_looks_ahead_is_not_trained_through() -> None:
    case = CASES["xattention"]
    shape, arrays, _ = drawn(case, 0)
    op = compiled(case(), shape)
    q, k, v = (torch.tensor(x, requires_grad=True) for x in arrays)
    with pytest.raises(RuntimeError, match="depends on later tokens"):
        op(q, k, v)
    with torch.no_grad():
        op(q, k, v)
    assert is_causal(case().base)
    assert not compiled(CASES["moba"](), shape).plan.refuses_training
