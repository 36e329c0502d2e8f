"""Models of this package in the words of the transformers library: its auto classes and pipelines know them by their
``model_type``, with no code from a repository.

Nothing is imported for it: when transformers imports one of its own tables, the classes are entered there.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_TYPE = "mmzoo"


def _enter_config(auto: ModuleType) -> None:
    from mmzoo.integrations.transformers.config import MmzooConfig

    auto.AutoConfig.register(MODEL_TYPE, MmzooConfig, exist_ok=True)


def _enter_model(auto: ModuleType) -> None:
    from mmzoo.integrations.transformers.config import MmzooConfig
    from mmzoo.integrations.transformers.model import MmzooForImageTextToText

    for name in ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        getattr(auto, name).register(MmzooConfig, MmzooForImageTextToText, exist_ok=True)
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[MODEL_TYPE] = MmzooForImageTextToText.__name__  # what the pipeline reads


def _enter_processor(auto: ModuleType) -> None:
    from mmzoo.integrations.transformers.config import MmzooConfig
    from mmzoo.integrations.transformers.processor import MmzooProcessor

    auto.AutoProcessor.register(MmzooConfig, MmzooProcessor, exist_ok=True)


# By the module that the table is in. What the entries import is imported before it by transformers, or does not need it.
_ENTRIES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _enter_config,
    "transformers.models.auto.modeling_auto": _enter_model,
    "transformers.models.auto.processing_auto": _enter_processor,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what others find, and enters the classes right after it was executed."""

    def __init__(self) -> None:
        self.waiting = dict(_ENTRIES)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        enter = self.waiting.pop(name, None)
        spec = None if enter is None else importlib.util.find_spec(name)  # which asks the others, now that this one knows nothing
        if enter is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            enter(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Enter the classes in the tables that are imported already, and in the others when they are. Done once."""
    if any(type(finder).__name__ == _Finder.__name__ and finder.__class__.__module__ == __name__ for finder in sys.meta_path):
        return
    finder = _Finder()
    for name in _ENTRIES:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if module is not None and not getattr(spec, "_initializing", False):
            finder.waiting.pop(name)(module)
    sys.meta_path.insert(0, finder)
