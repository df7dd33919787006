"""The diagnostics 02xx (names) and 03xx (types, bounds, and what a set keeps)."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

NAME_CODES: tuple[Code, ...] = (
    Code(
        "ATT0201", "an unknown name in an expression",
        "No parameter, coordinate, length or bound variable has this name.",
        "A set sees the coordinates that it binds, the parameters of its pattern and of the file, "
        "and the lengths `n`, `nq` and `nk`.",
        "pattern p = { q -> k : q - k < windw }",
        "param window: int = 8\npattern p = { q -> k : q - k < window }",
    ),
    Code(
        "ATT0202", "an unknown pattern",
        "Neither the file, nor its imports, nor the library defines a pattern of this name.",
        "Patterns are looked up in this order; `attnc zoo` lists the library.",
        "pattern p = casual",
        "pattern p = causal",
    ),
    Code(
        "ATT0203", "a name with two meanings",
        "Two patterns, parameters, choices or coordinates of one scope share a name.",
        "The later one would silently win.",
        "pattern p = causal\npattern p = sink",
        "pattern p = causal\npattern p2 = sink",
    ),
    Code(
        "ATT0204", "a pattern that uses itself",
        "The definition of the pattern leads back to the pattern.",
        "A set is a formula that is written out when it is compiled; this one would never end.",
        "pattern p = causal | p",
        "pattern p = causal | sink",
    ),
    Code(
        "ATT0205", "an import that does not work",
        "The file cannot be read, has errors, imports itself, or lacks the pattern.",
        "Paths in `import` are relative to the importing file.",
        'import band from "missing.attn"\npattern p = band',
        "pattern p = { q -> k : 0 <= q - k < 8 }",
    ),
    Code(
        "ATT0206", "an argument with an unknown or repeated name",
        "The pattern has no parameter of this name, or gets it twice.",
        "Parameters are declared after the name of the pattern, or by `param` for the whole file.",
        "pattern p = sliding_window(windw: 8)",
        "pattern p = { q -> k : 0 <= q - k < 8 }",
    ),
    Code(
        "ATT0207", "a parameter without a value",
        "The parameter has no default, and no value is given.",
        "Parameters are compile-time values; a pattern is compiled when all of them are known.",
        "pattern band(w: int) = { q -> k : abs(q - k) < w }\npattern p = band",
        "pattern band(w: int) = { q -> k : abs(q - k) < w }\npattern p = band(8)",
    ),
    Code(
        "ATT0208", "an unknown function",
        "The language has no function of this name.",
        "The functions are abs, min, max, clamp, floor, ceil, is_pow2, bit_length and len.",
        "pattern p = { q -> k : absolute(q - k) < 8 }",
        "pattern p = { q -> k : abs(q - k) < 8 }",
    ),
    Code(
        "ATT0209", "a head without a number of heads",
        "The set binds a head, and nothing says how many heads there are.",
        "The number of heads is part of the pattern: formulas count with it, and tables have it as "
        "their length.",
        "pattern p = { q -> k, h : (q + h) mod 4 == 0 }",
        "pattern p heads h: 8 = { q -> k, h : (q + h) mod 4 == 0 }",
    ),
    Code(
        "ATT0210", "a parameter that nothing uses",
        "The value of the parameter does not change the pattern.",
        "Mostly a formula lacks it; whoever sets it expects an effect.",
        "pattern p(w: int = 8) = causal",
        "pattern p(w: int = 8) = { q -> k : 0 <= q - k < w }",
    ),
)

TYPE_CODES: tuple[Code, ...] = (
    Code(
        "ATT0301", "a value of the wrong type",
        "A value of one type stands where another is needed.",
        "Types are int, bool, rational, lists of these, and `one of` a few words; an int is also a "
        "rational, and nothing else converts.",
        "pattern p = { q -> k : q - k }",
        "pattern p = { q -> k : q - k == 0 }",
    ),
    Code(
        "ATT0302", "a wrong number of arguments",
        "A function or a pattern is called with too many or too few arguments.",
        "Arguments without a name fill the parameters in their order.",
        "pattern p = { q -> k : abs(q, k) < 8 }",
        "pattern p = { q -> k : abs(q - k) < 8 }",
    ),
    Code(
        "ATT0303", "a value outside its bounds",
        "The value of a parameter is outside the range it was declared with, or a number of heads "
        "is not possible.",
        "Ranges include both ends.",
        "param w: int in 1..64 = 0\npattern p = { q -> k : 0 <= q - k < w }",
        "param w: int in 1..64 = 8\npattern p = { q -> k : 0 <= q - k < w }",
    ),
    Code(
        "ATT0304", "a formula that is not linear",
        "Positions or lengths are multiplied with each other, or are in a divisor or an exponent.",
        "The compiler is exact because patterns are integer linear arithmetic; a product of two "
        "positions is outside of it.",
        "pattern p = { q -> k : q * k < 64 }",
        "pattern p = { q -> k : 4 * q + k < 64 }",
    ),
    Code(
        "ATT0306", "a value that must be known at compile time",
        "The value depends on positions, lengths or heads, where only parameters and numbers can "
        "stand.",
        "List items, numbers of heads and choices of sets are fixed when the pattern is compiled.",
        "param rates: list[int] = [1, 2]\npattern p = { q -> k : q - k == rates[q] }",
        "param rates: list[int] = [1, 2]\npattern p heads h: 2 = { q -> k, h : q - k == rates[h] }",
    ),
    Code(
        "ATT0307", "arithmetic that has no result",
        "Division by zero, a modulus below 1, a negative exponent, or the bit length of a negative "
        "number.",
        "Usually a parameter has a value that was not thought of: a range excludes it.",
        "param stride: int = 0\npattern p = { q -> k : (q - k) mod stride == 0 }",
        "param stride: int in 1.. = 4\npattern p = { q -> k : (q - k) mod stride == 0 }",
    ),
    Code(
        "ATT0308", "a list item that does not exist",
        "The index is outside the list, or the list is empty.",
        "Items count from 0, and negative indices do not count from the end.",
        "param rates: list[int] = [1, 2]\npattern p = { q -> k : q - k == rates[2] }",
        "param rates: list[int] = [1, 2]\npattern p = { q -> k : q - k == rates[1] }",
    ),
    Code(
        "ATT0309", "numbers of heads that differ",
        "Two patterns with different numbers of heads are combined.",
        "The combination has one mask per head, so both need the same heads; a pattern without "
        "heads fits any.",
        "pattern a heads h: 2 = { q -> k, h : k == h }\n"
        "pattern b heads h: 3 = { q -> k, h : k == h }\npattern p = a | b",
        "pattern a heads h: 3 = { q -> k, h : k == h }\n"
        "pattern b heads h: 3 = { q -> k, h : k == h }\npattern p = a | b",
    ),
    Code(
        "ATT0310", "a quantifier over too many values",
        "The range of an `exists` or `forall` has to be written out, and is too long for that.",
        "A quantifier whose body is linear in its variable is kept as it is; otherwise each value "
        "becomes a part of the formula.",
        "pattern p = { q -> k : exists e in 0..100000 : q - k == e * e }",
        "pattern p = { q -> k : exists e in 0..100 : q - k == e * e }",
    ),
    Code(
        "ATT0311", "a number that is too large",
        "A number, or a value at positions up to 2**31, does not fit 64 bits.",
        "Kernels compute with 64-bit integers, and the compiler proves that nothing overflows.",
        "pattern p = { q -> k : q - k < 2**200 }",
        "pattern p = { q -> k : q - k < 2**40 }",
    ),
    Code(
        "ATT0312", "a pattern that is too large",
        "Written out, without quantifiers over lists and without references, the formula has too "
        "many parts.",
        "A `let` that is used twice counts twice, and so does a pattern.",
        "pattern p = { q -> k :\n"
        "    exists a in 1..4000 : exists b in 1..4000 : q - k == a * a * b * b }",
        "pattern p = { q -> k : exists a in 1..60 : q - k == a * a }",
    ),
    Code(
        "ATT0320", "a pattern that keeps nothing",
        "At every length, no query sees any key.",
        "Its conditions exclude each other; the output of the op would be 0 everywhere.",
        "pattern p = { q -> k : q < k and k < q }",
        "pattern p = { q -> k : q < k or k < q }",
    ),
    Code(
        "ATT0321", "queries that see no key",
        "The pattern keeps pairs, but some query has none, at the length that is shown.",
        "The output of such a query is 0 and its log-sum-exp is -inf. That may be meant: it is a "
        "warning.",
        "pattern p = { q -> k : k < q }",
        "pattern p = { q -> k : k <= q }",
    ),
)
