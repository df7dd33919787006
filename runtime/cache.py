"""Content key -> module text on disk: atomic, checked, shared by processes."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_SEAL = "# sha256 of the text above: "


def cache_folder() -> Path:
    """Return ``ATTNC_CACHE_DIR``, or attnc's folder among the user's caches on this platform."""
    if named := os.environ.get("ATTNC_CACHE_DIR"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "attnc"


def fetch(
    key: str, name: str, make: Callable[[], str], *, keep: bool = True
) -> tuple[Path, str]:
    """Return the file kept under a key and its text; make and keep it where there is none.

    An entry carries the SHA-256 of its text; one that does not match is made again. Processes may
    call this at the same time: a file appears whole or not at all, and every writer of a key
    writes the same text. Where the folder cannot be written, the file goes to a temporary folder
    of this process, with a warning.

    Args:
        key: hexadecimal digest of everything that the text depends on.
        name: file name without ``.py``.
        keep: otherwise the text is made anew, in a temporary folder of this process.
    """
    if not keep:
        made = make()
        path = private_folder() / hashlib.sha256(made.encode()).hexdigest() / f"{name}.py"
        replace_file(path, made)
        return path, made
    path = cache_folder() / key[:2] / key[2:] / f"{name}.py"
    text = _read(path)
    if text is not None:
        return path, text
    text = make()
    try:
        replace_file(path, seal(text))
    except OSError as error:
        _warn_unwritable(str(cache_folder()), str(error))
        path = private_folder() / key / f"{name}.py"
        replace_file(path, seal(text))
    return path, text


def seal(text: str) -> str:
    """Append the line that holds the digest of the text."""
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def unseal(sealed: str) -> str | None:
    """Return the text of a sealed entry, None when its digest does not match."""
    start = sealed.rfind(_SEAL)
    return sealed[:start] if start >= 0 and seal(sealed[:start]) == sealed else None


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return unseal(file.read())
    except (OSError, UnicodeDecodeError):
        return None


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step: readers see the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600; others may import a written module
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="attnc-", ignore_cleanup_errors=True)


def private_folder() -> Path:
    """Return a temporary folder of this process, removed at its end."""
    return Path(_temporary().name)


@cache
def _warn_unwritable(folder: str, reason: str) -> None:
    warnings.warn(
        f"attnc: the cache folder {folder} cannot be written ({reason}); compiled modules are not "
        "kept. Set ATTNC_CACHE_DIR to a folder that can be.",
        stacklevel=4,
    )
