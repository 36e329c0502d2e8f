"""Estimate one or several numbers from the fused vector: least squares, absolute error, or the loss of Huber 1964
(https://doi.org/10.1214/aoms/1177703732)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from mmzoo.api import DataError, Example, Outputs, Prediction, TextContext
from mmzoo_tasks.pooled import HeadOptions, Pooled, refuse, text_batch

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class Regress(Pooled):
    """Train on numbers in units of their standard deviation: the head estimates (number - mean) / scale.

    The targets of an example are its numbers, always as many. A number that is always the same has the scale 1.
    """

    metrics = ("mae", "mse", "r2", "pearson", "spearman")

    class Options(HeadOptions):
        loss: Literal["mse", "mae", "huber"] = Field("mse", description="of the scaled numbers; huber is linear beyond 1")
        mean: list[float] | None = Field(None, min_length=1, description="of each number; training learns it; 0 until then")
        scale: list[float] | None = Field(
            None, min_length=1, description="standard deviation of each number; training learns it; 1 until then"
        )

        @model_validator(mode="after")
        def _one_each(self) -> Any:
            if len(self.mean or ()) != len(self.scale or ()):
                raise ValueError("mean and scale belong together: give both, with one number each for each value, or neither")
            if any(scale <= 0 for scale in self.scale or ()):
                raise ValueError("scale must be positive")
            return self

    def __init__(self, options: Any, *specs: Any) -> None:
        super().__init__(options, *specs)
        self.mean, self.scale = np.array(options.mean or [0.0]), np.array(options.scale or [1.0])
        count = len(self.mean)
        self.shape = f"{count} number{'s' * (count > 1)}" + ("" if options.mean else " (not learned yet)")

    @classmethod
    def width(cls, options: Any) -> int:
        return len(options.mean or [0.0])

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        """Return ``mean`` and ``scale``, the population's standard deviation, unless the options have them.

        Raises:
            DataError: a target is no finite number, examples differ in how many they have, or none has any.
        """
        if options.mean:
            return {}
        rows: list[list[float]] = []
        for example in examples:
            if example.targets:
                rows.append(_numbers(example, len(rows[0]) if rows else len(example.targets)))
        if not rows:
            raise DataError("no training example has a number as target; is the target column right?")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = np.mean(rows, 0), np.std(rows, 0)
        if not np.isfinite([mean, scale]).all():
            raise DataError("the training targets are too large to compute their standard deviation; give them in other units")
        # The standard deviation of equal numbers may not be quite 0.
        return {"mean": mean.tolist(), "scale": np.where((np.ptp(rows, axis=0) > 0) & (scale > 0), scale, 1.0).tolist()}

    def references(self, example: Example) -> list[str]:
        if not example.targets:
            raise DataError(f"example {example.id} has no number as target")
        _numbers(example, len(self.mean))
        return list(example.targets)

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` [batch, text], and in training ``labels`` [batch, values], float: scaled numbers."""
        batch = text_batch([example.text for example in examples], examples, text)
        if training:
            rows = np.array([self.references(example) for example in examples]).astype(float)
            batch["labels"] = torch.tensor((rows - self.mean) / self.scale, dtype=torch.float32)
        return batch

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        labels = batch["labels"]
        present, estimates = ~labels.isnan(), self.logits(outputs)  # NaN is none
        wanted = torch.where(present, labels, estimates.detach())
        return {self.options.loss: (LOSSES[self.options.loss](estimates, wanted, reduction="sum"), present.sum())}

    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], **options: Any) -> list[Prediction]:
        """Return ``value``, or ``values`` if there are several, in the units of the data."""
        refuse(options)
        rows = (np.array(self.logits(outputs).tolist()) * self.scale + self.mean).tolist()
        return [Prediction(value=row[0]) if len(row) == 1 else Prediction(values=tuple(row)) for row in rows]


def _numbers(example: Example, count: int) -> list[float]:
    """Return the targets of an example as numbers; raise a `DataError` if they are not ``count`` finite ones."""
    numbers = []
    for target in example.targets:
        try:
            numbers.append(float(target))
        except ValueError:
            raise DataError(
                f"example {example.id}: the target {target!r} is no number; for labels use the task classify"
            ) from None
        if not math.isfinite(numbers[-1]):
            raise DataError(f"example {example.id}: the target {target!r} is not finite; leave the example out")
    if len(numbers) != count:
        raise DataError(f"example {example.id} has {len(numbers)} numbers as targets where others have {count}")
    return numbers
