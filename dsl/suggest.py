"""A word that is not known -> the known word that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest to ``word``, or None where nothing is near.

    >>> closest("patern", ["param", "pattern", "heads"])
    'pattern'
    >>> closest("zzz", ["param", "pattern"]) is None
    True
    """
    from difflib import get_close_matches

    candidates = list(dict.fromkeys(known))
    if len(word) > 64:
        return None  # difflib is quadratic in the word, and no name of ours is that long
    for candidate in candidates:
        if candidate.lower() == word.lower():
            return candidate
    near = get_close_matches(word, candidates, n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean `x`?`` for the nearest known word, or "".

    >>> did_you_mean("windw", ["window", "causal"])
    'did you mean `window`?'
    """
    near = closest(word, known)
    return f"did you mean `{near}`?" if near is not None else ""
