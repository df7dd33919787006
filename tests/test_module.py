"""Written modules: one file that reads well, needs only torch, and can be imported twice."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc import gallery
from attnc.codegen import module as emitted
from attnc.codegen.cpu import pasted
from attnc.codegen.data import pasted as pasted_files
from attnc.compiler import driver
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir.pattern import Pattern, Where
from attnc.compiler.ir.plan import Plan
from attnc.compiler.loaded import Loaded
from attnc.compiler.passes.build_plan import build_plan
from attnc.dsl import nodes as ast_nodes
from attnc.runtime import build
from attnc.runtime.reference import assert_within, terms
from tests import markdown

ROOT = Path(__file__).resolve().parent.parent
TEXT = "# Near keys.\npattern near = { q -> k : 0 <= q - k and q - k < 5 }\n"
Q, K = ex.Var("q"), ex.Var("k")


def plan_of(text: str = TEXT, **options: Any) -> Plan:
    return build_plan(attnc.parse(text).ir, **{"head_dim": 16, **options})


def named(name: str, **fields: Any) -> Plan:
    """Return a causal plan under a name that the language may not allow."""
    body = Where(ex.compare("<=", K, Q))
    return build_plan(Pattern(name=name, heads=None, body=body, **fields), head_dim=16)


def run_bare(program: str, folder: Path, **environment: str) -> str:
    """Run a program beside a folder of written modules, with attnc and triton out of reach."""
    block = "import sys\nfor name in ('attnc', 'triton'): sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + textwrap.dedent(program)], cwd=folder.parent,
        capture_output=True, text=True, timeout=120, env={"PATH": "", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_module_needs_only_torch(tmp_path: Path) -> None:
    build.write_module(plan_of(), tmp_path / "attn_ops")
    out = run_bare(
        """
        import torch
        import attn_ops.near
        from attn_ops.near import near, op
        assert near is op is attn_ops.near.near
        q = torch.arange(7 * 16.0).reshape(1, 1, 7, 16) / 100
        out, lse = op(q, q, q, return_lse=True)
        mask = torch.ones(7, 7, dtype=torch.bool).tril().triu(-4)
        scores = (q @ q.mT / 4).masked_fill(~mask, float("-inf"))
        torch.testing.assert_close(out, scores.softmax(-1) @ q)
        torch.testing.assert_close(lse, scores.logsumexp(-1))
        torch.library.opcheck(attn_ops.near._op, (q, q, q, 0.25))
        assert attn_ops.near._NO_TRITON is not None
        print(out.shape)
        """,
        tmp_path / "attn_ops",
    )
    assert out == "torch.Size([1, 1, 7, 16])\n"


def test_only_torch_and_the_standard_library_are_imported() -> None:
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name).partition(".")[0]
        for node in ast.walk(ast.parse(emitted.emit_module(plan_of())))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert roots - set(sys.stdlib_module_names) == {"torch", "triton"}


def test_the_order_of_a_module() -> None:
    text = emitted.emit_module(plan_of())
    marks = [
        '"""near: sparse attention, written by attnc', "import torch", "\ndef near(", "- Checks\n",
        "- GPU kernel\n", "- GPU launch\n", "- CPU executor\n", "- Registration\n",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert text.endswith("\n")
    assert "\n\n\n\n" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_pasted_parts_are_the_sources() -> None:
    text = emitted.emit_module(plan_of())
    for part in (*emitted.contract(), pasted()[1]):
        body = "\n".join(
            line for line in part.splitlines() if not line.startswith(("import ", "from "))
        )
        assert body.strip() in text


def test_the_pasted_parts_of_a_module_with_inputs_are_the_sources() -> None:
    text = emitted.emit_module(build_plan(attnc.zoo.document().ir, head_dim=16))
    for name in (
        "tables.py", "tile_bounds.py", "cpu_diagonals.py", "cpu_gathered.py", "op_inputs.py"
    ):
        assert pasted_files(name)[1] in text
    assert max(map(len, text.splitlines())) <= 100


def test_golden(update_golden: bool) -> None:
    """The head of one module; its pasted and generated parts have tests of their own."""
    path = ROOT / "tests" / "codegen" / "module.md"
    source, expected = markdown.blocks(path.read_text(encoding="utf-8"))
    plan = plan_of(source.text, value_dim=24)
    digest, text = emitted.plan_hash(plan), emitted.emit_module(plan)
    head = text[: text.index("\n# ---")].replace(digest, "<hash>").replace(digest[:12], "<12>")
    head = head.replace(attnc.__version__, "<version>")
    markdown.check(path, [(expected, head)], update_golden)


