"""s2_shards.attn -> a mask for each head; together the heads see every earlier token.

Run it: python examples/s2_shards/run.py [--tokens 768]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import attnc

HERE = Path(__file__).parent
HEAD_DIM = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=768)
    tokens = parser.parse_args().tokens

    pattern = attnc.load(HERE / "s2_shards.attn")
    heads = pattern.heads
    assert heads is not None
    mask = pattern.mask(n=tokens)  # [heads, N, N] bool
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    share = mask.float().mean() / causal.float().mean()
    print(f"heads    {heads}, each sees {share:.1%} of the causal pairs on average")
    covered = torch.equal(mask.any(dim=0), causal)
    print(f"shards   together the heads see {'every' if covered else 'NOT every'} earlier token")

    op = attnc.compile(pattern, head_dim=HEAD_DIM, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, HEAD_DIM, generator=generator) for _ in range(3))
    scores = (q.double() @ k.double().mT) * HEAD_DIM**-0.5
    dense = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v.double()
    error = (op(q, k, v).double() - dense).abs().max().item()
    print(f"error    {error:.1e} against dense float64, all {heads} heads in one call")
    if not (covered and error < 1e-5):
        raise SystemExit("the heads do not cover the past, or the op is wrong")


if __name__ == "__main__":
    main()
