"""CPU -> speed of attention to chosen blocks beside dense SDPA, selection included.

    python bench/routes_cpu.py                                    all cases, about 15 minutes
    python bench/routes_cpu.py --cases moba --tokens 8192         one of them
    python bench/routes_cpu.py --json bench/results/routes.json   also write the results

Forward, causal, by the processor's time of one thread: both sides run in turns in one process, and
the table shows medians. What a method does depends on what it is given. `random` data has no
structure: MoBA takes as many blocks of it as of any other, XAttention finds its share of the mass
only in most of them. `topics` has some: stretches of tokens are about one of 32 topics, and queries
look for keys of theirs. `kept` is the share of the causal pairs that are in selected blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpu import CLOCKS, DTYPES, in_turns, machine

import attnc

if TYPE_CHECKING:
    import torch

CASES: dict[str, tuple[str, dict[str, int]]] = {
    # name: (method of the zoo, its parameters)
    "moba": ("moba", {"block": 512, "top": 3}),
    "moba_2048": ("moba", {"block": 2048, "top": 3}),
    "xattention": ("xattention", {"block": 128, "stride": 16}),
}
TOPICS = 32
STRETCH = 512  # tokens about one topic, in the mean
STRENGTH = 2.0  # of what tokens of a topic share, beside noise of 1 in every channel
GOALS = {("moba", "random", 32768): 4.0, ("xattention", "topics", 32768): 1.5}


def random_data(shape: tuple[int, ...], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k of independent numbers."""
    import torch

    return torch.randn(shape), torch.randn(shape)


