"""The diagnostics 03xx: types, bounds, units, and what a set keeps."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

TYPE_CODES: tuple[Code, ...] = (
    Code(
        "ATT0301", "a value of the wrong type",
        "A value of one type stands where another is needed.",
        "Types are int, bool, rational, real, pattern, lists of these, and `one of` some words; an "
        "int is also a rational, both are also real, and nothing else converts.",
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
        "ATT0304", "a formula that no kernel computes exactly",
        "In a set of pairs, the divisor of `/` or the exponent of `**` is known only at run time.",
        "Sets are integer arithmetic. Products, `div` and `mod` of run-time values are possible, "
        "if not linear (ATT0410); quotients and powers of them are not integers.",
        "pattern p = { q -> k : q / (k + 1) < 2 }",
        "pattern p = { q -> k : q < 2 * (k + 1) }",
    ),
    Code(
        "ATT0306", "a value that must be known at compile time",
        "The value depends on positions, lengths or heads, where only parameters and numbers can "
        "stand.",
        "Lists, arguments of patterns, numbers of heads, ranges of `sum`, `count` and `for`, and "
        "choices of sets are fixed when the pattern is compiled.",
        "pattern p = { q -> k : k < (sum i in 0..q : i) }",
        "pattern p(w: int = 8) = { q -> k : k < (sum i in 0..w : i) }",
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
        "pattern a heads h: 2 = { q -> k, h : k mod 4 == h }\n"
        "pattern b heads h: 3 = { q -> k, h : k mod 4 == h }\npattern p = a | b",
        "pattern a heads h: 3 = { q -> k, h : k mod 4 == h }\n"
        "pattern b heads h: 3 = { q -> k, h : k mod 4 == h }\npattern p = a | b",
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
        "ATT0313", "a real number at run time, outside of a score",
        "A set of pairs computes with a real number that depends on positions or inputs.",
        "Whether a pair is kept is exact; real arithmetic rounds, each device in its own way. Real "
        "numbers may be computed from parameters, and rounded to ints; scores may use them freely.",
        "pattern p = { q -> k : sqrt(q) < k }",
        "pattern p = { q -> k : q < k * k }",
    ),
    Code(
        "ATT0314", "a formula of whole arrays",
        "The formula of a computed input reads single values, or its arrays have the wrong number "
        "of axes; or a function of whole arrays is used in a set.",
        "`input x: int[n] = ...` computes a tensor before attention starts, by functions of whole "
        "arrays (`next_where`, `prefix_sum`, `repeat`, ...) and arithmetic element by element.",
        "pattern p(input ends: int[n], input next: int[n] = ends[0]) = { q -> k : next[k] >= q }",
        "pattern p(input ends: int[n], input next: int[n] = next_where(ends == 1)) =\n"
        "    { q -> k : next[k] >= q }",
    ),
    Code(
        "ATT0315", "a demand on the parameters that is not met",
        "A `require` of the pattern is false for these parameters; the message is the pattern's.",
        "The author of a pattern says so which values make sense, such as a window times its "
        "dilation that fits the length.",
        'pattern p(w: int = 8) require w mod 3 == 0 else "w must be a multiple of 3" =\n'
        "    { q -> k : abs(q - k) <= w div 3 }",
        'pattern p(w: int = 9) require w mod 3 == 0 else "w must be a multiple of 3" =\n'
        "    { q -> k : abs(q - k) <= w div 3 }",
    ),
    Code(
        "ATT0316", "an input that is not indexed on all of its axes",
        "A formula reads a row or a whole tensor where it needs one element.",
        "`doc[q]`, `table[h][q - k]`: one index for each axis. After `in` the last axis is left "
        "out: `k in columns[h]`.",
        "pattern p(input doc: int[n]) = { q -> k : doc == doc[k] }",
        "pattern p(input doc: int[n]) = { q -> k : doc[q] == doc[k] }",
    ),
    Code(
        "ATT0317", "spaces that differ",
        "A set uses a pattern that is on another space: other segments, or grids with another "
        "number of axes.",
        "Both speak of the same tokens, and would number them differently. A pattern without `on` "
        "fits any space; inside a set, `(q, k) in p` tests positions of one segment.",
        "pattern image on grid(y: 4, x: 4) = { q -> k : q.y == k.y }\n"
        "pattern p on grid(t: 2, y: 2, x: 4) = image",
        "pattern image on grid(y: 4, x: 4) = { q -> k : q.y == k.y }\n"
        "pattern p on grid(y: 4, x: 4) = image",
    ),
    Code(
        "ATT0318", "a tile that does not fit the grid",
        "The tile has another number of sides than the grid, or a side that does not divide.",
        "`tiled` says in which order tokens stand: tile by tile. Every tile is whole.",
        "pattern p on grid(y: 8, x: 8) tiled [4, 4, 4] = { q -> k : q.y == k.y }",
        "pattern p on grid(y: 8, x: 8) tiled [4, 4] = { q -> k : q.y == k.y }",
    ),
    Code(
        "ATT0319", "an extent that is computed from lengths",
        "The extent of an axis is a formula of values that are known only at run time.",
        "Extents are parameters and numbers, a length alone, or symbols: `grid(y, x)` takes both "
        "at the call.",
        "pattern p on grid(y: n div 4, x: 4) = { q -> k : q.y == k.y }",
        "pattern p on grid(y, x: 4) = { q -> k : q.y == k.y }",
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
    Code(
        "ATT0322", "units that are mixed up",
        "A token position is compared with a block number or a head, a coordinate with one of "
        "another axis, or an axis of an input is indexed by something that it does not count.",
        "Both are ints, and yet the comparison mostly says nothing: a factor or a `div` is "
        "missing. A comparison may be meant, so that is a warning; a head in an axis of tokens is "
        "an error. Differences and products have no unit: `k - h == 0` is never warned of.",
        "pattern p = { q -> k : q div 64 <= k }",
        "pattern p = { q -> k : q div 64 <= k div 64 }",
    ),
    Code(
        "ATT0323", "ranges of heads that overlap",
        "A union gives each range of heads a set of its own, and some heads are in two ranges.",
        "These heads get both sets. Mostly one end is off by one. A range inside another one, or a "
        "part for all heads, is not warned of.",
        "pattern p heads h: 8 =\n    { q -> k, h : h <= 4 and k <= q }"
        " | { q -> k, h : h >= 4 and k >= q }",
        "pattern p heads h: 8 =\n    { q -> k, h : h < 4 and k <= q }"
        " | { q -> k, h : h >= 4 and k >= q }",
    ),
    Code(
        "ATT0340", "a tune that says what it cannot",
        "A tune states choices of the compiler for a pattern or attention of its file: `tile`, "
        "`cpu_tile`, `orders`, `bias`.",
        "They decide how fast it runs and not what it computes, so they are numbers and words that "
        "are there before anything is compiled. Flags and arguments of a call come before them.",
        "pattern p = causal\ntune p = { tile: 64 }",
        "pattern p = causal\ntune p = { tile: [64, 64] }",
    ),
)
