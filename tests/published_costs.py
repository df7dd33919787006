"""Times and speed-ups of attention, published or measured, and what the cost model says of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from attnc.compiler.cost.devices import DEVICES
from attnc.compiler.cost.fits import DENSE_FITS, DenseFit
from attnc.compiler.cost.nattensim import Neighbourhood
from attnc.compiler.cost.predict import Setting, dense, end_to_end, predict
from attnc.compiler.cost.simulate import Rates, Rows, simulate
from attnc.compiler.driver import load_text
from tests import published_routes

# NATTENSim, end to end on a B200: Hassani et al. 2025 (arXiv 2504.16922), tables 2 to 4 and the
# quality study. Boxes: HunyuanVideo as in its figure 3, FLUX as in NATTEN's profiler documentation;
# those of Cosmos are not stated and were found by fitting.
MODELS = {
    "FLUX": ((256, 256), (16, 16), (16, 8), 0.518),
    "Cosmos-7B": ((16, 44, 80), (8, 4, 8), (4, 4, 8), 0.587),
    "HunyuanVideo": ((30, 48, 80), (4, 8, 8), (2, 8, 8), 0.607),
}
NATTENSIM: tuple[tuple[str, tuple[int, ...], tuple[int, ...], float], ...] = (
    ("FLUX", (80, 80), (1, 1), 1.76), ("FLUX", (80, 80), (16, 1), 1.84),
    ("FLUX", (80, 80), (16, 16), 1.88),
    ("Cosmos-7B", (16, 32, 48), (1, 1, 1), 1.35), ("Cosmos-7B", (16, 32, 48), (1, 8, 1), 1.42),
    ("Cosmos-7B", (16, 32, 48), (1, 1, 16), 1.42), ("Cosmos-7B", (16, 32, 48), (1, 8, 16), 1.50),
    ("Cosmos-7B", (16, 24, 16), (1, 1, 1), 1.90), ("Cosmos-7B", (16, 24, 16), (1, 8, 1), 1.96),
    ("Cosmos-7B", (16, 24, 16), (1, 1, 16), 2.05), ("Cosmos-7B", (16, 24, 16), (1, 8, 16), 2.10),
    ("HunyuanVideo", (30, 40, 40), (1, 1, 1), 1.21),
    ("HunyuanVideo", (30, 40, 40), (1, 1, 8), 1.44),
    ("HunyuanVideo", (30, 40, 40), (1, 32, 8), 1.55),
    ("HunyuanVideo", (30, 40, 40), (30, 40, 40), 1.44),
    ("HunyuanVideo", (18, 24, 24), (1, 1, 1), 1.73),
    ("HunyuanVideo", (18, 24, 24), (2, 1, 1), 1.78),
    ("HunyuanVideo", (18, 24, 24), (1, 1, 8), 1.99),
    ("HunyuanVideo", (18, 24, 24), (2, 1, 8), 2.02),
    ("HunyuanVideo", (18, 24, 24), (1, 8, 8), 2.17),
    ("HunyuanVideo", (18, 24, 24), (2, 8, 8), 2.20),
    ("HunyuanVideo", (18, 24, 24), (16, 8, 8), 2.23),
    ("HunyuanVideo", (18, 24, 24), (18, 24, 24), 2.06),
)

# cuDNN 9.19 on an H200: 64 query heads on 8, head dim 128, bf16; TFLOP/s at 2k to 32k tokens.
# From the benchmark table of the cudnn-frontend repository.
TOKENS = (2048, 4096, 8192, 16384, 32768)
CUDNN = {
    ("forward", False): (633, 671, 691, 702, 693), ("forward", True): (484, 591, 644, 673, 688),
    ("backward", False): (504, 560, 594, 612, 572), ("backward", True): (370, 474, 541, 579, 581),
}
# The same with a causal window of 1024, batch 2, head dim 64.
CUDNN_WINDOW = (310, 336, 349, 355, 358)

# Triton's tutorial 06 on an H100, fp16, not causal; TFLOP/s. First the points of the fit (batch 4,
# 32 heads of 128; fbexp/triton pull request 205), then others: batch x tokens = 16k with 16 heads
# of 128 (pytorch/benchmark pull request 2391), and heads of 64 (FlashAttention-3, figure 5).
TUTORIAL = (
    (4, 32, 1024, 128, 407.0), (4, 32, 2048, 128, 428.0), (4, 32, 4096, 128, 460.0),
    (4, 32, 8192, 128, 464.0), (4, 32, 16384, 128, 487.0),
)
TUTORIAL_OTHERS = (
    (32, 16, 512, 128, 328.9), (16, 16, 1024, 128, 389.7), (8, 16, 2048, 128, 433.7),
    (4, 16, 4096, 128, 458.4), (2, 16, 8192, 128, 470.7), (1, 16, 16384, 128, 476.8),
    (1, 32, 16384, 64, 403.0),
)

# NATTEN's profiler documentation, sample outputs on an H100, head dim 128, fp16: microseconds of
# its kernel, which are dense cuDNN's time over the speed-up where that is what it states.
_VIDEO, _IMAGE = (30, 48, 80), (256, 256)
NATTEN_H100 = (
    ("1-D, window 2048", (32768,), (2048,), (1,), (128,), 1, 787 / 8.3),
    ("1-D, stride 256", (32768,), (2048,), (256,), (128,), 1, 787 / 12.6),
    ("1-D, stride 2048", (32768,), (2048,), (2048,), (128,), 1, 787 / 13.3),
    ("2-D, window 80x80", _IMAGE, (80, 80), (1, 1), (16, 8), 24, 97400 / 6.0),
    ("2-D, stride 16x16", _IMAGE, (80, 80), (16, 16), (16, 8), 24, 7910.0),
    ("3-D, window 18x24x24", _VIDEO, (18, 24, 24), (1, 1, 1), (2, 8, 8), 24, 283300 / 3.6),
    ("3-D, stride 16x8x8", _VIDEO, (18, 24, 24), (16, 8, 8), (2, 8, 8), 24, 23400.0),
)

# Dense cuDNN beside them, microseconds: device, tokens, heads.
NATTEN_DENSE = (
    ("h100", 32768, 1, 787.0), ("h100", 65536, 24, 97400.0), ("h100", 115200, 24, 283300.0),
    ("b200", 32768, 1, 425.0), ("b200", 65536, 24, 43300.0), ("b200", 115200, 24, 135300.0),
)

RANKED = Path(__file__).resolve().parents[1] / "bench" / "results" / "cost-2026-11-21.json"

Row = tuple[str, float, float]
"""A case, what was published, what the model says."""


def nattensim() -> Iterator[Row]:
    """Yield the speed-ups end to end."""
    for model, window, stride, published in NATTENSIM:
        shape, query_tile, key_tile, share = MODELS[model]
        one = Neighbourhood(
            shape=shape, window=window, stride=stride, query_tile=query_tile, key_tile=key_tile
        )
        name = f"{model} {_by(window)} stride {_by(stride)}"
        yield name, published, end_to_end(one.speedup, share)


def cudnn(work: str) -> Iterator[Row]:
    """Yield the TFLOP/s of dense attention, full and causal."""
    fit = next(f for f in DENSE_FITS if f.head_dim == 128 and f.backward == (work == "backward"))
    for causal in (False, True):
        for tokens, published in zip(TOKENS, CUDNN[work, causal], strict=True):
            flops = (10 if work == "backward" else 4) * 64 * tokens**2 * 128 / (1 + causal)
            name = f"{work} {'causal' if causal else 'full'} {tokens}"
            yield name, published, flops / dense_us(fit, tokens, causal=causal) / 1e6


def dense_us(fit: DenseFit, tokens: int, *, causal: bool) -> float:
    """Simulate 64 heads of a dense kernel. Units: microseconds."""
    number = tokens // 128
    walked = np.arange(number) if causal else np.full(number, number)
    tiles = np.stack([walked, np.full(number, int(causal))])
    rates = Rates(
        tile_us=fit.tile_us, row_us=fit.row_us, factors=(1.0, fit.diagonal),
        workers=DEVICES[fit.device].units,
    )
    return simulate(Rows(tiles=tiles, copies=64), rates).time_us


def cudnn_window() -> Iterator[Row]:
    """Yield the TFLOP/s of a causal window of 1024, by pairs kept."""
    fit = next(f for f in DENSE_FITS if f.head_dim == 64)
    for tokens, published in zip(TOKENS, CUDNN_WINDOW, strict=True):
        number = tokens // 128
        walked = np.minimum(np.arange(number) + 1, 9)
        rates = Rates(tile_us=fit.tile_us, row_us=fit.row_us, factors=(1.0,), workers=132)
        us = simulate(Rows(tiles=walked[None, :], copies=128), rates).time_us
        kept = tokens * 1024 - 1024 * 1023 // 2
        yield f"window 1024, {tokens}", published, 4 * 128 * kept * 64 / us / 1e6


def tutorial(points: tuple[tuple[int, int, int, int, float], ...]) -> Iterator[Row]:
    """Yield the TFLOP/s of plain Triton, by the rates of generated kernels."""
    full = load_text("pattern full = { q -> k : true }")
    for batch, heads, tokens, dim, published in points:
        found = predict(full, Setting(
            nq=tokens, nk=tokens, heads=heads, kv_heads=heads, batch=batch, head_dim=dim,
            value_dim=dim, dtype="fp16", device="h100",
        ))  # fmt: skip
        yield f"{batch} x {heads} heads of {dim}, {tokens}", published, found.tflops


def natten() -> Iterator[Row]:
    """Yield microseconds of NATTEN's kernel on an H100."""
    for name, shape, window, stride, tile, heads, published in NATTEN_H100:
        one = Neighbourhood(
            shape=shape, window=window, stride=stride, query_tile=tile, key_tile=tile
        )
        yield name, published, one.time_us(heads)


