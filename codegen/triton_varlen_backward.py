"""backward plan -> Triton kernels over packed sequences: those of the op, at other addresses."""

from __future__ import annotations

from attnc.codegen.learned import sum_pointers, sum_strides
from attnc.codegen.triton_backward import (
    STRIDES,
    BackwardKernel,
    Kernel,
    KeyKernel,
    QueryKernel,
)
from attnc.codegen.triton_learned import LearnedKernel
from attnc.codegen.triton_varlen import emit_no_tiles, emit_which, packed_parameters
from attnc.compiler.ir.plan import BackwardPlan, LoopPlan

PREPARE = '''\
@triton.jit(do_not_specialize=[
    "o_head", "o_row", "lse_head", "lse_row", "total_q", "heads",
])
def _prepare_rows(
    Out, Lse, GradOut, GradLse, Total, Delta, o_head: tl.int64, o_row: tl.int64,
    lse_head: tl.int64, lse_row: tl.int64, total_q: tl.int32, heads: tl.int32,
    DV: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr, WITH_LSE: tl.constexpr,
):
    """Fill Total [Hq, total_q], log2 of the sum of exponentials, and Delta, row sums of dO * O.

    A row without keys has Total inf, which makes its weights 0, and Delta 0.
    """
    tiles = (total_q + ROWS - 1) // ROWS
    h = (tl.program_id(0) // tiles).to(tl.int64)
    token = (tl.program_id(0) % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, PAD)[None, :]
    there = token < total_q
    inside = there[:, None] & (dims < DV)
    out = tl.load(Out + (token[:, None] * heads + h) * DV + dims, mask=inside, other=0.0)
    grad_out = GradOut + token[:, None] * o_row + h * o_head + dims
    grad_out = tl.load(grad_out, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(out.to(tl.float32) * grad_out, 1)
    if WITH_LSE:
        delta -= tl.load(GradLse + h * lse_head + token * lse_row, mask=there, other=0.0)
    row = h * total_q + token
    lse = tl.load(Lse + row, mask=there, other=0.0)
    empty = lse == float("-inf")
    total = tl.where(empty, float("inf"), lse * 1.4426950408889634)
    tl.store(Total + row, total, mask=there)
    tl.store(Delta + row, tl.where(empty, 0.0, delta), mask=there)
'''
"""The kernel that goes before the others: what they need of each row."""

PACKED_STRIDES = tuple(name for name in STRIDES if not name.endswith("_batch"))
"""Stride arguments, int64, in units of ALIGN elements."""

_RESULTS: dict[Kernel, tuple[str, ...]] = {
    "dq": ("GradQ",), "dkdv": ("GradK", "GradV"), "dk": ("GradK",), "dv": ("GradV",),
}  # fmt: skip


def loops_of(backward: BackwardPlan) -> dict[Kernel, LoopPlan]:
    """Return the kernels of a plan, in the order they run."""
    found: dict[Kernel, LoopPlan] = {"dq": backward.dq, "dkdv": backward.dkdv}
    if backward.dk is not None:
        found = {"dq": backward.dq, "dv": backward.dkdv, "dk": backward.dk}
    return found if backward.learned is None else {**found, "learned": backward.learned}


def parameters(plan: LoopPlan, kernel: Kernel) -> tuple[tuple[str, str], ...]:
    """Return the run-time arguments of a kernel in order, with their Triton types.

    ``Total`` and ``Delta`` ``[Hq, total_q]``; the results have tokens in front, then heads.
    """
    pointers = [(name, "*") for name in ("Q", "K", "V", "GradOut")]
    pointers += [("Total", "*fp32"), ("Delta", "*fp32")]
    if kernel == "learned":
        pointers += sum_pointers(plan)
        return packed_parameters(plan, pointers, PACKED_STRIDES, sum_strides(plan))
    pointers += [(name, "*") for name in _RESULTS[kernel]]
    return packed_parameters(plan, pointers, PACKED_STRIDES)


class _Packed(BackwardKernel):
    """Where packed sequences lie: overrides of all kernels."""

    packed = True

    def given(self) -> tuple[tuple[str, str], ...]:
        """Return the run-time arguments with their types."""
        return parameters(self.plan, self.kernel)

    def which_row(self, heads: str, head: str) -> None:
        """Print which tile of which head of which sequence a program has."""
        emit_which(self.out, self.plan, self.row, heads, head)
        self.out.line()

    def segments(self) -> None:
        """Print where the segments of a row begin and end."""
        self.loop.segments()
        if self.plan.segments:
            emit_no_tiles(self.out, self.loop.end, self.column)

    def base(self, letter: str) -> str:
        """Return where the first token of the sequence lies in a tensor."""
        return f"{'q' if letter in 'qo' else 'k'}_start * ({letter}_row * ALIGN)"

    def first_row(self, side: str, heads: str, head: str) -> str:
        """Return the number of the first row of a head, in what has a row for each token."""
        return f"{head}.to(tl.int64) * total_{side} + {side}_start"

    def result_row(self, heads: str, head: str) -> str:
        """Return the rows of a result: heads lie beside each other, behind the token."""
        return f"(({self.row}_start + {self.row}_pos) * {heads} + {head})"


class _PackedQueries(_Packed, QueryKernel):
    """dQ of packed sequences."""

    def finish(self) -> None:
        """Print where the sums of a row go."""
        self.out.line(f"row = {self.result_row('heads', 'h')}  # [BQ, 1]")
        super().finish()


class _PackedLearned(_Packed, LearnedKernel):
    """What learned inputs, which all sequences share, get from all of them."""

    def lengths(self) -> tuple[str, str]:
        """Return the most queries and the most keys that differences of positions come from."""
        return "total_q", "total_k"


class _PackedKeys(_Packed, KeyKernel):
    """dK, dV or both of packed sequences."""


def emit_kernel(plan: LoopPlan, kernel: Kernel) -> tuple[list[str], str]:
    """Print a kernel: the helpers it calls, and its own source.

    The source expects ``triton`` and ``triton.language as tl`` to be imported, and
    ``triton_varlen.HELPERS``.
    """
    writer: BackwardKernel
    match kernel:
        case "dq":
            writer = _PackedQueries(plan, kernel)
        case "learned":
            writer = _PackedLearned(plan)
        case _:
            writer = _PackedKeys(plan, kernel)
    text = writer.text()
    return writer.terms.helpers(), text
