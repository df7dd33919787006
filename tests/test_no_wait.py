"""A call on a GPU waits for nothing: the launches, on tensors that have no data to wait for.

A meta tensor raises where its values are asked for (``.item()``, ``if t:``, ``.cpu()``,
``nonzero``); copies between the host and the device, which wait as well, are looked for besides.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attnc
from tests.kernels import skip_without_interpreter
from tests.test_data_op import TEXTS as DATA_TEXTS
from tests.test_data_op import inputs_of

N = 77
TEXTS = {
    "near": "pattern near = { q -> k : 0 <= q - k < 5 } | { q -> k : k < 2 and k <= q }",
    "table": "pattern table = power_of_two()",
    "heads": "heads h: 4\npattern heads = { q -> k, h : 0 <= q - k and q - k <= 9 * h }",
    "boxes": "pattern boxes on grid(y: 7, x: 11) = "
    "{ q -> k : abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 2 }",
    **{name: text for name, text in DATA_TEXTS.items() if name != "computed"},
}
"""Not the input that is made by `repeat`: its length is the sum of what the device holds."""


class NoCopy(TorchDispatchMode):
    """Raises where an operation joins the host and the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {
            t.device.type for t in tree_leaves((args, kwargs, result))
            if isinstance(t, torch.Tensor) and t.dim()
        }  # fmt: skip
        assert len(devices) < 2, f"{func} copies between {devices}"
        return result


class Kernel:
    """Counts its launches."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: Any) -> Any:
        assert all(type(side) is int for side in grid)
        return self.launched

    def launched(self, *arguments: Any, **options: Any) -> None:
        self.launches += 1


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the capture of a CUDA graph; ``torch.tensor`` would copy a list to the device."""
    skip_without_interpreter()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Any:
        assert device is None or torch.device(device).type == "cpu"
        return make(data, device=device, **options)

    monkeypatch.setattr(torch, "tensor", tensor)


def launches(function: FunctionType) -> tuple[dict[str, Any], dict[str, Kernel]]:
    """Return the names of a module, and replacements of its kernels and their helpers."""
    names = function.__globals__
    found = {
        name: Kernel() for name, one in names.items()
        if type(one).__name__ in ("InterpretedFunction", "JITFunction")
    }  # fmt: skip
    assert found
    return names, found


def on_device(x: Any) -> Any:
    return x.to("meta") if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("name", TEXTS)
def test_op(monkeypatch: pytest.MonkeyPatch, capturing: None, name: str) -> None:
    op = attnc.compile(
        attnc.parse(TEXTS[name], pattern=name), head_dim=16, cache=False,
        tile="boxes" if name == "boxes" else (16, 16),
    )  # fmt: skip
    names, found = launches(op._function)
    for key, kernel in found.items():
        monkeypatch.setitem(names, key, kernel)
    if "_AT_ONCE" in names:
        monkeypatch.setitem(names["_AT_ONCE"], "meta", names["_AT_ONCE"]["cuda"])
    if op.plan.forward.form == "table" or name == "boxes":  # kept since a call before
        kept = torch.empty(9, device="meta")
        monkeypatch.setitem(names, "_gpu_schedule", lambda *key: [kept, kept])
    q, k, v, grad_out = (torch.empty(2, h, N, 16, device="meta") for h in (4, 2, 2, 4))
    given = {n: on_device(x) for n, x in inputs_of(name, N).items()}
    extra: tuple[Any, ...] = ()
    if "_arguments" in names:
        known = {one.name: given.get(one.name) for one in names["_INPUTS"]}
        extra = names["_arguments"](q, k, known, given.get("extents"))
    out, lse = torch.empty_like(q), torch.empty(2, 4, N, device="meta")
    with NoCopy():
        names["_gpu_forward"](q, k, v, 0.25, out, lse, *extra)
        forward = sum(kernel.launches for kernel in found.values())
        needs = [True] * 3 + [
            x is not None and x.is_floating_point() for x in (extra[0] if extra else ())
        ]
        names["_gpu_backward"](
            q, k, v, out, lse, grad_out, torch.empty_like(lse), 0.25, *extra, needs=needs
        )
    assert forward == 1
    assert sum(kernel.launches for kernel in found.values()) >= 4


@pytest.mark.parametrize("is_paged", [False, True])
@pytest.mark.parametrize("name", ["near", "documents", "capped", "sink"])
def test_decode_step(
    monkeypatch: pytest.MonkeyPatch, capturing: None, name: str, is_paged: bool
) -> None:
    op = attnc.compile(attnc.parse(TEXTS[name], pattern=name), head_dim=16, cache=False)
    names, found = launches(op.decode)
    for key, kernel in found.items():
        monkeypatch.setitem(names, key, kernel)
    caches = [torch.empty(8 if is_paged else 2, 2, 16 if is_paged else 64, 16, device="meta")] * 2
    lengths = torch.empty(2, dtype=torch.int32, device="meta")
    table = torch.empty(2, 4, dtype=torch.int32, device="meta") if is_paged else None
    q = torch.empty(2, 4, 1, 16, device="meta")
    extra: tuple[Any, ...] = ()
    if "_arguments" in names:
        given = {n: on_device(x) for n, x in inputs_of(name, 64).items()}
        extra = names["_arguments"](q, caches[0], given, None)
    with NoCopy():
        names["_gpu_decode"](q, *caches, lengths, table, 0.25, *extra)
    assert sum(kernel.launches for kernel in found.values()) == 2
