"""Define `Fusion`, which combines features with language before, inside or after the language model."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmzoo.interfaces.features import Features, FeatureSpec
from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, CrossAttentionStates, LanguageModel, LanguageSpec
from mmzoo.interfaces.part import Part


@dataclass
class FusedInput:
    """Hold the input of a language model.

    Args:
        embeddings: [batch, positions, dim].
        mask: [batch, positions], 1 where a position is real.
        text: the positions of the text's tokens: a slice, or [batch, text] if they differ between rows.
        memory: states for the decoder of a seq2seq model.
    """

    embeddings: Tensor
    mask: Tensor
    text: slice | Tensor
    memory: CrossAttentionStates | None = None


@dataclass
class FusionCall:
    """Hold what the deep and late hooks of one fusion read during one pass of the language model.

    It belongs to the call, not to the module, so callers that use one model at the same time do not see each other's features.

    Args:
        features: as `Fusion.prepare` returned them; a mapping by encoder for a joint fusion.
        given: as `early` and `late` get them.
        mask: [batch, positions] of the language model's input.
        latest: [batch, positions], the index of the latest input before each position, -1 for none; None if it is always the
            first.
        kept: whatever else the fusion's hooks pass on to one another.
    """

    features: Any
    given: Any = None
    mask: Tensor | None = None
    latest: Tensor | None = None
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelPass:
    """Hold the calls of all fusions in one pass, and whether the pass generates text."""

    calls: Mapping[Any, FusionCall] = field(default_factory=dict)
    generates: bool = False


_PASS: ContextVar[ModelPass] = ContextVar("mmzoo_pass", default=ModelPass())  # noqa: B039 - it is never changed


def current_pass() -> ModelPass:
    """Return the pass that runs in this thread; an empty one outside of any."""
    return _PASS.get()


def repeat_rows(features: Any, rows: int) -> Any:
    """Return features, or a mapping of them by encoder, with each row repeated so that there are ``rows``.

    Raises:
        ValueError: ``rows`` is not a multiple of the number of examples.
    """
    if isinstance(features, Mapping):
        return {name: repeat_rows(own, rows) for name, own in features.items()}
    times, rest = divmod(rows, len(features.pooled))
    if rest or not times:
        raise ValueError(f"{rows} rows do not match the features of {len(features.pooled)} examples")
    return features.repeat(times)


class running:
    """Make a pass the current one within a ``with`` block, which may be entered several times."""

    def __init__(self, model_pass: ModelPass) -> None:
        self.model_pass = model_pass
        self.tokens: list[Token[ModelPass]] = []

    def __enter__(self) -> None:
        self.tokens.append(_PASS.set(self.model_pass))

    def __exit__(self, *_: object) -> None:
        _PASS.reset(self.tokens.pop())


class Fusion(Part):
    """Combine features with language: early (before the language model), deep (inside it) or late (after it).

    A subclass overrides one or more of the three methods, which the model calls in this order. It keeps nothing of a call on
    itself, since a model may serve several callers at once: `call` has what the hooks need.

    A fusion knows one encoder, and a model builds it once for each. One that is ``joint`` is built once for all: the constructor,
    `early`, `prepare` and `late` then get mappings by encoder in place of a `FeatureSpec` and `Features`.

    Class attributes:
        joint: whether it reads the features of all encoders together.
        architectures: the architectures of language model that it works with.
        needs_tokens: whether it reads the encoder's token features. If not, they may have the shape [batch, 0, dim].
        needs_blocks: whether it attaches to the language model's blocks.
        needs_decoder: whether only the decoder of a language model gets the features.
        changes_text: whether `early` changes the text's own embeddings. A causal model could not do that for tokens that it
            writes, so tasks that generate are refused with it.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_tokens: ClassVar[bool] = False
    needs_blocks: ClassVar[bool] = False
    needs_decoder: ClassVar[bool] = False
    changes_text: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    def __init__(self, options: Any, encoder: Any, language_model: LanguageSpec) -> None:
        """Keep the options.

        Args:
            encoder: the `FeatureSpec` of the encoder; for a joint fusion a mapping of them by encoder.
            language_model: of the language model.
        """
        super().__init__()
        self.options = options

    def learn_missing(self, encoders: Mapping[str, FeatureSpec]) -> None:
        """Add a learned vector for each encoder, which stands for the pooled features of a missing input.

        A model with several encoders calls it once.
        """
        self.missing = nn.ParameterDict({name: 0.02 * torch.randn(spec.pooled_dim) for name, spec in encoders.items()})

    @property
    def call(self) -> FusionCall | None:
        """Return what the hooks read in the current pass; None outside of one."""
        return current_pass().calls.get(self)

    @property
    def added_tokens(self) -> int | None:
        """Return how many positions `early` adds to a text for each input; None if it depends on the input. For a joint fusion
        they are those of one input of each encoder."""
        return 0

    @property
    def tiles(self) -> int:
        """Return n if the encoder also reads n x n tiles of each image; 1 for the whole image alone.

        An image then has (1 + n ** 2) times the encoder's tokens, those of the whole image first.
        """
        return 1

    def prepare(self, features: Any) -> Any:
        """Return the features that the deep hooks read; the default returns them unchanged.

        The model calls it once a pass, before `early`, which gets the encoder's own features.
        """
        return features

    def early(self, features: Any, embeddings: Tensor, mask: Tensor) -> FusedInput:
        """Return the input of the language model.

        `mmzoo.models.sequence.insert_features` puts the tokens of each image at its placeholder.

        Args:
            features: `Features` of the batch; for a joint fusion a mapping of them by encoder.
            embeddings: [batch, text, dim], of the text.
            mask: [batch, text], 1 where a token is real.
        """
        return FusedInput(embeddings, mask, slice(0, embeddings.shape[1]))

    def deep(self, language_model: LanguageModel) -> None:
        """Attach to the blocks of ``language_model``. The model calls it once, when it is built.

        At run time the hooks call `features_for`; if that returns None there is nothing to attend to, and they must change
        nothing. Trained weights must belong to the fusion, so that the language model's weights keep their names::

            def deep(self, language_model):
                for layer, block in zip(self.layers, language_model.blocks(), strict=True):
                    block.register_forward_pre_hook(partial(self._attend, layer), with_kwargs=True)

            def _attend(self, layer, block, args, kwargs):
                states = args[0] if args else kwargs["hidden_states"]  # [rows, positions, dim]
                features = self.features_for(states.shape[0])
                if features is None:
                    return None
                states = states + layer(states, features.tokens, self.attention_mask(*states.shape[:2]))
                return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        With a key-value cache a hook gets only the new positions, [rows, 1, dim]. With gradient
        checkpointing (`MultimodalModel.checkpoint_blocks`) it runs twice, in the same pass.
        """

    def late(self, features: Any, hidden: Tensor) -> Tensor:
        """Return fused hidden states of the same shape. Each position must depend only on itself and on its row of ``features``.

        The same method therefore serves a task with one vector per text (``positions`` is 1), training to write (all positions;
        the result of padding is not used), and generation, where it is applied to the newest position before the output layer.

        Args:
            features: one row for each row of ``hidden``, repeated for beam search. Tokens whose ``features.mask`` is 0 must
                change nothing.
            hidden: [batch, positions, dim].
        """
        return hidden

    @property
    def is_late(self) -> bool:
        """Return whether `late` is overridden."""
        return "late" in self.places()

    @classmethod
    def places(cls) -> list[str]:
        """List which of early, deep and late are overridden; empty for a fusion that ignores the features."""
        return [name for name in ("early", "deep", "late") if getattr(cls, name) is not getattr(Fusion, name)]

    def features_for(self, rows: int) -> Any:
        """Return the current features, repeated to ``rows`` as beam search and sampling repeat inputs; None outside of a pass.

        Raises:
            ValueError: ``rows`` is not a multiple of the number of examples.
        """
        if (call := self.call) is None:
            return None
        return repeat_rows(call.features, rows)

    def attention_mask(self, rows: int, positions: int, *, decoder: bool = False) -> Tensor | None:
        """Return which tokens each position may attend to, as booleans [rows, positions, tokens]; None if all.

        A position may attend to the real tokens (by ``features.mask``) of the latest input before it. A position before every
        input attends to none. Positions that generation adds, and all positions of a seq2seq ``decoder``, attend to the same
        tokens as the last position of the prompt. It is for fusions of one encoder.
        """
        if (call := self.call) is None:
            return None
        features: Features = call.features
        times = rows // features.pooled.shape[0]
        tokens = None if features.mask is None else features.mask.bool().repeat_interleave(times, 0)[:, None, :]
        if call.latest is None:
            return None if tokens is None else tokens.expand(-1, positions, -1)
        latest = call.latest.repeat_interleave(times, 0)
        if decoder or positions < latest.shape[1]:  # or one step with the cache
            latest = latest[:, -1:].expand(-1, positions)
        else:
            latest = torch.cat([latest, latest[:, -1:].expand(-1, positions - latest.shape[1])], 1)
        count = features.tokens.shape[1]
        owner = torch.arange(count, device=latest.device) // (count // features.images)
        visible = latest[..., None] == owner
        return visible if tokens is None else visible & tokens
