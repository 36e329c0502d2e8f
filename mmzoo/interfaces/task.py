"""Define `Task`, which turns examples into batches, and outputs into losses and predictions, and what it may use of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from mmzoo.interfaces.example import Example, placeholder
from mmzoo.interfaces.features import Features
from mmzoo.interfaces.fusion import Fusion
from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, LanguageModel, LanguageSpec
from mmzoo.interfaces.part import Part

IGNORE = -100


@dataclass
class Prediction:
    """Hold the prediction for one example. Metrics read its `text`.

    Args:
        label: a class, or the generated text.
        score: confidence in [0, 1].
        value: the result of a regression.
        scores: score by label, for tasks with labels.
    """

    label: str | None = None
    score: float | None = None
    value: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the label; without one, the value with enough digits for `float` to restore it; else an empty text."""
        return self.label if self.label is not None else "" if self.value is None else repr(float(self.value))


@dataclass(frozen=True)
class TextContext:
    """Describe the language model for the layout of text.

    Args:
        tokenizer: a `transformers` tokenizer.
        architecture: `CAUSAL`, `BIDIRECTIONAL` or `SEQ2SEQ`.
        max_length: the context in positions; None if unlimited.
        added_tokens: positions that the fusion adds for each input; None if that depends on the input.
        modality: the modality of the inputs.
    """

    tokenizer: Any
    architecture: str
    max_length: int | None
    added_tokens: int | None
    modality: str = "image"

    @property
    def placeholder(self) -> str:
        """Return the text that marks the place of an input."""
        return placeholder(self.modality)


@dataclass
class States:
    """Hold the hidden states of a fused text.

    Args:
        hidden: [batch, positions, dim].
        mask: [batch, text], 1 where a token of the text is real.
        text: the positions of the text's tokens, as in `FusedInput`.
    """

    hidden: Tensor
    mask: Tensor
    text: slice | Tensor


class TaskModel(Protocol):
    """Define what tasks may use of `MultimodalModel`: two parts, and the steps from features and text to states and text."""

    fusion: Fusion
    language_model: LanguageModel

    def text_context(self) -> TextContext:
        """Return what tasks need to lay out text."""

    def states(self, features: Features, ids: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> States:
        """Return the hidden states of text ``ids`` [batch, text] under ``mask``, through early and deep fusion."""

    def pooled(self, features: Features, ids: Tensor, mask: Tensor) -> Tensor:
        """Return one fused vector for each example, [batch, dim]."""

    def generate_ids(self, features: Features, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Return new token ids [batch * returned, out] after prompts ``ids`` [batch, text]."""


class Task(Part, ABC):
    """Define collation, head, loss, prediction and metrics. The trainer and the evaluator do not depend on any of them.

    Class attributes:
        architectures: the architectures of language model that it works with.
        needs_generation: whether the language model must generate.
        metrics: names of the metrics that an evaluation reports, in order.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_generation: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, language_model: LanguageSpec) -> None:
        super().__init__()
        self.options = options

    @property
    def positions(self) -> int:
        """Return the least positions that the language model's context must have, without those that the fusion adds."""
        return 1

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        """Return the options that depend on the training examples, such as the label set."""
        return {}

    @classmethod
    def texts(cls, options: Any, example: Example) -> Iterable[str]:
        """Return every text of the example that the language model will read or write."""
        return [text for text in (example.text, *example.targets) if text]

    def references(self, example: Example) -> list[str]:
        """Return the answers that count as right.

        Raises:
            DataError: the example has none, or one that the task cannot predict.
        """
        raise NotImplementedError

    @abstractmethod
    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Return the tensors of a batch without its inputs; with ``training``, also ``labels`` (-100 where there is none)."""

    @abstractmethod
    def loss(self, model: TaskModel, features: Features, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses over the labels of the batch, and the number of labels, both as scalar tensors."""

    @abstractmethod
    def predict(self, model: TaskModel, features: Features, batch: dict[str, Tensor], **options: Any) -> list[Prediction]:
        """Return one prediction per example, in order."""
