"""Define `LanguageModel`: text to hidden states and, where it generates, hidden states to text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    pass
from mmzoo.interfaces.part import Part

CAUSAL, BIDIRECTIONAL, SEQ2SEQ = "causal", "bidirectional", "seq2seq"


@dataclass(frozen=True)
class LanguageSpec:
    """What a language model is, known from its configuration. ``max_length`` is its context, None if unlimited."""

    architecture: str
    dim: int
    vocab_size: int
    max_length: int | None
    generates: bool
    blocks: int


@dataclass
class CrossAttentionStates:
    """States that a seq2seq model's decoder reads beside its encoder's: ``states`` [batch, memory, dim] and ``mask``
    [batch, memory]."""

    states: Tensor
    mask: Tensor


class LanguageModel(Part, ABC):
    """Text to hidden states, and where it can, hidden states to text.

    An instance has ``spec`` (a `LanguageSpec`) and ``tokenizer`` (a `transformers` fast tokenizer with a padding token).

    Attributes:
        forbid_packing: set by the model where a deep fusion is attached, which goes by rows: its blocks are then given one row an
            example. Else a batch may be laid out in any way, such as all texts in one row.
    """

    architecture: ClassVar[str] = CAUSAL
    generates: ClassVar[bool] = False
    spec: LanguageSpec
    forbid_packing: bool = False

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
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
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

    def generate(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None = None, **options: Any) -> Tensor:
        """New token ids [batch * returned, out] after ``embeddings`` [batch, positions, dim], whose padding stands on the
        left only for causal models and on the right only for seq2seq ones; ``options`` are those of
        `transformers.GenerationMixin.generate`.

        That library's own loop needs a model that takes ``inputs_embeds``, and serves all options. A loop of one's own has to
        honour ``max_new_tokens``, ``num_return_sequences`` and ``stopping_criteria``, refuses with a `ValueError` what it does
        not serve, such as beams, and may pass each new token to ``streamer``. It calls `logits` on the newest states at each
        step, since that is where a late fusion joins them (before the module that `output_layer` gives), and pads a row that has
        ended with the tokenizer's padding token."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")
