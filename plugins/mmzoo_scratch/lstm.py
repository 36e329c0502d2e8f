"""A long short-term memory network (Hochreiter and Schmidhuber 1997) that reads text and writes it.

Behind a late fusion it is the merge captioner (Mao et al. 2015, https://arxiv.org/abs/1412.6632; Tanti et al. 2018,
https://arxiv.org/abs/1703.09137): the network reads words only, and its state meets the image just before the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mmzoo.api import (
    CAUSAL,
    CrossAttentionStates,
    LanguageModel,
    LanguageSpec,
    LearnedVocabulary,
    VocabularyOptions,
    default_vocabulary,
    reorder_positions,
)

NEW_TOKENS = 64  # where a caller names no length


class LSTM(LearnedVocabulary, LanguageModel):
    """Embeddings [batch, text, dim] to the states of a stacked LSTM, [batch, text, dim]; it generates."""

    architecture = CAUSAL
    generates = True

    class Options(VocabularyOptions):
        layers: int = Field(1, ge=1, le=16, description="stacked layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="between stacked layers")

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        units = options.vocabulary or default_vocabulary(verbatim=options.verbatim)
        self.embedding = nn.Embedding(len(units), options.dim, padding_idx=0)
        self.lstm = nn.LSTM(
            options.dim, options.dim, options.layers, batch_first=True, dropout=options.dropout if options.layers > 1 else 0.0
        )
        # Words are written with the vectors they are read by (Press and Wolf 2017, https://arxiv.org/abs/1608.05859).
        self.output = nn.Linear(options.dim, len(units), bias=False, device="meta")
        self.output.weight = self.embedding.weight
        self.spec = LanguageSpec(self.architecture, options.dim, len(units), None, self.generates, 0)

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def forward(
        self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None, memory: CrossAttentionStates | None = None
    ) -> Tensor:
        return self.lstm(embeddings)[0]  # padding after the text changes nothing before it

    def output_layer(self) -> nn.Module | None:
        return self.output

    def generate(self, embeddings: Tensor, mask: Tensor, memory: CrossAttentionStates | None = None, **options: Any) -> Tensor:
        """New token ids [batch * returned, out]: greedy, and at most `NEW_TOKENS`, unless ``options`` say otherwise."""
        if options.get("max_length") is None and options.get("max_new_tokens") is None:
            options["max_new_tokens"] = NEW_TOKENS
        return _Writer(self).generate(inputs_embeds=embeddings, attention_mask=mask, **options)


@dataclass
class _Written(ModelOutput):
    """``logits`` [rows, 1, vocab] of the last position, and ``state`` after it, which the library hands back."""

    logits: Tensor | None = None
    state: tuple[Tensor, Tensor] | None = None


class _Writer(PreTrainedModel, GenerationMixin):
    """An `LSTM` as the library's `generate` wants it. The cache is the network's state (h, c), [layers, rows, dim] each."""

    config_class = PreTrainedConfig
    _is_stateful = True  # tokens cannot be taken back, so there is no assisted decoding

    def __init__(self, reader: LSTM) -> None:
        super().__init__(PreTrainedConfig(vocab_size=reader.spec.vocab_size))
        self.embedding, self.lstm, self.output = reader.embedding, reader.lstm, reader.output
        tokenizer = reader.tokenizer
        self.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # that one is of attention's keys and values

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[Tensor, Tensor] | None = None,
        use_cache: bool = True,
        **_: Any,
    ) -> _Written:
        """``input_ids`` [rows, positions], or ``inputs_embeds`` [rows, positions, dim] with padding on the left; after
        a ``state`` the new positions only."""
        embeddings = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if state is None and attention_mask is not None:
            # Padding before the text would be read; behind it, it is cut off.
            order = attention_mask.argsort(dim=1, descending=True, stable=True)
            lengths = attention_mask.sum(1).cpu()
            embeddings = pack_padded_sequence(
                reorder_positions(embeddings, order), lengths, batch_first=True, enforce_sorted=False
            )
        _, (hidden, cell) = self.lstm(embeddings, state)
        return _Written(self.output(hidden[-1].unsqueeze(1)), (hidden, cell) if use_cache else None)

    def _update_model_kwargs_for_generation(self, outputs: _Written, model_kwargs: dict[str, Any], **more: Any) -> dict[str, Any]:
        # The library reorders a ``state`` for beam search, but hands it back only before 5.24.
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **more)
        return updated if outputs.state is None else {**updated, "state": outputs.state}

    def _reorder_cache(self, state: tuple[Tensor, Tensor], beams: Tensor) -> tuple[Tensor, Tensor]:
        return state[0].index_select(1, beams), state[1].index_select(1, beams)
