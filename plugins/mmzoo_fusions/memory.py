"""Give visual tokens to the decoder of a seq2seq model as states of the encoder.

The image captioners since Show, Attend and Tell (Xu et al. 2015, https://arxiv.org/abs/1502.03044) have an image encoder in the
place of the translator's text encoder; here the text encoder's states of a prompt come after the visual tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmzoo.api import SEQ2SEQ, CrossAttentionStates, Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options


class EncoderStates(Fusion):
    """Put token features [batch, tokens, dim], projected and normalised, before the encoder's states of the text.

    The text encoder does not attend to them.
    """

    architectures = frozenset({SEQ2SEQ})
    needs_tokens = True
    needs_decoder = True

    class Options(Options):
        pass

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        self.project, self.norm = nn.Linear(encoder.dim, language_model.dim), nn.LayerNorm(language_model.dim)

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        memory = CrossAttentionStates(self.norm(self.project(features.tokens)), features.token_mask())
        return FusedInput(embeddings, mask, slice(0, mask.shape[1]), memory)
