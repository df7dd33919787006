"""Executors of routes beside the oracle: what is selected, what comes out, and its gradients."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from torch import Tensor

from attnc.compiler.ir.routed import Combined
from tests.routes.cases import CASES
from tests.routes.compiled import compiled, op_of, trained
from tests.routes.data import exact, real, tied
from tests.routes.dense_op import DenseOp
from tests.routes.executors import (
    Call,
    Selection,
    call_of,
    check_gradients,
    check_output,
    check_selection,
)
from tests.routes.strategies import attentions, shapes
from tests.routes.test_references import OUTPUTS, ROUNDED
from tests.routes.zoo_ir import (
    dsa,
    nsa_selected,
    routing_transformer,
    seer,
    top_theta,
    xattention,
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


# ------------------------------------------------------------------------------- compiled, on CPU

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PLAIN = [n for n, case in CASES.items() if case.fixed is None]
SIZES: list[dict[str, int]] = [
    {"nq": 1, "nk": 1}, {"nq": 7, "nk": 7}, {"nq": 64, "nk": 64}, {"hkv": 4}, {"hkv": 1, "b": 1},
]  # fmt: skip


def check_all(name: str, call: Call) -> None:
    """Compare selection, results and gradients of a compiled op with the oracle."""
    method, op = CASES[name](), op_of(name)
    selection = None if isinstance(method, Combined) else check_selection(op, method, call)
    check_output(op, method, call)
    if selection is not None:
        check_output(op, method, call, selection)
    with trained(op):
        check_gradients(op, method, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_method_in_every_type(name: str, dtype: torch.dtype) -> None:
    check_all(name, made(name, dtype, d=16, dv=16)[1])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_every_method_at_other_sizes(name: str, sizes: dict[str, int]) -> None:
    sizes = {**sizes, "d": 16, "dv": 16}
    if CASES[name].decode and "nq" in sizes:
        sizes["nq"] = min(sizes["nq"], 3)
    check_all(name, made(name, torch.float32, **sizes)[1])


@pytest.mark.parametrize(
    "sizes", [{"nq": 5, "nk": 37}, {"nq": 37, "nk": 5}, {"nq": 1, "nk": 40}], ids=str
)
@pytest.mark.parametrize("name", ["moba", "vmoba", "minference_block", "sla", "sparge", "dsa"])
def test_other_lengths_than_those_of_the_keys(name: str, sizes: dict[str, int]) -> None:
    check_all(name, made(name, torch.float32, d=16, dv=16, **sizes)[1])


@pytest.mark.parametrize("name", [n for n in CASES if n not in ROUNDED and n not in OUTPUTS])
@pytest.mark.parametrize("data", [tied, exact])
def test_equals_are_taken_in_order(name: str, data: Any) -> None:
    shape = CASES[name].shape(d=16, dv=16, nk=40, **({} if CASES[name].decode else {"nq": 40}))
    inputs = CASES[name].inputs(shape, np.random.default_rng(2))
    method = CASES[name]()
    check_selection(op_of(name), method, call_of(data(shape, 6), inputs, torch.float32))


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(attentions(), shapes())
def test_any_route(method: Any, shape: Any) -> None:
    """Random routes: every combination of grains, scores, reductions, pools, budgets, keeps."""
    call = call_of(real(shape), {}, torch.float64)
    op = compiled(method, shape.d, shape.dv)
    selection = check_selection(op, method, call)
    check_output(op, method, call, selection)
    with trained(op):
        check_gradients(op, method, call)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(attentions(), shapes())
def test_any_route_widely(method: Any, shape: Any) -> None:
    call = call_of(real(shape), {}, torch.float64)
    op = compiled(method, shape.d, shape.dv)
    check_output(op, method, call, check_selection(op, method, call))


# ------------------------------------------------------------------------------ errors, at the call

WRONG: dict[str, tuple[Any, dict[str, tuple[int, ...]], str]] = {
    "a gate of other blocks": (
        seer(), {"gate": (2, 4, 5, 4)}, "score of the route seer has the shape (2, 4, 5, 4)",
    ),
    "a gate of other heads": (seer(), {"gate": (2, 3, 5, 5)}, "a divisor of 4, 5 or 1, 5]"),
    "no gate": (seer(), {}, "gate is missing"),
    "thresholds of other heads": (top_theta(), {"theta": (3,)}, "expected [4]"),
    "keys of other tokens": (
        dsa(), {"q_index": (2, 3, 37, 4), "k_index": (2, 1, 36, 4), "w_index": (2, 37, 3)},
        "the keys of the route dsa have the shape (2, 1, 36, 4), expected [2 or 1, 1, 37, 4]",
    ),
    "weights of other heads": (
        dsa(), {"q_index": (2, 3, 37, 4), "k_index": (2, 1, 37, 4), "w_index": (2, 37, 4)},
        "the weights of the route dsa have the shape (2, 37, 4), expected [2 or 1, 37, 3]",
    ),
    "other windows": (
        nsa_selected(learned=True), {"k_cmp": (2, 2, 9, 16)}, "[2 or 1, a divisor of 4, 17, 16]",
    ),
    "other centroids": (
        routing_transformer(), {"centroids": (4, 2, 16)}, "expected [a divisor of 4, 3, 16]",
    ),
    "a row over its capacity": (
        xattention(mass=Fraction(1), capacity=3), {}, "selects 5, its capacity is 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_at_the_call(what: str) -> None:
    method, inputs, said = WRONG[what]
    op = compiled(method, 16, 16)
    call = made("moba", d=16, dv=16)[1]
    given = {name: torch.zeros(shape) for name, shape in inputs.items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        op.select(call.q, call.k, **given)
    with pytest.raises(ValueError, match=re.escape(said)):
        op(call.q, call.k, call.v, **given)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    op, call = op_of("moba"), made("moba", d=16, dv=16)[1]
    call.k[0, 0, 3, 1] = value
    with pytest.raises(ValueError, match="the route moba has scores that are not finite"):
        op.select(call.q, call.k)


def test_a_full_row_may_drop_its_lowest_scores() -> None:
    method = xattention(mass=Fraction(1), capacity=3, overflow="drop")
    call = made("moba", torch.float64, d=16, dv=16)[1]
    found = check_selection(compiled(method, 16, 16), method, call)
    assert found["xattention"][0].shape[-1] == 3
