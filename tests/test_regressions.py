"""What failed in other sparse-attention libraries, by the number of its report, does not fail here.

pytorch/pytorch#137779 (lower-right causal masks at a second pair of lengths) is in test_align.py,
and addresses past 2**31 elements, of each tensor by itself, are in test_far_strides.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import attnc
from attnc.runtime.reference import Terms, assert_within, reference
from attnc.runtime.reference_gradients import (
    Backward,
    assert_gradients_within,
    reference_gradients,
)
from tests.kernels import load, skip_without_interpreter
from tests.test_far_strides import last_program_only, reserve, typed

SINK_WINDOW = "pattern p = { q -> k : k <= q and (k < 4 or q - k < 20) }"


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compiled(text: str, **options: Any) -> Any:
    given = {"head_dim": 16, "dtype": "fp32", "tile": (16, 16), "cache": False, **options}
    return attnc.compile(attnc.parse(text), **given)


def check(op: Any, n: int, *, kernel: bool = False, **inputs: torch.Tensor) -> None:
    """Hold out, lse and gradients of q, k, v and learned inputs against float64."""
    batch, heads = (1, 2) if kernel and not inputs else (2, 4)
    sides = enumerate((heads, heads // 2, heads // 2, heads))
    q, k, v, grad_out = (draw(batch, h, n, 16, seed=i) for i, h in sides)
    grad_lse = draw(batch, heads, n, seed=5)
    call = Backward(
        pattern=op._ir, q=q, k=k, v=v, grad_out=grad_out, grad_lse=grad_lse, inputs=inputs
    )
    learned = [inputs[name] for name in call.learned]
    if kernel:
        skip_without_interpreter()
        module = op._function.__globals__
        out, lse = torch.empty_like(q), torch.empty(grad_lse.shape)
        extra = module["_arguments"](q, k, inputs, None) if inputs else ()
        module["_gpu_forward"](q, k, v, 0.25, out, lse, *extra)
        *found, given = module["_gpu_backward"](
            q, k, v, out, lse, grad_out, grad_lse, 0.25, *extra, needs=[True] * (3 + len(inputs))
        )
        found += given
    else:
        leaves = [t.requires_grad_() for t in (q, k, v, *learned)]
        out, lse = op(q, k, v, return_lse=True, **inputs)
        found = torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))
    with torch.no_grad():
        assert_within(out, lse, q, k, v, call.terms(q, k, inputs))
    assert_gradients_within(found, call)


# ----------------------------------------------------------------------------------- lengths


def test_generation_builds_nothing_as_the_sequence_grows() -> None:
    """meta-pytorch/attention-gym#109: the block mask is made anew for each token generated.

    Here a step asks the pattern at the true position: one traced graph serves every length.
    """
    op = compiled(SINK_WINDOW)
    step, n = op.decode, 40
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(step, fullgraph=True, backend=counter)
    q, k, v = (draw(1, heads, n, 16, seed=heads) for heads in (4, 2, 2))
    whole = op(q, k, v)
    for length in range(1, n + 1):
        out = traced(q[:, :, length - 1 : length], k, v, torch.tensor([length]))
        torch.testing.assert_close(out, whole[:, :, length - 1 : length], rtol=0, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("form", ["ranges", "table"])
def test_an_op_is_right_at_other_lengths_than_its_first(form: str) -> None:
    """meta-pytorch/attention-gym#34: a mask made for 8192 tokens, used at 1024, was silently wrong.

    Both for kernels that compute their ranges and for those that keep a table for each length.
    """
    op = compiled(SINK_WINDOW if form == "ranges" else "pattern p = power_of_two()")
    assert op.plan.forward.form == form
    for n in (70, 15, 40, 70):
        check(op, n)
        check(op, n, kernel=True)


# ------------------------------------------------------------------------------------- masks

STRETCHES = """
pattern p(t: int = 24, offset: int = 1, w: int = 4) =
    { q -> k : q < t and k < t and q > k - w }
  | { q -> k : t <= q and q < 2 * t and k < t and (q - t) mod w != offset
               and k <= (q - offset - t) div w * w + offset }
  | { q -> k : t <= q and q < 2 * t and t <= k and k < 2 * t
               and (q - offset - t) div w == (k - offset - t) div w
               and (q - t) mod w != offset and (k - t) mod w != offset }
  | { q -> k : t <= q and q < 2 * t and 2 * t <= k
               and (q - offset - t) div w == (k - offset - 2 * t) div w }
