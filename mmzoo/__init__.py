"""Provide a plugin-based multimodal model zoo: any encoder, any fusion, any language model.

    model = mmzoo.build("clip-prefix-gpt2")

Importing this package imports no torch: the names below are loaded on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmzoo import errors
from mmzoo.registry.api_version import API_VERSION
from mmzoo.registry.entries import Entry
from mmzoo.registry.hookspecs import hookimpl

if TYPE_CHECKING:
    from mmzoo.data.dataset import Dataset
    from mmzoo.evaluation.run import Evaluation, evaluate
    from mmzoo.evaluation.verify import Verification, verify
    from mmzoo.formats.format import export_model, import_model
    from mmzoo.interfaces.example import Example
    from mmzoo.models.build import build, check
    from mmzoo.models.load import load
    from mmzoo.models.model import MultimodalModel
    from mmzoo.publish import pack, push
    from mmzoo.recipes.catalogue import entries
    from mmzoo.recipes.schema import Recipe
    from mmzoo.sharing.locations import pull, search
    from mmzoo.training.run import Run, train

__version__ = "0.1.0"

_LAZY = {
    "build": "mmzoo.models.build",
    "check": "mmzoo.models.build",
    "load": "mmzoo.models.load",
    "entries": "mmzoo.recipes.catalogue",
    "push": "mmzoo.publish",
    "pack": "mmzoo.publish",
    "pull": "mmzoo.sharing.locations",
    "search": "mmzoo.sharing.locations",
    "Recipe": "mmzoo.recipes.schema",
    "MultimodalModel": "mmzoo.models.model",
    "Dataset": "mmzoo.data.dataset",
    "Example": "mmzoo.interfaces.example",
    "import_model": "mmzoo.formats.format",
    "export_model": "mmzoo.formats.format",
    "train": "mmzoo.training.run",
    "Run": "mmzoo.training.run",
    "evaluate": "mmzoo.evaluation.run",
    "Evaluation": "mmzoo.evaluation.run",
    "verify": "mmzoo.evaluation.verify",
    "Verification": "mmzoo.evaluation.verify",
}

__all__ = [
    "API_VERSION",
    "Dataset",
    "Entry",
    "Evaluation",
    "Example",
    "MultimodalModel",
    "Recipe",
    "Run",
    "Verification",
    "build",
    "check",
    "entries",
    "errors",
    "evaluate",
    "export_model",
    "hookimpl",
    "import_model",
    "load",
    "pack",
    "pull",
    "push",
    "search",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'mmzoo' has no attribute '{name}'")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
