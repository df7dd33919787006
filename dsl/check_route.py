"""Routes and gated sums: their clauses, words and arguments, and what goes with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attnc.dsl import nodes as ast
from attnc.dsl import routes
from attnc.dsl.check_base import Scope
from attnc.dsl.check_pairs import PairChecker
from attnc.dsl.kinds import INT, RATIONAL
from attnc.dsl.resolve import Named
from attnc.dsl.source import Span
from attnc.dsl.suggest import did_you_mean


class RouteChecker(PairChecker):
    """Checks routes, sets that hold some, and sums of attentions."""

    # -------------------------------------------------------------------------------- clauses

    def route(self, item: ast.Route, scope: Scope) -> None:
        """Check that each clause is one, with words and arguments that it may have."""
        said = {clause.name: clause for clause in item.clauses}
        for clause in item.clauses:
            self.clause(clause, scope)
        for name in routes.NEEDED:
            if name not in said:
                words = ", ".join(f"`{w}`" for w in routes.WORDS[name])
                self.error(
                    "ATT0331", f"the route `{item.name}` has no `{name}`", item.name_span,
                    help=f"say it with one of {words}",
                )  # fmt: skip

    def clause(self, clause: ast.Clause, scope: Scope) -> None:
        name, value = clause.name, clause.value
        if name in routes.WORDS:
            if name == "score":
                value, _, factor = routes.factored(value)
                if factor is not None:
                    self.known(factor, self.need(factor, scope, RATIONAL), "the factor of a score")
            self.word(value, routes.WORDS[name], name, scope)
        elif name in routes.NUMBERS:
            self.known(value, self.need(value, scope, INT), f"`{name}`")
        elif name == "capacity":
            held = routes.form(value)
            if held is not None and held.name == "share" and len(held.args) == 1:
                self.known(held.args[0], self.need(held.args[0], scope, RATIONAL), "a capacity")
            else:
                self.known(value, self.need(value, scope, INT), "a capacity")
        elif name == "causal":
            if not isinstance(value, ast.Bool):
                self.wrong(value.span, "`causal` is `true` or `false`", "write one of them")
        elif name == "reduce":
            for part in routes.parts(value):
                self.nested(part, ("sum", "mean", "max"), routes.OVER, name, scope, 1)
        elif name == "keep":
            for part in routes.parts(value):
                self.nested(part, ("counted", "extra"), routes.KEPT, name, scope, None)
        else:
            hint = did_you_mean(name, routes.CLAUSES)
            every = ", ".join(f"`{c}`" for c in routes.CLAUSES)
            self.error(
                "ATT0330", f"a route has no clause `{name}`", clause.name_span,
                help=hint or f"the clauses are {every}",
            )  # fmt: skip

    def nested(
        self, expr: ast.Expr, outer: tuple[str, ...], inner: Mapping[str, routes.Shape], name: str,
        scope: Scope, count: int | None,
    ) -> None:  # fmt: skip
        """Check ``sum(cell)``, ``counted(own, first(1))``."""
        held = routes.form(expr)
        listed = " or ".join(f"`{word}(...)`" for word in outer)
        if held is None or held.name not in outer or held.named or not held.args:
            if name == "keep" and held is not None and held.name in inner:
                self.wrong(
                    expr.span, "it is not said whether what is kept takes up the budget",
                    f"write `counted({held.name})` if it does, `extra({held.name})` if not",
                )  # fmt: skip
                return
            self.wrong(expr.span, f"`{name}` is made of {listed}", f"write {listed}")
            return
        if count is not None and len(held.args) != count:
            self.wrong(expr.span, f"`{held.name}` takes one word here", "write several in a list")
            return
        for arg in held.args:
            self.word(arg, inner, name, scope)

    def word(
        self, expr: ast.Expr, words: Mapping[str, routes.Shape], name: str, scope: Scope
    ) -> None:
        """Check a word of a clause with its arguments."""
        held = routes.form(expr)
        listed = ", ".join(f"`{word}`" for word in words)
        if held is None or held.name not in words:
            shown = f"`{held.name}`" if held is not None else "this"
            hint = did_you_mean(held.name, words) if held is not None else ""
            self.wrong(
                expr.span, f"{shown} is no word of the clause `{name}`",
                hint or f"write one of {listed}",
            )  # fmt: skip
            return
        shape = words[held.name]
        kinds = list(shape.kinds)
        if shape.more and len(held.args) > len(kinds):
            kinds += [kinds[-1]] * (len(held.args) - len(kinds))
        if len(held.args) != len(kinds):
            self.wrong(
                held.span, f"`{held.name}` takes {len(kinds)} argument{'s' * (len(kinds) != 1)}, "
                f"not {len(held.args)}", "see `attnc explain ATT0330`",
            )  # fmt: skip
            return
        optional = dict(shape.named)
        given = [*zip(kinds, held.args, strict=True)]
        for label, value in held.named:
            if label not in optional:
                self.wrong(value.span, f"`{held.name}` has no argument `{label}`", "remove it")
                continue
            given.append((optional[label], value))
        for kind, value in given:
            if kind == "input":
                if not isinstance(value, ast.Name) or value.name in scope:
                    self.wrong(
                        value.span, f"`{held.name}` names an input of the op",
                        "write a name that nothing else has: the op takes a tensor of that name",
                    )  # fmt: skip
            else:
                wanted = INT if kind == "int" else RATIONAL
                self.known(value, self.need(value, scope, wanted), f"what `{held.name}` takes")

    def wrong(self, span: Span, message: str, help: str) -> None:
        self.error("ATT0330", message, span, help=help)

    # ----------------------------------------------------------------------- sets with routes

    def routed(self, body: ast.Set, scope: Scope) -> None:
        """Check a set that may hold routes."""
        try:
            found = routes.split(body, self.module.is_route)
        except routes.Misplaced as misplaced:
            d = misplaced.diagnostic
            self.error(d.code, d.message, d.span, label=d.label, help=d.help)
            return
        if found is None:
            self.pairs(body, scope)
            return
        for part in (*found.base, *found.kept):
            self.pairs(part, scope)
        for reference in found.routes:
            target = self.module.find_route(reference.name)
            assert target is not None
            args = tuple((a.name, a.value, a.span) for a in reference.args)
            self.given(reference.name, args, reference.span, target, scope)

    # --------------------------------------------------------------------------- gated sums

    def combine(self, item: ast.Combine, scope: Scope) -> None:
        """Check ``gate * attention + other_gate * on_stream(attention, keys)``."""
        terms = routes.terms(item.body)
        for expr in terms:
            factors = routes.factors(expr)
            attentions = [f for f in factors if self.attends(f)]
            for factor in attentions:
                self.term(factor, scope)
            gates = [f for f in factors if f not in attentions]
            if len(attentions) != 1 or len(gates) > 1:
                self.error(
                    "ATT0333", "a term of a sum of attentions is `gate * attention`", expr.span,
                    label=f"{len(attentions)} attentions and {len(gates)} gates",
                    help="name one attention or pattern in it, and at most one gate, an input "
                    "of the op",
                )  # fmt: skip
                continue
            for gate in gates:
                if not isinstance(gate, ast.Name) or gate.name in scope:
                    self.error(
                        "ATT0333", "a gate is the name of an input of the op", gate.span,
                        help="write a name that nothing else has",
                    )  # fmt: skip

    def term(self, factor: ast.Expr, scope: Scope) -> None:
        """Check the arguments of an attention in a sum, and the name of its key stream."""
        held = routes.form(factor)
        assert held is not None
        if held.name == "over_keys":
            stream = held.args[1]
            if not isinstance(stream, ast.Name) or stream.name in scope:
                self.error(
                    "ATT0333", "a stream of keys has a name", stream.span,
                    help="write a name: the op takes `name_k` and `name_v`",
                )  # fmt: skip
            self.term(held.args[0], scope)
            return
        target: Named[Any] | None = self.module.find(held.name)
        target = target or self.module.find_attention(held.name)
        assert target is not None
        args = [(None, value, value.span) for value in held.args]
        named = [(name, value, value.span) for name, value in held.named]
        self.given(held.name, (*args, *named), held.span, target, scope)

    def attends(self, expr: ast.Expr) -> bool:
        """Whether a factor of a term is an attention or a pattern."""
        held = routes.form(expr)
        if held is None:
            return False
        if held.name == "over_keys" and len(held.args) == 2:
            return self.attends(held.args[0])
        return self.module.sort(held.name) in ("attention", "pattern")
