"""Training: a small language model over bytes of real text learns through compiled patterns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnc
from attnc.nn import SelfAttention

TEXT = (Path(__file__).resolve().parents[1] / "LICENSE").read_bytes()
LENGTH, BATCH, WIDTH, HEADS, LAYERS = 64, 8, 32, 2, 2


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


class Dense(SelfAttention):
    """The same layer through torch's own causal attention."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.attention.forward = lambda q, k, v: F.scaled_dot_product_attention(  # type: ignore[method-assign]
            q, k, v, is_causal=True
        )


class Model(nn.Module):
    """A causal language model over bytes."""

    def __init__(self, make: Callable[..., SelfAttention], pattern: attnc.Pattern) -> None:
        super().__init__()
        op = attnc.compile(pattern, head_dim=WIDTH // HEADS)
        self.embed, self.place = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.attend = nn.ModuleList(make(WIDTH, HEADS, op) for _ in range(LAYERS))
        self.think = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(),
                nn.Linear(2 * WIDTH, WIDTH),
            )
            for _ in range(LAYERS)
        )  # fmt: skip
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.guess = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place.weight
        for attend, think, norm in zip(self.attend, self.think, self.norm, strict=True):
            x = x + attend(norm(x))
            x = x + think(x)
        logits: Tensor = self.guess(x)  # [B, N, 256]
        return logits


def losses(
    steps: int, pattern: attnc.Pattern, make: Callable[..., SelfAttention] = SelfAttention
) -> list[float]:
    """Return the loss of each step; models of all patterns begin alike and read the same text."""
    torch.manual_seed(0)
    model = Model(make, pattern)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    found = []
    for _ in range(steps):
        first = torch.randint(len(text) - LENGTH, (BATCH, 1))
        window = text[first + torch.arange(LENGTH + 1)]
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def unigram_entropy() -> float:
    """Return the loss of knowing how often each byte comes, and no more."""
    counts = torch.bincount(torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long())
    share = counts[counts > 0] / len(TEXT)
    return float(-(share * share.log()).sum())


def test_dense_pattern_trains_like_sdpa() -> None:
    ours = losses(25, attnc.zoo.causal())
    theirs = losses(25, attnc.zoo.causal(), Dense)
    assert ours[:5] == pytest.approx(theirs[:5], rel=1e-5)
    assert math.fsum(ours[-5:]) == pytest.approx(math.fsum(theirs[-5:]), rel=0.02)


SPARSE = {
    "window and sink": lambda: attnc.parse(
        "pattern p = { q -> k : k <= q and (q - k < 12 or k < 2) }"
    ),
    "powers of two": lambda: attnc.zoo.power_of_two(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_patterns_learn(name: str) -> None:
    found = losses(150, SPARSE[name]())
    assert found[0] > 5.0
    assert math.fsum(found[-10:]) / 10 < unigram_entropy() - 0.2
