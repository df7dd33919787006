"""``attnc mask``: pattern -> dense mask, by the oracle, as a .npy file or a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnc.cli.options import Shape, heads_option, json_option, pattern_options, shape_option
from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAW_TOKENS = 160
"""A drawing has one character a pair; longer sequences do not fit a terminal."""
MASK_BYTES = 2**32
"""One byte a pair: over this, a dense mask is not what is wanted."""


@click.command(
    epilog="Examples: `attnc mask longformer -D w=8 --shape n=64 -o mask.npy`, "
    "`attnc mask p.attn --pattern local --shape n=32` (draws it), "
    "`attnc mask causal --shape nq=4,nk=16`.",
)
@pattern_options
@shape_option("Lengths: n=64, or nq=16,nk=64 (default when drawing: n=32).")
@heads_option
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a NumPy bool array [H, Q, K] here ([1, Q, K] without heads).")
@json_option
def command(
    file: str,
    pattern_name: str | None,
    defines: dict[str, str],
    shape: Shape | None,
    heads: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write or draw the dense mask of FILE (a path, or a zoo name): true where a query sees a key.

    The mask is the meaning of the pattern, computed by the dense oracle. With --heads, a pattern
    that is the same for all heads is repeated for each.
    """
    from attnc.cli.inputs import check_heads, open_pattern

    if output is not None and shape is None:
        raise click.UsageError("-o needs --shape, such as --shape n=64")
    shape = shape or Shape(32, 32)
    pattern, oracle = open_pattern(file, pattern_name, defines)
    check_heads(pattern, heads)
    layers = heads or pattern.heads or 1
    if layers * shape.nq * shape.nk > MASK_BYTES:
        raise too_big(layers, shape)
    if output is None and not as_json and max(shape.nq, shape.nk) > DRAW_TOKENS:
        raise click.UsageError(
            f"a drawing holds {DRAW_TOKENS} tokens at most; write the mask with -o mask.npy"
        )
    mask = oracle(shape.nq, shape.nk)
    if mask.shape[0] != layers:
        mask = mask.repeat(layers, axis=0)
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


def too_big(layers: int, shape: Shape) -> CompileError:
    """Return the error for a dense mask of over 4 GB."""
    gib = layers * shape.nq * shape.nk / 2**30
    return CompileError(
        [
            Diagnostic(
                code="ATT0506",
                message=f"a dense mask [{layers}, {shape.nq}, {shape.nk}] takes {gib:.0f} GiB",
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
    parts = []
    for head, layer in enumerate(mask):
        title = [f"head {head}"] if len(mask) > 1 else []
        rows = ["".join("#" if sees else "." for sees in row) for row in layer.tolist()]
        parts.append("\n".join(title + rows))
    return "\n\n".join(parts)
