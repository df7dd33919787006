"""power_of_two.attn -> its cost from 4 thousand to a million tokens, and a checked run.

Run it: python examples/power_of_two/run.py [--tokens 1024]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import attnc

HERE = Path(__file__).parent
HEADS, HEAD_DIM = 4, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    tokens = parser.parse_args().tokens

    pattern = attnc.load(HERE / "power_of_two.attn")
    for n in (4096, 65536, 1048576):
        blocks = pattern.blocks(n=n, tile=(64, 64))
        share = blocks.pairs_kept / (n * (n + 1) // 2)
        print(f"n={n:<9,} {blocks.visited:>9,} tiles of 64x64, {share:>7.3%} of the causal pairs")

    op = attnc.compile(pattern, head_dim=HEAD_DIM, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM, generator=generator) for _ in range(3))
    scores = (q.double() @ k.double().mT) * HEAD_DIM**-0.5
    masked = scores.masked_fill(~pattern.mask(n=tokens), -torch.inf)
    dense = torch.softmax(masked, dim=-1) @ v.double()
    error = (op(q, k, v).double() - dense).abs().max().item()
    print(f"error    {error:.1e} against dense float64 at n={tokens}")
    if not error < 1e-5:
        raise SystemExit("the op and the definition differ")


if __name__ == "__main__":
    main()
