"""Executors of routes beside the oracle: what is selected, what comes out, and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnc.compiler.ir.routed import Combined
from tests.routes.cases import CASES
from tests.routes.data import real
from tests.routes.dense_op import DenseOp
from tests.routes.executors import (
    Call,
    Selection,
    call_of,
    check_gradients,
    check_output,
    check_selection,
)


def made(name: str, dtype: torch.dtype = torch.float32, **sizes: int) -> tuple[Any, Call]:
    """Return a method and the tensors of a call of it."""
    shape = CASES[name].shape(**sizes)
    inputs = CASES[name].inputs(shape, np.random.default_rng(2))
    return CASES[name](), call_of(real(shape, 4), inputs, dtype)


# ------------------------------------------------------------------------ the checks themselves


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["moba", "minference_vertical_slash", "mosa", "nsa", "seer"])
def test_dense_attention_passes(name: str, dtype: torch.dtype) -> None:
    method, call = made(name, dtype)
    op = DenseOp(method)
    selection = None if isinstance(method, Combined) else check_selection(op, method, call)
    check_output(op, method, call, selection)
    check_gradients(op, method, call)


class Wrong(DenseOp):
    """An op with something wrong in it."""

    def __init__(self, attention: Any, what: str) -> None:
        super().__init__(attention)
        self.what = what

    def select(self, q: Tensor, k: Tensor, **inputs: Any) -> Selection:
        found = dict(super().select(q, k, **inputs))
        for name, tensors in found.items():
            index = tensors[0].clone()
            if self.what == "unit":
                index[0, 0, -1, 0] = index[0, 0, -1, 0] ^ 1
            elif self.what == "order":
                index[..., :2] = index[..., :2].flip(-1)
            found[name] = (index, *tensors[1:])
        return found

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        found = super().__call__(q, k, v, **given)
        if self.what == "lse":
            return found[0], found[1] + 1e-4
        if self.what == "scale":
            return super().__call__(q * 1.001, k, v, **given)
        return super().__call__(q, k, v.detach(), **given) if self.what == "dv" else found


@pytest.mark.parametrize("what", ["unit", "order"])
def test_another_selection_is_found(what: str) -> None:
    method, call = made("moba")
    with pytest.raises(AssertionError):
        check_selection(Wrong(method, what), method, call)


@pytest.mark.parametrize("what", ["lse", "scale"])
def test_another_result_is_found(what: str) -> None:
    method, call = made("moba")
    with pytest.raises(AssertionError):
        check_output(Wrong(method, what), method, call)


def test_another_member_is_found() -> None:
    method, call = made("mosa")
    with pytest.raises(AssertionError):
        check_selection(Wrong(method, "unit"), method, call)


def test_other_gradients_are_found() -> None:
    method, call = made("moba")
    with pytest.raises(AssertionError):
        check_gradients(Wrong(method, "scale"), method, call)
