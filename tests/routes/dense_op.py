"""The slowest executor: an op that selects by the oracle and attends densely. Tests of tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnc.compiler import route_oracle as oracle
from attnc.compiler.ir.routed import AnyAttention, Routed
from tests.routes.executors import Call, Selection, dense


class DenseOp:
    """Selects by the oracle; attends in float64 under a mask, and rounds the result."""

    def __init__(self, attention: AnyAttention) -> None:
        self.attention = attention

    def select(self, q: Tensor, k: Tensor, **inputs: Any) -> Selection:
        """Return index and count of each route, or the members."""
        assert isinstance(self.attention, Routed)
        call = Call(q, k, k, inputs)
        given = (q.double().numpy(), k.double().numpy(), call.arrays())
        found = {}
        for route in self.attention.routes:
            if route.emit == "members":
                own = oracle.members(self.attention, route, *given)
                found[route.name] = (_lists(own.queries)[0], _lists(own.keys)[0])
            else:
                found[route.name] = _lists(oracle.relation(self.attention, route, *given))
        return found

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, selection: Selection | None = None,
        scale: float | None = None, return_lse: bool = False, **inputs: Any,
    ) -> Any:  # fmt: skip
        """Attend to what the oracle selects, whatever ``selection`` says."""
        attend = dense(self.attention, Call(q, k, v, inputs), scale)
        out, lse = attend(q, k, v, inputs, True)
        out = out.to(q.dtype)
        if lse is None or not return_lse:
            return out
        return out, lse.to(torch.float64 if q.dtype == torch.float64 else torch.float32)


def _lists(relation: Any) -> tuple[Tensor, Tensor]:
    count = relation.sum(-1)
    index = np.full((*count.shape, max(int(count.max(initial=0)), 1)), -1, dtype=np.int32)
    for at in np.ndindex(*count.shape):
        index[at][: count[at]] = relation[at].nonzero()[0]
    return torch.from_numpy(index), torch.from_numpy(count.astype(np.int32))
