"""Source of the kernel that goes before the others of a backward."""

from __future__ import annotations

PREPARE = '''\
@triton.jit(do_not_specialize=[
    "o_batch", "o_head", "o_row", "lse_batch", "lse_head", "lse_row", "nq", "heads",
])
def _prepare_rows(
    Out, Lse, GradOut, GradLse, Total, Delta, o_batch: tl.int64, o_head: tl.int64, o_row: tl.int64,
    lse_batch: tl.int64, lse_head: tl.int64, lse_row: tl.int64, nq: tl.int32, heads: tl.int32,
    DV: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr, WITH_LSE: tl.constexpr,
):
    """Fill Total [B, Hq, Q], log2 of the sum of exponentials, and Delta, the row sums of dO * O.

    A row without keys has Total inf, which makes its weights 0, and Delta 0.
    """
    tiles = (nq + ROWS - 1) // ROWS
    program = tl.program_id(0)
    place = program // tiles
    b, h = place // heads, place % heads
    q_pos = program % tiles * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, PAD)[None, :]
    there = q_pos < nq
    row = place.to(tl.int64) * nq + q_pos
    inside = there[:, None] & (dims < DV)
    out = tl.load(Out + row[:, None] * DV + dims, mask=inside, other=0.0).to(tl.float32)
    grad_out = GradOut + b * o_batch + h * o_head + q_pos[:, None] * o_row + dims
    delta = tl.sum(out * tl.load(grad_out, mask=inside, other=0.0).to(tl.float32), 1)
    if WITH_LSE:
        grad_lse = GradLse + b * lse_batch + h * lse_head + q_pos * lse_row
        delta -= tl.load(grad_lse, mask=there, other=0.0)
    lse = tl.load(Lse + row, mask=there, other=0.0)
    empty = lse == float("-inf")
    total = tl.where(empty, float("inf"), lse * 1.4426950408889634)
    tl.store(Total + row, total, mask=there)
    tl.store(Delta + row, tl.where(empty, 0.0, delta), mask=there)
'''
"""The kernel that goes before the others: what they need of each row."""
