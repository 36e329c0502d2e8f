"""Compute FiLM, feature-wise linear modulation (Perez et al. 2018, https://arxiv.org/abs/1709.07871).

The text decides how each channel of the picture is scaled and shifted. It is a late fusion, since it needs the
language model's states of the text. Visual tokens have no known grid here, so the paper's convolutions are linear
layers on each token, its batch norm is a layer norm, and no coordinates are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmzoo.api import Features, FeatureSpec, Fusion, LanguageSpec, Options
from pydantic import Field
from torch import Tensor, nn


class FilmFusion(Fusion):
    """Scale and shift the visual tokens by each text state; add their maximum over the picture to the state."""

    needs_tokens = True

    class Options(Options):
        channels: int = Field(128, ge=1, le=65536, description="channels of the modulated tokens")
        blocks: int = Field(1, ge=1, le=64, description="FiLM blocks, one after another")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        channels, dim = options.channels, language_model.dim
        self.vision = nn.Sequential(nn.LayerNorm(encoder.dim), nn.Linear(encoder.dim, channels), nn.ReLU())
        self.norm = nn.LayerNorm(dim)
        self.films = nn.ModuleList(FilmBlock(channels, dim) for _ in range(options.blocks))
        self.out = nn.Linear(channels, dim)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks that the policies ``last:N`` and ``lora:r`` count."""
        return tuple(self.films)

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        tokens = self.vision(features.tokens).unsqueeze(1)  # [batch, 1, tokens, channels]: the same for every position
        states = self.norm(hidden)
        for film in self.films:
            tokens = film(tokens, states)
        if features.mask is not None:
            # Tokens are never negative, so a masked one, which is zero here, cannot change the maximum.
            tokens = tokens * features.mask[:, None, :, None].to(tokens.dtype)
        return hidden + self.out(tokens.amax(2))


class FilmBlock(nn.Module):
    """Compute ``x + ReLU(gamma * f(x) + beta)``, gamma and beta from the text: x itself where both are zero."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.LayerNorm(channels, elementwise_affine=False),  # gamma and beta are its scale and shift
        )
        self.modulation = nn.Linear(dim, 2 * channels)
        nn.init.zeros_(self.modulation.bias)
        nn.init.ones_(self.modulation.bias[:channels])  # gamma begins around 1, as in the paper

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Return the modulated tokens [batch, positions, tokens, channels].

        ``tokens`` are [batch, positions or 1, tokens, channels], ``states`` [batch, positions, dim].
        """
        gamma, beta = self.modulation(states).unsqueeze(2).chunk(2, dim=-1)
        return tokens + torch.relu(gamma * self.features(tokens) + beta)
