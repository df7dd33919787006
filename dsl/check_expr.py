"""Expression -> its type and time; everything wrong with it is reported once."""

from __future__ import annotations

from itertools import chain

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import LENGTHS, Entry, Place, Scope, latest
from attnc.dsl.check_call import show_input
from attnc.dsl.check_numbers import NumberChecker, in_words
from attnc.dsl.functions import BUILTINS
from attnc.dsl.kinds import (
    BOOL,
    BROKEN,
    HEAD,
    INT,
    LAYER,
    RATIONAL,
    REAL,
    Kind,
    Time,
    Unit,
    describe,
    join,
)  # fmt: skip
from attnc.dsl.source import Span


class ExprChecker(NumberChecker):
    """Types expressions."""

    def raw(self, expr: ast.Expr, scope: Scope, expect: ast.Type | None = None) -> Kind:
        match expr:
            case ast.Number(value=value):
                return Kind(INT if value.denominator == 1 else RATIONAL, Time.COMPILE)
            case ast.Bool():
                return Kind(BOOL, Time.COMPILE)
            case ast.Name():
                return self.name(expr, scope, expect)
            case ast.ListOf():
                return self.list_of(expr, scope, expect)
            case ast.Index():
                return self.index(expr, scope)
            case ast.Attribute():
                return self.attribute(expr, scope)
            case ast.Call():
                return self.call(expr, scope)
            case ast.Unary(op="not", operand=operand):
                return self.need(operand, scope, BOOL)
            case ast.Unary(operand=operand):
                return self.need(operand, scope, REAL).plain()
            case ast.Binary():
                return self.spine(expr, scope)
            case ast.Compare():
                return self.compare(expr, scope)
            case ast.BoolOp(parts=parts):
                return latest(BOOL, [self.need(p, scope, BOOL) for p in parts])
            case ast.Quantifier(body=body):
                return self.over_range(expr, scope, BOOL, BOOL)
            case ast.Reduce(op=op):
                return self.over_range(expr, scope, REAL if op == "sum" else BOOL, INT)
            case ast.ListFor():
                return self.over_range(expr, scope, None, None)
            case ast.PairIn():
                return self.pair_in(expr, scope)
            case ast.IfExpr():
                return self.if_expr(expr, scope, expect)
            case ast.Let(name=name, value=value, body=body):
                inner = {**scope, name: Entry(self.raw(value, scope))}
                return self.raw(body, inner, expect)

    def pair_in(self, expr: ast.PairIn, scope: Scope) -> Kind:
        raise NotImplementedError

    def name(self, expr: ast.Name, scope: Scope, expect: ast.Type | None) -> Kind:
        entry = scope.get(expr.name)
        if entry is not None:
            if entry.owner is not None:
                self.use(entry.owner)
            return entry.kind
        choices: tuple[str, ...] = ()
        if expect is not None and expect.kind == "enum":
            if expr.name in expect.choices:
                return Kind(expect, Time.COMPILE)
            choices = expect.choices
        if self.scores_named:
            score = self.module.find_score(expr.name)
            if score is not None:
                return self.score_call(expr.name, (), expr.span, score, scope)
        help_ = self.suggest(expr.name, chain(choices, scope))
        sort = self.module.sort(expr.name)
        if expr.name == self.head_name:
            help_ = f"bind the head in the set: `{{ q -> k, {expr.name} : ... }}`"
        elif choices and not help_:
            help_ = f"write one of {', '.join(f'`{c}`' for c in choices)}"
        elif expr.name in LENGTHS:
            help_ = f"an fn sees its own parameters: pass `{expr.name}` to it"
        elif expr.name in BUILTINS:
            help_ = f"`{expr.name}` is a function: `{BUILTINS[expr.name].usage}`"
        elif sort in ("pattern", "score", "attention") and not help_:
            return self.other_sort(expr.name, sort, expr.span)
        return self.error(
            "ATT0201", f"there is nothing called `{expr.name}` here", expr.span,
            help=help_ or "declare a parameter, or use a coordinate or the length `n`",
        )  # fmt: skip

    # ------------------------------------------------------------------------------- lists

    def list_of(self, expr: ast.ListOf, scope: Scope, expect: ast.Type | None) -> Kind:
        item = expect.item if expect is not None and expect.kind == "list" else None
        kinds = [self.expr(part, scope, item) for part in expr.items]
        common: ast.Type | None = None
        for part, kind in zip(expr.items, kinds, strict=True):
            if kind.type is None:
                return BROKEN
            merged = kind.type if common is None else join(common, kind.type)
            if merged is None:
                assert common is not None
                return self.error(
                    "ATT0301",
                    f"a list holds one type: expected {describe(common)}, "
                    f"found {describe(kind.type)}",
                    part.span, help="convert the items to one type",
                )  # fmt: skip
            common = merged
        time = max((k.time for k in kinds), default=Time.COMPILE)
        return Kind(ast.Type(kind="list", item=common or item), time)

    def index(self, expr: ast.Index, scope: Scope) -> Kind:
        if isinstance(expr.base, ast.Name):
            entry = scope.get(expr.base.name)
            if entry is not None and entry.place is not None:
                return self.coordinate(expr, entry.place, entry.kind, scope)
        base = self.raw(expr.base, scope)
        index = self.need(expr.index, scope, INT)
        if base.type is None or index.type is None:
            return BROKEN
        if base.dims:
            self.index_unit(base.dims[0], index.unit, expr.index.span)
            return Kind(base.type, Time.RUN, dims=base.dims[1:])
        if base.type.kind != "list":
            root, indices = expr.base, 1
            while isinstance(root, ast.Index):
                root, indices = root.base, indices + 1
            entry = scope.get(root.name) if isinstance(root, ast.Name) else None
            if entry is not None and isinstance(entry.owner, ast.Input):
                axes = len(entry.owner.dims)
                return self.error(
                    "ATT0316", f"index number {indices} of an input of {axes} "
                    f"ax{'i' if axes == 1 else 'e'}s", expr.index.span,
                    help=f"it is declared as `{entry.owner.name}: {show_input(entry.owner)}`",
                )  # fmt: skip
            return self.error(
                "ATT0301", f"expected a list, found {describe(base.type)}", expr.base.span,
                help="only lists, inputs with axes left, and positions on a grid have items",
            )  # fmt: skip
        item = base.type.item
        late = index.time == Time.RUN
        if late and (base.time == Time.RUN or item is None or item.kind in ("list", "enum")):
            return self.error(
                "ATT0306", "a list index must be known at compile time", expr.index.span,
                label="this depends on positions or lengths",
                help="only lists of numbers or truth values that are known at compile time have "
                "items chosen at run time",
            )  # fmt: skip
        return Kind(item, max(base.time, index.time))

    def index_unit(self, wanted: Unit | None, found: Unit | None, where: Span) -> None:
        """Report an index that counts something else than the axis of the input does."""
        if wanted is None or found is None or not wanted.clashes(found):
            return
        certain = HEAD in (wanted, found) or LAYER in (wanted, found)
        axis = "tokens" if wanted.sort == "token" else f"{wanted.sort}s"
        self.error(
            "ATT0322", f"{in_words(found)} indexes an axis of {axis}", where,
            severity="error" if certain else "warning", label="these count different things",
            help="index the axes in the order in which the input declares them" if certain
            else "declare the side of the input by a name of its own: `int[blocks]`",
        )  # fmt: skip

    # --------------------------------------------------------------------------- coordinates

    def coordinate(self, expr: ast.Index, place: Place, position: Kind, scope: Scope) -> Kind:
        """Check ``q[a]``: coordinate number ``a`` of a position."""
        assert isinstance(expr.base, ast.Name)
        index = self.need(expr.index, scope, INT)
        if index.type is None or not self.has_coordinates(expr.base.name, place, expr.span):
            return BROKEN
        if index.time == Time.RUN:
            return self.error(
                "ATT0306", "the number of a coordinate must be known at compile time",
                expr.index.span, label="this depends on positions or lengths",
                help="use a number, or the variable of `forall a in 0..1 : ...`",
            )  # fmt: skip
        if place.axes is None or not isinstance(expr.index, ast.Number):
            return Kind(INT, position.time)
        number = int(expr.index.value)
        if number >= len(place.axes):
            return self.error(
                "ATT0211", f"there is no coordinate {number} on a grid of {len(place.axes)} axes",
                expr.index.span, help=f"they are {_listed(place.axes)}, from 0",
            )  # fmt: skip
        return Kind(INT, position.time, place.axis_unit(place.axes[number]))

    def attribute(self, expr: ast.Attribute, scope: Scope) -> Kind:
        """Check ``q.y``."""
        entry = scope.get(expr.base)
        if entry is None:
            return self.name(ast.Name(name=expr.base, span=expr.span), scope, None)
        if entry.place is None:
            return self.error(
                "ATT0211", f"`{expr.base}` is not a position", expr.span,
                help="only the query and the key of a set have coordinates",
            )  # fmt: skip
        place = entry.place
        if not self.has_coordinates(expr.base, place, expr.span):
            return BROKEN
        if place.axes is None:
            return self.error(
                "ATT0211", "the axes of `grid(*...)` have no names", expr.span,
                help=f"number them: `{expr.base}[0]`",
            )  # fmt: skip
        if expr.axis not in place.axes:
            return self.error(
                "ATT0211", f"there is no axis `{expr.axis}` here", expr.span,
                help=self.suggest(expr.axis, place.axes) or f"the axes are {_listed(place.axes)}",
            )  # fmt: skip
        return Kind(INT, entry.kind.time, place.axis_unit(expr.axis))

    def has_coordinates(self, name: str, place: Place, span: Span) -> bool:
        """Report a position without coordinates; return whether it has some."""
        if not place.known:
            return False
        if place.segments:
            self.error(
                "ATT0211", f"`{name}` has no coordinates: its space has several segments", span,
                help=f"say which one: `{{ {name} in {place.segments[0]} -> ... }}`",
            )  # fmt: skip
        elif place.axes == ():
            self.error(
                "ATT0211", f"`{name}` has no coordinates: it is on no grid", span,
                help="say the space after the name: `pattern p on grid(y, x) = ...`",
            )  # fmt: skip
        return not place.segments and place.axes != ()

    # -------------------------------------------------------------------------------- ranges

    def over_range(
        self,
        expr: ast.Quantifier | ast.Reduce | ast.ListFor,
        scope: Scope,
        wanted: ast.Type | None,
        result: ast.Type | None,
    ) -> Kind:
        """Check a quantifier, ``sum``, ``count`` or ``[for ...]``; ``wanted``: of its body."""
        low, high = (self.need(e, scope, INT) for e in (expr.low, expr.high))
        ends = max(low.time, high.time)
        if ends == Time.RUN and not isinstance(expr, ast.Quantifier) and low.type and high.type:
            word = "for" if isinstance(expr, ast.ListFor) else expr.op
            late = expr.low if low.time == Time.RUN else expr.high
            self.error(
                "ATT0306", f"the range of `{word}` must be known at compile time", late.span,
                label="this depends on positions or lengths",
                help="each value becomes a part of the formula: use parameters and numbers",
            )  # fmt: skip
            return BROKEN
        var = Kind(INT, Time.RUN if ends == Time.RUN else Time.EACH)
        inner = {**scope, expr.var: Entry(var)}
        if wanted is None:
            body = self.expr(expr.body, inner)
        else:
            body = self.need(expr.body, inner, wanted)
        if low.type is None or high.type is None or body.type is None:
            return BROKEN
        time = max(ends, body.time)
        if time == Time.EACH and not any(e.kind.time == Time.EACH for e in scope.values()):
            time = Time.COMPILE  # only its own variable varies, and that is bound here
        if wanted is None:
            return Kind(ast.Type(kind="list", item=body.type), time)
        if isinstance(expr, ast.Reduce) and expr.op == "sum":
            return Kind(body.type, time)
        return Kind(result, time)

    def if_expr(self, expr: ast.IfExpr, scope: Scope, expect: ast.Type | None) -> Kind:
        condition = self.need(expr.condition, scope, BOOL)
        then, otherwise = (self.expr(e, scope, expect) for e in (expr.then, expr.otherwise))
        if then.type is None or otherwise.type is None or condition.type is None:
            return BROKEN
        common = join(then.type, otherwise.type)
        if common is None:
            return self.error(
                "ATT0301",
                f"`then` is {describe(then.type)} and `else` is {describe(otherwise.type)}",
                expr.span, help="both branches need one type",
            )  # fmt: skip
        if common.kind in ("list", "enum") and condition.time == Time.RUN:
            return self.error(
                "ATT0306", f"a condition that chooses {describe(common)} must be known at compile "
                "time", expr.condition.span, label="this depends on positions, lengths or inputs",
                help="choose between numbers instead: `(if c then a else b)[0]` becomes "
                "`if c then a[0] else b[0]`",
            )  # fmt: skip
        time = max(condition.time, then.time, otherwise.time)
        kind = self.real(common, time, expr)
        unit = then.unit if then.unit == otherwise.unit else None
        return Kind(kind.type, kind.time, unit)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{n}`" for n in names)
