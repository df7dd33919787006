"""Offsets past 2**31 elements, in the interpreter: small data that lies far apart in memory.

The memory is mapped, and only the pages of the data are ever there. A product of 32-bit numbers
would wrap, and the wrapped address lies in front of the data, in zeros.
"""

from __future__ import annotations

import ast
import mmap
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc.runtime.reference import assert_within
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.kernels import load, skip_without_interpreter

FAR = 2**31 + 8
DTYPE = torch.float16
TEXTS = {
    "ranges": "pattern p = { q -> k : k <= q and (k < 4 or q - k < 20) }",
    "data": "input doc: int[n]\npattern p = { q -> k : k <= q and doc[q] == doc[k] }",
    "boxes": "pattern p on grid(y: 6, x: 8) = "
    "{ q -> k : abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 2 }",
}
N = 48


@pytest.fixture(autouse=True)
def _on_a_64_bit_machine() -> None:
    skip_without_interpreter()
    if not hasattr(mmap, "MAP_ANONYMOUS") or torch.cuda.is_available():
        pytest.skip("needs the interpreter, and memory that is mapped before it is there")


def far(t: torch.Tensor, dim: int, stride: int) -> torch.Tensor:
    """Copy a tensor to where its neighbours along a dimension lie ``stride`` elements apart."""
    strides = list(t.contiguous().stride())
    strides[dim] = stride
    before = FAR  # zeros: where an offset that wrapped around would point
    reach = sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True)) + 1
    memory = reserve(before + reach, t.dtype)
    view = memory.as_strided(t.shape, strides, before)
    view.copy_(t)
    return view


