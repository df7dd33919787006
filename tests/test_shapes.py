"""Every shape that an op takes, forward and backward: on a CPU, and by the kernels interpreted."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc.runtime.reference import assert_within
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.kernels import DEVICE, skip_without_interpreter

SIDES = ["cpu", "kernel"]
TEXT = "pattern p = { q -> k : k <= q and (k < 4 or q - k < 20) }"


@cache
def compiled(head_dim: int, value_dim: int, dtype: str) -> Any:
    return attnc.compile(
        attnc.parse(TEXT), head_dim=head_dim, value_dim=value_dim, dtype=dtype, tile=(16, 16),
        cache=False,
    )  # fmt: skip


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def check(side: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Hold out, lse and gradients against float64."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    op = compiled(q.shape[3], v.shape[3], "fp16" if half else "fp32")
    grad_out = draw(*q.shape[:3], v.shape[3], dtype=q.dtype)
    grad_lse = draw(*q.shape[:3])
    if side == "cpu":
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out, lse = op(*leaves, return_lse=True)
        found = list(torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse)))
    else:
        skip_without_interpreter()
        q, k, v, grad_out, grad_lse = (t.to(DEVICE) for t in (q, k, v, grad_out, grad_lse))
        module, scale = op._function.__globals__, q.shape[3] ** -0.5
        out = torch.full_like(grad_out, torch.nan)
        lse = torch.full_like(grad_lse, torch.nan)
        module["_gpu_forward"](q, k, v, scale, out, lse)
        *found, _ = module["_gpu_backward"](
            q, k, v, out, lse, grad_out, grad_lse, scale, needs=[True] * 3
        )
    call = Backward(pattern=op._ir, q=q, k=k, v=v, grad_out=grad_out, grad_lse=grad_lse)
    assert_within(out.detach(), lse.detach(), q, k, v, call.terms(q, k, {}))
    assert_gradients_within(found, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("d", "dv"), [(16, 16), (33, 47), (72, 72), (80, 256), (96, 96), (160, 160), (256, 256)]
)
@pytest.mark.parametrize("side", SIDES)
def test_head_dims(side: str, d: int, dv: int, dtype: torch.dtype) -> None:
    """Powers of two or not, odd ones, values wider than keys."""
    check(side, draw(1, 2, 37, d, dtype=dtype), *(draw(1, 1, 37, w, dtype=dtype) for w in (d, dv)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(5, 1), (6, 3), (7, 7), (128, 1)])
@pytest.mark.parametrize("side", SIDES)
def test_heads(side: str, heads: int, kv_heads: int) -> None:
    """Groups of any size, no power of two either."""
    batch, n = (2, 19) if heads < 128 else (1, 7)
    check(side, draw(batch, heads, n, 16), *(draw(batch, kv_heads, n, w) for w in (16, 24)))


@pytest.mark.parametrize("lengths", [(1, 1), (1, 59), (59, 1), (31, 47)])
@pytest.mark.parametrize("side", SIDES)
def test_lengths(side: str, lengths: tuple[int, int]) -> None:
    """One token, primes, more queries than keys and fewer."""
    nq, nk = lengths
    check(side, draw(2, 4, nq, 16), draw(2, 2, nk, 16), draw(2, 2, nk, 16))


@pytest.mark.parametrize("shape", [(0, 9, 9), (2, 0, 9), (2, 9, 0), (0, 0, 0)])
@pytest.mark.parametrize("side", SIDES)
def test_nothing(side: str, shape: tuple[int, int, int]) -> None:
    """No item, no query, no key: zeros of the right shapes."""
    batch, nq, nk = shape
    check(side, draw(batch, 4, nq, 16), draw(batch, 2, nk, 16), draw(batch, 2, nk, 24))


@pytest.mark.parametrize("side", SIDES)
def test_layouts(side: str) -> None:
    """[B, N, H, D] seen as [B, H, N, D]; q, k and v from one tensor; a head for all items."""
    check(side, *(draw(2, 21, h, 16).transpose(1, 2) for h in (4, 2, 2)))
    packed = draw(2, 21, 3, 2, 16)
    check(side, *(packed[:, :, i].transpose(1, 2) for i in range(3)))
    check(side, draw(2, 2, 21, 16), *(draw(1, 1, 21, 16).expand(2, 2, 21, 16) for _ in range(2)))


def test_no_product_takes_tf32() -> None:
    """Products of float32 are float32, in all kernels, whatever torch allows."""
    op = compiled(16, 16, "fp32")
    for source in (op.source, Path(op.decode.__globals__["__file__"]).read_text(encoding="utf-8")):
        calls = [
            node for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.dot"
        ]  # fmt: skip
        assert len(calls) >= 2
        for call in calls:
            assert "input_precision='ieee'" in ast.unparse(call)
