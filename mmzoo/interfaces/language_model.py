"""Define `LanguageModel`, which turns text into hidden states and, if it can generate, hidden states into text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmzoo.interfaces.part import Part

CAUSAL, BIDIRECTIONAL, SEQ2SEQ = "causal", "bidirectional", "seq2seq"


@dataclass(frozen=True)
class LanguageSpec:
    """Describe a language model, as known from its configuration.

    Args:
        architecture: `CAUSAL`, `BIDIRECTIONAL` or `SEQ2SEQ`.
        dim: size of embeddings and hidden states.
        vocab_size: number of logits.
        max_length: the context in positions; None if unlimited.
        generates: whether it can generate text.
        blocks: number of blocks that `Part.blocks` returns.
    """

    architecture: str
    dim: int
    vocab_size: int
    max_length: int | None
    generates: bool
    blocks: int


@dataclass
class CrossAttentionStates:
    """Hold the states that a seq2seq decoder attends to beside its encoder's.

    Args:
        states: [batch, memory, dim].
        mask: [batch, memory], 1 where a state is real.
    """

    states: Tensor
    mask: Tensor


class LanguageModel(Part, ABC):
    """Turn text into hidden states and, if it can generate, hidden states into text.

    An instance has ``spec`` (a `LanguageSpec`) and ``tokenizer`` (a `transformers` fast tokenizer with a padding token).

    Attributes:
        forbid_packing: set by the model if an attached deep fusion needs one row per example. If it is false, a batch may be laid
            out in any way, for example with all texts in one row.
    """

    architecture: ClassVar[str] = CAUSAL
    generates: ClassVar[bool] = False
    spec: LanguageSpec
    forbid_packing: bool = False

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Return a `transformers` tokenizer, which may be loaded on first use."""

    @property
    def has_local_tokenizer(self) -> bool:
        """Return whether ``tokenizer`` needs no network, so that a check of a recipe may read it."""
        return False

    @property
    def end_ids(self) -> list[int]:
        """Return the token ids that end a generated text."""
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]

    @classmethod
    def learn(cls, options: Any, texts: Iterable[str]) -> dict[str, Any]:
        """Return the options that depend on the training texts, such as a vocabulary; empty for a model that needs none."""
        return {}

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Return input embeddings [batch, text, dim] of token ids [batch, text], without position embeddings."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
    ) -> Tensor:
        """Return hidden states [batch, positions, dim].

        Args:
            embeddings: [batch, positions, dim].
            mask: [batch, positions], 1 where a position is real; padding is on the right only.
            decoder_ids: [batch, out], for seq2seq models only. The states of the decoder [batch, out, dim] are then returned in
                place of those of the encoder.
            memory: for seq2seq models only: states that the decoder reads before those of the encoder.
        """

    def decoder_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks that belong to the decoder of a seq2seq model; empty for other architectures."""
        return ()

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per text, [batch, dim]. The default is the last real position, for causal models."""
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]

    def output_layer(self) -> nn.Module | None:
        """Return the module that turns hidden states into logits; None if there is none."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] of hidden states [..., dim].

        Raises:
            NotImplementedError: the model has no output layer.
        """
        if (layer := self.output_layer()) is None:
            raise NotImplementedError(f"{type(self).__name__} has no output layer")
        return layer(hidden)

    def generate(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None = None, **options: Any) -> Tensor:
        """Return new token ids [batch * returned, out].

        The generation loop of `transformers` needs a model that takes ``inputs_embeds``, and supports all options. A custom loop
        must support ``max_new_tokens``, ``num_return_sequences`` and ``stopping_criteria``, raise a `ValueError` for an option
        that it does not support (such as beams), and may pass each new token to ``streamer``. At each step it must call `logits`
        on the newest states, because a late fusion changes them there (before the module that `output_layer` returns). A finished
        row is padded with the padding token.

        Args:
            embeddings: [batch, positions, dim].
            mask: [batch, positions]. Padding is on the left only for causal models, on the right only for seq2seq models.
            memory: as in `forward`.
            options: those of `transformers.GenerationMixin.generate`.

        Raises:
            NotImplementedError: the model does not generate.
        """
        raise NotImplementedError(f"{type(self).__name__} does not generate")
