"""A pattern and how it is called -> what that costs: the face of the cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnc.compiler.cost.predict import Prediction, Setting, Work
    from attnc.compiler.cost.route_density import Sample
    from attnc.compiler.cost.routes import RoutedPrediction
    from attnc.compiler.ir import pattern as pat
    from attnc.compiler.ir.routed import AnyAttention
    from attnc.compiler.loaded import Loaded
    from attnc.runtime.options import AnyTileLike

_HEAD_DIMS = range(16, 257)


class Costed:
    """The part of a pattern that predicts costs."""

    __slots__ = ()

    _source: pat.Pattern | Loaded

    def cost(
        self,
        n: int | None = None,
        *,
        nq: int | None = None,
        nk: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        batch: int = 1,
        head_dim: int = 64,
        value_dim: int | None = None,
        dtype: object = "bf16",
        device: str = "h200",
        work: str = "forward",
        queries: int = 1,
        tile: AnyTileLike | None = None,
        orders: str | Sequence[int] | None = None,
        bias: str | None = None,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
        samples: Mapping[str, Sample] | None = None,
        streams: Mapping[str, int] | None = None,
    ) -> Prediction | RoutedPrediction:
        """Predict what an op of the pattern costs on a device, without running or having it.

        Counts are exact; times rest on ``assumptions``, with their error. Printed, the result is
        the table of ``attnc cost``.
        Units: lengths and tiles in tokens, times in microseconds.
        Args:
            heads, kv_heads: how many; those of the pattern, or 1, when not given.
            device: a100, h100, h200, b200, mi300x; "cpu" is this machine, once ``attnc cost
                --calibrate`` has measured it.
            work: "forward", "backward" (that alone), or "decode": a step of ``queries`` last
                queries against a cache of ``n`` keys.
            inputs, extents: as for ``blocks``.
            tile, orders, bias: as for ``attnc.compile``.
            samples: of what is chosen by content, by the names of routes: selections that were made
                (``attnc.compiler.cost.route_density.Sample``). Needed where the data decides how
                much is selected.
            streams: of a sum of attentions: the keys that each second stream has, by its name.
        Returns: of what is chosen by content, a ``RoutedPrediction``: expected density, stages,
            crossover to dense and, where it is slower than that, a warning.
        Raises: ValueError for a wrong option, CompileError where an input is missing.
        """
        routed: AnyAttention | None = self.routed  # type: ignore[attr-defined]
        if routed is not None:
            own = (tile, inputs, extents, orders, bias, queries)
            if own != (None, None, None, None, None, 1):
                raise ValueError(
                    f"cost: `{routed.name}` is chosen by content; tile, orders, bias, queries, "
                    "inputs and extents go with patterns"
                )
            return routed_cost(
                routed, n if nq is None else nq, n if nk is None else nk, samples=samples,
                streams=streams, heads=heads, kv_heads=kv_heads, batch=batch, head_dim=head_dim,
                value_dim=value_dim, dtype=dtype, device=device, work=work,
            )
        if samples is not None or streams is not None:
            raise ValueError("cost: samples and streams go with what is chosen by content")
        given = self._given("cost", n, nq, nk, inputs, extents, None)  # type: ignore[attr-defined]
        from attnc.compiler.ir import pattern as pat
        from attnc.compiler.passes.bias_fold import read_bias
        from attnc.compiler.passes.token_order import read_orders
        from attnc.runtime.options import as_any_tiling, as_dtype

        if isinstance(self._source, pat.Pattern):
            ir, data = self._source, self._source.given(**given)
        else:
            source = self._source.with_inputs(given["inputs"])
            ir = source.ir
            given["nq"], given["nk"], data = source.data(**given)
        stated: dict[str, Any] = self.tuned  # type: ignore[attr-defined]
        tile = stated.get("cpu_tile" if device == "cpu" else "tile") if tile is None else tile
        orders = stated.get("orders", "auto") if orders is None else orders
        bias = stated.get("bias", "auto") if bias is None else bias
        asked = setting_of(
            ir, given["nq"], given["nk"], heads=heads, kv_heads=kv_heads, batch=batch,
            head_dim=head_dim, value_dim=value_dim, dtype=as_dtype(dtype), device=device,
            work=work, queries=queries,
            tile=None if tile is None else "boxes" if tile == "boxes" else as_any_tiling(tile),
            orders=read_orders(orders), bias=read_bias(bias),
        )
        return predict_on(ir, asked, data)


def setting_of(
    pattern: pat.Pattern, nq: int, nk: int, *, heads: int | None, kv_heads: int | None,
    head_dim: int, value_dim: int | None, work: str, **others: Any,
) -> Setting:
    """Fill in what was left out, and check what was given.

    Raises: ValueError that names the option, what it is and what was expected.
    """
    from attnc.compiler.cost.predict import Setting

    if work not in ("forward", "backward", "decode"):
        raise ValueError(f"work must be forward, backward or decode, got {work!r}")
    own = pattern.heads
    if own is not None and pattern.kv_heads:
        if kv_heads not in (None, own):
            raise ValueError(f"`{pattern.name}` is for {own} KV heads, not for {kv_heads}")
        kv_heads, heads = own, own if heads is None else heads
    elif own is not None:
        if heads not in (None, own):
            raise ValueError(f"`{pattern.name}` is for {own} heads, not for {heads}")
        heads = own
    if heads is None:
        heads = 1 if kv_heads is None else kv_heads
    kv_heads = heads if kv_heads is None else kv_heads
    wide = head_dim if value_dim is None else value_dim
    for name, value in (("heads", heads), ("kv_heads", kv_heads), ("batch", others["batch"])):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer from 1, got {value!r}")
    for name, value in (("head_dim", head_dim), ("value_dim", wide)):
        if isinstance(value, bool) or value not in _HEAD_DIMS:
            raise ValueError(f"{name} must be an integer from 16 to 256, got {value!r}")
    chosen: Work = work  # type: ignore[assignment]
    return Setting(
        nq=nq, nk=nk, heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=wide,
        work=chosen, **others,
    )


def routed_cost(
    attention: AnyAttention, nq: int | None, nk: int | None, *,
    samples: Mapping[str, Sample] | None, streams: Mapping[str, int] | None, dtype: object,
    **options: Any,
) -> RoutedPrediction:  # fmt: skip
    """Predict what is chosen by content, or a sum of attentions; lengths that spaces say win.

    Raises: ValueError for a wrong option, a length or a sample that is missing.
    """
    from attnc.compiler.cost.route_sum import sum_cost
    from attnc.compiler.cost.routes import route_cost
    from attnc.compiler.ir.routed import Combined, Routed
    from attnc.runtime.options import as_dtype

    one: Any = attention
    while not hasattr(one, "body"):
        one = one.base if isinstance(one, Routed) else one.terms[-1].attention
    queries, keys = (
        own if own is not None else given
        for own, given in zip(one.lengths, (nq, nk), strict=True)
    )  # fmt: skip
    asked = setting_of(
        one, _length("nq", queries), _length("nk", keys), dtype=as_dtype(dtype), **options
    )
    if isinstance(attention, Combined):
        return sum_cost(attention, asked, streams, samples)
    if streams:
        raise ValueError(f"`{attention.name}` has no stream of keys `{min(streams)}`")
    assert isinstance(attention, Routed)
    return route_cost(attention, asked, samples)


def _length(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer from 1, got {value!r}")
    return value


def predict_on(
    pattern: pat.Pattern, setting: Setting, given: Mapping[str, Any]
) -> Prediction:
    """Predict on a GPU by name, or on this machine by its calibration.

    Raises: ValueError where the setting cannot be served, or this machine was not measured.
    """
    if setting.device != "cpu":
        from attnc.compiler.cost.predict import predict

        return predict(pattern, setting, given)
    from attnc.compiler.cost.machine import predict_cpu, read_calibration

    path = calibration_path()
    try:
        calibration = read_calibration(path)
    except OSError as missing:
        raise ValueError(
            "this machine was not measured yet; `attnc cost --calibrate` does, in a minute"
        ) from missing
    return predict_cpu(pattern, setting, given, calibration)


def calibration_path() -> Path:
    """Return where the calibration of this machine is kept."""
    from attnc.runtime.cache import cache_folder

    return cache_folder() / "machine.json"

