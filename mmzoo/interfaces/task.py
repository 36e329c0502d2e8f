"""Define `Task`, which turns examples into batches, and outputs into losses and predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmzoo.interfaces.example import Example
from mmzoo.interfaces.features import FeatureSpec
from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, LanguageSpec
from mmzoo.interfaces.outputs import Outputs
from mmzoo.interfaces.part import Part
from mmzoo.interfaces.text import TextContext

IGNORE = -100


@dataclass
class Prediction:
    """Hold the prediction for one example, which metrics read.

    Args:
        label: a class, or the generated text.
        score: confidence in [0, 1], or the similarity of a pair; None for a generated text, unless it was asked for.
        value: the result of a regression of one number.
        scores: score by label, for tasks with labels.
        labels: the classes of a task that may choose several or none; None for other tasks.
        values: the results of a regression of several numbers.
        vectors: unit vectors by encoder, and ``"text"``, for tasks that compare inputs.
    """

    label: str | None = None
    score: float | None = None
    value: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    values: tuple[float, ...] = ()
    vectors: dict[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def text(self) -> str:
        """Return the label, or the labels or values joined by commas, with enough digits for `float` to restore them."""
        if self.label is not None:
            return self.label
        numbers = self.values or (() if self.value is None else (self.value,))
        return ", ".join(self.labels if self.labels is not None else [repr(float(number)) for number in numbers])


class Task(Part, ABC):
    """Define collation, head, loss, prediction and metrics. The trainer and the evaluator do not depend on any of them.

    Class attributes:
        architectures: the architectures of language model that it works with.
        needs_generation: whether the language model must generate.
        needs_input: whether it compares inputs with texts, so that it cannot do without an encoder that has an input.
        gathers: whether its loss exchanges tensors between processes, so that in a step all of them must compute it, or none.
        modality: of the inputs that it compares, by which an evaluation groups examples; None for the model's first.
        metrics: names of the metrics that an evaluation reports, in order.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_generation: ClassVar[bool] = False
    needs_input: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    modality: str | None = None
    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, language_model: LanguageSpec, encoders: Mapping[str, FeatureSpec]) -> None:
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
            DataError: the example has none, or one that the task has no use for.
        """
        raise NotImplementedError

    def outside_labels(self, example: Example) -> list[str]:
        """Return the targets because of which no prediction can be right: answers outside a label set; empty if there are none.

        An evaluation counts such an example as wrong, and training leaves these targets out of the loss; both say how many.
        """
        return []

    @abstractmethod
    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Return the tensors of a batch without its inputs, such as ``ids`` and ``mask`` [batch, text].

        With ``training`` also ``labels``; one that is -100, or NaN for numbers, is none. The ``targets`` of the examples are a
        tuple: the task's own.
        """

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the terms of the loss by name: the sum over the labels of the batch, and their number, both as scalars.

        The model divides each sum by the number, and adds the terms.
        """

    @abstractmethod
    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], **options: Any) -> list[Prediction]:
        """Return one prediction per example, in order.

        A task with ``needs_generation`` is given ``scores=True`` if its caller asks for the probability of each text.
        """
