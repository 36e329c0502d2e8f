"""Build a model from a recipe, and check a recipe without building it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmzoo.checkpoints.summary import Summary, parse_bytes
from mmzoo.models.assemble import assemble
from mmzoo.models.augmentation import make_augmentations
from mmzoo.models.load import take_weights
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe


def build(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    pretrained: bool | None = None,
    seed: int | None = None,
    weights: str | Path | None = None,
    **changes: Any,
) -> MultimodalModel:
    """Build a model from a recipe's name, a YAML or JSON file, a `Recipe`, or parts.

    Args:
        recipe: the recipe to start from; None if ``changes`` name encoder, fusion, language_model and task, or several of them:
            ``encoders={"image": "cnn", "audio": "log-mel-gru"}``.
        pretrained: False builds the same sizes with random weights and downloads none.
        seed: the seed of the random initialisation; None leaves torch's generator as it is.
        weights: a checkpoint, as `load` takes it. Each part that is the same entry there, with tensors of the same names and
            shapes, takes its weights; a warning names the parts that do not.
        changes: parts and options that override the recipe: ``fusion={"length": 20}``, ``encoder="timm:resnet18"``.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: before any weight is downloaded.
        SourceError: pretrained weights cannot be fetched. CheckpointError, HubError: ``weights`` cannot be read.
    """
    chosen = read_recipe(recipe, pretrained=pretrained, **changes)
    if seed is not None:
        torch.manual_seed(seed)
    model = assemble(chosen)
    if weights is not None:
        take_weights(model, weights)
    return model


def check(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    pretrained: bool | None = None,
    memory: str | int | None = None,
    **changes: Any,
) -> Summary:
    """Check that the parts of a recipe are compatible, and summarise the model, without building it or fetching weights.

    Args:
        memory: the summary then also has the largest batch that fits into it: ``"24GB"``, ``"16GiB"``, or bytes.

    Raises:
        DoesNotFit: the parts are incompatible; the message names entries that would fit. UnknownName, BadRecipe: as `build`; or
            ``memory`` is no size.
    """
    size = None if memory is None else parse_bytes(memory)
    chosen = read_recipe(recipe, pretrained=pretrained, **changes)
    make_augmentations(chosen)
    summary = assemble(chosen, meta=True).summary()
    return replace(summary, memory=size)
