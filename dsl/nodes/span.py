"""The span every node carries."""

from __future__ import annotations

from dataclasses import field

from attnc.dsl.source import UNKNOWN, Span


def span_field() -> Span:
    """Return a span field that takes no part in comparisons."""
    return field(default=UNKNOWN, compare=False, repr=False)
