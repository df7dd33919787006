"""The kernels of what routes select, interpreted: outputs and gradients are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnc.codegen.routes.gpu_attend import refuses
from attnc.compiler.ir.routed import Routed
from tests.kernels import skip_without_interpreter
from tests.routes.cases import CASES
from tests.routes.test_routed_op import chosen, drawn

NAMES = [
    "moba", "moba_wide", "nsa_selected", "infllm_v2", "dsa", "minference_block", "xattention",
    "anchor", "seer", "snapkv", "quest", "kinetics", "loki", "sla", "sparge", "vmoba_mass",
]  # fmt: skip


def module_of(routed: Routed, shape: Any) -> Any:
    from attnc.runtime.routed import compile_routed

    op = compile_routed(routed, chosen(shape.d, shape.dv, routed.base.align), keep=False)
    return op, op._function.__globals__


def test_what_has_kernels() -> None:
    from attnc.runtime.routed import plan_routed

    made = {
        name for name, case in CASES.items()
        if isinstance(case(), Routed)
        and not refuses(plan_routed(case(), chosen(align=case().base.align)))
    }
    assert {*NAMES} <= made


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_as_on_a_cpu(name: str) -> None:
    skip_without_interpreter()
    case = CASES[name]
    routed = case()
    sizes = {"b": 1, "hq": 2, "hkv": 1}
    if name in ("nsa_selected", "dsa"):
        sizes = {"b": 2, "hq": 4, "hkv": 2}
    if not case.decode:
        sizes |= {"nq": 21, "nk": 21}
    shape, arrays, inputs = drawn(case, 11, **sizes)
    op, scope = module_of(routed, shape)
    q, k, v = (torch.tensor(x, dtype=torch.float32) for x in arrays)
    given = {n: torch.tensor(x, dtype=torch.float32) for n, x in inputs.items()}
    selection = op.select(q, k, **given)
    selections = list(selection.values())
    forward = scope["_gpu_routed_forward"](q, k, v, 0.25, selections, {})
    expected = scope["_cpu_routed_forward"](q, k, v, 0.25, selections, {})
    for found, other in zip(forward, expected, strict=True):
        torch.testing.assert_close(found, other, atol=2e-6, rtol=2e-6)
    grad = torch.randn_like(forward[0])
    grad_lse = torch.randn_like(forward[1])
    back = (q, k, v, *expected, grad, grad_lse, 0.25, selections, {}, [True] * 3)
    found = scope["_gpu_routed_backward"](*back)
    other = scope["_cpu_routed_backward"](*back)
    for a, b in zip(found[:3], other[:3], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    again = scope["_gpu_routed_backward"](*back)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], again[:3], strict=True))


def test_half_precision_and_a_negative_scale() -> None:
    skip_without_interpreter()
    shape, arrays, _ = drawn(CASES["moba"], 3, b=1, nq=19, nk=19)
    op, scope = module_of(CASES["moba"](), shape)
    q, k, v = (torch.tensor(x).half() for x in arrays)
    selections = list(op.select(q, k).values())
    for scale in (0.25, -0.25):
        found = scope["_gpu_routed_forward"](q, k, v, scale, selections, {})
        other = scope["_cpu_routed_forward"](q.double(), k.double(), v.double(), scale, selections,
                                             {})  # fmt: skip
        assert found[0].dtype == torch.float16
        assert (found[0].double() - other[0]).abs().max() < 4e-3
        assert (found[1].double() - other[1]).abs().max() < 4e-3


def test_what_has_no_kernels_says_so() -> None:
    shape, _, _ = drawn(CASES["mosa"], 3)
    _, scope = module_of(CASES["mosa"](), shape)
    with pytest.raises(RuntimeError, match="members attend on a CPU only"):
        scope["_gpu_routed_forward"]()


@pytest.mark.parametrize(
    ("name", "target", "head_dim"),
    [
        ("moba", "sm_90", 128), ("minference_block", "sm_90", 64),
        *(pytest.param(name, target, d, marks=pytest.mark.slow)
          for name in ("moba", "dsa", "nsa_selected", "xattention")
          for target in ("sm_80", "sm_90", "sm_100", "gfx942") for d in (64, 128, 256)),
    ],
)  # fmt: skip
def test_kernels_compile_clean(name: str, target: str, head_dim: int) -> None:
    """Ahead of time: no spills, shared memory within the limit, matrix instructions overlap."""
    from attnc.runtime.lint_routes import lint_routed
    from attnc.runtime.options import options
    from attnc.runtime.routed import plan_routed

    given = options(
        head_dim=head_dim, value_dim=None, dtype="bf16", target=target, tile=None, cpu_tile=None
    )
    assert lint_routed(plan_routed(CASES[name](), given)) == ()
