"""What the parts of a model promise each other. Core code knows these and never a named model.

Shapes: ``batch`` examples, ``tokens`` visual (or audio) positions, ``text`` text positions, ``dim`` channels.
Every part is built twice: first on the meta device, from its options alone, for the fit check; then for real.
So ``__init__`` may read configurations but never weights; weights come in `Part.load_pretrained`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmzoo.model import MultimodalModel

CAUSAL, BIDIRECTIONAL, SEQ2SEQ = "causal", "bidirectional", "seq2seq"
IGNORE = -100


class Options(BaseModel):
    """Base of every part's options: unknown keys are errors, and the schema is the documentation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Example:
    """One example: ``image`` (anything that `mmzoo.data.open_image` takes), ``text`` (a question or prompt) and ``targets``, the
    answers, captions or labels that count as right; training uses the first. ``id`` names it in messages."""

    id: str
    image: Any = None
    text: str = ""
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureSpec:
    """What an encoder gives, known from its configuration.

    ``tokens`` is the number of visual tokens without any class token; 0 if there are only pooled features,
    None if it depends on the input.
    """

    dim: int
    pooled_dim: int
    tokens: int | None
    modality: str = "image"


@dataclass(frozen=True)
class LanguageSpec:
    """What a language model is, known from its configuration. ``max_length`` is its context, None if unlimited."""

    kind: str
    dim: int
    vocab_size: int
    max_length: int | None
    generates: bool
    blocks: int


