"""Routes -> torch source of their selections: one function each, of calls into ``scores.py``.

The printed ``_select_<route>(q, k, inputs)`` returns the tensors of a selection: ``index`` int32
``[B, H', rows, room]`` and ``count`` int32 ``[B, H', rows]``, or what members there are. ``inputs``
has all that the attention reads, by name.
"""

from __future__ import annotations

import textwrap

from attnc.codegen.route_shapes import count_text, room_text
from attnc.codegen.routes.anchors import emit_anchors
from attnc.codegen.writer import Writer
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Grid, Space
from attnc.compiler.ir.route import Above, Grain, Near, Ratio, Rep, Route, TopK, TopP
from attnc.compiler.ir.routed import Routed

LIBRARIES = ("scores.py", "choose.py")
_REDUCED = {"mean": "_block_mean", "max": "_block_max", "min": "_block_min"}
_CELLS = {"mean": "mean", "max": "amax", "min": "amin"}


def emit_select(routed: Routed) -> str:
    """Print ``_select_<route>`` for each route; they call into ``LIBRARIES``."""
    texts = []
    for route in routed.routes:
        if isinstance(route.select, Near):
            texts.append(emit_anchors(routed, route))
        texts.append(_Select(routed, route).text())
    return "\n\n\n".join(texts)


