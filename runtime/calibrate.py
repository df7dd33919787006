"""This machine -> prices of the CPU executor: some calls, measured and fitted."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from attnc.compiler.cost import machine
from attnc.compiler.cost.predict import Setting
from attnc.compiler.driver import load_text
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.passes.tiles import DType
from attnc.runtime.cache import replace_file
from attnc.runtime.op import compile_pattern
from attnc.runtime.options import options

TURNS = 5
DTYPES: dict[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

_WINDOW = "pattern p = {{ q -> k : 0 <= q - k < {} }}"
_STATIC = (
    _WINDOW.format(64), _WINDOW.format(256), _WINDOW.format(1024),
    "pattern p = { q -> k : k <= q }",
    "pattern p = { q -> k : k <= q and (k < 4 or q - k < 256) }",
    "pattern p = { q -> k : abs(q - k) <= 128 or q < 1 or k < 1 }",
    "pattern p = { q -> k : k <= q and q div 256 == k div 256 }",
    "pattern p = { q -> k : 0 <= q - k < 1024 and (q - k) mod 4 == 0 }",
    "pattern p = { q -> k : k <= q and (q - k < 64 or (q - k) mod 64 == 0) }",
)
_GATHERED = (
    "input doc: int[n]\npattern p = { q -> k : k <= q and doc[q] == doc[k] }",
    "input doc: int[n]\npattern p = { q -> k : doc[q] == doc[k] }",
    "input doc: int[n]\npattern p = { q -> k : q - k < 512 and k <= q and doc[q] == doc[k] }",
    "pattern w = { q -> k : 0 <= q - k < 256 }\nscore s = { q -> k : 0.1 * (k - q) }\n"
    "attention p = softmax(dot + s, over: w)",
)
_SHAPES = ((256, 8, 64), (1024, 8, 64), (4096, 4, 64), (2048, 4, 128))
"""Tokens, heads and head dim of the cases."""

_DENSE_SHAPES = (*_SHAPES, (512, 4, 128), (2048, 8, 64), (4096, 2, 128), (512, 16, 64))
"""Those of dense attention."""

DOCUMENT_TOKENS = 320


@dataclass(frozen=True, slots=True)
class _Case:
    """A call to time, and what it does."""

    executor: machine.Executor
    work: NDArray[np.float64]
    run: Callable[[], object]


def calibrate(
    step: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> machine.Calibration:
    """Measure some calls and fit prices to them; about a minute on two idle cores.

    Args: ``step`` is told what comes next; ``clock`` tells seconds (``time.process_time`` on one
        thread does not see what else runs on the machine).
    """
    prices: dict[tuple[machine.Executor, str], machine.Prices] = {}
    for name, dtype in DTYPES.items():
        step(f"measuring {name}")
        cases = list(_cases(name, dtype))
        times = in_turns([case.run for case in cases], clock)
        executors: tuple[machine.Executor, ...] = ("strips", "gathered", "dense")
        for executor in executors:
            own = [i for i, case in enumerate(cases) if case.executor == executor]
            work = np.stack([cases[i].work for i in own])
            prices[executor, name] = machine.fit_prices(work, np.array([times[i] for i in own]))
    about = {
        "cpu": platform.processor() or platform.machine(), "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }
    return machine.Calibration(machine=about, prices=prices)


def write_calibration(calibration: machine.Calibration, path: Path) -> None:
    """Write a calibration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, calibration.text())


def _cases(name: DType, dtype: torch.dtype) -> Iterator[_Case]:
    for shape in _SHAPES:
        setting, tensors = _random(shape, name, dtype)
        ids = torch.arange(setting.nq) // DOCUMENT_TOKENS
        for text in (*_STATIC, *_GATHERED):
            pattern = load_text(text)
            inputs = {"doc": ids} if pattern.inputs else {}
            yield _op_case(pattern, setting, inputs, *tensors)
    attend = torch.nn.functional.scaled_dot_product_attention
    for shape in _DENSE_SHAPES:
        setting, tensors = _random(shape, name, dtype)
        yield _Case("dense", machine.dense_work(setting), _bound(attend, *tensors))


def _random(
    shape: tuple[int, int, int], name: DType, dtype: torch.dtype
) -> tuple[Setting, list[torch.Tensor]]:
    """Return q, k and v of some tokens, heads and head dim, and the setting of a call with them."""
    tokens, heads, dim = shape
    generator = torch.Generator().manual_seed(0)
    setting = Setting(
        nq=tokens, nk=tokens, heads=heads, kv_heads=heads, head_dim=dim, value_dim=dim, dtype=name,
        device="cpu",
    )
    made = (torch.randn((1, heads, tokens, dim), generator=generator) for _ in range(3))
    return setting, [x.to(dtype) for x in made]


def _op_case(
    pattern: Pattern, setting: Setting, inputs: dict[str, torch.Tensor], *tensors: torch.Tensor
) -> _Case:
    chosen = options(
        head_dim=setting.head_dim, value_dim=None, dtype=None, target="sm_90", tile=None,
        cpu_tile=None,
    )
    op = compile_pattern(pattern, chosen)
    plan = chosen.plan(pattern).cpu
    given = pattern.given(setting.nq, setting.nk, {n: x.numpy() for n, x in inputs.items()}, {})
    work = machine.work_of(plan, setting, given)
    return _Case(machine.executor_of(plan), work, _bound(op, *tensors, **inputs))


def _bound(
    run: Callable[..., object], *given: torch.Tensor, **named: torch.Tensor
) -> Callable[[], object]:
    return lambda: run(*given, **named)


def in_turns(
    runs: list[Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the least time of each in microseconds, all run in turns: others only add to it."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(TURNS + 1):
        for run, spent in zip(runs, times, strict=True):
            start = clock()
            run()
            if turn:  # the first turn warms up
                spent.append(clock() - start)
    return [min(spent) * 1e6 for spent in times]
