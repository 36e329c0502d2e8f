"""Define a long short-term memory network (Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735) that
reads text and writes it.

Behind a late fusion it is the merge captioner (Mao et al. 2015, https://arxiv.org/abs/1412.6632; Tanti et al. 2018,
https://arxiv.org/abs/1703.09137): the network reads words only, and its state is combined with the image just before the
vocabulary.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import (
    CAUSAL,
    CrossAttentionStates,
    LanguageModel,
    LanguageSpec,
    LearnedVocabulary,
    VocabularyOptions,
    default_vocabulary,
)
from mmzoo_scratch.lstm_writer import LSTMWriter

NEW_TOKENS = 64  # the limit if a caller gives none


class LSTM(LearnedVocabulary, LanguageModel):
    """Turn embeddings [batch, text, dim] into the states of a stacked LSTM, [batch, text, dim]; generate text."""

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
        # The output layer shares the word embeddings (Press and Wolf 2017, https://arxiv.org/abs/1608.05859).
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
        """Return new token ids [batch * returned, out]: greedy, and at most `NEW_TOKENS`, unless ``options`` say otherwise."""
        if options.get("max_length") is None and options.get("max_new_tokens") is None:
            options["max_new_tokens"] = NEW_TOKENS
        return LSTMWriter(self).generate(inputs_embeds=embeddings, attention_mask=mask, **options)
