"""Define the version of the API that plugins are written for: hooks, entries and the names in `mmzoo.api`.

A plugin states its version in its module, as ``MMZOO_API = "1.0"``; the default is 1.0. Within a major version the API only
grows, so a plugin works with the minor version that it was written for and with every later one.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from mmzoo.common.sanitize import short_repr
from mmzoo.errors import PluginBroken, PluginRefused

API_VERSION = "1.0"
ATTRIBUTE = "MMZOO_API"


def read_api_version(module: Any) -> str:
    """Return the API version that a plugin's module states, 1.0 if it states none; raise a `PluginBroken` if it is malformed."""
    version = getattr(module, ATTRIBUTE, "1.0")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
        raise PluginBroken(f'{ATTRIBUTE} is {short_repr(version)}; it must be "MAJOR.MINOR", such as "{API_VERSION}"')
    return version


def check_api_version(version: str, distribution: str) -> None:
    """Check that a plugin written for API ``version`` works with this mmzoo.

    Raises:
        PluginRefused: the major version differs, or the minor version is newer; with the pip command that fixes it.
    """
    wanted, available = _parse(version), _parse(API_VERSION)
    if wanted[0] != available[0] or wanted[1] > available[1]:
        fix = f"pip install --upgrade {'mmzoo' if wanted > available else distribution}"
        message = f"was written for version {version} of mmzoo's plugin API, and this mmzoo has {API_VERSION}: {fix}"
        raise PluginRefused(message, fix)


def warn_deprecated(name: str, *, use: str, since: str, removed: str, stacklevel: int = 3) -> None:
    """Warn the caller of a deprecated function, two frames up, to use ``use``, because ``name`` will be removed.

    A deprecated name warns for at least one minor version of the API (``since``, such as ``"1.1"``, is the first) before a major
    version (``removed``, such as ``"2.0"``) removes it.

    Raises:
        ValueError: ``removed`` is not the first minor version of a later major version.
    """
    first, last = _parse(since), _parse(removed)
    if last[0] <= first[0] or last[1] != 0:
        raise ValueError(f"{name}: deprecated in {since}, it can be removed in {first[0] + 1}.0 at the earliest, not {removed}")
    message = f"{name} is deprecated since version {since} of mmzoo's plugin API and will be removed in {removed}; use {use}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def _parse(version: str) -> tuple[int, ...]:
    """Return ``"MAJOR.MINOR"`` as two numbers."""
    return tuple(map(int, version.split(".")))
