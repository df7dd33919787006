"""pattern, plan of packed sequences -> one readable Python module with the packed form of its op.

It is a file of its own beside the module of the op, as the decode step is.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap

from attnc import __version__
from attnc.codegen import module as whole
from attnc.codegen.cpu import emit_cpu
from attnc.codegen.data import emit_tiles, needs_table, pasted
from attnc.codegen.inputs import argument, described, emit_inputs, signature, takes_inputs
from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.triton_learned import LEARNED_HELPERS
from attnc.codegen.triton_varlen import emit_forward
from attnc.codegen.triton_varlen_backward import PREPARE, emit_kernel, loops_of
from attnc.codegen.varlen_host import emit_launches
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import Plan

_TAKEN = frozenset({"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"})


def emit_varlen(plan: Plan) -> str:
    """Print the packed form of an op as one file that needs only torch, and triton on a GPU.

    It defines ``varlen`` and registers it with torch.library as ``attnc::<name>_<hash>_varlen``.
    """
    pattern = plan.pattern
    needed, contract = pasted("varlen_contract.py")
    more, registration = pasted("op_registration.py")
    executor = emit_cpu(plan.cpu).replace(HOST_HELPERS.strip(), "")
    inputs, launches = emit_inputs(pattern), emit_launches(plan)
    tiles = emit_tiles(plan.cpu) if needs_table(plan) else ""
    sections = [
        ("Arguments of the pattern", inputs),
        ("GPU kernels", "\n\n".join(kernel_texts(plan))),
        ("Bounds of both executors", whole.used_helpers(inputs + tiles + launches + executor)),
        ("Tiles of a call", tiles),
        ("GPU launch", launches),
        ("CPU executor", executor),
        ("Packed sequences", f"{needed}\n\n\n{contract}\n"),
        ("Registration", f"{more}\n\n\n{registration}\n"),
    ]
    imports, bodies, _ = whole.hoist_imports(sections)
    text = "\n".join(
        [
            _docstring(plan),
            "from __future__ import annotations\n",
            *imports,
            "",
            whole.GUARDED_TRITON,
            _constants(plan),
            _function(plan),
            *(f"\n{whole.rule(title)}\n\n{b.strip()}\n" for title, b in bodies if b.strip()),
        ]
    )
    ast.parse(text)
    return text


def kernel_texts(plan: Plan) -> list[str]:
    """Print all kernels and the functions they call, as top-level source."""
    assert plan.backward is not None
    forward = emit_forward(plan.forward)
    found = [emit_kernel(loop, kernel) for kernel, loop in loops_of(plan.backward).items()]
    helpers = dict.fromkeys(helper for shared, _ in found for helper in shared)
    own = [helper for helper in helpers if helper not in forward]
    own += [LEARNED_HELPERS] if plan.backward.learned is not None else []
    return [forward, PREPARE, *own, *(text for _, text in found)]


def _docstring(plan: Plan) -> str:
    name, forward = whole.in_docstring(plan.pattern.name), plan.forward
    placed = "" if plan.pattern.align == "top-left" else f"\nAlignment {plan.pattern.align}."
    return f'''\
"""{name} over packed sequences: sparse attention, written by attnc {__version__}.

Many sequences in one call, one after the other, each with the pattern at its own positions and
lengths; {forward.target}, {forward.dtype}, tile {forward.tiling}, head dim {forward.head_dim} (q, \
k), {forward.value_dim} (v).{placed} attnc wrote
this file; to change it, change the pattern and compile again. It needs torch, and triton on a GPU,
but not attnc. The generated code belongs to you; the parts copied from attnc (checks, CPU executor,
registration) are Apache-2.0.
"""
'''


def _constants(plan: Plan) -> str:
    digest = hashlib.sha256(f"{__version__} {whole.codegen_fingerprint()}\n".encode())
    for token in whole.canonical(plan):
        digest.update(f"{token}\n".encode())
    name = whole.module_name(plan.pattern)
    half = "(torch.bfloat16, torch.float16)"
    types = "(torch.float32,)" if plan.forward.dtype == "fp32" else half
    return f'''
NAME = "{name}.varlen"
OP = "{whole.ascii_name(name)}_{digest.hexdigest()[:12]}_varlen"
HEADS: int | None = {None if plan.pattern.kv_heads else plan.pattern.heads}
HEAD_DIM = {plan.forward.head_dim}
VALUE_DIM = {plan.forward.value_dim}
GPU_DTYPES = {types}
'''


def _function(plan: Plan) -> str:
    pattern = plan.pattern
    heads = "Hq" if pattern.heads is None or pattern.kv_heads else str(pattern.heads)
    kv = str(pattern.heads) if pattern.kv_heads else "Hkv"
    d, dv = plan.forward.head_dim, plan.forward.value_dim
    parameters = "".join(f"    {text},\n" for text in signature(pattern, _TAKEN))
    lines = "".join(
        f"{textwrap.fill(line, 96, initial_indent=' ' * 8, subsequent_indent=' ' * 12)}\n"
        for line in described(pattern, _TAKEN)
    )
    own = pattern.scale
    scale = "scale" if own is None else f"{float(own)!r} if scale is None else scale"
    factor = f"1 / sqrt({d})" if own is None else f"{own}"
    return f'''
def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None = None,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
{parameters}    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend in each of many sequences, which lie one after the other.

    Sequence b has queries ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]``, and keys likewise. It
    sees itself alone, by the pattern at its own positions and lengths; it may be empty. Inputs are
    shared by all sequences.

    Args:
        q: ``[total_q, {heads}, {d}]``.
        k: ``[total_k, {kv}, {d}]``; {kv} divides the heads of q.
        v: ``[total_k, {kv}, {dv}]``.
        cu_seqlens_q: integers ``[B + 1]`` on the device of q, rising from 0 to total_q.
        cu_seqlens_k: the same for keys; when not given, ``cu_seqlens_q``.
        max_seqlen_q, max_seqlen_k: the longest sequence; nothing depends on them. On a CPU they are
            checked.
{lines}        scale: factor on ``q @ k``; {factor} when not given.
        return_lse: also return the log-sum-exp of each query's scores.
    Returns: out ``[total_q, {heads}, {dv}]`` in the dtype of q, or ``(out, lse)``, lse ``[{heads},
        total_q]`` float32 (float64 beside float64).
    Gradients: those of the op.
    Raises: ValueError for a wrong shape, dtype, device, stride or scale; on a CPU also for
        ``cu_seqlens`` that do not rise from 0 to the end (a GPU is not waited for: tokens outside
        of all sequences get no result there).
    """
    _tensors(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q)
    if cu_seqlens_k is not None:
        _tensors(cu_seqlens_k=cu_seqlens_k)
    longest = max_seqlen_q, max_seqlen_k
    out, lse = _call(q, k, v, cu_seqlens_q, cu_seqlens_k, longest, {scale}{_arguments(pattern)})
    return (out, lse) if return_lse else out


__all__ = ["varlen"]
'''


def _arguments(pattern: Pattern) -> str:
    """Return what the function passes on behind scale."""
    if not takes_inputs(pattern):
        return ""
    given = ", ".join(f'"{i.name}": {argument(i.name, _TAKEN)}' for i in pattern.inputs)
    extents = "extents" if pattern.extents else "None"
    return f", *_arguments(*_views(q, k), {{{given}}}, {extents})"
