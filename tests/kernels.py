"""Helpers of the kernel tests: small hand-made plans, running emitted kernels, tracing them.

Kernels run under Triton's interpreter; a session that has a GPU runs the same tests on it.
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import os
import re
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from attnc.codegen.host import emit_host
from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import BlockMask, Piece, Progression, Tiling
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import ForwardPlan, Segment

_FOLDER = Path(tempfile.mkdtemp(prefix="attnc-kernels-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_NUMBER = itertools.count()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Q, K, H = ex.Var("q"), ex.Var("k"), ex.Var("h")
QB, NQ, NK = ex.Var("qb"), ex.Var("NQ"), ex.Var("NK")


def interval(first: ex.IntExpr, last: ex.IntExpr) -> Progression:
    """Key tiles first .. last, both included."""
    return Progression(base=first, count=ex.add(last, ex.ONE, ex.scale(-1, first)))


def plan_of(
    name: str,
    predicate: ex.BoolExpr,
    tiling: Tiling,
    pieces: list[Piece],
    *,
    heads: int | None = None,
    head_dim: int = 16,
    value_dim: int | None = None,
    dtype: Any = "fp32",
    form: Any = "ranges",
    row_order: Any = "forward",
    target: Any = "sm_90",
    warps: int = 4,
    stages: int = 2,
) -> ForwardPlan:
    """Make a forward plan from pieces, with one mask class for each distinct residual."""
    pattern = Pattern(name=name, heads=heads, body=Where(predicate))
    mask = BlockMask(pattern=pattern, tiling=tiling, pieces=tuple(pieces))
    masks = tuple(dict.fromkeys(p.residual for p in pieces if not p.full))
    segments = tuple(
        Segment(tiles=p.tiles, mask=0 if p.full else masks.index(p.residual) + 1) for p in pieces
    )
    return ForwardPlan(
        block_mask=mask, segments=segments, masks=masks, form=form, row_order=row_order,
        head_dim=head_dim, value_dim=value_dim or head_dim, dtype=dtype, target=target,
        warps=warps, stages=stages,
    )


def causal(side: int = 16, **options: Any) -> ForwardPlan:
    """Square tiles: the tiles left of the diagonal are full."""
    keep = ex.compare("<=", K, Q)
    most = ex.minimum(QB, ex.sub(NK, ex.ONE))
    pieces = [
        Piece(tiles=interval(ex.ZERO, ex.minimum(ex.sub(QB, ex.ONE), ex.sub(NK, ex.ONE)))),
        Piece(tiles=interval(QB, most), residual=keep),
    ]
    return plan_of("causal", keep, Tiling(side, side), pieces, row_order="reversed", **options)


def longformer(side: int = 16, reach: int = 3, sinks: int = 5, **options: Any) -> ForwardPlan:
    """Causal window of ``reach`` tiles back, plus sinks: sink | left edge | full | diagonal."""
    before = reach * side
    near_enough = ex.compare("<=", ex.sub(Q, K), ex.Const(before))
    in_sinks = ex.compare("<", K, ex.Const(sinks))
    keep = ex.and_(
        ex.compare("<=", K, Q),
        ex.or_(near_enough, in_sinks),
    )
    left = ex.sub(QB, ex.Const(reach))
    last = ex.sub(NK, ex.ONE)
    near = ex.sub(QB, ex.ONE)
    sink_tiles = -(-sinks // side)
    pieces = [
        Piece(
            tiles=Progression(
                base=ex.ZERO, count=ex.minimum(ex.Const(sink_tiles), left, NK),
            ),
            residual=in_sinks,
        ),
        Piece(
            tiles=Progression(
                base=left,
                count=ex.select(
                    ex.and_(ex.compare(">=", left, ex.ZERO), ex.compare("<=", left, last)),
                    ex.ONE, ex.ZERO,
                ),
            ),
            residual=ex.or_(near_enough, in_sinks),
        ),
        Piece(tiles=interval(ex.maximum(ex.add(left, ex.ONE), ex.ZERO), ex.minimum(near, last))),
        Piece(tiles=interval(QB, ex.minimum(QB, last)), residual=ex.compare("<=", K, Q)),
    ]
    return plan_of("longformer", keep, Tiling(side, side), pieces, **options)


def dilated(side: int = 16, tiles: int = 3, **options: Any) -> ForwardPlan:
    """Every ``tiles``-th key tile, and inside it the keys of the query's residue mod 3."""
    keep = ex.and_(
        ex.compare("==", ex.mod(ex.floordiv(K, side), tiles), ex.ZERO),
        ex.compare("==", ex.mod(ex.sub(Q, K), 3), ex.ZERO),
    )
    count = ex.floordiv(ex.add(NK, ex.Const(tiles - 1)), tiles)
    pieces = [
        Piece(
            tiles=Progression(base=ex.ZERO, count=count, period=tiles, run=1),
            residual=ex.compare("==", ex.mod(ex.sub(Q, K), 3), ex.ZERO),
        )
    ]
    return plan_of("dilated", keep, Tiling(side, side), pieces, **options)


