"""The contract of a compiled op: results, refusals, and what torch asks of an op."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import attnc
from attnc.runtime.reference import assert_within

WINDOW = "pattern near = { q -> k : 0 <= q - k and q - k < 5 } | { q -> k : k < 2 and k <= q }"
LATE = "pattern late = { q -> k : k <= q - 3 }"
PER_HEAD = "heads h: 4\npattern heads = { q -> k, h : 0 <= q - k and q - k <= h }"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Compile a text once for all tests of this file, in a cache of its own."""
    ops: dict[Any, Any] = {}

    def compile_text(text: str, **options: Any) -> Any:
        key = (text, *sorted(options.items()))
        if key not in ops:
            ops[key] = attnc.compile(attnc.parse(text), **{"head_dim": 16, **options})
        return ops[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield compile_text


def inputs(
    nq: int = 9, nk: int | None = None, *, batch: int = 2, heads: int = 4,
    kv_heads: int | None = None, dim: int = 16, value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(nq + 31 * dim)
    nk = nq if nk is None else nk
    kv_heads = kv_heads or heads
    shapes = [(heads, nq, dim), (kv_heads, nk, dim), (kv_heads, nk, value_dim or dim)]
    q, k, v = (torch.randn(batch, *shape, generator=make).to(dtype) for shape in shapes)
    return q, k, v


def registered(op: Any) -> Any:
    """Return the op as torch knows it."""
    return op._function.__globals__["_op"]


# ----------------------------------------------------------------------------------- results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("nq", "nk"), [(1, 1), (70, 70), (33, 80), (80, 33)])
def test_result_is_within_the_error_rule(
    compiled: Any, dtype: torch.dtype, nq: int, nk: int
) -> None:
    q, k, v = inputs(nq, nk, kv_heads=2, dtype=dtype)
    out, lse = compiled(WINDOW)(q, k, v, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_within(out, lse, q, k, v, attnc.parse(WINDOW).mask(nq=nq, nk=nk))


def test_float64_on_a_cpu(compiled: Any) -> None:
    q, k, v = inputs(40, dtype=torch.float64)
    out, lse = compiled(WINDOW)(q, k, v, return_lse=True)
    scores = (q @ k.mT / 4).masked_fill(~attnc.parse(WINDOW).mask(40), -math.inf)
    assert out.dtype == lse.dtype == torch.float64
    torch.testing.assert_close(out, scores.softmax(-1) @ v, rtol=0, atol=1e-13)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-13)


def test_value_dim_and_scale(compiled: Any) -> None:
    q, k, v = inputs(20, value_dim=24)
    op = compiled(WINDOW, value_dim=24)
    mask = attnc.parse(WINDOW).mask(20)
    for scale in (0.5, 1, -0.25, 0.0):
        out, lse = op(q, k, v, scale=scale, return_lse=True)
        assert_within(out, lse, q, k, v, mask, float(scale))
    assert torch.equal(op(q, k, v), op(q, k, v, scale=0.25))


def test_queries_without_keys_give_zero_and_minus_infinity(compiled: Any) -> None:
    q, k, v = inputs(9)
    out, lse = compiled(LATE)(q, k, v, return_lse=True)
    assert torch.equal(out[:, :, :3], torch.zeros(2, 4, 3, 16))
    assert torch.isneginf(lse[:, :, :3]).all()
    assert torch.isfinite(lse[:, :, 3:]).all()
    assert_within(out, lse, q, k, v, attnc.parse(LATE).mask(9))


@pytest.mark.parametrize(("batch", "nq", "nk"), [(0, 5, 5), (2, 0, 5), (2, 5, 0), (2, 0, 0)])
def test_empty_inputs(compiled: Any, batch: int, nq: int, nk: int) -> None:
    q, k, v = inputs(nq, nk, batch=batch)
    out, lse = compiled(WINDOW)(q, k, v, return_lse=True)
    assert torch.equal(out, torch.zeros(batch, 4, nq, 16))
    assert torch.equal(lse, torch.full((batch, 4, nq), -math.inf))


def test_each_head_has_its_own_mask(compiled: Any) -> None:
    q, k, v = inputs(30, kv_heads=2)
    out, lse = compiled(PER_HEAD)(q, k, v, return_lse=True)
    assert_within(out, lse, q, k, v, attnc.parse(PER_HEAD).mask(30))


def test_strides_do_not_change_the_result(compiled: Any) -> None:
    q, k, v = inputs(40)
    expected = compiled(WINDOW)(q, k, v)
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert not views[0].is_contiguous()
    out = compiled(WINDOW)(*views)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert out.is_contiguous()
    shared = [t[:1].expand(3, -1, -1, -1) for t in (q, k, v)]
    torch.testing.assert_close(compiled(WINDOW)(*shared)[2], expected[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------- refusals


def _change(**changes: Any) -> Any:
    def change(q: Any, k: Any, v: Any) -> dict[str, Any]:
        given = {"q": q, "k": k, "v": v}
        return {**given, **{n: f(given[n]) if callable(f) else f for n, f in changes.items()}}

    return change


REFUSED = [
    (_change(q=lambda t: t[0]), "q must have 4 dimensions [B, Hq, Q, 16], got 3: (4, 9, 16)"),
    (_change(k=lambda t: t[None]), "k must have 4 dimensions [B, Hkv, K, 16], got 5"),
    (_change(q=lambda t: t[..., :8]), "the last dimension of q must be 16, got 8"),
    (_change(v=lambda t: t[..., :8]), "the last dimension of v must be 16, got 8"),
    (_change(k=lambda t: t[:1]), "k has batch size 1 but q has 2"),
    (_change(k=lambda t: t[:, :3], v=lambda t: t[:, :3]), "got 4 and 3"),
    (_change(v=lambda t: t[:, :2]), "v has 2 heads but k has 4"),
    (_change(k=lambda t: t[:, :0], v=lambda t: t[:, :0]), "k has no heads"),
    (_change(v=lambda t: t[:, :, :2]), "v has 2 tokens but k has 9"),
    (_change(v=lambda t: t.half()), "v has dtype torch.float16 but q has torch.float32"),
    (_change(q=lambda t: t.int(), k=lambda t: t.int(), v=lambda t: t.int()), "q must be float32"),
    (_change(k=lambda t: t.to("meta")), "k is on meta but q is on cpu"),
    (_change(q=lambda t: t.mT.contiguous().mT), "the last dimension of q must be contiguous"),
    (_change(scale=math.nan), "scale must be finite, got nan"),
    (_change(scale=-math.inf), "scale must be finite, got -inf"),
    (_change(scale="big"), "scale must be a number, got str"),
    (_change(scale=torch.tensor(1.0)), "scale must be a number, got a Tensor"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_wrong_inputs_are_refused_by_name(compiled: Any, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compiled(WINDOW)(**change(*inputs()))


def test_a_per_head_pattern_fixes_the_number_of_heads(compiled: Any) -> None:
    with pytest.raises(ValueError, match="q must have 4 heads, one for each mask"):
        compiled(PER_HEAD)(*inputs(heads=2))


def test_lengths_beyond_the_kernels_are_refused(compiled: Any) -> None:
    long = torch.zeros(1, 1, 1, 16).expand(1, 1, 2**30 + 1, 16)
    with pytest.raises(ValueError, match=r"k has 1073741825 tokens, the most is 2\*\*30"):
        compiled(WINDOW)(long[:, :, :1], long, long)


def test_what_is_not_a_tensor_is_a_type_error(compiled: Any) -> None:
    q, k, _ = inputs()
    with pytest.raises(TypeError, match=r"v must be a torch\.Tensor, got list"):
        compiled(WINDOW)(q, k, [1.0])


def test_the_gpu_kernel_fixes_the_dtype(compiled: Any) -> None:
    """The check runs on the fake device: no GPU is needed to see the message."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(1, 1, 8, 16, device="cuda")
        for dtype, refused in ((None, q), ("fp32", q.half()), (None, q.double())):
            op = compiled(WINDOW, dtype=dtype) if dtype else compiled(WINDOW)
            with pytest.raises(ValueError, match="the GPU kernel was compiled for"):
                op(refused, refused, refused)
        assert compiled(WINDOW)(q.half(), q.half(), q.half()).dtype == torch.float16


# ------------------------------------------------------------------------ what torch asks for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(compiled: Any, dtype: torch.dtype) -> None:
    for nq, nk in ((9, 12), (3, 0)):
        arguments = (*inputs(nq, nk, kv_heads=2, dtype=dtype), 0.25)
        torch.library.opcheck(registered(compiled(WINDOW)), arguments)


def test_opcheck_of_strided_inputs(compiled: Any) -> None:
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs(20)]
    torch.library.opcheck(registered(compiled(WINDOW)), (*views, 0.25))


def test_one_graph_serves_every_length(compiled: Any) -> None:
    counter = CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(compiled(WINDOW), fullgraph=True, dynamic=True, backend=counter)
    for nq, nk in ((9, 12), (17, 17), (40, 8)):
        q, k, v = inputs(nq, nk)
        assert torch.equal(step(q, k, v), compiled(WINDOW)(q, k, v))
    assert counter.frame_count == 1
    assert counter.op_count == 2  # the op, and taking its first result


def test_inductor(compiled: Any) -> None:
    torch._dynamo.reset()
    q, k, v = inputs(30)

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        halves = [t.transpose(1, 2).relu().transpose(1, 2) for t in (q, k, v)]
        out: torch.Tensor = compiled(WINDOW)(*halves) + 1
        return out

    step = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(step(q, k, v), block(q, k, v))


def test_export_with_symbolic_lengths(compiled: Any) -> None:
    op = compiled(WINDOW)

    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
            return op(q, k, v)

    nq, nk = torch.export.Dim("nq"), torch.export.Dim("nk")
    shapes = ({2: nq}, {2: nk}, {2: nk})
    exported = torch.export.export(Model(), inputs(9, 12), dynamic_shapes=shapes).module()
    q, k, v = inputs(50, 21)
    assert torch.equal(exported(q, k, v), op(q, k, v))


def test_autocast_casts_like_sdpa(compiled: Any) -> None:
    q, k, v = inputs()
    sdpa = torch.nn.functional.scaled_dot_product_attention
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled(WINDOW)(q.bfloat16(), k, v.half())
        assert out.dtype == sdpa(q.bfloat16(), k, v.half()).dtype == torch.bfloat16
    halves = [t.bfloat16() for t in (q, k, v.half())]
    assert torch.equal(out, compiled(WINDOW)(*halves))
    double = [t.double() for t in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(WINDOW)(*double).dtype == torch.float64


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, None, None), (None, 0, 2)])
def test_vmap_equals_a_loop(compiled: Any, in_dims: tuple[int | None, ...]) -> None:
    op = compiled(WINDOW)
    given = []
    for number, (t, dim) in enumerate(zip(inputs(12, kv_heads=2), in_dims, strict=True)):
        copies = [torch.roll(t, i + number, 2) for i in range(3)]
        given.append(t if dim is None else torch.stack(copies, dim))
    mapped = torch.func.vmap(op, in_dims)(*given)
    for i in range(3):
        one = [t if d is None else t.select(d, i) for t, d in zip(given, in_dims, strict=True)]
        torch.testing.assert_close(mapped[i], op(*one), rtol=0, atol=1e-6)


def test_meta_tensors_give_shapes(compiled: Any) -> None:
    q, k, v = (t.to("meta") for t in inputs(9, 12, dtype=torch.bfloat16))
    out, lse = compiled(WINDOW)(q, k, v, return_lse=True)
    assert (out.shape, out.dtype, lse.shape) == ((2, 4, 9, 16), torch.bfloat16, (2, 4, 9))
    assert lse.dtype == torch.float32
