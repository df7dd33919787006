"""Routed plan -> one readable Python module that needs only torch, and triton on a GPU.

It has an op that selects and an op that attends: scoring and selection of each route, the executors
of what is selected, those of the part that is kept at any rate, and how the two are put together.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import re
import textwrap

from attnc import __version__
from attnc.codegen import module as whole
from attnc.codegen.data import pasted
from attnc.codegen.inputs import argument, described, emit_inputs, signature, takes_inputs
from attnc.codegen.route_shapes import emit_shapes, selection_names
from attnc.codegen.routes import attend, gpu_attend, selections
from attnc.codegen.routes.paste import used
from attnc.codegen.writer import Writer
from attnc.compiler.ir.routed import Routed, RouteInput
from attnc.compiler.ir.routed_plan import RoutedPlan

_RENAMED = {
    "_EXTRA": "_BASE_EXTRA", "_check_pattern": "_check_base",
    "_lse_without_keys": "_base_lse_without_keys",
}  # fmt: skip
"""Hooks of an ordinary op, which the routed one has around those of its pattern."""

_ENTRIES = ("_cpu_forward", "_cpu_backward", "_gpu_forward", "_gpu_backward")

ROLES = {
    "q rep": ("[B, H, query units, D']", 4), "k rep": ("[B, H, key units, D']", 4),
    "score": ("[B, H, query units, key units]", 4), "weights": ("[B, nq, J]", 3),
    "centroids": ("[H, C, D]", 3), "threshold": ("[H]", 1),
}  # fmt: skip
"""What a route reads: its shape in words, and its rank."""


def plan_hash(plan: RoutedPlan) -> str:
    """Return the SHA-256 of a plan and of the code that prints it, as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"attnc {__version__} {whole.codegen_fingerprint()}\n".encode())
    for token in whole.canonical(plan):
        digest.update(f"{token}\n".encode())
    return digest.hexdigest()


def emit_routed(plan: RoutedPlan) -> str:
    """Print a routed attention as one file; it defines ``op``, ``select`` and the pattern's name.

    They are registered with torch.library as ``attnc::<name>_<hash>`` and ``..._select``.
    """
    digest, base = plan_hash(plan), plan.routed.base
    checks, registration = whole.contract()
    inputs = _renamed(emit_inputs(base), _RENAMED)
    routed = _routed_sections(plan)
    more, body = pasted("routed_contract.py")
    around = ("Routed op", f"{more}\n\n\n{_LSE}\n\n\n{body}")
    kept = [] if plan.kept is None else _kept_sections(plan, inputs, [*routed, around])
    shared = [
        ("Checks", checks),
        ("Arguments of the pattern", f"{inputs}\n\n{_known(plan.routed)}"),
        *routed,
    ]
    if plan.kept is None:
        shared.append(("Bounds", whole.used_helpers("".join(text for _, text in shared))))
        kept = [("Kept pairs", _NO_KEPT)]
    sections = [
        *shared, *kept,
        around,
        ("Registration", registration),
    ]
    imports, bodies, defined = whole.hoist_imports(sections)
    name = whole.module_name(base)
    function = f"{name}_" if name in defined or hasattr(builtins, name) else name
    text = "\n".join(
        [
            _docstring(plan, digest),
            "from __future__ import annotations\n",
            *imports,
            "",
            whole.GUARDED_TRITON,
            _constants(plan, name, digest),
            _functions(plan, function),
            *(f"\n{whole.rule(title)}\n\n{b.strip()}\n" for title, b in bodies if b.strip()),
        ]
    )
    ast.parse(text)
    return text


_LSE = '''\
def _lse_without_keys(q, k, lse, *extra):
    """Fill lse ``[B, Hq, Q]`` of queries that see no key."""
    return _base_lse_without_keys(q, k, lse, *_split(*extra)[0])
'''

_NO_KEPT = '''\
def _kept_cpu_forward(*arguments):
    """Nothing is kept at any rate."""
    raise AssertionError(NAME)


_kept_cpu_backward = _kept_gpu_forward = _kept_gpu_backward = _kept_cpu_forward
'''


