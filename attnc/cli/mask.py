"""``attnc mask``: pattern -> dense mask, by the oracle, as a .npy file or a drawing."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnc.cli.options import OpenShape, data_options, heads_option, json_option, pattern_options
from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnc.compiler.loaded import Loaded

DRAW_TOKENS = 160
"""A drawing has one character a pair; longer sequences do not fit a terminal."""
DRAWN_TOKENS = 32
"""The length of a drawing where nothing says one."""
MASK_BYTES = 2**32
"""One byte a pair: over this, a dense mask is not what is wanted."""


@click.command(
    epilog="Examples: `attnc mask longformer -D w=8 --shape n=64 -o mask.npy`, "
    "`attnc mask p.attn --pattern local --shape n=32` (draws it), "
    "`attnc mask causal --shape nq=4,nk=16`, `attnc mask document -I doc_ids=ids.npy -o mask.npy`.",
)
@pattern_options
@data_options
@heads_option
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a NumPy bool array [H, Q, K] here ([1, Q, K] without heads).")
@json_option
def command(
    file: str,
    pattern_name: str | None,
    defines: dict[str, str],
    inputs: dict[str, object],
    shape: OpenShape | None,
    layer: int | None,
    heads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write or draw the dense mask of FILE (a path, or a zoo name): true where a query sees a key.

    The mask is the meaning of the pattern, computed by the dense oracle. Lengths that a space or an
    input determines may be left out; a drawing has n=32 where nothing says more. With --heads, a
    pattern that is the same for all heads is repeated for each. A pattern with layers has them in
    front, [L, H, Q, K], unless --layer chooses one.
    """
    from attnc.cli.inputs import load_any, refuse_heads
    from attnc.cli.terminal import show_diagnostics

    pattern = load_any(file, pattern_name, {**defines, **inputs})
    pattern.lower_early()
    show_diagnostics(pattern.warnings)
    if shape is None and output is not None and not pattern.says_lengths:
        raise click.UsageError("-o needs --shape, such as --shape n=64")
    shape = checked_shape(shape, pattern)
    sides = pattern.shape(shape.nq, shape.nk, extents=dict(shape.extents), layer=layer)
    refuse_heads(pattern.name, None if sides[-3] == 1 else sides[-3], heads)
    sides = (*sides[:-3], heads or sides[-3], *sides[-2:])
    if math.prod(sides) > MASK_BYTES:
        raise too_big(sides)
    if output is None and not as_json and max(sides[-2:]) > DRAW_TOKENS:
        raise click.UsageError(
            f"a drawing holds {DRAW_TOKENS} tokens at most; write the mask with -o mask.npy"
        )
    mask = pattern(shape.nq, shape.nk, extents=dict(shape.extents), layer=layer)
    if mask.shape != sides:
        mask = mask.repeat(sides[-3], axis=-3)
    if output is not None:
        save(mask, output)
    if as_json:
        import json

        record = {
            "pattern": pattern.name, "shape": list(mask.shape), "kept": int(mask.sum()),
            "density": float(mask.mean()) if mask.size else 0.0,
            "file": None if output is None else str(output),
        }
        click.echo(json.dumps(record, indent=2))
    elif output is None:
        click.echo(draw(mask))


def checked_shape(shape: OpenShape | None, pattern: Loaded) -> OpenShape:
    """Return the lengths to draw, refused where they cannot be those of the pattern."""
    if shape is None:
        return OpenShape() if pattern.says_lengths else OpenShape(DRAWN_TOKENS, DRAWN_TOKENS)
    for name, _ in shape.extents:
        if name not in pattern.size_names:
            own = "".join(f", {size}" for size in pattern.size_names)
            raise click.UsageError(
                f"there is no extent `{name}`; extents are n, nq and nk{own}"
            )
    if not pattern.says_lengths and None in (shape.nq, shape.nk):
        given, missing = ("nk", "nq") if shape.nq is None else ("nq", "nk")
        raise click.UsageError(f"--shape gives {given} alone; add {missing}=...")
    return shape


def too_big(sides: tuple[int, ...]) -> CompileError:
    """Return the error for a dense mask of over 4 GB."""
    gib = math.prod(sides) / 2**30
    return CompileError(
        [
            Diagnostic(
                code="ATT0506",
                message=f"a dense mask {list(sides)} takes {gib:.0f} GiB",
                help="ask for fewer tokens, or look at the tiles with "
                "`attnc emit --stage blocks`, which never expands the mask",
            )
        ]
    )


def save(mask: NDArray[np.bool_], output: Path) -> None:
    """Write a .npy file under exactly the name given; a crash half way leaves no broken file."""
    import os

    import numpy as np

    beside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as stream:
            np.save(stream, mask, allow_pickle=False)
        os.replace(beside, output)
    except OSError as wrong:
        raise OSError(wrong.errno, wrong.strerror, str(output)) from wrong  # not the other name
    finally:
        beside.unlink(missing_ok=True)


def draw(mask: NDArray[np.bool_]) -> str:
    """Draw a mask, a row of characters for each query: `#` sees, `.` does not."""
    words = ("layer", "head")[4 - mask.ndim :]
    parts = []
    for place in itertools.product(*map(range, mask.shape[:-2])):
        shown = [f"{w} {i}" for w, i, n in zip(words, place, mask.shape, strict=False) if n > 1]
        title = [", ".join(shown)] if shown else []
        rows = ["".join("#" if sees else "." for sees in row) for row in mask[place].tolist()]
        parts.append("\n".join(title + rows))
    return "\n\n".join(parts)
