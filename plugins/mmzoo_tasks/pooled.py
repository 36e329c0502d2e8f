"""Share what tasks have in common that read one vector of an example: the batch of its text, the head, the label set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor, nn

from mmzoo.api import (
    BadRecipe,
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
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+)?")


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


class LabelIndex(dict[str, int]):
    """Find the number of a label, also in another form: 1.0 of 1, and True of true, as other programs write them."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__({label: i for i, label in enumerate(labels)})
        self._plain = {plain_label(label): i for i, label in reversed(list(enumerate(labels)))}

    def __missing__(self, target: str) -> int | None:
        return self._plain.get(plain_label(target))


class Labelled(Pooled):
    """Predict labels of a fixed set, ``labels``."""

    def __init__(self, options: Any, language_model: LanguageSpec, encoders: Mapping[str, FeatureSpec]) -> None:
        super().__init__(options, language_model, encoders)
        self.labels = list(options.labels or PLACEHOLDERS)
        self.shape = f"{len(self.labels)} labels" + ("" if options.labels else " (not learned yet)")
        self._index = LabelIndex(self.labels)

    @classmethod
    def width(cls, options: Any) -> int:
        return len(options.labels or PLACEHOLDERS)

    def references(self, example: Example) -> list[str]:
        """Return the targets of an example; those that are labels in the form of the label."""
        numbers = [self._index[target] for target in example.targets]
        return [target if i is None else self.labels[i] for i, target in zip(numbers, example.targets, strict=True)]

    def outside_labels(self, example: Example) -> list[str]:
        return [target for target in example.targets if self._index[target] is None]


def plain_label(text: str) -> str:
    """Return the form by which labels are compared: a whole number without a point, and true and false in small letters."""
    if whole := _WHOLE.fullmatch(text):
        return whole[1]
    return lower if (lower := text.lower()) in ("true", "false") else text


def label_forms(targets: Iterable[str]) -> dict[str, str]:
    """Return the label of each target: the target itself, unless another target is the same label in another form, or all are
    whole numbers, which pandas writes as 1.0 where one is missing."""
    plain = {target: plain_label(target) for target in targets}
    whole = all(map(_WHOLE.fullmatch, plain))
    forms = Counter(plain.values())
    return {target: form if whole or forms[form] > 1 else target for target, form in plain.items()}


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
