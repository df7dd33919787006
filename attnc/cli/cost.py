"""``attnc cost``: pattern, shapes, device -> what its kernels cost, without running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnc.cli.mask import checked_shape
from attnc.cli.options import (
    InputType,
    OpenShape,
    data_options,
    heads_option,
    json_option,
    pattern_options,
    plan_options,
)
from attnc.dsl.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from attnc.compiler.cost.alternatives import Alternative
    from attnc.compiler.cost.predict import Prediction, Setting
    from attnc.compiler.ir.pattern import Pattern

DEVICE_NAMES = ("a100", "h100", "h200", "b200", "mi300x", "cpu")
DEFAULT_TOKENS = 16384
"""The length where nothing says one."""
BUSY_ERROR = 0.25
"""An idle machine is met within about a tenth in the median."""


def _calibrate(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    """Measure this machine and leave; no FILE is needed for that."""
    if not wanted or ctx.resilient_parsing:
        return
    from attnc.cli.planning import needs_torch
    from attnc.cli.terminal import progress
    from attnc.costs import calibration_path

    try:
        from attnc.runtime.calibrate import DTYPES, calibrate, write_calibration
    except ImportError as missing:
        raise needs_torch(missing) from missing
    path = calibration_path()
    with progress(len(DTYPES)) as steps:
        found = calibrate(steps.step)
    write_calibration(found, path)
    click.echo(f"wrote {path}")
    for (executor, dtype), prices in found.prices.items():
        click.echo(
            f"{executor} {dtype}: {prices.error:.0%} off in the median, {prices.worst:.0%} at worst"
        )
    if max(prices.error for prices in found.prices.values()) > BUSY_ERROR:
        click.echo("the machine seems to be busy: measure again when it is idle", err=True)
    ctx.exit()


@click.command(
    epilog="Examples: `attnc cost longformer --shape n=65536 --heads 32 --head-dim 128`, "
    "`attnc cost gna --tile boxes --explain`, "
    "`attnc cost causal --decode --shape n=131072 --heads 64 --kv-heads 8`, "
    "`attnc cost longformer --formula`, `attnc cost longformer --plot cost.svg`.",
)
@pattern_options
@click.option("--device", type=click.Choice(DEVICE_NAMES), default="h200", show_default=True,
              help="Where it would run; cpu is this machine, measured by --calibrate.")
@plan_options
@heads_option
@click.option("--kv-heads", type=click.IntRange(1, 65535), metavar="H",
              help="How many heads keys and values have (default: as --heads).")
@click.option("--batch", type=click.IntRange(1, 65535), default=1, show_default=True, metavar="B",
              help="How many sequences.")
@click.option("--backward", is_flag=True, help="The backward pass alone.")
@click.option("--decode", is_flag=True, help="A step of generation against a cache of n keys.")
@click.option("--queries", type=click.IntRange(1, 16), metavar="T",
              help="Queries of a decode step (default: 1).")
@click.option("--attention-share", type=click.FloatRange(0, 1), metavar="F",
              help="Part of a model's time that is dense attention: adds the speed-up end to end.")
@data_options
@click.option("--sample", "samples", type=InputType(), multiple=True, metavar="ROUTE=FILE",
              help="A selection that a route made, as .npy: bool [..., query units, key units].")
@click.option("--formula", is_flag=True,
              help="Also print pairs kept and computed as formulas in n.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Draw time against n, up to --shape, with the crossover to dense (.svg, .png).")
@click.option("--explain", is_flag=True, help="Also print every lever, and the tiles not taken.")
@json_option
@click.option("--calibrate", is_flag=True, is_eager=True, expose_value=False, callback=_calibrate,
              help="Measure this machine for --device cpu, and stop.")
def command(
    file: str,
    pattern_name: str | None,
    defines: dict[str, str],
    device: str,
    head_dim: int,
    value_dim: int | None,
    dtype: str,
    tile: object,
    align: str,
    orders: object,
    bias: str | None,
    heads: int | None,
    kv_heads: int | None,
    batch: int,
    backward: bool,
    decode: bool,
    queries: int | None,
    attention_share: float | None,
    inputs: dict[str, object],
    samples: tuple[tuple[str, str], ...],
    shape: OpenShape | None,
    layer: int | None,
    formula: bool,
    plot: Path | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Predict what FILE (a path, or a zoo name) costs on a device, which need not be there.

    Pairs and tiles are counted exactly; the time is simulated, with what it rests on and how far
    off that was where it could be checked. Dense attention beside it visits every key.
    """
    from attnc.cli.inputs import align_pattern, load_any, refuse_heads
    from attnc.cli.planning import choices
    from attnc.cli.terminal import show_diagnostics
    from attnc.costs import setting_of

    if backward and decode:
        raise click.UsageError("a decode step has no backward; leave out --backward or --decode")
    if queries is not None and not decode:
        raise click.UsageError("--queries goes with --decode")
    loaded = load_any(file, pattern_name, {**defines, **inputs})
    loaded = loaded if layer is None else loaded.at_layer(layer)
    if loaded.is_routed:
        from attnc.cli.routed import cost_routed

        refused = {
            "--backward": backward, "--decode": decode, "--tile": tile is not None,
            "--orders": orders is not None, "--bias": bias is not None, "--formula": formula,
            "--plot": plot is not None,
        }  # fmt: skip
        cost_routed(
            loaded, [flag for flag, given in refused.items() if given],
            shape or OpenShape(DEFAULT_TOKENS, DEFAULT_TOKENS), dict(samples), attention_share,
            explain=explain, as_json=as_json,
            options={
                "heads": heads, "kv_heads": kv_heads, "batch": batch, "head_dim": head_dim,
                "value_dim": value_dim, "dtype": dtype, "device": device, "work": "forward",
            },
        )  # fmt: skip
        return
    if samples:
        raise click.UsageError("--sample goes with what is chosen by content")
    pattern = align_pattern(loaded.ir, align)
    show_diagnostics(pattern.warnings)
    if not pattern.kv_heads:
        refuse_heads(pattern.name, pattern.heads, heads)
    open_shape = OpenShape(DEFAULT_TOKENS, DEFAULT_TOKENS)
    if shape is not None or loaded.says_lengths:
        open_shape = checked_shape(shape, loaded)
    nq, nk, data = loaded.data(open_shape.nq, open_shape.nk, extents=dict(open_shape.extents))

    chosen = choices(loaded, tile, orders, bias, on_cpu=device == "cpu")
    del chosen["cpu_tile"]

    def at(nq: int, nk: int) -> Setting:
        return setting_of(
            pattern, nq, nk, heads=heads, kv_heads=kv_heads, batch=batch, head_dim=head_dim,
            value_dim=value_dim, dtype=dtype, device=device, queries=queries or 1, **chosen,
            work="decode" if decode else "backward" if backward else "forward",
        )

    setting = _checked(lambda: at(nq, nk))
    found = _predicted(pattern, setting, data)
    record, texts = _shown(found, attention_share)
    if explain:
        _explain(pattern, setting, data, found, record, texts)
    if formula:
        _formulas(pattern, setting, record, texts)
    if plot is not None:
        _plot(pattern, lambda n: _predicted(pattern, at(n, n), {}), nk, found, plot, record, texts)
    if as_json:
        import json

        click.echo(json.dumps(record, indent=2))
    else:
        click.echo("\n".join(texts))


