"""Put pooled features before the text as a learned prefix.

Frozen (Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884): one linear layer. ClipCap (Mokady et al. 2021,
https://arxiv.org/abs/2111.09734; https://github.com/rmokady/CLIP_prefix_caption, MIT): an MLP, or a transformer that reads the
projected features and learned constants; its outputs at the constants' positions are the prefix. Written here from the papers
and checked against outputs of the original code.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options, insert_features
from mmzoo_fusions.attention import attend, check_heads


class Prefix(Fusion):
    """Put `prefix` [batch, length, dim] before the text."""

    class Options(Options):
        length: int = Field(10, ge=1, le=4096, description="prefix tokens")
        normalize: bool = Field(False, description="scale the features to length 1 first (ClipCap's --normalize_prefix)")

    @property
    def added_tokens(self) -> int:
        return self.options.length

    def prefix(self, pooled: Tensor) -> Tensor:
        """Turn pooled features [batch, pooled_dim] into prefix embeddings [batch, length, dim]."""
        raise NotImplementedError

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        pooled = features.by_image().pooled
        prefix = self.prefix(F.normalize(pooled, dim=-1) if self.options.normalize else pooled)
        return insert_features(prefix, mask.new_ones(prefix.shape[:2]), features, embeddings, mask)


class LinearPrefix(Prefix):
    """Compute all prefix tokens at once with one linear layer (Frozen)."""

    class Options(Prefix.Options):
        length: int = Field(2, ge=1, le=4096, description="prefix tokens; Frozen uses 2")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        self.linear = nn.Linear(encoder.pooled_dim, options.length * language_model.dim)

    def prefix(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled).unflatten(1, (self.options.length, -1))


class MLPPrefix(Prefix):
    """Apply ClipCap's MLP: to half of all prefix channels, tanh, to all of them."""

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        width = options.length * language_model.dim
        self.model = nn.Sequential(nn.Linear(encoder.pooled_dim, width // 2), nn.Tanh(), nn.Linear(width // 2, width))

    def prefix(self, pooled: Tensor) -> Tensor:
        return self.model(pooled).unflatten(1, (self.options.length, -1))


class TransformerPrefix(Prefix):
    """Apply ClipCap's mapper: the features become ``clip_length`` tokens, followed by ``length`` learned constants.

    They go through pre-norm layers; the outputs at the constants are the prefix.
    """

    class Options(Prefix.Options):
        clip_length: int = Field(10, ge=1, le=4096, description="tokens that the pooled features become")
        layers: int = Field(8, ge=1, le=64, description="transformer layers")
        heads: int = Field(8, ge=1, description="attention heads; must divide the language model's dim")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        dim = language_model.dim
        check_heads(options.heads, dim)
        self.linear = nn.Linear(encoder.pooled_dim, options.clip_length * dim)
        self.constants = nn.Parameter(torch.randn(options.length, dim))
        self.layers = nn.ModuleList(MapperLayer(dim, options.heads) for _ in range(options.layers))

    def prefix(self, pooled: Tensor) -> Tensor:
        tokens = self.linear(pooled).unflatten(1, (self.options.clip_length, -1))
        tokens = torch.cat([tokens, self.constants.expand(tokens.shape[0], -1, -1)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens[:, self.options.clip_length :]


class MapperLayer(nn.Module):
    """Apply pre-norm self-attention without biases on queries, keys and values, and a ReLU MLP of ratio 2."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries = nn.Linear(dim, dim, bias=False)
        self.keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        key, value = self.keys_values(normed).chunk(2, dim=-1)
        tokens = tokens + self.project(attend(self.queries(normed), key, value, self.heads))
        return tokens + self.fc2(F.relu(self.fc1(self.norm2(tokens))))
