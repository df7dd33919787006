"""Routed plan -> Triton kernels of what its routes select, and their launches.

One kernel serves every kind of unit. A program has some rows, queries of one unit (of the heads
that share a selection), and runs over the keys of the units that these selected, gathered by an
index that is read beside them. Keys and values get their gradients by the inverse relation, made on
the device by a stable sort, so nothing is added atomically and sums are the same from run to run.
"""

from __future__ import annotations

from typing import Literal

from attnc.codegen.predicate import TOKEN_RANGES
from attnc.codegen.route_shapes import count_text
from attnc.codegen.triton_predicate import TRITON_HELPERS, TritonDialect
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.route import Route
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import padded

PARAMETERS: tuple[tuple[str, str], ...] = (
    *((name, "i64") for name in (
        "q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row", "v_batch", "v_head", "v_row",
    )),
    *((name, "i32") for name in (
        "nq", "nk", "heads", "kv_heads", "choosers", "sharing", "rows", "room", "unit_tokens",
        "tiles",
    )),
)  # fmt: skip
"""What every kernel takes behind its pointers: strides in elements, then numbers."""

FORWARD = ("Q", "K", "V", "Out", "Lse", "Index", "Count", "scale_log2")
DQ = ("Q", "K", "V", "GradOut", "Lse", "Delta", "DQ", "Index", "Count", "scale_log2")
DKDV = ("Q", "K", "V", "GradOut", "Lse", "Delta", "DK", "GradV", "Starts", "Rows", "scale_log2")
KINDS = {"Index": "*i32", "Count": "*i32", "Starts": "*i64", "Rows": "*i32", "Lse": "*fp32",
         "Delta": "*fp32", "Out": "*fp32", "DQ": "*fp32", "DK": "*fp32", "GradV": "*fp32",
         "scale_log2": "fp32"}  # fmt: skip


def refuses(plan: RoutedPlan) -> str:
    """Return why there are no kernels for a plan; "" where there are."""
    routes = plan.routed.routes
    if any(route.emit == "members" for route in routes):
        return "members attend on a CPU only"
    if any("cell" in (route.query.kind, route.key.kind) for route in routes):
        return "cells of a grid are attended to on a CPU only"
    if any(route.emit == "slashes" for route in routes) or len(routes) > 1:
        return "several routes in one softmax, and slashes, are attended to on a CPU only"
    if not ex.is_static(plan.rest) or "h" in ex.free_vars(plan.rest):
        return "masks that read inputs, or differ from head to head, are checked on a CPU only"
    return ""


def unit_tokens(route: Route) -> tuple[int, int]:
    """Return how many tokens a query unit (0: all) and a key unit have."""
    query = {"token": 1, "last": 0}.get(route.query.kind, 0)
    if route.query.kind == "block":
        query = route.query.sizes[0] * route.widen
    elif route.query.kind == "token":
        query = route.widen
    return query, route.key.sizes[0] if route.key.kind == "block" else 1


Kernel = Literal["forward", "dq", "dkdv"]
TILES: dict[tuple[Literal["tokens", "blocks"], Kernel], tuple[tuple[int, int, int], ...]] = {
    ("tokens", "forward"): ((16, 64, 4), (16, 32, 4), (16, 16, 4)),
    ("tokens", "dq"): ((16, 64, 4), (16, 32, 4), (16, 32, 4)),
    ("tokens", "dkdv"): ((16, 64, 4), (16, 32, 4), (16, 32, 4)),
    ("blocks", "forward"): ((64, 64, 4), (64, 32, 8), (16, 16, 4)),
    ("blocks", "dq"): ((64, 64, 4), (64, 64, 8), (16, 32, 4)),
    ("blocks", "dkdv"): ((64, 32, 4), (32, 32, 4), (16, 32, 4)),
}
"""Query rows, keys and warps of a tile, for widths up to 64, 128 and 256, where the queries of a
unit are one token or many: tiles that compile ahead of time for NVIDIA's targets without spills and
serialised products (tests/routes/test_kernels.py)."""


def tile(plan: RoutedPlan, kernel: Kernel) -> tuple[int, int, int, int]:
    """Return rows and keys of a tile, warps and stages."""
    query, _ = unit_tokens(plan.routed.routes[0])
    wide = padded(max(plan.head_dim, plan.value_dim))
    size = 0 if wide <= 64 else 1 if wide == 128 else 2
    rows, keys, warps = TILES["tokens" if query == 1 else "blocks", kernel][size]
    if plan.target == "sm_80" and (query, kernel, size) == (1, "forward", 1):
        keys = 64
    if plan.target == "gfx942":
        return rows, keys, 4, 1
    return rows, keys, warps, 2 if wide <= 128 else 1


