"""neighbourhood.attn -> windows on an image with a learned bias, and what GNA's settings cost.

Run it: python examples/neighbourhood/run.py [--tokens 768]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import attnc

HERE = Path(__file__).parent
HEADS, HEAD_DIM, WINDOW = 4, 32, 7
BOX = (8, 8)  # pixels of a tile: a square of the image, not a stretch of a row


def picture(height: int, width: int) -> torch.Tensor:
    """Return a smooth grey picture with an edge and a disc. Shape: [H * W], row-major."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    disc = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.3).float()
    return (torch.sin(3 * x + 2 * y) + disc + (x > 0.6)).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=768)
    height = max(WINDOW, int((parser.parse_args().tokens * 3 / 4) ** 0.5))
    width = height * 4 // 3

    print("GNA      on 48 x 64 with a window of 16 x 16, in tiles of 8x8 by 8x8 pixels")
    for stride, dilation in ((1, 1), (8, 1), (16, 1), (1, 2)):
        gna = attnc.zoo.gna(
            shape=[48, 64], window=[16, 16], stride=[stride] * 2, dilation=[dilation] * 2
        )
        blocks = gna.blocks(tile=(BOX, BOX))
        all_tiles = blocks.visited + blocks.empty
        print(
            f"         stride {stride:2}, dilation {dilation}: {blocks.visited:4} of {all_tiles} "
            f"visited, {blocks.full} full; {blocks.pairs_kept:,} pairs"
        )

    pattern = attnc.load(
        HERE / "neighbourhood.attn", height=height, width=width, window=WINDOW, heads=HEADS
    )
    n = height * width
    generator = torch.Generator().manual_seed(0)
    lift = torch.randn(3, HEADS, 1, HEAD_DIM, generator=generator)
    q, k, v = (picture(height, width)[:, None] * part for part in lift.unsqueeze(1))
    # As after training: each head has its own direction in which it looks.
    side = 2 * WINDOW - 1
    table = torch.randn(HEADS, side, side, generator=generator)

    op = attnc.compile(pattern, head_dim=HEAD_DIM, dtype=torch.float32)
    out = op(q, k, v, table=table)
    print(f"op       {height} x {width} pixels, {HEADS} heads, out {tuple(out.shape)}")

    # The definition: dense attention in float64, under the dense mask and the dense bias.
    inputs = {"table": table}
    bias = pattern.scores(n=n, inputs=inputs).values  # [heads, N, N] float64
    mask = pattern.mask(n=n, inputs=inputs)  # [heads, N, N] bool
    scores = (q.double() @ k.double().mT) * HEAD_DIM**-0.5 + bias
    dense = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v.double()
    error = (out.double() - dense).abs().max().item()
    print(f"error    {error:.1e} against dense float64")
    if not error < 1e-4:
        raise SystemExit("the op and the definition differ")


if __name__ == "__main__":
    main()
