"""A long short-term memory network (Hochreiter and Schmidhuber 1997) that reads text."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from mmzoo import vocabulary
from mmzoo.interfaces import CAUSAL, LanguageModel, LanguageSpec
from mmzoo.vocabulary import LearnedVocabulary, VocabularyOptions


class LSTM(LearnedVocabulary, LanguageModel):
    """Embeddings [batch, text, dim] to the states of a stacked LSTM, [batch, text, dim]."""

    kind = CAUSAL

    class Options(VocabularyOptions):
        layers: int = Field(1, ge=1, le=16, description="stacked layers")
        dropout: float = Field(0.0, ge=0, lt=1, description="between stacked layers")

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        units = options.vocabulary or vocabulary.default()
        self.embedding = nn.Embedding(len(units), options.dim, padding_idx=0)
        self.lstm = nn.LSTM(
            options.dim, options.dim, options.layers, batch_first=True, dropout=options.dropout if options.layers > 1 else 0.0
        )
        self.spec = LanguageSpec(self.kind, options.dim, len(units), None, self.generates, 0)

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def forward(self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> Tensor:
        # Padding after the text changes nothing before it; padding elsewhere is moved there and back.
        order = mask.argsort(dim=1, descending=True, stable=True).unsqueeze(-1)
        states, _ = self.lstm(embeddings.gather(1, order.expand_as(embeddings)))
        return states.new_zeros(states.shape).scatter(1, order.expand_as(states), states)
