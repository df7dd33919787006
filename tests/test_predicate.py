"""Printed expressions against their definition: torch text at once, Triton text in a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnc.cli.options import LENGTH_MAX
from attnc.codegen import op_contract
from attnc.codegen.predicate import (
    HOST_HELPERS,
    MAX_BRACKETS,
    MAX_OPERATIONS,
    TILE_RANGES,
    TOKEN_RANGES,
    HostDialect,
    input_ranges,
    progressions,
)
from attnc.codegen.simplify import from_first, simplify_bool, simplify_int
from attnc.codegen.triton_predicate import TRITON_HELPERS, TritonDialect
from attnc.compiler.driver import load_text
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Input, Pattern, Where
from attnc.compiler.ir.plan import MAX_LENGTH
from attnc.dsl.diagnostics import CompileError
from tests import kernels as kn

QB = ex.Var("qb")
FITS, FIRST = ex.Compare(">=", ex.Var("NK"), QB), ex.Compare(">=", QB, ex.ONE)
NAMES = ("q", "k", "h", "nq", "nk")
SIDE = 16
FAR = MAX_LENGTH - SIDE
"""The first position of the last tile a kernel may see."""

CONSTANTS = st.one_of(
    st.integers(-20, 40),
    st.sampled_from([0, 1, 2**15, 2**29, MAX_LENGTH, 2**31 - 1, -(2**31), 2**33, 10**12]),
)
FACTORS = st.sampled_from([-7, -5, -3, -2, -1, 2, 3, 5, 8, 1000])
DIVISORS = st.sampled_from([2, 3, 4, 5, 7, 16, 24, 64, 1000, 2**20])
OPS = st.sampled_from(["<=", "<", "==", "!=", ">", ">="])


INPUTS = {
    "doc": Input(name="doc", kind="int", dims=(None,)),
    "near": Input(name="near", kind="bool", dims=(ex.Const(20), None)),
    "kind": Input(name="kind", kind="int", dims=(ex.Const(3), ex.Const(40))),
    "phase": Input(name="phase", kind="int", dims=()),
}
READS = Pattern(
    name="p", heads=4, body=Where(ex.TRUE), inputs=tuple(INPUTS.values()), extents=("y",)
)
RANGES = {**TOKEN_RANGES, **input_ranges(READS)}
GIVEN: dict[str, Any] = {
    "doc": np.array([3, -2, 5, 2**40, 3, 3, 0, -(2**50), 1, 2, 8, 13, 21]),
    "near": np.random.default_rng(1).random((20, 17)) < 0.5,
    "kind": np.random.default_rng(2).integers(-5, 40, (3, 40)),
    "phase": -7,
    "y": 11,
}


def _wider(part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(part, min_size=2, max_size=3).map(tuple)
    pair = st.tuples(part, part)
    return st.one_of(
        st.builds(ex.Read, st.just("doc"), st.tuples(part)),
        st.builds(ex.Read, st.sampled_from(["near", "kind"]), pair),
        st.builds(ex.Mul, part, part),
        st.builds(ex.Quot, part, part),
        st.builds(ex.Rem, part, part),
        st.builds(ex.Add, several),
        st.builds(ex.Scale, FACTORS, part),
        st.builds(ex.FloorDiv, part, DIVISORS),
        st.builds(ex.Mod, part, DIVISORS),
        st.builds(ex.Min, several),
        st.builds(ex.Max, several),
        st.builds(ex.Abs, part),
        st.builds(ex.Select, st.builds(ex.Compare, OPS, part, part), part, part),
    )


INTEGERS = st.recursive(
    st.sampled_from([ex.Var(n) for n in ("q", "k", *NAMES)])
    | CONSTANTS.map(ex.Const)
    | st.sampled_from([ex.Read("phase"), ex.Read("y"), *(
        ex.Read("doc", (ex.Var(n),)) for n in ("q", "k")
    )]),
    _wider, max_leaves=5,
)  # fmt: skip
TERMS = INTEGERS | st.just(ex.sub(ex.Var("q"), ex.Var("k")))
TESTS = st.one_of(
    st.builds(ex.Compare, OPS, TERMS, TERMS),
    st.builds(ex.IsPow2, TERMS),
    st.builds(
        ex.Member, TERMS,
        st.sets(CONSTANTS, min_size=1, max_size=9).map(lambda s: tuple(sorted(s))),
    ),
)  # fmt: skip
PREDICATES = st.recursive(
    TESTS,
    lambda part: st.one_of(
        st.builds(ex.And, st.lists(part, min_size=2, max_size=3).map(tuple)),
        st.builds(ex.Or, st.lists(part, min_size=2, max_size=3).map(tuple)),
        st.builds(ex.Not, part),
    ),
    max_leaves=4,
)
STARTS = st.sampled_from([0, 0, 16, 64, 112, 2**20, FAR])
HOST: dict[str, Any] = {"torch": torch}
exec(HOST_HELPERS, HOST)


def place(q0: int, k0: int) -> dict[str, Any]:
    """Values of the variables for one tile, with lengths that reach to its end."""
    span = np.arange(SIDE, dtype=np.int64)
    return {
        "q": q0 + span[:, None], "k": k0 + span[None, :], "h": 3, "nq": q0 + SIDE,
        "nk": k0 + SIDE - 5,
    }  # fmt: skip


def assume_fits(expr: ex.Expr) -> None:
    """Leave out what passes 64 bits on the values given here: NumPy wraps, or refuses."""
    ranges = {**RANGES, "doc[]": (-(2**50), 2**40), "kind[]": (-5, 40), "phase[]": (-7, -7)}
    for node in ex.walk(expr):
        if isinstance(node, ex.IntExpr):
            low, high = ex.interval(node, ranges)
            assume(low is not None and high is not None and -(2**63) <= low and high < 2**63)


def expected(predicate: ex.BoolExpr, values: dict[str, Any]) -> np.ndarray:
    found = np.asarray(ex.evaluate(predicate, values, GIVEN), dtype=bool)
    return np.broadcast_to(found, (SIDE, SIDE))


def as_kernel(predicate: ex.BoolExpr, q0: int, k0: int) -> np.ndarray:
    """Evaluate in a Triton kernel on one tile."""
    dialect = TritonDialect(
        {"q": "q_pos", "k": "k_pos", **{n: n for n in ("h", "nq", "nk")}}, RANGES, INPUTS
    )
    text = dialect.boolean(predicate)
    loads = "".join(f"    {line}\n" for load in dialect.loads.values() for line in load.lines)
    helpers = "\n\n".join(TRITON_HELPERS[name] for name in sorted(dialect.helpers))
    module = kn.load(f"""\
