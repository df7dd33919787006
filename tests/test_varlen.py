"""Packed sequences: each as the op sees it alone, on a CPU and by interpreted kernels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import attnc
from attnc.codegen.data import pasted
from attnc.codegen.triton_backward import KERNELS
from attnc.codegen.triton_forward import KERNEL
from attnc.codegen.triton_varlen import parameters
from attnc.codegen.triton_varlen_backward import loops_of
from attnc.codegen.triton_varlen_backward import parameters as parameters_back
from attnc.codegen.varlen import kernel_texts
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.build_varlen import build_varlen, why_not
from attnc.runtime import aot
from attnc.runtime.lint import lint
from attnc.runtime.reference import error_bound, reference, terms
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests import test_zoo as zoo
from tests.kernels import DEVICE, skip_without_interpreter

SIDES = ["cpu", "kernel"]
SINK_WINDOW = "pattern p = { q -> k : k <= q and (k < 4 or q - k < 20) }"
BY_LENGTH = "pattern p = { q -> k : k >= n - 9 or q == nq - 1 or (q + k) mod 7 == 0 }"
PRODUCT = "pattern p = { q -> k : k <= q and q * k mod 5 < 3 }"
PIECES = "pattern p = { q -> k : " + " or ".join(f"k div 16 == {3 * i}" for i in range(11)) + " }"
HEADS = "pattern p heads h: 4 = { q -> k, h : k <= q and q - k <= 5 * (h + 1) }"
LEARNED = """
input table: real[4, 9]
input logit: real[4]
score bias heads h: 4 = { q -> k, h : table[h][min(q - k, 8)] }
attention p heads h: 4 = softmax(dot + bias, over: { q -> k : k <= q }, sink: logit[h])
"""
SELF = [0, 1, 35, 17, 17, 0, 5, 0]
CROSS = [3, 1, 20, 17, 17, 0, 0, 0]
"""Keys of the same sequences, where they are others: none for some queries, no queries for some."""


def compiled(text: str | attnc.Pattern, **options: Any) -> Any:
    pattern = attnc.parse(text) if isinstance(text, str) else text
    given = {"head_dim": 16, "dtype": "fp32", "tile": (16, 16), "cache": False, **options}
    return attnc.compile(pattern, **given)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def starts(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def packed(
    lq: list[int], lk: list[int], heads: int = 4, kv_heads: int = 2, d: int = 16, dv: int = 16
) -> tuple[torch.Tensor, ...]:
    """Return q, k, v and gradients of out and lse."""
    q, k = random(sum(lq), heads, d), random(sum(lk), kv_heads, d, seed=1)
    grad_out, grad_lse = random(sum(lq), heads, dv, seed=3), random(heads, sum(lq), seed=4)
    return q, k, random(sum(lk), kv_heads, dv, seed=2), grad_out, grad_lse


def both_passes(
    op: Any, side: str, tensors: tuple[torch.Tensor, ...], lq: list[int], lk: list[int] | None,
    scale: float | None = None, **inputs: Any,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return out, lse and the gradients of q, k, v, on a CPU or by the kernels."""
    q, k, v, grad_out, grad_lse = tensors
    cu_q, cu_k = starts(lq), None if lk is None else starts(lk)
    if side == "cpu":
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = op.varlen(*leaves, cu_q, cu_k, scale=scale, return_lse=True, **inputs)
        seen = lse.detach().isfinite()
        loss = (out * grad_out).sum() + (lse[seen] * grad_lse[seen]).sum()
        return out.detach(), lse.detach(), list(torch.autograd.grad(loss, leaves))
    skip_without_interpreter()
    module = op.varlen.__globals__
    given = ()
    if "_arguments" in module:
        named = {one.name: inputs.get(one.name) for one in module["_INPUTS"]}
        tensors_, *rest = module["_arguments"](*module["_views"](q, k), named, None)
        given = ([None if t is None else t.to(DEVICE) for t in tensors_], *rest)
    there = [t.to(DEVICE) for t in (q, k, v, cu_q, cu_q if cu_k is None else cu_k)]
    out = torch.full((*q.shape[:2], v.shape[2]), torch.nan, dtype=q.dtype, device=DEVICE)
    lse = torch.full((q.shape[1], q.shape[0]), torch.nan, device=DEVICE)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    module["_gpu_forward"](*there[:3], factor, out, lse, *there[3:], *given)
    needs = [True] * 3 + [False] * (len(given[0]) if given else 0)
    *found, _ = module["_gpu_backward"](
        *there[:3], out, lse, grad_out.to(DEVICE), grad_lse.to(DEVICE), factor, *there[3:], *given,
        needs=needs,
    )
    return out.cpu(), lse.cpu(), [x.cpu() for x in found]


