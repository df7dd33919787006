"""Ops train: gradients, what is refused, and what torch asks of an op with a backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import attnc
from attnc.compiler.passes.build_plan import build_plan
from attnc.runtime.build import load_module, write_module
from attnc.runtime.reference_gradients import Backward, assert_gradients_within
from tests.kernels import skip_without_interpreter
from tests.test_data_op import TEXTS as DATA_TEXTS
from tests.test_data_op import inputs_of

TEXTS = {
    "near": "pattern near = { q -> k : 0 <= q - k < 5 } | { q -> k : k < 2 and k <= q }",
    "late": "pattern late = { q -> k : k <= q - 3 }",
    "heads": "heads h: 4\npattern heads = { q -> k, h : 0 <= q - k and q - k <= h }",
    **DATA_TEXTS,
}


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


def leaves(
    nq: int = 9, nk: int | None = None, *, batch: int = 2, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Return q, k, v that require gradients: four heads of q, two of k and v."""
    make = torch.Generator().manual_seed(nq)
    nk = nq if nk is None else nk
    shapes = ((batch, heads, n, 16) for heads, n in ((4, nq), (2, nk), (2, nk)))
    found = [torch.randn(shape, generator=make).to(dtype) for shape in shapes]
    return [t.requires_grad_() for t in found]


def loss(op: Callable[..., Any], *tensors: torch.Tensor, **given: Any) -> torch.Tensor:
    """Return a number that depends on out and lse; rows without keys leave it finite."""
    out, lse = op(*tensors, return_lse=True, **given)
    total: torch.Tensor = out.square().sum() + lse.masked_fill(lse == -math.inf, 0).sum()
    return total


def gradients(op: Callable[..., Any], tensors: Any, **given: Any) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss(op, *tensors, **given), tensors)


# --------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_gradients_are_within_the_error_rule(
    compiled: Any, name: str, dtype: torch.dtype
) -> None:
    n = 77
    op, given = compiled(name), inputs_of(name, n)
    q, k, v = leaves(n, dtype=dtype)
    plain = {key: x for key, x in given.items() if key != "extents"}
    learned = [x.requires_grad_() for x in plain.values() if _is_real(x)]
    out, lse = op(q, k, v, return_lse=True, **given)
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad((out, lse), (q, k, v, *learned), (grad_out, grad_lse))
    assert [g.dtype for g in found] == [dtype] * 3 + [x.dtype for x in learned]
    call = Backward(
        pattern=op._ir, q=q.detach(), k=k.detach(), v=v.detach(), grad_out=grad_out,
        grad_lse=grad_lse, inputs=plain, extents=given.get("extents"),
    )  # fmt: skip
    assert_gradients_within(found, call)


def _is_real(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


@pytest.mark.parametrize("name", ["near", "late", "heads", "documents", "capped", "sink"])
def test_gradcheck(compiled: Any, name: str) -> None:
    """Undefined gradients of out or lse included."""
    op = compiled(name)
    q, k, v = leaves(7, dtype=torch.float64)
    given = inputs_of(name, 7)
    given |= {key: x.double().requires_grad_() for key, x in given.items() if _is_real(x)}
    if name == "sink":
        given = {"logit": torch.tensor([0.5, -3.0, 2.0, 0.0], dtype=torch.float64)}
        given["logit"].requires_grad_()
    names = list(given)

    def call(q: Any, k: Any, v: Any, *values: Any) -> Any:
        out, lse = op(q, k, v, return_lse=True, **dict(zip(names, values, strict=True)))
        return out, lse.masked_fill(lse == -math.inf, 0)

    assert torch.autograd.gradcheck(call, (q, k, v, *given.values()), fast_mode=True)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_only_what_is_needed_is_computed(compiled: Any, wanted: tuple[bool, ...]) -> None:
    op, names = compiled("near"), compiled("near")._function.__globals__
    expected = gradients(op, leaves())
    asked = []

    def spy(*arguments: Any, needs: Any) -> Any:
        asked.append(tuple(needs))
        return run(*arguments, needs=needs)

    run = names["_cpu_backward"]
    tensors = [t.requires_grad_(need) for t, need in zip(leaves(), wanted, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names, "_cpu_backward", spy)
        loss(op, *tensors).backward()
    assert asked == [wanted]
    for t, need, gradient in zip(tensors, wanted, expected, strict=True):
        assert (t.grad is not None) == need
        assert not need or torch.equal(t.grad, gradient)


def test_only_the_learned_inputs_get_gradients(compiled: Any) -> None:
    op = compiled("capped")
    tensors = [t.requires_grad_(False) for t in leaves()]
    bias = torch.randn(4, 40, requires_grad=True)
    out, lse = op(*tensors, bias=bias, return_lse=True)
    assert out.requires_grad
    lse[lse.isfinite()].sum().backward()
    assert bias.grad is not None
    assert bias.grad[:, :3].abs().sum() == 0  # no query sees a key so near
    assert bias.grad[:, 3:9].abs().amin() > 0


@pytest.mark.parametrize("name", ["near", "heads", "documents", "capped", "sink"])
def test_two_backwards_agree_in_every_bit(compiled: Any, name: str) -> None:
    given = inputs_of(name, 77)
    learned = [x.requires_grad_() for x in given.values() if _is_real(x)]
    runs = []
    for _ in range(2):
        tensors = [*leaves(77), *learned]
        total = loss(compiled(name), *tensors[:3], **given)
        runs.append(torch.autograd.grad(total, tensors))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("batch", "nq", "nk"), [(0, 5, 5), (2, 0, 5), (2, 5, 0), (2, 1, 1)])
@pytest.mark.parametrize("name", ["near", "documents"])
def test_lengths_of_zero_and_one(compiled: Any, name: str, batch: int, nq: int, nk: int) -> None:
    tensors = leaves(nq, nk, batch=batch)
    given = {"doc": torch.zeros(nk, dtype=torch.int64)} if name == "documents" else {}
    for t, gradient in zip(tensors, gradients(compiled(name), tensors, **given), strict=True):
        assert gradient.shape == t.shape
        assert torch.isfinite(gradient).all()


def test_queries_without_keys_have_no_gradient(compiled: Any) -> None:
    """Also where a gradient of their log-sum-exp, which is -inf, comes in."""
    q, k, v = leaves()
    out, lse = compiled("late")(q, k, v, return_lse=True)
    found = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones(2, 4, 9)))
    assert all(torch.isfinite(g).all() for g in found)
    assert torch.equal(found[0][:, :, :3], torch.zeros(2, 4, 3, 16))


