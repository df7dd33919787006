"""plan of packed sequences -> Triton kernels: those of the op, for sequences one after the other.

A program finds its sequence from where sequences start, takes the lengths of that one, and then
does what a kernel of the op does: bounds and masks are evaluated at the sequence's own positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.triton_forward import ForwardKernel
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import ForwardPlan, LoopPlan

STRIDES = ("q_head", "q_row", "k_head", "k_row", "v_head", "v_row")
"""Stride arguments of the forward, int64, in units of ALIGN elements."""

INTEGERS = ("total_q", "total_k", "heads", "group", "batch", "section")
"""Length of all queries and of all keys, heads of q, those for each head of k, sequences."""

HELPERS = '''\
@triton.jit
def _sequence_of(Starts, slot, batch, TILE: tl.constexpr):
    """Find the sequence of a slot: the last one whose first slot is not behind it.

    The slots of sequence b begin at ``Starts[b] // TILE + b``: enough for the tiles of each, at
    most one too many.
    """
    found = -1
    for first in range(0, batch, 256):
        b = first + tl.arange(0, 256)
        start = tl.load(Starts + b, mask=b < batch, other=0).to(tl.int32)
        found += tl.sum(((b < batch) & (start // TILE + b <= slot)).to(tl.int32), 0)
    return tl.maximum(found, 0)


@triton.jit
def _start_of(Starts, b, total):
    """Return where a sequence starts, inside the tensor whatever stands there."""
    return tl.minimum(tl.maximum(tl.load(Starts + b).to(tl.int32), 0), total)
'''
"""Functions that the kernels call."""


def parameters(plan: ForwardPlan) -> tuple[tuple[str, str], ...]:
    """Return the run-time arguments of the forward in order, with their Triton types.

    A type ``*`` is a pointer to the dtype of the call; ALIGN and WIDE, constexpr, follow them.
    ``StartsQ`` and ``StartsK`` have an entry for each sequence and one more. ``Out [total_q, Hq,
    Dv]``, ``Lse [Hq, total_q]``.
    """
    pointers = [("Q", "*"), ("K", "*"), ("V", "*"), ("Out", "*"), ("Lse", "*fp32")]
    return packed_parameters(plan, pointers, STRIDES)


def packed_parameters(
    plan: LoopPlan, pointers: Sequence[tuple[str, str]], strides: Sequence[str],
    numbers: Sequence[str] = (),
) -> tuple[tuple[str, str], ...]:
    """Return the arguments of a packed kernel, given its tensors and int64 numbers."""
    given = [(one.argument, one.kind) for one in input_arguments(plan) if one.source != "batch"]
    return (
        *pointers, ("StartsQ", "*i32"), ("StartsK", "*i32"),
        *(one for one in given if one[1].startswith("*")),
        ("scale_log2", "fp32"),
        *((name, "i64") for name in strides),
        *((name, "i32") for name in INTEGERS),
        *((name, "i64") for name in numbers),
        *(one for one in given if not one[1].startswith("*")),
    )  # fmt: skip


def emit_which(out: Writer, plan: LoopPlan, row: str, heads: str, head: str) -> None:
    """Print which tile of which sequence a program has, and how long that sequence is.

    Args: ``row`` is the letter of the side of the rows; ``heads`` counts the heads of its rows, and
        ``head`` is the name of one of them.
    """
    tile, side = f"{row}b", row.upper()
    out.line(f"slots = total_{row} // B{side} + batch")
    out.line("program = tl.program_id(0)")
    out.comment("Heads go in sections that share the L2 cache, and walk the slots together.")
    out.line("first_head = program // (slots * section) * section")
    out.line(f"width = tl.minimum(section, {heads} - first_head)")
    out.line("rest = program - first_head * slots")
    out.line(f"{head} = first_head + rest % width")
    out.line("slot = rest // width")
    out.line(f"b = _sequence_of(Starts{side}, slot, batch, B{side})")
    for letter in "qk":
        starts = f"Starts{letter.upper()}"
        out.line(f"{letter}_start = _start_of({starts}, b, total_{letter})")
        end = f"_start_of({starts}, b + 1, total_{letter})"
        out.line(f"n{letter} = tl.maximum({end} - {letter}_start, 0)")
    out.line("NQ = (nq + BQ - 1) // BQ")
    out.line("NK = (nk + BK - 1) // BK")
    out.line(f"{tile} = slot - {row}_start // B{side} - b")
    if plan.row_order == "reversed":
        out.line(f"{tile} = N{side} - 1 - {tile}  # the row with the most tiles first")
    out.comment("A slot that the sequence does not need.")
    with out.block(f"if ({tile} < 0) | ({tile} >= N{side}):"):
        out.line("return")
    out.line("q_start, k_start = q_start.to(tl.int64), k_start.to(tl.int64)")


def emit_no_tiles(out: Writer, end: str, column: str) -> None:
    """Print that a sequence without tokens on the other side has no tiles there."""
    out.line(f"{end} = tl.where(n{column} > 0, {end}, 0)")


class PackedForward(ForwardKernel):
    """The forward kernel over packed sequences."""

    def given(self) -> tuple[tuple[str, str], ...]:
        """Return the run-time arguments with their types."""
        return parameters(self.plan)

    def which_row(self) -> None:
        """Print which row of which head of which sequence a program has."""
        emit_which(self.out, self.plan, "q", "heads", "h")
        if self.terms.head != "h":
            self.out.line(f"{self.terms.head} = h // group  # the mask speaks of heads of keys")
        self.out.line()

    def segments(self) -> None:
        """Print where the segments of a row begin and end."""
        self.loop.segments()
        if self.plan.segments:
            emit_no_tiles(self.out, self.loop.end, "k")

    def base(self, tensor: str) -> str:
        """Return where the first token of the sequence lies in a tensor."""
        return f"{'q' if tensor == 'q' else 'k'}_start * ({tensor}_row * ALIGN)"

    def places(self) -> tuple[str, str]:
        """Print where the row's results go; return their places in lse and, in rows, in out."""
        self.out.line("token = q_start + q_pos  # [BQ, 1] int64")
        return "h.to(tl.int64) * total_q + token", "(token * heads + h)"


def emit_forward(plan: ForwardPlan) -> str:
    """Print the forward kernel of packed sequences and what it calls.

    The source expects ``triton`` and ``triton.language as tl`` to be imported.
    """
    return f"{HELPERS}\n\n{PackedForward(plan).text()}"
