"""Prediction of a routed attention -> a table for people, an object for programs."""

from __future__ import annotations

from attnc.compiler.cost import report
from attnc.compiler.cost.model import MEANING
from attnc.compiler.cost.routes import RoutedPrediction, RouteShare


def to_json(found: RoutedPrediction) -> dict[str, object]:
    """Return the prediction as an object."""
    cost, setting = found.cost, found.setting
    return {
        "pattern": found.pattern, "device": setting.device, "work": setting.work,
        "nq": setting.nq, "nk": setting.nk, "batch": setting.batch, "heads": setting.heads,
        "kv_heads": setting.kv_heads, "head_dim": setting.head_dim,
        "value_dim": setting.value_dim, "dtype": setting.dtype,
        "density": found.density,
        "routes": [
            {
                "name": one.name, "units": one.units, "of": one.of,
                "union_of_64": one.union_of_64, "density": one.density, "loop": one.loop,
                "other_loop_us": one.other_us, "measured": one.measured,
            }
            for one in found.routes
        ],
        "kernels": [
            {"name": k.name, "plan": k.plan, "time_us": k.cost.time_us} for k in found.kernels
        ],
        "flops": cost.flops, "hbm_bytes": cost.hbm_bytes, "l2_bytes": cost.l2_bytes,
        "time_us": found.time_us, "dense_us": found.dense.time_us,
        "plain_dense_us": found.plain_dense_us, "speedup_over_dense": found.speedup_over_dense,
        "bound_by": cost.bound_by, "terms_us": cost.terms, "crossover": found.crossover,
        "warnings": list(found.warnings), "assumptions": list(found.assumptions),
    }  # fmt: skip


def to_text(found: RoutedPrediction) -> str:
    """Return the prediction as a table."""
    cost = found.cost
    lines = [
        f"{found.pattern}: {found.setting.work} on {report.title(found.setting)}",
        report.shape(found.setting),
        "",
        f"pairs    {found.density:.2%} of the base's, expected",
        *(f"route    {_route(one)}" for one in found.routes),
        f"work     {report.scaled(cost.flops, 1e12, 'TFLOP')}, "
        f"{report.scaled(cost.hbm_bytes, 1e6, 'MB')} of memory, "
        f"{report.scaled(cost.l2_bytes, 1e6, 'MB')} through the cache",
        f"time     {report.time_text(found.time_us)}",
        f"dense    {report.time_text(found.dense.time_us)}: {found.speedup_over_dense:.2f} times "
        "as long",
        f"cross    {_cross(found)}",
        f"bound by {MEANING[cost.bound_by]}",
        "",
        *_table(found),
        *(f"warning  {one}" for one in found.warnings),
    ]
    return "\n".join(lines).rstrip()


def explain_text(found: RoutedPrediction) -> str:
    """Return where the time goes by stage, and what the other order of loops would take."""
    total = found.time_us or 1.0
    stages = {
        "score": "fewer scores: larger units, a coarser window, one head for a group",
        "select": "fewer candidates: larger units",
        "attend": "fewer units, or larger ones: tiles of 64 keys and more are the cheapest",
        "merge": "a query-outer loop merges nothing: it needs groups of heads or blocks of queries",
        "kept": "a smaller kept part",
    }
    lines = [
        f"lever    {stage} is {found.part_us(stage) / total:.0%} of the time: {what}"
        for stage, what in stages.items() if found.part_us(stage) >= report.WORTH * total
    ]  # fmt: skip
    for one in found.routes:
        if one.other_us is not None:
            lines.append(
                f"instead  {one.name} in the other order of loops: {report.time_text(one.other_us)}"
            )
        lines.append(
            f"union    64 rows of {one.name} select {one.union_of_64:,.0f} of {one.of:,} units "
            f"together, {one.union_of_64 / max(one.units, 1e-9):.1f} times those of a row"
            f"{'' if one.measured else ', if they choose independently'}"
        )
    lines.append(
        f"bound    1 / density is {1 / max(found.density, 1e-9):,.1f}: no route gains more over a "
        "kernel as good as its own"
    )
    return "\n".join(lines)


def _route(one: RouteShare) -> str:
    how = "measured" if one.measured else "expected"
    return (
        f"{one.name}: {one.units:,.1f} of {one.of:,} units a row, {how}; {one.density:.2%} of the "
        f"pairs; {one.loop}"
    )


def _cross(found: RoutedPrediction) -> str:
    if found.crossover is None:
        return "lengths are fixed, or dense is faster at each"
    return f"faster than dense from n = {found.crossover:,} on"


def _table(found: RoutedPrediction) -> list[str]:
    rows = [["kernel", "us", "part"]]
    for k in found.kernels:
        part = k.cost.time_us / found.time_us if found.time_us else 0.0
        rows.append([k.name, report.number(k.cost.time_us), f"{part:.0%}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        + ("" if i == 0 else f"  {found.kernels[i - 1].plan}")
        for i, row in enumerate(rows)
    ]
