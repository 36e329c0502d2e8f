"""Reduce many visual tokens to a few: latents attend to them (Perceiver, Jaegle et al. 2021, https://arxiv.org/abs/2103.03206).

The resampler is Flamingo's (Alayrac et al. 2022, https://arxiv.org/abs/2204.14198, figure 5) as OpenFlamingo and IDEFICS have
it: no biases in its layers, and a norm at the end. It is checked against transformers' `IdeficsPerceiverResampler`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options, insert_features
from mmzoo_fusions.attention import attend

LATENTS = 64
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class Resampler(Fusion):
    """Turn token features [batch, tokens, dim] into ``latents`` input tokens an image."""

    needs_tokens = True

    class Options(Options):
        latents: int = Field(LATENTS, ge=1, le=4096, description="learned latents, which become the tokens of an image")
        layers: int = Field(6, ge=1, le=64, description="layers of attention and MLP")
        heads: int = Field(8, ge=1, le=256, description="attention heads")
        head_dim: int = Field(64, ge=1, le=1024, description="channels of a head")
        mlp_ratio: int = Field(4, ge=1, le=16, description="hidden channels of the MLP, in multiples of the encoder's dim")
        activation: Literal["gelu", "relu"] = Field("gelu", description="of the MLP: OpenFlamingo's is gelu, IDEFICS' relu")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        sizes = (options.latents, options.layers, options.heads, options.head_dim, options.mlp_ratio)
        self.perceiver = Perceiver(encoder.dim, *sizes, activation=options.activation)
        same = encoder.dim == language_model.dim
        self.project = nn.Identity() if same else nn.Linear(encoder.dim, language_model.dim)

    @property
    def added_tokens(self) -> int:
        return self.options.latents

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        images = features.by_image()
        tokens = self.project(self.perceiver(images.tokens, images.token_mask()))
        return insert_features(tokens, mask.new_ones(tokens.shape[:2]), features, embeddings, mask)


class Perceiver(nn.Module):
    """Pass learned latents [latents, dim] through layers that attend to the tokens and to the latents themselves."""

    def __init__(
        self,
        dim: int,
        latents: int = LATENTS,
        layers: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ratio: int = 4,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.layers = nn.ModuleList(PerceiverLayer(dim, heads, head_dim, ratio, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the latents [batch, latents, dim] for ``tokens`` [batch, tokens, dim] under ``mask`` [batch, tokens]."""
        latents = self.latents.expand(len(tokens), -1, -1)
        visible = torch.cat([mask.bool(), mask.new_ones(latents.shape[:2], dtype=torch.bool)], dim=1)[:, None]
        for layer in self.layers:
            latents = layer(latents, tokens, visible)
        return self.norm(latents)


class PerceiverLayer(nn.Module):
    """Attend from latents to tokens and latents, then apply an MLP; each pre-normed, with a residual, and without biases."""

    def __init__(self, dim: int, heads: int, head_dim: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.heads, width = heads, heads * head_dim
        self.norm_tokens, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries = nn.Linear(dim, width, bias=False)
        self.keys_values = nn.Linear(dim, 2 * width, bias=False)
        self.project = nn.Linear(width, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, ratio * dim, bias=False),
            ACTIVATIONS[activation](),
            nn.Linear(ratio * dim, dim, bias=False),
        )

    def forward(self, latents: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """Return new ``latents`` [batch, latents, dim]; ``tokens`` are [batch, tokens, dim], ``visible`` [batch, 1, tokens +
        latents]."""
        normed = self.norm_latents(latents)
        key, value = self.keys_values(torch.cat([self.norm_tokens(tokens), normed], dim=1)).chunk(2, dim=-1)
        latents = latents + self.project(attend(self.queries(normed), key, value, self.heads, visible))
        return latents + self.mlp(latents)
