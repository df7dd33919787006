"""The diagnostics 02xx: names, and 03xx: types, values, and what the sets come to."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

NAME_CODES: tuple[Code, ...] = (
    Code(
        "ATT0201", "an unknown name",
        "An expression uses a name that is no parameter, coordinate, length or bound variable.",
        "In scope are: the lengths `n`, `nk` (keys) and `nq` (queries), the parameters of the file "
        "and of the pattern, the names that `{ q -> k, h : ... }` binds, and those of `let`, "
        "`exists` and `forall`. The choices of an enum are known beside a value of that enum only.",
        "pattern p(width: int = 8) = { q -> k : q - k < widht }",
        "pattern p(width: int = 8) = { q -> k : q - k < width }",
    ),
    Code(
        "ATT0202", "an unknown pattern",
        "A reference, `--pattern` or a zoo name means a pattern that does not exist.",
        "A name is looked up in the file, then in its imports, then in the standard library.",
        "pattern p = casual & { q -> k : q - k < 8 }",
        "pattern p = causal & { q -> k : q - k < 8 }",
    ),
    Code(
        "ATT0203", "one name for two things",
        "Two patterns, parameters, coordinates, choices or `heads` lines share a name.",
        "A reader could not tell which is meant. A pattern of the standard library may be defined "
        "anew: yours is then the one that the file means.",
        "pattern p(w: int = 1, w: int = 2) = { q -> k : q - k < w }",
        "pattern p(w: int = 1, v: int = 2) = { q -> k : v <= q - k < w }",
    ),
    Code(
        "ATT0204", "a pattern that uses itself",
        "A pattern's set refers to the pattern, directly or through others.",
        "A pattern is a set, not a procedure; there is nothing to start from.",
        "pattern causal = causal & { q -> k : q - k < 8 }",
        "pattern near = causal & { q -> k : q - k < 8 }",
    ),
    Code(
        "ATT0205", "an import that fails",
        "The imported file cannot be read, lacks the pattern, or imports this file again.",
        "Paths are relative to the file that has the `import`.",
        'import window from "missing.attn"\npattern p = window',
        "pattern p = window(8)",
    ),
    Code(
        "ATT0206", "an argument without a parameter",
        "A reference or `-D` gives a value to a parameter that the pattern does not have, or twice.",
        "Arguments are given in order or by name. The parameters of another file's `param` lines "
        "can be given by name as well.",
        "pattern p = window(width: 8)",
        "pattern p = window(left: 8)",
    ),
    Code(
        "ATT0207", "a parameter without a value",
        "A parameter has no default and gets no value.",
        "Every parameter is a compile-time value: from a reference, from `-D`, or by default.",
        "pattern near(w: int) = { q -> k : q - k < w }\npattern p = near",
        "pattern near(w: int) = { q -> k : q - k < w }\npattern p = near(8)",
    ),
    Code(
        "ATT0208", "an unknown function",
        "An expression calls a function that the language does not have.",
        "The functions are abs, min, max, clamp, floor, ceil, is_pow2, bit_length and len.",
        "pattern p = { q -> k : absolute(q - k) < 8 }",
        "pattern p = { q -> k : abs(q - k) < 8 }",
    ),
    Code(
        "ATT0209", "a head without a head count",
        "A set binds a head, and nothing says how many heads there are.",
        "The count comes from the pattern's `heads` clause or from the file's `heads` line.",
        "pattern p = { q -> k, h : (q - k) mod (h + 1) == 0 }",
        "pattern p heads h: 8 = { q -> k, h : (q - k) mod (h + 1) == 0 }",
    ),
    Code(
        "ATT0210", "a parameter that nothing reads",
        "A warning: a parameter has no effect on any set.",
        "Changing it would change nothing, which surprises whoever tries.",
        "pattern p(w: int = 8) = { q -> k : q - k < 8 }",
        "pattern p(w: int = 8) = { q -> k : q - k < w }",
    ),
)

TYPE_CODES: tuple[Code, ...] = (
    Code(
        "ATT0301", "a value of another type",
        "A number stands where a truth value is needed, a rational where an integer is, and so on.",
        "Types are int, bool, rational, lists of these, and enums. An int is a rational; nothing "
        "else turns into another type by itself.",
        "pattern p = { q -> k : q - k }",
        "pattern p = { q -> k : q - k == 0 }",
    ),
    Code(
        "ATT0302", "the wrong number of arguments",
        "A function or a pattern gets more or fewer arguments than it takes.",
        "Too many arguments would be ignored, too few would be guessed; neither happens.",
        "pattern p = { q -> k : abs(q, k) < 8 }",
        "pattern p = { q -> k : abs(q - k) < 8 }",
    ),
    Code(
        "ATT0303", "a value outside its range",
        "A parameter's value is outside the range it is declared with, or a head count is not "
        "between 1 and 4096.",
        "The range says for which values the formula means what the author meant.",
        "pattern p = window(-1)",
        "pattern p = window(1)",
    ),
    Code(
        "ATT0304", "not linear",
        "Two values that are known only at run time are multiplied, divided, or raised.",
        "The compiler describes a pattern by integer linear arithmetic, which is exact and "
        "symbolic in the lengths. Positions and lengths may be added, compared, multiplied by "
        "compile-time values, and taken `div` and `mod` of those.",
        "pattern p = { q -> k : q mod (k + 1) == 0 }",
        "pattern p = { q -> k : q mod 8 == 0 }",
    ),
    Code(
        "ATT0306", "a value that must be known at compile time",
        "A default, a bound, a head count, an argument of a pattern, a list index, or a condition "
        "between sets depends on positions, lengths or heads.",
        "These decide what is compiled, before there are positions.",
        "pattern p = window(n div 8)",
        "pattern p = { q -> k : 0 <= q - k <= n div 8 }",
    ),
    Code(
        "ATT0307", "arithmetic that has no value",
        "A division by zero, a modulus below 1, a negative exponent, or a negative bit length.",
        "`div` and `mod` floor: `x mod m` lies in 0..m - 1, which needs `m` to be 1 or more.",
        "pattern p(w: int = 0) = { q -> k : q div w == k div w }",
        "pattern p(w: int in 1.. = 8) = { q -> k : q div w == k div w }",
    ),
    Code(
        "ATT0308", "a list item that is not there",
        "An index is negative or past the last item, or a list without items is asked for one.",
        "Items count from 0 to `len(items) - 1`.",
        "pattern p(r: list[int] = [1, 2]) = { q -> k : q - k < r[2] }",
        "pattern p(r: list[int] = [1, 2]) = { q -> k : q - k < r[1] }",
    ),
    Code(
        "ATT0309", "head counts that differ",
        "Sets with different numbers of heads meet in one pattern.",
        "A mask has one head axis. A pattern of one head serves any number.",
        "pattern a heads h: 2 = { q -> k, h : q mod 2 == h }\n"
        "pattern b heads h: 4 = { q -> k, h : k mod 4 == h }\npattern p = a | b",
        "pattern a heads h: 4 = { q -> k, h : q mod 4 == h }\n"
        "pattern b heads h: 4 = { q -> k, h : k mod 4 == h }\npattern p = a | b",
    ),
    Code(
        "ATT0310", "a quantifier over too many values",
        "A range with constant ends has over 65536 values, or over 4096 where the variable is not "
        "used linearly and each value becomes a case of its own.",
        "Long ranges are better said by `div` and `mod`: some e with q == 8 e is `q mod 8 == 0`.",
        "pattern p = { q -> k : exists e in 0..1000000 : q == 8 * e }",
        "pattern p = { q -> k : q mod 8 == 0 }",
    ),
    Code(
        "ATT0311", "a number that is too large",
        "A constant has over 4096 binary digits, or a run-time value could exceed 64 bits.",
        "Kernels compute in 64 bits. Positions and lengths are taken to be below 2**31.",
        "pattern p = { q -> k : q < 2**70 }",
        "pattern p = { q -> k : q < 2**31 }",
    ),
    Code(
        "ATT0312", "a pattern that is too large",
        "Written out, with references expanded and quantifiers unrolled, the pattern is huge, or "
        "patterns use each other more than 64 deep.",
        "A `let` or a pattern that is used twice counts twice, so doubling adds up fast.",
        "pattern p = { q -> k : exists a in 0..999 : exists b in 0..999 : q * a == k * b + 2**a }",
        "pattern p = { q -> k : exists a in 0..20 : q == k + 2**a }",
    ),
    Code(
        "ATT0320", "a pattern that keeps nothing",
        "A warning: no query sees any key, at any length.",
        "Its conditions exclude each other. The op would return zeros.",
        "pattern p = { q -> k : k < q and q < k }",
        "pattern p = { q -> k : k < q or q < k }",
    ),
    Code(
        "ATT0321", "queries that see no key",
        "A warning: at some length, some query has no key. The diagnostic names one.",
        "The output of such a query is 0, its lse -inf and its gradients 0. This is legal and "
        "often an oversight, as with `k < q`, where query 0 has nothing before it.",
        "pattern p = { q -> k : k < q }",
        "pattern p = { q -> k : k <= q }",
    ),
)
