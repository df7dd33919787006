"""The wheel and the source distribution: built for real, and looked into."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what is under version control, so that a build leaves nothing behind."""
    target = tmp_path_factory.mktemp("checkout") / "attnc"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "attn_ops"
    )
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignore)
    return target


def build(checkout: Path, what: str) -> Path:
    code = (
        "import sys; from setuptools import build_meta as b\n"
        f"print(b.build_{what}('out'))\n"
    )
    pytest.importorskip("setuptools", minversion="77")
    (checkout / "out").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return checkout / "out" / done.stdout.decode().splitlines()[-1]


def test_the_wheel_holds_all_it_needs_and_runs(checkout: Path, tmp_path: Path) -> None:
    wheel = build(checkout, "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    expected = {"attnc/py.typed", "attnc/dsl/grammar.lark", "attnc/runtime/data/declaration.txt"}
    expected |= {"attnc/dsl/grammar.json"}
    expected |= {f"attnc/dsl/stdlib/{p.name}" for p in (ROOT / "dsl" / "stdlib").glob("*.attn")}
    for layer in ("dsl", "compiler", "codegen", "runtime"):
        sources = (ROOT / layer).rglob("*.py")
        expected |= {f"attnc/{p.relative_to(ROOT).as_posix()}" for p in sources}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "attnc").rglob("*.py")}
    assert expected <= names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"attnc"}
    # The extracted wheel alone, without this checkout on the path.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import attnc, pathlib\n"
        "assert pathlib.Path(attnc.__file__).is_relative_to(sys.argv[1])\n"
        "from attnc.cli import invoke\n"
        "sys.exit(invoke(['mask', 'longformer', '-D', 'w=2', '--shape', 'n=6']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", code,
         str(tmp_path / "site")],
        cwd=tmp_path, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[0] == "###..."


def test_the_source_distribution_holds_tests_and_examples(checkout: Path) -> None:
    with tarfile.open(build(checkout, "sdist")) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        "LICENSE", "README.md", "ARCHITECTURE.md", "tests/test_packaging.py",
        "examples/longformer/longformer.attn", "dsl/grammar.lark", "dsl/grammar.json",
        "docs/language.md", "runtime/data/declaration.txt",
    } <= names  # fmt: skip