def per_head(side: int = 16, heads: int = 4, **options: Any) -> ForwardPlan:
    """Head h sees h tiles back and its own."""
    keep = ex.and_(
        ex.compare("<=", ex.sub(ex.floordiv(Q, side), H), ex.floordiv(K, side)),
        ex.compare("<=", K, Q),
    )
    last = ex.sub(NK, ex.ONE)
    pieces = [
        Piece(
            tiles=interval(
                ex.maximum(ex.sub(QB, H), ex.ZERO), ex.minimum(ex.sub(QB, ex.ONE), last)
            )
        ),
        Piece(tiles=interval(QB, ex.minimum(QB, last)), residual=ex.compare("<=", K, Q)),
    ]
    return plan_of("per_head", keep, Tiling(side, side), pieces, heads=heads, **options)


def module_text(plan: ForwardPlan) -> str:
    """Return a runnable file: kernel, host code and helpers."""
    head = "import triton\nimport triton.language as tl\n"
    return "\n\n".join([head, emit_host(plan), HOST_HELPERS, emit_kernel(plan)])


def load(text: str) -> ModuleType:
    """Import a text from a real file (Triton reads the source of its kernels)."""
    path = _FOLDER / f"kernel_{next(_NUMBER)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def skip_without_interpreter() -> None:
    """Skip where loops do not run interpreted: triton 3.6 with numpy 2.4 or later."""
    try:
        installed = version("triton")
    except PackageNotFoundError:
        pytest.skip("triton is not installed")
    if os.environ.get("TRITON_INTERPRET") and broken(installed, np.__version__):
        pytest.skip(f"the interpreter of triton {installed} needs numpy < 2.4")


def broken(triton: str, numpy: str) -> bool:
    """Whether the interpreter of a triton breaks on a numpy: 3.6 reads 1-element arrays as int."""
    older, newer = ([int(n) for n in v.split(".")[:2]] for v in (triton, numpy))
    return older < [3, 7] and newer >= [2, 4]


def run(
    module: ModuleType, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch, with results poisoned beforehand."""
    skip_without_interpreter()
    out = torch.full((*q.shape[:3], v.shape[3]), float("nan"), dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], float("nan"), device=q.device)
    module._gpu_forward(q, k, v, scale, out, lse)
    return out, lse


def traced(text: str) -> str:
    """Make a module's kernel write what it does to each visited tile.

    The kernel takes one more tensor, ``TRACE[b, h, qb, kb]`` (int32, zeroed by the caller): each
    visit adds 1, and taking the branch of mask class c sets bit ``8 + c`` (class 0: the end of the
    keys).
    """
    here = "Trace + ((b.to(tl.int64) * heads + h) * NQ + qb) * NK + kb"
    text = re.sub(r"(def _attend\(\s*)Q,", r"\1Trace, Q,", text)
    text = re.sub(r"(_attend\[\(programs,\)\]\(\s*)q,", r"\1TRACE, q,", text)
    text = text.replace(
        "        k_pos = kb * BK", f"        tl.atomic_add({here}, 1)\n        k_pos = kb * BK"
    )
    text = re.sub(
        r"^( +)# mask (\d+): .*$",
        lambda m: f"{m[1]}tl.atomic_or({here}, {1 << (8 + int(m[2]))})",
        text,
        flags=re.MULTILINE,
    )
    return f"TRACE = None\n{text}"


def attended(plan: ForwardPlan, nq: int, nk: int) -> tuple[np.ndarray, np.ndarray]:
    """Run a plan's kernel with equal scores and V = identity.

    Returns: the set of pairs with a weight, bool ``[heads or 1, nq, nk]``, and the trace
    ``[heads or 1, NQ, NK]``.
    """
    heads = plan.block_mask.pattern.heads or 1
    module = load(traced(module_text(plan)))
    tiles = plan.block_mask.tiles_at(nq, nk)
    module.TRACE = torch.zeros((1, heads, *tiles), dtype=torch.int32, device=DEVICE)
    q = torch.zeros(1, heads, nq, plan.head_dim, device=DEVICE)
    k = torch.zeros(1, 1, nk, plan.head_dim, device=DEVICE)
    v = torch.eye(nk, plan.value_dim, device=DEVICE)[None, None]
    out, lse = run(module, q, k, v, 1.0)
    weights = out[0, :, :, :nk].cpu().numpy()
    counts = (weights > 0).sum(-1)
    expected = np.where(counts > 0, np.log(np.maximum(counts, 1)), -np.inf)
    np.testing.assert_allclose(lse[0].cpu().numpy(), expected, atol=1e-5)
    return weights > 0, module.TRACE[0].cpu().numpy()


def assert_agrees(plan: ForwardPlan, nq: int, nk: int) -> None:
    """Check that a kernel attends to the block mask's pairs, tile by tile as the plan says."""
    mask = plan.block_mask
    kept, trace = attended(plan, nq, nk)
    assert (kept == mask.dense(nq, nk)).all()
    grid = mask.grid(nq, nk)
    assert (trace & 0xFF == (grid >= 0)).all(), "tiles visited"
    # Pieces that no length reaches (2**40 tokens away) have no segment.
    masks = {segment.tiles: segment.mask for segment in plan.segments}
    classes = np.array([0, *(masks.get(piece.tiles, 0) for piece in mask.pieces)])[grid + 1]
    expected = np.where((grid >= 0) & (classes > 0), 1 << (8 + classes), 0)
    if nk % mask.tiling.k:  # the last tile crosses the end of the keys, so full ones check that
        last = (grid >= 0) & (classes == 0)
        last[:, :, :-1] = False
        expected += last * (1 << 8)
    assert (trace >> 8 << 8 == expected).all(), "mask branches taken"
