"""The diagnostics 033x: routes, and sums of attentions."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

ROUTE_CODES: tuple[Code, ...] = (
    Code(
        "ATT0330", "a clause or a word that a route does not know",
        "A route is made of clauses, `name: value`, and each clause has words of its own.",
        "docs/language.md lists them: queries, keys, query, key, score, visible, norm, reduce, "
        "compete, select, keep, widen, emit, capacity, overflow, combine, grad, refresh, causal.",
        "route r = { queries: token, keys: blocks(64), key: mean, select: top(4) }\n"
        "pattern p = causal & r",
        "route r = { queries: token, keys: block(64), key: mean, select: top(4) }\n"
        "pattern p = causal & r",
    ),
    Code(
        "ATT0331", "a route that leaves out what it must say",
        "A route says at least what chooses (`queries`), what is chosen (`keys`) and how many "
        "(`select`).",
        "All other clauses have a meaning when they are left out: scores are products of tokens, "
        "every key is visible, nothing is kept.",
        "route r = { queries: token, keys: block(64), key: mean }\npattern p = causal & r",
        "route r = { queries: token, keys: block(64), key: mean, select: top(4) }\n"
        "pattern p = causal & r",
    ),
    Code(
        "ATT0332", "a route where only sets can stand",
        "What a route selects is known at the call, so a set that holds one has one form: a set "
        "that all pairs meet, and in it what is always attended, and routes.",
        "Selected and kept pairs must be told apart before the call, so that none counts twice.",
        "route r = { queries: token, keys: block(64), key: mean, select: top(4) }\n"
        "pattern p = causal - r",
        "route r = { queries: token, keys: block(64), key: mean, select: top(4) }\n"
        "pattern p = causal & (window(64) | r)",
    ),
    Code(
        "ATT0333", "parts of a route, or of a sum of attentions, that do not go together",
        "Each clause of a route is fine by itself, but two of them contradict each other, or a "
        "term of a sum is no gate times attention.",
        "Scores must have the grain of what is selected, or be reduced to it; a mass needs scores "
        "that are not negative.",
        "route r = { queries: token, keys: block(64), key: mean, select: mass(9/10) }\n"
        "pattern p = causal & r",
        "route r = { queries: token, keys: block(64), key: mean, norm: softmax,\n"
        "            select: mass(9/10) }\npattern p = causal & r",
    ),
    Code(
        "ATT0334", "an attention that is for inference only",
        "Which keys a query sees depends on tokens behind it, while the mask hides them.",
        "Blocks of queries that choose together look ahead inside of their block. That is fine "
        "where a prompt is read; a model trained that way would learn from what it cannot see "
        "when it generates, so calls with gradients are refused.",
        "route r = { queries: block(64), keys: block(64), query: mean, key: mean, select: top(4),\n"
        "            visible: reached }\npattern p = causal & r",
        "route r = { queries: token, keys: block(64), key: mean, select: top(4), visible: past }\n"
        "pattern p = causal & r",
    ),
    Code(
        "ATT0335", "a route that is said to be causal and is not",
        "`causal: true` states that what a query selects depends on no later token.",
        "That holds where tokens choose for themselves among past or completed keys.",
        "route r = { queries: token, keys: block(64), key: mean, select: top(4), causal: true }\n"
        "pattern p = causal & r",
        "route r = { queries: token, keys: block(64), key: mean, visible: past, select: top(4),\n"
        "            causal: true }\npattern p = causal & r",
    ),
    Code(
        "ATT0336", "a mask of what is decided by content",
        "Masks, tiles and plans are of sets of pairs; which pairs a route selects is only known "
        "once there are queries and keys.",
        "`attnc compile` and `attnc.compile` take it; the op's `select` says what was selected.",
        "route r = { queries: token, keys: block(64), key: mean, visible: past, select: top(4) }\n"
        "pattern p = causal & r",
        "pattern p = causal & window(64)",
    ),
)