import triton
import triton.language as tl


{helpers}

@triton.jit
def check(Out, In_doc, In_near, In_kind, q0, k0, h, nq, nk,
          Side_0_doc, Side_1_near, Given_phase, Given_y):
    q_pos = q0 + tl.arange(0, {SIDE})[:, None]
    k_pos = k0 + tl.arange(0, {SIDE})[None, :]
{loads}
    keep = {text}
    place = tl.arange(0, {SIDE})[:, None] * {SIDE} + tl.arange(0, {SIDE})[None, :]
    tl.store(Out + place, tl.where(keep & (place >= 0), 1, 0))
""")
    out = torch.full((SIDE, SIDE), 7, dtype=torch.int32, device=kn.DEVICE)
    values = place(q0, k0)
    doc, near, kind = (torch.from_numpy(GIVEN[n]).to(kn.DEVICE) for n in ("doc", "near", "kind"))
    module.check[(1,)](
        out, doc, near.view(torch.uint8), kind, q0, k0, values["h"], values["nq"], values["nk"],
        len(doc), near.shape[1], GIVEN["phase"], GIVEN["y"],
    )
    return out.cpu().numpy()


def as_tensors(values: dict[str, Any]) -> dict[str, Any]:
    """The same values for torch text: tensors, and inputs with a batch dimension of one."""
    return {
        n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in values.items()
    } | {
        "data": {
            n: torch.from_numpy(v)[None] if isinstance(v, np.ndarray) else v
            for n, v in GIVEN.items()
        },
        "b": 0,
    }


@settings(max_examples=80, deadline=None)
@given(predicate=PREDICATES, q0=STARTS, k0=STARTS)
def test_triton_text(predicate: ex.BoolExpr, q0: int, k0: int) -> None:
    """A residual in a kernel is the residual: floors below zero, no overflow at 2**30."""
    assume_fits(predicate)
    try:
        found = as_kernel(predicate, q0, k0)
    except CompileError:
        assume(False)
    assert (found == expected(predicate, place(q0, k0))).all()


@settings(max_examples=200, deadline=None)
@given(predicate=PREDICATES, q0=STARTS, k0=STARTS)
def test_torch_text(predicate: ex.BoolExpr, q0: int, k0: int) -> None:
    """The torch text gives the same on tensors and on plain integers."""
    assume_fits(predicate)
    try:
        text = HostDialect({n: n for n in NAMES}, RANGES).boolean(predicate)
    except CompileError:
        assume(False)
    values = place(q0, k0)
    tensors = as_tensors(values)
    found = torch.as_tensor(eval(text, HOST, tensors)).broadcast_to(SIDE, SIDE)
    assert (found.numpy() == expected(predicate, values)).all()
    for i, j in ((0, 0), (3, 15)):
        one = {**tensors, "q": q0 + i, "k": k0 + j}
        assert bool(eval(text, HOST, one)) == expected(predicate, values)[i, j]


@settings(max_examples=200, deadline=None)
@given(term=INTEGERS, q0=STARTS, k0=STARTS)
def test_integers(term: ex.IntExpr, q0: int, k0: int) -> None:
    """Integer text and the simplified expression keep the value."""
    assume_fits(term)
    values = place(q0, k0)
    want = np.broadcast_to(ex.evaluate(term, values, GIVEN), (SIDE, SIDE))
    simple = np.broadcast_to(
        ex.evaluate(simplify_int(term, RANGES), values, GIVEN), (SIDE, SIDE)
    )
    assert (simple == want).all()
    try:
        text = HostDialect({n: n for n in NAMES}, RANGES).integer(term)
    except CompileError:
        assume(False)
    tensors = as_tensors(values)
    found = torch.as_tensor(eval(text, HOST, tensors)).broadcast_to(SIDE, SIDE)
    assert (found.numpy() == want).all()


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        ("q - k <= 255", "k_pos >= q_pos - 255"),
        ("abs(q - k) < 4", "(k_pos > q_pos - 4) & (k_pos < q_pos + 4)"),
        ("(q - k) mod 8 == 0", "(k_pos & 7) == (q_pos & 7)"),
        ("(q - k) mod 8 < 3", "((q_pos - k_pos) & 7) < 3"),
        ("(q + k) mod 2 < 1", "((q_pos + k_pos) & 1) < 1"),
        ("q div 64 == k div 64", "(k_pos >> 6) == (q_pos >> 6)"),
        ("(q - k) mod 7 == 3", "k_pos % 7 == (q_pos + 4) % 7"),
        ("(q + k) mod 7 != 3", "k_pos % 7 != _floor_mod(3 - q_pos, 7)"),
        ("k mod 7 == 3", "k_pos % 7 == 3"),
        ("is_pow2(q - k)", "_is_pow2(q_pos - k_pos)"),
        ("5 * q >= 3 * k", "k_pos.to(tl.int64) * 3 <= q_pos.to(tl.int64) * 5"),
        ("k >= 0", "True"),
        ("k in [3, 4, 5, 9, 16, 23, 30]",
         "((k_pos >= 3) & (k_pos <= 5)) | "
         "((k_pos >= 9) & (k_pos <= 30) & ((k_pos + 5) % 7 == 0))"),
    ],
)  # fmt: skip
def test_examples(predicate: str, text: str) -> None:
    """What a reader of a kernel sees."""
    dialect = TritonDialect({"q": "q_pos", "k": "k_pos", "nk": "nk"}, TOKEN_RANGES)
    body = load_text(f"pattern p = {{ q -> k : {predicate} }}").predicate
    assert dialect.boolean(body) == text


def test_progressions() -> None:
    """Listed members become runs and arithmetic progressions, nothing lost."""
    values = (0, 1, 2, 3, 10, 17, 24, 40, 41, 100)
    found = progressions(values)
    assert found == [(0, 1, 4), (10, 7, 3), (40, 1, 2), (100, 1, 1)]
    assert sorted(f + s * i for f, s, n in found for i in range(n)) == list(values)


def test_too_large_for_64_bits() -> None:
    """A term that cannot be computed in 64 bits is refused with its text."""
    predicate = ex.Compare("<", ex.Scale(10**12, ex.Var("q")), ex.Scale(10**12 + 1, ex.Var("k")))
    for dialect in (
        TritonDialect({n: n for n in NAMES}, TOKEN_RANGES),
        HostDialect({n: n for n in NAMES}, TOKEN_RANGES),
    ):
        with pytest.raises(CompileError, match="64-bit") as refused:
            dialect.boolean(predicate)
        assert refused.value.diagnostics[0].code == "ATT0407"


def test_bounds_decide() -> None:
    """A comparison that the ranges decide is gone, so huge constants need no arithmetic."""
    huge = ex.Compare("<", ex.Var("q"), ex.Const(10**30))
    assert simplify_bool(ex.and_(huge, ex.Compare("<=", ex.Var("k"), ex.Var("q"))), TOKEN_RANGES) \
        == ex.Compare("<=", ex.Var("k"), ex.Var("q"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        # What is added goes into the branches, where it cancels.
        (ex.maximum(ex.sub(ex.select(FITS, QB, ex.sub(QB, ex.ONE)), ex.sub(QB, ex.ONE)), ex.ZERO),
         ex.select(FITS, ex.ONE, ex.ZERO)),
        # A branch knows its condition.
        (ex.select(FITS, ex.select(ex.and_(FITS, FIRST), ex.ONE, QB), ex.ZERO),
         ex.select(FITS, ex.select(FIRST, ex.ONE, QB), ex.ZERO)),
        (ex.select(FITS, QB, ex.select(FITS, ex.ONE, ex.ZERO)), ex.select(FITS, QB, ex.ZERO)),
    ],
)  # fmt: skip
def test_branches(given: ex.IntExpr, wanted: ex.IntExpr) -> None:
    """Bounds with cases come out short."""
    assert simplify_int(given, TILE_RANGES) == wanted


def test_a_count_names_its_first_tile() -> None:
    """``last - base + 1`` holds the base once, by name."""
    base, last = ex.maximum(ex.sub(QB, ex.ONE), ex.ZERO), ex.Var("NK")
    count = ex.add(last, ex.ONE, ex.scale(-1, base))
    named = from_first(count, base, "first", TILE_RANGES)
    assert named == ex.sub(ex.add(last, ex.ONE), ex.Var("first"))
    assert from_first(count, QB, "first", TILE_RANGES) == count


@pytest.mark.parametrize("dialect", [TritonDialect, HostDialect])
def test_long_chains_are_printed_in_halves(dialect: type[TritonDialect | HostDialect]) -> None:
    """Python reads a chain of operators as a nest as deep: 4000 alternatives must not be one."""
    rests = [ex.mod(ex.add(ex.Var("q"), ex.Const(i)), i + 2) for i in range(2000)]
    printer = dialect({n: n for n in NAMES}, TOKEN_RANGES)
    for joined in (
        ex.or_(*(ex.compare("==", rest, ex.Var("k")) for rest in rests)),
        ex.compare("<", ex.minimum(*rests), ex.Var("k")),
        ex.compare("<", ex.add(*rests), ex.Var("k")),
    ):
        text = printer.boolean(joined)
        if dialect is HostDialect:
            scope = {"q": 7, "k": 3, "_least": min}
            assert eval(text, scope) == ex.evaluate(joined, {"q": 7, "k": 3})
        compile(text, "<text>", "eval")


@pytest.mark.parametrize("dialect", [TritonDialect, HostDialect])
def test_what_no_compiler_reads_is_refused(dialect: type[TritonDialect | HostDialect]) -> None:
    deep: ex.IntExpr = ex.Var("q")
    for _ in range(MAX_BRACKETS + 1):
        deep = ex.absolute(ex.sub(deep, ex.Var("k")))
    large = ex.or_(
        *(ex.compare("==", ex.mod(ex.Var("q"), i + 2), ex.ONE) for i in range(MAX_OPERATIONS))
    )
    for predicate in (ex.compare("<", deep, ex.ONE), large):
        with pytest.raises(CompileError, match="ATT0409"):
            dialect({n: n for n in NAMES}, TOKEN_RANGES).boolean(predicate)


def test_one_largest_length() -> None:
    """The op refuses what the ranges of the printed arithmetic do not hold."""
    assert op_contract._MOST_TOKENS == MAX_LENGTH == LENGTH_MAX


def test_a_sum_of_many_conditionals_stays_one() -> None:
    """Written into their branches, forty conditionals would become 2**40 sums."""
    terms = [
        ex.select(ex.compare("<", ex.mod(ex.Var("q"), i), ex.ONE), ex.Var("k"), ex.Const(i))
        for i in range(2, 42)
    ]
    whole = ex.add(*terms)
    assert simplify_int(whole, TOKEN_RANGES) == whole


def test_reads_of_batches() -> None:
    """Torch text reads the item of its batch, the only one where there is one, 0 outside."""
    text = HostDialect({"q": "q"}, RANGES).integer(ex.Read("doc", (ex.sub(ex.Var("q"), ex.ONE),)))
    q, b = torch.arange(5)[None, :], torch.arange(2)[:, None]
    for rows in (1, 2):
        doc = torch.arange(3 * rows, dtype=torch.int32).reshape(rows, 3) + 10
        found = torch.as_tensor(eval(text, HOST, {"q": q, "b": b, "data": {"doc": doc}}))
        want = [[0, *row, 0] for row in doc.tolist()]
        assert found.dtype == torch.int64
        assert found.tolist() == want
    empty = {"doc": torch.zeros(2, 0, dtype=torch.int64)}
    assert not eval(text, HOST, {"q": q, "b": b, "data": empty}).any()


def test_an_element_is_loaded_once() -> None:
    """Equal reads share a load; the inner one of two stands first; known bounds need no mask."""
    dialect = TritonDialect({"q": "q_pos", "k": "k_pos", "h": "h"}, RANGES, INPUTS)
    inner = ex.Read("doc", (ex.Var("q"),))
    outer = ex.Read("kind", (ex.mod(inner, 3), ex.mod(ex.Var("k"), 40)))
    text = dialect.boolean(ex.or_(ex.compare("==", outer, ex.ZERO), ex.compare("<", inner, outer)))
    assert text == "(kind_at_0 == 0) | (doc_at_q < kind_at_0)"
    assert [line for load in dialect.loads.values() for line in load.lines] == [
        "doc_at_q = tl.load(In_doc + q_pos, mask=q_pos < Side_0_doc, other=0)",
        "kind_at_0_0 = _floor_mod(doc_at_q, 3)",
        "kind_at_0_1 = k_pos % 40",
        "kind_at_0 = tl.load(In_kind + kind_at_0_0 * 40 + kind_at_0_1)",
    ]
    assert [load.side for load in dialect.loads.values()] == ["q", "both"]
