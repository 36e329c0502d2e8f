"""The versioned contract between mmzoo and its plugins: hooks, entries and `mmzoo.interfaces`.

A plugin says what it was written for with ``MMZOO_API = "1.0"`` in its module; without it, 1.0 is taken. Within a major version
things are only added, so a plugin works with its own minor version and every later one.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from mmzoo.common.sanitize import short_repr
from mmzoo.errors import PluginBroken

API_VERSION = "1.0"
ATTRIBUTE = "MMZOO_API"


def stated_version(plugin: Any) -> str:
    """The API version that a plugin's module says it was written for.

    Raises:
        PluginBroken: what it says is no version.
    """
    text = getattr(plugin, ATTRIBUTE, "1.0")
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", text):
        raise PluginBroken(f'{ATTRIBUTE} is {short_repr(text)}; it must be "MAJOR.MINOR", such as "{API_VERSION}"')
    return text


def refusal(written_for: str, dist: str) -> tuple[str, str] | None:
    """Why a plugin for another API cannot be used and the command that fixes it; None if it can."""
    theirs, ours = (tuple(map(int, text.split("."))) for text in (written_for, API_VERSION))
    if theirs[0] == ours[0] and theirs[1] <= ours[1]:
        return None
    fix = "pip install --upgrade mmzoo" if theirs > ours else f"pip install --upgrade {dist}"
    return f"was written for version {written_for} of mmzoo's plugin API, and this mmzoo has {API_VERSION}: {fix}", fix


def deprecated(what: str, *, use: str, since: str, removed: str, stacklevel: int = 3) -> None:
    """Warn the caller of the caller that ``what`` goes away: one minor version of the API at least warns before a major one
    removes it.

    Args:
        use: what to write instead.
        since: the version of the API that warns first, such as ``"1.1"``.
        removed: the version that does not have it any more, such as ``"2.0"``.

    Raises:
        ValueError: ``removed`` is not the first of a later major version.
    """
    old, new = (tuple(map(int, text.split("."))) for text in (since, removed))
    if not (new[0] > old[0] and new[1] == 0):
        raise ValueError(f"{what}: what is deprecated in {since} can go in {old[0] + 1}.0 at the earliest, not in {removed}")
    text = f"{what} is deprecated since version {since} of mmzoo's plugin API and is gone in {removed}; use {use}"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
