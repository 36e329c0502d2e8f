"""Share what tasks have in common that read one vector of an example: the batch of its text, the head, the label set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor, nn

from mmzoo.api import (
    BadRecipe,
    DataError,
    Example,
    FeatureSpec,
    LanguageSpec,
    Options,
    Outputs,
    Task,
    TextContext,
    check_length,
    pad_with_mask,
    prompt_ids,
)

PLACEHOLDERS = ("label_0", "label_1")


class HeadOptions(Options):
    """Define the options of a head on the fused vector."""

    hidden: int | None = Field(None, ge=1, le=1 << 20, description="channels of a hidden layer of the head; none if empty")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the fused vector")


class LabelOptions(HeadOptions):
    """Define the options of a task with a label set."""

    labels: list[str] | None = Field(
        None, min_length=1, description="the label set; training learns it from the data; two placeholders until then"
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("labels must be distinct")
        return value


class Pooled(Task):
    """Map the fused vector [batch, dim] through a linear head, or one with a hidden layer."""

    def __init__(self, options: Any, language_model: LanguageSpec, encoders: Mapping[str, FeatureSpec]) -> None:
        super().__init__(options, language_model, encoders)
        dim, width = language_model.dim, options.hidden
        hidden: list[nn.Module] = [nn.Linear(dim, width), nn.GELU()] if width else []
        self.head = nn.Sequential(nn.Dropout(options.dropout), *hidden, nn.Linear(width or dim, self.width(options)))

    @classmethod
    def width(cls, options: Any) -> int:
        """Return the number of the head's outputs."""
        raise NotImplementedError

    @classmethod
    def texts(cls, options: Any, example: Example) -> Iterable[str]:
        return [example.text] if example.text else []

    def logits(self, outputs: Outputs) -> Tensor:
        """Return the head's outputs, [batch, outputs], float32."""
        return self.head(outputs.pooled).float()


class Labelled(Pooled):
    """Predict labels of a fixed set, ``labels``."""

    def __init__(self, options: Any, language_model: LanguageSpec, encoders: Mapping[str, FeatureSpec]) -> None:
        super().__init__(options, language_model, encoders)
        self.labels = list(options.labels or PLACEHOLDERS)
        self.shape = f"{len(self.labels)} labels" + ("" if options.labels else " (not learned yet)")
        self._index = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def width(cls, options: Any) -> int:
        return len(options.labels or PLACEHOLDERS)

    def references(self, example: Example) -> list[str]:
        if unknown := [target for target in example.targets if target not in self._index]:
            shown = ", ".join(self.labels[:20]) + (", ..." if len(self.labels) > 20 else "")
            raise DataError(f"example {example.id}: {unknown[0]!r} is not in the label set (task.labels: {shown})")
        return list(example.targets)


def text_batch(texts: Sequence[str], examples: Sequence[Example], text: TextContext) -> dict[str, Tensor]:
    """Return ``ids`` and ``mask`` [batch, text] of the text of each example.

    Raises:
        DataError: a text exceeds the context.
    """
    # Pooling needs a position, also for an empty text, and one that a causal model reads after the last input.
    padding = text.tokenizer.pad_token_id
    rows = [row if row and row[-1] >= 0 else [*row, padding] for row in prompt_ids(text, texts)]
    check_length(rows, text, [example.id for example in examples])
    ids, mask = pad_with_mask(rows, text.tokenizer.pad_token_id)
    return {"ids": ids, "mask": mask}


def refuse(options: Mapping[str, Any]) -> None:
    """Raise a `BadRecipe` if a prediction is given options, for a task that has none."""
    if options:
        raise BadRecipe(f"predict: {sorted(options)[0]}: this task has no such option")
