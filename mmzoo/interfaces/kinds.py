"""Define the table of kinds: what can be registered, through which hook, and the base class of its targets.

A new kind is one row here and a hook in `mmzoo.registry.hookspecs`. No torch is imported: base classes are imported on request.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Describe a kind of entry.

    Args:
        name: the value of `Entry.kind`.
        hook: the pluggy hook that returns its entries.
        base: the base class of its targets as ``"package.module:Class"``; empty for kinds whose targets are not classes.
        part: whether it is a part of a model, which a recipe names.
        group: the key of a recipe that holds several of them by name; empty if a model has one.
    """

    name: str
    hook: str
    base: str = ""
    part: bool = False
    group: str = ""

    @property
    def label(self) -> str:
        """Return the name as messages spell it."""
        return self.name.replace("_", " ")

    def base_class(self) -> type | None:
        """Import and return the base class; None for kinds whose targets are not classes."""
        if not self.base:
            return None
        module, _, name = self.base.partition(":")
        cls: type = getattr(importlib.import_module(module), name)
        return cls


KINDS = {
    kind.name: kind
    for kind in (
        Kind("encoder", "mmzoo_encoders", "mmzoo.interfaces.encoder:Encoder", part=True, group="encoders"),
        Kind("fusion", "mmzoo_fusions", "mmzoo.interfaces.fusion:Fusion", part=True, group="fusions"),
        Kind("language_model", "mmzoo_language_models", "mmzoo.interfaces.language_model:LanguageModel", part=True),
        Kind("task", "mmzoo_tasks", "mmzoo.interfaces.task:Task", part=True, group="tasks"),
        Kind("dataset", "mmzoo_datasets", "mmzoo.data.dataset:Dataset"),
        Kind("metric", "mmzoo_metrics", "mmzoo.evaluation.metric:Metric"),
        Kind("augmentation", "mmzoo_augmentations", "mmzoo.interfaces.augmentation:Augmentation"),
        Kind("recipe", "mmzoo_recipes"),
        Kind("format", "mmzoo_formats", "mmzoo.formats.format:Format"),
        Kind("command", "mmzoo_commands"),
    )
}
PARTS = tuple(kind.name for kind in KINDS.values() if kind.part)
GROUPS = {kind.name: kind.group for kind in KINDS.values() if kind.group}  # from kind to the key that holds several
MAX_PARTS = 100  # of a kind in a model; each is built before it is compared with the weights
_KINDS_OF = {group: kind for kind, group in GROUPS.items()}
HOOKS = {kind.hook: kind.name for kind in KINDS.values()}


def kind_of(key: str) -> str:
    """Return the kind of a part by its key in a recipe: ``encoders.image`` is an ``encoder``."""
    head = key.partition(".")[0]
    return _KINDS_OF.get(head, head)


def key_of(tensor: str) -> str:
    """Return the key of the part that a tensor of a model belongs to: ``encoders.image`` for ``encoders.image.conv.weight``."""
    steps = tensor.split(".")
    return ".".join(steps[: 2 if steps[0] in _KINDS_OF else 1])
