"""train_lm.attn -> a small language model over bytes, trained with torch's attention and attnc's.

Run it: python examples/train_lm/run.py [--text FILE ...] [--plot train_lm.svg] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnc

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEXT = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/language.md")
WIDTH, HEADS, LAYERS = 64, 4, 3
BATCH_TOKENS = 2048
LAST = 20  # steps that the loss printed is the mean of

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """A layer of a transformer; ``attend`` is any function of q, k, v ``[B, H, N, D]``."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.before, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape: ``[B, N, WIDTH] -> [B, N, WIDTH]``."""
        q, k, v = self.qkv(self.before(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.attend(rotated(q), rotated(k), v)  # [B, H, N, D]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.think(x)
        return result


def rotated(x: Tensor) -> Tensor:
    """Return ``x`` turned by its positions (RoPE). Shape: ``[B, H, N, D] -> [B, H, N, D]``."""
    half = x.shape[3] // 2
    speed = 10000.0 ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[2])[:, None] * speed  # [N, D / 2]
    a, b = x.chunk(2, dim=3)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=3)


class Model(nn.Module):
    """A causal language model over bytes; models of one seed begin alike, whatever attends."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(256, WIDTH)
        self.blocks = nn.Sequential(*(Block(attend) for _ in range(LAYERS)))
        self.guess = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean loss of guessing each next byte, in nats. Shape: ``[B, N + 1] -> []``."""
        logits = self.guess(self.blocks(self.embed(tokens[:, :-1])))  # [B, N, 256]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Run:
    """One model in training: its losses and the CPU time of its steps."""

    def __init__(self, attend: Attend) -> None:
        self.model = Model(attend)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.losses: list[float] = []
        self.step_ms: list[float] = []

    def step(self, tokens: Tensor) -> None:
        """Learn from ``tokens``, of shape ``[B, N + 1]``."""
        start = time.process_time()
        loss = self.model(tokens)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step_ms.append(1e3 * (time.process_time() - start))
        self.losses.append(loss.item())

    def loss(self) -> float:
        """Return the mean loss of the last steps."""
        return statistics.fmean(self.losses[-LAST:])

    @torch.no_grad()
    def held_out(self, text: Tensor, length: int) -> float:
        """Return the mean loss over a text that was not trained on."""
        rows = text[: len(text) // (length + 1) * (length + 1)].view(-1, length + 1)
        return float(self.model(rows))

    def peak_mib(self, tokens: Tensor) -> float:
        """Return the most that a step allocates at once, beside weights and optimizer."""
        with torch.profiler.profile(profile_memory=True) as profile:
            self.model(tokens).backward()
        with tempfile.TemporaryDirectory() as folder:
            profile.export_chrome_trace(path := f"{folder}/trace.json")
            events = json.loads(Path(path).read_text())["traceEvents"]
        held = [one["args"]["Total Allocated"] for one in events if one["name"] == "[memory]"]
        return float(max(held)) / 2**20


def train(runs: Collection[Run], text: Tensor, length: int, steps: int) -> None:
    """Train in turns on the same bytes: what slows the machine down slows all of them."""
    make = torch.Generator().manual_seed(1)
    rows = max(1, BATCH_TOKENS // length)
    for _ in range(steps):
        first = torch.randint(len(text) - length, (rows, 1), generator=make)
        tokens = text[first + torch.arange(length + 1)]  # [B, N + 1]
        for run in runs:
            run.step(tokens)


def draw(path: str, runs: dict[str, Run]) -> None:
    """Draw the losses, each the mean of the last ``LAST`` steps."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit('--plot needs matplotlib: pip install "attnc[examples]"') from None
    matplotlib.rcParams["svg.hashsalt"] = "attnc"  # the same curves give the same file
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for (name, run), style in zip(runs.items(), ("-", ":", "-", "-"), strict=True):
        losses = torch.tensor(run.losses).unfold(0, min(LAST, len(run.losses)), 1).mean(1)
        axes.plot(losses.numpy(), style, label=name)
    axes.set(xlabel="step", ylabel="loss, nats for a byte")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", nargs="+", metavar="FILE", help="read these files instead")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plot", metavar="FILE", help="also draw the losses (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="seconds: too short to learn")
    args = parser.parse_args()
    length, steps = (256, 5) if args.quick else (args.tokens, args.steps)
    torch.set_num_threads(1)  # small matrices; and the losses do not depend on the cores

    files = args.text or [ROOT / name for name in TEXT]
    bytes_ = b"".join(Path(file).read_bytes() for file in files)
    text = torch.frombuffer(bytearray(bytes_), dtype=torch.uint8).long()
    cut = len(text) * 9 // 10
    if len(text) - cut <= length or steps < 1:
        parser.error(f"{len(text):,} bytes of text are too short for {length} tokens, or no steps")
    print(f"{len(text):,} bytes of text, {length} tokens at a time, {steps} steps")

    patterns = {
        "attnc, causal": attnc.zoo.causal(),
        "window and sink": attnc.load(HERE / "train_lm.attn", "window_and_sink"),
        "powers of two": attnc.load(HERE / "train_lm.attn"),
    }
    runs = {"torch, causal": Run(partial(F.scaled_dot_product_attention, is_causal=True))}
    pairs = {"torch, causal": length * (length + 1) // 2}
    for name, pattern in patterns.items():
        runs[name] = Run(attnc.compile(pattern, head_dim=WIDTH // HEADS, dtype=torch.float32))
        pairs[name] = pattern.blocks(n=length, tile=(64, 64)).pairs_kept
    train(runs.values(), text[:cut], length, steps)

    peaks = {name: run.peak_mib(text[None, : length + 1]) for name, run in runs.items()}
    print(f"{'':>16}  keys a query    loss  held out  CPU ms a step  peak MiB")
    for name, run in runs.items():
        print(f"{name:>16}{pairs[name] / length:>14.0f}{run.loss():>8.3f}"
              f"{run.held_out(text[cut:], length):>10.3f}{statistics.median(run.step_ms):>15.0f}"
              f"{peaks[name]:>10.0f}")  # fmt: skip
    if args.plot:
        draw(args.plot, runs)

    theirs, ours = runs["torch, causal"].losses, runs["attnc, causal"].losses
    error = max(abs(a - b) for a, b in zip(theirs[:5], ours[:5], strict=True))
    print(f"\nerror {error:.1e} of the first five losses against torch")
    if not error < 1e-4:
        raise SystemExit("the op and torch's attention differ")


if __name__ == "__main__":
    main()
