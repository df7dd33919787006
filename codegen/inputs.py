"""pattern -> torch source of its op's arguments: declarations, checks, computed inputs."""

from __future__ import annotations

import ast
import keyword
from functools import cache
from pathlib import Path

from attnc.codegen.data import CUT, data_text, pasted
from attnc.codegen.score import emit_score
from attnc.codegen.tile_test import host_dialect
from attnc.codegen.writer import Writer
from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Input, Pattern, size_of

TENSORS_SCHEMA = ", Tensor?[] inputs, SymInt[] numbers, float[] reals"
_TAKEN = frozenset({"q", "k", "v", "scale", "return_lse", "extents"})
_TYPES = {"int": "int", "bool": "int", "real": "float"}


def takes_inputs(pattern: Pattern) -> bool:
    """Whether an op has arguments besides q, k and v."""
    return bool(pattern.inputs or pattern.extents)


def argument(name: str, taken: frozenset[str] = frozenset()) -> str:
    """Return the keyword of an input: its name, with ``_`` where Python or the op has another.

    ``taken``: what the op calls its own arguments besides those of attention.
    """
    return f"{name}_" if name in _TAKEN | taken or keyword.iskeyword(name) else name


def signature(pattern: Pattern, taken: frozenset[str] = frozenset()) -> list[str]:
    """Return the keyword parameters of an op's inputs; ``taken`` as for ``argument``."""
    found = []
    for one in pattern.inputs:
        kind = "torch.Tensor" if one.dims else _TYPES[one.kind]
        found.append(f"{argument(one.name, taken)}: {kind} | None = None")
    if pattern.extents:
        found.append("extents: Mapping[str, int] | None = None")
    return found


def arguments_text(pattern: Pattern) -> str:
    """Return what the op passes on behind scale."""
    if not takes_inputs(pattern):
        return ""
    given = ", ".join(f'"{one.name}": {argument(one.name)}' for one in pattern.inputs)
    return f", *_arguments(q, k, {{{given}}}, {'extents' if pattern.extents else 'None'})"


def described(pattern: Pattern, taken: frozenset[str] = frozenset()) -> list[str]:
    """Return a line about each input for the docstring of an op; ``taken`` as for ``argument``."""
    lines = []
    for one in pattern.inputs:
        shape = f"{one.kind} ``{shape_text(one)}``, or ``[B, ...]``" if one.dims else one.kind
        made = f"; computed when not given: {ar.show(one.formula)}" if one.formula else ""
        lines.append(f"{argument(one.name, taken)}: {shape}{made}.")
    if pattern.extents:
        names = ", ".join(pattern.extents)
        lines.append(f"extents: the sides of the grids, by name: {names}.")
    return lines


def shape_text(one: Input) -> str:
    """Return the sides of an input as they read in the language; "" for a number."""
    if not one.dims:
        return ""
    sides = ("*" if side is None else ex.show(side) for side in one.dims)
    return f"[{', '.join(sides)}]"


def emit_inputs(pattern: Pattern) -> str:
    """Print the hooks of ``op_contract.py`` for a pattern, and what they need.

    These are ``_EXTRA``, the rest of the op's schema, ``_check_pattern`` and ``_lse_without_keys``;
    with inputs also ``_arguments`` and ``_data``. The source expects ``predicate.HOST_HELPERS``.
    """
    out = Writer()
    if not takes_inputs(pattern):
        _emit_plain(out, pattern)
    else:
        imports, body = pasted("op_inputs.py")
        out.line(imports)
        out.line()
        out.line()
        out.line(body)
        for name in transforms_used(pattern):
            out.line()
            out.line()
            out.line(transform_text(name))
        out.line()
        out.line()
        _emit_declared(out, pattern)
    _emit_lse(out, pattern)
    return out.text()


def _emit_plain(out: Writer, pattern: Pattern) -> None:
    out.line('_EXTRA = ""  # what the registered op takes behind scale')
    out.line()
    out.line()
    with out.block("def _check_pattern(q, k):"):
        checks = [
            (name, length)
            for name, length in zip("qk", pattern.lengths, strict=True)
            if length is not None
        ]
        out.line(
            '"""Raise a ValueError where the pattern is made for other lengths or heads."""'
            if checks or pattern.kv_heads else '"""No more is asked of q and k."""'
        )
        for name, length in checks:
            with out.block(f"if {name}.shape[2] != {length}:"):
                out.line("raise ValueError(")
                with out.indented():
                    out.line(
                        f'f"{{NAME}}: {name} has {{{name}.shape[2]}} tokens, '
                        f'but its space has {length}"'
                    )
                out.line(")")
        _emit_kv_heads(out, pattern)
    out.line()
    out.line()