"""


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("kernel", [False, True], ids=["cpu", "kernel"])
def test_gradients_of_a_mask_of_many_parts(offset: int, kernel: bool) -> None:
    """pytorch/pytorch#158212: wrong or NaN gradients of k and v where a mask has such parts.

    Three stretches of tokens, blocks that begin below zero, and queries that see no key.
    """
    op = compiled(STRETCHES.replace("offset: int = 1", f"offset: int = {offset}"))
    mask = op.pattern.mask(75)
    assert not mask.any(2).all()
    check(op, 75, kernel=kernel)


@pytest.mark.parametrize("kernel", [False, True], ids=["cpu", "kernel"])
@pytest.mark.parametrize("chunk", [8, 24, 40])
def test_chunks_with_a_left_context(chunk: int, kernel: bool) -> None:
    """pytorch/pytorch#141126: a third of all results wrong for a block mask with left context.

    Chunks smaller than a tile, across tiles, and wider than three.
    """
    text = f"pattern p = {{ q -> k : 0 <= q div {chunk} - k div {chunk} <= 2 }}"
    check(compiled(text), 91, kernel=kernel)


# --------------------------------------------------------------------------- 32-bit overflow


N = 50_001
SEEN = 4  # keys of a query, itself and those before
TILE = N - (N - 1) // 16 * 16  # tokens of the last tile


def last_tile(op: Any, **inputs: torch.Tensor) -> tuple[Any, ...]:
    """Attend the last queries of N tokens.

    Returns: the module, q, k, v, out and lse, and what the kernels are given besides.
    """
    skip_without_interpreter()
    module = load(last_program_only(typed(op.source)))
    q, k, v = (draw(1, 1, N, 16, seed=i) for i in range(3))
    extra: tuple[Any, ...] = ()
    if hasattr(module, "_arguments"):
        extra = module._arguments(q, k, inputs, None)
    out, lse = torch.zeros_like(q), torch.zeros(1, 1, N)
    module._gpu_forward(q, k, v, 0.25, out, lse, *extra)
    return module, (q, k, v, out, lse), extra


def tail(t: torch.Tensor) -> torch.Tensor:
    """Return the tokens that decide the last tile."""
    return t[:, :, -TILE - SEEN :]


def positions() -> tuple[torch.Tensor, torch.Tensor]:
    at = torch.arange(N)[-TILE - SEEN :]
    return at[:, None], at[None, :]


def test_products_of_positions() -> None:
    """pytorch/pytorch#190857, vllm-project/vllm#50427, NVIDIA-NeMo/Automodel#3802: 32-bit products.

    Past 46341 tokens a product of two positions does not fit; masks were silently wrong.
    """
    op = compiled(f"pattern p = {{ q -> k : 0 <= q - k < {SEEN} and (q * k + q) mod 3 != 1 }}")
    module, (q, k, v, out, lse), extra = last_tile(op)
    at_q, at_k = positions()
    assert int((at_q * at_k).min()) > 2**31
    mask = (at_q >= at_k) & (at_q - at_k < SEEN) & ((at_q * at_k + at_q) % 3 != 1)
    grad_out = draw(1, 1, N, 16, seed=3)
    *found, _ = module._gpu_backward(
        q, k, v, out, lse, grad_out, None, 0.25, *extra, needs=[True] * 3
    )
    q, k, v, out, lse, grad_out, *found = map(tail, (q, k, v, out, lse, grad_out, *found))
    call = Backward(pattern=mask, q=q, k=k, v=v, grad_out=grad_out)
    expected = reference(q, k, v, mask)
    for one, right in zip((out, lse, *found), (*expected, *reference_gradients(call).values()),
                          strict=True):  # fmt: skip
        one[:, :, :SEEN] = right[:, :, :SEEN]  # of another tile
    assert_within(out, lse, q, k, v, mask)
    assert_gradients_within(found, call)


def test_a_bias_for_each_pair_of_many_tokens() -> None:
    """pytorch/pytorch#145869: an illegal access where a bias [n, n] is read.

    Here it has more than 2**31 elements, of which those of the last tile are not 0.
    """
    op = compiled(f"""
        score bias(input table: real[n, n]) = {{ q -> k : table[q][k] }}
        attention p = softmax(dot + bias, over: {{ q -> k : 0 <= q - k < {SEEN} }})
    """)
    table = reserve(N * N, torch.float32).view(N, N)
    near = table[-TILE - SEEN :, -TILE - SEEN :]
    near.copy_(draw(*near.shape, seed=9))
    _, call, _ = last_tile(op, table=table)
    q, k, v, out, lse = map(tail, call)
    at_q, at_k = positions()
    mask = (at_q >= at_k) & (at_q - at_k < SEEN)
    given = Terms(mask, lambda dot: dot + near.double())
    expected = reference(q, k, v, given)
    for one, right in zip((out, lse), expected, strict=True):
        one[:, :, :SEEN] = right[:, :, :SEEN]
    assert_within(out, lse, q, k, v, given)


@pytest.mark.parametrize("text", [
    "pattern p = { q -> k : k <= q }",
    "pattern p = { q -> k : 0 <= q + nk - nq - k < 20 }",
], ids=["causal", "window_at_the_end"])  # fmt: skip
def test_few_queries_of_very_many_keys(text: str) -> None:
    """pytorch/pytorch#174923: illegal accesses of plain causal attention, few queries, many keys.

    K and V have more than 2**31 elements. Only the last program of each kernel runs.
    """
    skip_without_interpreter()
    op = compiled(text, dtype="fp16")
    module = load(last_program_only(typed(op.source)))
    nq, nk, half = 3, 2**27 + 5, torch.float16
    first, last = slice(0, 32), slice(nk - 32, nk)
    k, v = (reserve(nk * 16, half).view(1, 1, nk, 16) for _ in range(2))
    for seed, x in enumerate((k, v)):
        for part in (first, last):
            x[:, :, part] = draw(1, 1, 32, 16, seed=seed, dtype=half)
    q, grad_out = (draw(1, 1, nq, 16, seed=i, dtype=half) for i in (3, 4))
    out, lse = torch.empty_like(q), torch.empty(1, 1, nq)
    module._gpu_forward(q, k, v, 0.25, out, lse)
    seen = first if "k <= q" in text else last
    ends = torch.arange(nk)[seen]
    at = torch.arange(nq)[:, None]
    mask = ends <= at if seen == first else (at + nk - nq - ends >= 0) & (at + nk - nq - ends < 20)
    few = q, k[:, :, seen], v[:, :, seen]
    assert_within(out, lse, *few, mask)
    on_cpu = op(q, k, v, return_lse=True)
    assert_within(*on_cpu, *few, mask)
    dq, dk, dv, _ = module._gpu_backward(
        q, k, v, out, lse, grad_out, None, 0.25, needs=[True] * 3
    )
    call = Backward(pattern=mask, q=few[0], k=few[1], v=few[2], grad_out=grad_out)
    expected = reference_gradients(call)
    tile = slice(nk // 16 * 16, nk)  # the keys of the last program
    if seen == first:
        assert not dk[:, :, tile].any()
        assert not dv[:, :, tile].any()
        assert_gradients_within([dq, None, None], call)
        return
    found = []
    for one, name in ((dk, "k"), (dv, "v")):
        found.append(expected[name].clone())
        found[-1][:, :, -5:] = one[:, :, tile]
    assert_gradients_within([dq, *found], call)


# ------------------------------------------------------------------------------ learned biases

BIASES: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "one_number": ("dot * bias", "gain[0]", {"gain": (1,)}),
    "of_each_head": ("dot + bias", "table[h]", {"table": (4,)}),
    "of_each_pair": ("dot + bias", "table[q][k]", {"table": (21, 21)}),
    "of_each_head_and_pair": ("dot * bias", "table[h][q][k]", {"table": (4, 21, 21)}),
    "of_each_item_head_and_pair": ("dot + bias", "table[h][q][k]", {"table": (2, 4, 21, 21)}),
    "read_twice": ("dot + bias", "table[q] * table[k] + table[20 - q]", {"table": (21,)}),
    "band": ("dot + bias", "table[h][q][q - k]", {"table": (4, 21, 20)}),
    "two": ("dot + bias", "a[h] * b[q - k] + a[0]", {"a": (4,), "b": (20,)}),
}


@pytest.mark.parametrize("kernel", [False, True], ids=["cpu", "kernel"])
@pytest.mark.parametrize("name", BIASES)
def test_learned_biases(name: str, kernel: bool) -> None:
    """pytorch/pytorch#145208, #145869, #147551, meta-pytorch/attention-gym#20: learned biases.

    One number, a bias of each head, pair or item, one tensor read at several places of a score:
    an error while compiling, an illegal access, or a wrong gradient.
    """
    score, bias, shapes = BIASES[name]
    rank = {n: len(shape) - (len(shape) == 4) for n, shape in shapes.items()}
    inputs = ", ".join(f"input {n}: real[{', '.join('*' * r)}]" for n, r in rank.items())
    op = compiled(f"""
        score bias({inputs}) heads h: 4 = {{ q -> k, h : {bias} }}
        attention p heads h: 4 = softmax({score}, over: {{ q -> k : 0 <= q - k < 20 }})
    """)
    given = {n: draw(*shape, seed=7) for n, shape in shapes.items()}
    check(op, 21, kernel=kernel, **given)


def test_a_bias_that_a_layer_makes() -> None:
    """pytorch/pytorch#157677: a bias made by a linear layer trains or not, by what stands near it.

    Under torch.compile, printing and reading it besides.
    """
    torch._dynamo.reset()
    op = compiled("""
        score table(input bias: real[4, n, n]) heads h: 4 = { q -> k, h : bias[h][q][k] }
        attention p heads h: 4 = softmax(dot + table, over: { q -> k : k <= q })
    """)
    make, x = torch.nn.Linear(16, 4 * 21), draw(2, 21, 16)
    heads = draw(2, 4, 21, 16, seed=1)

    def block(x: torch.Tensor) -> torch.Tensor:
        bias = make(x).view(2, 21, 4, 21).permute(0, 2, 1, 3)
        out: torch.Tensor = op(heads, heads, heads, bias=bias)
        return out.square().mean() + bias.mean()

    block(x).backward()
    expected = [p.grad for p in make.parameters()]
    make.zero_grad()
    torch.compile(block, backend="aot_eager")(x).backward()
    dense = torch.nn.functional.scaled_dot_product_attention
    bias = make(x).view(2, 21, 4, 21).permute(0, 2, 1, 3)
    masked = bias.masked_fill(~torch.ones(21, 21, dtype=torch.bool).tril(), -torch.inf)
    loss = dense(heads, heads, heads, attn_mask=masked).square().mean() + bias.mean()
    right = torch.autograd.grad(loss, list(make.parameters()))
    for p, first, one in zip(make.parameters(), expected, right, strict=True):
        torch.testing.assert_close(p.grad, first)
        torch.testing.assert_close(p.grad, one)
