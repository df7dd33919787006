"""The routed methods as IR, built by hand: small sizes, every choice of a method a parameter.

``cases.py`` has one or more of each, with the inputs it reads and the lengths it is meant for.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from attnc.compiler import driver
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Align, Pattern, Where
from attnc.compiler.ir.route import (
    Above,
    Grain,
    Keep,
    Near,
    Ratio,
    Reduce,
    Rep,
    Route,
    Score,
    Select,
    TopK,
    TopP,
    Visible,
)
from attnc.compiler.ir.routed import Combined, Routed, RouteInput, Term
from attnc.compiler.passes.align import aligned

TOKEN, HEAD = Grain(kind="token"), Grain(kind="head")
ID, MEAN = Rep(kind="id"), Rep(kind="mean")
DOT = Score(kind="dot")
SCALED = Score(kind="dot", scale="head_dim")
OWN = Keep(what="own")


def block(tokens: int) -> Grain:
    """Return blocks of so many tokens."""
    return Grain(kind="block", sizes=(tokens,))


@cache
def static(body: str, align: Align = "top-left", on: str = "", name: str = "p") -> Pattern:
    """Return a pattern of a text: ``{ q -> k : body }``; without a text it keeps nothing."""
    found = driver.load_text(f"pattern {name} {on} = {{ q -> k : {body or 'k >= 0'} }}")
    return aligned(found if body else replace(found, body=Where(ex.FALSE)), align)


def routed(
    *routes: Route, base: str = "k <= q", kept: str = "", align: Align = "top-left",
    on: str = "", inputs: tuple[RouteInput, ...] = (),
) -> Routed:  # fmt: skip
    """Return an attention of routes inside a base."""
    name = routes[0].name
    return Routed(
        base=static(base, align, on, name), kept=static(kept, align, on, name), routes=routes,
        inputs=inputs,
    )  # fmt: skip


# --------------------------------------------------------------------- language models, causal


def moba(tokens: int = 8, top: int = 3) -> Routed:
    """MoBA: each token chooses blocks by their mean key; its own is always one of them."""
    route = Route(
        name="moba", query=TOKEN, key=block(tokens), query_rep=ID, key_rep=MEAN, score=DOT,
        visible="past", select=TopK(count=top), keep=(OWN,),
    )  # fmt: skip
    return routed(route)


def nsa_selected(
    tokens: int = 8, top: int = 4, window: tuple[int, int] = (4, 2), first: int = 1,
    recent: int = 2, learned: bool = False,
) -> Routed:  # fmt: skip
    """NSA's selection: probabilities of compressed keys, by blocks, shared by a group of heads."""
    rep = Rep(kind="external", input="k_cmp", window=window) if learned else Rep(
        kind="mean", window=window
    )  # fmt: skip
    route = Route(
        name="nsa", query=TOKEN, key=block(tokens), query_rep=ID, key_rep=rep, score=SCALED,
        visible="completed", norm="softmax",
        reduce=(Reduce(over="overlap"), Reduce(over="group")), select=TopK(count=top),
        keep=(Keep(what="first", count=first), Keep(what="recent", count=recent)),
    )  # fmt: skip
    inputs = (RouteInput(name="k_cmp", route="nsa", role="k rep"),) if learned else ()
    return routed(route, inputs=inputs)


def nsa(
    tokens: int = 8, top: int = 4, window: tuple[int, int] = (4, 2), near: int = 12
) -> Combined:
    """NSA: compressed, selected and local attention, each with its gate."""
    wide, stride = window
    return Combined(
        name="nsa",
        terms=(
            Term(
                attention=static(f"{stride} * k + {wide - 1} <= q"), gate="gate_c",
                keys="compressed",
            ),
            Term(attention=nsa_selected(tokens, top, window), gate="gate_s"),
            Term(attention=static(f"k <= q and q - k < {near}"), gate="gate_w"),
        ),
    )  # fmt: skip


def infllm_v2(
    tokens: int = 8, top: int = 4, recent: int = 2, window: tuple[int, int] = (4, 2)
) -> Routed:
    """InfLLM-v2: as NSA, without weights: the largest window of a block, after the group's sum."""
    route = Route(
        name="infllm", query=TOKEN, key=block(tokens), query_rep=ID,
        key_rep=Rep(kind="mean", window=window), score=SCALED, visible="completed", norm="softmax",
        reduce=(Reduce(over="group"), Reduce(over="overlap", op="max")), select=TopK(count=top),
        keep=(Keep(what="first"), Keep(what="recent", count=recent)),
    )  # fmt: skip
    return routed(route)