def _emit_kv_heads(out: Writer, pattern: Pattern) -> None:
    if not pattern.kv_heads:
        return
    with out.block(f"if k.shape[1] != {pattern.heads}:"):
        out.line("raise ValueError(")
        with out.indented():
            out.line(
                f'f"{{NAME}}: k must have {pattern.heads} heads, one for each mask of the '
                'pattern, got {k.shape[1]}"'
            )
        out.line(")")


def _emit_declared(out: Writer, pattern: Pattern) -> None:
    dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
    for one in pattern.inputs:
        if one.formula is not None:
            _emit_formula(out, pattern, one)
    with out.block("_INPUTS = ("):
        for one in pattern.inputs:
            out.call("_Input(", _settings(pattern, one), "),")
    out.line(")")
    out.line(f"_EXTENTS = {pattern.extents!r}")
    out.line(f'_EXTRA = "{TENSORS_SCHEMA}"')
    out.line()
    out.line()
    with out.block("def _lengths(data):"):
        out.line('"""How many queries and keys the spaces have; None: any number."""')
        spaces = (pattern.query_space, pattern.key_space)
        texts = ["None" if s is None else dialect.integer(s.length) for s in spaces]
        out.line(f"return {', '.join(texts)}")
    out.line()
    out.line()
    with out.block("def _check_pattern(q, k, inputs, numbers, reals):"):
        out.line('"""Raise a ValueError that names the input that is wrong."""')
        _emit_kv_heads(out, pattern)
        out.line("_check_inputs(q, k, inputs, numbers, reals)")
    out.line()
    out.line()


def _settings(pattern: Pattern, one: Input) -> list[str]:
    """Return the fields of an input's declaration."""
    settings = [f'"{one.name}"', f'"{one.kind}"']
    if one.dims:
        dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
        sizes = tuple(_size_of(pattern, side) for side in one.dims)
        settings += [f'"{shape_text(one)}"', f"sizes={sizes!r}"]
        sides = [
            "None" if side is None or size is not None else dialect.integer(side)
            for side, size in zip(one.dims, sizes, strict=True)
        ]
        if any(side != "None" for side in sides):
            settings.append(f"sides=lambda nq, nk, data: ({', '.join(sides)},)")
    if one.formula is not None:
        needs = tuple(sorted(ar.needs(one.formula)))
        settings += [f"make=_make_{one.name}", f"needs={needs!r}"]
    return settings


def _size_of(pattern: Pattern, side: ex.IntExpr | None) -> str | tuple[str, int, int] | None:
    """Return the number that a side defines: its name, or ``(name, factor, offset)``."""
    found = None if side is None else size_of(side)
    if found is None or found[0] not in pattern.sizes:
        return None
    return found[0] if found[1:] == (1, 0) else found


# ---------------------------------------------------------------------------------- formulas


def _emit_formula(out: Writer, pattern: Pattern, one: Input) -> None:
    assert one.formula is not None
    for number, node in enumerate(_counts(one.formula)):
        dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
        with out.block(f"def _kept_{one.name}_{number}(q, k, h, b, nq, nk, data):"):
            out.line(f'"""The pairs that {one.name} counts."""')
            out.line(
                "data = {n: x[None] if isinstance(x, torch.Tensor) else x "
                "for n, x in data.items()}"
            )
            out.line(f"return {dialect.boolean(node.predicate)}")
        out.line()
        out.line()
    with out.block(f"def _make_{one.name}(nq, nk, data):"):
        out.comment(f"{one.name} = {ar.show(one.formula)}")
        out.line(f"return {_Formula(pattern, one).text(one.formula)}")
    out.line()
    out.line()


def _counts(formula: ar.ArrayExpr) -> list[ar.BlockCount]:
    return [node for node in ar.walk(formula) if isinstance(node, ar.BlockCount)]


_OPERATORS = {"div": "//", "mod": "%"}


