"""The house rules that can be checked: file sizes, import direction, packaging, doctests."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest itself needs it on 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("dsl", "compiler", "codegen", "runtime", "attnc")
SOURCES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))
OTHERS = [p for folder in ("tests", "bench", "examples") for p in (ROOT / folder).rglob("*.py")]
BY_NAME = {str(p.relative_to(ROOT)): p for p in SOURCES}
# codegen writes torch code; these files are pasted into written modules as they are.
PASTED = tuple(
    f"codegen/{name}.py"
    for name in (
        "box_tables", "cpu_backward", "cpu_boxes", "cpu_channels", "cpu_diagonals", "cpu_distances",
        "cpu_executor", "cpu_gathered", "cpu_gathered_backward", "cpu_parts", "cpu_schedule",
        "cpu_windows", "decode_contract", "decode_cpu", "learned_sums", "op_contract", "op_inputs",
        "op_registration", "routed_contract", "routes/attend_cpu", "routes/attend_cpu_backward",
        "routes/choose", "routes/gpu_lists", "routes/members_cpu", "routes/scores",
        "routes/walks_cpu", "tables", "tile_bounds", "transforms", "varlen_contract",
    )
)  # fmt: skip
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "attnc" else ("attnc", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield imported module names of a file, and whether only type checkers follow them."""

    def walk(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield child.module or "", typing_only
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from walk(child, True)
            else:
                yield from walk(child, typing_only)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("name", BY_NAME)
def test_modules_open_with_what_they_do(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(BY_NAME[name].read_text(encoding="utf-8")))
    assert docstring, "a module opens with a docstring"
    assert docstring.splitlines()[0].strip()


@pytest.mark.parametrize("name", BY_NAME)
def test_imports_point_down(name: str) -> None:
    """dsl <- compiler <- codegen <- runtime <- attnc."""
    own = LAYERS.index(Path(name).parts[0])
    for imported, typing_only in imports(BY_NAME[name]):
        parts = imported.split(".")
        if parts[0] != "attnc" or typing_only:
            continue
        assert len(parts) > 1 or own == 4 or imported == "attnc", name
        if len(parts) > 1:
            layer = parts[1] if parts[1] in LAYERS else "attnc"
            assert LAYERS.index(layer) <= own, f"{name} imports {imported}"


@pytest.mark.parametrize("name", BY_NAME)
def test_libraries_stay_where_they_belong(name: str) -> None:
    layer = Path(name).parts[0]
    allowed = {
        "lark": layer == "dsl",
        "islpy": layer == "compiler",
        "torch": layer in ("runtime", "attnc") or name in PASTED,
        "triton": layer == "runtime",
        "transformers": layer == "runtime",
        "click": layer == "attnc",
        "rich": layer == "attnc",
    }
    for imported, typing_only in imports(BY_NAME[name]):
        library = imported.split(".")[0]
        assert typing_only or allowed.get(library, True), f"{name} imports {library}"


@pytest.mark.parametrize("name", BY_NAME)
def test_no_module_is_named_like_one_of_the_standard_library(name: str) -> None:
    stem = Path(name).stem
    assert stem in ("__init__", "__main__") or stem not in sys.stdlib_module_names


def test_every_package_is_in_pyproject() -> None:
    """A package left out would vanish from the wheel without an error."""
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    found = [module_name(p) for p in SOURCES if p.name == "__init__.py"]
    assert sorted(listed) == sorted(found)


def test_import_attnc_is_light() -> None:
    code = (
        "import sys, attnc\n"
        "heavy = {'torch', 'triton', 'sympy', 'numpy', 'islpy', 'lark', 'click', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("folder", ["dsl", "compiler", "codegen", "runtime"])
def test_layers_are_imported_as_attnc(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, check=False
    )
    assert f"import this package as 'attnc.{folder}'" in done.stderr.decode()


@pytest.mark.parametrize(
    "name", [n for n, p in BY_NAME.items() if ">>> " in p.read_text(encoding="utf-8")]
)
def test_doctests(name: str) -> None:
    found = doctest.testmod(importlib.import_module(module_name(BY_NAME[name])))
    assert found.attempted
    assert not found.failed


def test_the_type_checkers_see_every_source() -> None:
    """``typing_root`` mirrors the import layout with links; mypy follows no package-dir."""
    root = ROOT / "typing_root" / "attnc"
    expected = {*LAYERS[:4], *(p.name for p in (ROOT / "attnc").iterdir() if p.name[:2] != "__")}
    expected |= {"__init__.py", "__main__.py"}
    assert {p.name for p in root.iterdir()} == expected
    for link in root.iterdir():
        assert link.is_symlink()
        assert link.resolve() in {ROOT / link.name, ROOT / "attnc" / link.name}


def test_versions_agree() -> None:
    import attnc

    assert PYPROJECT["project"]["version"] == attnc.__version__
    assert f"## {attnc.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
