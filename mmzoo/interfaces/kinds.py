"""The table of kinds: what can be registered, through which hook, and the class that it must derive from.

A new kind is one row here and a hook in `mmzoo.registry.hookspecs`. Imports no torch: base classes are named, and imported when
they are asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of entry.

    Args:
        name: as `Entry.kind` has it.
        hook: the pluggy hook that returns its entries.
        base: ``"package.module:Class"`` that targets derive from; empty where a target is no class.
        part: whether it is a part of a model, which a recipe names.
    """

    name: str
    hook: str
    base: str = ""
    part: bool = False

    @property
    def label(self) -> str:
        """Return the name as it stands in a message."""
        return self.name.replace("_", " ")

    def base_class(self) -> type | None:
        """Import the base class; None where a target is no class."""
        if not self.base:
            return None
        module, _, name = self.base.partition(":")
        found: type = getattr(importlib.import_module(module), name)
        return found


KINDS = {
    kind.name: kind
    for kind in (
        Kind("encoder", "mmzoo_encoders", "mmzoo.interfaces.encoder:Encoder", part=True),
        Kind("fusion", "mmzoo_fusions", "mmzoo.interfaces.fusion:Fusion", part=True),
        Kind("language_model", "mmzoo_language_models", "mmzoo.interfaces.language_model:LanguageModel", part=True),
        Kind("task", "mmzoo_tasks", "mmzoo.interfaces.task:Task", part=True),
        Kind("dataset", "mmzoo_datasets", "mmzoo.data.dataset:Dataset"),
        Kind("metric", "mmzoo_metrics", "mmzoo.evaluation.metric:Metric"),
        Kind("recipe", "mmzoo_recipes"),
        Kind("format", "mmzoo_formats", "mmzoo.formats.format:Format"),
        Kind("command", "mmzoo_commands"),
    )
}
PARTS = tuple(kind.name for kind in KINDS.values() if kind.part)
HOOKS = {kind.hook: kind.name for kind in KINDS.values()}
