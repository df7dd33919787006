"""Routed plan -> the kernels of what its routes selected, both ways, and their launches.

The printed ``_gpu_routed_forward`` and ``_gpu_routed_backward`` take and return what their CPU
twins do (``attend.py``). Nothing waits for the device.
"""

from __future__ import annotations

from attnc.codegen.host import ALIGN_BYTES
from attnc.codegen.route_shapes import count_text
from attnc.codegen.routes.gpu_tiles import What, keys_tile, rows_tile, square_tile
from attnc.codegen.routes.kernel_parts import units
from attnc.codegen.routes.selections import cells_text
from attnc.codegen.routes.triton_by_key import MERGE_ROWS, ByKeyKernel, emit_merges
from attnc.codegen.routes.triton_keys import KeyKernel
from attnc.codegen.routes.triton_rows import RowKernel
from attnc.codegen.triton_prepare import PREPARE
from attnc.codegen.writer import Writer
from attnc.compiler.ir.plan import MAX_LENGTH
from attnc.compiler.ir.route import Grain
from attnc.compiler.ir.routed_plan import RoutedPlan
from attnc.compiler.passes.tiles import TileChoice, padded

LIBRARIES = ("gpu_lists.py", "scores.py")

SLOT_BYTES = 256 * 2**20
"""What tokens get from their units, before it is merged, for the heads that go at a time."""

FEW_ROWS = 8
"""With fewer query heads that share a selection, queries are gathered for each key unit."""


def refuses(plan: RoutedPlan) -> str:
    """Return why there are no kernels for a plan; "" where there are."""
    if any(route.emit == "members" for route in plan.routed.routes):
        return "members attend on a CPU only"
    return ""


def emit_gpu(plan: RoutedPlan) -> str:
    """Print ``_gpu_routed_forward`` and ``_gpu_routed_backward`` with their kernels.

    They call into ``LIBRARIES`` and expect triton imported, where there is one.
    """
    why = refuses(plan)
    if why:
        return _REFUSAL.format(why=why)
    kernels = [*forward_kernels(plan), *backward_kernels(plan)]
    texts = [kernel.text() for kernel in kernels]
    helpers = dict.fromkeys(text for kernel in kernels for text in kernel.rest.helpers())
    merges = [emit_merges(plan)] if by_key(plan, 1) else []
    return "\n\n".join([PREPARE, *helpers, *texts, *merges, _host(plan)])


AnyKernel = RowKernel | KeyKernel

_REFUSAL = '''\
def _gpu_routed_forward(*arguments):
    """Refuse: there are no kernels for what these routes select."""
    raise RuntimeError(f"{{NAME}}: {why}")


_gpu_routed_backward = _gpu_routed_forward
'''


def by_key(plan: RoutedPlan, number: int) -> bool:
    """Whether a route may go by key units: tokens that choose units of 16 tokens and more."""
    route = plan.routed.routes[number - 1]
    large = units(route.key).tokens >= 16
    return (
        len(plan.routed.routes) == 1 and route.emit == "units" and route.widen == 1
        and route.query.kind == "token" and large
    )


def forward_kernels(plan: RoutedPlan) -> list[AnyKernel]:
    """Return the kernels of the forward."""
    found: list[AnyKernel] = [_rows(plan, n, "out") for n in _numbers(plan)]
    if by_key(plan, 1):
        found.append(ByKeyKernel(plan, 1, _gathered(plan, "out"), "out"))
    return found


def backward_kernels(plan: RoutedPlan) -> list[AnyKernel]:
    """Return the kernels of the backward."""
    found: list[AnyKernel] = [_rows(plan, n, "dq") for n in _numbers(plan)]
    if by_key(plan, 1):
        found.append(ByKeyKernel(plan, 1, _gathered(plan, "dq"), "dq"))
    return [*found, *(_keys(plan, n) for n in _numbers(plan))]


def _numbers(plan: RoutedPlan) -> range:
    return range(1, len(plan.routed.routes) + 1)


def _rows(plan: RoutedPlan, number: int, makes: str) -> RowKernel:
    route = plan.routed.routes[number - 1]
    queries, keys = units(route.query, route.widen), units(route.key)
    if route.emit == "slashes":
        tile = square_tile(plan)
    else:
        grouped = queries.kind == "row" and queries.tokens == 1
        what: What = "out" if makes == "out" else "dq"
        tile = rows_tile(plan, what, queries, keys, grouped=grouped)
    return RowKernel(plan, number, tile, "out" if makes == "out" else "dq")


def _gathered(plan: RoutedPlan, what: What) -> TileChoice:
    route = plan.routed.routes[0]
    return rows_tile(plan, what, units(Grain(kind="head")), units(route.key))


def _keys(plan: RoutedPlan, number: int) -> KeyKernel:
    route = plan.routed.routes[number - 1]
    if route.emit == "slashes":
        return KeyKernel(plan, number, square_tile(plan))
    tile = keys_tile(plan, units(route.query, route.widen), units(route.key))
    return KeyKernel(plan, number, tile)