def _checked(make: Callable[[], Any]) -> Any:
    """Call, and turn what cannot be served into a diagnostic."""
    try:
        return make()
    except ValueError as wrong:
        raise CompileError([Diagnostic(code="ATT0406", message=str(wrong))]) from wrong


def _predicted(pattern: Pattern, setting: Setting, data: Mapping[str, Any]) -> Prediction:
    from attnc.costs import predict_on

    found: Prediction = _checked(lambda: predict_on(pattern, setting, data))
    return found


def _shown(found: Prediction, share: float | None) -> tuple[dict[str, Any], list[str]]:
    """Return the prediction as an object, and as texts."""
    from attnc.compiler.cost.predict import end_to_end
    from attnc.compiler.cost.report import assumptions_text, to_json, to_text

    record, texts = to_json(found), [to_text(found), assumptions_text(found)]
    if share is not None and found.speedup_over_dense:
        whole = end_to_end(found.speedup_over_dense, share)
        worst = end_to_end(found.worst_tile_speedup, share)
        record |= {"end_to_end": whole, "end_to_end_by_worst_tile": worst}
        texts.append(
            f"whole    {whole:.2f} times as fast, attention being {share:.1%} of it; by tiles of "
            f"the longest row alone {worst:.2f}"
        )
    return record, texts


