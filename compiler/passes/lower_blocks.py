"""Sets rounded to whole blocks -> quantifiers over the block, or a table computed at run time.

    blocks(p, 64, any)  -->  exists bq in 0..63 : exists bk in 0..63 : p(64 (q div 64) + bq, ...)
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.passes.lower_env import Env
from attnc.compiler.passes.lower_frame import Frame
from attnc.compiler.passes.lower_value import LowerError
from attnc.dsl import nodes as ast

if TYPE_CHECKING:
    from attnc.compiler.passes.lower_set import Lowered, SetLowering

MAX_BLOCK = 1 << 20
"""How many tokens one side of a block may have."""


def rounded(
    lowering: SetLowering, part: ast.Rounded, frame: Frame, env: Env
) -> Lowered:
    """Round a set to whole blocks.

    any: some pair of the block is in the set; all: every existing one is. ``count`` and
    ``density`` become a table that is computed at run time.
    """
    inner = lowering.set(part.part, frame, env)
    sizes = []
    for side in (part.block_q, part.block_k or part.block_q):
        size = lowering.exprs.compile_time(lowering.exprs.number(side, env), side.span)
        if not 1 <= size <= MAX_BLOCK:
            raise LowerError(
                "ATT0303", f"a block of {size} tokens", side.span,
                help=f"a block has 1 to {MAX_BLOCK} tokens along each side",
            )  # fmt: skip
        sizes.append(int(size))
    block_q, block_k = sizes
    predicate = pat.predicate(inner.node)
    if part.rule in ("any", "all") and ex.is_static(predicate):
        exact = _any_in_block if part.rule == "any" else _all_in_block
        lengths = tuple(length.expr for length in env.lengths)
        return replace(inner, node=pat.Where(exact(predicate, block_q, block_k, lengths)))
    op, threshold = part.op or (">" if part.rule == "any" else ">="), Fraction(0)
    if part.threshold is not None:
        threshold = lowering.exprs.compile_time(
            lowering.exprs.number(part.threshold, env), part.threshold.span
        )
    elif part.rule == "all":
        threshold = Fraction(1)
    count = ar.BlockCount(
        predicate=predicate, block_q=block_q, block_k=block_k, op=op,
        threshold=threshold.numerator, denominator=threshold.denominator,
        density=part.rule in ("all", "density"),
        nq=env.lengths[0].expr, nk=env.lengths[1].expr,
    )  # fmt: skip
    heads = inner.heads if "h" in ex.free_vars(predicate) else None
    sides = (
        ex.Const(heads or 1),
        ex.floordiv(ex.add(count.nq, ex.Const(block_q - 1)), block_q),
        ex.floordiv(ex.add(count.nk, ex.Const(block_k - 1)), block_k),
    )
    table = lowering.inputs.add(
        pat.Input(name=f"{frame.item.name}_blocks", kind="bool", dims=sides, formula=count),
        part.span,
    )
    at = (
        ex.Var("h") if heads else ex.ZERO,
        ex.floordiv(ex.Var("q"), block_q),
        ex.floordiv(ex.Var("k"), block_k),
    )
    lowering.exprs.note("a count of the pairs of a block", part.span)
    return replace(inner, node=pat.Where(ex.compare("!=", ex.Read(table.name, at), ex.ZERO)))


def _any_in_block(
    predicate: ex.BoolExpr, block_q: int, block_k: int, lengths: tuple[ex.IntExpr, ...]
) -> ex.BoolExpr:
    """Return that some existing pair of the block of (q, k) satisfies a predicate."""
    found, positions = predicate, {}
    bound: list[tuple[str, int]] = []
    taken = {n.var for n in ex.walk(predicate) if isinstance(n, ex.Exists)}
    for name, block, length in zip("qk", (block_q, block_k), lengths, strict=True):
        if block == 1:
            continue
        variable = next(v for v in (f"b{name}" + "_" * i for i in range(99)) if v not in taken)
        start = ex.scale(block, ex.floordiv(ex.Var(name), block))
        place = ex.add(start, ex.Var(variable))
        positions[name] = place
        bound.append((variable, block))
        found = ex.and_(found, ex.compare("<", ex.Var(name), length))
    found = ex.substitute(found, positions)
    for variable, block in bound:
        found = ex.Exists(variable, ex.ZERO, ex.Const(block - 1), found)
    return found


def _all_in_block(
    predicate: ex.BoolExpr, block_q: int, block_k: int, lengths: tuple[ex.IntExpr, ...]
) -> ex.BoolExpr:
    """Return that all existing pairs of the block of (q, k) satisfy a predicate."""
    return ex.not_(_any_in_block(ex.not_(predicate), block_q, block_k, lengths))