def test_a_sink_learns_where_there_are_no_keys(compiled: Any) -> None:
    """Without keys the log-sum-exp is the sink: its gradient is the sum of theirs."""
    q, k, v = leaves(5, 0)
    logit = torch.tensor([0.5, -3.0, 2.0, 0.0], requires_grad=True)
    out, lse = compiled("sink")(q, k, v, logit=logit, return_lse=True)
    (out.sum() + lse.sum()).backward()
    assert logit.grad is not None
    torch.testing.assert_close(logit.grad, torch.full((4,), 10.0))


def test_strides_of_gradients_do_not_matter(compiled: Any) -> None:
    op, tensors = compiled("near"), leaves(40)
    out = op(*tensors)
    plain = torch.randn(2, 40, 16, 4)
    for grad_out in (plain.permute(0, 3, 1, 2), torch.ones(1, 1, 1, 1).expand_as(out)):
        found = torch.autograd.grad(out, tensors, grad_out, retain_graph=True)
        expected = torch.autograd.grad(out, tensors, grad_out.contiguous(), retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_what_was_changed_in_place_is_noticed(compiled: Any) -> None:
    q, k, v = leaves()
    out = compiled("near")(q, k, v)
    out.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---------------------------------------------------------------------------------- refusals

SECOND = "near has first derivatives only; its backward cannot be differentiated"
FORWARD_MODE = "forward-mode derivatives of near are not generated"


def test_second_derivatives_are_refused(compiled: Any) -> None:
    """First ones are there with ``create_graph`` too; only what needs a second one raises."""
    tensors = leaves()
    total = loss(compiled("near"), *tensors)
    found = torch.autograd.grad(total, tensors, create_graph=True)
    for a, b in zip(found, gradients(compiled("near"), leaves()), strict=True):
        assert torch.equal(a.detach(), b)
    with pytest.raises(RuntimeError, match=SECOND):
        found[0].sum().backward()


def test_transforms_of_functions(compiled: Any) -> None:
    """``torch.func`` is right, or it raises: second derivatives in any nesting are refused."""
    func = torch.func
    q, k, v = (t.detach() for t in leaves(dtype=torch.float64))

    def of(t: torch.Tensor) -> torch.Tensor:
        return loss(compiled("near"), t, k, v)

    expected = gradients(lambda t, **options: compiled("near")(t, k, v, **options),
                         [q.clone().requires_grad_()])[0]  # fmt: skip
    assert torch.equal(func.grad(of)(q), expected)
    stacked = torch.stack([q, 2 * q, -q])
    one_by_one = torch.stack([func.grad(of)(t) for t in stacked])
    mapped = func.vmap(func.grad(of))(stacked)
    torch.testing.assert_close(mapped, one_by_one, rtol=0, atol=1e-12)
    through = func.grad(lambda t: func.vmap(of)(torch.stack([t, 2 * t])).sum())(q)
    both = func.grad(lambda t: of(t) + of(2 * t))(q)
    torch.testing.assert_close(through, both, rtol=0, atol=1e-12)
    rows = func.jacrev(lambda t: compiled("near")(t, k, v).sum((0, 1, 3)))(q)
    torch.testing.assert_close(rows.sum(0), func.grad(lambda t: compiled("near")(t, k, v).sum())(q))
    for second in (
        lambda: func.grad(lambda t: func.grad(of)(t).sum())(q),
        lambda: func.grad(lambda t: func.vmap(func.grad(of))(torch.stack([t, t])).sum())(q),
    ):
        with pytest.raises(RuntimeError, match=SECOND):
            second()
    for forward in (
        lambda: func.jvp(of, (q,), (q,)),
        lambda: func.jvp(func.grad(of), (q,), (q,)),
        lambda: func.grad(lambda t: func.jvp(of, (t,), (t,))[1])(q),
        lambda: func.hessian(of)(q),
    ):
        with pytest.raises(RuntimeError, match=FORWARD_MODE):
            forward()


def test_vmap_refuses_gradients_of_what_is_shared(compiled: Any) -> None:
    q, k, v = (t.detach() for t in leaves())

    def of(bias: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return loss(compiled("capped"), t, k, v, bias=bias)

    with pytest.raises(ValueError, match="vmap maps gradients of q, k and v only"):
        torch.func.vmap(torch.func.grad(of), (None, 0))(torch.randn(4, 40), torch.stack([q, q]))


# ------------------------------------------------------------------------ what torch asks for


def registered(op: Any, n: int, dtype: torch.dtype, **given: Any) -> tuple[Any, Any, list[Any]]:
    """Return the op and its backward as torch knows them, and arguments that need gradients."""
    names, tensors = op._function.__globals__, leaves(n, dtype=dtype)
    extra = ()
    if given:
        known = {one.name: given.get(one.name) for one in names["_INPUTS"]}
        extra = names["_arguments"](*tensors[:2], known, given.get("extents"))
    return names["_op"], names["_backward_op"], [*tensors, 0.25, *extra]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["near", "documents", "capped", "sink"])
def test_opcheck(compiled: Any, name: str, dtype: torch.dtype) -> None:
    given = {n: x.requires_grad_() if _is_real(x) else x for n, x in inputs_of(name, 20).items()}
    op, backward, arguments = registered(compiled(name), 20, dtype, **given)
    torch.library.opcheck(op, tuple(arguments))
    q, k, v, scale, *extra = arguments
    extra = [[x.detach() for x in extra[0]], *extra[1:]] if extra else []
    q, k, v = (t.detach() for t in (q, k, v))
    out, lse = op(q, k, v, scale, *extra)
    grads = (torch.randn_like(out), torch.randn_like(lse))
    needs = [True, False, True, *(_is_real(x) for x in (extra[0] if extra else ()))]
    for grad_lse in (None, grads[1]):
        torch.library.opcheck(
            backward, (grads[0], grad_lse, q, k, v, out, lse, scale, *extra), {"needs": needs}
        )


@pytest.mark.parametrize("name", ["near", "documents"])
def test_one_graph_serves_every_length_and_batch(compiled: Any, name: str) -> None:
    """No break, no recompilation: one graph forward, one backward."""
    torch._dynamo.reset()
    op = compiled(name)
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(op, fullgraph=True, backend=counter)
    for n, batch in ((9, 2), (17, 3), (40, 4)):
        tensors = leaves(n, batch=batch)
        for t, dim in itertools.product(tensors, (0, 2)):
            torch._dynamo.mark_dynamic(t, dim)
        given = {}
        if name == "documents":
            given["doc"] = torch.arange(n) // 4
            torch._dynamo.mark_dynamic(given["doc"], 0)
        found = torch.autograd.grad(step(*tensors, **given).square().sum(), tensors)
        expected = torch.autograd.grad(op(*tensors, **given).square().sum(), tensors)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counter.frame_count == 1


def test_inductor(compiled: Any) -> None:
    torch._dynamo.reset()
    op = compiled("capped")

    def block(q: Any, k: Any, v: Any, bias: Any) -> torch.Tensor:
        halves = [t.transpose(1, 2).tanh().transpose(1, 2) for t in (q, k, v)]
        out: torch.Tensor = op(*halves, bias=bias.exp()) + 1
        return out.square().mean()

    tensors = [*leaves(30), torch.randn(4, 40, requires_grad=True)]
    step = torch.compile(block, fullgraph=True)
    found = torch.autograd.grad(step(*tensors), tensors)
    expected = torch.autograd.grad(block(*tensors), tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_export_of_a_step_with_its_backward(compiled: Any) -> None:
    """The graph of a training step, with gradients, holds the op and its backward."""
    op = compiled("near")
    tensors = [t.detach() for t in leaves(9)]

    def step(q: Any, k: Any, v: Any) -> Any:
        return torch.func.grad(lambda *t: loss_of_out(op, *t), (0, 1, 2))(q, k, v)

    graph = torch.fx.experimental.proxy_tensor.make_fx(step, tracing_mode="symbolic")(*tensors)
    called = [str(n.target) for n in graph.graph.nodes if "attnc" in str(n.target)]
    assert len(called) == 2
    others = [t.detach() for t in leaves(21)]
    for a, b in zip(graph(*others), step(*others), strict=True):
        assert torch.equal(a, b)


def loss_of_out(op: Any, *tensors: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = op(*tensors).square().sum()
    return total


def test_export_with_parameters(compiled: Any) -> None:
    op = compiled("near")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(16, 16)

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
            return op(self.project(q), k, v)

    n = torch.export.Dim("n")
    model = Model()
    given = tuple(t.detach() for t in leaves(9))
    exported = torch.export.export(model, given, dynamic_shapes=({2: n}, {2: n}, {2: n})).module()
    others = [t.detach() for t in leaves(30)]
    exported(*others).sum().backward()
    model(*others).sum().backward()
    gradient = exported.get_parameter("project.weight").grad
    assert gradient is not None
    torch.testing.assert_close(gradient, model.project.weight.grad)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(compiled: Any, inside: bool) -> None:
    """The backward runs in the dtypes of its forward, wherever it is called."""
    op, tensors = compiled("capped"), leaves(40)
    bias = torch.randn(4, 40, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(*tensors, bias=bias)
        assert out.dtype == torch.bfloat16
        if inside:
            found = torch.autograd.grad(out.sum(), (*tensors, bias))
    if not inside:
        found = torch.autograd.grad(out.sum(), (*tensors, bias))
    halves = [t.detach().bfloat16().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(op(*halves, bias=bias).sum(), (*halves, bias))
    assert [g.dtype for g in found] == [torch.float32] * 4
    assert all(torch.equal(a, b.float()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(compiled: Any, reentrant: bool) -> None:
    op = compiled("near")
    tensors = leaves(40)
    expected = torch.autograd.grad(loss_of_out(op, *tensors), tensors)
    checkpoint(lambda *t: loss_of_out(op, *t), *tensors, use_reentrant=reentrant).backward()
    assert all(torch.equal(t.grad, b) for t, b in zip(tensors, expected, strict=True))


def test_nothing_is_saved_without_gradients(compiled: Any) -> None:
    q, k, v = leaves()
    with torch.no_grad():
        out, lse = compiled("near")(q, k, v, return_lse=True)
    assert out.grad_fn is lse.grad_fn is None
    with torch.inference_mode():
        assert torch.equal(compiled("near")(q, k, v), out)


def test_compiled_forward_alone_has_no_backward_in_it(compiled: Any) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(compiled("near"), fullgraph=True, backend=counter)
    with torch.no_grad():
        step(*leaves())
    assert counter.op_count == 2  # the op, and taking its first result


def test_meta_tensors_have_gradients(compiled: Any) -> None:
    tensors = [t.detach().to("meta").requires_grad_() for t in leaves(9, 12)]
    compiled("near")(*tensors).sum().backward()
    assert [t.grad.shape for t in tensors if t.grad is not None] == [t.shape for t in tensors]


@pytest.mark.parametrize("name", ["near", "heads", "documents", "phase", "alibi", "sink"])
def test_kernels_of_modules_run_interpreted(compiled: Any, name: str) -> None:
    """What runs on a GPU gives the gradients of the CPU executor."""
    skip_without_interpreter()
    given = {n: x.requires_grad_() if _is_real(x) else x for n, x in inputs_of(name, 40).items()}
    op, _, arguments = registered(compiled(name), 40, torch.float32, **given)
    names = compiled(name)._function.__globals__
    q, k, v, scale, *extra = arguments
    with torch.no_grad():
        out, lse = op(*arguments)
        saved = (q, k, v, out, lse, torch.randn_like(out), torch.randn_like(lse), scale)
        needs = [True, True, True, *(_is_real(x) for x in (extra[0] if extra else ()))]
        *expected, learned = names["_cpu_backward"](*saved, *extra, needs=needs)
        *found, found_learned = names["_gpu_backward"](*saved, *extra, needs=needs)
    for a, b in zip((*found, *found_learned), (*expected, *learned), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_plan_without_kernels_has_no_backward(tmp_path: Path) -> None:
    """On a GPU nothing else takes their place: it raises."""
    plan = build_plan(attnc.parse(TEXTS["near"]).ir, head_dim=16)
    assert plan.backward is None
    module = load_module(write_module(plan, tmp_path))
    with pytest.raises(RuntimeError, match="near: this module was written without backward kernel"):
        module._gpu_backward(needs=(True, True, True))
