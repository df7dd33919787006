"""Diagnostic codes of the ``attnc`` command: 05xx what was asked for, 09xx bugs."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

COMMAND_CODES = (
    Code(
        "ATT0503", "neither a file nor a zoo pattern",
        "The word after the verb is a path, or the name of a pattern that comes with attnc.",
        "There is no such file, and the zoo has no pattern of this name. A path wins over a name.",
        "attnc mask longfomer --shape n=64",
        "attnc mask longformer --shape n=64",
    ),
    Code(
        "ATT0504", "`--pattern` beside a zoo name",
        "`--pattern` chooses among the patterns of a file; a zoo name is a pattern already.",
        "Guessing which of the two names counts would run another pattern than the one meant.",
        "attnc mask longformer --pattern causal --shape n=64",
        "attnc mask causal --shape n=64",
    ),
    Code(
        "ATT0505", "another number of heads than the pattern's",
        "A pattern with a `heads` clause holds one mask for each of its heads.",
        "An op of such a pattern takes exactly that many query heads.",
        "attnc mask s2.attn --heads 5 --shape n=64      # heads h: 12",
        "attnc mask s2.attn --shape n=64",
    ),
    Code(
        "ATT0506", "a dense mask that is too large",
        "`attnc mask` expands the whole mask, one byte for each pair of tokens, up to 4 GiB.",
        "At long lengths the tiles say the same in far less room.",
        "attnc mask causal --shape n=1000000 -o mask.npy",
        "attnc emit causal --stage blocks --shape n=1000000",
    ),
    Code(
        "ATT0507", "torch or triton is not installed",
        "Compiling to an op, running it, ptx and sass need torch; ptx and sass need triton as well.",
        "The core of attnc installs without them, so that patterns can be checked anywhere.",
        "attnc compile causal",
        'pip install "attnc[torch]"',
    ),
    Code(
        "ATT0901", "attnc broke",
        "An error that attnc should have foreseen reached the top of the program.",
        "It is a bug in attnc, whatever the file says: a wrong file has its own diagnostics.",
        "error[ATT0901]: attnc broke: KeyError: 'q'",
        "report it, with the file, the command and the text of the error",
    ),
)  # fmt: skip
