"""Prediction -> a table for people, an object for programs, and the next thing to try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attnc.compiler.cost.alternatives import Alternative
from attnc.compiler.cost.devices import DEVICES
from attnc.compiler.cost.model import MEANING, TERMS, Term
from attnc.compiler.cost.predict import Prediction, Setting


class Assumed(Protocol):
    """A prediction of any kind: it says what it rests on."""

    @property
    def assumptions(self) -> tuple[str, ...]: ...


WORTH = 0.02
"""What would save less than this part of the time is not worth a line."""


@dataclass(frozen=True, slots=True)
class Lever:
    """Something to change, and the part of the time that it could save at best."""

    text: str
    saves: float


def levers(found: Prediction) -> tuple[Lever, ...]:
    """Return what could make it faster, the most promising first."""
    cost, total = found.cost, found.time_us
    if not total:
        return ()
    terms, options = cost.terms, []
    in_tiles = terms["matrix"] + terms["softmax"] + terms["l2"]
    wasted = in_tiles * (1 - 1 / found.waste)
    options.append(Lever(
        f"{found.waste:.2f} pairs are computed for each that is kept: boxes of a grid, another "
        "order of tokens or a smaller tile fit the pattern better", wasted / total,
    ))  # fmt: skip
    options.append(Lever(
        "masks: bounds at multiples of the tile need none", terms["mask"] / total
    ))
    walking = [kernel for kernel in found.kernels if kernel.tiles]
    rows, workers = sum(k.rows for k in walking), found.kernels[-1].workers
    per_row = sum(k.tiles for k in found.kernels) / max(rows, 1)
    few = (
        "two launches of a row each are the least a step takes: put more sequences in one"
        if found.setting.work == "decode" else
        f"rows visit {per_row:.1f} tiles: larger query tiles, or the heads of a group in one row, "
        "start fewer of them"
    )
    options.append(Lever(few, terms["row"] / total))
    options.append(Lever(
        f"{rows:,} rows for {workers} processors: split the longest over their keys",
        terms["tail"] / total,
    ))
    overlap = min(terms["matrix"], terms["softmax"])
    options.append(Lever(
        "a kernel that overlaps softmax with products (warp specialisation)", overlap / total
    ))
    options.append(Lever(
        "memory binds: fewer KV heads, or a narrower type", terms["hbm"] / total
    ))
    options.append(Lever(
        "the L2 cache binds: more rows to a tile reuse keys more often", terms["l2"] / total
    ))
    some = [option for option in options if option.saves >= WORTH]
    return tuple(sorted(some, key=lambda option: -option.saves))


def to_json(found: Prediction) -> dict[str, object]:
    """Return the prediction as an object: counts of the mask, the rest of the whole call."""
    counts, cost, setting = found.counts, found.cost, found.setting
    return {
        "pattern": found.pattern, "device": setting.device, "work": setting.work,
        "nq": setting.nq, "nk": setting.nk, "batch": setting.batch, "heads": setting.heads,
        "kv_heads": setting.kv_heads, "head_dim": setting.head_dim,
        "value_dim": setting.value_dim, "dtype": setting.dtype,
        "pairs_kept": counts.pairs_kept, "pairs_computed": counts.pairs_computed,
        "waste": found.waste, "tiles_full": counts.full, "tiles_partial": counts.partial,
        "tiles_empty": counts.empty, "tiles_total": counts.total,
        "tiles_visited": counts.visited, "tiles_masked": counts.masked,
        "flops": cost.flops, "hbm_bytes": cost.hbm_bytes, "l2_bytes": cost.l2_bytes,
        "time_us": found.time_us, "tflops": found.tflops, "dense_us": found.dense.time_us,
        "speedup_over_dense": found.speedup_over_dense,
        "worst_tile_speedup": found.worst_tile_speedup, "bound_by": cost.bound_by,
        "terms_us": cost.terms, "plan": [f"{k.name}: {k.plan}" for k in found.kernels],
        "levers": [{"what": one.text, "saves": one.saves} for one in levers(found)],
        "assumptions": list(found.assumptions),
    }  # fmt: skip


def to_text(found: Prediction) -> str:
    """Return the prediction as a table."""
    counts, cost = found.counts, found.cost
    lines = [
        f"{found.pattern}: {_work(found.setting)} on {title(found.setting)}",
        shape(found.setting),
        "",
        f"pairs    {counts.pairs_kept:,} kept, {counts.pairs_computed:,} computed: "
        f"{found.waste:.2f} for each",
        f"tiles    {counts.total:,}: {counts.full:,} full, {counts.partial:,} partial, "
        f"{counts.empty:,} empty",
        f"work     {scaled(cost.flops, 1e12, 'TFLOP')}, "
        f"{scaled(cost.hbm_bytes, 1e6, 'MB')} of memory, "
        f"{scaled(cost.l2_bytes, 1e6, 'MB')} through the cache",
        f"time     {time_text(found.time_us)}, {found.tflops:,.1f} TFLOP/s for pairs kept",
        f"dense    {time_text(found.dense.time_us)}: {found.speedup_over_dense:.2f} times as long",
        f"bound by {MEANING[cost.bound_by]}",
        "",
        *_table(found),
    ]
    best = levers(found)[:1]
    lines += ["", *(f"next     {one.text}; saves {one.saves:.0%} at best" for one in best)]
    return "\n".join(lines).rstrip()


def assumptions_text(found: Assumed) -> str:
    """Return what the numbers rest on, a line each."""
    return "\n".join(f"assumed  {one}" for one in found.assumptions)


def explain_text(found: Prediction, others: tuple[Alternative, ...]) -> str:
    """Return all levers, every alternative with what speaks against it, and the longest row."""
    lines = [f"lever    {one.text}; saves {one.saves:.0%} at best" for one in levers(found)]
    lines.append(
        f"longest  a row visits {found.worst_row:,} of {found.columns:,} tiles: "
        f"{found.worst_tile_speedup:.2f} times fewer than dense, whatever a tile takes"
    )
    lines += [
        f"instead  {one.tile}: {time_text(one.time_us)} ({one.time_us / found.time_us - 1:+.0%}): "
        f"{one.why}"
        for one in others
    ]
    return "\n".join(lines)


def _table(found: Prediction) -> list[str]:
    """Return a line for each kernel, with the time of each cause that some kernel has."""
    used = [t for t in TERMS if found.cost.terms[t] >= 0.005 * found.time_us]
    rows = [["kernel", "us", "rows", "tiles", *used]]
    for kernel in found.kernels:
        terms = kernel.cost.terms
        rows.append([
            kernel.name, number(kernel.cost.time_us), f"{kernel.rows:,}", f"{kernel.tiles:,}",
            *(_part(terms, term, found.time_us) for term in used),
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    plans = [f"{kernel.name.ljust(widths[0])}  {kernel.plan}" for kernel in found.kernels]
    return [*lines, "", *plans]


def _part(terms: dict[Term, float], term: Term, total: float) -> str:
    return f"{terms[term] / total:.0%}" if total else "-"


def number(value: float) -> str:
    """Return a number as tables have it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def time_text(us: float) -> str:
    """Return a time with its unit."""
    return f"{us / 1000:,.1f} ms" if us >= 1e4 else f"{number(us)} us"


def scaled(value: float, unit: float, name: str) -> str:
    """Return a number in a unit."""
    return f"{number(value / unit)} {name}"


def _work(setting: Setting) -> str:
    match setting.work:
        case "decode":
            return f"a decode step of {setting.queries}"
        case other:
            return other


def title(setting: Setting) -> str:
    """Return what a device is called."""
    known = DEVICES.get(setting.device)
    return "this CPU" if known is None else known.title


def shape(setting: Setting) -> str:
    """Return the shapes of a call in words."""
    n = f"n={setting.nq}" if setting.nq == setting.nk else f"nq={setting.nq}, nk={setting.nk}"
    heads = f"{setting.heads} heads"
    if setting.kv_heads != setting.heads:
        heads += f" on {setting.kv_heads} KV heads"
    dims = str(setting.head_dim)
    if setting.value_dim != setting.head_dim:
        dims += f" and {setting.value_dim}"
    return f"{n}, batch {setting.batch}, {heads} of {dims}, {setting.dtype}"
