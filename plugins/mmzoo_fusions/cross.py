"""Add gated cross-attention inside the language model (Flamingo, Alayrac et al. 2022, https://arxiv.org/abs/2204.14198, figure
4).

    y = y + tanh(a) * cross_attention(norm(y), features);   y = y + tanh(b) * mlp(norm(y));   a = b = 0 at the start

One forward pre-hook on every nth block adds it, so the language model's own code and state stay as they are, it is the identity
at the start, and the library's generation with its cache works unchanged. As in OpenFlamingo (https://arxiv.org/abs/2308.01390)
the gates are scalars; unlike there, visual tokens are normalised, since without a resampler they come directly from the
encoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import Features, FeatureSpec, Fusion, LanguageModel, LanguageSpec, Options
from mmzoo_fusions.attention import attend, before, check_heads
from mmzoo_fusions.resampler import LATENTS, Perceiver


class GatedCrossAttention(Fusion):
    """Attend from states [batch, positions, dim] to visual tokens [batch, tokens, dim] before every nth block.

    Positions attend to the tokens of the latest image before them, or to all.
    """

    needs_tokens = True
    needs_blocks = True

    class Options(Options):
        every: int = Field(1, ge=1, description="attach to every nth block, counted from the first")
        heads: int = Field(8, ge=1, description="attention heads; must divide the language model's dim")
        mlp_ratio: int = Field(4, ge=1, le=16, description="hidden channels of the MLP, in multiples of dim")
        attend: Literal["latest", "all"] = Field("latest", description="each position to its latest image, or to all images")
        resampler: bool | int = Field(
            False,
            ge=0,
            le=4096,
            description=f"latents an image of one perceiver before all blocks; true for {LATENTS}, false for none",
        )
        resampler_layers: int = Field(6, ge=1, le=64, description="layers of the perceiver")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        check_heads(options.heads, language_model.dim)
        self.perceiver: Perceiver | None = None
        if options.resampler:
            latents = LATENTS if options.resampler is True else options.resampler
            self.perceiver = Perceiver(encoder.dim, latents, options.resampler_layers)
        count = (language_model.blocks + options.every - 1) // options.every
        self.layers = nn.ModuleList(
            GatedLayer(language_model.dim, encoder.dim, options.heads, options.mlp_ratio) for _ in range(count)
        )

    def prepare(self, features: Features) -> Features:
        if self.perceiver is None:
            return features
        images = features.by_image()
        latents = self.perceiver(images.tokens, images.token_mask())
        tokens = latents.reshape(len(features.pooled), -1, latents.shape[-1])
        mask = None if features.present is None else features.present.repeat_interleave(latents.shape[1], 1)
        return replace(features, tokens=tokens, mask=mask)

    def deep(self, language_model: LanguageModel) -> None:
        decoder = set(language_model.decoder_blocks())
        for layer, block in zip(self.layers, list(language_model.blocks())[:: self.options.every], strict=True):
            before(block, self._attention(layer, block in decoder))

    def _attention(self, layer: nn.Module, decoder: bool) -> Any:
        def change(hidden: Tensor) -> Tensor | None:
            features = self.features_for(hidden.shape[0])
            if features is None:
                return None
            if self.options.attend == "latest":
                visible = self.attention_mask(*hidden.shape[:2], decoder=decoder)
            else:
                visible = None if features.mask is None else features.mask.bool()[:, None]
            return layer(hidden, features.tokens, visible)

        return change


class GatedLayer(nn.Module):
    """Apply cross-attention and an MLP, each behind a gate that starts closed."""

    def __init__(self, dim: int, vision_dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm_vision = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(vision_dim)
        self.queries = nn.Linear(dim, dim, bias=False)
        self.keys_values = nn.Linear(vision_dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, hidden: Tensor, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return the new ``hidden`` [batch, positions, dim], given ``tokens`` [batch, tokens, vision_dim]; ``visible`` as in
        `attend`."""
        attention_gate, mlp_gate = torch.tanh(self.gates).to(hidden.dtype)
        vision = self.norm_vision(tokens.to(hidden.dtype))
        query, (key, value) = self.queries(self.norm1(hidden)), self.keys_values(vision).chunk(2, dim=-1)
        hidden = hidden + attention_gate * self.project(attend(query, key, value, self.heads, visible)).to(hidden.dtype)
        return hidden + mlp_gate * self.mlp(self.norm2(hidden)).to(hidden.dtype)
