"""What the parts of a model promise each other. Core code knows these and never a named model.

Shapes: ``batch`` examples, ``tokens`` visual (or audio) positions, ``text`` text positions, ``dim`` channels.
Every part is built twice: first on the meta device, from its options alone, for the fit check; then for real.
So ``__init__`` may read configurations but never weights; weights come in `Part.load_pretrained`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmzoo.inputs import NONE, ImageReader, Reader

if TYPE_CHECKING:
    from mmzoo.model import MultimodalModel

CAUSAL, BIDIRECTIONAL, SEQ2SEQ = "causal", "bidirectional", "seq2seq"
IGNORE = -100
FIELDS = ("image", "audio")  # modalities that are fields of `Example` and parameters of `predict` and `generate`
PLACEHOLDER = "<image>"  # where in a text an image stands
IMAGE = -200  # the id of a placeholder of any modality; no token has it (as in LLaVA's original code)


def placeholder(modality: str) -> str:
    """What marks in a text where an input of the modality stands: ``<image>``, ``<audio>``."""
    return PLACEHOLDER if modality == NONE else f"<{modality}>"


class Options(BaseModel):
    """Base of every part's options: unknown keys are errors, and the schema is the documentation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Example:
    """One example: its input, ``image`` or ``audio`` (anything that the encoder's `mmzoo.inputs.Reader` opens, such as
    `mmzoo.inputs.open_image`, or a list of such), ``text`` (a question or prompt) and ``targets``, the answers, captions or
    labels that count as right; training uses the first. ``id`` names it in messages. An example may hold inputs of several
    modalities: a model sees those of its encoder's. ``others`` has the inputs of a modality that a plugin brings, by its name:
    ``Example("1", others={"series": array}, targets=("rising",))``.

    ``<image>`` or ``<audio>`` in the text says where each input stands; a single one needs none."""

    id: str
    image: Any = None
    text: str = ""
    targets: tuple[str, ...] = ()
    audio: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, modality: str) -> list[Any]:
        """Its inputs of a modality, one or more; [None] if it has none. Of the modality ``"none"``, the first that it has."""
        own = self._own(modality)
        given = getattr(self, own) if own in FIELDS else self.others.get(own)
        return list(given) if isinstance(given, list | tuple) else [given]

    def with_inputs(self, modality: str, inputs: Sequence[Any]) -> Example:
        """The same with other inputs."""
        own, changed = self._own(modality), inputs[0] if len(inputs) == 1 else list(inputs)
        if own in FIELDS:
            known: dict[str, Any] = {own: changed}
            return replace(self, **known)
        return replace(self, others={**self.others, own: changed})

    def _own(self, modality: str) -> str:
        return modality if modality != NONE else next(iter(self.modalities), "image")

    @property
    def modalities(self) -> list[str]:
        """Those that it has inputs of."""
        own = [modality for modality in FIELDS if getattr(self, modality) is not None]
        return own + [modality for modality, given in self.others.items() if given is not None]

    @property
    def images(self) -> list[Any]:
        """Its images, one or more."""
        return self.inputs("image")


@dataclass(frozen=True)
class FeatureSpec:
    """What an encoder gives, known from its configuration.

    ``tokens`` is the number of tokens without any class token; 0 if there are only pooled features,
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
    [batch, tokens] (1 where a token is real), None if all are.

    Where an example has several images, ``tokens`` holds theirs one after another, ``pooled`` is the mean over them, and
    the model adds ``each`` [batch, images, pooled_dim], ``present`` [batch, images] (true where there is one) and, if the texts
    have placeholders, ``at`` [batch, images]: the text position that each stands at, -1 for before the text.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    each: Tensor | None = None
    present: Tensor | None = None
    at: Tensor | None = None

    @property
    def images(self) -> int:
        """Images an example has at most."""
        return 1 if self.each is None else self.each.shape[1]

    def token_mask(self) -> Tensor:
        """[batch, tokens] of ones where none was given."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.long, device=self.tokens.device)

    def by_image(self) -> Features:
        """One row an image: ``tokens`` [batch * images, tokens an image, dim], ``pooled`` [batch * images, pooled_dim]."""
        if self.each is None:
            return Features(self.tokens, self.pooled, self.mask)
        rows, count = self.tokens.shape[0] * self.images, self.tokens.shape[1] // self.images
        return Features(
            self.tokens.reshape(rows, count, self.tokens.shape[2]),
            self.each.flatten(0, 1),
            self.token_mask().reshape(rows, count),
        )

    def take(self, index: Tensor) -> Features:
        """The rows ``index`` [batch], as examples that share an image share its features, or [batch, images] with -1 where
        an example has fewer."""
        if index.ndim == 1:
            return Features(self.tokens[index], self.pooled[index], None if self.mask is None else self.mask[index])
        present = index >= 0
        index = index.clamp(min=0)
        each = self.pooled[index] * present[..., None]
        mask = self.token_mask()[index] * present[..., None]
        pooled = each.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
        return Features(self.tokens[index].flatten(1, 2), pooled, mask.flatten(1), each, present)

    def repeat(self, times: int) -> Features:
        """Each row ``times`` times in place, as beam search orders its rows."""
        if times == 1:
            return self
        rows = (self.tokens, self.pooled, self.mask, self.each, self.present, self.at)
        return Features(*(None if value is None else value.repeat_interleave(times, 0) for value in rows))  # type: ignore[arg-type]


