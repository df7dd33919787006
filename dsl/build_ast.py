"""Grammar rules -> AST nodes, called by the LALR parser as it reduces (so without recursion).

Every method gets the children of its rule, literal tokens included, for their spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

from attnc.dsl import build_sum
from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.limits import Refused
from attnc.dsl.scanner import Token
from attnc.dsl.source import Span

Children: TypeAlias = list[Any]


@dataclass(frozen=True, slots=True)
class Terminal:
    """A token as the parser sees it: under the terminal that fits its place."""

    type: str
    token: Token


@dataclass(frozen=True, slots=True)
class Range:
    """``low..high`` of a parameter, on its way into the ``Param``."""

    low: ast.Expr | None
    high: ast.Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Rule:
    """``any`` or ``count >= 3`` of a ``blocks``, on its way into the ``Rounded``."""

    name: str
    op: str | None
    threshold: ast.Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class SoftmaxArgument:
    """``over: causal``, on its way into the ``Attention``."""

    name: str
    value: ast.Expr | ast.Set
    span: Span


@dataclass(frozen=True, slots=True)
class Softmax:
    """``softmax(dot, over: causal)``, on its way into the ``Attention``."""

    score: ast.Expr
    arguments: tuple[SoftmaxArgument, ...]
    span: Span


class BuildAst:
    """One method a rule or alias of ``grammar.lark``."""

    # ---------------------------------------------------------------------------------- items

    def item(self, c: Children) -> ast.Item:
        return c[0]  # type: ignore[no-any-return]

    def import_item(self, c: Children) -> ast.Import:
        names = tuple(n.name for n in c if isinstance(n, ast.Name))
        return ast.Import(names=names, path=_token(c[-1]).text[1:-1], span=_span(c))

    def param_item(self, c: Children) -> ast.Param:
        return c[1]  # type: ignore[no-any-return]

    def heads_item(self, c: Children) -> ast.Heads:
        return c[0]  # type: ignore[no-any-return]

    def pattern_item(self, c: Children) -> ast.PatternDef:
        layers = _only(c, ast.Layers, "layers")
        requires = tuple(x for x in c if isinstance(x, ast.Require))
        return ast.PatternDef(**_header(c), layers=layers, requires=requires, body=c[-1])

    def space_item(self, c: Children) -> ast.SpaceDef:
        return ast.SpaceDef(name=c[1].name, space=c[3], span=_span(c))

    def input_item(self, c: Children) -> ast.Input:
        return c[0]  # type: ignore[no-any-return]

    def fn_item(self, c: Children) -> ast.Fn:
        params = tuple(x for x in c if isinstance(x, ast.FnParam))
        return ast.Fn(name=c[1].name, params=params, body=c[-1], span=_span(c), name_span=c[1].span)

    def score_item(self, c: Children) -> ast.Score:
        return ast.Score(**_header(c), body=c[-1])

    def attention_item(self, c: Children) -> ast.Attention:
        softmax: Softmax = c[-1]
        parts: dict[str, Any] = {}
        for argument in softmax.arguments:
            if argument.name in parts:
                raise _twice(argument.name, argument.span)
            parts[argument.name] = argument.value
        if "over" not in parts:
            raise _refused(
                "ATT0101", softmax.span, "this `softmax` has no `over:`",
                "say which pairs it is over: `softmax(dot, over: causal)`",
            )  # fmt: skip
        return ast.Attention(**_header(c), score=softmax.score, **parts)

    def route_item(self, c: Children) -> ast.Route:
        clauses = _clauses(c)
        params = next((x for x in c if isinstance(x, tuple)), ())
        return ast.Route(
            name=c[1].name, params=params, clauses=clauses, span=_span(c), name_span=c[1].span
        )

    def tune_item(self, c: Children) -> ast.Tune:
        return ast.Tune(
            name=c[1].name, clauses=_clauses(c), span=_span(c), name_span=c[1].span
        )

    def clause(self, c: Children) -> ast.Clause:
        return ast.Clause(name=c[0].name, value=c[2], span=_span(c), name_span=c[0].span)

    def combine_item(self, c: Children) -> ast.Combine:
        params = next((x for x in c if isinstance(x, tuple)), ())
        return ast.Combine(
            name=c[1].name, params=params, body=c[-1], span=_span(c), name_span=c[1].span
        )

    def parameters(self, c: Children) -> tuple[ast.Param | ast.Input, ...]:
        return tuple(x for x in c if isinstance(x, ast.Param | ast.Input))

    def parameter(self, c: Children) -> ast.Param:
        low = high = default = None
        for i, child in enumerate(c):
            if isinstance(child, Range):
                low, high = child.low, child.high
            elif _is(child, "="):
                default = c[i + 1]
        return ast.Param(
            name=c[0].name, type=c[2], low=low, high=high, default=default, span=_span(c)
        )

    def fn_parameter(self, c: Children) -> ast.FnParam:
        default = c[4] if len(c) > 3 else None
        return ast.FnParam(name=c[0].name, type=c[2], default=default, span=_span(c))

    def input(self, c: Children) -> ast.Input:
        dims = tuple(x for x in c if isinstance(x, ast.Dim))
        default = c[-1] if _is(c[-2], "=") else None
        return ast.Input(name=c[1].name, type=c[3], dims=dims, default=default, span=_span(c))

    def dim(self, c: Children) -> ast.Dim:
        return ast.Dim(extent=None if _is(c[0], "*") else c[0], span=_span(c))

    def heads(self, c: Children) -> ast.Heads:
        return ast.Heads(var=c[1].name, count=c[3], kv=_is(c[0], "kv_heads"), span=_span(c))

    def layers(self, c: Children) -> ast.Layers:
        return ast.Layers(var=c[1].name, count=c[3], span=_span(c))

    def require(self, c: Children) -> ast.Require:
        return ast.Require(condition=c[1], message=_token(c[3]).text[1:-1], span=_span(c))

    def on(self, c: Children) -> ast.On:
        return ast.On(query=c[1], key=c[3] if len(c) > 2 else None, span=_span(c))

    def softmax(self, c: Children) -> Softmax:
        arguments = tuple(x for x in c if isinstance(x, SoftmaxArgument))
        return Softmax(c[2], arguments, _span(c))

    def softmax_argument(self, c: Children) -> SoftmaxArgument:
        return SoftmaxArgument(_token(c[0]).text, c[2], _span(c))

    def range_closed(self, c: Children) -> Range:
        return Range(c[0], c[2], _span(c))

    def range_from(self, c: Children) -> Range:
        return Range(c[0], None, _span(c))

    def range_to(self, c: Children) -> Range:
        return Range(None, c[1], _span(c))

    def scalar(self, c: Children) -> ast.Type:
        return ast.Type(kind=_token(c[0]).text, span=_span(c))  # type: ignore[arg-type]

    input_type = scalar

    def list_type(self, c: Children) -> ast.Type:
        return ast.Type(kind="list", item=c[2], span=_span(c))

    def enum_type(self, c: Children) -> ast.Type:
        choices = tuple(x.name for x in c if isinstance(x, ast.Name))
        return ast.Type(kind="enum", choices=choices, span=_span(c))

    # --------------------------------------------------------------------------------- spaces

    def space(self, c: Children) -> ast.Space:
        return ast.Space(segments=tuple(c[::2]), span=_span(c))

    def segment(self, c: Children) -> ast.Segment:
        grid = c[-1] if isinstance(c[-1], ast.Grid) else None
        name = c[0].name if isinstance(c[0], ast.Name) else None
        return ast.Segment(name=name, grid=grid, span=_span(c))

    def family(self, c: Children) -> ast.Segment:
        return ast.Segment(
            name=c[0].name, grid=c[9], var=c[2].name, low=c[4], high=c[6], span=_span(c)
        )

    def grid(self, c: Children) -> ast.Grid:
        axes = tuple(x for x in c if isinstance(x, ast.Axis))
        shape = None if axes else c[3]
        tile = c[-1] if _is(c[-2], "tiled") else None
        return ast.Grid(axes=axes, shape=shape, tile=tile, span=_span(c))

    def axis(self, c: Children) -> ast.Axis:
        return ast.Axis(name=c[0].name, extent=c[-1], span=_span(c))

    # ----------------------------------------------------------------------------------- sets

    def set_terms(self, c: Children) -> ast.Set:
        signs = {_token(x).text for x in c[1::2]}
        if "-" in signs and any(_bare_intersection(part) for part in c[::2]):
            raise _mixed(c, "&")
        if signs == {"|", "-"}:
            raise _mixed(c, "|")
        if signs == {"|"}:
            return ast.SetUnion(parts=tuple(c[::2]), span=_span(c))
        left: ast.Set = c[0]
        for right in c[2::2]:
            left = ast.SetDifference(left=left, right=right, span=left.span.to(right.span))
        return left

    def set_factor(self, c: Children) -> ast.Set:
        return ast.SetIntersection(parts=tuple(c[::2]), span=_span(c))

    def complement(self, c: Children) -> ast.Set:
        return ast.SetComplement(part=c[1], span=_span(c))

    def builder(self, c: Children) -> ast.Builder:
        names = [x.name for x in c if isinstance(x, ast.Name)]
        places = {_token(c[i - 3]).text: x for i, x in enumerate(c) if _is_place(x)}
        head = c[-4].name if _is(c[-5], ",") else None
        return ast.Builder(
            query=names[0], key=names[1], head=head, predicate=c[-2],
            query_segment=places.get("{"), key_segment=places.get("->"), span=_span(c),
        )  # fmt: skip

    def place(self, c: Children) -> ast.SegmentName:
        return ast.SegmentName(name=c[0].name, index=c[2] if len(c) > 1 else None, span=_span(c))

    def union_over(self, c: Children) -> ast.UnionOver:
        return ast.UnionOver(var=c[2].name, low=c[4], high=c[6], body=c[8], span=_span(c))

    def rounded(self, c: Children) -> ast.Rounded:
        rule: Rule = c[-2]
        return ast.Rounded(
            part=c[2], block_q=c[4], block_k=c[6] if len(c) > 8 else None,
            rule=rule.name, op=rule.op, threshold=rule.threshold, span=_span(c),  # type: ignore[arg-type]
        )  # fmt: skip

    def rule(self, c: Children) -> Rule:
        if len(c) == 1:
            return Rule(_token(c[0]).text, None, None, _span(c))
        op = _token(c[1]).text
        if op not in (">", ">="):
            raise _refused(
                "ATT0101", _span_of(c[1]), f"expected `>=` or `>`, found `{op}`",
                "blocks are kept where enough pairs are: `count >= 8`, `density > 0.5`",
            )  # fmt: skip
        return Rule(_token(c[0]).text, op, c[2], _span(c))

    def set_if(self, c: Children) -> ast.SetIf:
        return ast.SetIf(condition=c[1], then=c[3], otherwise=c[5], span=_span(c))

    def reference(self, c: Children) -> ast.Reference:
        args = next((x for x in c if isinstance(x, tuple)), ())
        return ast.Reference(name=c[0].name, args=args, span=_span(c), name_span=c[0].span)

    def set_index(self, c: Children) -> ast.SetIndex:
        return ast.SetIndex(name=c[0].name, index=c[2], span=_span(c), name_span=c[0].span)

    def arguments(self, c: Children) -> tuple[ast.Argument, ...]:
        return tuple(c[::2])

    def argument(self, c: Children) -> ast.Argument:
        name = c[0].name if len(c) == 3 else None
        return ast.Argument(name=name, value=c[-1], span=_span(c))

    # ---------------------------------------------------------------------------- expressions

    def group(self, c: Children) -> Any:
        return replace(c[1], span=_span(c))  # the brackets belong to the span, not to the tree

    def disjunction(self, c: Children) -> ast.BoolOp:
        return ast.BoolOp(op="or", parts=tuple(c[::2]), span=_span(c))

    def conjunction(self, c: Children) -> ast.BoolOp:
        return ast.BoolOp(op="and", parts=tuple(c[::2]), span=_span(c))

    def negate(self, c: Children) -> ast.Unary:
        return ast.Unary(op="not", operand=c[1], span=_span(c))

    def comparison(self, c: Children) -> ast.Compare:
        ops = tuple(x if isinstance(x, str) else _token(x).text for x in c[1::2])
        return ast.Compare(operands=tuple(c[::2]), ops=ops, span=_span(c))  # type: ignore[arg-type]

    value, value_conjunction, value_comparison = disjunction, conjunction, comparison

    def pair_in(self, c: Children) -> ast.PairIn:
        negated = _is(c[5], "not")
        return ast.PairIn(query=c[1], key=c[3], pattern=c[-1], negated=negated, span=_span(c))

    def compare_sign(self, c: Children) -> str:
        return "not in" if len(c) == 2 else _token(c[0]).text

    def sum(self, c: Children) -> ast.Expr:
        return build_sum.total(c[::2], [_token(sign).text for sign in c[1::2]])

    def product(self, c: Children) -> ast.Expr:
        return build_sum.chain(c[::2], [_token(sign).text for sign in c[1::2]])

    value_sum, value_product = sum, product

    def minus(self, c: Children) -> ast.Unary:
        return ast.Unary(op="-", operand=c[1], span=_span(c))

    def raised(self, c: Children) -> ast.Binary:
        return ast.Binary(op="**", left=c[0], right=c[2], span=_span(c))

    def index(self, c: Children) -> ast.Index:
        return ast.Index(base=c[0], index=c[2], span=_span(c))

    def number(self, c: Children) -> ast.Number:
        text = _token(c[0]).text
        plain = text.replace("_", "")
        value = Fraction(plain) if "." in plain else Fraction(int(plain))  # the second is faster
        return ast.Number(value=value, text=text, span=_span(c))

    def variable(self, c: Children) -> ast.Name:
        return c[0]  # type: ignore[no-any-return]

    def name(self, c: Children) -> ast.Name:
        return ast.Name(name=_token(c[0]).text, span=_span(c))

    def true(self, c: Children) -> ast.Bool:
        return ast.Bool(value=True, span=_span(c))

    def false(self, c: Children) -> ast.Bool:
        return ast.Bool(value=False, span=_span(c))

    def attribute(self, c: Children) -> ast.Attribute:
        return ast.Attribute(base=c[0].name, axis=c[2].name, span=_span(c))

    def call(self, c: Children) -> ast.Call:
        arguments: tuple[ast.Argument, ...] = c[2] if len(c) > 3 else ()
        return ast.Call(
            function=c[0].name, args=tuple(x.value for x in arguments),
            names=tuple(x.name for x in arguments), span=_span(c), name_span=c[0].span,
        )  # fmt: skip

    def list_of(self, c: Children) -> ast.ListOf:
        return ast.ListOf(items=tuple(c[1:-1:2]), span=_span(c))

    def list_for(self, c: Children) -> ast.ListFor:
        return ast.ListFor(var=c[2].name, low=c[4], high=c[6], body=c[8], span=_span(c))

    def quantifier(self, c: Children) -> ast.Quantifier:
        return ast.Quantifier(
            op=_token(c[0]).text, var=c[1].name, low=c[3], high=c[5], body=c[7],  # type: ignore[arg-type]
            span=_span(c),
        )  # fmt: skip

    def reduce(self, c: Children) -> ast.Reduce:
        return ast.Reduce(
            op=_token(c[0]).text, var=c[1].name, low=c[3], high=c[5], body=c[7],  # type: ignore[arg-type]
            span=_span(c),
        )  # fmt: skip

    def if_expr(self, c: Children) -> ast.IfExpr:
        return ast.IfExpr(condition=c[1], then=c[3], otherwise=c[5], span=_span(c))

    def let(self, c: Children) -> ast.Let:
        return ast.Let(name=c[1].name, value=c[3], body=c[5], span=_span(c))


CALLBACKS: dict[str, Callable[[Children], Any]] = {
    name: getattr(BuildAst(), name) for name in vars(BuildAst) if not name.startswith("_")
}


def _token(child: Any) -> Token:
    assert isinstance(child, Terminal)
    return child.token


def _is(child: Any, text: str) -> bool:
    return isinstance(child, Terminal) and child.token.text == text


def _span_of(child: Any) -> Span:
    span = child.token.span if isinstance(child, Terminal) else child.span
    assert isinstance(span, Span)
    return span


def _span(children: Sequence[Any]) -> Span:
    return _span_of(children[0]).to(_span_of(children[-1]))


def _bare_intersection(node: ast.Set) -> bool:
    """Whether the node is an ``a & b`` outside brackets: it then starts where ``a`` does."""
    return isinstance(node, ast.SetIntersection) and node.span.start == node.parts[0].span.start


def _mixed(c: Children, other: str) -> Refused:
    return _refused(
        "ATT0108", _span(c), f"`-` and `{other}` stand side by side without parentheses",
        "put parentheses around the part that comes first",
        "readers disagree on which comes first, and the sets can differ",
    )  # fmt: skip


def _clauses(c: Children) -> tuple[ast.Clause, ...]:
    """Return the clauses of a route or a tune. Raises: Refused where one is given twice."""
    clauses = tuple(x for x in c if isinstance(x, ast.Clause))
    seen: set[str] = set()
    for clause in clauses:
        if clause.name in seen:
            raise _twice(clause.name, clause.span)
        seen.add(clause.name)
    return clauses


def _twice(name: str, span: Span) -> Refused:
    return _refused("ATT0116", span, f"`{name}` is given twice", "remove one of the two")


def _refused(code: str, span: Span, message: str, fix: str, *notes: str) -> Refused:
    return Refused(Diagnostic(code=code, message=message, span=span, help=fix, notes=notes))


def _only(c: Children, kind: type[Any], name: str) -> Any:
    """Return the one clause of a kind, or None. Raises: Refused where there are two."""
    found = [x for x in c if isinstance(x, kind)]
    if len(found) > 1:
        raise _twice(name, found[1].span)
    return found[0] if found else None


def _header(c: Children) -> dict[str, Any]:
    """Return what a pattern, a score and an attention have in common, by field."""
    params = next((x for x in c if isinstance(x, tuple)), ())
    on, heads = _only(c, ast.On, "on"), _only(c, ast.Heads, "heads")
    return {
        "name": c[1].name, "params": params, "on": on, "heads": heads, "span": _span(c),
        "name_span": c[1].span,
    }  # fmt: skip


def _is_place(child: Any) -> bool:
    return isinstance(child, ast.SegmentName)