def emit_gpu(plan: RoutedPlan) -> str:
    """Print ``_gpu_routed_forward`` and ``_gpu_routed_backward``, as top-level source."""
    why = refuses(plan)
    if why:
        return _REFUSAL.format(why=why)
    helpers, keeps = _predicate(plan)
    route = plan.routed.routes[0]
    query, key = unit_tokens(route)
    space = plan.routed.base
    values = {
        "D": plan.head_dim, "DV": plan.value_dim, "DP": padded(plan.head_dim),
        "DVP": padded(plan.value_dim), "T": key,
    }
    kernels = []
    texts: tuple[tuple[Kernel, tuple[str, ...], str], ...] = (
        ("forward", FORWARD, _FORWARD), ("dq", DQ, _DQ), ("dkdv", DKDV, _DKDV)
    )  # fmt: skip
    for name, pointers, text in texts:
        rows, keys, _, _ = tile(plan, name)
        head = "\n".join(
            f"    {n}: tl.constexpr = {value}  # {_SAID[n]}"
            for n, value in {"BQ": rows, "BK": keys, **values}.items()
        )
        kernels.append(
            text.replace("@FIXED", _fixed()).replace("@HEAD", head).replace("@KEEPS", keeps)
            .replace("@GIVEN", _arguments(pointers))
        )  # fmt: skip
    queries = count_text(route.query, "nq", space.query_space)
    host = (
        _HOST.replace("@QUERIES", str(query) if query else "max(nq, 1)")
        .replace("@ROWS", f"-(-({queries}) // {route.widen})" if route.widen > 1 else queries)
        .replace("@UNITS", count_text(route.key, "nk", space.key_space)).replace("@KEY", str(key))
    )
    for name, _, _ in texts:
        rows, keys, warps, stages = tile(plan, name)
        host = host.replace(f"@BQ_{name}", str(rows)).replace(f"@BK_{name}", str(keys))
        host = host.replace(f"@SETTINGS_{name}", f"num_warps={warps}, num_stages={stages}")
    return "\n\n".join([*helpers, *kernels, host])


def _predicate(plan: RoutedPlan) -> tuple[list[str], str]:
    """Return helpers, and the lines that leave out pairs that do not count."""
    if plan.rest == ex.TRUE:
        return [], "counts = there[None, :]"
    names = {"q": "q_pos", "k": "k_pos", "nq": "nq", "nk": "nk"}
    dialect = TritonDialect(names, dict(TOKEN_RANGES), {})
    text = dialect.boolean(plan.rest)
    helpers = [TRITON_HELPERS[name] for name in sorted(dialect.helpers)]
    return helpers, f"counts = ({text}) & there[None, :]"


def _fixed() -> str:
    names = ", ".join(f'"{name}"' for name, _ in PARAMETERS)
    return f"@triton.jit(do_not_specialize=[{names}])"


def _arguments(pointers: tuple[str, ...]) -> str:
    kinds = {"i64": "tl.int64", "i32": "tl.int32"}
    typed = ", ".join(f"{name}: {kinds[kind]}" for name, kind in PARAMETERS)
    return f"{', '.join(pointers)}, {typed}"


_SAID = {
    "BQ": "query rows a tile", "BK": "keys a tile", "D": "head dim of q and k",
    "DV": "head dim of v and out", "DP": "that of q and k, filled up",
    "DVP": "that of v, filled up", "T": "tokens of a key unit",
}

_REFUSAL = '''\
def _gpu_routed_forward(*arguments):
    """Refuse: there are no kernels for what these routes select."""
    raise RuntimeError(f"{{NAME}}: {why}")


_gpu_routed_backward = _gpu_routed_forward
'''

