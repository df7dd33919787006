"""Times and speed-ups of routed attention that were published, and what the cost model says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from attnc.compiler.cost.predict import Setting
from attnc.compiler.cost.routes import RoutedPrediction, route_cost
from attnc.compiler.ir.route import Compete, Ratio
from attnc.compiler.ir.routed import Routed
from tests.routes import zoo_ir as zoo

Row = tuple[str, float, float]


def at(
    method: Routed, tokens: int, heads: int = 32, kv_heads: int = 32, device: str = "h100"
) -> RoutedPrediction:
    """Predict at heads of 128, without a search for the crossover."""
    setting = Setting(
        nq=tokens, nk=tokens, heads=heads, kv_heads=kv_heads, head_dim=128, value_dim=128,
        device=device,
    )
    return route_cost(method, setting, search=False)


def share(method: Routed, of: Fraction, compete: Compete = "row") -> Routed:
    """Return a method that takes a share of the visible units: the density that was published."""
    routes = tuple(replace(r, select=Ratio(share=of), compete=compete) for r in method.routes)
    return replace(method, routes=routes)


def rows() -> Iterator[Row]:
    """Yield what ``dynamic.md`` quotes: speed-ups over dense, and milliseconds where it has them.

    Where a source does not say the device or the heads, an H100 and 32 heads of 128 are taken.
    """
    moba = at(zoo.moba(4096, 12), 1 << 20)
    yield "MoBA 1M, block 4096 top 12, times", 6.5, moba.speedup_over_dense
    nsa = at(zoo.nsa_selected(64, 16, (32, 16)), 131072, 64, 4)
    yield "NSA 131k, selected blocks alone, ms", 49.0, nsa.part_us("attend", "merge") / 1e3
    yield "NSA 131k, scores and selection, ms", 131.0, nsa.part_us("score", "select") / 1e3
    infllm = at(zoo.infllm_v2(64, 64, 32, (32, 16)), 131072, 32, 2)
    yield "InfLLM-v2 128k, 64 blocks of 64, ms", 158.4, infllm.time_us / 1e3
    vmoba = at(share(zoo.vmoba(512), Fraction(34, 100)), 55000, 12, 12)
    yield "VMoBA 55k, 34% of pairs, times", 1.48, vmoba.speedup_over_dense
    seer = at(share(zoo.minference_block(64), Fraction(1, 10)), 32768, 32, 8)
    yield "SeerAttention 32k, 10% of blocks, times", 5.67, seer.speedup_over_dense
    xattention = at(share(zoo.xattention(16, 128), Fraction(73, 1000)), 131072, 32, 8)
    yield "XAttention 128k, 7.3% of blocks, times", 11.7, xattention.speedup_over_dense
