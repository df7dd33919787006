"""passkey.attn -> how far back three small models find a key: powers of two, a window, all of it.

Run it: python examples/passkey/run.py [--layers 8] [--plot passkey.svg] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnc
from attnc.nn import SelfAttention

HERE = Path(__file__).parent
WIDTH, HEADS = 32, 2
VALUES, FILLERS = 8, 8  # a sequence has one of the values; everything else in it is filler
BATCH_TOKENS = 4096
STRETCHES = 8  # of distances, in the table


class Model(nn.Module):
    """Layers of attention and an MLP, and for each token a guess at the key before it."""

    def __init__(self, pattern: attnc.Pattern, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VALUES + FILLERS, WIDTH)
        self.attend = nn.ModuleList(SelfAttention(WIDTH, HEADS, pattern) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(layers))
        self.think = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(),
                nn.Linear(2 * WIDTH, WIDTH),
            )
            for _ in range(layers)
        )  # fmt: skip
        self.guess = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES))

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape: ``[B, N] -> [B, N, VALUES]``."""
        return self.read(self.embed(tokens))

    def read(self, x: Tensor) -> Tensor:
        """Shape: ``[B, N, WIDTH] -> [B, N, VALUES]``."""
        for attend, norm, think in zip(self.attend, self.norm, self.think, strict=True):
            x = x + attend(norm(x))
            x = x + think(x)
        logits: Tensor = self.guess(x)
        return logits


def train(model: Model, length: int, steps: int) -> None:
    """Ask for the key at every token behind it; sequences double from ``length / 8``."""
    make = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, steps)
    for step in range(steps):
        tokens_now = length >> max(0, 3 - 5 * step // steps)
        rows = BATCH_TOKENS // tokens_now
        tokens = torch.randint(VALUES, VALUES + FILLERS, (rows, tokens_now), generator=make)
        place = torch.randint(tokens_now, (rows, 1), generator=make)
        value = torch.randint(VALUES, (rows, 1), generator=make)
        tokens.scatter_(1, place, value)
        behind = torch.arange(tokens_now) >= place  # [B, N]
        loss = F.cross_entropy(model(tokens)[behind], value.expand_as(behind)[behind])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()


@torch.no_grad()
def found(model: Model, length: int) -> Tensor:
    """Return the share of keys found at the end of a sequence, by distance. Shape: [N]

    Each value is hidden at each distance once, all of them in the same filler: a guess that does
    not depend on the key is right for one of them.
    """
    make = torch.Generator().manual_seed(2)
    filler = torch.randint(VALUES, VALUES + FILLERS, (length, 1, length), generator=make)
    tokens = filler.repeat(1, VALUES, 1)  # [distance, value, N]
    far = torch.arange(length)
    tokens[far, :, length - 1 - far] = torch.arange(VALUES)
    rows = tokens.flatten(0, 1).split(BATCH_TOKENS // length)
    guesses = torch.cat([model(some)[:, -1].argmax(1) for some in rows])
    return (guesses.view(length, VALUES) == torch.arange(VALUES)).float().mean(1)


def reach(pattern: attnc.Pattern, length: int, layers: int) -> Tensor:
    """Return by distance whether the last token sees a key through the layers. Shape: bool [N]"""
    mask = pattern.mask(n=length)[0].float()
    seen = torch.eye(length)
    for _ in range(layers):
        seen = ((mask @ seen) > 0).float()
    return seen[-1].flip(0) > 0


def depends(model: Model, length: int) -> Tensor:
    """Return by distance whether the last guess has a gradient for the token. Shape: bool [N]"""
    make = torch.Generator().manual_seed(3)
    x = torch.randn(1, length, WIDTH, generator=make, requires_grad=True)
    model.read(x)[0, -1].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(1).flip(0) > 0


@torch.no_grad()
def error(model: Model, pattern: attnc.Pattern, length: int) -> float:
    """Return how far the guesses are from those of the same model, dense and in float64."""
    make = torch.Generator().manual_seed(4)
    tokens = torch.randint(VALUES + FILLERS, (2, length), generator=make)
    dense = copy.deepcopy(model).double()
    attention = partial(F.scaled_dot_product_attention, attn_mask=pattern.mask(n=length))
    for attend in dense.attend:
        attend.attention.forward = attention
    return float((model(tokens) - dense(tokens)).abs().max())


def draw(path: str, curves: dict[str, Tensor], edge: int) -> None:
    """Draw the shares by distance, and where the reach of the window ends."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit('--plot needs matplotlib: pip install "attnc[examples]"') from None
    matplotlib.rcParams["svg.hashsalt"] = "attnc"  # the same curves give the same file
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for (name, share), style in zip(curves.items(), ("k:", "C0-", "C1-"), strict=True):
        axes.plot(share.numpy(), style, label=name, zorder=3 if style == "k:" else 2)
    axes.axvline(edge, color="grey", linewidth=0.8)
    axes.annotate(" out of the window's reach", (edge, 0.55), color="grey")
    axes.annotate("chance", (edge, 1 / VALUES + 0.03), color="grey", ha="right")
    axes.set(xlabel="distance to the key, tokens", ylabel="share found", ylim=(0, 1.05))
    axes.legend(loc="center right")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plot", metavar="FILE", help="also draw the curves (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="seconds: too short to learn")
    args = parser.parse_args()
    if not 8 <= args.tokens <= BATCH_TOKENS or args.steps < 1:
        parser.error(f"--tokens goes from 8 to {BATCH_TOKENS}, --steps from 1")
    length, layers, steps = (64, 6, 5) if args.quick else (args.tokens, args.layers, args.steps)
    torch.set_num_threads(1)  # small matrices; and the figures do not depend on the cores

    patterns = {
        "causal": attnc.zoo.causal(),
        "powers of two": attnc.load(HERE / "passkey.attn"),
        "window": attnc.load(HERE / "passkey.attn", "near", keys=1 + (length - 1).bit_length()),
    }
    print(f"{length} tokens, {layers} layers; chance is {1 / VALUES:.1%}")
    curves, within, worst = {}, {}, 0.0
    for name, pattern in patterns.items():
        torch.manual_seed(0)
        model = Model(pattern, layers)
        within[name] = reach(pattern, length, layers)
        if not torch.equal(depends(model, length), within[name]):
            raise SystemExit(f"{name}: the gradients and the masks differ")
        start = time.process_time()
        train(model, length, steps)
        seconds = time.process_time() - start
        curves[name] = found(model, length)
        worst = max(worst, error(model, pattern, length))
        keys = int(pattern.mask(n=length)[0, -1].sum())
        print(f"  {name:14} {keys:4} keys for the last query, {int(within[name].sum()):4} within "
              f"reach, {steps} steps in {seconds:.0f} CPU s")  # fmt: skip

    print(f"\n{'distance':>12}" + "".join(f"{name:>16}" for name in curves))
    for some in torch.arange(length).chunk(STRETCHES):
        shares = "".join(f"{share[some].mean():>16.0%}" for share in curves.values())
        print(f"{some[0]:5} to {some[-1]:3}{shares}")
    for name, share in curves.items():
        beyond = share[~within[name]]
        if not beyond.eq(1 / VALUES).all():
            raise SystemExit(f"{name}: found a key that is out of reach")
    if args.plot:
        draw(args.plot, curves, int(within["window"].sum()))
    print(f"\nerror {worst:.1e} of the guesses against dense float64")
    if not worst < 1e-3:
        raise SystemExit("the ops and the definition differ")


if __name__ == "__main__":
    main()
