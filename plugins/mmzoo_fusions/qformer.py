"""Read the image with learned queries: BLIP-2's Q-Former (Li et al. 2023, https://arxiv.org/abs/2301.12597).

The transformer is the transformers library's (Apache-2.0), so its weights have BLIP-2's own names.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from mmzoo.api import Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options, insert_features
from mmzoo_fusions.attention import check_heads


class QFormer(Fusion):
    """Turn token features [batch, tokens, dim] into ``queries`` input tokens an image.

    Queries [queries, dim] attend to one another and, in every nth layer, to the token features; a linear layer makes them input
    tokens.
    """

    needs_tokens = True

    class Options(Options):
        queries: int = Field(32, ge=1, le=4096, description="learned queries, which become the tokens of an image")
        dim: int = Field(768, ge=1, le=65536, description="channels of the queries")
        layers: int = Field(12, ge=1, le=64, description="layers of self-attention and MLP")
        heads: int = Field(12, ge=1, description="attention heads; must divide dim")
        every: int = Field(2, ge=1, description="attend to the image in every nth layer, counted from the first")
        dropout: float = Field(0.1, ge=0, lt=1, description="of states and attention weights")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        check_heads(options.heads, options.dim)
        self.queries = nn.Parameter(0.02 * torch.randn(options.queries, options.dim))
        self.model = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=options.dim,
                num_hidden_layers=options.layers,
                num_attention_heads=options.heads,
                intermediate_size=4 * options.dim,
                cross_attention_frequency=options.every,
                encoder_hidden_size=encoder.dim,
                hidden_dropout_prob=options.dropout,
                attention_probs_dropout_prob=options.dropout,
            )
        )
        self.project = nn.Linear(options.dim, language_model.dim)

    @property
    def added_tokens(self) -> int:
        return self.options.queries

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        images = features.by_image()
        queries = self.queries.expand(len(images.tokens), -1, -1)
        out = self.model(query_embeds=queries, encoder_hidden_states=images.tokens, encoder_attention_mask=_real(images))
        tokens = self.project(out.last_hidden_state)
        return insert_features(tokens, mask.new_ones(tokens.shape[:2]), features, embeddings, mask)


def _real(images: Features) -> Tensor | None:
    """Return the mask [batch, tokens], all true for a row without an image, since a softmax over no tokens is NaN."""
    return None if images.mask is None else images.mask.bool() | ~images.mask.bool().any(1, keepdim=True)