def dsa(top: int = 8) -> Routed:
    """DeepSeek's indexer: each token chooses tokens, the same for all heads."""
    route = Route(
        name="dsa", query=TOKEN, key=TOKEN, query_rep=Rep(kind="external", input="q_index"),
        key_rep=Rep(kind="external", input="k_index"),
        score=Score(kind="relu_heads", weights="w_index"), visible="completed",
        select=TopK(count=top),
    )  # fmt: skip
    inputs = (
        RouteInput(name="q_index", route="dsa", role="q rep"),
        RouteInput(name="k_index", route="dsa", role="k rep"),
        RouteInput(name="w_index", route="dsa", role="weights"),
    )
    return routed(route, inputs=inputs)


def minference_vertical_slash(
    last: int = 6, columns: int = 5, slashes: int = 6, first: int = 2, nearest: int = 3
) -> Routed:
    """MInference: columns and diagonals that the last queries look at."""
    vertical = Route(
        name="vertical", query=Grain(kind="last", sizes=(last,)), key=TOKEN, query_rep=ID,
        key_rep=ID, score=SCALED, visible="completed", norm="softmax",
        reduce=(Reduce(over="query"),), compete="head", select=TopK(count=columns),
        keep=(Keep(what="first", count=first),),
    )  # fmt: skip
    slash = Route(
        name="slash", query=Grain(kind="last", sizes=(last,)), key=TOKEN, query_rep=ID,
        key_rep=ID, score=SCALED, visible="completed", norm="softmax",
        reduce=(Reduce(over="diagonal"),), compete="head", select=TopK(count=slashes),
        keep=(Keep(what="nearest", count=nearest),), emit="slashes",
    )  # fmt: skip
    return routed(vertical, slash)


def minference_block(tokens: int = 8, top: int = 3) -> Routed:
    """MInference, block-sparse: mean against mean; the diagonal is not forced."""
    route = Route(
        name="blocks", query=block(tokens), key=block(tokens), query_rep=MEAN, key_rep=MEAN,
        score=DOT, visible="reached", select=TopK(count=top),
    )  # fmt: skip
    return routed(route)


def xattention(
    cell: int = 4, tokens: int = 8, mass: Fraction = Fraction(3, 4),
    capacity: int | Fraction | None = None,
    overflow: Literal["error", "drop"] = "error",
) -> Routed:  # fmt: skip
    """XAttention: antidiagonal sums of cells, softmax over cells, blocks up to a mass."""
    route = Route(
        name="xattention", query=block(tokens), key=block(tokens),
        query_rep=Rep(kind="fold", size=cell, flip=True), key_rep=Rep(kind="fold", size=cell),
        score=Score(kind="dot", scale="head_dim", divisor=cell), visible="reached",
        norm="softmax", reduce=(Reduce(over="cell"),), select=TopP(mass=mass),
        keep=(OWN, Keep(what="first")), capacity=capacity, overflow=overflow,
    )  # fmt: skip
    return routed(route)


def anchor(
    tokens: int = 4, widen: int = 2, theta: Fraction = Fraction(1), sink: int = 3
) -> Routed:
    """AnchorAttention: keys within ``theta`` of the best kept one, for several blocks in a row."""
    wide = tokens * widen
    route = Route(
        name="anchor", query=block(tokens), key=TOKEN, query_rep=MEAN, key_rep=ID, score=SCALED,
        visible="past", select=Near(difference=theta), widen=widen,
    )  # fmt: skip
    return routed(route, kept=f"k <= q and (k < {sink} or k >= (q div {wide}) * {wide})")


def mosa(top: int = 9, first: int = 1) -> Routed:
    """MoSA: each head chooses tokens by a router, whose value weighs what they get."""
    route = Route(
        name="mosa", query=HEAD, key=TOKEN, query_rep=ID, key_rep=ID,
        score=Score(kind="external", input="router"), visible="all", compete="column",
        select=TopK(count=top), keep=(Keep(what="first", count=first),) if first else (),
        emit="members", combine="score", grad="weight",
    )  # fmt: skip
    return routed(route, inputs=(RouteInput(name="router", route="mosa", role="score"),))


def routing_transformer(clusters: int = 3, width: int = 8, causal: bool = True) -> Routed:
    """Routing Transformer: each centroid takes its nearest queries and its nearest keys."""
    route = Route(
        name="routing", query=Grain(kind="cluster", sizes=(clusters,)), key=TOKEN,
        query_rep=Rep(kind="unit"), key_rep=Rep(kind="unit"), score=DOT, visible="all",
        compete="column", select=TopK(count=width), emit="members",
    )  # fmt: skip
    return routed(
        route, base="k <= q" if causal else "k >= 0",
        inputs=(RouteInput(name="centroids", route="routing", role="centroids"),),
    )  # fmt: skip


ABOVE = Above(threshold=Fraction(3, 16))


