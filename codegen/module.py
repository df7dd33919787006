"""Kernel plan -> one readable Python module that needs only torch, and triton on a GPU."""

from __future__ import annotations

import ast
import builtins
import hashlib
import keyword
import re
import textwrap
import unicodedata
from dataclasses import fields, is_dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from attnc import __version__
from attnc.codegen.cpu import emit_cpu
from attnc.codegen.data import emit_tiles, is_gathered, needs_table, pasted
from attnc.codegen.host import emit_host
from attnc.codegen.host_backward import emit_backward
from attnc.codegen.host_parts import emit_part_launches
from attnc.codegen.inputs import argument, arguments_text, described, emit_inputs, signature
from attnc.codegen.predicate import HOST_HELPERS
from attnc.codegen.triton_forward import emit_kernel
from attnc.codegen.triton_parts import emit_part_kernels
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.plan import CpuDistances, CpuPart, CpuPlan, DistancePart, ForwardPlan, Plan

_RULE = 100
_HASH_DIGITS = 12
_OWN_NAMES = frozenset(
    "NAME PLAN OP HEADS HEAD_DIM VALUE_DIM GPU_DTYPES _NO_TRITON triton tl op".split()
)
_HALF_TYPES = "(torch.bfloat16, torch.float16)"


def plan_hash(plan: Plan) -> str:
    """Return the SHA-256 of a plan and of the code that prints it, as 64 hexadecimal digits.

    Fields that take no part in comparisons (source text, notes, warnings) do not count. Two modules
    with the same hash compute the same thing, so they may share one registered op.
    """
    digest = hashlib.sha256(f"attnc {__version__} {codegen_fingerprint()}\n".encode())
    for token in canonical(plan):
        digest.update(token.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def canonical(value: Any, *, all_fields: bool = False) -> list[str]:
    """Flatten frozen dataclasses, tuples and scalars to tokens: equal values, equal tokens.

    Iterative, so that a deeply nested expression cannot exhaust the stack. ``all_fields`` also
    counts the fields that comparisons leave out.
    """
    tokens: list[str] = []
    stack = [value]
    while stack:
        item = stack.pop()
        names = _field_names(item.__class__, all_fields)
        if names is not None:
            tokens.append(type(item).__name__)
            stack += [getattr(item, name) for name in names[::-1]]
        elif isinstance(item, tuple):
            tokens.append(f"tuple {len(item)}")
            stack.extend(reversed(item))
        elif item is None or isinstance(item, bool | int | str | float | Fraction):
            tokens.append(repr(item))
        else:
            raise AssertionError(f"a plan holds {type(item).__name__}")
    return tokens


@cache
def _field_names(kind: type, all_fields: bool) -> tuple[str, ...] | None:
    """Return the fields of a dataclass, or those that are compared; None where it is none."""
    if not is_dataclass(kind):
        return None
    return tuple(f.name for f in fields(kind) if f.compare or all_fields)


@cache
def codegen_fingerprint() -> str:
    """Return the SHA-256 of the sources of this package."""
    return folder_fingerprint(Path(__file__).parent)


def folder_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the Python files under a folder, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder).as_posix()).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def module_name(pattern: Pattern) -> str:
    """Return the name of the written module: the pattern's, made a Python identifier."""
    name = re.sub(r"\W", "_", unicodedata.normalize("NFKC", pattern.name))
    if not name.isidentifier() or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        name = f"pattern_{name}"
    return name


def emit_module(plan: Plan) -> str:
    """Print a plan as one Python file that needs only torch, and triton where there is a GPU.

    The file defines the op under the pattern's name and as ``op``, and registers it with
    torch.library as ``attnc::<name>_<hash>``.
    """
    digest = plan_hash(plan)
    checks, registration = contract()
    inputs = emit_inputs(plan.pattern)
    sections = [
        ("Checks", checks),
        ("Arguments of the pattern", inputs),
        *executors(plan, inputs),
        ("Registration", registration),
    ]
    imports, bodies, defined = hoist_imports(sections)
    name = module_name(plan.pattern)
    function = f"{name}_" if name in defined or hasattr(builtins, name) else name
    text = "\n".join(
        [
            _header(plan, digest),
            "from __future__ import annotations\n",
            *imports,
            "",
            GUARDED_TRITON,
            _constants(plan, name, digest),
            _function(plan, function),
            *(f"\n{rule(title)}\n\n{b.strip()}\n" for title, b in bodies if b.strip()),
        ]
    )
    ast.parse(text)
    return text


