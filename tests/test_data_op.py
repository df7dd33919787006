"""Ops of patterns with inputs, extents, scores and sinks: results, refusals, what torch asks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import attnc
from attnc.runtime.reference import assert_within, terms
from tests.kernels import skip_without_interpreter

N = 77
TEXTS: dict[str, str] = {
    "documents": """
        pattern documents(input doc: int[n]) = { q -> k : doc[q] == doc[k] and k <= q }
    """,
    "prefix": """
        pattern prefix(input length: int[docs], input doc: int[n]) =
            { q -> k : doc[q] == doc[k] and (k <= q or k < length[doc[q]]) }
    """,
    "vertical_slash": """
        pattern vertical_slash(input verticals: int[heads, *], input slashes: int[heads, *])
            heads h: 4 = { q -> k, h : k <= q and (k in verticals[h] or q - k in slashes[h]) }
    """,
    "adjacency": """
        pattern adjacency(input near: bool[n, n]) = { q -> k : near[q][k] or q == k }
    """,
    "blocks_of_heads": """
        pattern blocks_of_heads(input keep: bool[kv, rows, rows])
            kv_heads g: 2 = { q -> k, g : keep[g][q div 16][k div 16] }
    """,
    "static_kv_heads": """
        pattern static_kv_heads kv_heads g: 2 = { q -> k, g : 0 <= q - k < 5 + 30 * g }
    """,
    "grid": """
        space image = grid(y, x)
        pattern grid(radius: int = 2) on image =
            { q -> k : abs(q.y - k.y) <= radius and abs(q.x - k.x) <= radius }
    """,
    "phase": """
        pattern phase(input phase: int, input step: int = 3) =
            { q -> k : k <= q and (q - k + phase) mod 7 < step }
    """,
    "computed": """
        pattern computed(input counts: int[docs], input doc: int[n] = repeat(counts)) =
            { q -> k : doc[q] == doc[k] }
    """,
    "alibi": """
        score bias heads h: 4 = { q -> k, h : -0.25 * (h + 1) * (q - k) }
        attention alibi heads h: 4 = softmax(dot + bias, over: { q -> k : k <= q })
    """,
    "capped": """
        fn softcap(s: real, cap: real = 2) = cap * tanh(s / cap)
        score table(input bias: real[4, *]) heads h: 4 = { q -> k, h : bias[h][abs(q - k)] }
        attention capped heads h: 4 = softmax(softcap(dot) + table, over: { q -> k : k <= q - 3 })
    """,
    "sink": """
        pattern near = { q -> k : 3 <= q - k < 40 }
        attention sink(input logit: real[4]) heads h: 4 =
            softmax(dot, over: near, sink: logit[h], scale: 1 / 8)
    """,
}


def tensors(
    nq: int = N, nk: int = N, *, batch: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(nq)
    q, k, v = (
        torch.randn(batch, heads, length, 16, generator=make).to(dtype)
        for heads, length in ((4, nq), (2, nk), (2, nk))
    )
    return q, k, v


def inputs_of(name: str, n: int = N) -> dict[str, Any]:
    """Make inputs of a named text."""
    make = torch.Generator().manual_seed(n)

    def some(*shape: int, most: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=make)

    match name:
        case "documents":
            return {"doc": some(n, most=4).sort().values}
        case "prefix":
            return {"doc": some(n, most=4).sort().values, "length": some(4, most=n)}
        case "vertical_slash":
            slashes = torch.cat([some(4, 3, most=n), -torch.ones(4, 2, dtype=torch.int64)], 1)
            return {"verticals": some(4, 5, most=n), "slashes": slashes}
        case "adjacency":
            return {"near": some(n, n, most=40) == 0}
        case "blocks_of_heads":
            return {"keep": some(2, -(-n // 16), -(-n // 16), most=2) == 0}
        case "grid":
            return {"extents": {"y": 7, "x": n // 7}}
        case "phase":
            return {"phase": 5}
        case "computed":
            return {"counts": torch.tensor([3, 0, n - 5, 2])}
        case "capped":
            return {"bias": torch.randn(4, 40, generator=make)}
        case "sink":
            return {"logit": torch.tensor([0.5, -3.0, 2.0, -math.inf])}
    return {}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Compile a named text once for all tests of this file, in a cache of its own."""
    ops: dict[str, Any] = {}

    def compile_text(name: str) -> Any:
        if name not in ops:
            ops[name] = attnc.compile(
                attnc.parse(TEXTS[name], pattern=name), head_dim=16, tile=(16, 16)
            )
        return ops[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield compile_text


def check(op: Any, q: Any, k: Any, v: Any, given: dict[str, Any], **options: Any) -> None:
    """Hold an op against float64, by the definition of its pattern."""
    out, lse = op(q, k, v, return_lse=True, **given, **options)
    extents = given.get("extents")
    plain = {name: x for name, x in given.items() if name != "extents"}
    expected = terms(op._ir, q, k, plain, extents)
    scale = options.get("scale", None if op._ir.scale is None else float(op._ir.scale))
    assert_within(out, lse, q, k, v, expected, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_result_is_within_the_error_rule(compiled: Any, name: str, dtype: torch.dtype) -> None:
    op = compiled(name)
    for n in (7, 77):
        check(op, *tensors(n, n, dtype=dtype), inputs_of(name, n))


@pytest.mark.parametrize("name", ["documents", "vertical_slash", "adjacency", "capped", "sink"])
def test_kernels_of_modules_run_interpreted(compiled: Any, name: str) -> None:
    """The launch builds the table and passes the inputs; results are those of the CPU executor."""
    skip_without_interpreter()
    module = SimpleNamespace(**compiled_globals(compiled(name)))
    q, k, v = tensors(40, 40)
    given = inputs_of(name, 40)
    expected, expected_lse = compiled(name)(q, k, v, return_lse=True, **given)
    arguments = {one.name: given.get(one.name) for one in module._INPUTS} if given else {}
    extra = module._arguments(q, k, arguments, given.get("extents")) if given else ()
    out, lse = torch.full_like(expected, math.nan), torch.full_like(expected_lse, math.nan)
    scale = 0.125 if name == "sink" else 0.25
    module._gpu_forward(q, k, v, scale, out, lse, *extra)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-5)


def compiled_globals(op: Any) -> dict[str, Any]:
    """Return the names of an op's written module."""
    names: dict[str, Any] = op._function.__globals__
    return names


@pytest.mark.parametrize("batch", [1, 2])
def test_inputs_with_a_batch_dimension(compiled: Any, batch: int) -> None:
    make = torch.Generator().manual_seed(1)
    doc = torch.randint(0, 3, (batch, N), generator=make)
    check(compiled("documents"), *tensors(), {"doc": doc})
    check(compiled("documents"), *tensors(), {"doc": doc.int()})
    check(compiled("adjacency"), *tensors(), {"near": torch.rand(batch, N, N) < 0.1})
    counts = torch.tensor([[7, 70], [N, 0]])[:batch]
    check(compiled("computed"), *tensors(), {"counts": counts})


def test_a_computed_input_may_be_given(compiled: Any) -> None:
    op, (q, k, v) = compiled("computed"), tensors()
    counts, doc = torch.tensor([N]), torch.arange(N) // 20
    check(op, q, k, v, {"counts": counts, "doc": doc})
    assert not torch.equal(op(q, k, v, counts=counts), op(q, k, v, counts=counts, doc=doc))


def test_lengths_that_differ(compiled: Any) -> None:
    check(compiled("phase"), *tensors(33, 90), {"phase": 2, "step": 1})
    check(compiled("capped"), *tensors(90, 33), inputs_of("capped"))
    check(compiled("documents"), *tensors(33, 90), {"doc": torch.arange(90) // 9})


def test_inputs_are_read_by_their_own_strides(compiled: Any) -> None:
    near = torch.rand(N, N) < 0.1
    q, k, v = tensors()
    expected = compiled("adjacency")(q, k, v, near=near)
    assert torch.equal(compiled("adjacency")(q, k, v, near=near.T.contiguous().T), expected)


@pytest.mark.parametrize(("nq", "nk"), [(0, 0), (0, 5), (5, 0)])
def test_empty_sequences(compiled: Any, nq: int, nk: int) -> None:
    q, k, v = tensors(nq, nk)
    doc = torch.zeros(nk, dtype=torch.int64)
    out, lse = compiled("documents")(q, k, v, doc=doc, return_lse=True)
    assert torch.equal(out, torch.zeros(2, 4, nq, 16))
    assert torch.equal(lse, torch.full((2, 4, nq), -math.inf))
    given = inputs_of("sink")
    out, lse = compiled("sink")(q, k, v, return_lse=True, **given)
    assert torch.equal(lse, given["logit"][:, None].expand(2, 4, nq))


# ---------------------------------------------------------------------------------- refusals

DOC = torch.zeros(N, dtype=torch.int64)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("documents", {}, "doc is missing; it is a tensor of int [nk]"),
    ("documents", {"doc": [0] * N}, "doc is a list, expected a tensor of int [nk]"),
    ("documents", {"doc": DOC.float()}, "doc has dtype torch.float32, expected a tensor of int"),
    ("documents", {"doc": DOC[:9]}, "doc [nk] has the sides [9], expected [77]"),
    ("documents", {"doc": DOC[None, None]}, "doc has the shape (1, 1, 77), expected a tensor"),
    ("documents", {"doc": DOC.expand(3, N)}, "doc has batch size 3 but q has 2"),
    ("documents", {"doc": DOC.to("meta")}, "doc is on meta but q is on cpu"),
    ("adjacency", {"near": torch.zeros(N, N).int()}, "near has dtype torch.int32"),
    ("phase", {}, "phase is missing; it is a number (int)"),
    ("phase", {"phase": 1.5}, "phase is a float, expected a number (int)"),
    ("phase", {"phase": True}, "phase is a bool, expected a number (int)"),
    ("phase", {"phase": 5, "stp": 3}, "there is no input `stp`; did you mean `step`?"),
    ("phase", {"extents": {}}, "there is no input `extents`; the inputs are `phase`, `step`"),
    ("static_kv_heads", {"doc": DOC}, "there is no input `doc`; the pattern has none"),
    ("grid", {"extents": {"y": 77, "x": True}}, "the extent x must be an int, got bool"),
    ("grid", {}, "extents must have y, x, got none"),
    ("grid", {"extents": {"y": 7}}, "extents must have y, x, got y"),
    ("grid", {"extents": {"y": 7, "x": 1.5}}, "the extent x must be an int, got float"),
    ("grid", {"extents": {"y": -7, "x": -11}}, "the extent y must be positive, got -7"),
    ("grid", {"extents": {"y": 7, "x": 12}}, "q has 77 tokens, but its space has 84"),
    ("computed", {"counts": torch.tensor([5, 6])}, "counts to repeat add up to 11, expected 77"),
]


@pytest.mark.parametrize(("name", "given", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_wrong_inputs_are_refused_by_name(
    compiled: Any, name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compiled(name)(*tensors(), **given)


def test_sides_of_inputs_agree(tmp_path: Any) -> None:
    text = """
        pattern p(input first: int[docs], input last: int[docs], input doc: int[n]) =
            { q -> k : first[doc[q]] <= k and k <= last[doc[q]] }
    """
    op = attnc.compile(attnc.parse(text), head_dim=16, cache=False)
    doc, three, four = DOC, DOC[:3], DOC[:4]
    message = "docs is 3 in another input, but 4 in last [docs], which has the shape (4,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        op(*tensors(), first=three, last=four, doc=doc)


def test_heads_of_keys_are_fixed(compiled: Any) -> None:
    q, _, _ = tensors()
    with pytest.raises(ValueError, match="k must have 2 heads, one for each mask"):
        compiled("static_kv_heads")(q, q, q)


def test_names_that_python_or_the_op_has_get_a_stroke() -> None:
    text = "pattern p(input class: int[n], input scale: int) = { q -> k : class[q] < k + scale }"
    op = attnc.compile(attnc.parse(text), head_dim=16, cache=False)
    q, k, v = tensors()
    out = op(q, k, v, class_=DOC, scale_=3)
    assert torch.equal(out, op(q, k, v, class_=DOC, scale_=3, scale=0.25))


# ------------------------------------------------------------------------ what torch asks for


def registered_arguments(op: Any, **given: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the registered op and its arguments."""
    names = compiled_globals(op)
    q, k, v = tensors()
    arguments = {one.name: given.get(one.name) for one in names["_INPUTS"]}
    extra = names["_arguments"](q, k, arguments, given.get("extents"))
    return names["_op"], (q, k, v, 0.25, *extra)


@pytest.mark.parametrize("name", ["documents", "computed", "phase", "grid", "capped"])
def test_opcheck(compiled: Any, name: str) -> None:
    op, arguments = registered_arguments(compiled(name), **inputs_of(name))
    torch.library.opcheck(op, arguments)


def test_one_graph_serves_every_length(compiled: Any) -> None:
    counter = CompileCounter()
    torch._dynamo.reset()
    op = compiled("documents")
    step = torch.compile(op, fullgraph=True, dynamic=True, backend=counter)
    for n in (9, 17, 40):
        q, k, v = tensors(n, n)
        doc = torch.arange(n) // 4
        assert torch.equal(step(q, k, v, doc=doc), op(q, k, v, doc=doc))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["computed", "phase", "grid"])
def test_compiled_graphs_take_inputs(compiled: Any, name: str) -> None:
    torch._dynamo.reset()
    q, k, v = tensors()
    step = torch.compile(compiled(name), fullgraph=True, backend="aot_eager")
    given = inputs_of(name)
    torch.testing.assert_close(step(q, k, v, **given), compiled(name)(q, k, v, **given))


def test_autocast_leaves_inputs_alone(compiled: Any) -> None:
    q, k, v = tensors()
    given = inputs_of("capped")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled("capped")(q, k, v, **given)
    halves = [t.bfloat16() for t in (q, k, v)]
    assert torch.equal(out, compiled("capped")(*halves, **given))
    assert given["bias"].dtype == torch.float32


def test_vmap_shares_inputs_or_refuses(compiled: Any) -> None:
    op, doc = compiled("documents"), torch.arange(N) // 9
    stacked = [torch.stack([t, t.roll(1, 2)]) for t in tensors()]
    mapped = torch.func.vmap(lambda q, k, v: op(q, k, v, doc=doc))(*stacked)
    for i in range(2):
        one = op(*(t[i] for t in stacked), doc=doc)
        torch.testing.assert_close(mapped[i], one, rtol=0, atol=1e-6)
    q, k, v = tensors()
    with pytest.raises(ValueError, match="vmap maps q, k and v only"):
        torch.func.vmap(lambda d: op(q, k, v, doc=d))(torch.stack([doc, doc]))


def test_a_side_may_be_a_sum() -> None:
    """`int[docs + 1]` defines docs; a second input must agree."""
    pattern = attnc.parse("""
        pattern p(input start: int[docs + 1], input kind: int[docs], input doc: int[n]) =
            { q -> k : start[doc[q]] <= k < start[doc[q] + 1] and kind[doc[q]] == kind[doc[k]] }
    """)
    op = attnc.compile(pattern, head_dim=16, cache=False)
    given = {
        "start": torch.tensor([0, 5, 20]), "kind": torch.tensor([1, 2]),
        "doc": torch.tensor([0] * 5 + [1] * 15),
    }  # fmt: skip
    check(op, *tensors(20, 20), given)
    with pytest.raises(ValueError, match="docs is 2 in another input, but 3 in kind"):
        op(*tensors(20, 20), **{**given, "kind": torch.tensor([1, 2, 3])})
    with pytest.raises(ValueError, match=r"start \[docs \+ 1\] has a side of 0"):
        op(*tensors(20, 20), **{**given, "start": torch.zeros(0, dtype=torch.int64)})
