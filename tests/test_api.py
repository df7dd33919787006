"""The Python face: loading, masks, blocks, compiling, and what may not be imported."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import attnc
from attnc.compiler import driver

ROOT = Path(__file__).resolve().parent.parent
TEXT = """# Near keys, and the first ones.
param w: int in 1.. = 4
pattern near = { q -> k : 0 <= q - k and q - k < w }
pattern both = near | { q -> k : k < 2 and k <= q }
"""


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK = "import sys\nfor name in {}: sys.modules[name] = None\n"


def test_importing_attnc_loads_nothing_heavy() -> None:
    run_python(
        "import sys, attnc\n"
        "attnc.Pattern, attnc.CompileError, attnc.zoo, attnc.compile\n"
        "heavy = {'torch', 'triton', 'numpy', 'lark', 'islpy', 'sympy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_without_torch_all_but_masks_and_ops_works() -> None:
    out = run_python(
        BLOCK.format(("torch", "triton"))
        + f"import attnc\np = attnc.parse({TEXT!r}, w=3)\n"
        "print(p, p.warnings, p.blocks(1000, tile=(64, 64)).full)\n"
        "for call in (lambda: p.mask(4), lambda: attnc.compile(p), lambda: p.blocks(4).dense()):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    ).splitlines()
    assert out[0] == "<attnc pattern both w=3> () 0"
    refused = [line.split()[0] for line in out[1:]]
    assert refused == ["Pattern.mask", "attnc.compile", "Blocks.dense"]
    assert all('pip install "attnc[torch]"' in line for line in out[1:])


def test_public_names() -> None:
    assert set(attnc.__all__) <= set(dir(attnc))
    for name in attnc.__all__:
        assert getattr(attnc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'cost'"):
        attnc.cost  # noqa: B018


def test_parse_takes_the_last_pattern_or_the_one_named() -> None:
    assert attnc.parse(TEXT).name == "both"
    near = attnc.parse(TEXT, "near", w=2)
    assert (near.name, near.params, near.heads) == ("near", {"w": "2"}, None)
    assert near == attnc.parse(TEXT, pattern="near", w=2)
    assert hash(near) == hash(attnc.parse(TEXT, pattern="near", w=2))
    assert near != attnc.parse(TEXT, "near", w=3)
    with pytest.raises(attnc.CompileError, match="no parameter `v`"):
        attnc.parse(TEXT, v=2)
    with pytest.raises(ValueError, match="text must be a str, got bytes"):
        attnc.parse(TEXT.encode())  # type: ignore[arg-type]


def test_load_reads_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "near.attn"
    path.write_text(TEXT)
    pattern = attnc.load(path, w=3)
    assert pattern.name == "near"
    path.unlink()
    assert pattern.mask(5).sum() == 5 * 3 - 3
    with pytest.raises(attnc.CompileError, match=re.escape("near.attn")):
        attnc.load(path)


def test_mask_is_the_definition() -> None:
    mask = attnc.parse(TEXT, w=3).mask(nq=4, nk=6)
    q, k = torch.arange(4)[:, None], torch.arange(6)[None]
    assert mask.dtype == torch.bool
    assert torch.equal(mask[0], (k <= q) & ((q - k < 3) | (k < 2)))
    per_head = attnc.parse("heads h: 3\npattern p = { q -> k, h : k == q - h }")
    assert (per_head.heads, per_head.mask(n=5).shape) == (3, (3, 5, 5))


def test_mask_comes_from_the_oracle_and_not_from_the_ir(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc.compiler.ir.pattern import Pattern

    pattern = attnc.parse(TEXT)
    monkeypatch.setattr(Pattern, "mask", lambda *_: pytest.fail("the IR was evaluated"))
    assert pattern.mask(3).shape == (1, 3, 3)


@pytest.mark.parametrize("tile", [(16, 16), "32x16", [16, 64]])
def test_blocks_count_the_tiles_of_the_mask(tile: object) -> None:
    pattern = attnc.parse(TEXT, w=20)
    blocks = pattern.blocks(nq=100, nk=90, tile=tile)  # type: ignore[arg-type]
    mask = pattern.mask(nq=100, nk=90)
    assert torch.equal(blocks.dense(), mask)
    assert blocks.exact
    q, k = blocks.tile
    cut = [mask[0, i : i + q, j : j + k] for i in range(0, 100, q) for j in range(0, 90, k)]
    full, kept = (sum(bool(f(t)) for t in cut) for f in (torch.all, torch.any))
    assert (blocks.full, blocks.partial, blocks.empty) == (full, kept - full, len(cut) - kept)
    assert blocks.pairs_kept == mask.sum()
    assert blocks.full + blocks.partial <= blocks.visited
    assert blocks.masked <= blocks.visited
    assert repr(blocks).startswith(f"<attnc blocks both 100x90 in {q}x{k} tiles: {full} full, ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give the lengths"),
        ({"n": 4, "nq": 4}, "give either n, or nq and nk"),
        ({"nq": 4}, "give the lengths"),
        ({"n": -1}, "a length must be an integer from 0 to 2**30, got -1"),
        ({"n": 2.5}, "got 2.5"),
        ({"n": True}, "got True"),
    ],
)
def test_lengths_are_checked(given: dict[str, int], message: str) -> None:
    pattern = attnc.parse(TEXT)
    for method in (pattern.mask, pattern.blocks):
        with pytest.raises(ValueError, match=re.escape(message)):
            method(**given)
    assert pattern.mask(np.int64(3)).shape == (1, 3, 3)  # type: ignore[arg-type]


def test_zoo_holds_every_stdlib_pattern() -> None:
    assert dir(attnc.zoo) == list(attnc.zoo) == list(driver.zoo_names())
    assert len(attnc.zoo) > 0
    name = next(iter(attnc.zoo))
    assert name in attnc.zoo
    assert getattr(attnc.zoo, name)().name == attnc.zoo[name]().name == name
    assert attnc.zoo[name].__doc__ == driver.zoo_text(name)
    with pytest.raises(AttributeError, match="did you mean `longformer`"):
        attnc.zoo.longfromer  # noqa: B018
    with pytest.raises(KeyError, match="the zoo has no pattern 'nothing_like_it'"):
        attnc.zoo["nothing_like_it"]


def test_compile_gives_an_op_and_its_module(tmp_path: Path) -> None:
    pattern, folder = attnc.parse(TEXT, w=3), tmp_path / "ops"
    op = attnc.compile(pattern, head_dim=16, value_dim=32, dtype=torch.float16, folder=folder)
    assert (op.name, op.path) == ("both", folder / "both.py")
    assert op.source == op.path.read_text()
    assert op.pattern is pattern
    assert copy.deepcopy({"attend": op})["attend"] is op
    assert (op.plan.forward.head_dim, op.plan.forward.value_dim) == (16, 32)
    assert op.plan.forward.dtype == "fp16"
    assert sorted(p.name for p in folder.glob("*.py")) == ["__init__.py", "both.py"]
    assert "head_dim=16, value_dim=32, fp16" in repr(op)


def test_compile_twice_reads_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc.codegen import module

    pattern = attnc.parse(TEXT, w=5)
    first = attnc.compile(pattern, head_dim=16)
    monkeypatch.setattr(module, "emit_module", lambda _: pytest.fail("compiled again"))
    again = attnc.compile(attnc.parse(TEXT, w=5), head_dim=16)
    assert (again.path, again.source) == (first.path, first.source)
    assert again.plan == first.plan
    with pytest.raises(pytest.fail.Exception):
        attnc.compile(pattern, head_dim=16, cache=False)


def test_a_changed_comment_is_another_module_and_the_same_op() -> None:
    first = attnc.compile(attnc.parse(TEXT), head_dim=16)
    other = attnc.compile(attnc.parse(TEXT.replace("Near", "Close")), head_dim=16)
    assert first.path != other.path
    assert "Close keys" in other.source
    name = re.search(r"^OP = .*$", first.source, re.MULTILINE)
    assert name is not None
    assert name[0] in other.source


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 8}, "head_dim must be an integer from 16 to 256, got 8"),
        ({"head_dim": 64.0}, "head_dim must be an integer from 16 to 256, got 64.0"),
        ({"value_dim": 300}, "value_dim must be an integer from 16 to 256, got 300"),
        ({"dtype": torch.int8}, "dtype must be bfloat16, float16 or float32"),
        ({"dtype": "fp8"}, "got 'fp8'"),
        ({"target": "sm_70"}, "target must be one of sm_80, sm_90, sm_100, gfx942, got 'sm_70'"),
        ({"tile": (128,)}, "tile must be two positive integers"),
        ({"tile": "128"}, "tile must be two positive integers"),
        ({"tile": (100, 64)}, "power of two from 16 to 256"),
        ({"cpu_tile": 64}, "cpu_tile must be two positive integers"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        attnc.compile(attnc.parse(TEXT), **options)  # type: ignore[arg-type]


def test_compile_wants_a_pattern() -> None:
    with pytest.raises(ValueError, match=r"p must be an attnc\.Pattern, got str"):
        attnc.compile(TEXT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attnc.load(3), "path must be a str or a path, got int"),
        (lambda: attnc.load(None), "path must be a str or a path, got NoneType"),
        (lambda: attnc.parse(TEXT, pattern=3), "pattern must be the name of one, got int"),
        (lambda: attnc.compile(attnc.parse(TEXT), folder=3), "folder must be a str or a path"),
        (lambda: attnc.parse(TEXT).mask(n=2**40), "an integer from 0 to 2**30, got 1099511627776"),
        (lambda: attnc.parse(TEXT).blocks(n=2**70), "an integer from 0 to 2**30"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