def check(
    op: Any, side: str, tensors: tuple[torch.Tensor, ...], lq: list[int],
    lk: list[int] | None = None, scale: float | None = None, **inputs: Any,
) -> None:
    """Hold each sequence against float64 attention at its own lengths."""
    out, lse, grads = both_passes(op, side, tensors, lq, lk, scale, **inputs)
    cu_q, cu_k = starts(lq).tolist(), starts(lk or lq).tolist()
    for b in range(len(lq)):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        q, k, v, grad_out, dq, dk, dv = (
            x[at].transpose(0, 1)[None]
            for x, at in zip((*tensors[:4], *grads), (rows, keys, keys, rows, rows, keys, keys),
                             strict=True)
        )  # fmt: skip
        if rows.start == rows.stop or keys.start == keys.stop:
            assert not any(x.any() for x in (dq, dk, dv))
            if rows.start < rows.stop and op._ir.sink is None:
                assert not out[rows].any()
                assert torch.isneginf(lse[:, rows]).all()
            continue
        given = terms(op._aligned, q, k, inputs)
        out64, lse64 = reference(q, k, v, given, scale)
        bound = error_bound(q, k, v, given, scale)
        empty = torch.isneginf(lse64[0])
        assert torch.equal(torch.isneginf(lse[:, rows]), empty)
        assert (out[rows].transpose(0, 1)[None] - out64).abs().max() <= bound.out
        gap = (lse[:, rows] - lse64[0])[~empty]
        assert gap.numel() == 0 or gap.abs().max() <= bound.lse
        fixed = {n: x.double() if torch.is_tensor(x) and x.is_floating_point() else x
                 for n, x in inputs.items()}  # fmt: skip
        call = Backward(
            pattern=op._aligned, q=q, k=k, v=v, grad_out=grad_out,
            grad_lse=tensors[4][None, :, rows], inputs=fixed, scale=scale,
        )
        assert_gradients_within([dq, dk, dv, *[None] * len(call.learned)], call)


@pytest.mark.parametrize(
    ("text", "align", "lk"),
    [
        (SINK_WINDOW, "top-left", None), (SINK_WINDOW, "bottom-right", CROSS),
        (BY_LENGTH, "top-left", CROSS), (PRODUCT, "bottom-right", CROSS),
        (PIECES, "top-left", None), (HEADS, "bottom-right", None),
    ],
    ids=["sink_window", "aligned", "by_length", "product", "pieces", "heads"],
)
@pytest.mark.parametrize("side", SIDES)
def test_sequences_see_themselves(
    side: str, text: str, align: str, lk: list[int] | None
) -> None:
    """Empty ones, of one token, of equal lengths in a row; with other keys, or none.

    The pattern speaks of each sequence's own positions and lengths, by ranges, and by one range
    over all where its op would need a table (product, pieces).
    """
    check(compiled(text, align=align), side, packed(SELF, lk or SELF), SELF, lk)


PACKED = sorted(name for name in zoo.OPS if why_not(zoo.example(name)[0].ir) is None)
QUICK = {"alibi", "chunked", "longformer", "power_of_two"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PACKED]
)
def test_zoo(name: str) -> None:
    """All that have a packed form, by their ops: on a CPU, and some kernels."""
    pattern, _, tokens, inputs = zoo.example(name)
    op = compiled(pattern)
    lengths = [tokens, 1, 0, tokens - 3, tokens - 3]
    heads = pattern.ir.heads or 2
    tensors = packed(lengths, lengths, heads, heads)
    renamed = {f"{n}_" if n == "lengths" else n: x for n, x in inputs.items()}
    whole = op.varlen(*tensors[:3], starts(lengths), **renamed)
    for part in zip(*(x.split(lengths) for x in (whole, *tensors[:3])), strict=True):
        out, *given = (x.transpose(0, 1)[None] for x in part)
        torch.testing.assert_close(out, op(*given, **renamed), rtol=1e-5, atol=1e-5)
    if name in QUICK:
        skip_without_interpreter()
        out, _, _ = both_passes(op, "kernel", tensors, lengths, None, **inputs)
        torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swin", "stand on a grid"), ("document", "doc_ids is as long as the sequence"),
        ("agent_collect", "stand on a grid"),
    ],
)
def test_patterns_without_a_packed_form_say_why(name: str, words: str) -> None:
    pattern = zoo.example(name)[0]
    with pytest.raises(ValueError, match=f"has no packed form: .*{words}"):
        _ = compiled(pattern).varlen


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "dv"), [(6, 1, 16, 16), (4, 4, 24, 16), (2, 2, 16, 40)]
)
def test_heads_and_head_dims(side: str, heads: int, kv_heads: int, d: int, dv: int) -> None:
    op = compiled(SINK_WINDOW, head_dim=d, value_dim=dv)
    check(op, side, packed(SELF, SELF, heads, kv_heads, d, dv), SELF)


