"""Where queries stand when there are fewer or more of them than keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import attnc
from attnc.cli import invoke
from attnc.compiler.driver import load_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.read import read
from attnc.compiler.ir.show import show
from attnc.compiler.ir.verify import verify
from attnc.compiler.passes.align import aligned
from attnc.compiler.passes.data_form import tiles_of
from attnc.dsl.diagnostics import CompileError
from attnc.runtime.reference import error_bound, reference, terms
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests import test_zoo as zoo
from tests.kernels import skip_without_interpreter

LENGTHS = [(1, 1), (7, 7), (5, 9), (9, 5), (1, 40), (33, 50), (50, 20)]
SINK_WINDOW = "pattern p = { q -> k : k <= q and (k < 4 or q - k < 20) }"
BY_LENGTH = "pattern p = { q -> k : k <= q & k >= nk - 30 } | { q -> k : q == nq - 1 or q < 2 }"
PRODUCT = "pattern p = { q -> k : k <= q and q * k mod 5 < 3 }"
TEXTS = [SINK_WINDOW, BY_LENGTH.replace("&", "and"), PRODUCT]


def last_rows(square: np.ndarray, nq: int) -> np.ndarray:
    """Return the last rows of masks ``[heads, nk, nk]``, those in front of the first one empty."""
    rows = square[:, max(0, square.shape[1] - nq) :]
    front = np.zeros((rows.shape[0], nq - rows.shape[1], rows.shape[2]), dtype=bool)
    return np.concatenate([front, rows], 1)


def compiled(text: str, **options: Any) -> Any:
    return attnc.compile(
        attnc.parse(text), head_dim=16, dtype="fp32", align="bottom-right", cache=False, **options
    )


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", TEXTS)
def test_rows_are_the_last_of_the_square(text: str) -> None:
    """The IR, its inverse, its text and its tiles all say so."""
    written = load_text(text)
    pattern = aligned(written, "bottom-right")
    assert read(show(pattern)) == pattern
    assert "  align bottom-right\n" in show(pattern)
    assert aligned(pattern, "bottom-right") is pattern
    mask, _, _ = tiles_of(pattern, Tiling(16, 16))
    assert not verify(mask)
    for nq, nk in LENGTHS:
        expected = last_rows(written.mask(nk, nk), nq)
        assert (pattern.mask(nq, nk) == expected).all()
        assert (pattern.transposed().mask(nk, nq).mT == expected).all()


@pytest.mark.parametrize(
    "name",
    ["alibi", "bigbird", "document", "longformer", "power_attention", "s2_attention", "t5_bias"],
)
def test_zoo(name: str) -> None:
    """Masks and scores of published patterns; inputs are those of the whole sequence."""
    pattern, _, nk, inputs = zoo.example(name)
    given = {n: np.asarray(x) for n, x in inputs.items()}
    last, nq = aligned(pattern.ir, "bottom-right"), nk // 2 + 1
    kept = last.mask(nq, nk, given)
    assert (kept == last_rows(pattern.mask(nk, inputs=given).numpy(), nq)).all()
    if last.score is not None:
        whole = pattern.scores(nk, inputs=given).values.numpy()[:, nk - nq :]
        found = last.scores(nq, nk, given)
        np.testing.assert_array_equal(found[kept], np.broadcast_to(whole, found.shape)[kept])


@pytest.mark.parametrize("text", TEXTS)
def test_one_op_for_many_lengths(text: str) -> None:
    """Forward and backward at many pairs of lengths, in the order they come."""
    op = compiled(text)
    written = load_text(text)
    for nq, nk in [*LENGTHS, (128, 131), (131, 128), (3, 200)]:
        q, k, v = random(1, 4, nq, 16), random(1, 2, nk, 16, seed=1), random(1, 2, nk, 16, seed=2)
        mask = torch.from_numpy(last_rows(written.mask(nk, nk), nq))
        out, lse = op(q, k, v, return_lse=True)
        out64, lse64 = reference(q, k, v, mask)
        assert torch.equal(torch.isneginf(lse), torch.isneginf(lse64))
        assert (out - out64).abs().max() <= error_bound(q, k, v, mask).out
        leaves = [x.requires_grad_() for x in (q, k, v)]
        grad_out = random(*out.shape, seed=3)
        found = torch.autograd.grad(op(*leaves), leaves, grad_out)
        assert_gradients_within(
            found, Backward(pattern=mask, q=q, k=k, v=v, grad_out=grad_out)
        )


def test_compiled_whole_for_many_lengths() -> None:
    """One graph serves lengths in both orders.

    pytorch/pytorch#137779: ``causal_lower_right`` under ``torch.compile`` was right at the first
    pair of lengths, and failed at the next.
    """
    op = compiled(SINK_WINDOW)
    torch._dynamo.reset()
    counts = CompileCounter()
    traced = torch.compile(op, fullgraph=True, dynamic=True, backend=counts)
    for nq, nk in [(5, 9), (9, 5), (3, 40), (33, 50), (50, 20), (128, 131), (131, 128)]:
        q, k, v = random(1, 4, nq, 16), random(1, 2, nk, 16, seed=1), random(1, 2, nk, 16, seed=2)
        torch.testing.assert_close(traced(q, k, v), op(q, k, v), rtol=0, atol=0)
    assert counts.frame_count == 1


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("nq", "nk"), [(33, 50), (50, 20)])
def test_kernels(text: str, nq: int, nk: int) -> None:
    """The same op by its kernels, forward and backward, in the interpreter."""
    skip_without_interpreter()
    op = compiled(text, tile=(16, 16))
    q, k, v = random(1, 2, nq, 16), random(1, 1, nk, 16, seed=1), random(1, 1, nk, 16, seed=2)
    module = op._function.__globals__
    given = terms(op.plan.pattern, q, k)
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
    module["_gpu_forward"](q, k, v, 0.25, out, lse)
    out64, lse64 = reference(q, k, v, given)
    assert torch.equal(torch.isneginf(lse), torch.isneginf(lse64))
    assert (out - out64).abs().max() <= error_bound(q, k, v, given).out
    grad_out = random(*out.shape, seed=3)
    *found, _ = module["_gpu_backward"](
        q, k, v, out, lse, grad_out, None, 0.25, needs=[True] * 3
    )
    assert_gradients_within(found, Backward(pattern=given.mask, q=q, k=k, v=v, grad_out=grad_out))


def test_a_decode_step_is_not_moved_twice() -> None:
    """Its queries stand at the end of the cache, whatever the alignment of the op."""
    op = compiled(SINK_WINDOW)
    q, k, v = random(1, 2, 3, 16), random(1, 2, 50, 16, seed=1), random(1, 2, 50, 16, seed=2)
    step = op.decode(q, k, v, torch.tensor([50]))
    torch.testing.assert_close(step, op(q, k, v), rtol=1e-5, atol=1e-5)


def test_inputs_are_those_of_the_keys_sequence() -> None:
    """``doc[q]`` reads at the query's position: the last entries."""
    op = compiled("input doc: int[n]\npattern p = { q -> k : k <= q and doc[q] == doc[k] }")
    q, k, v = random(1, 2, 5, 16), random(1, 2, 20, 16, seed=1), random(1, 2, 20, 16, seed=2)
    doc = torch.arange(20) // 7
    row = torch.arange(15, 20)[:, None]
    mask = (torch.arange(20) <= row) & (doc[15:, None] == doc)
    out64, _ = reference(q, k, v, mask[None])
    assert (op(q, k, v, doc=doc) - out64).abs().max() <= error_bound(q, k, v, mask[None]).out