_FORWARD = '''\
@FIXED
def _attend_selected(
    @GIVEN,
):
    """Attend some queries of one unit to the keys of the units that it selected."""
@HEAD
    program = tl.program_id(0)
    part = program % tiles
    unit = program // tiles % rows
    block = program // tiles // rows % (heads // sharing)
    b = program // tiles // rows // (heads // sharing)
    first_head = block * sharing
    row = part * BQ + tl.arange(0, BQ)
    q_pos = unit * unit_tokens + row // sharing
    h = first_head + row % sharing
    mine = (row // sharing < unit_tokens) & (q_pos < nq)
    kv = first_head // (heads // kv_heads)
    dims = tl.arange(0, DP)
    value_dims = tl.arange(0, DVP)
    span = tl.arange(0, BK)
    Q += b * q_batch
    K += b * k_batch + kv * k_head
    V += b * v_batch + kv * v_head
    at = h.to(tl.int64) * q_head + q_pos.to(tl.int64) * q_row
    q = tl.load(
        Q + at[:, None] + dims[None, :], mask=mine[:, None] & (dims[None, :] < D), other=0.0
    )  # [BQ, DP]
    chosen = (b * choosers + first_head * choosers // heads).to(tl.int64) * rows + unit
    keys = tl.load(Count + chosen) * T
    Index += chosen * room
    q_pos = q_pos[:, None]  # [BQ, 1]
    accumulated = tl.zeros([BQ, DVP], tl.float32)
    top = tl.full([BQ], -3.0e38, tl.float32)
    total = tl.zeros([BQ], tl.float32)
    for start in range(0, keys, BK):
        place = start + span
        there = place < keys
        k_pos = tl.load(Index + place // T, mask=there, other=0) * T + place % T
        there = there & (k_pos < nk)
        away = k_pos.to(tl.int64)
        k_pos = k_pos[None, :]  # [1, BK]
        k = tl.load(
            K + (away * k_row)[None, :] + dims[:, None],
            mask=there[None, :] & (dims[:, None] < D), other=0.0,
        )  # [DP, BK]
        v = tl.load(
            V + (away * v_row)[:, None] + value_dims[None, :],
            mask=there[:, None] & (value_dims[None, :] < DV), other=0.0,
        )  # [BK, DVP]
        s = tl.dot(q, k, input_precision="ieee")  # [BQ, BK] fp32
        @KEEPS
        s = tl.where(counts, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        p = tl.math.exp2(s * scale_log2 - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        accumulated = accumulated * shrink[:, None]
        accumulated = tl.dot(p.to(v.dtype), v, accumulated, input_precision="ieee")
        top = new_top

    # A query without keys has total 0: out 0, lse -inf.
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), (top + tl.math.log2(total)) * 0.6931471805599453)
    to = (b.to(tl.int64) * heads + h) * nq + tl.reshape(q_pos, [BQ])
    tl.store(Lse + to, lse, mask=mine)
    tl.store(
        Out + (to * DV)[:, None] + value_dims[None, :], accumulated / total[:, None],
        mask=mine[:, None] & (value_dims[None, :] < DV),
    )
'''

_DQ = '''\
@FIXED
def _selected_dq(
    @GIVEN,
):
    """The gradient of some queries of one unit, by the keys that it selected."""
@HEAD
    program = tl.program_id(0)
    part = program % tiles
    unit = program // tiles % rows
    block = program // tiles // rows % (heads // sharing)
    b = program // tiles // rows // (heads // sharing)
    first_head = block * sharing
    row = part * BQ + tl.arange(0, BQ)
    q_pos = unit * unit_tokens + row // sharing
    h = first_head + row % sharing
    mine = (row // sharing < unit_tokens) & (q_pos < nq)
    kv = first_head // (heads // kv_heads)
    dims = tl.arange(0, DP)
    value_dims = tl.arange(0, DVP)
    span = tl.arange(0, BK)
    Q += b * q_batch
    K += b * k_batch + kv * k_head
    V += b * v_batch + kv * v_head
    at = h.to(tl.int64) * q_head + q_pos.to(tl.int64) * q_row
    q = tl.load(
        Q + at[:, None] + dims[None, :], mask=mine[:, None] & (dims[None, :] < D), other=0.0
    )  # [BQ, DP]
    to = (b.to(tl.int64) * heads + h) * nq + q_pos
    grad = tl.load(
        GradOut + (to * DV)[:, None] + value_dims[None, :],
        mask=mine[:, None] & (value_dims[None, :] < DV), other=0.0,
    )  # [BQ, DVP]
    lse = tl.load(Lse + to, mask=mine, other=0.0) * 1.4426950408889634
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    delta = tl.load(Delta + to, mask=mine, other=0.0)
    chosen = (b * choosers + first_head * choosers // heads).to(tl.int64) * rows + unit
    keys = tl.load(Count + chosen) * T
    Index += chosen * room
    q_pos = q_pos[:, None]  # [BQ, 1]
    dq = tl.zeros([BQ, DP], tl.float32)
    for start in range(0, keys, BK):
        place = start + span
        there = place < keys
        k_pos = tl.load(Index + place // T, mask=there, other=0) * T + place % T
        there = there & (k_pos < nk)
        away = k_pos.to(tl.int64)
        k_pos = k_pos[None, :]  # [1, BK]
        k = tl.load(
            K + (away * k_row)[:, None] + dims[None, :],
            mask=there[:, None] & (dims[None, :] < D), other=0.0,
        )  # [BK, DP]
        v = tl.load(
            V + (away * v_row)[None, :] + value_dims[:, None],
            mask=there[None, :] & (value_dims[:, None] < DV), other=0.0,
        )  # [DVP, BK]
        s = tl.dot(q, tl.trans(k), input_precision="ieee")  # [BQ, BK] fp32
        @KEEPS
        p = tl.math.exp2(tl.where(counts, s * scale_log2 - lse[:, None], float("-inf")))
        dp = tl.dot(grad, v, input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")

    dq = dq * (scale_log2 * 0.6931471805599453)
    tl.store(
        DQ + (to * D)[:, None] + dims[None, :], dq, mask=mine[:, None] & (dims[None, :] < D)
    )
'''

