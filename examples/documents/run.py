"""documents.attn -> one op for any packing: texts of the zoo, their ids given at the call.

Run it: python examples/documents/run.py [--tokens 8192]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as dense_attention

import attnc

HERE = Path(__file__).parent
HEADS, HEAD_DIM = 4, 64


def packed(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the words of the zoo's files, one file after the other, and the file of each word.

    Shape: int64 [N] both, N at most ``tokens``; words are numbered as they first appear.
    """
    numbers: dict[str, int] = {}
    words: list[int] = []
    doc: list[int] = []
    for number, name in enumerate(attnc.zoo):
        text = (attnc.zoo[name].__doc__ or "").split()
        words += [numbers.setdefault(word, len(numbers)) for word in text]
        doc += [number] * len(text)
    return torch.tensor(words[:tokens]), torch.tensor(doc[:tokens])


def median_ms(call: Callable[[], object], rounds: int = 5) -> float:
    """Return the median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    words, doc = packed(parser.parse_args().tokens)
    n = len(words)
    lengths = torch.bincount(doc).tolist()
    print(f"input    {n} words of {len(lengths)} texts, {min(lengths)} to {max(lengths)} each")

    # A vector for each word, the same wherever it stands.
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(int(words.max()) + 1, 3 * HEADS * HEAD_DIM, generator=generator)
    q, k, v = table[words].view(1, n, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).contiguous()

    pattern = attnc.load(HERE / "documents.attn")
    blocks = pattern.blocks(n=n, tile=(64, 64), inputs={"doc": doc})
    all_tiles = blocks.visited + blocks.empty
    print(f"tiles    {blocks.visited} of {all_tiles} are visited, found from the ids at the call")

    op = attnc.compile(pattern, head_dim=HEAD_DIM, dtype=torch.float32)
    out = op(q, k, v, doc=doc)

    def one_by_one() -> torch.Tensor:
        parts = (x.split(lengths, dim=2) for x in (q, k, v))
        calls = (dense_attention(*part, is_causal=True) for part in zip(*parts, strict=True))
        return torch.cat(tuple(calls), dim=2)

    mask = pattern.mask(n=n, inputs={"doc": doc})  # [1, N, N] bool
    print(f"time     {median_ms(lambda: op(q, k, v, doc=doc)):.1f} ms for the op")
    print(f"         {median_ms(lambda: dense_attention(q, k, v, attn_mask=mask)):.1f} ms dense")
    print(f"         {median_ms(one_by_one):.1f} ms for one dense call for each text")

    # The definition: dense attention in float64, under the dense mask of the pattern.
    scores = (q.double() @ k.double().mT) * HEAD_DIM**-0.5
    dense = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ v.double()
    error = (out.double() - dense).abs().max().item()
    print(f"error    {error:.1e} against dense float64")
    if not error < 1e-4:
        raise SystemExit("the op and the definition differ")


if __name__ == "__main__":
    main()