def seer(tokens: int = 8, select: Select = ABOVE, keep: bool = False) -> Routed:
    """SeerAttention: a learned gate says the scores of blocks; the diagonal is not forced."""
    route = Route(
        name="seer", query=block(tokens), key=block(tokens), query_rep=ID, key_rep=ID,
        score=Score(kind="external", input="gate"), visible="reached", norm="softmax",
        select=select, keep=(OWN,) if keep else (),
    )  # fmt: skip
    return routed(route, inputs=(RouteInput(name="gate", route="seer", role="score"),))


def snapkv(
    last: int = 5, top: int = 12, smooth: int = 5, op: Literal["mean", "max"] = "mean"
) -> Routed:
    """SnapKV: keys that the last queries look at, smoothed along the keys, and these themselves."""
    route = Route(
        name="snapkv", query=Grain(kind="last", sizes=(last,)), key=TOKEN, query_rep=ID, key_rep=ID,
        score=SCALED, visible="completed", norm="softmax",
        reduce=(Reduce(over="query"), Reduce(over="smooth", op=op, width=smooth)), compete="head",
        select=TopK(count=top), keep=(Keep(what="recent", count=last),),
    )  # fmt: skip
    return routed(route)


def quest(page: int = 4, top: int = 3) -> Routed:
    """Quest: pages by an upper bound of their products; the page of the query is one of them."""
    route = Route(
        name="quest", query=TOKEN, key=block(page), query_rep=ID, key_rep=Rep(kind="minmax"),
        score=Score(kind="bound"), visible="reached", select=TopK(count=top),
        keep=(Keep(what="recent"),),
    )  # fmt: skip
    return routed(route, align="bottom-right")


def kinetics(page: int = 4, top: int = 3) -> Routed:
    """Kinetics: pages by their mean key, one choice for a group of heads."""
    route = Route(
        name="kinetics", query=TOKEN, key=block(page), query_rep=ID, key_rep=MEAN, score=DOT,
        visible="reached", reduce=(Reduce(over="group", op="mean"),), select=TopK(count=top),
        keep=(Keep(what="recent", counted=False),),
    )  # fmt: skip
    return routed(route, align="bottom-right")


def flexprefill(last: int = 8, mass: Fraction = Fraction(4, 5), tokens: int = 8) -> Routed:
    """FlexPrefill, one of its head types: columns and diagonals up to a mass."""
    common: dict[str, Any] = {
        "query": Grain(kind="last", sizes=(last,)), "query_rep": ID, "key_rep": ID,
        "score": SCALED, "visible": "completed", "norm": "softmax", "compete": "head",
    }  # fmt: skip
    vertical = Route(
        name="vertical", key=TOKEN, reduce=(Reduce(over="query"),), select=TopP(mass=mass, least=2),
        keep=(Keep(what="first", count=tokens, counted=False),), **common,
    )  # fmt: skip
    slash = Route(
        name="slash", key=TOKEN, reduce=(Reduce(over="diagonal"),), emit="slashes",
        select=TopP(mass=mass), keep=(Keep(what="nearest", count=1),), **common,
    )  # fmt: skip
    return routed(vertical, slash)


def loki(top: int = 8) -> Routed:
    """Loki: exact keys, chosen in the first few principal directions."""
    route = Route(
        name="loki", query=TOKEN, key=TOKEN, query_rep=Rep(kind="external", input="q_pca"),
        key_rep=Rep(kind="external", input="k_pca"), score=DOT, visible="completed",
        select=TopK(count=top),
    )  # fmt: skip
    inputs = (
        RouteInput(name="q_pca", route="loki", role="q rep"),
        RouteInput(name="k_pca", route="loki", role="k rep"),
    )
    return routed(route, inputs=inputs)


def top_theta() -> Routed:
    """Top-theta: every key whose exact score is above the head's threshold."""
    route = Route(
        name="theta", query=TOKEN, key=TOKEN, query_rep=ID, key_rep=ID, score=SCALED,
        visible="completed", select=Above(threshold="theta"), keep=(OWN,),
    )  # fmt: skip
    return routed(route, inputs=(RouteInput(name="theta", route="theta", role="threshold"),))


def dma(top: int = 8) -> Routed:
    """DMA: each query takes the visible keys with the largest bias of their own."""
    route = Route(
        name="dma", query=TOKEN, key=TOKEN, query_rep=ID, key_rep=ID,
        score=Score(kind="external", input="bias"), visible="completed", select=TopK(count=top),
    )  # fmt: skip
    return routed(route, inputs=(RouteInput(name="bias", route="dma", role="score"),))


# --------------------------------------------------------------------- vision and video, no order


def vmoba(
    tokens: int = 8, top: int = 3, compete: Literal["row", "column", "head", "all"] = "head"
) -> Routed:
    """VMoBA: as MoBA without an order; a head has one budget for all its queries."""
    return routed(_vmoba(block(tokens), TopK(count=top), compete, False), base="k >= 0")