def _explain(
    pattern: Pattern, setting: Setting, data: Mapping[str, Any], found: Prediction,
    record: dict[str, Any], texts: list[str],
) -> None:
    """Add the levers, and the tiles that were not taken."""
    from dataclasses import asdict

    from attnc.compiler.cost.alternatives import alternatives
    from attnc.compiler.cost.report import explain_text
    from attnc.costs import predict_on

    others: tuple[Alternative, ...] = ()
    if setting.work == "forward" and found.time_us:
        others = alternatives(pattern, setting, data, found, predict_on)
    record["alternatives"] = [asdict(one) for one in others]
    texts += [text for text in (explain_text(found, others),) if text]


def _formulas(
    pattern: Pattern, setting: Setting, record: dict[str, Any], texts: list[str]
) -> None:
    """Add pairs as formulas in n, of the tile of the plan."""
    from attnc.cli.planning import needs_package, plan_for
    from attnc.compiler.cost.closed_form import closed_forms

    target = "cpu"
    if setting.device != "cpu":
        from attnc.compiler.cost.devices import DEVICES

        target = DEVICES[setting.device].target
    plan = plan_for(
        pattern, setting.head_dim, setting.value_dim, setting.dtype, target, setting.tile
    )
    mask = plan.cpu.block_mask if target == "cpu" else plan.forward.block_mask
    try:
        forms = _checked(lambda: closed_forms(mask))
        texts.append("")
        for name, one in (("kept", forms.kept), ("computed", forms.computed)):
            none = "no polynomial of degree two in n"
            texts.append(f"{name.ljust(8)} {none if one is None else one}")
            record[f"formula_{name}"] = None if one is None else str(one)
        if forms.kept is not None:
            texts.append(f"density  {forms.density} of all pairs, as n grows")
            record["density"] = str(forms.density)
    except ImportError as missing:
        raise needs_package(missing, "cost") from missing


def _plot(
    pattern: Pattern, at: Callable[[int], Prediction], longest: int, found: Prediction, path: Path,
    record: dict[str, Any], texts: list[str],
) -> None:
    """Draw times against n."""
    from attnc.cli.planning import needs_package
    from attnc.compiler.cost import sweep

    setting = found.setting
    if pattern.query_space is not None or pattern.inputs or setting.nq != setting.nk:
        raise CompileError(
            [
                Diagnostic(
                    code="ATT0406",
                    message=f"the length of `{pattern.name}` is not free, so there is no curve "
                    "over n",
                    help="leave `--plot` out; parameters may set other extents",
                )
            ]
        )
    curve = sweep.sweep(at, longest)
    title = f"{pattern.name}: {setting.work} on {setting.device}, {setting.heads} heads of " + (
        f"{setting.head_dim}, {setting.dtype}"
    )
    try:
        _checked(lambda: sweep.plot(curve, title, path))
    except ImportError as missing:
        raise needs_package(missing, "cost") from missing
    record |= {"plot": str(path), "crossover": curve.crossover}
    where = f"at n = {curve.crossover:,}" if curve.crossover else f"beyond n = {longest:,}"
    texts.append(f"cross    faster than dense from there on: {where}; drawn in {path}")