class _Formula:
    """Prints the formula of one input."""

    def __init__(self, pattern: Pattern, one: Input) -> None:
        assert one.formula is not None
        self.pattern, self.one = pattern, one
        self.dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
        self.counts = _counts(one.formula)

    def text(self, expr: ar.ArrayExpr, length: bool = True) -> str:
        """Return the text; ``length``: whether the last side is that of the whole input."""
        match expr:
            case ar.ArrayInput(name):
                return f'data["{name}"]'
            case ar.ArrayConst(value):
                return f"({value})" if value < 0 else str(value)
            case ar.ArrayNumber(part):
                return f"({self.dialect.integer(part)})"
            case ar.ArrayOp("not", (part,)):
                return f"({self.text(part, length)} == 0)"
            case ar.ArrayOp(op, parts):
                texts = [self.text(part, length) for part in parts]
                if op in ("and", "or"):
                    sign = " & " if op == "and" else " | "
                    return f"({sign.join(f'({text} != 0)' for text in texts)})"
                return f"({f' {_OPERATORS.get(op, op)} '.join(texts)})"
            case ar.ArrayCall("repeat", (counts,)):
                side = self.one.dims[-1] if length and self.one.dims else None
                known = side is not None and _size_of(self.pattern, side) is None
                size = self.dialect.integer(side) if side is not None and known else "None"
                return f"_repeat({self.text(counts, False)}, {size})"
            case ar.ArrayCall(function, args):
                return f"_{function}({', '.join(self.text(a, False) for a in args)})"
            case ar.BlockCount():
                number = self.counts.index(expr)
                share = f" * {expr.denominator}" if expr.denominator != 1 else ""
                least = f"{expr.threshold}" + (" * existing" if expr.density else "")
                enough = f"lambda pairs, existing: pairs{share} {expr.op} {least}"
                return (
                    f"_block_counts(_kept_{self.one.name}_{number}, {self.pattern.heads or 1}, "
                    f"nq, nk, data, ({expr.block_q}, {expr.block_k}), {enough})"
                )


def transforms_used(pattern: Pattern) -> list[str]:
    """Return the names of the torch functions that formulas of a pattern call, sorted."""
    used: set[str] = set()
    for one in pattern.inputs:
        for node in ar.walk(one.formula) if one.formula is not None else ():
            if isinstance(node, ar.ArrayCall):
                used.add(f"_{node.function}")
            elif isinstance(node, ar.BlockCount):
                used.add("_block_counts")
    if "_merge_ranges" in used:
        used.add("_members")
    return sorted(used)


def transform_text(name: str) -> str:
    """Return the source of one function of ``transforms.py``."""
    return _transforms()[name]


@cache
def _transforms() -> dict[str, str]:
    text = Path(__file__).with_name("transforms.py").read_text(encoding="utf-8")
    _, body = CUT.split(text)
    lines = body.splitlines()
    return {
        node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(body).body
        if isinstance(node, ast.FunctionDef)
    }


def _emit_lse(out: Writer, pattern: Pattern) -> None:
    if pattern.sink is not None:
        dialect = host_dialect({i.name: i.kind for i in pattern.inputs}, pattern.heads)
        out.line(emit_score(pattern.sink, dialect, "_sink_logit").rstrip())
        out.line()
        out.line()
        with out.block("def _sink(q, k, data):"):
            out.line('"""The logit beside the keys. Shape: ``[B, Hq]``."""')
            group = " // (q.shape[1] // k.shape[1])" if pattern.kv_heads else ""
            out.line(f"h = torch.arange(q.shape[1], device=q.device){group}")
            out.line("b = torch.arange(q.shape[0], device=q.device)[:, None]")
            out.line("dot = torch.zeros((), dtype=torch.float64, device=q.device)")
            out.line("logit = _sink_logit(dot, 0, 0, h, b, q.shape[2], k.shape[2], data)")
            out.line("return logit.expand(q.shape[0], q.shape[1])")
        out.line()
        out.line()
    with out.block("def _lse_without_keys(q, k, lse, *extra):"):
        if pattern.sink is None:
            out.line('"""Fill lse ``[B, Hq, Q]`` of queries that see no key."""')
            out.line("return lse.fill_(-math.inf)")
        else:
            out.line('"""Fill lse ``[B, Hq, Q]`` of queries that see nothing but the sink."""')
            out.line(f"return lse.copy_(_sink(q, k, {data_text(pattern)})[..., None])")
