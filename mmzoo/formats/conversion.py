"""Convert the weights of other code into a model."""

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
from mmzoo.interfaces.kinds import key_of, kind_of
from mmzoo.models.assemble import assemble
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import Recipe


@dataclass(frozen=True)
class WeightSource:
    """Describe where a weight of a model is in a checkpoint of other code.

    Args:
        names: the possible names of the tensor. If several are present, they must be equal.
        with_it: converts the tensor, for example transposes it.
    """

    names: tuple[str, ...]
    with_it: Callable[[Tensor], Tensor] = lambda value: value


def plan_model(recipe: Mapping[str, Any], label: str) -> MultimodalModel:
    """Return the model of ``recipe`` on the meta device, shapes without weights; errors are those of `mmzoo.build`."""
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
    """Return the model of ``recipe`` with the weights ``state`` of other code.

    Args:
        recipe: plain data.
        state: the tensors of the checkpoint, by name.
        find: returns the source of a weight by its kind of part and its name there, such as ``fusion.linear.weight``; None for a
            weight that the recipe provides.
        label: the name of the checkpoint in messages.
        ignore: returns whether a name in ``state`` has no meaning, such as a buffer that is computed; None to ignore no name.
        tokenizer: for a language model whose option ``tokenizer`` is ``checkpoint``.

    Raises:
        CheckpointError: weights are missing, unexpected, or of another shape; the message lists them.
        DoesNotFit: as `mmzoo.build`.
    """
    weights = _convert_all(plan_model(recipe, label), state, find, ignore, label)
    with tempfile.TemporaryDirectory() as folder:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        model = assemble(Recipe.of(recipe, label), folder=Path(folder) if tokenizer is not None else None)
    model.load_state_dict(weights, strict=False)
    return model


def _convert_all(
    plan: MultimodalModel,
    state: Mapping[str, Tensor],
    find: Callable[[str], WeightSource | None],
    ignore: Callable[[str], bool] | None,
    label: str,
) -> dict[str, Tensor]:
    """Return the converted weights by their names in the model; one `CheckpointError` lists everything that is wrong."""
    shapes, used, converted = plan.state_dict(), set(), {}
    missing, problems = [], []
    for name in plan.saved_names(full=True):
        if (source := find(kind_of(name) + name[len(key_of(name)) :])) is None:
            continue
        keys = [key for key in dict.fromkeys(source.names) if key in state]
        used.update(keys)
        if not keys:
            missing.append(source.names[0])
        elif isinstance(value := _convert(name, source, keys, state, shapes[name]), str):
            problems.append(value)
        else:
            converted[name] = value
    unexpected = [key for key in state if key not in used and not (ignore is not None and ignore(key))]
    lists = {"keys are missing": missing, "keys are unexpected": unexpected, "tensors do not fit": problems}
    if lines := [f"{len(names)} {what}: {first_names(names)}" for what, names in lists.items() if names]:
        raise CheckpointError(f"{label}: " + "\n".join(lines))
    return converted


def _convert(name: str, source: WeightSource, keys: list[str], state: Mapping[str, Tensor], wanted: Tensor) -> Tensor | str:
    """Return the value of the weight ``name`` from the tensors ``keys``; a message if they do not fit."""
    key, value = keys[0], state[keys[0]]
    if value.layout != torch.strided or value.is_meta:
        return f"{key} is sparse, or on the meta device"
    if others := [other for other in keys[1:] if not torch.equal(state[other], value)]:
        return f"{others[0]} differs from {key}, but the two are one weight"
    if value.is_floating_point() != wanted.is_floating_point():
        return f"{key} has the type {value.dtype}; quantised weights are not supported"
    try:
        converted = source.with_it(value)
    except (RuntimeError, IndexError, ValueError):  # the value has too few dimensions for the conversion
        return f"{key} is {list(value.shape)}"
    fits = converted.shape == wanted.shape
    return converted if fits else f"{key} is {list(value.shape)}, but {name} is {list(wanted.shape)} in its configuration"
