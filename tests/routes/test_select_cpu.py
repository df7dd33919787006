"""Selections printed for a CPU are those of the definition, in order, on exact data and on ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.routes.paste import used
from attnc.codegen.routes.selections import LIBRARIES, emit_select
from attnc.compiler.ir.routed import Routed
from attnc.compiler.route_oracle import members, relation
from tests.routes.cases import CASES, Shape, whole

NAMES = [name for name, case in CASES.items() if isinstance(case(), Routed)]
SHAPES = [{}, {"nq": 64, "nk": 64}, {"nq": 5, "nk": 5}, {"nq": 1, "nk": 1}, {"hq": 2, "b": 1}]


def select(routed: Routed, name: str, q: Any, k: Any, inputs: dict[str, Any]) -> Any:
    """Run the printed selection of a route."""
    scope: dict[str, Any] = {"NAME": "test"}
    printed = f"{HOST_HELPERS}\n\n{emit_select(routed)}"
    exec(compile(f"{used(printed, *LIBRARIES)}\n\n\n{printed}", "<select>", "exec"), scope)
    return scope[f"_select_{name}"](q, k, inputs)


def drawn(name: str, sizes: dict[str, int], exact: bool) -> tuple[Routed, Shape, Any, Any, Any]:
    case = CASES[name]
    shape = case.shape(**sizes)
    rng = np.random.default_rng(sum(map(ord, name)) + shape.nq)
    draw = (lambda *s: whole(rng, *s)) if exact else (lambda *s: rng.normal(size=s))
    q = draw(shape.b, shape.hq, shape.nq, shape.d)
    k = draw(shape.b, shape.hkv, shape.nk, shape.d)
    return case(), shape, q, k, case.inputs(shape, rng)


def tensors(inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {name: torch.as_tensor(x, dtype=dtype) for name, x in inputs.items()}


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_selections_are_those_of_the_definition(name: str, sizes: dict[str, int]) -> None:
    routed, _, q, k, inputs = drawn(name, sizes, exact=False)
    for route in routed.routes:
        found = select(routed, route.name, torch.tensor(q), torch.tensor(k),
                       tensors(inputs, torch.float64))  # fmt: skip
        if route.emit == "members":
            expected = members(routed, route, q, k, inputs)
            for index, mask in ((found[0], expected.queries), (found[1], expected.keys)):
                listed = np.zeros(mask.shape, dtype=bool)
                for *at, token in np.argwhere(index.numpy() >= 0):
                    listed[(*at, index[(*at, token)].item())] = True
                assert (listed == mask).all()
            continue
        index, count = found
        mask = relation(routed, route, q, k, inputs)
        assert index.shape[:3] == count.shape == mask.shape[:3]
        assert index.shape[3] == route.room(mask.shape[3])
        for at in np.ndindex(*mask.shape[:3]):
            chosen = np.flatnonzero(mask[at])
            assert index[at][: len(chosen)].tolist() == chosen.tolist()
            assert index[at][len(chosen) :].tolist() == [-1] * (index.shape[3] - len(chosen))
            assert count[at] == len(chosen)
