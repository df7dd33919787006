"""Sets of pairs: builders, references, patterns as values, whole blocks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from attnc.dsl import nodes as ast
from attnc.dsl.check_base import LENGTHS, Entry, Scope, Shape, Side
from attnc.dsl.check_heads import overlaps
from attnc.dsl.check_input import InputChecker
from attnc.dsl.check_space import PLAIN
from attnc.dsl.kinds import (
    BOOL,
    BROKEN,
    HEAD,
    INT,
    RATIONAL,
    REAL,
    Kind,
    Time,
    describe,
    of_patterns,
    show_type,
)  # fmt: skip
from attnc.dsl.resolve import Module, Named, as_set
from attnc.dsl.source import Span

_PATTERN = ast.Type(kind="pattern")


class PairChecker(InputChecker):
    """Checks sets of pairs in the spaces and heads of their item."""

    heads: ast.Heads | None = None
    testing = False  # in `(q, k) in p` and in arguments, where the spaces may differ

    @abstractmethod
    def inside(self, module: Module) -> PairChecker: ...

    sides: tuple[Side, Side] = (PLAIN, PLAIN)

    def pairs(self, part: ast.Set, scope: Scope) -> None:
        # A stack, not recursion: `a - b - c ...` is a chain as deep as it is long.
        stack: list[tuple[ast.Set, Scope]] = [(part, scope)]
        while stack:
            here, scope = stack.pop()
            match here:
                case ast.Builder():
                    self.builder(here, scope, BOOL)
                case ast.Reference():
                    self.reference(here, scope)
                case ast.SetIndex():
                    self.set_index(here, scope)
                case ast.SetUnion(parts=parts) | ast.SetIntersection(parts=parts):
                    if isinstance(here, ast.SetUnion):
                        self.head_ranges(here)
                    stack += [(p, scope) for p in reversed(parts)]
                case ast.SetDifference(left=left, right=right):
                    stack += [(right, scope), (left, scope)]
                case ast.SetComplement(part=inner):
                    stack.append((inner, scope))
                case ast.SetIf(condition=condition, then=then, otherwise=otherwise):
                    kind = self.need(condition, scope, BOOL)
                    self.known(
                        condition, kind, "a condition that chooses between sets",
                        "put a condition on positions inside the set: `{ q -> k : c and ... }`",
                    )  # fmt: skip
                    stack += [(otherwise, scope), (then, scope)]
                case ast.UnionOver(var=var, low=low, high=high, body=body):
                    for end in (low, high):
                        self.known(end, self.need(end, scope, INT), "the range of `union over`")
                    stack.append((body, {**scope, var: Entry(Kind(INT, Time.COMPILE))}))
                case ast.Rounded():
                    self.rounded(here, scope)
                    stack.append((here.part, scope))

    @abstractmethod
    def routed(self, body: ast.Set, scope: Scope) -> None:
        """Check a set that may hold routes."""

    def holds_route(self, target: Named[ast.PatternDef]) -> bool:
        """Whether the set of a pattern holds a route."""
        known = self.memory.routed
        if id(target.item) not in known:
            module = target.module
            known[id(target.item)] = any(
                isinstance(n, ast.Reference) and module.is_route(n.name)
                for n in ast.walk(target.item.body)
            )
        return known[id(target.item)]

    def head_ranges(self, union: ast.SetUnion) -> None:
        """Warn of ranges of heads that overlap in part: one of their ends is mostly off by one."""
        for before, after in overlaps(union):
            low, high = int(after.low), int(before.high)
            shared = f"head {low} is" if low == high else f"heads {low} to {high} are"
            self.error(
                "ATT0323", f"{shared} in two ranges of heads", after.span, severity="warning",
                label="this set is for some heads of another one, too",
                notes=(f"the other range begins on line {before.span.line}",),
                help=f"end that range with `< {low}`, or begin this one after {high}",
            )  # fmt: skip

    def rounded(self, part: ast.Rounded, scope: Scope) -> None:
        """Check the sizes and the threshold of ``blocks(a, 64, density > 0.6)``."""
        for size in (part.block_q, part.block_k):
            if size is not None:
                self.known(size, self.need(size, scope, INT), "the size of a block")
        if part.threshold is not None:
            kind = self.need(part.threshold, scope, RATIONAL)
            self.known(part.threshold, kind, "a threshold")

    # ------------------------------------------------------------------------------ builders

    def builder(self, builder: ast.Builder, scope: Scope, wanted: ast.Type) -> None:
        """Check ``{ q -> k, h : predicate }``; ``wanted`` is a number in a score."""
        inner = dict(scope)
        names = [builder.query, builder.key, *([builder.head] if builder.head else [])]
        for name in names:
            if names.count(name) > 1:
                self.error(
                    "ATT0203", f"`{name}` names two coordinates of one set", builder.span,
                    help="give the query, the key and the head different names",
                )  # fmt: skip
                return
        segments = (builder.query_segment, builder.key_segment)
        for name, segment, side in zip(names[:2], segments, self.sides, strict=True):
            place = self.place(segment, side, scope)
            inner[name] = Entry(Kind(INT, Time.RUN, place.unit()), place=place)
        if builder.head:
            inner[builder.head] = Entry(Kind(INT, Time.EACH, HEAD))
            if self.heads is None:
                self.error(
                    "ATT0209", "the number of heads is not known here", builder.span,
                    help=f"say it after the name: `pattern p heads {builder.head}: 8 = ...`",
                )  # fmt: skip
        hint = self.heads is not None and self.heads.var not in inner
        self.head_name = self.heads.var if self.heads is not None and hint else None
        self.pairs_tested = True
        self.need(builder.predicate, inner, wanted)
        self.head_name, self.pairs_tested = None, False

    def pair_in(self, expr: ast.PairIn, scope: Scope) -> Kind:
        """Check ``(q, k) in causal``."""
        if not self.pairs_tested:
            return self.error(
                "ATT0214", "a pair is tested where there are no pairs", expr.span,
                help="write it inside a set: `{ q -> k : (q, k) in ... }`",
            )  # fmt: skip
        places = [self.need(e, scope, INT) for e in (expr.query, expr.key)]
        pattern = expr.pattern
        if isinstance(pattern, ast.SetIndex):
            right = self.set_index(pattern, scope)
        else:
            right = self.elsewhere(pattern, scope)
        if any(p.type is None for p in (*places, right)):
            return BROKEN
        return Kind(BOOL, Time.RUN)

    # ---------------------------------------------------------------------------- references

    def reference(self, reference: ast.Reference, scope: Scope) -> Kind:
        name = reference.name
        span = reference.name_span if reference.name_span.source else reference.span
        entry = scope.get(name)
        if entry is not None and entry.kind.type is not None and of_patterns(entry.kind.type):
            return self.parameter(reference, entry)
        target = self.module.find(name)
        if target is not None and self.holds_route(target):
            return self.error(
                "ATT0332", f"`{name}` holds a route, and stands in a set", span,
                label="what a route selects is only known at the call",
                help="use the route itself: `base & (kept | route)`",
            )  # fmt: skip
        if target is not None:
            args = tuple((a.name, a.value, a.span) for a in reference.args)
            self.given(name, args, reference.span, target, scope)
            return Kind(_PATTERN, Time.COMPILE)
        sort = self.module.sort(name)
        if name in self.module.missing:
            pass  # the import of the name has been reported
        elif sort in ("score", "attention", "fn", "combine", "route"):
            article = "an" if sort in ("attention", "fn") else "a"
            self.error(
                "ATT0214", f"`{name}` is {article} {sort}, not a set of pairs", span,
                help={
                    "score": "scores belong into an attention: `attention a = softmax(dot + "
                    f"{name}, over: ...)`",
                    "attention": "its set is what stands after `over:`; give that a name",
                    "combine": "it is a sum of attentions, which a model calls",
                    "route": "it may stand alone, or as `base & (kept | route)`",
                    "fn": f"call it inside a set: `{{ q -> k : {name}(...) }}`",
                }[sort],
            )  # fmt: skip
        elif entry is not None and entry.kind.type is not None:
            self.error(
                "ATT0214", f"`{name}` is {describe(entry.kind.type)}, not a set of pairs", span,
                help="use it inside a set: `{ q -> k : ... }`",
            )  # fmt: skip
        else:
            shape = f"`{{ q -> k : ... }}`, or define `pattern {name} = ...`"
            self.error(
                "ATT0202", f"there is no pattern `{name}`", span,
                help="say which blocks stay: `blocks(SET, 64, any)`" if name == "blocks"
                else self.suggest(name, self.module.names()) or f"write a set, {shape}",
            )  # fmt: skip
        for argument in reference.args:
            self.quietly(argument.value, scope)
        return BROKEN

    def elsewhere(self, reference: ast.Reference, scope: Scope) -> Kind:
        """Check a reference to a pattern whose space may be another one."""
        outer, self.testing = self.testing, True
        kind = self.reference(reference, scope)
        self.testing = outer
        return kind

    def same_space(self, name: str, target: Named[Any], span: Span) -> None:
        if isinstance(target.item, ast.Route | ast.Attention):
            return  # a route takes the space of what uses it, a term of a sum has its own
        if target.item.on is None or self.sides[0] is PLAIN or self.testing:
            return
        if id(target.item) not in self.memory.shapes:
            self.memory.shapes[id(target.item)] = self.inside(target.module).shapes(target.item)
        theirs = self.memory.shapes[id(target.item)]
        if theirs is None:
            return  # reported where it is defined
        for mine, their, word in zip(self.sides, theirs, ("queries", "keys"), strict=True):
            if mine.shape is None or their is None or mine.shape == their:
                continue
            self.error(
                "ATT0317", f"`{name}` is on another space", span,
                label=f"its {word} are on {_grids(their)}, here they are on {_grids(mine.shape)}",
                help=f"write both on one space, or test positions of a segment: `(q, k) in {name}`",
            )  # fmt: skip
            return

    def shapes(self, item: ast.PatternDef | ast.Score) -> tuple[Shape, Shape] | None:
        """Return the shapes of the spaces of an item, None where something is wrong with them."""
        scope: Scope = dict(LENGTHS)
        for param in (*self.module.params, *item.params):
            scope[param.name] = Entry(Kind(param.type, Time.COMPILE))
        self.inputs(tuple(p for p in item.params if isinstance(p, ast.Input)), scope, item.heads)
        query, key = self.on(item.on, scope)
        return None if self.found else (query.shape, key.shape)

    def quietly(self, value: ast.Expr, scope: Scope) -> None:
        """Read an argument of something that is not there: only what is used counts."""
        before = len(self.found)
        self.raw(value, scope)
        del self.found[before:]

    def parameter(self, reference: ast.Reference, entry: Entry) -> Kind:
        """Check the use of a parameter of type ``pattern`` as a set."""
        assert entry.kind.type is not None
        if entry.owner is not None:
            self.use(entry.owner)
        name = reference.name
        if entry.kind.type.kind == "list":
            return self.error(
                "ATT0301", f"expected a pattern, found {describe(entry.kind.type)}",
                reference.span, label=f"this has type {show_type(entry.kind.type)}",
                help=f"choose one: `{name}[0]`, or unite them: `union over i in 0..len({name}) - 1 "
                f": {name}[i]`",
            )  # fmt: skip
        if reference.args:
            return self.error(
                "ATT0302", f"`{name}` takes no arguments", reference.args[0].span,
                label="it is a parameter", help="give the arguments where the pattern is passed",
            )  # fmt: skip
        return Kind(_PATTERN, Time.COMPILE)

    def set_index(self, part: ast.SetIndex, scope: Scope) -> Kind:
        """Check ``masks[i]``."""
        index = self.need(part.index, scope, INT)
        self.known(
            part.index, index, "the number of a pattern",
            "index by a parameter, or by the variable of `union over i in ...`",
        )  # fmt: skip
        entry = scope.get(part.name)
        span = part.name_span if part.name_span.source else part.span
        if entry is None:
            return self.name(ast.Name(name=part.name, span=span), scope, None)
        if entry.owner is not None:
            self.use(entry.owner)
        type_ = entry.kind.type
        if type_ is None or index.type is None:
            return BROKEN
        if type_.kind != "list" or type_.item != _PATTERN:
            return self.error(
                "ATT0301", f"expected a list of patterns, found {describe(type_)}", span,
                label=f"this has type {show_type(type_)}",
                help="declare it as `list[pattern]`; values are used inside `{ q -> k : ... }`",
            )  # fmt: skip
        return Kind(_PATTERN, Time.COMPILE)

    def pattern_value(self, expr: ast.Expr, scope: Scope, wanted: ast.Type) -> Kind:
        if wanted.kind == "list" and wanted.item is not None:
            if isinstance(expr, ast.ListOf):
                kinds = [self.pattern_value(i, scope, wanted.item) for i in expr.items]
                return BROKEN if any(k.type is None for k in kinds) else Kind(wanted, Time.COMPILE)
            entry = scope.get(expr.name) if isinstance(expr, ast.Name) else None
            if entry is not None and entry.kind.type == wanted:
                return self.raw(expr, scope)
            return self.error(
                "ATT0301", f"expected {describe(wanted)}", expr.span,
                help="write it in brackets: `[causal, window(8)]`",
            )  # fmt: skip
        match as_set(expr):
            case ast.Reference() as reference:
                return self.elsewhere(reference, scope)
            case ast.SetIndex() as item:
                return self.set_index(item, scope)
            case None:
                return self.error(
                    "ATT0301", "expected a pattern", expr.span,
                    help="give the name of a pattern, `causal` or `window(8)`; a set in braces "
                    "gets a name first: `pattern near = { q -> k : ... }`",
                )  # fmt: skip

    # ---------------------------------------------------------------- scores and attention

    def score(self, builder: ast.Builder, scope: Scope) -> None:
        self.scoring = True
        self.builder(builder, scope, REAL)
        self.scoring = False

    def attention(self, item: ast.Attention, scope: Scope) -> None:
        """Check what an attention is made of."""
        self.routed(item.over, scope)
        inner = dict(scope)
        if self.heads is not None:
            inner.setdefault(self.heads.var, Entry(Kind(INT, Time.EACH, HEAD)))
        self.scoring = True
        if item.sink is not None:
            self.need(item.sink, inner, REAL)
        if item.scale is not None:
            kind = self.need(item.scale, scope, RATIONAL)
            self.known(item.scale, kind, "the scale")
        inner["dot"] = Entry(Kind(REAL, Time.RUN))
        self.scores_named = True
        self.need(item.score, inner, REAL)
        self.scores_named = self.scoring = False


def _grids(shape: tuple[int, ...]) -> str:
    """Return a shape in words: "a grid of 2 axes", "2 segments"."""
    axes = [f"{n} ax{'i' if n == 1 else 'e'}s" for n in shape]
    return f"a grid of {axes[0]}" if len(axes) == 1 else f"{len(axes)} segments"