# ------------------------------------------------------------------------------------------- host


def _host(plan: RoutedPlan) -> str:
    out = Writer()
    _prepare(out, plan)
    _forward(out, plan)
    _backward(out, plan)
    return out.text().rstrip()


def _sizes(out: Writer, plan: RoutedPlan) -> None:
    """Print the sizes of a call and those of its selections."""
    out.line("batch, heads, nq, _ = q.shape")
    out.line("group, nk = heads // k.shape[1], k.shape[2]")


def _limits(out: Writer) -> None:
    with out.block(f"if max(nq, nk) > {MAX_LENGTH}:"):
        out.line("raise ValueError(")
        with out.indented():
            out.line(f'f"{{nq}} queries and {{nk}} keys; the kernels take up to {MAX_LENGTH}"')
        out.line(")")


def _strides(out: Writer, plan: RoutedPlan) -> None:
    out.comment("A stride along a dimension of one element means nothing: drop it.")
    out.line(
        "strides = [s if n > 1 else 0 for t in (q, k, v) "
        "for s, n in zip(t.stride()[:3], t.shape)]"
    )
    out.comment(f"All strides are multiples of `align` elements, {ALIGN_BYTES} bytes at best.")
    out.line(f"align = math.gcd({ALIGN_BYTES} // q.element_size(), *strides)")
    out.line("wide = max(strides[5], strides[8]) * 256 >= 2**31")


def _lists(out: Writer, plan: RoutedPlan, *, backward: bool) -> None:
    """Print what the kernels read of each selection, under numbered names."""
    base = plan.routed.base
    routes = plan.routed.routes
    shift = "nk - nq" if base.align == "bottom-right" else "0"
    for n, route in enumerate(routes, start=1):
        out.line(f"index_{n}, count_{n} = (x.contiguous() for x in selections[{n - 1}])")
        out.line(f"choosers_{n}, rows_{n}, room_{n} = index_{n}.shape[1:]")
        out.line(f"share_{n} = _gpu_shares(choosers_{n}, heads, k.shape[1])")
        units_of = "nk" if route.emit == "slashes" else count_text(
            route.key, "nk", base.key_space
        )
        out.line(f"units_{n} = {units_of}")
        for name, grain, length, space in (
            ("queries", route.query, "nq", base.query_space),
            ("keys", route.key, "nk", base.key_space),
        ):
            if grain.kind == "cell":
                cells = cells_text(grain, space)
                out.line(f"{name}_{n} = _gpu_cells({cells}, {count_text(grain, length, space)})")
        if route.emit == "slashes" or n < len(routes):
            out.line(f"taken_{n} = _gpu_taken(index_{n}, units_{n})")
        if route.emit == "slashes":
            side = square_tile(plan).q
            out.line(f"tiles_{n} = _gpu_slashes(taken_{n}, nq, nk, {side}, {shift})")
        elif backward and units(route.query, route.widen).kind != "whole":
            out.line(f"chosen_{n} = _gpu_chosen(index_{n}, units_{n})")


def _launch(out: Writer, kernel: AnyKernel) -> None:
    sides = kernel.sides
    arguments = [one.passed for one in kernel.given()]
    arguments.append("ALIGN=align")
    if isinstance(kernel, RowKernel):
        arguments.append("WIDE=wide")
    arguments += [f"num_warps={sides.warps}", f"num_stages={sides.stages}"]
    out.call(f"{kernel.name}[({kernel.programs()},)](", arguments)


def _prepare(out: Writer, plan: RoutedPlan) -> None:
    """Print what both launches begin with."""
    out.line("import math")
    out.line()
    out.line("import torch")
    out.line()
    out.line()


def _forward(out: Writer, plan: RoutedPlan) -> None:
    routes = len(plan.routed.routes)
    dtype = "torch.float32" if plan.kept is not None else "q.dtype"
    with out.block("def _gpu_routed_forward(q, k, v, scale, selections, inputs):"):
        out.line('"""Attend to what is selected. Shape: out ``[B, Hq, Q, Dv]``, lse likewise."""')
        _sizes(out, plan)
        out.line(f"out, lse = _gpu_nothing(q, v, {dtype})")
        with out.block("if lse.numel() == 0 or nk == 0:"):
            out.line("return out, lse")
        _limits(out)
        with out.block("if scale < 0:"):
            out.comment("The kernels want the row maximum of the products.")
            out.line("q, scale = -q, -scale")
        out.line("scale_log2 = max(scale * 1.4426950408889634, 1e-37)")
        _strides(out, plan)
        _lists(out, plan, backward=False)
        if routes > 1:
            out.line("before = torch.empty_like(out, dtype=torch.float32)")
        with out.block("with torch.cuda.device_of(q):"):
            kernels = forward_kernels(plan)
            if by_key(plan, 1):
                with out.block(f"if {_few(plan)}:"):
                    _by_key(out, plan, kernels[1], "DV")
                with out.block("else:"):
                    _launch(out, kernels[0])
            else:
                for kernel in kernels:
                    _launch(out, kernel)
        out.line("return out, lse")
    out.line()
    out.line()


