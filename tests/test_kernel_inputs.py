"""Kernels that read inputs: documents, adjacency, per-head tables, symbolic extents, KV heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attnc.codegen.kernel_inputs import input_arguments
from attnc.codegen.triton_forward import emit_kernel
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Input, Pattern, Where
from tests import launches as ln

Q, K, H, NQ = ex.Var("q"), ex.Var("k"), ex.Var("h"), ex.Var("nq")
CAUSAL = ex.compare("<=", K, Q)
TILE = Tiling(16, 16)


def read(name: str, *index: ex.IntExpr) -> ex.Read:
    return ex.Read(name, index)


def random(
    nq: int, nk: int, *, batch: int = 1, heads: int = 2, kv_heads: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Random q, k, v, the same in every run."""
    rng = torch.Generator().manual_seed(nq * 1000 + nk)

    def draw(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(batch, heads, tokens, 16, generator=rng).to(ln.kn.DEVICE, dtype)

    return draw(heads, nq), draw(kv_heads, nk), draw(kv_heads, nk)


def draw(high: int, *shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


DOCUMENTS = Pattern(
    name="documents", heads=None,
    inputs=(Input(name="doc", kind="int", dims=(NQ,)),),
    body=Where(ex.and_(ex.compare("==", read("doc", Q), read("doc", K)), CAUSAL)),
)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("batches", [1, 3])
def test_documents(batches: int, dtype: torch.dtype) -> None:
    """Ids as 32 or 64 bits, shared by the batches or each its own."""
    doc = draw(4, batches, 45).sort(1).values.to(dtype)
    if dtype == torch.int64:
        doc = doc + 2**40
    plan = ln.data_plan(DOCUMENTS, TILE)
    ln.check(plan, *random(45, 45, batch=3), 0.25, {"doc": doc})


def test_half_precision() -> None:
    doc = draw(3, 1, 40)
    plan = ln.data_plan(DOCUMENTS, TILE, dtype="fp16")
    ln.check(plan, *random(40, 40, dtype=torch.float16), 0.25, {"doc": doc})


@pytest.mark.parametrize("row_order", ["forward", "reversed", "sorted"])
def test_per_head_inputs(row_order: str) -> None:
    """A window and a phase for each head, lengths that differ, more queries than keys."""
    width = read("width", H)
    body = ex.and_(
        ex.compare("<=", ex.sub(Q, width), K),
        ex.compare("<=", K, ex.add(Q, ex.Read("phase"))),
    )
    pattern = Pattern(
        name="widths", heads=4, body=Where(body),
        inputs=(
            Input(name="width", kind="int", dims=(ex.Const(4),)),
            Input(name="phase", kind="int", dims=()),
        ),
    )
    plan = ln.data_plan(pattern, TILE, heads=4, row_order=row_order)
    given = {"width": draw(30, 2, 4), "phase": -2}
    ln.check(plan, *random(50, 37, batch=2, heads=4, kv_heads=2), 0.25, given)


@pytest.mark.parametrize("batches", [1, 2])
def test_adjacency(batches: int) -> None:
    """A truth value for each pair, of a tensor with two dimensions, gathered through ids."""
    graph = Input(name="graph", kind="bool", dims=(None, None))
    node = Input(name="node", kind="int", dims=(None,))
    pattern = Pattern(
        name="graph", heads=None, inputs=(graph, node),
        body=Where(
            ex.or_(
                ex.compare("==", read("graph", read("node", Q), read("node", K)), ex.ONE),
                ex.compare("==", Q, K),
            )
        ),
    )  # fmt: skip
    given = {
        "graph": draw(2, batches, 9, 11).bool(),
        "node": draw(14, 1, 33) - 2,  # some lie outside of the graph
    }
    ln.check(ln.data_plan(pattern, TILE), *random(33, 33, batch=2), 0.25, given)


def test_index_outside_reads_nothing() -> None:
    """A tensor shorter than the sequence: no kept pair beyond it, an empty one keeps none."""
    pattern = Pattern(
        name="flags", heads=None, inputs=(Input(name="flag", kind="bool", dims=(None,)),),
        body=Where(ex.compare("==", read("flag", ex.sub(Q, K)), ex.ONE)),
    )
    for length in (5, 0):
        plan = ln.data_plan(pattern, TILE)
        given = {"flag": torch.ones(1, length, dtype=torch.bool)}
        ln.check(plan, *random(40, 40), 0.25, given)


def test_symbolic_extents() -> None:
    """Neighbours on a grid whose width is known at the call: run-time division."""
    width = ex.Read("x")
    rows = ex.absolute(ex.sub(ex.quot(Q, width), ex.quot(K, width)))
    columns = ex.absolute(ex.sub(ex.rem(Q, width), ex.rem(K, width)))
    near = ex.compare("<=", ex.add(ex.mul(rows, rows), ex.mul(columns, columns)), ex.Const(5))
    pattern = Pattern(name="disc", heads=None, body=Where(near), extents=("y", "x"))
    for x in (1, 7, 42):
        ln.check(ln.data_plan(pattern, TILE), *random(42, 42), 0.25, {"y": 42 // x, "x": x})


@pytest.mark.parametrize("form", ["ranges", "table", "data"])
@pytest.mark.parametrize("row_order", ["forward", "sorted"])
def test_kv_heads(form: str, row_order: str) -> None:
    """A mask for each head of the keys serves the query heads of its group."""
    body = ex.compare("<=", ex.sub(Q, ex.scale(7, H)), K)
    pattern = Pattern(name="groups", heads=3, kv_heads=True, body=Where(body))
    plan = ln.data_plan(pattern, TILE, heads=3, row_order=row_order)
    q, k, v = random(37, 37, heads=6, kv_heads=3, batch=2)
    ln.check(ln.of_form(plan, form), q, k, v, 0.25, {})


def test_classes_share_what_is_loaded_once() -> None:
    """Two mask classes that read the same element of a query, and others of keys and pairs."""
    before = read("doc", ex.sub(Q, ex.ONE))
    left = ex.compare("==", before, read("doc", K))
    own = ex.and_(
        ex.compare("!=", before, read("doc", ex.add(K, ex.ONE))), CAUSAL,
        ex.compare("==", read("graph", Q, K), ex.ONE),
    )
    tile_q, tile_k = ex.floordiv(Q, 16), ex.floordiv(K, 16)
    body = ex.or_(
        ex.and_(ex.compare("<", tile_k, tile_q), left),
        ex.and_(ex.compare("==", tile_k, tile_q), own),
    )
    pattern = Pattern(
        name="classes", heads=None, body=Where(body),
        inputs=(
            Input(name="doc", kind="int", dims=(NQ,)),
            Input(name="graph", kind="bool", dims=(NQ, NQ)),
        ),
    )
    made = ln.kn.causal()
    segments = tuple(replace(s, mask=i) for i, s in enumerate(made.segments, start=1))
    plan = replace(
        made, segments=segments, masks=(left, own),
        block_mask=replace(made.block_mask, pattern=pattern),
    )
    given = {"doc": draw(3, 1, 45), "graph": draw(2, 1, 45, 45).bool()}
    ln.check(plan, *random(45, 45), 0.25, given)
    loop = emit_kernel(plan).split("for it in range")[1]
    assert loop.index("In_graph +") < loop.index("tl.dot(")  # see KernelTerms.early


def test_static_inputs_are_arguments_once() -> None:
    """Each input is a pointer, a batch stride and the sides that are not known."""
    plan = ln.data_plan(DOCUMENTS, TILE)
    assert [(a.argument, a.kind) for a in input_arguments(plan)] == [
        ("In_doc", "*i64"), ("Batch_doc", "i64"),
    ]  # fmt: skip
    text = emit_kernel(plan)
    before, loop = text.split("for it in range")
    assert "doc_at_q = tl.load(In_doc + q_pos, mask=q_pos < nq, other=0)" in before
    assert "doc_at_k" in loop
    assert "doc_at_k" not in before


def test_names_do_not_collide() -> None:
    """Inputs may be called as the kernel calls its own values."""
    names = ("s", "top", "kb", "batch", "q_row", "Q", "row_start")
    test = ex.and_(
        *(ex.compare("==", read(n, Q), read(n, K)) for n in names),
        ex.compare("<", ex.Read("scale_log2"), ex.add(Q, ex.Read("nq"), ex.ONE)),
    )
    pattern = Pattern(
        name="names", heads=None, body=Where(test),
        inputs=(
            *(Input(name=n, kind="int", dims=(None,)) for n in names),
            Input(name="scale_log2", kind="int", dims=()),
            Input(name="nq", kind="int", dims=()),
        ),
    )
    given: dict[str, Any] = {n: draw(2, 1, 20, seed=i) for i, n in enumerate(names)}
    given |= {"scale_log2": 3, "nq": 0}
    ln.check(ln.data_plan(pattern, TILE), *random(20, 20), 0.25, given)
