"""Choose any number of labels of a fixed set: one logistic regression for each label on the fused vector (binary relevance;
Tsoumakas and Katakis 2007, https://doi.org/10.4018/jdwm.2007070101)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmzoo.api import DataError, Example, Outputs, Prediction, TextContext
from mmzoo_tasks.pooled import Labelled, LabelOptions, label_forms, refuse, text_batch


class MultiLabel(Labelled):
    """Train with binary cross-entropy. All targets of an example are its labels; an example without targets has none of them.

    The loss is the mean over examples and labels: its number is batch * labels. A target outside the label set takes no part.
    """

    metrics = ("multi-label-f1", "multi-label-f1-micro", "subset-accuracy", "map")

    class Options(LabelOptions):
        threshold: float = Field(0.5, ge=0, le=1, description="the least probability of a label that is predicted")

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        """Return ``labels``, unless the options have them; raise a `DataError` if no example has one."""
        if options.labels:
            return {}
        labels = sorted(set(label_forms({target for example in examples for target in example.targets}).values()))
        if not labels:
            raise DataError("no training example has a label; is the target column right?")
        return {"labels": labels}

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` [batch, text], and in training ``labels`` [batch, labels], float, 1 where one applies."""
        batch = text_batch([example.text for example in examples], examples, text)
        if training:
            labels = torch.zeros(len(examples), len(self.labels))
            for row, example in zip(labels, examples, strict=True):
                row[[i for target in example.targets if (i := self._index[target]) is not None]] = 1
            batch["labels"] = labels
        return batch

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        labels = batch["labels"]
        present, logits = ~labels.isnan(), self.logits(outputs)  # NaN is none
        each = F.binary_cross_entropy_with_logits(logits, torch.where(present, labels, 0).float(), reduction="none")
        return {"cross-entropy": (torch.where(present, each, 0).sum(), present.sum())}

    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], **options: Any) -> list[Prediction]:
        """Return the labels whose probability is ``threshold`` or more, and ``scores`` with that of each label."""
        refuse(options)
        predictions = []
        for row in self.logits(outputs).sigmoid().tolist():
            scores = dict(zip(self.labels, row, strict=True))
            chosen = tuple(label for label, score in scores.items() if score >= self.options.threshold)
            predictions.append(Prediction(labels=chosen, scores=scores))
        return predictions
