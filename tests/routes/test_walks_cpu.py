"""Every loop over what is selected gives the same: by keys, by tokens, whatever is cut where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.routes import attend, selections
from attnc.codegen.routes.paste import used
from attnc.codegen.routes.walks_cpu import _form
from attnc.compiler import driver
from attnc.compiler.ir.plan import Plan
from attnc.compiler.ir.route import Route
from attnc.compiler.ir.routed import Routed
from attnc.compiler.passes.build_routed import build_routed
from attnc.compiler.passes.route_plan import CPU_RATES, choose_form, fixed_form
from attnc.compiler.route_oracle import mask
from tests.routes.cases import CASES
from tests.routes.test_routed_op import reference_gradients
from tests.routes.zoo_ir import (
    dsa,
    infllm_v2,
    moba,
    nsa_selected,
    routed,
    vmoba_cells,
    xattention,
)


def no_plan(*arguments: Any) -> Plan:
    """Stand for the plan of the kept part, which does not run here."""
    return None  # type: ignore[return-value]


def written(method: Routed, head_dim: int, value_dim: int, form: str | None = None) -> Any:
    """Return the names of a module's routed part; its loop is ``form`` where there is a choice."""
    plan = build_routed(
        method, no_plan, head_dim=head_dim, value_dim=value_dim, dtype="fp32", target="sm_90"
    )
    printed = (HOST_HELPERS, selections.emit_select(method), attend.emit_attend(plan))
    text = "\n\n\n".join(printed)
    libraries = tuple(dict.fromkeys((*selections.LIBRARIES, *attend.LIBRARIES)))
    scope: dict[str, Any] = {"NAME": "test"}
    exec(compile(f"{used(text, *libraries)}\n\n\n{text}", "<walks>", "exec"), scope)
    if form is not None:
        assert "_form" in scope, "no choice of a loop"
        scope["_form"] = lambda *given, **rates: form
    return scope