@pytest.mark.parametrize("side", SIDES)
def test_kv_heads(side: str) -> None:
    """Masks of key heads; a scale below 0."""
    text = "pattern p kv_heads h: 2 = { q -> k, h : k <= q and q - k <= 9 * (h + 1) }"
    check(compiled(text), side, packed(SELF, SELF), SELF, scale=-0.3)


@pytest.mark.parametrize("side", SIDES)
def test_many_short_sequences(side: str) -> None:
    """More sequences than a program looks at in one step, most of them in one tile."""
    lengths = [i % 4 for i in range(300)]
    op = compiled(SINK_WINDOW)
    q, k, v, *grads = packed(lengths, lengths, 1, 1)
    out, lse, _ = both_passes(op, side, (q, k, v, *grads), lengths, None)
    parts = zip(*(x.split(lengths) for x in (out, q, k, v)), lse.split(lengths, 1), strict=True)
    for part, *given, sums in parts:
        found = op(*(x.transpose(0, 1)[None] for x in given), return_lse=True)
        torch.testing.assert_close(part.transpose(0, 1)[None], found[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums[None], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_strides(side: str) -> None:
    """Views of one projection ``[total, 3, H, D]``, and of tensors with heads in front."""
    op = compiled(SINK_WINDOW)
    n = sum(SELF)
    qkv = random(n, 3, 2, 16)
    check(op, side, (*qkv.unbind(1), random(n, 2, 16), random(2, n)), SELF)
    q, k, v, *grads = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in packed(SELF, SELF))
    check(op, side, (q, k, v, *grads), SELF)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_on_a_cpu(dtype: torch.dtype) -> None:
    tensors = tuple(x.to(dtype) for x in packed(SELF, CROSS)[:4])
    grad_lse = packed(SELF, CROSS)[4]
    check(compiled(SINK_WINDOW), "cpu", (*tensors, grad_lse), SELF, CROSS)


def test_half_precision_kernels() -> None:
    tensors = tuple(x.half() for x in packed(SELF, SELF)[:4])
    op = compiled(SINK_WINDOW, dtype="fp16")
    check(op, "kernel", (*tensors, packed(SELF, SELF)[4]), SELF)


@pytest.mark.parametrize("side", SIDES)
def test_scores_and_sinks(side: str) -> None:
    """ALiBi with given slopes, softcap and a sink; queries without keys have the sink as lse."""
    text = """
    input slope: real[4]
    input logit: real[4]
    score alibi heads h: 4 = { q -> k, h : slope[h] * (k - q) }
    attention p heads h: 4 =
        softmax(20 * tanh((dot + alibi) / 20), over: { q -> k : k <= q }, sink: logit[h])
    """
    op = compiled(text)
    inputs = {"slope": random(4).abs(), "logit": random(4, seed=5)}
    check(op, side, packed(SELF, CROSS), SELF, CROSS, **inputs)
    out, lse, _ = both_passes(op, side, packed(SELF, CROSS), SELF, CROSS, **inputs)
    without_keys = slice(sum(SELF[:6]), sum(SELF[:7]))
    assert not out[without_keys].any()
    torch.testing.assert_close(lse[:, without_keys], inputs["logit"][:, None].expand(4, 5))


def test_gradients_of_what_is_learned() -> None:
    """Those of tables and sinks are sums over sequences; no sequence at all gives zeros."""
    op = compiled(LEARNED)
    q, k, v, grad_out, _ = packed(SELF, SELF, 4, 4)
    leaves = [random(4, 9).requires_grad_(), random(4, seed=5).requires_grad_()]
    given = {"table": leaves[0], "logit": leaves[1]}
    found = torch.autograd.grad(op.varlen(q, k, v, starts(SELF), **given), leaves, grad_out)
    total = [torch.zeros_like(x) for x in leaves]
    for part in zip(*(x.split(SELF) for x in (q, k, v, grad_out)), strict=True):
        *one, go = (x.transpose(0, 1)[None] for x in part)
        if go.numel():
            for x, y in zip(total, torch.autograd.grad(op(*one, **given), leaves, go), strict=True):
                x += y
    for x, y in zip(found, total, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    none = op.varlen(q[:0], k[:0], v[:0], starts([0, 0]), **given)
    assert all(not x.any() for x in torch.autograd.grad(none.sum(), leaves))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_no_tokens(side: str, lengths: list[int]) -> None:
    out, lse, grads = both_passes(compiled(SINK_WINDOW), side, packed([0], [0]), lengths, None)
    assert out.shape == (0, 4, 16)
    assert lse.shape == (4, 0)
    assert [x.shape[0] for x in grads] == [0, 0, 0]


def given(**changes: Any) -> dict[str, Any]:
    q, k, v, *_ = packed([3, 4], [3, 4])
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": torch.tensor([0, 3, 7])} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cu_seqlens_q": torch.tensor([1, 3, 7])}, r"cu_seqlens_q must rise from 0 to 7.*\[1, 3"),
        ({"cu_seqlens_q": torch.tensor([0, 5, 3, 7])}, r"must rise from 0 to 7.*\[0, 5, 3, 7\]"),
        ({"cu_seqlens_q": torch.tensor([0, 3, 6])}, "must rise from 0 to 7"),
        ({"cu_seqlens_k": torch.tensor([0, 3, 8])}, "cu_seqlens_k must rise from 0 to 7"),
        ({"cu_seqlens_k": torch.tensor([0, 7])}, "cu_seqlens_q tells of 2 sequences.*_k of 1"),
        ({"cu_seqlens_q": torch.tensor([0.0, 7.0])}, r"must be int32 or int64 \[B \+ 1\]"),
        ({"cu_seqlens_q": torch.tensor([[0, 7]])}, r"must be int32 or int64 \[B \+ 1\]"),
        ({"cu_seqlens_q": torch.tensor([], dtype=torch.int32)}, "must be int32 or int64"),
        ({"cu_seqlens_q": torch.tensor([0, 7], device="meta")}, "is on meta but q is on cpu"),
        ({"max_seqlen_q": 3}, "max_seqlen_q is 3, but a sequence has 4 tokens"),
        ({"max_seqlen_k": 4.0}, "max_seqlen_k is a float"),
        ({"q": random(1, 4, 7, 16)}, r"q must be \[total_q, Hq, 16\]"),
        ({"k": random(7, 3, 16), "v": random(7, 3, 16)}, "heads of q must be a multiple"),
        ({"v": random(6, 2, 16)}, r"v is \(6, 2, 16\) but k is"),
        ({"v": random(7, 2, 16).double()}, "v has dtype"),
        ({"q": random(7, 16, 4).mT}, "last dimension of q must be contiguous"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"scale": torch.tensor(1.0)}, "scale must be a number"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compiled(SINK_WINDOW).varlen(**given(**changes))
    with pytest.raises(TypeError, match=r"cu_seqlens_q must be a torch.Tensor, got list"):
        compiled(SINK_WINDOW).varlen(**given(cu_seqlens_q=[0, 7]))


