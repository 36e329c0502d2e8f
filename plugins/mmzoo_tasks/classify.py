"""Choose a label of a fixed set from the fused vector of an example (VQA as classification, Antol et al. 2015,
https://arxiv.org/abs/1505.00468), with the focal loss of Lin et al. 2017 (https://arxiv.org/abs/1708.02002) as an option."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from mmzoo.api import IGNORE, DataError, Example, Outputs, Prediction, TextContext
from mmzoo_tasks.pooled import PLACEHOLDERS, Labelled, LabelOptions, refuse, text_batch

MANY = 100  # whole numbers that may be labels of one example each, such as digits and years


class Classify(Labelled):
    """Train with cross-entropy over ``labels``, weighted by class and focused on hard examples if the options say so.

    The loss of an example with label y of probability p is w_y (1 - p)^gamma (-log p) (Lin et al. 2017, eq. 5); the number of
    labels, not the sum of their weights, divides the sum.
    """

    metrics = ("accuracy", "precision", "recall", "f1")

    class Options(LabelOptions):
        labels: list[str] | None = Field(
            None, min_length=2, description="the label set; training learns it from the data; two placeholders until then"
        )
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all labels")
        class_weights: Literal["none", "balanced"] = Field(
            "none", description="balanced: weigh the loss of a label by examples / (labels * examples of that label)"
        )
        label_weights: list[float] | None = Field(
            None, description="the weight of each label; training learns it from the data if class_weights is balanced"
        )
        focal_gamma: float = Field(0.0, ge=0, le=100, description="focus on examples of low probability; 0 is cross-entropy")

        @model_validator(mode="after")
        def _one_each(self) -> Any:
            if self.label_weights is not None and len(self.label_weights) != len(self.labels or PLACEHOLDERS):
                raise ValueError("label_weights must have one number for each label")
            if min(self.label_weights or [0]) < 0:
                raise ValueError("label_weights must not be negative")
            return self

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        """Return ``labels``, and ``label_weights`` for balanced classes, as far as the options lack them.

        Raises:
            DataError: there are fewer than two labels, or they are numbers to estimate, as `_check_classes` decides.
        """
        weighs = options.class_weights == "balanced" and options.label_weights is None
        if options.labels and not weighs:
            return {}
        counts = Counter(example.targets[0] for example in examples if example.targets)
        learned: dict[str, Any] = {} if options.labels else {"labels": _labels(counts)}
        if weighs:
            found = [counts[label] for label in options.labels or learned["labels"]]
            share = sum(found) / max(1, sum(map(bool, found)))
            learned["label_weights"] = [share / count if count else 1.0 for count in found]
        return learned

    def references(self, example: Example) -> list[str]:
        if not example.targets:
            raise DataError(f"example {example.id} has no label")
        return super().references(example)

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        batch = text_batch([example.text for example in examples], examples, text)
        if training:
            batch["labels"] = torch.tensor([self._index[self.references(example)[0]] for example in examples])
        return batch

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        labels, logits, options = batch["labels"], self.logits(outputs), self.options
        weights = logits.new_tensor(options.label_weights) if options.label_weights else None
        smoothing = options.label_smoothing
        losses = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing)
        if options.focal_gamma:
            right = logits.softmax(-1).gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
            losses = losses * (1 - right).clamp(min=1e-6) ** options.focal_gamma  # the slope at 0 may be infinite
        return {"cross-entropy": (losses.sum(), (labels != IGNORE).sum())}

    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], **options: Any) -> list[Prediction]:
        refuse(options)
        predictions = []
        for row in self.logits(outputs).softmax(-1).tolist():
            scores = dict(zip(self.labels, row, strict=True))
            best = max(scores, key=scores.__getitem__)  # the first of equal ones
            predictions.append(Prediction(label=best, score=scores[best], scores=scores))
        return predictions


def _labels(counts: Counter[str]) -> list[str]:
    """Return the sorted labels of the training examples; raise a `DataError` if they are no label set."""
    labels = sorted(counts)
    if len(labels) < 2:
        raise DataError(
            f"classification needs two labels or more, and the training data has {len(labels)}"
            + (f": {labels[0]!r}" if labels else "; is the target column right?")
        )
    _check_classes(labels, sum(counts.values()))
    return labels


def _check_classes(labels: Sequence[str], examples: int) -> None:
    """Raise a `DataError` if labels are numbers to estimate.

    They are if all are finite numbers that have fewer than two examples each on average, and one of them is not whole or there
    are more than `MANY`.
    """
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return
    if not all(map(math.isfinite, numbers)) or examples >= 2 * len(labels):
        return
    if len(labels) > MANY or not all(number.is_integer() for number in numbers):
        shown = ", ".join(labels[:3])
        raise DataError(
            f"the {examples} training targets are {len(labels)} different numbers ({shown}, ...), too many to be classes; to "
            "estimate a number use the task regress; to classify by them all the same set task.labels"
        )
