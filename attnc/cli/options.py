"""Flags -> values: the flags that several verbs share, and what they are read into."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    from attnc.compiler.ir.blockmask import Tiling
    from attnc.compiler.ir.gridmask import BoxTiling

    # Generic since click 8.4, and not before.
    _Typed: TypeAlias = click.ParamType[Any]
else:
    _Typed = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

TARGET_NAMES = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPE_NAMES = ("bf16", "fp16", "fp32")
ALIGNMENTS = ("top-left", "bottom-right")
LENGTH_MAX = 2**30


@dataclass(frozen=True, slots=True)
class Shape:
    """Sequence lengths in tokens: queries and keys."""

    nq: int
    nk: int

    def __str__(self) -> str:
        return f"n={self.nk}" if self.nq == self.nk else f"nq={self.nq}, nk={self.nk}"


class DefineType(_Typed):
    """``name=value``; the value stays text, the driver reads it by the parameter's type."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        name, equals, text = str(value).partition("=")
        if not equals or not name.strip():
            self.fail(f"`{value}` is not of the form name=value, such as -D window=256", param, ctx)
        return name.strip(), text.strip()


class InputType(_Typed):
    """``name=FILE``: where an input is read from."""

    name = "name=FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        name, equals, path = str(value).partition("=")
        if not equals or not name.strip():
            self.fail(f"`{value}` is not of the form name=FILE, such as -I doc=ids.npy", param, ctx)
        return name.strip(), path.strip()


class TileType(_Typed):
    """``128x64``: tokens of a tile, queries by keys; with ``boxes`` a box of each as well."""

    name = "QxK"

    def __init__(self, *, boxes: bool = False) -> None:
        self.boxes = boxes

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[int, ...], ...]:
        if value == "boxes" and self.boxes:
            return ()
        boxes = str(value).split(",")
        found = [re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", box) for box in boxes]
        sides = tuple(tuple(map(int, box.split("x"))) for box in boxes) if all(found) else ()
        if len(sides) == 1 and len(sides[0]) == 2:
            return sides
        if len(sides) == 2 and self.boxes:
            if any(side & (side - 1) for box in sides for side in box):
                self.fail(f"`{value}` is not a tile of boxes: sides are powers of two", param, ctx)
            return sides
        more = ", or for a grid a box of each, such as 4x4x8,4x4x8" if self.boxes else ""
        self.fail(
            f"`{value}` is not a tile; write queries x keys, such as 128x64{more}", param, ctx
        )


@dataclass(frozen=True, slots=True)
class OpenShape:
    """Lengths as far as they were given, and extents of a space by name."""

    nq: int | None = None
    nk: int | None = None
    extents: tuple[tuple[str, int], ...] = ()


class ShapeItemType(_Typed):
    """``n=65536`` or ``nq=1,nk=4096``: lengths by name; ``is_open``: extents of a space as well."""

    name = "n=TOKENS"

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, int], ...]:
        items = []
        for part in str(value).split(","):
            found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d[\d_]*)\s*", part)
            if not found:
                self.fail(
                    f"`{part}` is not a length; write n=65536, or nq=1,nk=4096", param, ctx
                )
            if found[1] not in ("n", "nq", "nk") and not self.is_open:
                self.fail(
                    f"there is no extent `{found[1]}`; extents are n, nq and nk", param, ctx
                )
            if int(found[2]) > LENGTH_MAX:
                self.fail(f"`{part}` is over {LENGTH_MAX} tokens", param, ctx)
            items.append((found[1], int(found[2])))
        return tuple(items)


def read_shape(
    _ctx: click.Context, _param: click.Parameter, given: tuple[tuple[tuple[str, int], ...], ...]
) -> Shape | None:
    """Put the lengths of all ``--shape`` flags together."""
    lengths = _by_name(given)
    if not lengths:
        return None
    if "n" in lengths:
        return Shape(lengths["n"], lengths["n"])
    if len(lengths) == 1:
        missing = "nk" if "nq" in lengths else "nq"
        raise click.UsageError(f"--shape gives {next(iter(lengths))} alone; add {missing}=...")
    return Shape(lengths["nq"], lengths["nk"])


def read_open_shape(
    _ctx: click.Context, _param: click.Parameter, given: tuple[tuple[tuple[str, int], ...], ...]
) -> OpenShape | None:
    """Put all ``--shape`` flags together: lengths, and extents by name."""
    sides = _by_name(given)
    if not sides:
        return None
    both = sides.pop("n", None)
    nq, nk = sides.pop("nq", both), sides.pop("nk", both)
    return OpenShape(nq, nk, tuple(sides.items()))


def _by_name(given: tuple[tuple[tuple[str, int], ...], ...]) -> dict[str, int]:
    sides: dict[str, int] = {}
    for name, tokens in (item for group in given for item in group):
        if sides.setdefault(name, tokens) != tokens:
            raise click.UsageError(f"--shape gives `{name}` twice: {sides[name]} and {tokens}")
    if "n" in sides and sides.keys() & {"nq", "nk"}:
        raise click.UsageError("--shape: give either n, or nq and nk")
    return sides