def test_grids() -> None:
    """One space has one length; two spaces have no alignment."""
    one = attnc.zoo.swin(h=8, w=8).ir
    assert aligned(one, "bottom-right") is one
    with pytest.raises(CompileError, match="ATT0411") as error:
        attnc.compile(attnc.zoo.agent_collect(), align="bottom-right")
    assert error.value.diagnostics[0].code == "ATT0411"
    with pytest.raises(ValueError, match="align must be one of 'top-left', 'bottom-right'"):
        attnc.compile(attnc.zoo.causal(), align="left")


def test_modules_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``align`` is an option of modules; ``--align`` one of ``emit`` and ``compile``."""
    layer = attnc.nn.CrossAttention(32, 2, attnc.zoo.causal(), align="bottom-right")
    assert layer.attention.op.options.align == "bottom-right"
    assert layer(random(1, 3, 32), random(1, 8, 32)).shape == (1, 3, 32)
    assert not invoke(["emit", "causal", "--align", "bottom-right", "--stage", "plan"])
    assert "  align bottom-right\n" in capsys.readouterr().out
    assert not invoke(["compile", "causal", "--align", "bottom-right", "-o", str(tmp_path / "ops")])
    assert "alignment   bottom-right" in (tmp_path / "ops" / "causal.py").read_text("utf-8")
