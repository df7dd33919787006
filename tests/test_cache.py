"""The cache on disk: atomic, checked, shared by processes, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from attnc.runtime import cache

KEY = "ab" * 32
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    cache._warn_unwritable.cache_clear()
    return tmp_path / "cache"


def never() -> str:
    raise AssertionError("the entry is in the cache")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_entry_is_made_once(folder: Path) -> None:
    path, text = cache.fetch(KEY, "near", lambda: "x = 'é'\r\n")
    assert text == "x = 'é'\r\n"
    assert path == folder / "ab" / KEY[2:] / "near.py"
    assert cache.fetch(KEY, "near", never) == (path, text)
    assert files(folder) == [path]
    assert cache.fetch("cd" * 32, "near", lambda: "y = 2\n")[1] == "y = 2\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda sealed: sealed[: len(sealed) // 2],
        lambda sealed: sealed.replace(b"1", b"2", 1),
        lambda sealed: b"",
        lambda sealed: b"\xff\xfe" + sealed,
        lambda sealed: sealed + b"import os\n",
    ],
    ids=["cut", "changed", "emptied", "not text", "appended"],
)
def test_a_damaged_entry_is_made_again(folder: Path, damage: object) -> None:
    path, _ = cache.fetch(KEY, "near", lambda: "x = 1\n")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert cache.fetch(KEY, "near", lambda: "x = 1\n") == (path, "x = 1\n")
    assert cache.fetch(KEY, "near", never)[1] == "x = 1\n"


def test_a_seal_is_part_of_no_text() -> None:
    text = cache.seal("x = 1\n")
    assert cache.unseal(cache.seal(text)) == text
    assert cache.unseal("x = 1\n") is None


@pytest.mark.parametrize("kind", ["a file", "under a file"])
def test_an_unusable_folder_warns_once_and_does_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Root ignores permissions, so a file stands where a folder should be."""
    blocked = tmp_path / "cache"
    blocked.write_text("in the way")
    named = blocked if kind == "a file" else blocked / "deeper"
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(named))
    cache._warn_unwritable.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot be written .*Set ATTNC_CACHE_DIR"):
        first, text = cache.fetch(KEY, "near", lambda: "x = 1\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second, _ = cache.fetch(KEY, "near", lambda: "x = 1\n")
    assert first == second
    assert tmp_path not in first.parents
    assert cache.unseal(first.read_text()) == text


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_read_only_folder_still_serves_what_it_holds(folder: Path) -> None:
    path, text = cache.fetch(KEY, "near", lambda: "x = 1\n")
    for each in (path.parent, path.parent.parent, folder):
        each.chmod(0o555)
    try:
        assert cache.fetch(KEY, "near", never) == (path, text)
        with pytest.warns(UserWarning, match="cannot be written"):
            cache.fetch("cd" * 32, "near", lambda: "y = 2\n")
    finally:
        for each in (folder, path.parent.parent, path.parent):
            each.chmod(0o755)


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        cache.replace_file(tmp_path / "a.py", "x = 1\n")
    assert files(tmp_path) == []


def test_the_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ATTNC_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.cache_folder() == tmp_path / "attnc"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder() == Path.home() / "Library" / "Caches" / "attnc"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.cache_folder() == tmp_path / "local" / "attnc"


def test_processes_share_a_folder(folder: Path) -> None:
    """Six processes write and read ten keys at once; none may see a part of an entry."""
    program = textwrap.dedent(
        """
        import sys
        from attnc.runtime import cache
        for turn in range(20):
            for number in range(10):
                text = f"x = {number}\\n" * 2000
                path, found = cache.fetch(f"{number:064x}", "near", lambda: text)
                assert found == text, number
                if turn % 5 == int(sys.argv[1]) % 5:
                    path.unlink(missing_ok=True)
        """
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, str(i)], cwd=ROOT,
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(6)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert not [path for path in files(folder) if path.suffix != ".py"]
