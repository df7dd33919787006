"""Tunes: what they are of, their clauses and the values of these."""

from __future__ import annotations

from attnc.dsl import nodes as ast
from attnc.dsl import tunes
from attnc.dsl.check_route import RouteChecker
from attnc.dsl.suggest import did_you_mean


class TuneChecker(RouteChecker):
    """Checks what a file says of the choices of the compiler."""

    def tune(self, item: ast.Tune) -> None:
        """Check that a tune is of a pattern or attention of this file, and says what it can."""
        own = (*self.module.own.patterns, *self.module.own.attentions)
        if item.name not in own:
            sort = self.module.sort(item.name)
            named = f"`{item.name}` is a {sort}" if sort else f"there is no pattern `{item.name}`"
            if sort in ("pattern", "attention"):
                named = f"`{item.name}` is defined in another file"
            self.error(
                "ATT0340", f"{named}, and a tune is of a pattern or attention of its own file",
                item.name_span, help=did_you_mean(item.name, own) or "name one that stands here",
            )  # fmt: skip
        for clause in item.clauses:
            if clause.name not in tunes.EXPECTED:
                every = ", ".join(f"`{name}`" for name in tunes.EXPECTED)
                self.error(
                    "ATT0340", f"a tune has no clause `{clause.name}`", clause.name_span,
                    help=did_you_mean(clause.name, tunes.EXPECTED) or f"the clauses are {every}",
                )  # fmt: skip
            elif tunes.read(clause) is None:
                self.error(
                    "ATT0340", f"`{clause.name}` cannot be this", clause.value.span,
                    help=f"write {tunes.EXPECTED[clause.name]}",
                )  # fmt: skip
