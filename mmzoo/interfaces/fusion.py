"""Define `Fusion`: how features meet language, before, inside or after the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass
from mmzoo.interfaces.features import Features, FeatureSpec
from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, CrossAttentionStates, LanguageModel, LanguageSpec
from mmzoo.interfaces.part import Part


@dataclass
class FusedInput:
    """What goes into a language model: ``embeddings`` [batch, positions, dim], ``mask`` [batch, positions], and ``text``, the
    positions that the text's tokens hold: a slice, or [batch, text] where rows differ. ``memory`` is for a decoder alone."""

    embeddings: Tensor
    mask: Tensor
    text: slice | Tensor
    memory: CrossAttentionStates | None = None


class Fusion(Part):
    """How features meet language: early (before the language model), deep (inside it), late (after it).

    A fusion overrides one or more of the three; the model calls them in that order and knows nothing more.

    Class attributes:
        architectures: the architectures of language model that it serves.
        needs_tokens: whether it reads the encoder's token features; if not, it may be given none, [batch, 0, dim].
        needs_blocks: whether it attaches to the language model's blocks.
        needs_decoder: whether only what the language model writes can see the image.
    """

    architectures: ClassVar[frozenset[str]] = frozenset({CAUSAL, BIDIRECTIONAL, SEQ2SEQ})
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

    def set_features(self, features: Features | None) -> None:
        """Keep what deep and late hooks will see. The model calls it once a forward, before `early`, so what all hooks share is
        computed here; and with None when it is done."""
        self.features = features

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        """Text ``embeddings`` [batch, text, dim] and ``mask`` [batch, text] to the language model's input.
        `mmzoo.models.sequence.insert_features` puts the tokens of each image where it stands."""
        return FusedInput(embeddings, mask, slice(0, embeddings.shape[1]))

    def deep(self, language_model: LanguageModel) -> None:
        """Attach to the blocks of ``language_model``, once, when the model is built. At run time the hooks call
        `features_for`; None means that there is nothing to attend to, and they change nothing. What is trained belongs to the fusion, so
        that the language model's weights keep their names::

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

    def features_for(self, rows: int) -> Features | None:
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

    def attention_mask(self, rows: int, positions: int, *, decoder: bool = False) -> Tensor | None:
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