def read_inputs(
    _ctx: click.Context, _param: click.Parameter, given: tuple[tuple[str, str], ...]
) -> dict[str, object]:
    """Read the files of all ``-I`` flags: NumPy arrays, or lists and numbers as JSON."""
    values: dict[str, object] = {}
    for name, path in given:
        if name in values:
            raise click.UsageError(f"-I gives `{name}` twice")
        values[name] = _read_input(name, Path(path))
    return values


def _read_input(name: str, path: Path) -> object:
    import json

    import numpy as np

    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        return np.load(path, allow_pickle=False)
    except OSError as wrong:
        raise click.UsageError(f"-I {name}: cannot read {path}: {wrong.strerror}") from wrong
    except ValueError as wrong:
        raise click.UsageError(
            f"-I {name}: {path} is neither a .npy file nor .json: {wrong}"
        ) from wrong


def read_defines(
    _ctx: click.Context, _param: click.Parameter, given: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    """Put all ``-D`` flags together; two values for one name are refused."""
    values: dict[str, str] = {}
    for name, text in given:
        if name in values:
            raise click.UsageError(f"-D gives `{name}` twice: {values[name]} and {text}")
        values[name] = text
    return values


def read_tile(
    _ctx: click.Context, _param: click.Parameter, given: tuple[tuple[int, ...], ...] | None
) -> Tiling | BoxTiling | str | None:
    """Make a tile shape of a ``--tile`` flag."""
    if given is None:
        return None
    if not given:
        return "boxes"
    from attnc.compiler.ir.blockmask import Tiling
    from attnc.compiler.ir.gridmask import BoxTiling

    return Tiling(*given[0]) if len(given) == 1 else BoxTiling(*given)


def pattern_options(command: F) -> F:
    """Add FILE, ``--pattern`` and ``-D``: which pattern, with which parameters."""
    for decorate in (
        click.option("-D", "defines", type=DefineType(), multiple=True, callback=read_defines,
                     help="Set a parameter of the pattern; may be repeated."),
        click.option("--pattern", "pattern_name", metavar="NAME",
                     help="Which pattern of the file, where it holds several."),
        click.argument("file", metavar="FILE"),
    ):
        command = decorate(command)
    return command


layer_option = click.option(
    "--layer", type=click.IntRange(0), metavar="L", help="One layer of a pattern that has several.",
)


def data_options(command: F) -> F:
    """Add ``-I``, ``--shape`` with extents, and ``--layer``: what a mask is evaluated at."""
    for decorate in (
        layer_option,
        click.option("--shape", type=ShapeItemType(is_open=True), multiple=True,
                     callback=read_open_shape, metavar="n=TOKENS",
                     help="Lengths, n=64 or nq=16,nk=64, and extents of a space, y=30,x=40."),
        click.option("-I", "inputs", type=InputType(), multiple=True, callback=read_inputs,
                     help="Give an input of the pattern: a .npy file, or a list as .json."),
    ):
        command = decorate(command)
    return command


def shape_option(help_text: str) -> Callable[[F], F]:
    """Add ``--shape``."""
    return click.option("--shape", type=ShapeItemType(), multiple=True, callback=read_shape,
                        metavar="n=TOKENS", help=help_text)


def read_orders(context: click.Context, parameter: click.Parameter, value: str | None) -> object:
    """Read ``--orders``; None: it was not given."""
    if value is None:
        return None
    from attnc.compiler.passes.token_order import read_orders as read

    try:
        return read(value)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong)) from None


def plan_options(command: F) -> F:
    """Add the flags that decide what is generated."""
    for decorate in (
        click.option("--align", type=click.Choice(ALIGNMENTS), default="top-left",
                     show_default=True, help="Where queries stand if there are fewer or more of "
                     "them than keys: query i at i, or so that the last one is at the last key."),
        click.option("--orders", callback=read_orders, metavar="M,M",
                     help="Token orders that parts of the pattern may take: auto, natural or "
                     "residue classes, such as 1,64 (default: as the file says, else auto)."),
        click.option("--bias", type=click.Choice(("auto", "add", "fold")),
                     help="How separable terms of a score are added: by cost, pair by pair, or "
                     "folded (default: as the file says, else auto)."),
        click.option("--tile", type=TileType(boxes=True), callback=read_tile, metavar="QxK",
                     help="Tile shape in tokens, such as 128x64; on a grid boxes, 4x4x8,4x4x8, "
                     "or the word boxes for the best (default: as the file says, else the plan "
                     "picks)."),
        click.option("--dtype", type=click.Choice(DTYPE_NAMES), default="bf16",
                     show_default=True, help="Element type of q, k and v."),
        click.option("--value-dim", type=click.IntRange(16, 256), metavar="DV",
                     help="Size of a value vector (default: as --head-dim)."),
        click.option("--head-dim", type=click.IntRange(16, 256), default=64, show_default=True,
                     metavar="D", help="Size of a query and key vector."),
    ):
        command = decorate(command)
    return command


heads_option = click.option(
    "--heads", type=click.IntRange(1, 65535), metavar="H",
    help="How many query heads; must be the pattern's own number where it has one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