def vmoba_mass(
    tokens: int = 8, mass: Fraction = Fraction(1, 2),
    compete: Literal["row", "head", "all"] = "head",
) -> Routed:  # fmt: skip
    """VMoBA by a share of min-max normalised gates; the own block is charged first."""
    return routed(_vmoba(block(tokens), TopP(mass=mass, least=1), compete, True), base="k >= 0")


def vmoba_cells(
    extents: tuple[int, ...] = (2, 6, 5), cell: tuple[int, ...] = (1, 3, 3), top: int = 2
) -> Routed:
    """VMoBA on a grid: the blocks are cells of it."""
    names = ", ".join(f"{axis}: {e}" for axis, e in zip("tyx", extents, strict=False))
    route = _vmoba(Grain(kind="cell", sizes=cell), TopK(count=top), "row", False)
    return routed(route, base="k >= 0", on=f"on grid({names})")


def _vmoba(grain: Grain, select: Select, compete: Any, minmax: bool) -> Route:
    return Route(
        name="vmoba", query=TOKEN, key=grain, query_rep=ID, key_rep=MEAN, score=DOT, visible="all",
        norm="minmax" if minmax else "none", compete=compete, select=select, keep=(OWN,),
    )  # fmt: skip


def biformer(
    height: int = 6, width: int = 8, cell: tuple[int, int] = (3, 2), top: int = 3
) -> Routed:
    """BiFormer: regions choose regions by their means, all heads together."""
    route = Route(
        name="biformer", query=Grain(kind="cell", sizes=cell), key=Grain(kind="cell", sizes=cell),
        query_rep=MEAN, key_rep=MEAN, score=DOT, visible="all", reduce=(Reduce(over="heads"),),
        select=TopK(count=top),
    )  # fmt: skip
    return routed(route, base="k >= 0", on=f"on grid(y: {height}, x: {width})")


def sla(tokens: int = 8, share: Fraction = Fraction(1, 3)) -> Routed:
    """SLA's selection: blocks by means, the keys without the mean of all of them."""
    route = Route(
        name="sla", query=block(tokens), key=block(tokens), query_rep=MEAN,
        key_rep=Rep(kind="mean", center=True), score=DOT, visible="all", select=Ratio(share=share),
    )  # fmt: skip
    return routed(route, base="k >= 0")


def sparge(
    queries: int = 16, tokens: int = 8, mass: Fraction = Fraction(1, 2), visible: Visible = "all"
) -> Routed:
    """SpargeAttn's selection: the block that would reach the mass is left out, one at least."""
    route = Route(
        name="sparge", query=block(queries), key=block(tokens), query_rep=MEAN, key_rep=MEAN,
        score=SCALED, visible=visible, norm="softmax",
        select=TopP(mass=mass, crossing="out", least=1),
    )  # fmt: skip
    return routed(route, base="k >= 0" if visible == "all" else "k <= q")


def sparse_vggt(
    queries: int = 16, tokens: int = 8, share: Fraction = Fraction(1, 3),
    mass: Fraction = Fraction(7, 8),
) -> Routed:  # fmt: skip
    """Sparse VGGT: the larger of a share of the blocks and a mass: both, of the same order."""
    by_share = Route(
        name="by_share", query=block(queries), key=block(tokens), query_rep=MEAN, key_rep=MEAN,
        score=SCALED, visible="all", norm="softmax", select=Ratio(share=share),
    )  # fmt: skip
    by_mass = replace(by_share, name="by_mass", select=TopP(mass=mass))
    return routed(by_share, by_mass, base="k >= 0")


def sparsifiner(share: Fraction = Fraction(1, 4)) -> Routed:
    """Sparsifiner: a share of the tokens by low-rank scores; the class token sees all."""
    route = Route(
        name="sparsifiner", query=TOKEN, key=TOKEN, query_rep=Rep(kind="external", input="q_low"),
        key_rep=Rep(kind="external", input="k_low"), score=DOT, visible="all",
        select=Ratio(share=share),
    )  # fmt: skip
    inputs = (
        RouteInput(name="q_low", route="sparsifiner", role="q rep"),
        RouteInput(name="k_low", route="sparsifiner", role="k rep"),
    )
    return routed(route, base="k >= 0", kept="q == 0", inputs=inputs)


def sparsed(tokens: int = 8, share: Fraction = Fraction(2, 5)) -> Routed:
    """SparseD: blocks by the mean of the true probabilities in them."""
    route = Route(
        name="sparsed", query=block(tokens), key=block(tokens), query_rep=ID, key_rep=ID,
        score=SCALED, visible="all", norm="softmax", reduce=(Reduce(over="cell", op="mean"),),
        select=Ratio(share=share), refresh=16,
    )  # fmt: skip
    return routed(route, base="k >= 0")