_DKDV = '''\
@FIXED
def _selected_dkdv(
    @GIVEN,
):
    """The gradients of some keys of one unit, by the queries of the units that selected it."""
@HEAD
    program = tl.program_id(0)
    part = program % tiles
    units = (nk + T - 1) // T
    unit = program // tiles % units
    block = program // tiles // units % (heads // sharing)
    b = program // tiles // units // (heads // sharing)
    first_head = block * sharing
    kv = first_head // (heads // kv_heads)
    dims = tl.arange(0, DP)
    value_dims = tl.arange(0, DVP)
    inside = part * BK + tl.arange(0, BK)
    k_pos = unit * T + inside
    there = (inside < T) & (k_pos < nk)
    away = k_pos.to(tl.int64)
    Q += b * q_batch
    K += b * k_batch + kv * k_head
    V += b * v_batch + kv * v_head
    k = tl.load(
        K + (away * k_row)[:, None] + dims[None, :],
        mask=there[:, None] & (dims[None, :] < D), other=0.0,
    )  # [BK, DP]
    v = tl.load(
        V + (away * v_row)[:, None] + value_dims[None, :],
        mask=there[:, None] & (value_dims[None, :] < DV), other=0.0,
    )  # [BK, DVP]
    k_pos = k_pos[None, :]  # [1, BK]
    chooser = b * choosers + first_head * choosers // heads
    list_at = chooser.to(tl.int64) * units + unit
    first = tl.load(Starts + list_at)
    wide = unit_tokens * sharing
    queries = (tl.load(Starts + list_at + 1) - first).to(tl.int32) * wide
    Rows += first
    dk = tl.zeros([BK, DP], tl.float32)
    dv = tl.zeros([BK, DVP], tl.float32)
    for start in range(0, queries, BQ):
        place = start + tl.arange(0, BQ)
        mine = place < queries
        row = place % wide
        q_pos = tl.load(Rows + place // wide, mask=mine, other=0) * unit_tokens + row // sharing
        h = first_head + row % sharing
        mine = mine & (q_pos < nq)
        at = h.to(tl.int64) * q_head + q_pos.to(tl.int64) * q_row
        q = tl.load(
            Q + at[:, None] + dims[None, :], mask=mine[:, None] & (dims[None, :] < D), other=0.0
        )  # [BQ, DP]
        to = (b.to(tl.int64) * heads + h) * nq + q_pos
        grad = tl.load(
            GradOut + (to * DV)[:, None] + value_dims[None, :],
            mask=mine[:, None] & (value_dims[None, :] < DV), other=0.0,
        )  # [BQ, DVP]
        lse = tl.load(Lse + to, mask=mine, other=0.0) * 1.4426950408889634
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        delta = tl.load(Delta + to, mask=mine, other=0.0)
        q_pos = q_pos[:, None]  # [BQ, 1]
        s = tl.dot(q, tl.trans(k), input_precision="ieee")  # [BQ, BK] fp32
        @KEEPS
        counts = counts & mine[:, None]
        p = tl.math.exp2(tl.where(counts, s * scale_log2 - lse[:, None], float("-inf")))
        dv = tl.dot(tl.trans(p.to(grad.dtype)), grad, dv, input_precision="ieee")
        dp = tl.dot(grad, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision="ieee")

    dk = dk * (scale_log2 * 0.6931471805599453)
    to = ((b * (heads // sharing) + block).to(tl.int64) * nk + away) * D
    tl.store(DK + to[:, None] + dims[None, :], dk, mask=there[:, None] & (dims[None, :] < D))
    to = ((b * (heads // sharing) + block).to(tl.int64) * nk + away) * DV
    tl.store(
        GradV + to[:, None] + value_dims[None, :], dv,
        mask=there[:, None] & (value_dims[None, :] < DV),
    )
'''

