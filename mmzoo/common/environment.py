"""Read the versions of Python and of the packages that affect a measured number."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("mmzoo", "torch", "transformers", "accelerate", "peft", "timm", "tokenizers")


def environment() -> dict[str, str]:
    """Return the version of Python and of each of `PACKAGES`, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
