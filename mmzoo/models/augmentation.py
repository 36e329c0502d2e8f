"""Make the augmentations that a recipe names, and check that they are of the inputs of its encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmzoo.data.collate import Collator
from mmzoo.errors import BadRecipe, DoesNotFit, PluginBroken
from mmzoo.interfaces import Augmentation
from mmzoo.modalities.reader import NONE, plural
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry import isolation
from mmzoo.registry.manager import plugin_manager


def make_augmentations(recipe: Recipe) -> dict[str, list[Augmentation]]:
    """Return the augmentations of ``data.augment`` by modality, in order.

    Raises:
        UnknownName: there is no such augmentation. BadRecipe: an option is wrong.
        DoesNotFit: one is of another modality, or no encoder takes inputs of the modality.
    """
    chosen = {modality: given for modality, given in recipe.data.augment.items() if given}
    taken = {resolve("encoder", part).cls.modality for part in recipe.encoders.values()} - {NONE} if chosen else set()
    for modality in chosen:
        if modality not in taken:
            takes = f"the encoders take {' and '.join(map(plural, sorted(taken)))}" if taken else "no encoder has an input"
            raise DoesNotFit(f"data.augment.{modality}: the model takes no {plural(modality)}; {takes}. Leave it out")
    return {
        modality: [_make(modality, given, f"data.augment.{modality}.{i}") for i, given in enumerate(several)]
        for modality, several in chosen.items()
    }


def _make(modality: str, given: str | dict[str, Any], key: str) -> Augmentation:
    """Return one augmentation; ``key`` is its place in the recipe."""
    config = PartConfig.of(given, key)
    if strange := sorted(config.model_fields_set - {"use"} - config.options.keys()):
        raise BadRecipe(f"{key}.{strange[0]}: an augmentation has no such key; it is for the parts of a model")
    resolved = resolve("augmentation", config, key=key)
    entry, cls = resolved.entry, resolved.cls
    if not (isinstance(cls, type) and issubclass(cls, Augmentation)):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': {entry.target} is not a mmzoo.api.Augmentation")
    if cls.modality != modality:
        own = [each.name for each in plugin_manager().registry.entries("augmentation") if each.modality == modality]
        fits = f"those of {plural(modality)}: {', '.join(own)}" if own else f"no installed plugin has one of {plural(modality)}"
        raise DoesNotFit(f"{key}: {entry.label} changes {plural(cls.modality)}, not {plural(modality)}; {fits}")
    with isolation.attribute_errors_to(f"{entry.label} of plugin '{entry.plugin}' could not be built"):
        return cls(resolved.options)


def augment(collator: Collator, recipe: Recipe) -> Collator:
    """Return the collator of a training run with the augmentations of its recipe; errors as `make_augmentations`."""
    made = make_augmentations(recipe)
    pipelines = {name: replace(each, augmentations=made.get(each.modality, ())) for name, each in collator.pipelines.items()}
    return replace(collator, pipelines=pipelines)