def topics(shape: tuple[int, ...], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k that agree where tokens are about the same topic, differently in each head."""
    import torch

    batch, heads, _, channels = shape
    ends = (torch.rand(tokens) < 1 / STRETCH).cumsum(0)
    topic = torch.randint(TOPICS, (int(ends[-1]) + 1,))[ends]
    shared = torch.randn(heads, TOPICS, channels)
    common = STRENGTH * shared[:, topic].expand(batch, -1, -1, -1)
    return torch.randn(shape) + common, torch.randn(shape) + common


DATA: dict[str, Callable[..., tuple[Any, Any]]] = {"random": random_data, "topics": topics}


def share_kept(selection: dict[str, tuple[Any, ...]], block: int, tokens: int) -> float:
    """Return the share of causal pairs in selected blocks."""
    import torch

    ((index, _),) = selection.values()
    rows = tokens // index.shape[2]
    total = 0
    for top in range(0, index.shape[2], 4096):
        chosen = index[:, :, top : top + 4096].long()
        first = torch.arange(top, top + chosen.shape[2])[:, None] * rows
        past = (chosen + 1) * block <= first  # the whole block stands before the queries
        near = (first + rows - chosen * block) if rows == 1 else torch.tensor((block + 1) / 2)
        pairs = torch.where(past, float(block), near.expand(chosen.shape).double())
        total += float(pairs.where(chosen >= 0, 0.0).sum()) * rows
    heads = index.shape[0] * index.shape[1]
    return total / (heads * tokens * (tokens + 1) / 2)


def difference(op: Any, q: Any, k: Any, v: Any, block: int) -> float:
    """Return how far an output is from dense attention to the same blocks, head by head."""
    import torch

    selection = op.select(q, k)
    ((index, _),) = selection.values()
    out, largest, tokens = op(q, k, v, selection=selection), 0.0, q.shape[2]
    rows = tokens // index.shape[2]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril_()
    for head in range(q.shape[1]):
        own = index[0, head].long()
        chosen = torch.zeros(own.shape[0], tokens // block + 2, dtype=torch.bool)
        chosen.scatter_(1, own.where(own >= 0, chosen.shape[1] - 1), True)
        chosen[:, -1] = False  # where -1 went
        seen = chosen.repeat_interleave(rows, 0)[:, torch.arange(tokens) // block] & causal
        at = slice(head, head + 1)
        right = torch.nn.functional.scaled_dot_product_attention(
            q[:, at], k[:, at], v[:, at], attn_mask=seen
        )
        largest = max(largest, float((out[:, at].float() - right.float()).abs().max()))
    return largest


def measure(
    case: str, data: str, tokens: int, dtype: str, heads: int, head_dim: int, turns: int, clock: str
) -> dict[str, Any]:
    """Time one case; first see that a shorter one attends to its blocks as dense attention does."""
    import torch

    method, given = CASES[case]
    op = attnc.compile(getattr(attnc.zoo, method)(**given), head_dim=head_dim)

    def drawn(tokens: int) -> list[Any]:
        torch.manual_seed(0)
        shape = (1, heads, tokens, head_dim)
        tensors = (*DATA[data](shape, tokens), torch.randn(shape))
        return [x.to(getattr(torch, DTYPES[dtype])) for x in tensors]

    short = [x[:, :2].contiguous() for x in drawn(min(tokens, 4096))]
    with torch.no_grad():
        off = difference(op, *short, given["block"])
        if not off < (1e-4 if dtype == "fp32" else 0.05):
            raise AssertionError(f"{case} {data} {dtype}: dense attention differs by {off:.1e}")
        q, k, v = drawn(tokens)
        selection = op.select(q, k)
        dense = torch.nn.functional.scaled_dot_product_attention
        medians = in_turns(
            {
                "attnc": lambda: op(q, k, v),
                "select": lambda: op.select(q, k),
                "dense": lambda: dense(q, k, v, is_causal=True),
            },
            turns, CLOCKS[clock],
        )  # fmt: skip
    ratio = medians["dense"] / medians["attnc"]
    goal = GOALS.get((case, data, tokens))
    return {
        "case": case, "method": method, "parameters": given, "data": data, "tokens": tokens,
        "dtype": dtype, "heads": heads, "head_dim": head_dim,
        "kept": share_kept(selection, given["block"], tokens),
        **{f"{name}_ms": value for name, value in medians.items()}, "over_dense": ratio,
        "goal": goal, "met": None if goal is None else ratio >= goal, "difference": off,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as text, one line a case."""
    lines = [
        f"{'case':<11} {'data':<7} {'tokens':>6} {'dtype':>5} {'kept':>6} {'attnc':>9} "
        f"{'select':>8} {'dense':>9} {'x dense':>8}  goal"
    ]
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']} {'met' if row['met'] else 'MISSED'}"
        lines.append(
            f"{row['case']:<11} {row['data']:<7} {row['tokens']:>6} {row['dtype']:>5} "
            f"{row['kept']:>6.1%} {row['attnc_ms']:>9.1f} {row['select_ms']:>8.1f} "
            f"{row['dense_ms']:>9.1f} {row['over_dense']:>8.2f}  {goal}".rstrip()
        )
    said = "times in ms: medians of runs in turns; `attnc` selects and attends, `select` is in it"
    return "\n".join([*lines, said])


def main() -> int:
    """Run the chosen cases; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="attention to chosen blocks beside dense SDPA")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--data", default=",".join(DATA), help="comma-separated")
    parser.add_argument("--tokens", default="8192,16384,32768", help="comma-separated")
    parser.add_argument("--dtypes", default="fp32", help=f"comma-separated, of {', '.join(DTYPES)}")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    chosen = {}
    for what, known in (("cases", CASES), ("data", DATA), ("dtypes", DTYPES)):
        chosen[what] = getattr(options, what).split(",")
        for name in chosen[what]:
            if name not in known:
                parser.error(f"no {what} {name!r}; choose from {', '.join(known)}")
    try:
        lengths = [int(n) for n in options.tokens.split(",")]
    except ValueError:
        parser.error(f"--tokens {options.tokens!r}: write numbers with commas, as 8192,16384")
    if min([*lengths, options.turns, options.heads, options.head_dim, options.threads]) < 1:
        parser.error("--tokens, --turns, --heads, --head-dim and --threads must be at least 1")
    if any(n % 2048 for n in lengths):
        parser.error("--tokens must be multiples of 2048, the largest block")
    import torch

    torch.set_num_threads(options.threads)
    about = machine() | {"clock": options.clock, "turns": options.turns}
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    rows: list[dict[str, Any]] = []
    for case in chosen["cases"]:
        for data in chosen["data"]:
            for dtype in chosen["dtypes"]:
                for tokens in lengths:
                    shape = (tokens, dtype, options.heads, options.head_dim)
                    rows.append(measure(case, data, *shape, options.turns, options.clock))
                    print(table(rows).splitlines()[-2], file=sys.stderr, flush=True)
    print(table(rows))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": about, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