def natten_dense() -> Iterator[Row]:
    """Yield microseconds of dense cuDNN in NATTEN's documentation."""
    for device, tokens, heads, published in NATTEN_DENSE:
        setting = Setting(
            nq=tokens, nk=tokens, heads=heads, kv_heads=heads, head_dim=128, value_dim=128,
            dtype="fp16", device=device,
        )
        found = dense(setting, DEVICES[device]).time_us
        yield f"{device}, {heads} heads, {tokens}", published, found


def cpu() -> Iterator[Row]:
    """Yield microseconds that ``bench/cost.py`` measured and predicted, from what it wrote."""
    for row in json.loads(RANKED.read_text(encoding="utf-8"))["rows"]:
        name = f"{row['pattern']} {row['tile']} {row['orders']}"
        yield name, row["measured_us"], row["predicted_us"]


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "nattensim": nattensim, "cudnn": lambda: cudnn("forward"),
    "cudnn-backward": lambda: cudnn("backward"), "cudnn-window": cudnn_window,
    "triton": lambda: tutorial(TUTORIAL), "triton-others": lambda: tutorial(TUTORIAL_OTHERS),
    "natten": natten, "natten-dense": natten_dense, "cpu": cpu, "routes": published_routes.rows,
}


def text(name: str) -> str:
    """Return a table as text: the case, what was published, what the model says, the error."""
    rows = list(TABLES[name]())
    wide = max(len(case) for case, _, _ in rows)
    lines = [
        f"{case.ljust(wide)} {_number(published):>10} {_number(said):>10} "
        f"{said / published - 1:>+7.1%}"
        for case, published, said in rows
    ]
    worst = max(abs(said / published - 1) for _, published, said in rows)
    return "\n".join([*lines, f"largest error {worst:.1%}"]) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
