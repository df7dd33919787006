"""Grammar rules -> AST nodes, called by the LALR parser as it reduces (so without recursion).

Every method gets the children of its rule, literal tokens included, for their spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

from attnc.dsl import nodes as ast
from attnc.dsl.diagnostics import Diagnostic
from attnc.dsl.limits import MixedOperators
from attnc.dsl.scanner import Token
from attnc.dsl.source import Span

# A longer chain of + and - becomes a balanced tree, so that a sum of thousands of terms is not
# thousands of levels deep. Shorter ones keep the left-to-right shape that was written. Blocks are
# so much smaller that the left edge of a balanced tree, printed and read again, is a short chain.
LEFT_DEEP_TERMS = 32
BLOCK_TERMS = 8

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
        params: tuple[ast.Param, ...] = next((x for x in c if isinstance(x, tuple)), ())
        heads = next((x for x in c if isinstance(x, ast.Heads)), None)
        return ast.PatternDef(
            name=c[1].name, params=params, heads=heads, body=c[-1], span=_span(c),
            name_span=c[1].span,
        )  # fmt: skip

    def parameters(self, c: Children) -> tuple[ast.Param, ...]:
        return tuple(x for x in c if isinstance(x, ast.Param))

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

    def heads(self, c: Children) -> ast.Heads:
        return ast.Heads(var=c[1].name, count=c[3], span=_span(c))

    def range_closed(self, c: Children) -> Range:
        return Range(c[0], c[2], _span(c))

    def range_from(self, c: Children) -> Range:
        return Range(c[0], None, _span(c))

    def range_to(self, c: Children) -> Range:
        return Range(None, c[1], _span(c))

    def scalar(self, c: Children) -> ast.Type:
        return ast.Type(kind=_token(c[0]).text, span=_span(c))  # type: ignore[arg-type]

    def list_type(self, c: Children) -> ast.Type:
        return ast.Type(kind="list", item=c[2], span=_span(c))

    def enum_type(self, c: Children) -> ast.Type:
        choices = tuple(x.name for x in c if isinstance(x, ast.Name))
        return ast.Type(kind="enum", choices=choices, span=_span(c))

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
        head = c[5].name if len(c) == 9 else None
        return ast.Builder(
            query=c[1].name, key=c[3].name, head=head, predicate=c[-2], span=_span(c)
        )

    def set_if(self, c: Children) -> ast.SetIf:
        return ast.SetIf(condition=c[1], then=c[3], otherwise=c[5], span=_span(c))

    def reference(self, c: Children) -> ast.Reference:
        args = next((x for x in c if isinstance(x, tuple)), ())
        return ast.Reference(name=c[0].name, args=args, span=_span(c), name_span=c[0].span)

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

    def compare_sign(self, c: Children) -> str:
        return "not in" if len(c) == 2 else _token(c[0]).text

    def sum(self, c: Children) -> ast.Expr:
        return _balanced(c) if len(c) > 2 * LEFT_DEEP_TERMS else _left_deep(c)

    def product(self, c: Children) -> ast.Expr:
        return _left_deep(c)

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

    def call(self, c: Children) -> ast.Call:
        return ast.Call(
            function=c[0].name, args=tuple(c[2:-1:2]), span=_span(c), name_span=c[0].span
        )

    def list_of(self, c: Children) -> ast.ListOf:
        return ast.ListOf(items=tuple(c[1:-1:2]), span=_span(c))

    def quantifier(self, c: Children) -> ast.Quantifier:
        return ast.Quantifier(
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


def _left_deep(c: Children) -> ast.Expr:
    left: ast.Expr = c[0]
    for sign, right in zip(c[1::2], c[2::2], strict=True):
        span = left.span.to(right.span)
        left = ast.Binary(op=_token(sign).text, left=left, right=right, span=span)  # type: ignore[arg-type]
    return left


def _balanced(c: Children) -> ast.Expr:
    """Return the same sum as a tree of logarithmic depth.

    a - b + c - d  -->  (a - b) + (c - d)
    """
    terms: list[ast.Expr] = c[::2]
    minus = [False, *(_token(sign).text == "-" for sign in c[1::2])]

    def build(start: int, stop: int, flip: bool) -> ast.Expr:
        # The sum of terms[start:stop] where the first counts as plus; flip: the signs are turned.
        if stop - start <= BLOCK_TERMS:
            left = terms[start]
            for i in range(start + 1, stop):
                op: Any = "-" if minus[i] != flip else "+"
                span = left.span.to(terms[i].span)
                left = ast.Binary(op=op, left=left, right=terms[i], span=span)
            return left
        middle = (start + stop) // 2
        first, turned = build(start, middle, flip), minus[middle] != flip
        second = build(middle, stop, minus[middle])
        return ast.Binary(
            op="-" if turned else "+", left=first, right=second, span=first.span.to(second.span)
        )

    return build(0, len(terms), False)


def _bare_intersection(node: ast.Set) -> bool:
    """Whether the node is an ``a & b`` outside brackets: it then starts where ``a`` does."""
    return isinstance(node, ast.SetIntersection) and node.span.start == node.parts[0].span.start


def _mixed(c: Children, other: str) -> MixedOperators:
    return MixedOperators(
        Diagnostic(
            code="ATT0108", span=_span(c),
            message=f"`-` and `{other}` stand side by side without parentheses",
            notes=("readers disagree on which comes first, and the sets can differ",),
            help="put parentheses around the part that comes first",
        )
    )
