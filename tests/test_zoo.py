"""Every zoo file: its header is complete, and its example is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attnc
from attnc import gallery
from attnc.compiler import driver
from attnc.dsl import nodes as ast

PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"
NAMES = driver.zoo_names()
ITEMS = {name: driver.loaded_zoo(name).named.item for name in NAMES if name != "softcap"}
OPS = [n for n, item in ITEMS.items() if isinstance(item, ast.PatternDef | ast.Attention)]


def example(name: str) -> tuple[attnc.Pattern, int, int, dict[str, Any]]:
    """Return a file's example: the pattern, both lengths, and the run-time inputs of a call."""
    given = gallery.example_values(gallery.entry(name).fields["Example"])
    own = {p.name for p in ITEMS[name].params}
    lengths = {s: given.pop(s) for s in ("n", "nq", "nk") if s in given and s not in own}
    loaded = driver.loaded_zoo(name, given)
    nq, nk = (lengths.get(side, lengths.get("n")) for side in ("nq", "nk"))
    pattern = attnc.zoo[name](**given)
    if isinstance(ITEMS[name], ast.PatternDef) and ITEMS[name].layers is not None:
        pattern, mask = pattern.layer(0), loaded(nq, nk, layer=0)
    else:
        mask = loaded(nq, nk)
    kinds = {i.name: i.kind for i in pattern.ir.inputs}
    inputs = {
        n: torch.as_tensor(np.asarray(x)).to(torch.bool if kinds[n] == "bool" else None)
        if np.ndim(x) else x
        for n, x in loaded.inputs.items()
    }  # fmt: skip
    return pattern, *mask.shape[-2:], inputs


def tensors(pattern: attnc.Pattern, nq: int, nk: int) -> list[torch.Tensor]:
    heads = pattern.ir.heads or 2
    make = torch.Generator().manual_seed(nq)
    return [torch.randn(1, heads, n, 16, generator=make) for n in (nq, nk, nk)]


@pytest.mark.parametrize("name", NAMES)
def test_header_is_complete_and_the_example_is_drawn(name: str) -> None:
    entry = gallery.entry(name)
    assert entry.title.endswith(".")
    assert {"Formula", "When"} <= entry.fields.keys()
    assert "Example" in entry.fields or name not in OPS
    if "Example" in entry.fields:
        assert gallery.picture(name).strip(), "nothing is drawn"


def test_gallery_page_is_the_zoo(update_golden: bool) -> None:
    page = gallery.markdown()
    if update_golden:
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "--update-golden rewrites docs/zoo.md"


@pytest.mark.parametrize(
    ("model", "density"),
    [
        ({"n": 69120, "frames": 18, "decay": 0.2}, 0.287),  # Wan 2.1
        ({"n": 76800, "frames": 20, "decay": 0.8}, 0.353),  # Wan 2.2
        ({"n": 115200, "frames": 30, "decay": 0.95, "sink_frame": False}, 0.275),  # Hunyuan
    ],
    ids=["wan_2_1", "wan_2_2", "hunyuan"],
)
def test_density_of_radial_at_published_sizes(model: dict[str, Any], density: float) -> None:
    pattern = attnc.zoo.radial_blocks(s=3840, **model)
    blocks = model["n"] // 128
    mask = pattern.ir.mask(blocks, blocks)
    assert round(float(mask.mean()), 3) == density
    assert pattern.blocks(tile=(64, 64)).counts.pairs_kept == mask.sum()
