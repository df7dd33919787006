"""streaming_llm.attn -> the whole sequence at once, equal to step-by-step generation with a cache.

Run it: python examples/streaming_llm/run.py [--tokens 600]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import attnc

HERE = Path(__file__).parent
SINKS, RECENT, HEADS, HEAD_DIM = 4, 60, 4, 32


def generate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Attend token by token from a cache that drops what StreamingLLM drops.

    Returns: the outputs, and how many keys the cache ever held.
    """
    cached: list[int] = []  # positions, oldest first
    most, rows = 0, []
    for t in range(q.shape[2]):
        cached.append(t)
        cached = [p for p in cached if p < SINKS or t - p <= RECENT]
        most = max(most, len(cached))
        keys, values = k[:, :, cached].double(), v[:, :, cached].double()
        scores = (q[:, :, t : t + 1].double() @ keys.mT) * HEAD_DIM**-0.5
        rows.append(torch.softmax(scores, dim=-1) @ values)
    return torch.cat(rows, dim=2), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=600)
    tokens = parser.parse_args().tokens

    pattern = attnc.load(HERE / "streaming_llm.attn", sinks=SINKS, recent=RECENT)
    op = attnc.compile(pattern, head_dim=HEAD_DIM, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM, generator=generator) for _ in range(3))

    at_once = op(q, k, v)
    step_by_step, most = generate(q, k, v)
    error = (at_once.double() - step_by_step).abs().max().item()
    print(f"cache    never over {most} keys: {SINKS} sinks, {RECENT} recent ones, the token itself")
    blocks = pattern.blocks(n=65536, tile=(128, 64))
    legal = 65536 * 65537 // 2
    print(f"prefill  of 65,536 tokens: {blocks.pairs_kept / legal:.2%} of the causal pairs")
    print(f"error    {error:.1e} between {tokens} tokens at once and one by one")
    if not error < 1e-5:
        raise SystemExit("prefill and generation differ")


if __name__ == "__main__":
    main()
