"""Find names that are similar to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.55  # of difflib's ratio; below it a suggestion confuses more than it helps


def close_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return at most ``count`` of the ``known`` names that are similar to ``name``, the most similar first."""
    return difflib.get_close_matches(name, sorted(known), n=count, cutoff=CUTOFF)


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``"did you mean 'a' or 'b'?"``; empty if no known name is similar."""
    near = close_names(name, known, count)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
