"""Represent a text as a bag of words: the mean of learned vectors, without order (Joulin et al. 2017,
https://arxiv.org/abs/1607.01759)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmzoo.api import BIDIRECTIONAL, LanguageModel, LanguageSpec, LearnedVocabulary, VocabularyOptions, default_vocabulary


class BagOfWords(LearnedVocabulary, LanguageModel):
    """Add the mean of all positions to each position [batch, text, dim], so that what fusion adds to the input has an effect."""

    architecture = BIDIRECTIONAL

    class Options(VocabularyOptions):
        pass

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        units = options.vocabulary or default_vocabulary(verbatim=options.verbatim)
        self.embedding = nn.Embedding(len(units), options.dim, padding_idx=0)
        self.spec = LanguageSpec(self.architecture, options.dim, len(units), None, self.generates, 0)

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def forward(self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> Tensor:
        return embeddings + _mean(embeddings, mask).unsqueeze(1)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return _mean(hidden, mask)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)
