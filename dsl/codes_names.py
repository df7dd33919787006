"""The diagnostics 02xx: names, what they stand for, and what is missing."""

from __future__ import annotations

from attnc.dsl.diagnostics import Code

NAME_CODES: tuple[Code, ...] = (
    Code(
        "ATT0201", "an unknown name in an expression",
        "No parameter, input, coordinate, length or bound variable has this name.",
        "A set sees the coordinates that it binds, the parameters and inputs of its pattern and of "
        "the file, their sides, and the lengths `n`, `nq` and `nk`. An `fn` sees its own "
        "parameters and those of the file, nothing else: pass it what it needs.",
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
        "Two items, parameters, choices, axes, segments or coordinates of one scope share a name.",
        "The later one would silently win. Patterns, scores, attentions and fns share their names; "
        "so do parameters and inputs.",
        "pattern p = causal\npattern p = sink",
        "pattern p = causal\npattern p2 = sink",
    ),
    Code(
        "ATT0204", "an item that uses itself",
        "The definition of the pattern, fn or space leads back to it.",
        "A definition is a formula that is written out when it is compiled; this one would never "
        "end.",
        "pattern p = causal | p",
        "pattern p = causal | sink",
    ),
    Code(
        "ATT0205", "an import that does not work",
        "The file cannot be read, has errors, imports itself, or does not define the name.",
        "Paths in `import` are relative to the importing file. Patterns, scores, attentions, fns, "
        "spaces and inputs can be imported.",
        'import band from "missing.attn"\npattern p = band',
        "pattern p = { q -> k : 0 <= q - k < 8 }",
    ),
    Code(
        "ATT0206", "an argument with an unknown or repeated name",
        "The pattern, score or function has no parameter of this name, or gets it twice.",
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
        "Neither the language, nor the file, nor its imports have a function of this name.",
        "docs/language.md lists the functions of the language; `fn` defines more.",
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
        "ATT0210", "something that nothing uses",
        "The parameter, input, fn or space does not change any pattern.",
        "Mostly a formula lacks it; whoever sets it expects an effect.",
        "pattern p(w: int = 8) = causal",
        "pattern p(w: int = 8) = { q -> k : 0 <= q - k < w }",
    ),
    Code(
        "ATT0211", "a coordinate that does not exist",
        "The position is on no grid, on several, or on one without an axis of this name or number.",
        "`q.y` and `q[0]` need a grid: of the space that the pattern names after `on`, or, where "
        "that has several segments, of the one that the set names with `in`.",
        "pattern p on grid(y: 8, x: 8) = { q -> k : q.z == k.z }",
        "pattern p on grid(y: 8, x: 8) = { q -> k : q.y == k.y }",
    ),
    Code(
        "ATT0212", "an unknown space or segment",
        "No `space` has this name, or the space of the pattern has no segment of this name.",
        "Segments are named where the space is written, `on video: grid(t: 4, s: 9) ++ text: "
        "grid(i: 7)`; one of a family is chosen by an index, `levels[0]`.",
        "pattern p on video: grid(t: 4, s: 9) = { q in vido -> k : q.t == 0 }",
        "pattern p on video: grid(t: 4, s: 9) = { q in video -> k : q.t == 0 }",
    ),
    Code(
        "ATT0213", "a size that is not known",
        "A symbolic extent, or a side of an input, has no value where one is needed.",
        "It is given by name (`--shape y=32,x=32`, `extents=` of an op, `-D heads=12`), or follows "
        "from a length or from an input that has it as a side.",
        "attnc mask image.attn --shape n=1024    # on grid(y, x)",
        "attnc mask image.attn --shape y=32,x=32",
    ),
    Code(
        "ATT0214", "a name of another sort",
        "A pattern, a score, an attention, an fn or a value stands where another one is needed.",
        "A pattern is a set of pairs, a score a number for each pair, an attention the softmax of "
        "scores over a set, an fn a formula: each has its own place.",
        "score bias = { q -> k : k - q }\npattern p = causal & bias",
        "score bias = { q -> k : k - q }\nattention a = softmax(dot + bias, over: causal)",
    ),
)
