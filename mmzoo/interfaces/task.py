"""Define `Task`: how examples become batches, losses and predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from mmzoo.interfaces.example import Example, placeholder
from mmzoo.interfaces.features import Features
from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, LanguageSpec
from mmzoo.interfaces.part import Part
from mmzoo.interfaces.task_model import TaskModel

IGNORE = -100


@dataclass
class Prediction:
    """What a task says of one example: ``label`` (a class, or the text), ``score`` in [0, 1], ``value`` for
    regression, and ``scores`` by label where there are labels. Metrics are given its `text`."""

    label: str | None = None
    score: float | None = None
    value: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The label, else the value in digits that give it back (`float`), else nothing."""
        return self.label if self.label is not None else "" if self.value is None else repr(float(self.value))


class Task(Part, ABC):
    """Collation, head, loss, prediction and metrics. The trainer and the evaluator know none of them.

    Class attributes:
        architectures: the architectures of language model that it can use.
        needs_generation: whether the language model must generate.
        metrics: names of the metrics that evaluation reports, in order.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_generation: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, language_model: LanguageSpec) -> None:
        super().__init__()
        self.options = options

    @property
    def positions(self) -> int:
        """Positions of the language model's context that it needs at least, beside what the fusion adds."""
        return 1

    @classmethod
    def learn(cls, options: Any, examples: Iterable[Example]) -> dict[str, Any]:
        """Options that the training examples decide, such as the label set."""
        return {}

    @classmethod
    def texts(cls, options: Any, example: Example) -> Iterable[str]:
        """Every text of the example that the language model will read or write."""
        return [text for text in (example.text, *example.targets) if text]

    def references(self, example: Example) -> list[str]:
        """The answers that count as right.

        Raises:
            DataError: the example has none, or one that the task cannot give.
        """
        raise NotImplementedError

    @abstractmethod
    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Everything of a batch but the images. With ``training`` it holds ``labels`` (-100 where none is)."""

    @abstractmethod
    def loss(self, model: TaskModel, features: Features, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of the losses over the labels of the batch, and the number of labels, both scalars."""

    @abstractmethod
    def predict(self, model: TaskModel, features: Features, batch: dict[str, Tensor], **options: Any) -> list[Prediction]:
        """One prediction an example, in order."""


@dataclass(frozen=True)
class TextContext:
    """What a task must know of the language model to lay out text: its tokenizer, architecture, context, how many
    positions the fusion adds for each input (None if that depends on the input), and the inputs' modality."""

    tokenizer: Any
    architecture: str
    max_length: int | None
    added_tokens: int | None
    modality: str = "image"

    @property
    def placeholder(self) -> str:
        return placeholder(self.modality)