_HOST = '''\
def _launch_facts(q, k, v, index):
    """Return what every kernel takes behind its pointers but the last, and how many heads share."""
    choosers, rows, room = index.shape[1:]
    sharing = q.shape[1] // max(choosers, k.shape[1])
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    nq = q.shape[2]
    sizes = (nq, k.shape[2], q.shape[1], k.shape[1], choosers, sharing, rows, room, @QUERIES)
    return (*strides, *sizes), sharing


def _programs(count):
    if count >= 2**31:
        raise ValueError(f"{NAME}: {count} programs; a GPU runs 2**31 - 1 at once: split the batch")
    return (count,)


def _gpu_routed_forward(q, k, v, scale, selections, inputs):
    """Attend to what is selected, no wait. Shape: out ``[B, Hq, Q, Dv]``, lse ``[B, Hq, Q]``."""
    (index, count), = selections
    if scale < 0:  # the kernel wants the row maximum of the products
        q, scale = -q, -scale
    facts, sharing = _launch_facts(q, k, v, index)
    batch, heads, nq = q.shape[:3]
    out = torch.empty((batch, heads, nq, v.shape[3]), dtype=torch.float32, device=q.device)
    lse = torch.empty((batch, heads, nq), dtype=torch.float32, device=q.device)
    tiles = -(-(@QUERIES) * sharing // @BQ_forward)
    grid = _programs(tiles * index.shape[2] * (heads // sharing) * batch)
    with torch.cuda.device_of(q):
        _attend_selected[grid](
            q, k, v, out, lse, index, count, max(scale * 1.4426950408889634, 1e-37), *facts, tiles,
            @SETTINGS_forward,
        )
    return out.to(q.dtype), lse


def _gpu_routed_backward(
    q, k, v, out, lse, grad_out, grad_lse, scale, selections, inputs, needs
):
    """Return dq, dk and dv of what is selected, given the results of all pairs; no wait."""
    (index, count), = selections
    turned = scale < 0
    if turned:
        q, scale = -q, -scale
    facts, sharing = _launch_facts(q, k, v, index)
    batch, heads, nq = q.shape[:3]
    nk, blocks = k.shape[2], heads // sharing
    grad_out = grad_out.contiguous()
    delta = (grad_out.float() * out.float()).sum(-1)
    delta = delta if grad_lse is None else delta - grad_lse.float()
    factor = max(scale * 1.4426950408889634, 1e-37)
    dq = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    dk = torch.empty((batch, blocks, nk, k.shape[3]), dtype=torch.float32, device=q.device)
    dv = torch.empty((batch, blocks, nk, v.shape[3]), dtype=torch.float32, device=q.device)
    given = (q, k, v, grad_out, lse, delta.contiguous())
    tiles = -(-(@QUERIES) * sharing // @BQ_dq)
    grid = _programs(tiles * index.shape[2] * blocks * batch)
    units = @UNITS
    starts, rows = _who_selected(index, units)
    with torch.cuda.device_of(q):
        _selected_dq[grid](*given, dq, index, count, factor, *facts, tiles, @SETTINGS_dq)
        tiles = -(-@KEY // @BK_dkdv)
        grid = _programs(tiles * units * blocks * batch)
        _selected_dkdv[grid](
            *given, dk, dv, starts, rows, factor, *facts, tiles, @SETTINGS_dkdv
        )
    dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
    dq = -dq if turned else dq
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), [None for _ in range(2)]


def _who_selected(index, units):
    """Return the rows that selected each key unit, one list after the other, and where they start.

    Shape: int64 ``[B * H' * units + 1]``, int32 ``[B * H' * rows * room]``.
    """
    lists, rows, room = index.shape[0] * index.shape[1], index.shape[2], index.shape[3]
    flat = index.reshape(lists, rows * room).long()
    owner = torch.arange(lists, device=index.device)[:, None] * units
    place = torch.where(flat >= 0, owner + flat, lists * units).flatten()
    order = place.argsort(stable=True)
    edges = torch.arange(lists * units + 1, device=index.device)
    starts = torch.searchsorted(place[order], edges)
    return starts, (order % (rows * room) // room).to(torch.int32)
'''
