"""Choose a label of a fixed set from the fused vector of an image and a text (VQA as classification, Antol et al. 2015,
https://arxiv.org/abs/1505.00468)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import (
    BadRecipe,
    DataError,
    Example,
    Features,
    LanguageSpec,
    Options,
    Prediction,
    Task,
    TextContext,
    check_length,
    pad_with_mask,
    prompt_ids,
)

PLACEHOLDERS = ("label_0", "label_1")


class Classify(Task):
    """Train with cross-entropy over ``labels``; the fused vector [batch, dim] goes through a linear head, or one with a hidden
    layer."""

    metrics = ("accuracy", "precision", "recall", "f1")

    class Options(Options):
        labels: list[str] | None = Field(
            None, min_length=2, description="the label set; training learns it from the data; two placeholders until then"
        )
        hidden: int | None = Field(
            None, ge=1, le=1 << 20, description="channels of a hidden layer before the labels; none if empty"
        )
        dropout: float = Field(0.0, ge=0, lt=1, description="on the fused vector")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all labels")

        @field_validator("labels")
        @classmethod
        def _distinct(cls, value: list[str] | None) -> list[str] | None:
            if value is not None and len(set(value)) != len(value):
                raise ValueError("labels must be distinct")
            return value

    def __init__(self, options: Any, language_model: LanguageSpec) -> None:
        super().__init__(options, language_model)
        self.labels = list(options.labels or PLACEHOLDERS)
        self.shape = f"{len(self.labels)} labels" + ("" if options.labels else " (not learned yet)")
        self._index = {label: i for i, label in enumerate(self.labels)}
        dim, width = language_model.dim, options.hidden
        head: list[nn.Module] = [nn.Dropout(options.dropout)]
        if width:
            head += [nn.Linear(dim, width), nn.GELU()]
        self.head = nn.Sequential(*head, nn.Linear(width or dim, len(self.labels)))

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        if options.labels:
            return {}
        labels = sorted({example.targets[0] for example in examples if example.targets})
        if len(labels) < 2:
            raise DataError(
                f"classification needs two labels or more, and the training data has {len(labels)}"
                + (f": {labels[0]!r}" if labels else "; is the target column right?")
            )
        return {"labels": labels}

    @classmethod
    def texts(cls, options: Any, example: Example) -> Iterable[str]:
        return [example.text] if example.text else []

    def references(self, example: Example) -> list[str]:
        if not example.targets:
            raise DataError(f"example {example.id} has no label")
        if unknown := [target for target in example.targets if target not in self._index]:
            shown = ", ".join(self.labels[:20]) + (", ..." if len(self.labels) > 20 else "")
            raise DataError(f"example {example.id}: {unknown[0]!r} is not in the label set (task.labels: {shown})")
        return list(example.targets)

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        rows = prompt_ids(text, [example.text for example in examples])
        # Pooling needs at least one position, also for an empty text.
        rows = [row or [text.tokenizer.pad_token_id] for row in rows]
        check_length(rows, text, [example.id for example in examples])
        ids, mask = pad_with_mask(rows, text.tokenizer.pad_token_id)
        batch = {"ids": ids, "mask": mask}
        if training:
            batch["labels"] = torch.tensor([self._index[self.references(example)[0]] for example in examples])
        return batch

    def logits(self, model: Any, features: Features, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits [batch, labels]."""
        return self.head(model.pooled(features, batch["ids"], batch["mask"]))

    def loss(self, model: Any, features: Features, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        logits = self.logits(model, features, batch).float()
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.options.label_smoothing)
        return total, labels.new_tensor(len(labels))

    def predict(self, model: Any, features: Features, batch: dict[str, Tensor], **options: Any) -> list[Prediction]:
        if options:
            raise BadRecipe(f"predict: {sorted(options)[0]}: this task has no such option")
        predictions = []
        for row in self.logits(model, features, batch).float().softmax(-1).cpu():
            best = int(row.argmax())
            scores = dict(zip(self.labels, row.tolist(), strict=True))
            predictions.append(Prediction(label=self.labels[best], score=float(row[best]), scores=scores))
        return predictions