class Part(nn.Module):
    """The base of encoders, fusions, language models and tasks.

    Class attributes:
        Options: the pydantic schema of its options (a subclass of `mmzoo.interfaces.Options`).
        default_train: the training policy when a recipe names none.
        pretrainable: whether `load_pretrained` has weights to fetch.

    Attributes:
        model_trains: whether the model that it is a part of is in training mode; ``training`` says that of the part, which is
            not if it is frozen.
    """

    Options: ClassVar[type[BaseModel]] = Options
    default_train: ClassVar[str] = "full"
    pretrainable: ClassVar[bool] = False
    model_trains: bool = False

    def load_pretrained(self) -> None:
        """Replace every parameter by its pretrained value, fetching it if need be. Called on a part built on the
        meta device; afterwards nothing of it may be there.

        Raises:
            SourceError: the weights cannot be fetched or read.
        """
        raise NotImplementedError

    def restore(self, folder: Path) -> None:
        """Read what a checkpoint folder holds of it beside weights and options, such as a tokenizer that has no other source.
        Called when the folder is loaded, before the weights."""

    def blocks(self) -> Sequence[nn.Module]:
        """Its repeated blocks, from input to output, for ``last:N`` and ``lora:r``; empty if it has none. Keep them under
        another name: a module that is assigned to ``self.blocks`` is not found."""
        return ()

    def lock(self) -> dict[str, Any]:
        """Where its pretrained weights came from: ``{"source": "hub" | "folder" | "package", "id": str,
        "commit": str | None, "files": {name: sha256}}``; empty if they came from nowhere."""
        return {}


class Encoder(Part, ABC):
    """An input of a modality, such as an image or a clip, to `Features`.

    An instance has ``spec`` (a `FeatureSpec`) and ``transform``: a picklable callable from what the ``reader`` gives (of images a
    PIL image in RGB) to the float tensor that `forward` takes batched (of images [channels, height, width]); None if it looks
    at nothing, so that no input is opened or needed and ``inputs`` is [1, 0].

    Class attributes:
        modality: what it takes: ``"image"``, ``"audio"``, ``"none"`` if it looks at nothing, or any other name in small letters,
            which is then a keyword of ``predict`` and ``generate`` and a key of `Example.others`.
        reader: how an input of that modality is opened, a `mmzoo.inputs.Reader`; that of images if it says nothing.
        varies: whether the tensors that ``transform`` gives differ in the length of their first axis, as those of clips do. They
            are then batched with zeros at the end of the shorter ones, and `forward` is given their ``lengths``.
    """

    modality: ClassVar[str] = "image"
    reader: ClassVar[Reader] = ImageReader()
    varies: ClassVar[bool] = False
    spec: FeatureSpec
    transform: Callable[[Any], Tensor] | None

    @abstractmethod
    def forward(self, inputs: Tensor) -> Features:
        """``inputs`` [batch, ...], of images [batch, channels, height, width], to features. An encoder that ``varies`` takes
        ``lengths`` [batch] as second argument; the zeros beyond them must change nothing but the number of masked tokens."""