@dataclass
class Features:
    """What an encoder computed: ``tokens`` [batch, tokens, dim], ``pooled`` [batch, pooled_dim], and ``mask``
    [batch, tokens] (1 where a token is real), None if all are."""

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None

    def token_mask(self) -> Tensor:
        """[batch, tokens] of ones where none was given."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.long, device=self.tokens.device)

    def take(self, index: Tensor) -> Features:
        """The rows ``index`` [rows]; examples that share an image share its features."""
        return Features(self.tokens[index], self.pooled[index], None if self.mask is None else self.mask[index])

    def repeat(self, times: int) -> Features:
        """Each row ``times`` times in place, as beam search orders its rows."""
        if times == 1:
            return self
        return Features(
            self.tokens.repeat_interleave(times, 0),
            self.pooled.repeat_interleave(times, 0),
            None if self.mask is None else self.mask.repeat_interleave(times, 0),
        )


class Part(nn.Module):
    """The base of encoders, fusions, language models and tasks.

    Class attributes:
        Options: the pydantic schema of its options (a subclass of `mmzoo.interfaces.Options`).
        default_train: the training policy when a recipe names none.
        pretrainable: whether `load_pretrained` has weights to fetch.
    """

    Options: ClassVar[type[BaseModel]] = Options
    default_train: ClassVar[str] = "full"
    pretrainable: ClassVar[bool] = False

    def load_pretrained(self) -> None:
        """Replace every parameter by its pretrained value, fetching it if need be. Called on a part built on the
        meta device; afterwards nothing of it may be there.

        Raises:
            SourceError: the weights cannot be fetched or read.
        """
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """Its repeated blocks, from input to output, for ``last:N`` and ``lora:r``; empty if it has none."""
        return ()

    def lock(self) -> dict[str, Any]:
        """Where its pretrained weights came from: ``{"source": "hub" | "folder" | "package", "id": str,
        "commit": str | None, "files": {name: sha256}}``; empty if they came from nowhere."""
        return {}


class Encoder(Part, ABC):
    """An image (or other modality) to `Features`.

    An instance has ``spec`` (a `FeatureSpec`) and ``transform``: a picklable callable from a PIL image to the float
    tensor [channels, height, width] that `forward` takes stacked.
    """

    modality: ClassVar[str] = "image"
    spec: FeatureSpec
    transform: Callable[[Any], Tensor]

    @abstractmethod
    def forward(self, inputs: Tensor) -> Features:
        """``inputs`` [batch, channels, height, width] to features."""


class LanguageModel(Part, ABC):
    """Text to hidden states, and where it can, hidden states to text.

    An instance has ``spec`` (a `LanguageSpec`) and ``tokenizer`` (a `transformers` fast tokenizer with a padding token).
    """

    kind: ClassVar[str] = CAUSAL
    generates: ClassVar[bool] = False
    spec: LanguageSpec

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """A `transformers` tokenizer; it may be loaded on first use."""

    @classmethod
    def learn(cls, options: Any, texts: Iterable[str]) -> dict[str, Any]:
        """Options that the training texts decide, such as a vocabulary; empty for a model that brings its own."""
        return {}

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [batch, text] to input embeddings [batch, text, dim], without positions."""

    @abstractmethod
    def forward(self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> Tensor:
        """Hidden states [batch, positions, dim] of ``embeddings`` [batch, positions, dim] under ``mask``
        [batch, positions]. A seq2seq model that is given ``decoder_ids`` [batch, out] returns its decoder's
        states [batch, out, dim] instead of its encoder's."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """One vector a text, [batch, dim]: the last real position here, for causal models."""
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]

    def output_layer(self) -> nn.Module | None:
        """The module that turns hidden states into logits, None if it has none."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] to [..., vocab]."""
        layer = self.output_layer()
        if layer is None:
            raise NotImplementedError(f"{type(self).__name__} gives no logits")
        return layer(hidden)

    def generate(self, embeddings: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """New token ids [batch * returned, out] after ``embeddings`` [batch, positions, dim]; ``options`` are those
        of `transformers.GenerationMixin.generate`."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")


@dataclass
class Sequenced:
    """What goes into a language model: ``embeddings`` [batch, positions, dim], ``mask`` [batch, positions] and
    ``text``, the slice of positions that the text's tokens hold."""

    embeddings: Tensor
    mask: Tensor
    text: slice


class Fusion(Part):
    """How features meet language: early (before the language model), deep (inside it), late (after it).

    A fusion overrides one or more of the three; the model calls them in that order and knows nothing more.

    Class attributes:
        kinds: the kinds of language model that it serves.
        needs_tokens: whether it reads the encoder's token features.
        needs_blocks: whether it attaches to the language model's blocks.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_tokens: ClassVar[bool] = False
    needs_blocks: ClassVar[bool] = False

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__()
        self.options = options
        # What deep and late hooks see. The model sets it at each forward and leaves it until the next, since
        # gradient checkpointing runs the blocks again during the backward pass.
        self.features: Features | None = None

    @property
    def added_tokens(self) -> int | None:
        """How many positions `early` adds to a text; None if it depends on the input."""
        return 0

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> Sequenced:
        """Text ``embeddings`` [batch, text, dim] and ``mask`` [batch, text] to the language model's input."""
        return Sequenced(embeddings, mask, slice(0, embeddings.shape[1]))

    def deep(self, language_model: LanguageModel) -> None:
        """Attach to the blocks of ``language_model``, once, when the model is built. At run time the hooks call
        `seen`; None means that there is nothing to attend to, and they change nothing."""

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        """Hidden states [batch, positions, dim] to fused ones of the same shape, position by position."""
        return hidden

    @property
    def is_late(self) -> bool:
        return type(self).late is not Fusion.late

    def seen(self, rows: int) -> Features | None:
        """The features in use, repeated to ``rows`` rows as beam search and sampling repeat their inputs."""
        if self.features is None:
            return None
        return self.features.repeat(rows // self.features.pooled.shape[0])


@dataclass
class Prediction:
    """What a task says of one example: ``label`` (a class, or the text), ``score`` in [0, 1], ``value`` for
    regression, and ``scores`` by label where there are labels."""

    label: str | None = None
    score: float | None = None
    value: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


class Task(Part, ABC):
    """Collation, head, loss, prediction and metrics. The trainer and the evaluator know none of them.

    Class attributes:
        kinds: the kinds of language model that it can use.
        needs_generation: whether the language model must generate.
        metrics: names of the metrics that evaluation reports, in order.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
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
    def loss(self, model: MultimodalModel, features: Features, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of the losses over the labels of the batch, and the number of labels, both scalars."""

    @abstractmethod
    def predict(self, model: MultimodalModel, features: Features, batch: dict[str, Tensor], **options: Any) -> list[Prediction]:
        """One prediction an example, in order."""


@dataclass(frozen=True)
class TextContext:
    """What a task must know of the language model to lay out text: its tokenizer, kind, context, and how many
    positions the fusion puts before the text."""

    tokenizer: Any
    kind: str
    max_length: int | None
    added_tokens: int
