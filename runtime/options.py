"""What a caller of ``attnc.compile`` gives -> checked options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.gridmask import BoxTiling
from attnc.compiler.ir.pattern import Align, Pattern
from attnc.compiler.ir.plan import TARGETS, Plan, Target
from attnc.compiler.passes.bias_fold import Bias, read_bias
from attnc.compiler.passes.token_order import Orders, OrdersLike, read_orders

Dtype = Literal["bf16", "fp16", "fp32"]
_DTYPE_NAMES: Mapping[str, Dtype] = {
    "bf16": "bf16", "bfloat16": "bf16", "torch.bfloat16": "bf16",
    "fp16": "fp16", "float16": "fp16", "half": "fp16", "torch.float16": "fp16",
    "fp32": "fp32", "float32": "fp32", "float": "fp32", "torch.float32": "fp32",
}
TileLike: TypeAlias = "Tiling | tuple[int, int] | str"
AnyTileLike: TypeAlias = "TileLike | BoxTiling | tuple[tuple[int, ...], tuple[int, ...]]"
_HEAD_DIMS = range(16, 257)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a compilation depends on beside the pattern."""

    head_dim: int
    value_dim: int
    dtype: Dtype
    target: Target
    tile: Tiling | BoxTiling | Literal["boxes"] | None
    cpu_tile: Tiling | None
    align: Align = "top-left"
    orders: Orders = "auto"
    bias: Bias = "auto"

    def plan(self, pattern: Pattern) -> Plan:
        """Decide everything about the kernels of a pattern."""
        from attnc.compiler.passes.build_plan import build_plan

        return build_plan(
            pattern, head_dim=self.head_dim, value_dim=self.value_dim, dtype=self.dtype,
            target=self.target, tile=self.tile, cpu_tile=self.cpu_tile, orders=self.orders,
            bias=self.bias, backward=True,
        )


def options(
    *,
    head_dim: int,
    value_dim: int | None,
    dtype: object,
    target: str | None,
    tile: AnyTileLike | None,
    cpu_tile: TileLike | None,
    align: str = "top-left",
    orders: OrdersLike = "auto",
    bias: object = "auto",
) -> Options:
    """Check the options of a compilation and fill in what was left out.

    Raises: ValueError that names the option, what it is and what was expected.
    """
    for option, value in (("head_dim", head_dim), ("value_dim", value_dim)):
        if value is None and option == "value_dim":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value not in _HEAD_DIMS:
            raise ValueError(f"{option} must be an integer from 16 to 256, got {value!r}")
    chosen = visible_target() if target is None else target
    if chosen not in TARGETS:
        known = ", ".join(get_args(Target))
        raise ValueError(f"target must be one of {known}, got {chosen!r}")
    if align not in get_args(Align):
        known = ", ".join(map(repr, get_args(Align)))
        raise ValueError(f"align must be one of {known}, got {align!r}")
    return Options(
        head_dim=head_dim,
        value_dim=head_dim if value_dim is None else value_dim,
        dtype=as_dtype(dtype),
        target=chosen,
        tile=None if tile is None else "boxes" if tile == "boxes" else as_any_tiling(tile),
        cpu_tile=None if cpu_tile is None else as_tiling(cpu_tile, "cpu_tile"),
        align=cast(Align, align),
        orders=read_orders(orders),
        bias=read_bias(bias),
    )


def as_dtype(dtype: object) -> Dtype:
    """Return the plan's name of a dtype: a torch dtype, its name, or None (bf16)."""
    name = "bf16" if dtype is None else str(dtype)
    if name not in _DTYPE_NAMES:
        raise ValueError(
            f"dtype must be bfloat16, float16 or float32 (a torch dtype or its name), got {dtype!r}"
        )
    return _DTYPE_NAMES[name]


def as_tiling(tile: TileLike, option: str = "tile") -> Tiling:
    """Return a tile shape given as ``Tiling``, ``(128, 64)`` or ``"128x64"``."""
    if isinstance(tile, Tiling):
        sides: list[object] = [tile.q, tile.k]
    elif isinstance(tile, str):
        sides = [int(s) if s.isdecimal() else s for s in tile.split("x")]
    elif isinstance(tile, tuple | list):
        sides = list(tile)
    else:
        sides = []
    match sides:
        case [int(q), int(k)] if q > 0 and k > 0 and bool not in (type(q), type(k)):
            return Tiling(q, k)
        case _:
            raise ValueError(
                f"{option} must be two positive integers, queries by keys, such as (128, 64) or "
                f"'128x64', got {tile!r}"
            )


def as_any_tiling(tile: AnyTileLike) -> Tiling | BoxTiling:
    """Return a tile shape as ``as_tiling`` does, or boxes of a grid.

    Boxes are given as ``BoxTiling``, ``((4, 4, 8), (4, 4, 8))`` or ``"4x4x8,4x4x8"``.
    """
    boxes: list[Any] = []
    if isinstance(tile, BoxTiling):
        boxes = [tile.query, tile.key]
    elif isinstance(tile, str) and "," in tile:
        boxes = [[int(s) if s.isdecimal() else 0 for s in b.split("x")] for b in tile.split(",")]
    elif isinstance(tile, tuple | list) and any(isinstance(b, tuple | list) for b in tile):
        boxes = list(tile)
    if not boxes:
        return as_tiling(tile)  # type: ignore[arg-type]
    if len(boxes) != 2 or not all(map(_is_box, boxes)):
        raise ValueError(
            "tile must be two boxes, of queries and of keys, whose sides are powers of two, such"
            f" as ((4, 4, 8), (4, 4, 8)) or '4x4x8,4x4x8', got {tile!r}"
        )
    return BoxTiling(tuple(boxes[0]), tuple(boxes[1]))


def _is_box(box: object) -> bool:
    return isinstance(box, tuple | list) and bool(box) and all(
        type(side) is int and side > 0 and not side & (side - 1) for side in box
    )


def visible_target() -> Target:
    """Return the target of the GPU that torch sees; sm_90 where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability()
    by_major: Mapping[int, Target] = {8: "sm_80", 9: "sm_90", 10: "sm_100"}
    if major not in by_major:
        raise ValueError(
            f"the visible GPU is sm_{major}{minor}, which has no kernels of its own; choose one "
            f"with target=: {', '.join(TARGETS)}"
        )
    return by_major[major]