def test_inputs_have_no_batch_dimension() -> None:
    op = compiled("pattern p(input limit: int[4]) heads h: 4 = { q -> k, h : k <= limit[h] }")
    with pytest.raises(ValueError, match="limit has batch size 2 but q has 1"):
        op.varlen(**given(limit=torch.ones(2, 4, dtype=torch.int64)))


def test_registered_op() -> None:
    """opcheck passes on both passes, with gradients."""
    varlen = compiled(SINK_WINDOW).varlen
    module = varlen.__globals__
    q, k, v, grad_out, grad_lse = packed(SELF, CROSS)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    rest = (0.25, [], [], [], starts(SELF), starts(CROSS))
    torch.library.opcheck(module["_op"], (*leaves, *rest))
    q, k, v = (x.detach() for x in leaves)
    out, lse = module["_op"](q, k, v, *rest)
    torch.library.opcheck(
        module["_backward_op"], (grad_out, grad_lse, q, k, v, out, lse, *rest),
        {"needs": [True, False, True]},
    )


def test_gradcheck() -> None:
    varlen = compiled(SINK_WINDOW).varlen
    made = packed([2, 0, 3], [4, 2, 3], 1, 1)[:3]
    tensors = [x[..., :4].double().requires_grad_() for x in made]
    cu = starts([2, 0, 3]), starts([4, 2, 3])

    def few_columns(*given: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = varlen(*(torch.nn.functional.pad(x, (0, 12)) for x in given), *cu)
        return out[..., :4]

    assert torch.autograd.gradcheck(few_columns, tensors)


def test_one_graph_serves_all_lengths() -> None:
    """Compiled whole, forward and backward; numbers of tokens and sequences may change."""
    torch._dynamo.reset()
    varlen = compiled(SINK_WINDOW).varlen
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(varlen, fullgraph=True, backend=counter)
    for lengths in ([9, 3], [4, 0, 17], [30, 2, 5, 1]):
        tensors = [x.requires_grad_() for x in packed(lengths, lengths)[:3]]
        cu = starts(lengths)
        for x in (*tensors, cu):
            torch._dynamo.mark_dynamic(x, 0)
        found = torch.autograd.grad(step(*tensors, cu).square().sum(), tensors)
        expected = torch.autograd.grad(varlen(*tensors, cu).square().sum(), tensors)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counter.frame_count == 1


def test_transforms_of_torch() -> None:
    """Autocast runs in its dtype; vmap and second derivatives are refused."""
    varlen = compiled(SINK_WINDOW).varlen
    arguments = given()
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen(**arguments).dtype == torch.bfloat16
    q, *rest = (arguments[name] for name in ("q", "k", "v", "cu_seqlens_q"))
    with pytest.raises(ValueError, match="vmap does not map packed sequences"):
        torch.vmap(lambda x: varlen(x, *rest))(torch.stack([q, q]))
    q.requires_grad_()
    (first,) = torch.autograd.grad(varlen(q, *rest).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.sum().backward()


def test_a_launch_reads_nothing_from_the_device() -> None:
    """Both passes prepare their launches from shapes alone: meta tensors have no values."""
    op = compiled(SINK_WINDOW)
    module = dict(op.varlen.__globals__)
    launched = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *given, **settings: launched.append((self.name, grid))

    names = [KERNEL, "_prepare_rows", *KERNELS.values()]
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        for name in names:
            if name in module:
                patched.setitem(op.varlen.__globals__, name, Kernel(name))
        q, k, v, grad_out, grad_lse = (x.to("meta") for x in packed(SELF, CROSS))
        cu = starts(SELF).to("meta"), starts(CROSS).to("meta")
        out, lse = torch.empty_like(q), torch.empty_like(grad_lse)
        module["_gpu_forward"](q, k, v, 0.25, out, lse, *cu)
        module["_gpu_backward"](
            q, k, v, out, lse, grad_out, grad_lse, 0.25, *cu, needs=[True] * 3
        )
    slots = sum(SELF) // 16 + len(SELF), sum(CROSS) // 16 + len(SELF)
    assert launched == [
        (KERNEL, (slots[0] * 4,)), ("_prepare_rows", (-(-sum(SELF) // 32) * 4,)),
        (KERNELS["dq"], (slots[0] * 4,)), (KERNELS["dkdv"], (slots[1] * 2,)),
    ]  # fmt: skip


def test_the_pasted_parts_are_the_sources() -> None:
    text = Path(compiled(SINK_WINDOW).varlen.__globals__["__file__"]).read_text("utf-8")
    for name in ("varlen_contract.py", "op_registration.py"):
        assert pasted(name)[1] in text
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\n{4}", text)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("text", [SINK_WINDOW, LEARNED], ids=["window", "learned"])
def test_compiles_clean_for_hopper(text: str, head_dim: int) -> None:
    """No spills, no serialised matrix instruction, and shared memory in the limit."""
    ir = attnc.parse(text).ir
    plan = build_varlen(build_plan(ir, head_dim=head_dim, target="sm_90", backward=True))
    assert plan.backward is not None
    loops = [(KERNEL, parameters(plan.forward), plan.forward)]
    for kernel, loop in loops_of(plan.backward).items():
        loops.append((KERNELS[kernel], parameters_back(loop, kernel), loop))
    text = "\n\n".join(kernel_texts(plan))
    for (name, _, _), found in zip(loops, aot.compile_named(text, loops), strict=True):
        assert lint(found, "sm_90") == (), name
