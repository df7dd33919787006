"""README.md and ARCHITECTURE.md are run: what they show is what the compiler prints today."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from attnc.cli import invoke
from attnc.compiler.driver import loaded_text
from attnc.compiler.ir.blockmask import Tiling
from attnc.compiler.ir.pattern import Pattern
from attnc.compiler.ir.show import show
from attnc.compiler.passes.build_plan import build_plan
from attnc.compiler.passes.classify import classify
from tests import markdown

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "ARCHITECTURE.md"]
PROSE = [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md"]


def printed(block: markdown.Block, pattern: Pattern) -> str:
    """Return what should stand in a block that shows a stage of ``pattern``."""
    sides = block.options.get("tile", "64x64").split("x")
    tiling = Tiling(*map(int, sides))
    match block.kind:
        case "pattern":
            return whole(show(pattern))
        case "blocks":
            return whole(show(classify(pattern, tiling)))
        case "plan":
            plan = build_plan(pattern, head_dim=64, tile=tiling, cpu_tile=tiling, backward=True)
            return whole(show(plan))
        case "triton":
            return kernel_loop(pattern, tiling)
        case "mask":
            from attnc.cli.mask import draw

            n = int(block.options["n"])
            return whole(draw(pattern.mask(n, n)))
    raise AssertionError(f"no such stage: {block.kind}")


def whole(text: str) -> str:
    return text.rstrip("\n") + "\n"


def kernel_loop(pattern: Pattern, tiling: Tiling) -> str:
    """Return the loop over key tiles of the generated kernel."""
    from attnc.codegen.module import emit_module

    text = emit_module(build_plan(pattern, head_dim=64, tile=tiling, cpu_tile=tiling))
    kernel = next(
        node for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "_attend"
    )  # fmt: skip
    loop = next(node for node in kernel.body if isinstance(node, ast.For))
    lines = text.splitlines()[loop.lineno - 1 : loop.end_lineno]
    return textwrap.dedent("\n".join(lines)) + "\n"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_blocks_are_what_is_printed(
    name: str, update_golden: bool
) -> None:
    path = ROOT / name
    pattern: Pattern | None = None
    expected = []
    for block in markdown.blocks(path.read_text(encoding="utf-8")):
        if block.kind == "attn":
            loaded = loaded_text(block.text)
            pattern = None if loaded.is_routed else loaded.ir
            assert loaded.routed is not None
            assert loaded.warnings == ()
        elif block.kind in ("pattern", "blocks", "plan", "triton", "mask"):
            assert pattern is not None
            expected.append((block, printed(block, pattern)))
    assert expected
    markdown.check(path, expected, update_golden)


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first, modules, packed, decode = (b.text for b in markdown.blocks(text) if b.kind == "python")
    scope: dict[str, Any] = {}
    exec(first, scope)
    assert scope["out"].shape == (1, 12, 4096, 32)
    scope["x"] = torch.randn(2, 70, 512)
    exec(modules, scope)
    assert scope["y"].shape == (2, 70, 512)
    scope |= dict.fromkeys("qkv", torch.randn(50, 12, 32))
    scope["cu_seqlens"] = torch.tensor([0, 20, 50], dtype=torch.int32)
    exec(packed, scope)
    assert scope["out"].shape == (50, 12, 32)
    cache = torch.randn(2, 12, 64, 32)
    pages = cache.view(2, 12, 4, 16, 32).transpose(1, 2).reshape(8, 12, 16, 32)
    scope |= {
        "q": torch.randn(2, 12, 1, 32), "k_cache": cache, "v_cache": cache, "k_pages": pages,
        "v_pages": pages, "lengths": torch.tensor([40, 64]),
        "table": torch.arange(8, dtype=torch.int32).view(2, 4),
    }  # fmt: skip
    exec(decode.rsplit("\n", 2)[0], scope)
    expected = scope["out"]
    exec(decode, scope)  # its last line reads pages
    torch.testing.assert_close(scope["out"], expected)


@pytest.mark.parametrize("name", PROSE)
def test_files_and_verbs_that_are_named_exist(name: str) -> None:
    from attnc.cli.group import VERBS

    text = (ROOT / name).read_text(encoding="utf-8")
    folders = "dsl|compiler|codegen|runtime|examples|tests|bench|docs|attnc"
    for path in re.findall(rf"[`(]((?:{folders})/[\w./*-]*)[`)]", text):
        assert list(ROOT.glob(path.rstrip("/"))), f"{name} names {path}"
    for verb in re.findall(r"`attnc (\w+)", text):
        assert verb in VERBS, f"{name} names the verb {verb}"


def test_the_readmes_commands_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(ROOT / "examples" / "longformer" / "longformer.attn")
    for words in (
        ["check", file], ["mask", file, "--shape", "n=64", "-o", "mask.npy"],
        ["emit", file, "--stage", "blocks", "--shape", "n=65536"],
        ["compile", file, "-o", "attn_ops"], ["explain", "ATT0301"], ["zoo"],
        ["mask", "streaming_llm", "-D", "recent=6", "--shape", "n=32"],
    ):  # fmt: skip
        assert invoke(words) == 0, words
