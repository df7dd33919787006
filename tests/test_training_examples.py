"""What the examples that train claim: reach through layers, keys found, losses beside torch's."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import attnc

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TOKENS, LAYERS, KEYS = 256, 8, 9


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / name / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache_and_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def passkey_patterns() -> tuple[attnc.Pattern, attnc.Pattern]:
    file = EXAMPLES / "passkey" / "passkey.attn"
    return attnc.load(file), attnc.load(file, "near", keys=KEYS)


def test_the_window_has_no_smaller_budget_than_the_powers() -> None:
    powers, window = (p.mask(n=TOKENS)[0].sum(1) for p in passkey_patterns())
    assert (window >= powers).all()
    assert torch.equal(window[TOKENS // 2 :], powers[TOKENS // 2 :])


@pytest.mark.parametrize("layers", [1, 3, LAYERS])
def test_reach_through_layers(layers: int) -> None:
    """Powers reach the sums of as many powers as there are layers, the window so many windows."""
    powers, window = (script("passkey").reach(p, TOKENS, layers) for p in passkey_patterns())
    assert powers.tolist() == [d.bit_count() <= layers for d in range(TOKENS)]
    assert window.tolist() == [d <= layers * (KEYS - 1) for d in range(TOKENS)]


@pytest.mark.slow
def test_powers_of_two_find_the_key_where_a_window_cannot() -> None:
    passkey = script("passkey")
    shares = []
    for pattern in passkey_patterns():
        torch.manual_seed(0)
        model = passkey.Model(pattern, LAYERS)
        passkey.train(model, TOKENS, 300)
        shares.append(passkey.found(model, TOKENS))
    powers, window = shares
    edge = LAYERS * (KEYS - 1) + 1
    assert powers.mean() > 0.97
    assert window[:edge].mean() > 0.9
    assert window[edge:].eq(1 / passkey.VALUES).all()


@pytest.mark.slow
def test_a_language_model_learns_as_with_torch() -> None:
    example = script("train_lm")
    file = EXAMPLES / "train_lm" / "train_lm.attn"
    attends = [partial(F.scaled_dot_product_attention, is_causal=True)]
    for pattern in (
        attnc.zoo.causal(), attnc.load(file, "window_and_sink"), attnc.load(file, block=4)
    ):
        attends.append(attnc.compile(pattern, head_dim=example.WIDTH // example.HEADS))
    runs = [example.Run(attend) for attend in attends]
    text = torch.frombuffer(
        bytearray((EXAMPLES.parent / "docs" / "language.md").read_bytes()), dtype=torch.uint8
    ).long()
    example.train(runs, text, 256, 120)
    theirs, ours, *sparse = runs
    assert ours.losses[:5] == pytest.approx(theirs.losses[:5], rel=1e-5)
    assert ours.loss() == pytest.approx(theirs.loss(), rel=0.02)
    counts = torch.bincount(text)
    share = counts[counts > 0] / len(text)
    unigram = -math.fsum(share * share.log())  # the loss of knowing how often each byte comes
    for run in sparse:
        assert run.loss() < unigram - 0.5
