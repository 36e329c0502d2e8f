"""Define `Fusion`, which combines features with language before, inside or after the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

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


class Fusion(Part):
    """Combine features with language: early (before the language model), deep (inside it) or late (after it).

    A subclass overrides one or more of the three methods, which the model calls in this order.

    Class attributes:
        architectures: the architectures of language model that it works with.
        needs_tokens: whether it reads the encoder's token features. If not, they may have the shape [batch, 0, dim].
        needs_blocks: whether it attaches to the language model's blocks.
        needs_decoder: whether only the decoder of a language model gets the features.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
    needs_tokens: ClassVar[bool] = False
    needs_blocks: ClassVar[bool] = False
    needs_decoder: ClassVar[bool] = False

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__()
        self.options = options
        # Read by the deep and late hooks. The model sets them in each forward pass and keeps them until the next one, because
        # gradient checkpointing may run the hooks again during the backward pass.
        self.features: Features | None = None
        self.mask: Tensor | None = None  # [batch, positions] of the language model's input
        # [batch, positions], the index of the latest image before each position, -1 for none; None if it is always the first.
        self.latest: Tensor | None = None

    @property
    def added_tokens(self) -> int | None:
        """Return how many positions `early` adds to a text for each image; None if it depends on the input."""
        return 0

    @property
    def tiles(self) -> int:
        """Return n if the encoder also reads n x n tiles of each image; 1 for the whole image alone.

        An image then has (1 + n ** 2) times the encoder's tokens, those of the whole image first.
        """
        return 1

    def set_features(self, features: Features | None) -> None:
        """Set the features that the deep and late hooks read, and compute what all hooks share.

        The model calls it once per forward pass, before `early`, and with None afterwards.
        """
        self.features = features

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        """Return the input of the language model.

        `mmzoo.models.sequence.insert_features` puts the tokens of each image at its placeholder.

        Args:
            features: of the batch.
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

        With a key-value cache a hook gets only the new positions, [rows, 1, dim]. With gradient checkpointing it may run twice.
        """

    def late(self, features: Features, hidden: Tensor) -> Tensor:
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

    def features_for(self, rows: int) -> Features | None:
        """Return the current features, repeated to ``rows`` as beam search and sampling repeat inputs; None if none are set.

        Raises:
            ValueError: ``rows`` is not a multiple of the number of examples.
        """
        if self.features is None:
            return None
        times, remainder = divmod(rows, len(self.features.pooled))
        if remainder or not times:
            raise ValueError(f"{rows} rows of states do not match the features of {len(self.features.pooled)} examples")
        return self.features.repeat(times)

    def attention_mask(self, rows: int, positions: int, *, decoder: bool = False) -> Tensor | None:
        """Return which visual tokens each position may attend to, as booleans [rows, positions, tokens]; None if all.

        A position may attend to the real tokens (by ``features.mask``) of the latest image before it. A position before every
        image attends to none. Positions that generation adds, and all positions of a seq2seq ``decoder``, attend to the same
        tokens as the last position of the prompt.
        """
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
        visible = latest[..., None] == owner
        return visible if tokens is None else visible & tokens