@dataclass
class Memory:
    """States that a seq2seq model's decoder reads beside its encoder's: ``states`` [batch, memory, dim] and ``mask``
    [batch, memory]."""

    states: Tensor
    mask: Tensor


class LanguageModel(Part, ABC):
    """Text to hidden states, and where it can, hidden states to text.

    An instance has ``spec`` (a `LanguageSpec`) and ``tokenizer`` (a `transformers` fast tokenizer with a padding token).

    Attributes:
        keeps_rows: set by the model where a deep fusion is attached, which goes by rows: its blocks are then given one row an
            example. Else a batch may be laid out in any way, such as all texts in one row.
    """

    kind: ClassVar[str] = CAUSAL
    generates: ClassVar[bool] = False
    spec: LanguageSpec
    keeps_rows: bool = False

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """A `transformers` tokenizer; it may be loaded on first use."""

    @property
    def end_ids(self) -> list[int]:
        """The token ids that end a text when it writes."""
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]

    @classmethod
    def learn(cls, options: Any, texts: Iterable[str]) -> dict[str, Any]:
        """Options that the training texts decide, such as a vocabulary; empty for a model that brings its own."""
        return {}

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [batch, text] to input embeddings [batch, text, dim], without positions."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: Memory | None = None
    ) -> Tensor:
        """Hidden states [batch, positions, dim] of ``embeddings`` [batch, positions, dim] under ``mask``
        [batch, positions], whose padding stands on the right only. A seq2seq model that is given ``decoder_ids`` [batch, out]
        returns its decoder's states [batch, out, dim] instead of its encoder's; the decoder reads ``memory`` before the
        encoder's states. The other kinds are given neither."""

    def decoder_blocks(self) -> Sequence[nn.Module]:
        """Those of its blocks that belong to a seq2seq model's decoder."""
        return ()

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

    def generate(self, embeddings: Tensor, mask: Tensor, memory: Memory | None = None, **options: Any) -> Tensor:
        """New token ids [batch * returned, out] after ``embeddings`` [batch, positions, dim], whose padding stands on the
        left only for causal models and on the right only for seq2seq ones; ``options`` are those of
        `transformers.GenerationMixin.generate`.

        That library's own loop needs a model that takes ``inputs_embeds``, and serves all options. A loop of one's own has to
        honour ``max_new_tokens``, ``num_return_sequences`` and ``stopping_criteria``, refuses with a `ValueError` what it does
        not serve, such as beams, and may pass each new token to ``streamer``. It calls `logits` on the newest states at each
        step, since that is where a late fusion joins them (before the module that `output_layer` gives), and pads a row that has
        ended with the tokenizer's padding token."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")


@dataclass
class Sequenced:
    """What goes into a language model: ``embeddings`` [batch, positions, dim], ``mask`` [batch, positions], and ``text``, the
    positions that the text's tokens hold: a slice, or [batch, text] where rows differ. ``memory`` is for a decoder alone."""

    embeddings: Tensor
    mask: Tensor
    text: slice | Tensor
    memory: Memory | None = None