def check(method: Routed, scope: Any, sizes: tuple[int, ...], inputs: dict[str, Any]) -> None:
    """Compare results and gradients of the routed part with dense float64 attention."""
    b, hq, hkv, nq, nk, d, dv = sizes
    rng = np.random.default_rng(nq + nk)
    shapes = [(b, hq, nq, d), (b, hkv, nk, d), (b, hkv, nk, dv)]
    q, k, v = (rng.normal(size=shape) for shape in shapes)
    seen = mask(method, q, k, inputs) & ~method.kept.mask(nq, nk, inputs)
    tensors = [torch.tensor(x) for x in (q, k, v)]
    given = {n: torch.tensor(x) for n, x in inputs.items()}
    selected = [scope[f"_select_{r.name}"](*tensors[:2], given) for r in method.routes]
    out, lse = scope["_cpu_routed_forward"](*tensors, d**-0.5, selected, given)
    s = (q @ k.repeat(hq // hkv, 1).swapaxes(2, 3)) * d**-0.5
    weights = np.where(seen, np.exp(s), 0.0)
    total = weights.sum(-1)
    expected = weights @ v.repeat(hq // hkv, 1) / np.where(total > 0, total, 1)[..., None]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-10)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(lse.numpy(), np.log(total), atol=1e-10)
    back = (torch.tensor(rng.normal(size=expected.shape)), torch.tensor(rng.normal(size=lse.shape)))
    back = (back[0], back[1] * torch.tensor(seen.any(-1)))
    arguments = (*tensors, out, lse, *back, d**-0.5, selected, given, (True,) * 3)
    *grads, _ = scope["_cpu_routed_backward"](*arguments)
    for own, other in zip(grads, reference_gradients(method, q, k, v, *back, seen), strict=True):
        np.testing.assert_allclose(own.numpy(), other.numpy(), atol=1e-10)


PER_HEAD = "pattern moba heads h: 2 = { q -> k, h : k <= q and (q - k) mod 2 <= h }"
METHODS: dict[str, tuple[Routed, tuple[int, ...]]] = {
    "blocks of a causal mask": (moba(16, 3), (2, 2, 1, 150, 150, 16, 16)),
    "whole blocks": (moba(32, 2), (1, 1, 1, 128, 128, 16, 16)),
    "other channels of values": (moba(16, 3), (1, 2, 2, 90, 90, 16, 24)),
    "a group of heads": (nsa_selected(), (2, 6, 2, 101, 101, 16, 16)),
    "blocks shared by a group": (infllm_v2(), (1, 4, 1, 130, 130, 16, 16)),
    "some last queries": (
        routed(*moba(16, 3).routes, align="bottom-right"), (1, 2, 2, 40, 150, 16, 16),
    ),
    "a window": (
        routed(*moba(16, 4).routes, base="k <= q and q - k < 50"), (1, 2, 2, 140, 140, 16, 16),
    ),
    "a mask for each head": (
        replace(moba(16, 4), base=driver.load_text(PER_HEAD)), (1, 2, 2, 100, 100, 16, 16),
    ),
    "beside a kept part": (
        routed(*moba(16, 4).routes, kept="q - k < 20 and k <= q"), (1, 2, 2, 100, 100, 16, 16),
    ),
    "future keys": (routed(*moba(16, 4).routes, base="k >= 0"), (1, 2, 2, 100, 100, 16, 16)),
    "two routes": (
        routed(*moba(16, 3).routes, *nsa_selected().routes), (1, 2, 2, 100, 100, 16, 16),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["keys", "tokens"])
@pytest.mark.parametrize("what", METHODS)
def test_both_loops_over_what_tokens_chose(what: str, form: str) -> None:
    method, sizes = METHODS[what]
    check(method, written(method, *sizes[-2:], form), sizes, {})


@pytest.mark.parametrize("form", ["keys", "tokens"])
def test_pieces_are_cut_anywhere(form: str) -> None:
    method, sizes = METHODS["blocks of a causal mask"]
    scope = written(method, 16, 16, form)
    scope |= {"_TALL": 8, "_MANY": 7, "_LONG": 16, "_MASKED": 3, "_COPIED_BYTES": 5000}
    check(method, scope, sizes, {})


@pytest.mark.parametrize("cut", [{}, {"_TALL": 5, "_LONG": 8, "_MASKED": 3}], ids=["", "cut"])
@pytest.mark.parametrize("method", [xattention(), vmoba_cells()], ids=lambda m: m.name)
def test_loops_without_a_choice(method: Routed, cut: dict[str, int]) -> None:
    n = 100 if method.name == "xattention" else CASES["vmoba_cells"].fixed
    assert n is not None
    scope = written(method, 16, 16) | cut
    check(method, scope, (2, 2, 1, n, n, 16, 16), {})


# ------------------------------------------------------------------------------------ the choice


def route_of(method: Routed) -> Route:
    return method.routes[0]


@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 512])
@pytest.mark.parametrize("group", [1, 4, 16, 64])
def test_a_module_chooses_as_the_plan_says(tokens: int, group: int) -> None:
    """The formula of a module is that of the plan, for few queries and for many."""
    route = route_of(moba(tokens, 3))
    rates = {name: getattr(CPU_RATES, name) for name in ("call", "merge", "pair", "copy")}
    for nq, nk in ((1, 4096), (4096, 4096)):
        counts = torch.full((2, 3, nq), 3, dtype=torch.int32)
        q, k = torch.empty(2, 3 * group, nq, 32), torch.empty(2, 3, nk, 32)
        found = _form((counts, counts), q, k, tokens, 96, **rates)
        units = 6 * -(-nk // tokens)
        walk = choose_form(route, selected=6 * nq * 3, units=units, group=group, channels=96)
        assert found == walk.form
        assert str(walk).startswith(f"by {walk.form}: by keys ")


def test_the_loop_follows_from_costs() -> None:
    """Large blocks by keys, single tokens and single queries by tokens, cells by keys."""

    def chosen(route: Route, group: int, queries: int, units: int) -> str:
        few = {"selected": queries * 16, "units": units, "group": group, "channels": 128}
        return choose_form(route, **few).form

    assert chosen(route_of(moba(512, 3)), 1, 32768, 64) == "keys"
    assert chosen(route_of(moba(512, 3)), 1, 1, 64) == "tokens"
    assert chosen(route_of(moba(64, 16)), 4, 32768, 512) == "keys"
    assert chosen(route_of(moba(64, 16)), 64, 32768, 512) == "tokens"
    assert chosen(route_of(dsa()), 1, 32768, 32768) == "tokens"
    assert fixed_form(route_of(vmoba_cells())) == "keys"
    assert fixed_form(route_of(xattention())) == "rows"
    assert str(choose_form(route_of(xattention()), selected=1, units=1, group=1, channels=1)) == (
        "by rows"
    )