class _Select:
    """Prints the selection of one route."""

    def __init__(self, routed: Routed, route: Route) -> None:
        self.routed, self.route, self.out = routed, route, Writer()
        self.narrow = False
        self.shift = "nk - nq" if routed.base.align == "bottom-right" else "0"

    def text(self) -> str:
        route, out = self.route, self.out
        with out.block(f"def _select_{route.name}(q, k, inputs):"):
            source = " ".join(route.source_text.split()) or f"the route {route.name}"
            for line in textwrap.wrap(f'"""Select: {source}."""', 92):
                out.line(line)
            if route.emit == "members":
                self._members()
            else:
                self._units()
        return out.text().rstrip()

    # ------------------------------------------------------------------------------ units

    def _units(self) -> None:
        route, out = self.route, self.out
        out.line("nq, nk = q.shape[2], k.shape[2]")
        step = self._query()
        self._key()
        rows = count_text(route.query, "nq", self.routed.base.query_space)
        units = "nk" if route.emit == "slashes" else count_text(
            route.key, "nk", self.routed.base.key_space
        )
        out.line(f"rows, units = {rows}, {units}")
        out.line(f"room = {room_text(route)}")
        self._own_cells()
        if isinstance(route.select, Near):
            out.line(f"anchors = _anchors_{route.name}(q, k, inputs)")
        if route.compete == "row" and route.query.kind != "last":
            heads = "query.shape[1]" if route.score.kind == "relu_heads" else "q.shape[1]"
            row_bytes = f"q.shape[0] * {heads} * {self._key_count()} * {4 * step}"
            out.line("parts = []")
            cut = f"_stretches(rows, {row_bytes}, {route.widen}, q.device)"
            with out.block(f"for top, end in {cut}:"):
                self._narrow()
                self._stretch(step)
                out.line("parts.append(_listed(found, room))")
            heads = {"one": "1", "kv": "k.shape[1]", "query": "q.shape[1]"}[route.heads]
            out.line(f"return _filled(parts, (q.shape[0], {heads}, 0), room, q)")
        else:
            out.line("top, end = 0, rows")
            self._stretch(step)
            out.line("return _listed(found, room)")

    def _query(self) -> int:
        """Print the representation of queries; return how many rows of it make a row selected."""
        route, out, shift = self.route, self.out, self.shift
        grain, rep = route.query, route.query_rep
        if route.score.kind == "external":
            self._places("query", grain, "nq", shift, self.routed.base.query_space)
            return 1
        if rep.kind == "external":
            heads = "0" if route.score.kind == "relu_heads" else "q.shape[1]"
            count = count_text(grain, "nq", self.routed.base.query_space)
            given = f'"{route.name}", "queries", inputs["{rep.input}"], {heads}, {count}, q'
            out.line(f"query = _represented({given})")
            if route.score.kind == "relu_heads":
                weights = f'inputs["{route.score.weights}"]'
                out.line(f'weights = _weights("{route.name}", {weights}, query)')
        else:
            x = "_centered(q)" if rep.center else "q"
            if grain.kind == "last":
                x = f"{x}[:, :, max(nq - {grain.sizes[0]}, 0) :]"
            out.line(f"query = {self._rep(rep, grain, x, 'nq', self.routed.base.query_space)}")
        if grain.kind == "last":
            out.line("at = torch.arange(nq - query.shape[2], nq, device=q.device) + " + shift)
            out.line("query_at = at, at")
            return 1
        fine = self._fine(grain, rep)
        self._places("query", fine, "nq", shift, self.routed.base.query_space)
        return self._ratio(grain, fine)

    def _key(self) -> None:
        route, out = self.route, self.out
        grain, rep = route.key, route.key_rep
        space = self.routed.base.key_space
        if route.score.kind == "external":
            self._places("key", grain, "nk", "0", space)
            return
        x = "_centered(k)" if rep.center else "k"
        if rep.kind == "external":
            heads = "1" if route.score.kind == "relu_heads" else "q.shape[1]"
            count = count_text(grain, "nk", space)
            if rep.window is not None:
                count = f"max((nk - {rep.window[0]}) // {rep.window[1]} + 1, 0)"
            given = f'"{route.name}", "keys", inputs["{rep.input}"], {heads}, {count}, q'
            out.line(f"key = _represented({given}, query.shape[-1])")
        elif rep.window is not None:
            pooled = {"mean": "mean(-1)", "max": "amax(-1)", "min": "amin(-1)"}[rep.kind]
            out.line(f"key = _windows({x}, {rep.window[0]}, {rep.window[1]}).{pooled}")
        elif rep.kind == "minmax":
            for name, kind in (("key", "max"), ("least", "min")):
                text = self._rep(Rep(kind=kind), grain, x, "nk", space)  # type: ignore[arg-type]
                out.line(f"{name} = {text}")
        else:
            out.line(f"key = {self._rep(rep, grain, x, 'nk', space)}")
        if rep.window is not None:
            out.line(f"key_at = _window_places(nk, {rep.window[0]}, {rep.window[1]}, q.device)")
        else:
            self._places("key", self._fine(grain, rep), "nk", "0", space)

    def _rep(self, rep: Rep, grain: Grain, x: str, length: str, space: Space | None) -> str:
        match rep.kind:
            case "id":
                return x
            case "unit":
                return f"_normed({x})"
            case "fold":
                return f"_folded({x}, {rep.size}{', flip=True' if rep.flip else ''})"
        if grain.kind == "cell":
            cells = count_text(grain, length, space)
            return f'_cell_pool({x}, {cells_text(grain, space)}, {cells}, "{_CELLS[rep.kind]}")'
        tokens = grain.sizes[0] if grain.kind == "block" else 1
        return f"{_REDUCED[rep.kind]}({x}, {tokens})"

    @staticmethod
    def _fine(grain: Grain, rep: Rep) -> Grain:
        """Return the grain of the score."""
        if rep.kind in ("id", "unit"):
            return Grain(kind="token")
        if rep.kind == "fold":
            return Grain(kind="block", sizes=(rep.size,))
        return grain

    @staticmethod
    def _ratio(grain: Grain, fine: Grain) -> int:
        """Return how many units of the score make one of the selection."""
        if grain.kind != "block" or fine == grain:
            return 1
        return grain.sizes[0] // (fine.sizes[0] if fine.kind == "block" else 1)

    def _places(
        self, side: str, grain: Grain, length: str, shift: str, space: Space | None
    ) -> None:
        """Print where the first and the last token of each unit stand."""
        if grain.kind == "cell":
            cells = count_text(grain, length, space)
            text = f"_cell_places({cells_text(grain, space)}, {cells}, {shift})"
        elif grain.kind == "last":
            text = f"_block_places({length}, max({length}, 1), {shift}, q.device)"
        else:
            tokens = grain.sizes[0] if grain.kind == "block" else 1
            text = f"_block_places({length}, {tokens}, {shift}, q.device)"
        self.out.line(f"{side}_at = {text}")

    def _key_count(self) -> str:
        return "key_at[0].shape[0]"

    def _own_cells(self) -> None:
        """Print the places of selected rows and units, where ``keep`` speaks of them."""
        route, out = self.route, self.out
        if not route.keep or route.emit == "slashes":
            return
        space = self.routed.base
        if route.query.kind == "last":
            out.line("row_at = query_at[0].amin()[None], query_at[1].amax()[None]")
        elif route.score.kind == "external" or self._fine(route.query, route.query_rep) == (
            route.query
        ):
            out.line("row_at = query_at")
        else:
            self._places("row", route.query, "nq", self.shift, space.query_space)
        fine = self._fine(route.key, route.key_rep)
        whole = route.key_rep.window is None and fine == route.key
        if route.score.kind == "external" or whole:
            out.line("unit_at = key_at")
        else:
            self._places("unit", route.key, "nk", "0", space.key_space)

    # ----------------------------------------------------------------- scores of a stretch

    def _stretch(self, step: int) -> None:
        """Print ``found``: what rows ``top .. end - 1`` select."""
        route, out = self.route, self.out
        start, stop = ("top", "end") if step == 1 else (f"top * {step}", f"end * {step}")
        if route.query.kind == "last":
            start, stop = "0", "None"
        rows = f"[:, :, {start}:{stop}]"
        near = f"(query_at[0][{start}:{stop}], query_at[1][{start}:{stop}])"
        self._scores(rows)
        out.line(f'visible = _seen("{route.visible}", {near}, {self._cut("key_at")})')
        out.line(f'scores = _finite("{route.name}", scores, visible)')
        if route.norm == "softmax":
            out.line("scores = _softmax(scores)")
        elif route.norm == "minmax":
            dims = {"row": (3,), "column": (2,), "head": (2, 3), "all": (1, 2, 3)}[route.compete]
            out.line(f"scores = _minmax(scores, visible, {dims})")
        self._reduce(step, start, stop)
        if isinstance(route.select, TopP):
            out.line(f'_no_negative("{route.name}", scores, visible)')
        if route.norm != "none" or route.reduce:
            out.line("scores = _only(scores, visible)")
        self._choose()

    def _scores(self, rows: str) -> None:
        route, out = self.route, self.out
        score = route.score
        if score.kind == "external":
            out.line(f'gate = _gate("{route.name}", inputs["{score.input}"], q, rows, units)')
            out.line(f"scores = _wide(gate{rows}{'[..., :near]' if self.narrow else ''})")
            return
        if score.kind == "bound":
            text = f"_bound(query{rows}, {self._cut('key')}, {self._cut('least')})"
        elif score.kind == "relu_heads":
            text = f"_relu_heads(query{rows}, {self._cut('key')}, weights[:, {rows[7:-1]}])"
        else:
            text = f"_product(query{rows}, {self._cut('key')})"
        factor = self._factor()
        out.line(f"scores = {text}{f'.mul_({factor})' if factor else ''}")

    def _narrow(self) -> None:
        """Print how many units the last row of a stretch may reach; what is beyond is not scored.

        ``near`` counts what is scored, ``close`` what is selected from.
        """
        route, out = self.route, self.out
        self.narrow = route.visible != "all" and route.key.kind in ("token", "block") and (
            route.query.kind in ("token", "block")
        )
        if not self.narrow:
            return
        tokens = route.query.sizes[0] if route.query.kind == "block" else 1
        last = "end" if tokens == 1 else f"min(end * {tokens}, nq)"
        shift = "" if self.shift == "0" else f" + {self.shift}"
        wide = route.key.sizes[0] if route.key.kind == "block" else 1
        out.line(f"close = min(max(-(-({last}{shift}) // {wide}), 1), units)")
        fine = self._fine(route.key, route.key_rep)
        if route.key_rep.window is not None:
            out.line(f"near = min(-(-close * {wide} // {route.key_rep.window[1]}), key.shape[2])")
        elif route.score.kind != "external" and fine != route.key:
            ratio = self._ratio(route.key, fine)
            out.line(f"near = min(close * {ratio}, key.shape[2])")
        else:
            out.line("near = close")

    def _cut(self, name: str) -> str:
        """Return what is left of a name of keys where scores are narrow."""
        if not self.narrow:
            return name
        if name.endswith("_at"):
            own = "close" if name == "unit_at" else "near"
            return f"({name}[0][:{own}], {name}[1][:{own}])"
        return f"{name}[:, :, :near]"

    def _factor(self) -> str:
        """Return what scales a product, as text; "" where nothing does."""
        score, factor = self.route.score, ""
        if score.scale == "head_dim":
            factor = "q.shape[3] ** -0.5"
        elif score.scale is not None:
            factor = f"{float(score.scale)!r}"
        return factor if score.divisor == 1 else f"{factor or '1.0'} / {score.divisor}"

    def _reduce(self, step: int, start: str, stop: str) -> None:
        route, out = self.route, self.out
        for one in route.reduce:
            match one.over:
                case "cell":
                    keys = self._ratio(route.key, self._fine(route.key, route.key_rep))
                    out.line(
                        f'scores, visible = _to_cells(scores, visible, {step}, {keys}, "{one.op}")'
                    )
                case "query":
                    out.line(f'scores, visible = _over_queries(scores, visible, "{one.op}")')
                case "diagonal":
                    given = f'(scores, visible, query_at[0], "{one.op}")'
                    out.line(f"scores, visible = _over_diagonals{given}")
                case "group":
                    out.line(f'scores = _over_heads(scores, visible, k.shape[1], "{one.op}")')
                case "heads":
                    out.line(f'scores = _over_heads(scores, visible, 1, "{one.op}")')
                case "overlap":
                    assert route.key_rep.window is not None
                    window, stride = route.key_rep.window
                    strides = (window // stride, route.key.sizes[0] // stride)
                    out.line(
                        f"scores, visible = _over_windows("
                        f'scores, visible, {"close" if self.narrow else "units"}, {strides}, '
                        f'"{one.op}")'
                    )
                case "smooth":
                    out.line(f'scores = _smoothed(scores, visible, {one.width}, "{one.op}")')

    # ------------------------------------------------------------------------------ select

    def _choose(self) -> None:
        """Print what of ``scores`` is selected, kept ones included, as ``found``."""
        route, out = self.route, self.out
        for counted, name in ((True, "counted"), (False, "extra")):
            clauses = [self._keeps(keep) for keep in route.keep if keep.counted == counted]
            if clauses:
                out.line(f"{name} = {' | '.join(clauses)}")
        has = {keep.counted for keep in route.keep}
        if has == {True, False}:
            out.line("extra = extra & ~counted")
        if False in has:
            out.line("scores = _only(scores, ~extra)")
        kept = " | ".join(n for n, flag in (("counted", True), ("extra", False)) if flag in has)
        alone = isinstance(route.select, Above | Near)  # no pool: each score by itself
        flat = route.compete != "row" and route.query.kind != "last" and not alone
        pooled, back = self._pool() if flat else ("", "")
        out.line(f"found = {self._selected(True in has, pooled)}{back}")
        if kept:
            out.line(f"found = found | {kept}")
        if route.widen > 1 or route.capacity is not None:
            score = f"_first_of_all(scores, {kept})" if kept else "scores"
            out.line(f"order = _only({score}, found)")
            if route.widen > 1:
                out.line(f"order = _widened(order, {route.widen})")
            out.line(f'found = _within("{route.name}", order, room, "{route.overflow}")')

    def _keeps(self, keep: object) -> str:
        from attnc.compiler.ir.route import Keep

        assert isinstance(keep, Keep)
        route = self.route
        if route.emit == "slashes":
            return f"(torch.arange(units, device=q.device) < {keep.count})[None]"
        near = "(row_at[0][top:end], row_at[1][top:end])"
        if route.key.kind == "cell":
            assert route.query.kind in ("token", "cell")
            cells = cells_text(route.key, self.routed.base.key_space)
            places = "row_at[0][top:end]"
            own = f"_own_cells({cells}, units, {places})"
        else:
            own = f"_own({near}, {self._cut('unit_at')}, nk)"
        text = {
            "own": own, "first": f"_first({own}, {keep.count})",
            "recent": f"_recent({own}, {keep.count})",
        }[keep.what]
        if route.visible != "all":
            text = f'{text} & _seen("reached", {near}, {self._cut("unit_at")})'
        return f"({text})"

    def _pool(self) -> tuple[str, str]:
        """Return what makes the last dimension of scores a pool, and what undoes it."""
        match self.route.compete:
            case "column":
                return ".transpose(2, 3)", ".transpose(2, 3)"
            case "head":
                return ".flatten(2)", ".unflatten(2, scores.shape[2:])"
            case _:
                return ".flatten(1)", ".unflatten(1, scores.shape[1:])"

    def _selected(self, counts: bool, pooled: str) -> str:
        route, rule = self.route, self.route.select
        scores = f"scores{pooled}"
        taken = f"_first_of_all(scores, counted){pooled}" if counts else scores
        if isinstance(rule, TopK):
            budget = str(rule.count)
            if pooled:
                budget = {"column": budget, "head": f"{budget} * scores.shape[2]"}.get(
                    route.compete, f"{budget} * scores.shape[1] * scores.shape[2]"
                )
            return f"_best({taken}, {budget})"
        if isinstance(rule, Ratio):
            share = rule.share
            self.out.line(f"competing = ({taken} > float('-inf')).sum(-1, keepdim=True)")
            self.out.line(
                f"budget = (competing * {share.numerator} // {share.denominator})"
                f".clamp(min={rule.least})"
            )
            return f"_best({taken}, budget)"
        if isinstance(rule, TopP):
            charged = "0.0"
            if counts:
                self.out.line(
                    f"charged = scores.double().clamp(min=0).masked_fill(~counted, 0.0){pooled}"
                    ".sum(-1, keepdim=True)"
                )
                charged = "charged"
                scores = f"_only(scores, ~counted){pooled}"
            return (
                f'_by_mass({scores}, {charged}, {float(rule.mass)!r}, "{rule.crossing}", '
                f"{rule.least})"
            )
        if isinstance(rule, Above):
            limit = f'_each_head(inputs["{rule.threshold}"], scores.shape[1])'
            if not isinstance(rule.threshold, str):
                limit = f"{float(rule.threshold)!r}"
            return f'(scores > {limit}) & (scores > float("-inf"))'
        assert isinstance(rule, Near)
        return (
            f"(scores >= (anchors[:, :, top:end, None] - {float(rule.difference)!r})) "
            '& (scores > float("-inf"))'
        )

    # ----------------------------------------------------------------------------- members

    def _members(self) -> None:
        route, out = self.route, self.out
        assert isinstance(route.select, TopK)
        count = route.select.count
        first = max([keep.count for keep in route.keep], default=0)
        if route.query.kind == "head":
            name = f'inputs["{route.score.input}"]'
            out.line(f"scores = _routers({name}, q)")
            out.line(f"queries = keys = _chosen_tokens(\"{route.name}\", scores, {count}, {first})")
        else:
            roles = {i.role: i.name for i in self.routed.inputs if i.route == route.name}
            out.line(f'centroids = _wide(inputs["{roles["centroids"]}"])[None]')
            factor = self._factor()
            for side, x, rep in (("queries", "q", route.query_rep), ("keys", "k", route.key_rep)):
                text = self._rep(rep, Grain(kind="token"), x, "", None)
                count_of = f"q.shape[1], {route.query.sizes[0]}"
                scaled = f" * ({factor})" if factor else ""
                out.line(f"scores = _nearness(centroids, {text}, {count_of}){scaled}")
                out.line(
                    f'{side} = _chosen_tokens("{route.name}", scores, {count}, {first})'
                )
        if route.combine == "score":
            out.line("return queries, keys, _scores_of(scores, queries, q)")
        else:
            out.line("return queries, keys")


def cells_text(grain: Grain, space: Space | None) -> str:
    """Return the call that says which cell each token of a grid lies in."""
    assert space is not None
    (grid,) = space.segments
    extents = ", ".join(_extent(grid, axis) for axis in range(len(grid.extents)))
    tile = None if grid.tile is None else tuple(grid.tile)
    return f"_cell_order(({extents},), {tuple(grain.sizes)}, {tile}, q.device)"


def _extent(grid: Grid, axis: int) -> str:
    extent = grid.extents[axis]
    if isinstance(extent, ex.Const):
        return str(extent.value)
    if isinstance(extent, ex.Read):
        return f'inputs["{extent.name}"]'
    raise AssertionError("the extents of a grid with cells are numbers")
