"""A compiled routed op whose selected pairs go through its Triton kernels, interpreted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests import kernels as kn

_PART = ("_cpu_routed_forward", "_cpu_routed_backward", "_cpu_backward", "_REFUSES_TRAINING")


@contextmanager
def by_kernels(op: Any) -> Iterator[dict[str, Any]]:
    """Let an op attend to what is selected by its kernels, on a CPU; yield its module's names."""
    kn.skip_without_interpreter()
    if not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("kernels run on CPU tensors under the interpreter alone")
    module = op._function.__globals__
    before = {name: module[name] for name in _PART}
    try:
        module["_cpu_routed_forward"] = module["_gpu_routed_forward"]
        module["_cpu_routed_backward"] = module["_gpu_routed_backward"]
        module["_cpu_backward"] = module["_backward_of"](
            module["_gpu_routed_backward"], module["_kept_cpu_backward"]
        )
        module["_REFUSES_TRAINING"] = ""
        yield module
    finally:
        module.update(before)
