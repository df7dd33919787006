"""Gated sum of attentions, shapes, device -> what all its terms cost, and adding them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.compiler.cost.devices import HBM_SHARE
from attnc.compiler.cost.model import Cost
from attnc.compiler.cost.predict import KernelCost, Setting, device_of, predict
from attnc.compiler.cost.route_attend import LAUNCH_US
from attnc.compiler.cost.route_density import Sample
from attnc.compiler.cost.routes import (
    RoutedPrediction,
    RouteShare,
    assumptions,
    crossover,
    dense_of,
    is_causal,
    plain_of,
    route_cost,
    with_crossover,
)
from attnc.compiler.ir.routed import Combined, Routed, Term


def sum_cost(
    combined: Combined, setting: Setting, streams: Mapping[str, int] | None = None,
    samples: Mapping[str, Sample] | None = None, *, search: bool = True,
) -> RoutedPrediction:  # fmt: skip
    """Predict the forward of a gated sum: each term by itself, then one pass that adds.

    Args: ``streams``: how many keys each second stream has at these lengths, by name; at others as
    many in proportion. ``samples``: as for ``route_cost``.
    Raises: as ``route_cost``; ValueError for a stream without a length.
    """
    device, lengths = device_of(setting.device), dict(streams or {})
    names = {term.keys for term in combined.terms if term.keys is not None}
    for name in sorted(names - lengths.keys()):
        raise ValueError(
            f"`{combined.name}` needs the number of keys of `{name}`: `streams`, or `--shape "
            f"{name}=...`"
        )
    for name in sorted(lengths.keys() - names):
        raise ValueError(f"`{combined.name}` has no stream of keys `{name}`")
    kernels: list[KernelCost] = []
    shares: list[RouteShare] = []
    missing = 1.0
    causal = all(_causal(term) for term in combined.terms)
    for term in combined.terms:
        own = setting if term.keys is None else replace(setting, nk=lengths[term.keys])
        name = term.attention.name if term.keys is None else f"{term.attention.name} {term.keys}"
        if isinstance(term.attention, Routed):
            given = {n: s for n, s in (samples or {}).items()
                     if n in {route.name for route in term.attention.routes}}  # fmt: skip
            found = route_cost(term.attention, own, given, search=False)
            shares += found.routes
            missing *= 1 - found.density
            kernels += found.kernels
        else:
            static = predict(term.attention, own)
            kernels += [replace(k, name=f"kept {name}") for k in static.kernels]
            if term.keys is None:
                whole = setting.nq * (setting.nk + 1) / 2 if causal else setting.nq * setting.nk
                heads = term.attention.heads or 1
                missing *= 1 - min(static.counts.pairs_kept / heads / max(whole, 1), 1.0)
    kernels.append(_add_up(combined, setting))
    found = RoutedPrediction(
        pattern=combined.name, setting=setting, routes=tuple(shares), kernels=tuple(kernels),
        density=1 - missing, dense=dense_of(setting, device, causal),
        plain_dense_us=plain_of(setting, device, causal).time_us, crossover=None, warnings=(),
        assumptions=assumptions(device, shares),
    )  # fmt: skip
    if not search:
        return found

    def at(n: int) -> RoutedPrediction:
        scaled = {name: max(x * n // setting.nk, 1) for name, x in lengths.items()}
        nq = n if setting.nq == setting.nk else setting.nq
        return sum_cost(
            combined, replace(setting, nq=nq, nk=n), scaled, samples, search=False
        )  # fmt: skip

    return with_crossover(found, crossover(at))


def _causal(term: Term) -> bool:
    """Whether a term keeps no later keys; what one keeps of a second stream says nothing."""
    if term.keys is not None:
        return True
    return is_causal(term.attention.base if isinstance(term.attention, Routed) else term.attention)


def _add_up(combined: Combined, setting: Setting) -> KernelCost:
    """Cost reading every result and gate, and writing their sum: memory alone."""
    rows = setting.batch * setting.heads * setting.nq
    each = setting.value_dim * setting.width_bytes
    moved = rows * (each * (len(combined.terms) + 1) + 4 * len(combined.terms))
    return KernelCost(
        name="merge", plan=f"a sum of {len(combined.terms)} terms", rows=rows, tiles=0,
        workers=device_of(setting.device).units,
        cost=Cost(
            hbm_bytes=moved, row_us=LAUNCH_US,
            hbm_us=moved / (device_of(setting.device).hbm_bytes_us * HBM_SHARE),
        ),
    )  # fmt: skip
