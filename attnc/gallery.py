"""The zoo as a reader sees it: each file's header, its small example, and a drawing of that.

The header of a stdlib file is the comment block on top: a title, then fields such as ``Source:``,
``Formula:`` and ``When:``, and ``Example:``, values that make a mask small enough to draw.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnc.compiler import driver
from attnc.dsl import nodes as ast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIELDS = ("Source", "Formula", "Typical", "When", "Example")
MOST_DOTS = 64
"""Widest drawing, in dots; a braille character is 2 dots wide and 4 high."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A zoo file: what its header says (``fields`` by name, in order), and its whole text."""

    name: str
    title: str
    fields: dict[str, str]
    text: str


def entry(name: str) -> Entry:
    """Read the header of a zoo file. Raises: CompileError where there is no such file."""
    text = driver.zoo_text(name)
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].rstrip())
    fields: dict[str, str] = {}
    last = ""
    for line in lines[1:]:
        word, colon, rest = line.strip().partition(":")
        if colon and word in FIELDS:
            last, fields[word] = word, rest.strip()
        elif last:
            fields[last] += f" {line.strip()}"
    return Entry(name, lines[0].strip() if lines else "", fields, text)


def example_values(text: str) -> dict[str, object]:
    """Read ``n=32, rates=[1, 4]``: numbers and lists as JSON, other values as they are written."""
    values: dict[str, object] = {}
    depth, start = 0, 0
    for at, sign in enumerate(f"{text},"):
        depth += (sign in "[(") - (sign in "])")
        if sign == "," and not depth:
            name, _, written = text[start:at].partition("=")
            start = at + 1
            try:
                values[name.strip()] = json.loads(written)
            except json.JSONDecodeError:
                values[name.strip()] = written.strip()
    return values


def draw(mask: NDArray[np.bool_], most: int = MOST_DOTS) -> str:
    """Draw a mask with braille dots, a dot for each pair: queries down, keys across.

    A mask over ``most`` tokens wide or high is shrunk; a dot is set where any of its pairs is kept.
    Shape: ``[Q, K]``.
    """
    import numpy as np

    step = max(1, -(-max(mask.shape) // most))
    rows, columns = (-(-side // step) for side in mask.shape)
    dots = np.zeros((-(-rows // 4) * 4, -(-columns // 2) * 2), dtype=np.int64)
    queries, keys = np.nonzero(mask)
    dots[queries // step, keys // step] = 1
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    cells = dots.reshape(dots.shape[0] // 4, 4, dots.shape[1] // 2, 2)
    codes = 0x2800 + (cells * bits[None, :, None, :]).sum(axis=(1, 3))
    return "\n".join("".join(map(chr, row)).rstrip("\u2800") for row in codes.tolist())


def shade(values: NDArray[np.float64], most: int = MOST_DOTS // 2) -> str:
    """Draw numbers as shades from the least (blank) to the greatest. Shape: ``[Q, K]``."""
    import numpy as np

    step = max(1, -(-max(values.shape) // most))
    shown = values[::step, ::step]
    finite = shown[np.isfinite(shown)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scaled = (np.nan_to_num(shown, neginf=low) - low) / (high - low or 1.0)
    level = np.minimum((scaled * 5).astype(int), 4)
    return "\n".join("".join(" ░▒▓█"[i] for i in row).rstrip() for row in level.tolist())


def picture(name: str, most: int = MOST_DOTS) -> str:
    """Draw the example of a zoo file: the mask of its first head and layer, or its scores.

    Returns "" for a file without an example (it holds functions only).
    """
    example = entry(name).fields.get("Example")
    if example is None:
        return ""
    given = example_values(example)
    item = driver.loaded_zoo(name).named.item
    own = {p.name for p in item.params}
    lengths: dict[str, int] = {}
    for side in ("n", "nq", "nk"):
        if side in given and side not in own:
            lengths[side] = int(str(given.pop(side)))
    nq, nk = (lengths.get(side, lengths.get("n")) for side in ("nq", "nk"))
    loaded = driver.loaded_zoo(name, given)
    if isinstance(item, ast.Score):
        return shade(loaded.scores(nq, nk).values[0], most // 2)
    mask = loaded(nq, nk)
    return draw(mask.reshape(-1, *mask.shape[-2:])[0], most)


def markdown() -> str:
    """Return the gallery page: every zoo file with its drawing, by what it is for."""
    parts = [_HEAD]
    for name in driver.zoo_names():
        shown = entry(name)
        drawing = picture(name)
        parts.append(f"## {name}\n\n{shown.title}\n")
        if drawing:
            parts.append(f"```text\n{drawing}\n```\n")
        if "Example" in shown.fields:
            parts.append(f"Drawn: `{_short(shown.fields['Example'])}`\n")
        said = [field for field in FIELDS[:-1] if field in shown.fields]
        parts += [f"- **{field}.** {shown.fields[field]}" for field in said]
        parts.append(f"\n```attn file\n{_body(shown.text)}```\n")
    parts.append(_ROUTES)
    for name in driver.zoo_routes():
        shown = entry(name)
        parts.append(f"## {name}\n\n{shown.title}\n")
        said = [field for field in FIELDS[:-1] if field in shown.fields]
        parts += [f"- **{field}.** {shown.fields[field]}" for field in said]
        parts.append(f"\n```attn file\n{_body(shown.text)}```\n")
    return "\n".join(parts)


_ROUTES = """\
# Chosen by content

Attentions whose keys are selected at the call, by routes (`docs/language.md`, section 9). Which
pairs they keep depends on q and k, so there is nothing to draw.
"""

_HEAD = """\
# The zoo

Every pattern, score and attention that comes with attnc, generated from the files themselves
(`attnc zoo --gallery`). `attnc zoo NAME > mine.attn` copies one to change it; any of them can be
used by name in a file of your own. Drawings are small examples: queries down, keys across, a dot
for each pair that is kept; scores are shades, dark is large.
"""


def _body(text: str) -> str:
    """Return a file without its header."""
    lines = text.splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        del lines[0]
    return "".join(lines).lstrip("\n")


def _short(example: str, most: int = 90) -> str:
    return example if len(example) <= most else f"{example[:most].rstrip()} ..."