# ------------------------------------------------------------------------------------ hashes


def test_equal_plans_have_equal_hashes_in_every_process() -> None:
    program = (
        f"import attnc\nfrom attnc.codegen.module import emit_module, plan_hash\n"
        f"from attnc.compiler.passes.build_plan import build_plan\n"
        f"plan = build_plan(attnc.parse({TEXT!r}).ir, head_dim=16)\n"
        f"print(plan_hash(plan), hash(emit_module(plan)))\nprint(emit_module(plan))"
    )
    outputs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split("\n", 1))
    (first, text), (second, again) = outputs
    assert first.split()[0] == second.split()[0] == emitted.plan_hash(plan_of())
    assert first != second, "the seeds had no effect"
    assert text == again


def test_what_changes_a_plan_changes_its_hash() -> None:
    base = emitted.plan_hash(plan_of())
    others = [
        plan_of(TEXT.replace("5", "6")), plan_of(TEXT.replace("near", "nearer")),
        plan_of(head_dim=32), plan_of(value_dim=32), plan_of(dtype="fp32"),
        plan_of(target="sm_80"), plan_of(tile=attnc.compiler.ir.blockmask.Tiling(64, 32)),
    ]
    assert len({base, *map(emitted.plan_hash, others)}) == len(others) + 1
    assert emitted.plan_hash(plan_of(TEXT.replace("Near", "Close"))) == base


def test_canonical_tells_trees_apart() -> None:
    assert emitted.canonical((("a",), "b")) != emitted.canonical((("a", "b"),))
    assert emitted.canonical(("1",)) != emitted.canonical((1,))
    assert emitted.canonical((True,)) != emitted.canonical((1,))
    deep: Any = Q
    for _ in range(20_000):
        deep = ex.Abs(deep)
    assert len(emitted.canonical(deep)) == 20_002


# ------------------------------------------------------------------------- names and texts


@pytest.mark.parametrize(
    ("name", "file", "function"),
    [
        ("near", "near", "near"), ("max", "max", "max_"), ("torch", "torch", "torch_"),
        ("_check", "_check", "_check_"), ("class", "pattern_class", "pattern_class"),
        ("op", "op", "op_"), ("\u7a93", "\u7a93", "\u7a93"),
        ("math", "math", "math_"), ("match", "pattern_match", "pattern_match"),
        ("a b", "a_b", "a_b"), ("2", "pattern_2", "pattern_2"),
    ],
)  # fmt: skip
def test_names_that_would_break_a_module(
    tmp_path: Path, name: str, file: str, function: str
) -> None:
    plan = named(name)
    path = build.write_module(plan, tmp_path)
    assert path == tmp_path / f"{file}.py"
    module = build.load_module(path)
    assert module.op is getattr(module, function)
    q = torch.randn(1, 2, 20, 16)
    out, lse = module.op(q, q, q, return_lse=True)
    assert_within(out, lse, q, q, q, torch.ones(20, 20, dtype=torch.bool).tril())


def test_any_source_text_fits_in_the_header(tmp_path: Path) -> None:
    source = 'say """hi""" \\n \\N{x} \x00\x0c\r\n# tr\u00e4ge \u2028 "'
    text = emitted.emit_module(named("odd", source_text=source, params=(("w", "1" * 300),)))
    doc = ast.get_docstring(ast.parse(text), clean=False)
    assert doc is not None
    assert 'say """hi""" \\n \\N{x}' in doc
    assert "tr\u00e4ge" in doc
    assert "\x00" not in text


# ------------------------------------------------------------------------------- loading


def test_copies_share_one_op_and_reloading_works(tmp_path: Path, monkeypatch: Any) -> None:
    plan = plan_of(TEXT.replace("near", "twice"))
    one = build.load_module(build.write_module(plan, tmp_path / "one"))
    two = build.load_module(build.write_module(plan, tmp_path / "two"))
    assert one is not two
    assert one._op is two._op
    monkeypatch.syspath_prepend(str(tmp_path))
    package = importlib.reload(importlib.import_module("one.twice"))
    q = torch.randn(1, 1, 9, 16)
    expected = two.op(q, q, q)
    del one
    assert torch.equal(package.op(q, q, q), expected)


def test_a_dropped_module_leaves_its_op_to_the_copies(tmp_path: Path) -> None:
    build.write_module(plan_of(), tmp_path / "attn_ops")
    run_bare(
        """
        import gc, importlib, sys, torch
        import attn_ops.near
        del sys.modules["attn_ops.near"], attn_ops.near
        gc.collect()
        module = importlib.import_module("attn_ops.near")
        q = torch.randn(1, 1, 5, 16)
        module.op(q, q, q)
        """,
        tmp_path / "attn_ops",
    )


