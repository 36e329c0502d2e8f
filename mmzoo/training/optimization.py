"""Group the parameters by part, schedule the learning rates, and check the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.errors import TrainingError
from mmzoo.interfaces.kinds import key_of
from mmzoo.models.model import MultimodalModel
from mmzoo.training.output import name_last_checkpoint


def rate_at(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Return the function from a step, counted from 0, to its learning rate as a share of the peak.

    It rises to the peak within the first ``warmup`` steps, of which the first has 1 / warmup, so that no step is without effect;
    then it follows the schedule: ``linear`` or ``cosine`` to 0, which the step after the last would have, or constant.
    """

    def rate(step: int) -> float:
        if step < warmup and schedule != "constant":
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}.get(schedule, 1.0)

    return rate


def parameter_groups(model: MultimodalModel, wrapped: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups for each part, with the part's key as their name and its learning rate.

    One holds tensors of two or more dimensions, which get weight decay; the other holds the rest, such as biases.
    """
    rates = {key: part.learning_rate or model.recipe.training.learning_rate for key, part in model.recipe.parts().items()}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            key = key_of(name.removeprefix("module."))
            groups.setdefault((key, parameter.ndim >= 2), []).append(parameter)
    return [
        {"name": key, "params": parameters, "lr": rates[key], "weight_decay": weight_decay if decays else 0.0}
        for (key, decays), parameters in groups.items()
    ]


def check_finite(weights: Mapping[str, Tensor], when: str, output: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        TrainingError: names the first such tensor, and the last good checkpoint.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"{when}: {name} holds NaN or infinite weights, which are not saved. Lower training.learning_rate or "
                "training.max_grad_norm" + name_last_checkpoint(output, "")
            )
