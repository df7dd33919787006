"""Results of ``cpu_backward.py`` -> a plot of time and memory against the length.

    python bench/plot_cpu_backward.py bench/results/cpu_backward.json docs/cpu_backward.svg

Several files of results are one plot, if one machine wrote them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

NAMES = {"dense": "dense", "dense_causal": "dense, causal"}


def lines(rows: list[dict[str, Any]], quantity: str) -> dict[str, dict[int, float]]:
    """Return ``{name: {tokens: value}}``, dense sides first; ``quantity``: "ms" or "peak_mib"."""
    found: dict[str, dict[int, float]] = {}
    for side in ("dense", "attnc"):
        for row in rows:
            name = row["dense"] if side == "dense" else row["case"]
            value = row[f"{side}_peak_mib"]
            if quantity == "ms":
                value = row[f"{side}_forward_ms"] + row[f"{side}_backward_ms"]
            if value is not None:
                found.setdefault(NAMES.get(name, name), {})[row["tokens"]] = value
    return found


def main() -> None:
    """Draw one dtype."""
    parser = argparse.ArgumentParser(description="draw what cpu_backward.py measured")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("picture", type=Path, help="an .svg or .png to write")
    parser.add_argument("--dtype", default="fp32")
    options = parser.parse_args()
    files = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    rows = [row for one in files for row in one["rows"] if row["dtype"] == options.dtype]
    if not rows:
        parser.error(f"no results in {options.dtype}")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "attnc", "font.size": 9}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, quantity, title in (
        (axes[0], "ms", "forward and backward, ms"),
        (axes[1], "peak_mib", "peak memory of a step above its inputs, MiB"),
    ):
        for name, points in lines(rows, quantity).items():
            is_dense = name in NAMES.values()
            axis.plot(
                points.keys(), points.values(), label=name, marker="o", markersize=3,
                color={"dense": "black", "dense, causal": "gray"}.get(name),
                linestyle="--" if is_dense else "-",
            )  # fmt: skip
        tokens = sorted({row["tokens"] for row in rows})
        axis.set(xscale="log", title=title, xlabel="tokens")
        axis.set(**({"yscale": "log"} if quantity == "ms" else {"ylim": (0, None)}))
        axis.set_xticks(tokens, [f"{n:,}" for n in tokens])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    about = files[0]["machine"]
    figure.suptitle(
        f"{rows[0]['heads']} heads of {rows[0]['head_dim']}, {options.dtype}, "
        f"{about['threads']} thread{'s' * (about['threads'] > 1)}, {about['cpu']}"
    )
    dated = {"Date": None} if options.picture.suffix == ".svg" else None  # no date: no idle changes
    figure.savefig(options.picture, metadata=dated)


if __name__ == "__main__":
    main()
