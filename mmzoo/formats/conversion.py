"""Convert the weights of other code into a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """Describe where a weight of a model is in a checkpoint of other code.

    Args:
        names: the possible names of the tensor. If several are present, they must be equal.
        with_it: converts the tensor, for example transposes it.
    """

    names: tuple[str, ...]
    with_it: Callable[[Tensor], Tensor] = lambda value: value


def plan_model(recipe: Mapping[str, Any], label: str) -> MultimodalModel:
    """Return the model of ``recipe`` on the meta device: shapes without weights.

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
    """Return the model of ``recipe`` with the weights ``state`` of other code.

    Args:
        recipe: plain data.
        state: the tensors of the checkpoint, by name.
        find: returns the source of a weight by its name in the model; None for a weight that the recipe provides.
        label: the name of the checkpoint in messages.
        ignore: returns whether a name in ``state`` has no meaning, such as a buffer that is computed; None to ignore no name.
        tokenizer: for a language model whose option ``tokenizer`` is ``checkpoint``.

    Raises:
        CheckpointError: weights are missing, unexpected, or of another shape; the message lists them.
        DoesNotFit: as `mmzoo.build`.
    """
    plan, report, converted = plan_model(recipe, label), _Report(), {}
    shapes = plan.state_dict()
    for name in plan.saved_names(full=True):
        source = find(name)
        if source is not None and (value := _convert(name, source, state, shapes[name], report)) is not None:
            converted[name] = value
    report.unexpected = [key for key in state if key not in report.used and not (ignore is not None and ignore(key))]
    report.raise_if_bad(label)
    with tempfile.TemporaryDirectory() as folder:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        model = assemble(Recipe.of(recipe, label), folder=Path(folder) if tokenizer is not None else None)
    model.load_state_dict(converted, strict=False)
    return model


@dataclass
class _Report:
    """Collect what a conversion uses of a checkpoint and what is wrong with it, so that one error lists everything."""

    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def raise_if_bad(self, label: str) -> None:
        """Raise one `CheckpointError` that lists missing keys, unexpected keys and tensors that do not fit, if there are any."""
        lists = {"keys are missing": self.missing, "keys are unexpected": self.unexpected, "tensors do not fit": self.problems}
        if lines := [f"{len(names)} {what}: {first_names(names)}" for what, names in lists.items() if names]:
            raise CheckpointError(f"{label}: " + "\n".join(lines))


def _convert(name: str, source: WeightSource, state: Mapping[str, Tensor], wanted: Tensor, report: _Report) -> Tensor | None:
    """Return the value of the weight ``name``; None, with an entry in ``report``, if it is missing or does not fit."""
    keys = [key for key in dict.fromkeys(source.names) if key in state]
    if not keys:
        report.missing.append(source.names[0])
        return None
    report.used.update(keys)
    key, value = keys[0], state[keys[0]]
    if value.layout != torch.strided or value.is_meta:
        problem = f"{key} is sparse, or on the meta device"
    elif others := [other for other in keys[1:] if not torch.equal(state[other], value)]:
        problem = f"{others[0]} differs from {key}, but the two are one weight"
    elif value.is_floating_point() != wanted.is_floating_point():
        problem = f"{key} has the type {value.dtype}; quantised weights are not supported"
    else:
        try:
            converted = source.with_it(value)
        except (RuntimeError, IndexError, ValueError):  # the value has too few dimensions for the conversion
            problem = f"{key} is {list(value.shape)}"
        else:
            if converted.shape == wanted.shape:
                return converted
            problem = f"{key} is {list(value.shape)}, but {name} is {list(wanted.shape)} in its configuration"
    report.problems.append(problem)
    return None
