"""grammar.lark -> an LALR table (by lark, kept in grammar.json), and the machine that runs it.

Building the table takes lark a third of the time that ``attnc check`` may take, so it is kept
beside the grammar. A table made from another text of the grammar is never used: it is built anew.
``python -m attnc.dsl.lalr`` writes the file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

GRAMMAR = Path(__file__).with_name("grammar.lark")
TABLE = Path(__file__).with_name("grammar.json")
END = "$END"

Callback: TypeAlias = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """A production: what it makes, from how many symbols, and which method builds the node.

    ``spliced``: the symbols that are repetitions, whose items are spliced into the children.
    ``inline``: the only symbol stands for itself.
    """

    origin: str
    length: int
    callback: str
    spliced: tuple[int, ...]
    inline: bool

    @property
    def repeats(self) -> bool:
        return self.origin.startswith("_")


@dataclass(frozen=True, slots=True)
class Table:
    """``states[s][symbol]`` is ``2 * t`` to go to state t, or ``2 * r + 1`` to reduce by rule r.

    ``starts``: for each start rule the first state and the state in which it has been read.
    ``words``: the terminal of each text that is written literally in the grammar.
    """

    checksum: int
    states: tuple[dict[str, int], ...]
    rules: tuple[Rule, ...]
    starts: dict[str, tuple[int, int]]
    words: dict[str, str]


class Rejected(Exception):
    """The token that was fed cannot stand here."""


class Machine:
    """A run of the table: tokens in, one by one, and the node of the start rule at the end."""

    def __init__(self, table: Table, start: str, callbacks: Mapping[str, Callback]) -> None:
        self.table, self.callbacks = table, callbacks
        first, self.last = table.starts[start]
        self.states = [first]
        self.values: list[Any] = []

    @property
    def choices(self) -> dict[str, int]:
        """The symbols with an action in this state (for some, a later state may still refuse)."""
        return self.table.states[self.states[-1]]

    def feed(self, terminal: str, token: Any) -> Any:
        """Take one token. Returns the finished node for ``END``, else None. Raises: Rejected."""
        table, states, values = self.table.states, self.states, self.values
        while True:
            action = table[states[-1]].get(terminal)
            if action is None:
                raise Rejected(terminal)
            if not action & 1:
                states.append(action >> 1)
                values.append(token)
                return None
            rule = self.table.rules[action >> 1]
            if rule.inline:
                states.pop()  # most steps: a level of precedence that is not used here
            else:
                children = values[len(values) - rule.length :]
                del states[len(states) - rule.length :], values[len(values) - rule.length :]
                values.append(self.build(rule, children))
            states.append(table[states[-1]][rule.origin] >> 1)
            if terminal == END and states[-1] == self.last:
                return values[-1]

    def build(self, rule: Rule, children: list[Any]) -> Any:
        if rule.spliced:
            first = children[0]
            # The list of a repetition belongs to nobody else, so the items are added in place.
            spliced = first if 0 in rule.spliced else [first]
            for i, child in enumerate(children[1:], 1):
                if i in rule.spliced:
                    spliced += child
                else:
                    spliced.append(child)
            children = spliced
        if rule.repeats:
            return children
        return self.callbacks[rule.callback](children)

    def accepts(self) -> frozenset[str]:
        """Return the terminals that can really stand here."""
        return frozenset(t for t in self.choices if not t.islower() and self._takes(t))

    def _takes(self, terminal: str) -> bool:
        table, states = self.table, list(self.states)
        while True:
            action = table.states[states[-1]].get(terminal)
            if action is None or not action & 1:
                return action is not None
            rule = table.rules[action >> 1]
            del states[len(states) - rule.length :]
            states.append(table.states[states[-1]][rule.origin] >> 1)
            if terminal == END and states[-1] == self.last:
                return True


@lru_cache(maxsize=1)
def load_table() -> Table:
    """Return the table of ``grammar.lark``: the kept one if it was made from this very text."""
    grammar = GRAMMAR.read_text(encoding="utf-8")
    if TABLE.exists():
        table = read_table(TABLE.read_text(encoding="utf-8"))
        if table.checksum == zlib.crc32(grammar.encode()):
            return table
    return build_table(grammar)


def build_table(grammar: str) -> Table:
    """Let lark compute the table, numbered in a fixed order."""
    from lark import Lark
    from lark.lexer import Lexer, PatternStr
    from lark.parsers.lalr_analysis import Shift

    class Unused(Lexer):
        """Tokens come from ``scanner.py``."""

        def __init__(self, lexer_conf: Any) -> None: ...

        def lex(self, lexer_state: Any, parser_state: Any) -> Any:
            return iter(())

    lark = Lark(
        grammar, parser="lalr", lexer=Unused, start=["item", "expr"], keep_all_tokens=True,
        maybe_placeholders=False,
    )  # fmt: skip
    raw: Any = lark.parse_interactive(start="item").parser_state.parse_conf.parse_table
    # Lark's own numbers differ from run to run, so states and rules are numbered as they are met.
    order = {raw.start_states[name]: i for i, name in enumerate(("item", "expr"))}
    states, rules = list[dict[str, int]](), dict[Rule, int]()
    queue = list(order)
    for state in queue:  # it grows while it is walked
        actions = dict[str, int]()
        for symbol, (action, target) in sorted(raw.states[state].items()):
            if action is Shift:
                if target not in order:
                    order[target] = len(order)
                    queue.append(target)
                actions[symbol] = 2 * order[target]
            else:
                actions[symbol] = 2 * rules.setdefault(_rule(target), len(rules)) + 1
        states.append(actions)
    words = {t.pattern.value: t.name for t in lark.terminals if isinstance(t.pattern, PatternStr)}
    words = dict(sorted(words.items()))
    starts = {
        name: (order[raw.start_states[name]], order[raw.end_states[name]])
        for name in ("item", "expr")
    }
    return Table(zlib.crc32(grammar.encode()), tuple(states), tuple(rules), starts, words)


def _rule(raw: Any) -> Rule:
    symbols = [symbol.name for symbol in raw.expansion]
    spliced = tuple(i for i, name in enumerate(symbols) if name.startswith("__") and name.islower())
    inline = bool(raw.options.expand1) and not raw.alias and len(symbols) == 1
    origin = str(raw.origin.name)
    return Rule(origin, len(symbols), str(raw.alias or origin), spliced, inline)


def show_table(table: Table) -> str:
    """Return the table as JSON, one state or rule a line."""
    rules = [[r.origin, r.length, r.callback, list(r.spliced), r.inline] for r in table.rules]
    parts = (
        ("checksum", json.dumps(table.checksum)),
        ("starts", json.dumps(table.starts)),
        ("words", json.dumps(table.words)),
        ("rules", "[\n" + ",\n".join(map(json.dumps, rules)) + "\n]"),
        ("states", "[\n" + ",\n".join(map(json.dumps, table.states)) + "\n]"),
    )
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in parts) + "\n}\n"


def read_table(text: str) -> Table:
    """Read what ``show_table`` wrote."""
    data = json.loads(text)
    rules = tuple(Rule(o, n, name, tuple(at), inline) for o, n, name, at, inline in data["rules"])
    starts = {name: (first, last) for name, (first, last) in data["starts"].items()}
    return Table(data["checksum"], tuple(data["states"]), rules, starts, data["words"])


if __name__ == "__main__":
    TABLE.write_text(show_table(build_table(GRAMMAR.read_text(encoding="utf-8"))), encoding="utf-8")