class Fusion(Part):
    """How features meet language: early (before the language model), deep (inside it), late (after it).

    A fusion overrides one or more of the three; the model calls them in that order and knows nothing more.

    Class attributes:
        kinds: the kinds of language model that it serves.
        needs_tokens: whether it reads the encoder's token features; if not, it may be given none, [batch, 0, dim].
        needs_blocks: whether it attaches to the language model's blocks.
        needs_decoder: whether only what the language model writes can see the image.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_tokens: ClassVar[bool] = False
    needs_blocks: ClassVar[bool] = False
    needs_decoder: ClassVar[bool] = False

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__()
        self.options = options
        # What deep and late hooks see. The model sets them at each forward and leaves them until the next, since
        # gradient checkpointing may run the hooks again during the backward pass.
        self.features: Features | None = None
        self.mask: Tensor | None = None  # [batch, positions] of the language model's input
        self.latest: Tensor | None = None  # [batch, positions]: the latest image before each, -1 for none; None: the first

    @property
    def added_tokens(self) -> int | None:
        """How many positions `early` adds to a text for each image; None if it depends on the input."""
        return 0

    @property
    def tiles(self) -> int:
        """Each image is also cut into ``tiles`` x ``tiles`` pieces, which the encoder reads beside the whole: an image then has
        (1 + tiles ** 2) times the encoder's tokens, the whole picture's first. 1: the whole picture alone."""
        return 1

    def see(self, features: Features | None) -> None:
        """Keep what deep and late hooks will see. The model calls it once a forward, before `early`, so what all hooks share is
        computed here; and with None when it is done."""
        self.features = features

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> Sequenced:
        """Text ``embeddings`` [batch, text, dim] and ``mask`` [batch, text] to the language model's input.
        `mmzoo.sequence.insert` puts the tokens of each image where it stands."""
        return Sequenced(embeddings, mask, slice(0, embeddings.shape[1]))

    def deep(self, language_model: LanguageModel) -> None:
        """Attach to the blocks of ``language_model``, once, when the model is built. At run time the hooks call
        `seen`; None means that there is nothing to attend to, and they change nothing. What is trained belongs to the fusion, so
        that the language model's weights keep their names::

            def deep(self, language_model):
                for layer, block in zip(self.layers, language_model.blocks(), strict=True):
                    block.register_forward_pre_hook(partial(self._attend, layer), with_kwargs=True)

            def _attend(self, layer, block, args, kwargs):
                states = args[0] if args else kwargs["hidden_states"]  # [rows, positions, dim]
                features = self.seen(states.shape[0])
                if features is None:
                    return None
                states = states + layer(states, features.tokens, self.visible(*states.shape[:2]))
                return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        With the cache a hook meets new positions alone, [rows, 1, dim]; under gradient checkpointing it may run twice.
        """

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        """Hidden states [batch, positions, dim] to fused ones of the same shape, position by position: a state's result
        depends on itself and on its row of ``features``, and on no other position.

        So one method serves all who call it: a task of one vector a text (``positions`` is 1), one that learns to write (every
        position, padding too, whose result nobody reads), and writing, where just before the vocabulary comes the newest position
        alone. ``features`` have a row for each of ``hidden``, repeated for beam search. Tokens where ``features.mask`` is 0 are
        none and must change nothing.
        """
        return hidden

    @property
    def is_late(self) -> bool:
        return "late" in self.places()

    @classmethod
    def places(cls) -> list[str]:
        """Which of early, deep and late it is; none if it leaves the features out."""
        return [name for name in ("early", "deep", "late") if getattr(cls, name) is not getattr(Fusion, name)]

    def seen(self, rows: int) -> Features | None:
        """The features in use, repeated to ``rows`` rows as beam search and sampling repeat their inputs.

        Raises:
            ValueError: ``rows`` is no multiple of the examples.
        """
        if self.features is None:
            return None
        times, left = divmod(rows, len(self.features.pooled))
        if left or not times:
            raise ValueError(f"states of {rows} rows do not go with the features of {len(self.features.pooled)} examples")
        return self.features.repeat(times)

    def visible(self, rows: int, positions: int, *, decoder: bool = False) -> Tensor | None:
        """Which visual tokens each position may attend to, [rows, positions, tokens], true or false: those of the latest image
        before it that are real by ``features.mask``; None if all. A position before every image sees none. Positions beyond the
        prompt's, as generation adds them, see what its last one does; so do all of a seq2seq model's ``decoder``."""
        if self.features is None:
            return None
        times = rows // self.features.pooled.shape[0]
        tokens = None if self.features.mask is None else self.features.mask.bool().repeat_interleave(times, 0)[:, None, :]
        if self.latest is None:
            return None if tokens is None else tokens.expand(-1, positions, -1)
        latest = self.latest.repeat_interleave(times, 0)
        if decoder or positions < latest.shape[1]:  # or one step with the cache
            latest = latest[:, -1:].expand(-1, positions)
        else:
            latest = torch.cat([latest, latest[:, -1:].expand(-1, positions - latest.shape[1])], 1)
        count = self.features.tokens.shape[1]
        owner = torch.arange(count, device=latest.device) // (count // self.features.images)
        seen = latest[..., None] == owner
        return seen if tokens is None else seen & tokens


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
    """What a task must know of the language model to lay out text: its tokenizer, kind, context, how many
    positions the fusion adds for each input (None if that depends on the input), and the inputs' modality."""

    tokenizer: Any
    kind: str
    max_length: int | None
    added_tokens: int | None
    modality: str = "image"

    @property
    def placeholder(self) -> str:
        return placeholder(self.modality)