def executors(plan: Plan, beside: str) -> list[tuple[str, str]]:
    """Print what runs a plan, as titled sections; ``beside`` is other text that needs helpers."""
    kernels, launch = _forward(plan)
    executor = emit_cpu(plan.cpu).replace(HOST_HELPERS.strip(), "")  # those used stand once, above
    tiles = emit_tiles(plan.cpu) if needs_table(plan) else ""
    backward = emit_backward(plan) if plan.backward else _NO_GPU_BACKWARD
    return [
        ("GPU kernel", kernels),
        ("Bounds of both executors", used_helpers(beside + tiles + launch + backward + executor)),
        ("Tiles of a call", tiles),
        ("GPU launch", launch),
        ("GPU backward", backward),
        ("CPU executor", executor),
    ]


def _forward(plan: Plan) -> tuple[str, str]:
    """Return the kernels of the forward, and their launch."""
    if plan.parts:
        return emit_part_kernels(plan), emit_part_launches(plan)
    return emit_kernel(plan.forward), emit_host(plan.forward)


def used_helpers(text: str) -> str:
    """Return those functions of ``HOST_HELPERS`` that a text names."""
    lines, words = HOST_HELPERS.splitlines(), _words(text)
    used = [
        "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(HOST_HELPERS).body
        if isinstance(node, ast.FunctionDef) and node.name in words
    ]
    return "\n\n\n".join(used)


def _words(text: str) -> frozenset[str]:
    """Return the names and numbers in a text."""
    return frozenset(re.findall(r"\w+", text))