def test_a_rewritten_module_is_loaded_anew(tmp_path: Path) -> None:
    """Byte code is keyed by time and size, so the text itself must decide."""
    first = build.load_module(build.write_module(plan_of(), tmp_path))
    second = build.load_module(build.write_module(plan_of(TEXT.replace("5", "6")), tmp_path))
    assert first.OP != second.OP
    again = build.load_module(tmp_path / "near.py")
    assert again is second


def test_a_module_that_fails_to_load_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("raise KeyError('bad')\n")
    before = set(sys.modules)
    with pytest.raises(KeyError):
        build.load_module(path)
    assert set(sys.modules) == before


def test_an_existing_folder_is_not_made_a_package(tmp_path: Path) -> None:
    build.write_module(plan_of(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["near.py"]
    build.write_module(plan_of(), tmp_path / "new" / "attn_ops")
    assert sorted(p.name for p in (tmp_path / "new" / "attn_ops").iterdir()) == [
        "__init__.py", "near.py",
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        build.write_module(plan_of(), tmp_path / "file")


def test_the_kernel_of_a_module_runs_interpreted(tmp_path: Path) -> None:
    """Assembled, with string annotations: what a GPU would compile is what the interpreter runs."""
    plan = plan_of(dtype="fp32", tile=attnc.compiler.ir.blockmask.Tiling(16, 16))
    build.write_module(plan, tmp_path / "attn_ops")
    program = textwrap.dedent(
        """
        import torch
        from attn_ops import near as module
        assert module._NO_TRITON is None
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, h, 40, 16) for h in (4, 2, 2))
        out, lse = torch.empty(2, 4, 40, 16), torch.empty(2, 4, 40)
        module._gpu_forward(q, k, v, 0.25, out, lse)
        expected, expected_lse = module.op(q, k, v, return_lse=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-5)
        """
    )
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PATH": "", "TRITON_INTERPRET": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr


def zoo_example(name: str) -> tuple[Loaded, int, int] | None:
    """Return a zoo pattern at the values of its example, and its lengths; None: no pattern."""
    example = gallery.entry(name).fields.get("Example")
    if example is None or isinstance(driver.loaded_zoo(name).named.item, ast_nodes.Score):
        return None
    given = gallery.example_values(example)
    item = driver.loaded_zoo(name).named.item
    own = {p.name for p in item.params}
    lengths: dict[str, Any] = {
        n: given.pop(n) for n in ("n", "nq", "nk") if n in given and n not in own
    }
    loaded = driver.loaded_zoo(name, given)
    if getattr(item, "layers", None) is not None:
        loaded = loaded.at_layer(0)
    sides = [lengths.get(side, lengths.get("n")) for side in ("nq", "nk")]
    return loaded, *loaded.shape(*sides)[-2:]


@pytest.mark.parametrize("name", driver.zoo_names())
def test_every_zoo_pattern_becomes_a_module_that_keeps_its_mask(name: str, tmp_path: Path) -> None:
    found = zoo_example(name)
    if found is None:
        return
    loaded, nq, nk = found
    pattern = loaded.ir
    path = build.write_module(build_plan(pattern, head_dim=16), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert f"attnc       {attnc.__version__}\n    pattern     {name}\n" in text
    kv_heads = pattern.heads if pattern.kv_heads and pattern.heads else 1
    heads = 2 * kv_heads if pattern.kv_heads else pattern.heads or 2
    q = torch.randn(2, heads, nq, 16)
    k, v = torch.randn(2, 2, kv_heads, nk, 16).unbind()
    taken = {one.name for one in pattern.inputs}
    arrays = {n: torch.from_numpy(a) for n, a in loaded.arrays().items() if n in taken}
    given = {n: a.item() if a.dim() == 0 else a for n, a in arrays.items()}
    extents = {n: loaded.sizes[n] for n in pattern.extents}
    keywords = given | ({"extents": extents} if extents else {})
    out, lse = build.load_module(path).op(q, k, v, return_lse=True, **keywords)
    expected = terms(pattern, q, k, given, extents)
    group = heads // kv_heads if pattern.kv_heads else 1
    assert torch.equal(expected.mask[0, ::group], torch.from_numpy(loaded(nq, nk)))
    scale = None if pattern.scale is None else float(pattern.scale)
    assert_within(out, lse, q, k, v, expected, scale)