def _routed_sections(plan: RoutedPlan) -> list[tuple[str, str]]:
    """Print the selection of each route and the executors of what they select."""
    routed = plan.routed
    libraries = dict.fromkeys(
        (*selections.LIBRARIES, *attend.LIBRARIES, *gpu_attend.LIBRARIES)
    )
    kernels = gpu_attend.emit_gpu(plan)
    printed = "\n\n\n".join(
        [selections.emit_select(routed), _all_routes(routed), emit_shapes(routed),
         attend.emit_attend(plan)]
    )  # fmt: skip
    return [
        ("Routes", f"{used(printed + kernels, *libraries)}\n\n\n{printed}\n"),
        ("Selected pairs on a GPU", kernels),
    ]


def _all_routes(routed: Routed) -> str:
    out = Writer()
    with out.block("def _select_all(q, k, inputs):"):
        out.line('"""Run every route; the tensors of their selections, one after the other."""')
        calls = [f"*_select_{route.name}(q, k, inputs)" for route in routed.routes]
        out.line(f"return [{', '.join(calls)}]")
    return out.text().rstrip()


def _kept_sections(
    plan: RoutedPlan, inputs: str, routed: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Print the executors of the kept part, under names of their own where others have them."""
    assert plan.kept is not None
    beside = inputs + "".join(text for _, text in routed)
    found = whole.executors(plan.kept, beside)
    taken = {name for _, text in routed for name in _defined(text)}
    own = {name for title, text in found if not title.startswith("Bounds") for name in
           _defined(text)}  # fmt: skip
    names = {name: f"_kept{name}" for name in (*_ENTRIES, *(own & taken))}
    names |= _RENAMED
    return [
        (title if title.startswith("Bounds") else f"Kept pairs: {title}", _renamed(text, names))
        for title, text in found
    ]


def _defined(text: str) -> set[str]:
    """Return the functions, classes and values that a section defines."""
    found: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _renamed(text: str, names: dict[str, str]) -> str:
    """Give names others, wherever they stand as whole words."""
    if not names:
        return text
    pattern = r"(?<![\w.])(" + "|".join(map(re.escape, names)) + r")\b"
    return re.sub(pattern, lambda found: names[found.group()], text)


def _known(routed: Routed) -> str:
    given = "_data(q, k, *base)" if takes_inputs(routed.base) else "{}"
    return f'''\
def _known(q, k, *base):
    """Return all that masks read: tensors and numbers, by name."""
    return {given}
'''


def _docstring(plan: RoutedPlan, digest: str) -> str:
    base = plan.routed.base
    rows = [
        ("attnc", __version__),
        ("attention", base.name),
        ("parameters", ", ".join(f"{n} = {v}" for n, v in base.params) or "none"),
        ("routes", ", ".join(route.name for route in plan.routed.routes)),
        ("head dim", f"{plan.head_dim} (q, k), {plan.value_dim} (v)"),
        ("GPU", f"{plan.target}, {plan.dtype}"),
        ("plan", digest),
    ]
    width = max(len(label) for label, _ in rows) + 2
    table = "\n".join(
        textwrap.fill(f"    {label:<{width}}{value}", 96, subsequent_indent=" " * (width + 4))
        for label, value in rows
    )
    source = "\n".join(line.rstrip() for line in base.source_text.strip().splitlines())
    body = f"""{base.name}: attention to keys chosen by content, written by attnc {__version__}.

{table}

The attention, as it was written:

{textwrap.indent(source or '(built without source text)', '    ')}

`select` scores and chooses, `op` attends. attnc wrote this file from the plan with the hash above;
to change it, change the attention and compile again. It needs torch, and triton on a GPU, but not
attnc. The generated code belongs to you; the parts copied from attnc are Apache-2.0.
"""
    return f'"""{whole.in_docstring(body)}"""\n'


def _constants(plan: RoutedPlan, name: str, digest: str) -> str:
    base = plan.routed.base
    half = "(torch.bfloat16, torch.float16)"
    types = "(torch.float32,)" if plan.dtype == "fp32" else half
    routes = {route.name: selection_names(route) for route in plan.routed.routes}
    inputs = {one.name: _shape_of(plan.routed, one) for one in plan.routed.inputs}
    refusal = textwrap.wrap(plan.refuses_training, 84, drop_whitespace=False)
    said = "".join(f"    {part!r}\n" for part in refusal) or '    ""\n'
    return f'''
NAME = "{name}"
PLAN = "{digest}"
OP = "{whole.ascii_name(name)}_{digest[:12]}"
HEADS: int | None = {None if base.kv_heads else base.heads}
HEAD_DIM = {plan.head_dim}
VALUE_DIM = {plan.value_dim}
GPU_DTYPES = {types}
_ROUTES = {routes!r}  # by name: the tensors of its selection
_ROUTE_INPUTS = {inputs!r}
_KEPT = {plan.kept is not None}  # whether some pairs are attended whatever is selected
_REFUSES_TRAINING = (
{said})
'''


def _shape_of(routed: Routed, one: RouteInput) -> tuple[str, int]:
    route = next(r for r in routed.routes if r.name == one.route)
    if one.role == "score" and route.emit == "members":
        return "[B, H, tokens]", 3
    return ROLES[one.role]


def _functions(plan: RoutedPlan, function: str) -> str:
    """Print the two functions a user calls."""
    routed, base = plan.routed, plan.routed.base
    d, dv = plan.head_dim, plan.value_dim
    names = {one.name: argument(one.name) for one in routed.inputs}
    parameters = [*signature(base), *(f"{a}: torch.Tensor | None = None" for a in names.values())]
    lines = [*described(base)]
    lines += [
        f"{names[one.name]}: ``{_shape_of(routed, one)[0]}``, read by the route {one.route}."
        for one in routed.inputs
    ]
    takes = "".join(f"    {text},\n" for text in parameters)
    told = "".join(
        f"{textwrap.fill(line, 96, initial_indent=' ' * 8, subsequent_indent=' ' * 12)}\n"
        for line in lines
    )
    own = [argument(i.name) for i in base.inputs] + (["extents"] if base.extents else [])
    passed = "".join(f", {a}={a}" for a in (*own, *names.values()))
    given = ", ".join(f'"{i.name}": {argument(i.name)}' for i in base.inputs)
    extents = "extents" if base.extents else "None"
    base_text = f"_arguments(q, k, {{{given}}}, {extents})" if takes_inputs(base) else "[], [], []"
    asked = ", ".join(f'"{name}": {a}' for name, a in names.items())
    scale = "scale" if base.scale is None else (
        f"{float(base.scale)!r} if scale is None else scale"
    )
    factor = f"1 / sqrt({d})" if base.scale is None else f"{base.scale}"
    weighted = "".join(
        f'    selection = _weighted(selection, "{route.name}", {names[route.score.input or ""]})\n'
        for route in routed.routes if route.grad == "weight"
    )
    star = "    *,\n" if takes else ""
    return f'''
def {function}(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
{takes}    selection: Selection | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend from each query to the keys that are kept, and to those that its routes select.

    Args:
        q: ``[B, Hq, Q, {d}]``.
        k: ``[B, Hkv, K, {d}]``; Hkv divides the heads of q.
        v: ``[B, Hkv, K, {dv}]``.
{told}        selection: what ``select`` returned, to be used again; made from q and k otherwise.
        scale: factor on ``q @ k``; {factor} when not given.
        return_lse: also return the log-sum-exp of each query's scores.
    Returns: out ``[B, Hq, Q, {dv}]`` in the dtype of q, or ``(out, lse)``, lse ``[B, Hq, Q]``
        float32 (float64 beside float64). A query without keys has out 0 and lse -inf.
    Gradients: first derivatives of out and lse for q, k, v, through the attended values: which keys
        were selected has none.
    Raises: ValueError for a wrong shape, dtype, device, stride, scale or selection.
    """
    _refuse_training(q, k, v)
    if selection is None:
        selection = select(q, k{passed})
{weighted}    tensors, numbers, reals = {base_text}
    chosen = _chosen(selection)
    out, lse = _call(q, k, v, {scale}, [*tensors, *chosen], numbers, reals)
    return (out, lse) if return_lse else out


def select(
    q: torch.Tensor,
    k: torch.Tensor,
{star}{takes}) -> Selection:
    """Score and select, for ``{function}``: for each route by name the tensors of its selection.

    Shape: ``index`` int32 ``[B, H, query units, C]``, ascending key units with -1 behind them, and
        ``count`` int32 ``[B, H, query units]``; H is that of the route.
    Raises: ValueError for a wrong shape, dtype or device, and on a CPU for scores that are no
        numbers.
    """
    _tensors(q=q, k=k)
    tensors, numbers, reals = {base_text}
    tensors = [*tensors, *_route_tensors(q, {{{asked}}})]
    return _by_route(_select_op(q.detach(), k.detach(), tensors, numbers, reals))


op = {function}
__all__ = ["{function}", "op", "select"]
'''
