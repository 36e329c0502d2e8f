"""Make a model from the weights of other code."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo.backbones.weights import first_names
from mmzoo.errors import CheckpointError
from mmzoo.models.assemble import assemble
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import Recipe


@dataclass(frozen=True)
class WeightSource:
    """Where a weight of ours stands in a foreign checkpoint: under one of ``names``, or several that hold the same, and what is
    done ``with_it``."""

    names: tuple[str, ...]
    with_it: Callable[[Tensor], Tensor] = lambda value: value


def plan_model(recipe: Mapping[str, Any], label: str) -> MultimodalModel:
    """The model of ``recipe`` on the meta device: its sizes, and no weights.

    Raises:
        BadRecipe, DoesNotFit: as `mmzoo.build`.
    """
    return assemble(Recipe.of(recipe, label), meta=True)


def convert_checkpoint(
    recipe: Mapping[str, Any],
    state: Mapping[str, Tensor],
    find: Callable[[str], WeightSource | None],
    *,
    label: str,
    ignore: Callable[[str], bool] | None = None,
    tokenizer: Any = None,
) -> MultimodalModel:
    """The model of ``recipe`` with the weights ``state`` of other code.

    Args:
        find: for the name of a weight of ours, where it is found; None for one that the recipe brings itself.
        label: what the checkpoint is called in messages.
        ignore: which names of ``state`` mean nothing, such as buffers that are computed; None for none of them.
        tokenizer: for a language model whose option ``tokenizer`` is ``checkpoint``.

    Raises:
        CheckpointError: weights are missing, left over, or of another shape, listing them. DoesNotFit: as `mmzoo.build`.
    """
    chosen, plan = Recipe.of(recipe, label), plan_model(recipe, label)
    shapes = plan.state_dict()
    places = {name: place for name in plan.saved_names(full=True) if (place := find(name)) is not None}
    missing, used, problems = [], set(), []
    converted: dict[str, Tensor] = {}
    for name, place in places.items():
        there = [key for key in dict.fromkeys(place.names) if key in state]
        if not there:
            missing.append(place.names[0])
            continue
        used.update(there)
        key, value, wanted = there[0], state[there[0]], shapes[name]
        if value.layout != torch.strided or value.is_meta:
            problems.append(f"{key} is sparse, or has a shape and no numbers")
            continue
        if others := [other for other in there[1:] if not torch.equal(state[other], value)]:
            problems.append(f"{others[0]} holds other numbers than {key}, and the two are one weight")
            continue
        try:
            converted[name] = place.with_it(value)
        except (RuntimeError, IndexError, ValueError):  # too few dimensions for what is done with it
            problems.append(f"{key} is {list(value.shape)}")
            continue
        if converted[name].shape != wanted.shape:
            problems.append(f"{key} is {list(value.shape)}, its configuration makes {name} {list(wanted.shape)}")
        elif value.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{key} is of the type {value.dtype}; quantised weights are not read")
    left = [key for key in state if key not in used and not (ignore is not None and ignore(key))]
    said = [
        f"{len(names)} {what}: {first_names(names)}"
        for names, what in ((missing, "keys are missing"), (left, "keys are unexpected"), (problems, "tensors do not fit"))
        if names
    ]
    if said:
        raise CheckpointError(f"{label}: " + "\n".join(said))
    with tempfile.TemporaryDirectory() as folder:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        model = assemble(chosen, folder=Path(folder) if tokenizer is not None else None)
    model.load_state_dict(converted, strict=False)
    return model
