"""The versions that a number depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("mmzoo", "torch", "transformers", "accelerate", "peft", "timm", "tokenizers")


def environment() -> dict[str, str]:
    """Package to version, Python's included."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
