"""The Python face: load patterns, look at them, compile them to ops."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir.blockmask import BlockMask, Counts
from attnc.compiler.ir.gridmask import BoxTiling, GridMask
from attnc.costs import Costed

if TYPE_CHECKING:
    import torch

    from attnc.compiler.ir.plan import DataTiles
    from attnc.compiler.ir.routed import AnyAttention
    from attnc.compiler.loaded import Loaded
    from attnc.dsl.diagnostics import Diagnostic
    from attnc.runtime.op import Op
    from attnc.runtime.options import AnyTileLike, TileLike

_DEFAULT_TILE = (128, 64)
_LENGTH_MAX = 2**30


@dataclass(frozen=True, eq=False)
class Scores:
    """What a softmax runs over, before the mask, and the logit beside the keys.

    Shape: ``values`` float64 ``[heads or 1, nq, nk]``, ``sink`` float64 ``[heads or 1]`` or None.
    ``scale`` is the factor of the product of query and key, None for ``1 / sqrt(D)``.
    """

    values: torch.Tensor
    sink: torch.Tensor | None
    scale: float | None


class Pattern(Costed):
    """A pattern with its parameters bound: which keys each query sees.

    Made by ``attnc.load``, ``attnc.parse`` and ``attnc.zoo``; patterns with equal IR are equal.
    ``source`` is what was loaded, whose definition is then evaluated, or an IR alone.
    """

    __slots__ = ("_source",)

    def __init__(self, source: pat.Pattern | Loaded) -> None:
        self._source = source

    @property
    def ir(self) -> pat.Pattern:
        """The pattern IR.

        Raises: CompileError where a size that must be known (a head count, say) is not.
        """
        return self._source if isinstance(self._source, pat.Pattern) else self._source.ir

    @property
    def routed(self) -> AnyAttention | None:
        """The IR of what is chosen by content, None for a pattern whose pairs are known."""
        if isinstance(self._source, pat.Pattern) or not self._source.is_routed:
            return None
        return self._source.routed

    @property
    def tuned(self) -> dict[str, Any]:
        """What its file states for ``compile`` and ``cost`` in a ``tune``: tile, orders, ..."""
        return {} if isinstance(self._source, pat.Pattern) else self._source.tuned

    @property
    def name(self) -> str:
        """The name it was defined with."""
        return self._source.name

    @property
    def heads(self) -> int | None:
        """How many heads it is defined for; None: one mask serves every head."""
        return self.ir.heads

    @property
    def params(self) -> dict[str, str]:
        """The parameters and their values, as text."""
        return dict(self.ir.params)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """What was found while it was loaded, and is not an error."""
        return self.ir.warnings

    def layer(self, layer: int) -> Pattern:
        """Return the pattern of one layer, where it is defined for several."""
        if isinstance(self._source, pat.Pattern):
            raise ValueError("layer: this pattern was made from an IR, which has one layer")
        return Pattern(self._source.at_layer(_whole("layer", "layer", layer)))

    def mask(
        self,
        n: int | None = None,
        *,
        nq: int | None = None,
        nk: int | None = None,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
        layer: int | None = None,
    ) -> torch.Tensor:
        """Evaluate the definition of the pattern at every pair: its meaning.

        Shape: bool ``[heads or 1, nq, nk]``; ``n`` stands for both lengths. A pattern with layers
        has them in front, unless ``layer`` chooses one. Memory and time in proportion to
        ``nq * nk``.
        Args:
            inputs: run-time tensors by name, without a batch dimension: arrays, tensors or lists.
            extents: symbolic extents and sides of inputs by name. Lengths and sizes that spaces
                and inputs determine may be left out.
        Raises: ImportError without torch, CompileError where something is missing or does not fit.
        """
        torch = _torch("Pattern.mask")
        given = self._given("mask", n, nq, nk, inputs, extents, layer)
        if isinstance(self._source, pat.Pattern):
            return torch.from_numpy(self._source.mask(**given))  # type: ignore[no-any-return]
        return torch.from_numpy(self._source(**given, layer=layer))  # type: ignore[no-any-return]

    def scores(
        self,
        n: int | None = None,
        *,
        nq: int | None = None,
        nk: int | None = None,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
        dot: torch.Tensor | None = None,
    ) -> Scores:
        """Evaluate the definition of a score or an attention at every pair, in float64.

        ``dot`` is the scaled product of query and key, ``[heads or 1, nq, nk]``, zero when not
        given. The other arguments are those of ``mask``.
        """
        torch = _torch("Pattern.scores")
        given = self._given("scores", n, nq, nk, inputs, extents, None)
        product = 0.0 if dot is None else dot.detach().cpu().to(torch.float64).numpy()
        if isinstance(self._source, pat.Pattern):
            return Scores(torch.from_numpy(self._source.scores(**given, dot=product)), None, None)
        found = self._source.scores(**given, dot=product)
        sink = None if found.sink is None else torch.from_numpy(found.sink)
        return Scores(torch.from_numpy(found.values), sink, found.scale)

    def _given(
        self,
        method: str,
        n: int | None,
        nq: int | None,
        nk: int | None,
        inputs: Mapping[str, object] | None,
        extents: Mapping[str, int] | None,
        layer: int | None,
    ) -> dict[str, Any]:
        """Return checked lengths, inputs and extents; lengths may be open where others say them."""
        if isinstance(self._source, pat.Pattern):
            is_open = False
            if layer is not None:
                raise ValueError(f"{method}: this pattern was made from an IR, without layers")
        else:
            is_open = self._source.says_lengths
        if layer is not None:
            _whole(method, "layer", layer)
        q, k = (_open_lengths if is_open else _lengths)(method, n, nq, nk)
        return {"nq": q, "nk": k, "inputs": inputs, "extents": extents}

    def blocks(
        self,
        n: int | None = None,
        *,
        nq: int | None = None,
        nk: int | None = None,
        tile: AnyTileLike = _DEFAULT_TILE,
        inputs: Mapping[str, object] | None = None,
        extents: Mapping[str, int] | None = None,
    ) -> Blocks:
        """Sort the tiles of the pattern into full, partial and empty.

        No pair is evaluated, but where tiles wait for data: there those pairs are that bounds of
        the tile leave open, in bounded memory.
        Units: ``tile`` in tokens, queries by keys, as ``(128, 64)`` or ``"128x64"``; on a grid of
        known extents also a box of each, as ``((4, 4, 8), (4, 4, 8))`` or ``"4x4x8,4x4x8"``.
        Args: ``inputs`` and ``extents`` as for ``mask``.
        Raises: ValueError for a tile that is none or does not go with the pattern.
        """
        from attnc.compiler.passes.data_form import tiles_of
        from attnc.runtime.options import as_any_tiling

        given = self._given("blocks", n, nq, nk, inputs, extents, None)
        if isinstance(self._source, pat.Pattern):
            ir = self._source
            data = ir.given(**given)
        else:
            source = self._source.with_inputs(given["inputs"])
            ir = source.ir
            given["nq"], given["nk"], data = source.data(**given)
        tiling = as_any_tiling(tile)
        if isinstance(tiling, BoxTiling):
            from attnc.compiler.passes.classify_grid import classify_grid

            return Blocks(classify_grid(ir, tiling), given["nq"], given["nk"])
        mask, tests, _ = tiles_of(ir, tiling)
        return Blocks(mask, given["nq"], given["nk"], tests, data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return False
        if self._source is other._source:
            return True
        if self.routed is not None or other.routed is not None:
            return self.routed == other.routed
        return self.ir == other.ir

    def __hash__(self) -> int:
        return hash(self.routed or self.ir)

    def __repr__(self) -> str:
        if self.routed is not None:
            return f"<attnc attention {self.name}, chosen by content>"
        words = [self.name, *(f"{name}={value}" for name, value in self.ir.params)]
        heads = "" if self.heads is None else f", {self.heads} heads"
        return f"<attnc pattern {' '.join(words)}{heads}>"


class Blocks:
    """The tiles of a pattern at given lengths: a view on the block-mask IR.

    Counts are over all heads of the mask. ``full``, ``partial`` and ``empty`` count tiles by their
    existing pairs; ``visited`` and ``masked`` are the tiles that a kernel walks, and those it
    checks pair by pair; ``pairs_kept`` by the pattern, ``pairs_computed`` in visited tiles.
    """

    def __init__(
        self,
        ir: BlockMask | GridMask,
        nq: int,
        nk: int,
        tests: DataTiles | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        from attnc.compiler.counts import count
        from attnc.compiler.counts_grid import count_grid

        self.ir = ir
        self.nq = nq
        self.nk = nk
        self.counts: Counts = (
            count_grid(ir) if isinstance(ir, GridMask) else count(ir, nq, nk, tests, given)
        )
        self._waits = tests is not None
        self._given = given

    @property
    def tile(self) -> tuple[int, int]:
        """The tile shape in tokens, queries by keys."""
        return self.ir.tiling.q, self.ir.tiling.k

    @property
    def full(self) -> int:
        """Tiles whose every existing pair is kept."""
        return self.counts.full

    @property
    def partial(self) -> int:
        """Tiles with kept pairs and others."""
        return self.counts.partial

    @property
    def empty(self) -> int:
        """Tiles without a kept pair."""
        return self.counts.empty

    @property
    def visited(self) -> int:
        """Tiles that a kernel walks."""
        return self.counts.visited

    @property
    def masked(self) -> int:
        """Visited tiles in which a kernel checks each pair."""
        return self.counts.masked

    @property
    def pairs_kept(self) -> int:
        """Pairs of the pattern."""
        return self.counts.pairs_kept

    @property
    def pairs_computed(self) -> int:
        """Pairs in visited tiles."""
        return self.counts.pairs_computed

    @property
    def exact(self) -> bool:
        """Whether no tile is visited in vain, for the sake of a budget or left open by bounds."""
        if self._waits:
            return self.counts.visited == self.counts.full + self.counts.partial
        return self.ir.exact

    def dense(self) -> torch.Tensor:
        """Evaluate the block mask at every pair: equal to ``Pattern.mask``.

        Shape: bool ``[heads or 1, nq, nk]``.
        Raises: ImportError without torch.
        """
        if isinstance(self.ir, GridMask):
            kept = self.ir.dense()
        else:
            kept = self.ir.dense(self.nq, self.nk, self._given)
        mask: torch.Tensor = _torch("Blocks.dense").from_numpy(kept)
        return mask

    def __repr__(self) -> str:
        c = self.counts
        return (
            f"<attnc blocks {self.ir.pattern.name} {self.nq}x{self.nk} in {self.ir.tiling} tiles: "
            f"{c.full} full, {c.partial} partial, {c.empty} empty>"
        )


def load(path: str | Path, pattern: str | None = None, **params: object) -> Pattern:
    """Load a pattern from an ``.attn`` file.

    Args:
        pattern: which one of the file; when not given, the one called like the file, else the last.
        params: values of its parameters.
    Raises: CompileError with everything that is wrong, an unreadable file included.
    """
    from attnc.compiler import driver

    if not isinstance(path, str | os.PathLike):  # open() would take an int for a descriptor
        raise ValueError(f"path must be a str or a path, got {type(path).__name__}")
    _name_or_none(pattern)
    return faced(driver.loaded_file(path, pattern, params))


def parse(text: str, pattern: str | None = None, **params: object) -> Pattern:
    """Load a pattern from a text in the pattern language; see ``load``."""
    from attnc.compiler import driver

    if not isinstance(text, str):
        raise ValueError(f"text must be a str, got {type(text).__name__}; attnc.load reads a file")
    _name_or_none(pattern)
    return faced(driver.loaded_text(text, pattern, params))


def _name_or_none(pattern: object) -> None:
    if not isinstance(pattern, str | None):
        raise ValueError(f"pattern must be the name of one, got {type(pattern).__name__}")


def faced(loaded: Loaded) -> Pattern:
    """Return what was loaded as a pattern, after it was lowered as far as that can be."""
    loaded.lower_early()
    return Pattern(loaded)


def compile(
    p: Pattern,
    *,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: torch.dtype | str | None = None,
    target: str | None = None,
    tile: AnyTileLike | None = None,
    cpu_tile: TileLike | None = None,
    align: str = "top-left",
    orders: str | Sequence[int] | None = None,
    bias: str | None = None,
    folder: str | Path | None = None,
    cache: bool = True,
) -> Op:
    """Compile a pattern to an op, called ``op(q, k, v, *, scale=None, return_lse=False)``.

    What is chosen by content becomes a ``RoutedOp``, which has ``select`` and takes ``selection=``;
    a sum of attentions a ``CombinedOp``.

    Args:
        head_dim: width of q and k, 16 to 256; value_dim is that of v, the same when not given.
        dtype: what the GPU kernel is made for, bfloat16 when not given (bfloat16 and float16 share
            a kernel); on a CPU the op takes float32, bfloat16, float16 and float64.
        target: ``sm_80``, ``sm_90``, ``sm_100`` or ``gfx942``; when not given, that of the visible
            GPU, or sm_90 without one. Every op also runs on a CPU.
        tile, cpu_tile: tile shapes in tokens, queries by keys; the compiler chooses when not given,
            by a table. ``attnc compile --lint`` compiles ahead of time and names the first tile
            that has no spills: a pattern of many pieces may want a smaller one. On a grid of known
            extents ``tile`` may be boxes, ``((4, 4, 8), (4, 4, 8))``, or "boxes" for the best ones:
            the GPU kernel walks these.
        align: where queries stand if there are fewer or more of them than keys: query i at
            position i ("top-left"), or at ``i + K - Q`` ("bottom-right"), as the last tokens of
            the keys' sequence. Queries in front of that sequence see nothing, and inputs are as
            long as it. A decode step always has its queries at the end.
            Not given, these and the next two are as the file says in a ``tune`` of the pattern,
            and else as the compiler finds best.
        orders: the token orders that disjoint parts of the pattern may take: what pays ("auto"),
            none but the natural one ("natural"), or residue classes, as ``(1, 64)``: what lies at
            multiples of 64 runs in classes of tokens 64 apart. The mask is the same.
        bias: how score terms are added: by cost, "add" pair by pair, "fold" key by key.
        folder: also write the module there, as ``<folder>/<pattern>.py``.
        cache: look the module up on disk, and keep it there (``ATTNC_CACHE_DIR``).
    Raises: ValueError for a wrong option, CompileError where the pattern does not fit it,
        ImportError without torch.
    """
    if not isinstance(p, Pattern):
        raise ValueError(
            f"p must be an attnc.Pattern, got {type(p).__name__}; attnc.load reads a file, "
            "attnc.parse a text"
        )
    if not isinstance(folder, str | os.PathLike | None):
        raise ValueError(f"folder must be a str or a path, got {type(folder).__name__}")
    _torch("attnc.compile")
    from attnc.runtime.op import compile_pattern
    from attnc.runtime.options import options

    stated = p.tuned
    chosen = options(
        head_dim=head_dim, value_dim=value_dim, dtype=dtype, target=target,
        tile=stated.get("tile") if tile is None else tile,
        cpu_tile=stated.get("cpu_tile") if cpu_tile is None else cpu_tile, align=align,
        orders=stated.get("orders", "auto") if orders is None else orders,
        bias=stated.get("bias", "auto") if bias is None else bias,
    )
    if p.routed is not None:
        from attnc.runtime.combined import compile_any

        routed = compile_any(p.routed, chosen, folder=folder, keep=cache)
        routed.pattern = p
        return routed
    op = compile_pattern(p.ir, chosen, folder=folder, keep=cache)
    op.pattern = p
    return op


def _lengths(method: str, n: int | None, nq: int | None, nk: int | None) -> tuple[int, int]:
    """Return ``(nq, nk)``; ``n`` stands for both, and goes with neither."""
    q, k = _open_lengths(method, n, nq, nk)
    if q is None or k is None:
        raise ValueError(f"{method}: give the lengths, as n=64 or as nq=16, nk=64")
    return q, k


def _open_lengths(
    method: str, n: int | None, nq: int | None, nk: int | None
) -> tuple[int | None, int | None]:
    """Return ``(nq, nk)``, None where a length was not given."""
    if n is not None and (nq is not None or nk is not None):
        raise ValueError(f"{method}: give either n, or nq and nk")
    given = (n, n) if n is not None else (nq, nk)
    q, k = (None if length is None else _whole(method, "a length", length) for length in given)
    return q, k


def _whole(method: str, what: str, given: object) -> int:
    """Return an integer from 0 to 2**30."""
    try:
        whole = operator.index(given)  # type: ignore[arg-type]
        if isinstance(given, bool) or not 0 <= whole <= _LENGTH_MAX:
            raise TypeError
    except TypeError:
        raise ValueError(
            f"{method}: {what} must be an integer from 0 to 2**30, got {given!r}"
        ) from None
    return whole


def _torch(caller: str) -> Any:
    try:
        import torch
    except ImportError as missing:
        raise ImportError(
            f'{caller} needs torch, which is not installed: pip install "attnc[torch]"'
        ) from missing
    return torch
