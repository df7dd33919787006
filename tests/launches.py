"""Helpers of the kernel tests: plans that read inputs, launched with arguments by name.

Tables and references are made from the dense mask, so these tests need neither the host code of a
written module nor its table builder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.predicate import HOST_HELPERS, TOKEN_RANGES, HostDialect
from attnc.codegen.score import TorchScore
from attnc.codegen.triton_forward import emit_kernel, heads_in_order, parameters
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import BlockMask, Piece, Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import DataTiles, ForwardPlan, Segment
from attnc.runtime.reference import out_allowance
from tests import kernels as kn

Given = Mapping[str, Any]
"""Inputs and numbers of a call, by name; tensors ``[B or 1, ...]``."""


def data_plan(pattern: Pattern, tiling: Tiling, **options: Any) -> ForwardPlan:
    """Make a plan of form "data" whose candidates are all tiles."""
    everywhere = kn.interval(ex.ZERO, ex.sub(kn.NK, ex.ONE))
    plan = kn.plan_of("all", ex.TRUE, tiling, [Piece(tiles=everywhere)], **options)
    return replace(
        plan,
        form="data",
        block_mask=BlockMask(
            pattern=pattern, tiling=tiling,
            pieces=(Piece(tiles=everywhere, residual=pattern.predicate),),
        ),
        segments=(Segment(tiles=everywhere, mask=1),),
        masks=(pattern.predicate,),
        data=DataTiles(predicate=pattern.predicate, core=ex.FALSE, refine=True),
    )


def of_form(plan: ForwardPlan, form: Literal["ranges", "table", "data"]) -> ForwardPlan:
    """Return the plan with its loop over ranges or over a table."""
    return replace(plan, form=form, data=plan.data if form == "data" else None)


def of_batch(given: Given, b: int) -> dict[str, Any]:
    """Return the inputs of one batch, for NumPy."""
    return {
        name: value[b if len(value) > 1 else 0].cpu().numpy()
        if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }


def from_arrays(pattern: Pattern, nq: int, nk: int, arrays: Given) -> dict[str, Any]:
    """Return inputs without a batch, and what is computed from them, as a kernel takes them."""
    known = pattern.given(nq, nk, arrays)
    return {
        name: torch.from_numpy(np.ascontiguousarray(value))[None] if np.ndim(value) else value
        for name, value in known.items()
    }


def dense(plan: ForwardPlan, nq: int, nk: int, given: Given, batch: int) -> np.ndarray:
    """Evaluate the mask. Shape: ``[batch, heads or 1, nq, nk]``."""
    pattern = plan.block_mask.pattern
    return np.stack([pattern.mask(nq, nk, of_batch(given, b)) for b in range(batch)])


def table(plan: ForwardPlan, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Build the tile table: rows ``[TB, TH, NQ]`` of exact classes, tiles in any order."""
    tiling = plan.tiling
    batches, heads, nq, nk = mask.shape
    starts, entries = [0], []
    for b in range(batches):
        for h in range(heads):
            for qb in range(-(-nq // tiling.q)):
                for kb in reversed(range(-(-nk // tiling.k))):
                    kept = mask[b, h, qb * tiling.q :, kb * tiling.k :][: tiling.q, : tiling.k]
                    if kept.any():
                        entries.append(kb * 8 + (not kept.all()))
                starts.append(len(entries))
    return torch.tensor(starts), torch.tensor([*entries, 0], dtype=torch.int32)


def launch(
    plan: ForwardPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
    given: Given,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the kernel of a plan with contiguous q, k, v, results poisoned beforehand."""
    kn.skip_without_interpreter()
    batch, heads, nq, _ = q.shape
    group, nk = heads // k.shape[1], k.shape[2]
    out = torch.full((*q.shape[:3], v.shape[3]), float("nan"), dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], float("nan"), device=q.device)
    rows = -(-nq // plan.tiling.q)
    values: dict[str, Any] = {
        "Q": q, "K": k, "V": v, "Out": out, "Lse": lse, "scale_log2": scale / np.log(2),
        "nq": nq, "nk": nk, "heads": heads, "group": group, "batch": batch, "section": group,
    }  # fmt: skip
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        strides = zip(("batch", "head", "row"), tensor.stride()[:3], strict=True)
        values |= {f"{name}_{part}": stride for part, stride in strides}
    mask_heads = plan.block_mask.pattern.heads or 1
    if plan.row_order == "sorted":
        listed = rows * (mask_heads if heads_in_order(plan) else 1)
        values["Order"] = torch.arange(listed - 1, -1, -1, dtype=torch.int32)
    if plan.form != "ranges":
        batches = max((len(t) for t in given.values() if isinstance(t, torch.Tensor)), default=1)
        mask = dense(plan, nq, nk, given, batches)
        values["RowStart"], values["Entries"] = table(plan, mask)
        values["table_batch"] = mask_heads * rows if batches > 1 else 0
        values["table_head"] = rows if mask_heads > 1 else 0
    for one in input_arguments(plan):
        value = given[one.name]
        match one.source:
            case "tensor":
                values[one.argument] = value.view(torch.uint8) if one.kind == "*u8" else value
            case "batch":
                values[one.argument] = value.stride(0) if len(value) > 1 else 0
            case "side":
                values[one.argument] = value.shape[1 + one.place]
            case "number":
                values[one.argument] = value
    arguments = [
        a.to(kn.DEVICE) if isinstance(a, torch.Tensor) else a
        for a in (values[name] for name, _ in parameters(plan))
    ]
    module = kn.load("import triton\nimport triton.language as tl\n\n\n" + emit_kernel(plan))
    programs = rows * batch * heads
    module._attend[(programs,)](
        *arguments, ALIGN=1, WIDE=False, num_warps=plan.warps, num_stages=plan.stages
    )
    return out, lse


def expected(
    plan: ForwardPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
    given: Given, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute dense attention in a dtype: float64 by NumPy's scores, others by torch text."""
    pattern = plan.block_mask.pattern
    batch, heads, nq, _ = q.shape
    nk, group = k.shape[2], heads // k.shape[1]
    q, k, v = (t.cpu().to(dtype) for t in (q, k, v))
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    products = q @ k.transpose(-1, -2) * scale
    own = torch.arange(heads) // (group if pattern.kv_heads else 1)
    own = own if pattern.heads else torch.zeros_like(own)
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=dtype)
    lse = torch.empty(q.shape[:3], dtype=dtype)
    for b in range(batch):
        inputs = of_batch(given, b)
        mask = torch.from_numpy(pattern.mask(nq, nk, inputs))[own]
        scope = {"q": torch.arange(nq)[None, :, None], "k": torch.arange(nk), "nq": nq, "nk": nk}
        scope |= {"h": own[:, None, None]}

        def real(
            expr: sc.RealExpr, dot: torch.Tensor, inputs: dict[str, Any] = inputs,
            scope: dict[str, Any] = scope,
        ) -> torch.Tensor:
            if dtype == torch.float64:
                arrays = {n: np.asarray(t) for n, t in scope.items()}
                return torch.as_tensor(sc.evaluate(expr, arrays, inputs, dot.numpy()))
            return torch.as_tensor(by_torch(pattern, expr, scope, inputs, dot))

        dot = products[b]
        scores = dot if pattern.score is None else real(pattern.score, dot).broadcast_to(dot.shape)
        scores = scores.to(dtype).masked_fill(~mask, -torch.inf)
        if pattern.sink is not None:
            sink = real(pattern.sink, dot[..., :1]).to(dtype).broadcast_to(heads, nq, 1)
            scores = torch.cat([scores, sink], -1)
        lse[b] = scores.logsumexp(-1)
        weights = scores.softmax(-1).nan_to_num(0.0)  # no key: 0
        out[b] = weights[..., :nk] @ v[b]
    return out, lse


def by_torch(
    pattern: Pattern, expr: sc.RealExpr, scope: Given, inputs: Given, dot: torch.Tensor
) -> Any:
    """Evaluate the torch text of a score."""
    text = TorchScore(HostDialect({n: n for n in ("q", "k", "h", "nq", "nk")}, TOKEN_RANGES)).text(
        expr
    )
    known: dict[str, Any] = {"torch": torch}
    exec(HOST_HELPERS, known)
    data = {
        n: torch.from_numpy(v)[None] if isinstance(v, np.ndarray) else v for n, v in inputs.items()
    }
    return eval(text, {**known, **scope, "data": data, "b": 0, "dtype": dot.dtype, "dot": dot})


def check(
    plan: ForwardPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float,
    given: Given,
) -> None:
    """Run a kernel and hold it against float64: twice the error of dense attention, plus ulps."""
    out, lse = launch(plan, q, k, v, scale, given)
    out64, lse64 = expected(plan, q, k, v, scale, given, torch.float64)
    dense_out, dense_lse = expected(plan, q, k, v, scale, given, q.dtype)
    out, lse = out.cpu().double(), lse.cpu().double()
    largest = float(out64.abs().max())
    allowed = out_allowance(q.dtype, float((dense_out.double() - out64).abs().max()), largest)
    assert float((out - out64).abs().max()) <= allowed
    empty = torch.isneginf(lse64)
    assert torch.equal(torch.isneginf(lse), empty)
    assert not out[empty].any()
    if empty.all():
        return
    error = float((dense_lse.double() - lse64)[~empty].abs().max())
    most = max(1.0, float(lse64[~empty].abs().max()))
    assert float((lse - lse64)[~empty].abs().max()) <= 2 * error + 8 * 2**-23 * most