def reserve(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Map zeros that take memory where they are written only."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    pages = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPE)


def typed(source: str) -> str:
    """Give numbers the types of their annotations: the interpreter takes 32 bits where they fit."""
    lines = source.splitlines()
    kernels = [
        node for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and "triton.jit" in "".join(
            ast.unparse(one) for one in node.decorator_list
        )
    ]  # fmt: skip
    assert kernels
    for kernel in reversed(kernels):
        casts = [
            f"    {a.arg} = tl.cast({a.arg}, {ast.unparse(a.annotation)})"
            for a in kernel.args.args
            if a.annotation is not None and ast.unparse(a.annotation) in ("tl.int32", "tl.int64")
        ]
        first = kernel.body[0].lineno - 1
        lines[first:first] = casts
    return "\n".join(lines)


def compiled(text: str, **options: Any) -> Any:
    given = {"head_dim": 16, "dtype": "fp16", "tile": (16, 16), "cache": False, **options}
    return attnc.compile(attnc.parse(text), **given)


PLACES = {"rows": (2, 9 * 2**24), "near_rows": (2, 2**26), "heads": (1, FAR), "batch": (0, FAR)}


@pytest.mark.parametrize(
    ("form", "place"),
    [*(("ranges", place) for place in PLACES), ("data", "rows"), ("data", "batch"),
     ("boxes", "rows"), ("boxes", "near_rows")],
)  # fmt: skip
def test_op(form: str, place: str) -> None:
    """Each tensor that a call reads; rows so far apart that a tile passes 2**31, or only a head."""
    op = compiled(TEXTS[form], tile="4x4,4x4" if form == "boxes" else (16, 16))
    module = load(typed(op.source))
    plain = [draw(2, heads, N, 16, seed=i) for i, heads in enumerate((4, 2, 2, 4))]
    q, k, v, grad_out = (far(t, *PLACES[place]) for t in plain)
    grad_lse = torch.randn(2, 4, N)
    inputs = {"doc": torch.arange(N) // 13} if form == "data" else {}
    extra = ([*inputs.values()], [], []) if inputs else ()
    out, lse = torch.empty(plain[0].shape, dtype=DTYPE), torch.empty(plain[0].shape[:3])
    module._gpu_forward(q, k, v, 0.25, out, lse, *extra)
    call = Backward(
        pattern=op._ir, q=plain[0], k=plain[1], v=plain[2], grad_out=plain[3], inputs=inputs,
        grad_lse=grad_lse,
    )  # fmt: skip
    assert_within(out, lse, *plain[:3], call.terms(plain[0], plain[1], inputs))
    *found, _ = module._gpu_backward(
        q, k, v, out, lse, grad_out, far(grad_lse, *PLACES[place]), 0.25, *extra,
        needs=[True] * 3 + [False] * len(inputs),
    )  # fmt: skip
    assert_gradients_within(found, call)


@pytest.mark.parametrize("place", PLACES)
def test_op_on_a_cpu(place: str) -> None:
    op = compiled(TEXTS["ranges"])
    plain = [draw(2, 2, N, 16, seed=i) for i in range(4)]
    q, k, v, grad_out = (far(t, *PLACES[place]) for t in plain)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    found = torch.autograd.grad(op(q, k, v), (q, k, v), grad_out)
    call = Backward(pattern=op._ir, q=plain[0], k=plain[1], v=plain[2], grad_out=plain[3])
    assert_gradients_within(found, call)


@pytest.mark.parametrize("place", ["rows", "heads", "batch"])
@pytest.mark.parametrize("page", [None, 8])
def test_decode_step(page: int | None, place: str) -> None:
    """Caches of far rows, heads, and items or pages give the same bits as near ones."""
    written = Path(compiled(TEXTS["ranges"]).decode.__globals__["__file__"])
    module = load(typed(written.read_text(encoding="utf-8")))
    q, lengths = draw(2, 4, 3, 16, seed=0), torch.tensor([33, 48])
    plain = [draw(2, 2, 48, 16, seed=i) for i in (1, 2)]
    table = None
    if page is not None:
        table = torch.arange(12, dtype=torch.int32).flip(0).view(2, 6)
        plain = [x.view(2, 2, 6, 8, 16).transpose(1, 2).reshape(12, 2, 8, 16) for x in plain]
    expected = module._gpu_decode(q, *plain, lengths, table, 0.25)
    moved = [far(x, *PLACES[place]) for x in (q, *plain)]
    found = module._gpu_decode(*moved, lengths, table, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def last_program_only(source: str) -> str:
    """Make each launch of a module run one program: the last tile of the last head."""
    source = source.replace("[(programs,)](", ".last(programs)(")
    source = source.replace("tl.program_id(0)", "(tl.program_id(0) + LAST)")
    which = r"= (rest // width|N[QK] - 1 - rest // width|tl\.load\(Order \+ rest // width\))"
    source, rows = re.subn(rf"([qk])b {which}", lambda m: f"{m[1]}b = N{m[1].upper()} - 1", source)
    assert rows >= 3  # forward, dQ, dK and dV
    source = re.sub(r"\b(\w+)\.last\(programs\)", r"_last(\1, programs)", source)
    return f"""{source}


def _last(kernel, programs):
    global LAST
    LAST = programs - 1
    return kernel[(1,)]
"""


def test_results() -> None:
    """More than 2**31 elements of results, of which the last head is computed."""
    op = compiled(TEXTS["ranges"])
    module = load(last_program_only(typed(op.source)))
    heads = (2**12 + 1, 2**11)
    one = [draw(1, 1, 16, 16, seed=i) for i in range(4)]
    q, k, v, grad_out = (t.expand(*heads, 16, 16) for t in one)
    out = reserve(FAR + q.numel(), DTYPE)[FAR:].view(q.shape)
    lse = reserve(q.numel() // 16, torch.float32).view(q.shape[:3])
    assert out.numel() > 2**31
    module._gpu_forward(q, k, v, 0.25, out, lse)
    call = Backward(pattern=op._ir, q=one[0], k=one[1], v=one[2], grad_out=one[3])
    last = (slice(-1, None), slice(-1, None))
    assert_within(out[last], lse[last], *one[:3], call.terms(one[0], one[1], {}))
    *found, _ = module._gpu_backward(
        q, k, v, out, lse, grad_out, None, 0.25, needs=[True] * 3
    )
    assert_gradients_within([g[last] for g in found], call)