def _few(plan: RoutedPlan) -> str:
    """Return the test that queries are better gathered for each key unit."""
    return f"share_1 < {FEW_ROWS} and rows_1 * room_1 >= 16 * units_1"


def _by_key(out: Writer, plan: RoutedPlan, kernel: AnyKernel, dim: str) -> None:
    """Print the launches that go by key units, some heads at a time."""
    dims = plan.value_dim if dim == "DV" else plan.head_dim
    if dim == "DV":
        out.line("chosen_1 = _gpu_chosen(index_1, units_1)")
    out.line(f"work_1 = _gpu_tiles(chosen_1, {kernel.sides.q})")
    out.line("slots = rows_1 * room_1")
    out.line(f"most = min(max({SLOT_BYTES} // max(slots * {4 * dims}, 1), 1), batch * heads)")
    out.line(f"part = torch.empty((most, slots, {dims}), dtype=torch.float32, device=q.device)")
    if dim == "DV":
        out.line("part_lse = torch.empty((most, slots), dtype=torch.float32, device=q.device)")
    with out.block("for first in range(0, batch * heads, most):"):
        out.line("some = min(most, batch * heads - first)")
        _launch(out, kernel)
        programs = f"-(-rows_1 // {MERGE_ROWS}) * some"
        given = ["part", "part_lse", "out", "lse"] if dim == "DV" else ["part", "grad_q"]
        name = "_routed_merge" if dim == "DV" else "_routed_sum"
        out.call(f"{name}[({programs},)](", [
            *given, "count_1", "rows_1", "room_1", "heads", "choosers_1", "first", "num_warps=4",
        ])  # fmt: skip


def _backward(out: Writer, plan: RoutedPlan) -> None:
    out.line("def _gpu_routed_backward(")
    with out.indented():
        out.line("q, k, v, out, lse, grad_out, grad_lse, scale, selections, inputs, needs")
    out.line("):")
    with out.indented():
        out.line('"""Return dq, dk, dv; selections get no gradients."""')
        _sizes(out, plan)
        out.line("nothing = [None for tensors in selections for _ in tensors]")
        with out.block("if lse.numel() == 0 or nk == 0:"):
            out.line("return *(torch.zeros_like(x) for x in (q, k, v)), nothing")
        _limits(out)
        out.line("scale_log2 = scale * 1.4426950408889634")
        _strides(out, plan)
        out.line("out, lse, grad_out = (x.contiguous() for x in (out, lse, grad_out))")
        out.line("total, delta = torch.empty_like(lse), torch.empty_like(lse)")
        out.line("given_lse = lse if grad_lse is None else grad_lse")
        with out.block("with torch.cuda.device_of(q):"):
            pad = padded(plan.value_dim)
            out.call("_prepare_rows[(-(-nq // 32) * batch * heads,)](", [
                "out", "lse", "grad_out", "given_lse", "total", "delta",
                "*grad_out.stride()[:3]", "*given_lse.stride()", "nq", "heads",
                f"DV={plan.value_dim}", f"PAD={pad}", "ROWS=32", "WITH_LSE=grad_lse is not None",
                "num_warps=4",
            ])  # fmt: skip
            _lists(out, plan, backward=True)
            out.line("grads = [None, None, None]")
            with out.block("if needs[0]:"):
                _grad_queries(out, plan)
            with out.block("if needs[1] or needs[2]:"):
                _grad_keys(out, plan)
        out.line("return *grads, nothing")


def _grad_queries(out: Writer, plan: RoutedPlan) -> None:
    kernels = [k for k in backward_kernels(plan) if isinstance(k, RowKernel)]
    shape = f"(*q.shape[:3], {plan.head_dim})"
    new = f"torch.zeros({shape}, dtype=torch.float32, device=q.device)"
    if by_key(plan, 1):
        out.line(f"grad_q = {new}")
        with out.block(f"if {_few(plan)}:"):
            _by_key(out, plan, kernels[1], "D")
        with out.block("else:"):
            _launch(out, kernels[0])
        out.line("grads[0] = grad_q.to(q.dtype)")
        return
    for number, kernel in enumerate(kernels):
        out.line(f"grad_q = {new}")
        _launch(out, kernel)
        out.line("sum_q = grad_q" if number == 0 else "sum_q = sum_q + grad_q")
    out.line("grads[0] = sum_q.to(q.dtype)")


def _grad_keys(out: Writer, plan: RoutedPlan) -> None:
    for x, dim in (("k", plan.head_dim), ("v", plan.value_dim)):
        out.line(
            f"grad_{x} = torch.zeros((*k.shape[:3], {dim}), dtype=torch.float32, device=q.device)"
        )
    for kernel in backward_kernels(plan):
        if isinstance(kernel, RowKernel):
            continue
        if kernel.whole:
            with out.block(f"for first in range(0, group, share_{kernel.number}):"):
                _launch(out, kernel)
        else:
            _launch(out, kernel)
    out.line("grads[1:] = grad_k.to(k.dtype), grad_v.to(v.dtype)")
