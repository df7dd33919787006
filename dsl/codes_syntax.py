"""The diagnostics 01xx: characters, words and grammar."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

SYNTAX_CODES: tuple[Code, ...] = (
    Code(
        "ATT0100", "too many syntax errors",
        "The file has over 20 syntax errors; the first 20 are shown.",
        "After that many errors the rest are mostly echoes of the first ones.",
        "a file of another language",
        "fix the errors that are shown, and check again",
    ),
    Code(
        "ATT0101", "something else was expected here",
        "The text does not follow the grammar: another word or sign must stand here.",
        "A file is a list of items (`import`, `param`, `heads`, `pattern`, `space`, `input`, `fn`, "
        "`score`, `attention`); after an error the rest of the item is skipped, and the next one "
        "is read as usual.",
        "pattern p = { q - k : k <= q }",
        "pattern p = { q -> k : k <= q }",
    ),
    Code(
        "ATT0102", "a sign that has no meaning",
        "A character or an operator does not belong to the language.",
        "The language has one spelling for each operation: `div` and `mod` (they floor, also below "
        "zero), `and`, `or`, `not`, `**`, `<=`, `!=`.",
        "pattern p = { q -> k : q // 4 == k // 4 }",
        "pattern p = { q -> k : q div 4 == k div 4 }",
    ),
    Code(
        "ATT0103", "the file is too large",
        "A file has at most 256 KB.",
        "Patterns are formulas. A file of this size is mostly a list of pairs: that is data.",
        "a file of 300 KB",
        'import part from "part.attn"\npattern p = part | sink',
    ),
    Code(
        "ATT0104", "nested too deeply",
        "Brackets, `if`, `let`, quantifiers, prefixes and `**` are nested more than 200 levels "
        "deep. Chains such as `a | b | c` or `a and b` are flat and have no such limit.",
        "Nobody can read such a formula, and the stages of the compiler follow the nesting.",
        "pattern p = { q -> k : " + "not " * 4 + "... " + "not k <= q }",
        "pattern p = { q -> k : k <= q }",
    ),
    Code(
        "ATT0105", "a number with too many digits",
        "A number has at most 64 digits.",
        "Positions and lengths fit 63 bits; no pattern needs a longer constant.",
        "param w: int = 1" + "0" * 64,
        "param w: int = 1_000_000",
    ),
    Code(
        "ATT0106", "the file is not text",
        "The file holds a NUL or another control character, or bytes that are not UTF-8.",
        "Files are UTF-8 text; a byte order mark and Windows line ends are fine.",
        "a file saved as UTF-16",
        "the same file, saved as UTF-8",
    ),
    Code(
        "ATT0108", "`-` beside `|` or `&` without parentheses",
        "The difference of sets does not mix with `|` or `&` at one level.",
        "`a | b - c` is `(a | b) - c` to one reader and `a | (b - c)` to another, and these are "
        "different sets. A mask is too costly to guess.",
        "pattern p = causal | sink - sliding_window",
        "pattern p = causal | (sink - sliding_window)",
    ),
    Code(
        "ATT0109", "a bracket without its partner",
        "A bracket is never closed, closes nothing, or closes a bracket of another kind.",
        "The parser looks for the partner within one item only.",
        "pattern p = { q -> k : (q - k < 4 }",
        "pattern p = { q -> k : (q - k) < 4 }",
    ),
    Code(
        "ATT0110", "a file name without its closing quote",
        "A text in quotes ends on the line where it starts.",
        "Only `import` uses quotes; there are no escapes in them.",
        'import band from "band.attn',
        'import band from "band.attn"',
    ),
    Code(
        "ATT0111", "no item starts with this word",
        "A file is a list of items, and an item starts with `import`, `param`, `heads`, "
        "`pattern`, `space`, `input`, `fn`, `score` or `attention`.",
        "A line that starts at the margin with two words is read as the start of an item.",
        "patern p = causal",
        "pattern p = causal",
    ),
    Code(
        "ATT0112", "a name that cannot be used",
        "Names use the letters a to z and A to Z, digits and `_`, and have at most 100 characters.",
        "Names become file names, Python names and operator names, which have this alphabet.",
        "param fen\u00eatre: int = 4\npattern p = causal",
        "param window: int = 4\npattern p = { q -> k : 0 <= q - k < window }",
    ),
    Code(
        "ATT0113", "an operator of the other kind",
        "`|`, `&`, `~` combine sets; `or`, `and`, `not` combine conditions; `==` compares, `=` "
        "gives a value.",
        "Sets and conditions look alike; two spellings keep apart what is inside the braces and "
        "what is outside.",
        "pattern p = { q -> k : k <= q & q - k < 8 }",
        "pattern p = { q -> k : k <= q and q - k < 8 }",
    ),
    Code(
        "ATT0114", "the file cannot be read",
        "The file does not exist, is a folder, or may not be read.",
        "The operating system said so; its reason stands in the message.",
        "attnc check missing.attn",
        "attnc check longformer.attn",
    ),
    Code(
        "ATT0115", "a number that is not written properly",
        "A number is decimal digits, maybe with single `_` between them, maybe with a fraction.",
        "There are no exponents, no hexadecimal digits and no units; `0.25` is exactly 1/4.",
        "param w: int = 1e5\npattern p = { q -> k : q - k < w }",
        "param w: int = 100_000\npattern p = { q -> k : q - k < w }",
    ),
    Code(
        "ATT0116", "a part that is given twice",
        "A pattern has each clause (`on`, `heads` or `kv_heads`, `layers`) at most once, and a "
        "`softmax` each of `over:`, `sink:` and `scale:`.",
        "Two spaces or two counts of heads contradict each other.",
        "pattern p heads h: 4 heads g: 8 = causal",
        "pattern p heads h: 4 = causal",
    ),
)