def contract() -> tuple[str, str]:
    """Return what is pasted of the contract of an op: checks, registration."""
    text = Path(__file__).with_name("op_contract.py").read_text(encoding="utf-8")
    parts = re.split(r"^# --- cut: \w+ ---\n", text, flags=re.MULTILINE)
    if len(parts) != 3:
        raise AssertionError("op_contract.py must have two cut lines")
    imports = [
        ast.unparse(node)
        for node in ast.parse(parts[0]).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    more, registration = pasted("op_registration.py")
    checks = "\n".join([*imports, "", parts[1].strip(), ""])
    return checks, f"{more}\n\n\n{parts[2].strip()}\n\n\n{registration}\n"


GUARDED_TRITON = '''\
# Triton is needed on a GPU, and for its interpreter; a CPU-only torch never loads it.
_NO_TRITON: ImportError | None = None
try:
    if not (torch.version.cuda or torch.version.hip or os.environ.get("TRITON_INTERPRET")):
        raise ImportError("this torch has no GPU support")
    import triton
    import triton.language as tl
except ImportError as _reason:
    _NO_TRITON = _reason
    triton = SimpleNamespace(jit=lambda function=None, **_: function or (lambda f: f))
'''


_NO_GPU_BACKWARD = '''\
def _gpu_backward(*arguments, needs):
    """Refuse: the plan has no backward kernels."""
    raise RuntimeError(f"{NAME}: this module was written without backward kernels for a GPU")
'''


def rule(title: str) -> str:
    """Return the comment that heads a section."""
    return f"# {'-' * (_RULE - len(title) - 3)} {title}"


def _header(plan: Plan, digest: str) -> str:
    pattern, forward = plan.pattern, plan.forward
    kind = "key/value heads, " if pattern.kv_heads else ""
    heads = "one mask for all heads"
    if pattern.heads is not None:
        heads = f"{pattern.heads} {kind}a mask each" if kind else f"{pattern.heads}, a mask each"
    rows = [
        ("attnc", __version__),
        ("pattern", pattern.name),
        ("parameters", ", ".join(f"{n} = {v}" for n, v in pattern.params) or "none"),
        ("heads", heads),
        ("head dim", f"{forward.head_dim} (q, k), {forward.value_dim} (v)"),
        ("GPU", _parts_line(plan) if plan.parts else _gpu_line(forward)),
        ("CPU", _cpu_line(plan.cpu)),
        ("plan", digest),
    ]
    if pattern.align != "top-left":
        rows.insert(3, ("alignment", f"{pattern.align}: query i stands at i + K - Q"))
    width = max(len(label) for label, _ in rows) + 2
    table = "\n".join(
        textwrap.fill(
            f"{label:<{width}}{value}", _RULE - 4, subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for label, value in rows
    )
    source = "\n".join(line.rstrip() for line in pattern.source_text.strip().splitlines())
    body = f"""{pattern.name}: sparse attention, written by attnc {__version__}.

{textwrap.indent(table, '    ')}

The pattern, as it was written:

{textwrap.indent(source or '(built without source text)', '    ')}

attnc wrote this file from the plan with the hash above; to change it, change the pattern and
compile again. It needs torch, and triton on a GPU, but not attnc. The generated code belongs to
you; the parts copied from attnc (checks, CPU executor, registration) are Apache-2.0.
"""
    return f'"""{in_docstring(body)}"""\n'


def _cpu_line(cpu: CpuPlan) -> str:
    if is_gathered(cpu):
        return f"tile {cpu.tiling}, tiles found at the call"
    if cpu.boxes is not None:
        box = "x".join(map(str, cpu.boxes.tiling.query))
        return f"boxes of {box} queries, each with the keys that it needs"
    if cpu.parts:
        classes = [str(part.modulus) for part in cpu.parts if isinstance(part, CpuPart)]
        said = [f"tile {cpu.tiling}, parts in classes of {', '.join(classes)}"] if classes else []
        for part in cpu.parts:
            if isinstance(part, CpuDistances):
                said.append(f"{len(part.distances)} distances one by one")
        return ", ".join(said)
    return f"tile {cpu.tiling}, {_count(len(cpu.strips), 'strip')}"


def _parts_line(plan: Plan) -> str:
    each = [
        f"{len(part.distances)} distances, {part.rows} queries at a time"
        if isinstance(part, DistancePart)
        else f"tile {part.loop.tiling} in classes of {part.modulus}"
        for part in plan.parts
    ]
    return f"{plan.forward.target}, {plan.forward.dtype}, {'; '.join(each)}"


def _gpu_line(forward: ForwardPlan) -> str:
    loop = (
        f"one loop over {_count(len(forward.segments), 'range')}"
        if forward.form == "ranges" else "one loop over a table of tiles"
    )
    return (
        f"{forward.target}, {forward.dtype}, tile {forward.tiling}, "
        f"{_count(forward.warps, 'warp')}, {_count(forward.stages, 'stage')}, {loop}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def in_docstring(text: str) -> str:
    """Escape a text for a triple-quoted string; control characters become escapes too."""
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in escaped
    )


def ascii_name(name: str) -> str:
    """Return a name for torch.library, which takes no other letters."""
    return re.sub(r"[^0-9A-Za-z_]", "_", name)


def _constants(plan: Plan, name: str, digest: str) -> str:
    types = "(torch.float32,)" if plan.forward.dtype == "fp32" else _HALF_TYPES
    return f'''
NAME = "{name}"
PLAN = "{digest}"
OP = "{ascii_name(name)}_{digest[:_HASH_DIGITS]}"
HEADS: int | None = {None if plan.pattern.kv_heads else plan.pattern.heads}
HEAD_DIM = {plan.forward.head_dim}
VALUE_DIM = {plan.forward.value_dim}
GPU_DTYPES = {types}
'''


def _function(plan: Plan, function: str) -> str:
    pattern = plan.pattern
    own = pattern.heads is not None and not pattern.kv_heads
    heads, kv_heads = (
        str(pattern.heads) if own else "Hq", str(pattern.heads) if pattern.kv_heads else "Hkv"
    )
    d, dv = plan.forward.head_dim, plan.forward.value_dim
    parameters = "".join(f"    {text},\n" for text in signature(pattern))
    lines = "".join(
        f"{textwrap.fill(line, 96, initial_indent=' ' * 8, subsequent_indent=' ' * 12)}\n"
        for line in described(pattern)
    )
    factor = f"1 / sqrt({d})" if pattern.scale is None else f"{pattern.scale}"
    scale = "scale" if pattern.scale is None else (
        f"{float(pattern.scale)!r} if scale is None else scale"
    )
    without = "lse -inf" if pattern.sink is None else "the sink as lse"
    learned = [argument(i.name) for i in pattern.inputs if i.kind == "real" and i.dims]
    gradients = textwrap.fill(
        f"Gradients: first derivatives of out and lse for {', '.join(['q', 'k', 'v', *learned])}; "
        "a query without keys gives 0.",
        96, initial_indent=" " * 4, subsequent_indent=" " * 8,
    )  # fmt: skip
    return f'''
def {function}(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
{parameters}    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend from each query to the keys that the pattern keeps.

    Args:
        q: ``[B, {heads}, Q, {d}]``.
        k: ``[B, {kv_heads}, K, {d}]``; {kv_heads} divides the heads of q.
        v: ``[B, {kv_heads}, K, {dv}]``.
{lines}        scale: factor on ``q @ k``; {factor} when not given.
        return_lse: also return the log-sum-exp of each query's scores.
    Returns: out ``[B, {heads}, Q, {dv}]`` in the dtype of q, or ``(out, lse)``, lse
        ``[B, {heads}, Q]`` float32 (float64 beside float64). A query without keys has out 0 and
        {without}.
{gradients}
    Raises: ValueError for a wrong shape, dtype, device, stride or scale.
    """
    out, lse = _call(q, k, v, {scale}{arguments_text(pattern)})
    return (out, lse) if return_lse else out


op = {function}
__all__ = ["{function}", "op"]
'''


def hoist_imports(
    sections: list[tuple[str, str]],
) -> tuple[list[str], list[tuple[str, str]], set[str]]:
    """Move the imports of all sections to the top; return imports, bodies and defined names."""
    imports = {"import os", "import torch", "from types import SimpleNamespace"}
    bodies: list[tuple[str, str]] = []
    defined = set(_OWN_NAMES)
    for title, text in sections:
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports |= _separate(node)
                for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[number] = ""
            names = _names(node)
            if clash := names & defined:
                raise AssertionError(f"{title} defines {sorted(clash)} again")
            defined |= names
        bodies.append((title, re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines))))
    words = _words("\n".join([GUARDED_TRITON, *(body for _, body in bodies)]))
    used = {line for line in imports if line.split()[-1] in words}
    standard = sorted(line for line in used if not _is_torch(line))
    third_party = sorted((line for line in used if _is_torch(line)), key=_plain_first)
    named = {line.split()[-1] for line in imports}
    return [*_grouped(standard), "", *third_party], bodies, defined | named


def _separate(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return one line for each imported name; triton (guarded) and __future__ are left out."""
    lines = set()
    for alias in node.names:
        name = alias.name + (f" as {alias.asname}" if alias.asname else "")
        if isinstance(node, ast.Import):
            if alias.name.partition(".")[0] != "triton":
                lines.add(f"import {name}")
        elif node.module not in ("__future__", "triton"):
            lines.add(f"from {node.module} import {name}")
    return lines


def _plain_first(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line


def _is_torch(line: str) -> bool:
    return line.split()[1].partition(".")[0] == "torch"


def _grouped(lines: list[str]) -> list[str]:
    """Gather ``from m import a`` and ``from m import b`` in one line; plain imports first."""
    plain = [line for line in lines if line.startswith("import ")]
    by_module: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("from "):
            _, module, _, name = line.split(maxsplit=3)
            by_module.setdefault(module, []).append(name)
    return plain + [f"from {m} import {', '.join(names)}" for m, names in sorted(by_module.items())]


def _names(node: ast.stmt) -> set[str]:
    """Return the module-level names that a statement defines (imports excepted)."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()
