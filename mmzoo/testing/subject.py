"""Define what is checked: a distribution as a whole, or an entry with its tiny model, which the checks of a part share."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmzoo.data.collate import tensors
from mmzoo.data.dataset import Dataset
from mmzoo.interfaces import Example
from mmzoo.models.build import build
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes import catalogue
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.discovery import GROUP
from mmzoo.registry.entries import Entry
from mmzoo.testing.small import sample_of, tiny_parts
from mmzoo.training.data import learn

TEXTS = ("what color is it?", "", "is it a red, a green or a blue square, or is it none of these three?")
TOLERANCE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-3}  # float32 summed in another order


@dataclass(frozen=True)
class InstalledPlugin:
    """Represent a distribution that is checked as a whole."""

    distribution: str
    name: str = "plugin"
    kind: str = "plugin"

    @property
    def points(self) -> list[importlib.metadata.EntryPoint]:
        return list(importlib.metadata.distribution(self.distribution).entry_points.select(group=GROUP))

    @property
    def entries(self) -> list[Entry]:
        return [entry for entry in catalogue.entries() if entry.plugin == self.distribution]


class Subject:
    """Represent an entry that is checked. A part of a model also has a tiny model, with the first compatible partners."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.kind, self.name = entry, entry.kind, f"{entry.kind}-{entry.name}"

    @cached_property
    def target(self) -> Any:
        """Return the object that the entry's target names."""
        return self.entry.load()

    @property
    def tiny(self) -> dict[str, Any]:
        """Return ``tiny`` as options of the class: without the keys that every part has, with a variant if one is required."""
        own = {key: value for key, value in self.entry.tiny.items() if key not in PartConfig.model_fields}
        return {"variant": self.entry.variant or "a-variant", **own} if self.needs_variant else own

    @property
    def needs_variant(self) -> bool:
        fields = self.target.Options.model_fields
        return "variant" in fields and fields["variant"].is_required() and "variant" not in self.entry.tiny

    @cached_property
    def bare(self) -> Recipe:
        """Return the tiny recipe around the entry, before training learns anything from the data."""
        return tiny_parts(self.entry)

    @cached_property
    def dataset(self) -> Dataset:
        if self.kind == "task":
            return sample_of(None, self.target, self.target.Options(**self.tiny))
        return sample_of(self.target if self.kind == "encoder" else None)

    @cached_property
    def examples(self) -> list[Example]:
        """Return three examples with texts of different lengths, one of them empty."""
        examples = list(self.dataset.load("train"))
        return [replace(example, text=text) for example, text in zip(examples, TEXTS, strict=False)]

    def learned(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the labels and the vocabulary that training would learn."""
        return learn(recipe, [*self.dataset.load("train"), *self.examples])

    @cached_property
    def recipe(self) -> Recipe:
        return self.learned(self.bare)

    def build(self, recipe: Recipe | None = None, seed: int = 0) -> MultimodalModel:
        return build(recipe or self.recipe, seed=seed)

    @cached_property
    def model(self) -> MultimodalModel:
        """Return the model in evaluation mode; checks must not change it."""
        return self.build()

    def batch(self, model: MultimodalModel, examples: Sequence[Example] | None = None) -> dict[str, Any]:
        """Return a batch, collated for training."""
        return tensors(model.collator(training=True)(examples or self.examples), model.device)

    def part(self, model: MultimodalModel) -> Any:
        return model.part(self.key(model.recipe))

    def key(self, recipe: Recipe) -> str:
        """Return the key of the part in a recipe; of a joint fusion's two equal encoders the first."""
        if self.kind == "encoder":
            return f"encoders.{next(iter(recipe.encoders))}"
        return recipe.key(self.kind)


def close(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual.float(), expected.float(), **TOLERANCE)


def expect_shape(tensor: Any, wanted: Sequence[int | None], what: str) -> None:
    """Check the shape of a tensor; ``what`` begins the error, such as "forward returns"."""
    if not isinstance(tensor, Tensor) or list(tensor.shape) != list(wanted):
        raise AssertionError(f"{what} {shape(tensor)}, not {list(wanted)}")


def shape(tensor: Any) -> str:
    return str(list(tensor.shape)) if isinstance(tensor, Tensor) else f"{type(tensor).__name__}, not a tensor"


def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def flat_tensors(batch: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a nested batch by dotted names."""
    found: dict[str, Tensor] = {}
    for name, value in batch.items():
        found |= {prefix + name: value} if isinstance(value, Tensor) else {}
        found |= flat_tensors(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {}
    return found
