"""Hypothesis strategies: well-typed pattern texts, and syntactically legal ASTs."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st

from attnc.dsl import nodes as ast
from attnc.dsl.scanner import RESERVED
from attnc.dsl.words import CLAUSE_WORDS, ITEM_WORDS

# ------------------------------------------------------------------- well-typed pattern texts

CONSTANTS = st.integers(-9, 12)
DIVISORS = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 16))


def _terms(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    scaled = st.builds("{0} * {1}".format, st.integers(-3, 4).filter(bool), st.sampled_from(names))
    return st.sampled_from(names) | scaled | CONSTANTS.map(str)


def linear(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Integer text, linear in ``names``: ``q - 2 * k + 3``."""
    difference = st.just("q - k") if {"q", "k"} <= set(names) else st.nothing()
    return difference | st.lists(_terms(names), min_size=1, max_size=3).map(" + ".join)


def integers(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Integer text: linear forms under ``div``, ``mod``, ``abs``, ``min``, ``max``, ``if``."""
    line = linear(names)
    return st.one_of(
        line,
        st.builds("({0}) div {1}".format, line, DIVISORS),
        st.builds("({0}) mod {1}".format, line, DIVISORS),
        st.builds("abs({0})".format, line),
        st.builds("min({0}, {1})".format, line, line),
        st.builds("max({0}, {1})".format, line, line),
        st.builds("(if {0} < {1} then {2} else {3})".format, line, line, line, line),
    )


def _atoms(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    value = integers(names)
    return st.one_of(
        st.builds("{0} {1} {2}".format, value,
                  st.sampled_from(("<", "<=", "==", "!=", ">=", ">")), value),
        st.builds("0 <= {0} < {1}".format, linear(names), st.integers(1, 20)),
        st.builds("abs(q - k) <= {0}".format, st.integers(0, 12)),
        st.builds("({0}) mod {1} == 0".format, linear(names), DIVISORS),
        st.builds("is_pow2({0})".format, linear(names)),
        st.builds("{0} in {1}".format, linear(names), st.lists(st.integers(-20, 40), min_size=1,
                                                               max_size=4)),
        st.sampled_from(("true", "false", "k <= q", "k == 0", "q == k")),
    )  # fmt: skip


def _quantified(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    inner = (*names, "e")
    low, extent = st.integers(-2, 3), st.integers(-1, 4)
    body = _atoms(inner) | st.builds("2**(e + 3) <= {0} and {0} < 2**(e + 4)".format, linear(names))
    return st.builds(
        lambda op, a, n, text: f"({op} e in {a}..{a + n} : {text})",
        st.sampled_from(("exists", "forall")), low, extent, body,
    )  # fmt: skip


def conditions(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Truth-value text over ``names``, small enough that every later stage handles it fast."""
    leaves = st.one_of(_atoms(names), _atoms(names), _quantified(names))
    return st.recursive(
        leaves,
        lambda part: st.one_of(
            st.builds("({0} and {1})".format, part, part),
            st.builds("({0} or {1})".format, part, part),
            st.builds("not ({0})".format, part),
            st.builds("(let d = q - k in {0} and d >= -4)".format, part),
        ),
        max_leaves=3,
    )


def sets(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Set text whose builders bind ``q``, ``k`` and, where ``names`` has it, ``h``."""
    head = ", h" if "h" in names else ""
    builder = conditions(names).map(lambda text: f"{{ q -> k{head} : {text} }}")
    return st.recursive(
        builder,
        lambda part: st.one_of(
            st.builds("({0} | {1})".format, part, part),
            st.builds("({0} & {1})".format, part, part),
            st.builds("({0} - {1})".format, part, part),
            st.builds("~{0}".format, part),
        ),
        max_leaves=3,
    )


@st.composite
def patterns(draw: st.DrawFn, heads: bool | None = None) -> str:
    """A file with one well-typed 1-D pattern ``p`` over ``q``, ``k``, ``nq``, ``nk``, maybe ``h``.

    ``heads``: True for a mask per head, False for one mask, None for either.
    """
    per_head = draw(st.booleans()) if heads is None else heads
    names = ("q", "k", "q", "k", "nk", "nq", *(("h",) if per_head else ()))
    clause = f" heads h: {draw(st.integers(1, 4))}" if per_head else ""
    return f"pattern p{clause} = {draw(sets(names))}\n"


# ---------------------------------------------------------------------- syntactically legal ASTs

_SOFT = (
    *ITEM_WORDS, *CLAUSE_WORDS, "from", "one", "of", "int", "bool", "rational",
    "real", "list", "sum", "count", "for", "union", "over", "blocks", "any", "all", "density",
    "grid", "tiled", "softmax", "sink", "scale",
)  # fmt: skip
NAMES = st.sampled_from(("q", "k", "h", "n", "e", "window", "a_b", *_SOFT)) | st.from_regex(
    r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True
).filter(lambda name: name not in RESERVED)

_numbers = st.builds(
    lambda whole, digits: ast.Number(
        value=Fraction(whole, 10**digits) if digits else Fraction(whole)
    ),
    st.integers(0, 10**6), st.sampled_from((0, 0, 0, 1, 3)),
)  # fmt: skip
_NAME_NODES = st.builds(lambda name: ast.Name(name=name), NAMES)
_ATTRIBUTES = st.builds(lambda base, axis: ast.Attribute(base=base, axis=axis), NAMES, NAMES)
_BOOLS = st.builds(lambda value: ast.Bool(value=value), st.booleans())
_LEAVES = _numbers | _NAME_NODES | _BOOLS | _ATTRIBUTES
_COMPARISONS = st.sampled_from(("==", "!=", "<", "<=", ">", ">=", "in", "not in"))


def _compare(first: ast.Expr, rest: list[tuple[str, ast.Expr]]) -> ast.Compare:
    operands = (first, *(operand for _, operand in rest))
    return ast.Compare(operands=operands, ops=tuple(op for op, _ in rest))  # type: ignore[misc]


def _call(name: str, given: list[tuple[str | None, ast.Expr]]) -> ast.Call:
    names, args = tuple(name for name, _ in given), tuple(value for _, value in given)
    return ast.Call(function=name, args=args, names=names)


def _reference(name: str, given: list[tuple[str | None, ast.Expr]]) -> ast.Reference:
    if name == "blocks":
        given = given[:1]  # several arguments, the last of which is a rule, are a rounded set
    args = tuple(ast.Argument(name=given_name, value=value) for given_name, value in given)
    return ast.Reference(name=name, args=args)


def _pattern_values(part: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[ast.PatternValue]:
    given = st.lists(st.tuples(st.none() | NAMES, part), max_size=3)
    return st.builds(_reference, NAMES, given) | st.builds(
        lambda name, index: ast.SetIndex(name=name, index=index), NAMES, part
    )


def _grow(part: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[ast.Expr]:
    some = st.lists(part, max_size=3).map(tuple)
    several = st.lists(part, min_size=2, max_size=4).map(tuple)
    return st.one_of(
        st.builds(lambda items: ast.ListOf(items=items), some),
        st.builds(lambda base, i: ast.Index(base=base, index=i), part, part),
        st.builds(_call, NAMES, st.lists(st.tuples(st.none() | NAMES, part), max_size=3)),
        st.builds(lambda op, x: ast.Unary(op=op, operand=x), st.sampled_from(("-", "not")), part),
        st.builds(lambda op, a, b: ast.Binary(op=op, left=a, right=b),
                  st.sampled_from(("+", "-", "*", "/", "div", "mod", "**")), part, part),
        st.builds(_compare, part, st.lists(st.tuples(_COMPARISONS, part), min_size=1, max_size=2)),
        st.builds(lambda op, parts: ast.BoolOp(op=op, parts=parts),
                  st.sampled_from(("and", "or")), several),
        st.builds(lambda op, var, a, b, body: ast.Quantifier(op=op, var=var, low=a, high=b,
                                                             body=body),
                  st.sampled_from(("exists", "forall")), NAMES, part, part, part),
        st.builds(lambda op, var, a, b, body: ast.Reduce(op=op, var=var, low=a, high=b, body=body),
                  st.sampled_from(("sum", "count")), NAMES, part, part, part),
        st.builds(lambda var, a, b, body: ast.ListFor(var=var, low=a, high=b, body=body),
                  NAMES, part, part, part),
        st.builds(lambda q, k, p, no: ast.PairIn(query=q, key=k, pattern=p, negated=no),
                  part, part, _pattern_values(part), st.booleans()),
        st.builds(lambda c, a, b: ast.IfExpr(condition=c, then=a, otherwise=b), part, part, part),
        st.builds(lambda name, v, body: ast.Let(name=name, value=v, body=body), NAMES, part, part),
    )  # fmt: skip


def expressions() -> st.SearchStrategy[ast.Expr]:
    """Any expression the grammar can write, well typed or not."""
    return st.recursive(_LEAVES, _grow, max_leaves=8)


_SMALL = st.recursive(_LEAVES, _grow, max_leaves=3)
_PLACES = st.none() | st.builds(
    lambda name, index: ast.SegmentName(name=name, index=index), NAMES, st.none() | _SMALL
)
_BUILDERS = st.builds(
    lambda q, k, h, p, at, to: ast.Builder(
        query=q, key=k, head=h, predicate=p, query_segment=at, key_segment=to
    ),
    NAMES, NAMES, st.none() | NAMES, _SMALL, _PLACES, _PLACES,
)  # fmt: skip
_RULES = st.sampled_from(
    (("any", None), ("all", None), ("count", ">="), ("count", ">"), ("density", ">="))
)


def _rounded(
    part: ast.Set, q: ast.Expr, k: ast.Expr | None, rule: tuple[str, str | None], least: ast.Expr
) -> ast.Rounded:
    threshold = None if rule[1] is None else least
    return ast.Rounded(
        part=part, block_q=q, block_k=k, rule=rule[0], op=rule[1], threshold=threshold  # type: ignore[arg-type]
    )  # fmt: skip


def set_nodes() -> st.SearchStrategy[ast.Set]:
    """Any set the grammar can write, well typed or not."""
    expr = _SMALL
    leaves: st.SearchStrategy[ast.Set] = _BUILDERS | _pattern_values(expr)

    def grow(part: st.SearchStrategy[ast.Set]) -> st.SearchStrategy[ast.Set]:
        several = st.lists(part, min_size=2, max_size=3).map(tuple)
        return st.one_of(
            st.builds(lambda parts: ast.SetUnion(parts=parts), several),
            st.builds(lambda parts: ast.SetIntersection(parts=parts), several),
            st.builds(lambda a, b: ast.SetDifference(left=a, right=b), part, part),
            st.builds(lambda a: ast.SetComplement(part=a), part),
            st.builds(lambda c, a, b: ast.SetIf(condition=c, then=a, otherwise=b), expr, part,
                      part),
            st.builds(lambda var, a, b, body: ast.UnionOver(var=var, low=a, high=b, body=body),
                      NAMES, expr, expr, part),
            st.builds(_rounded, part, expr, st.none() | expr, _RULES, expr),
        )  # fmt: skip

    return st.recursive(leaves, grow, max_leaves=5)


_scalars = st.sampled_from(("int", "bool", "rational", "real", "pattern")).map(
    lambda kind: ast.Type(kind=kind)
)
_lists = _scalars.map(lambda item: ast.Type(kind="list", item=item))
_TYPES = st.one_of(
    _scalars,
    _lists,
    _lists.map(lambda item: ast.Type(kind="list", item=item)),
    st.lists(NAMES, min_size=1, max_size=3).map(
        lambda choices: ast.Type(kind="enum", choices=tuple(choices))
    ),
)
_PARAMS = st.builds(
    lambda name, kind, low, high, default: ast.Param(
        name=name, type=kind, low=low, high=high, default=default
    ),
    NAMES, _TYPES, st.none() | _SMALL, st.none() | _SMALL, st.none() | _SMALL,
)  # fmt: skip
_DIMS = st.builds(lambda extent: ast.Dim(extent=extent), st.none() | _SMALL)
_INPUTS = st.builds(
    lambda name, kind, dims, default: ast.Input(
        name=name, type=ast.Type(kind=kind), dims=tuple(dims), default=default
    ),
    NAMES, st.sampled_from(("int", "bool", "real")), st.lists(_DIMS, max_size=3),
    st.none() | _SMALL,
)  # fmt: skip
_GIVEN = st.lists(_PARAMS | _INPUTS, max_size=3).map(tuple)
_FN_PARAMS = st.builds(
    lambda name, kind, default: ast.FnParam(name=name, type=kind, default=default),
    NAMES, _TYPES, st.none() | _SMALL,
)  # fmt: skip
_HEADS = st.builds(
    lambda var, count, kv: ast.Heads(var=var, count=count, kv=kv), NAMES, _SMALL, st.booleans()
)
_LAYERS = st.builds(lambda var, count: ast.Layers(var=var, count=count), NAMES, _SMALL)
_REQUIRES = st.builds(
    lambda condition, message: ast.Require(condition=condition, message=message),
    _SMALL, st.sampled_from(("", "w must divide n")),
)  # fmt: skip
_AXES = st.builds(lambda name, side: ast.Axis(name=name, extent=side), NAMES, _SMALL) | NAMES.map(
    lambda name: ast.Axis(name=name, extent=ast.Name(name=name))
)
_GRIDS = st.one_of(
    st.builds(lambda axes, tile: ast.Grid(axes=tuple(axes), tile=tile),
              st.lists(_AXES, min_size=1, max_size=3), st.none() | _SMALL),
    st.builds(lambda shape, tile: ast.Grid(shape=shape, tile=tile), _SMALL, st.none() | _SMALL),
)  # fmt: skip
_SEGMENTS = st.one_of(
    st.builds(lambda name, grid: ast.Segment(name=name, grid=grid), st.none() | NAMES, _GRIDS),
    st.builds(lambda name: ast.Segment(name=name, grid=None), NAMES),
    st.builds(
        lambda name, var, low, high, grid: ast.Segment(
            name=name, var=var, low=low, high=high, grid=grid
        ),
        NAMES, NAMES, _SMALL, _SMALL, _GRIDS,
    ),
)  # fmt: skip
_SPACES = st.lists(_SEGMENTS, min_size=1, max_size=3).map(
    lambda segments: ast.Space(segments=tuple(segments))
)
_ON = st.builds(lambda query, key: ast.On(query=query, key=key), _SPACES, st.none() | _SPACES)
_ITEMS: st.SearchStrategy[ast.Item] = st.one_of(
    st.builds(
        lambda names, path: ast.Import(names=tuple(names), path=path),
        st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(("a.attn", "../b c.attn", "")),
    ),
    _PARAMS,
    _INPUTS,
    _HEADS,
    st.builds(lambda name, space: ast.SpaceDef(name=name, space=space), NAMES, _SPACES),
    st.builds(
        lambda name, params, body: ast.Fn(name=name, params=tuple(params), body=body),
        NAMES, st.lists(_FN_PARAMS, max_size=3), _SMALL,
    ),
    st.builds(
        lambda name, params, heads, on, layers, requires, body: ast.PatternDef(
            name=name, params=params, heads=heads, on=on, layers=layers, requires=tuple(requires),
            body=body,
        ),
        NAMES, _GIVEN, st.none() | _HEADS, st.none() | _ON, st.none() | _LAYERS,
        st.lists(_REQUIRES, max_size=2), set_nodes(),
    ),
    st.builds(
        lambda name, params, heads, on, body: ast.Score(
            name=name, params=params, heads=heads, on=on, body=body
        ),
        NAMES, _GIVEN, st.none() | _HEADS, st.none() | _ON, _BUILDERS,
    ),
    st.builds(
        lambda name, params, heads, on, score, over, sink, scale: ast.Attention(
            name=name, params=params, heads=heads, on=on, score=score, over=over, sink=sink,
            scale=scale,
        ),
        NAMES, _GIVEN, st.none() | _HEADS, st.none() | _ON, _SMALL, set_nodes(),
        st.none() | _SMALL, st.none() | _SMALL,
    ),
    st.builds(
        lambda name, params, clauses: ast.Route(
            name=name, params=params,
            clauses=tuple(ast.Clause(name=n, value=v) for n, v in clauses.items()),
        ),
        NAMES, _GIVEN, st.dictionaries(NAMES, _SMALL, min_size=1, max_size=3),
    ),
    st.builds(
        lambda name, clauses: ast.Tune(
            name=name, clauses=tuple(ast.Clause(name=n, value=v) for n, v in clauses.items()),
        ),
        NAMES, st.dictionaries(NAMES, _SMALL, min_size=1, max_size=3),
    ),
    st.builds(
        lambda name, params, body: ast.Combine(name=name, params=params, body=body),
        NAMES, _GIVEN, _SMALL,
    ),
)  # fmt: skip


def files() -> st.SearchStrategy[ast.File]:
    """Any file the grammar can write, well typed or not."""
    return st.lists(_ITEMS, max_size=4).map(lambda items: ast.File(items=tuple(items)))
