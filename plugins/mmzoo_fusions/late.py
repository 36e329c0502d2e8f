"""Fuse late: each state of the language model is combined with the features after it.

Baltrusaitis et al. 2019 (https://arxiv.org/abs/1705.09406) name the family. It works position by position, so the same module
serves a pooled text (one position), every position of a text, and one decoding step. Both sides are layer-normalised (Ba et al.
2016, https://arxiv.org/abs/1607.06450), since features and states of different models differ in scale by orders of magnitude.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import Features, FeatureSpec, Fusion, LanguageSpec, Options
from mmzoo_fusions.attention import check_heads


class LateConcat(Fusion):
    """Concatenate features and state, ``c = [v, l]``, then Linear-GELU-Linear back to the model's dim."""

    class Options(Options):
        pass

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        dim = language_model.dim
        self.norm_vision, self.norm_language = nn.LayerNorm(encoder.pooled_dim), nn.LayerNorm(dim)
        self.mix = nn.Sequential(nn.Linear(encoder.pooled_dim + dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        vision = self.norm_vision(features.pooled).unsqueeze(1).expand(-1, hidden.shape[1], -1)
        return self.mix(torch.cat([vision, self.norm_language(hidden)], dim=-1))


class _Projected(Fusion):
    """Project both sides to the model's dim with a linear layer and a norm."""

    class Options(Options):
        pass

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        dim = language_model.dim
        self.vision = nn.Sequential(nn.Linear(encoder.pooled_dim, dim), nn.LayerNorm(dim))
        self.language = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))


class LateSum(_Projected):
    """Add linear projections: ``Z = f_v + f_t``."""

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        return self.vision(features.pooled).unsqueeze(1) + self.language(hidden)


class LateProduct(_Projected):
    """Multiply ``tanh(f_v) * tanh(f_t)``, element by element, as in the VQA baseline (Antol et al. 2015,
    https://arxiv.org/abs/1505.00468)."""

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        return torch.tanh(self.vision(features.pooled)).unsqueeze(1) * torch.tanh(self.language(hidden))


class LateAttention(Fusion):
    """Attend from text states [batch, positions, dim] to visual tokens: LayerNorm(l + attention), then a residual MLP.

    After stacked attention (Yang et al. 2016, https://arxiv.org/abs/1511.02274).
    """

    needs_tokens = True

    class Options(Options):
        heads: int = Field(4, ge=1, description="attention heads; must divide the language model's dim")
        dropout: float = Field(0.0, ge=0, lt=1, description="of attention weights")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        dim = language_model.dim
        check_heads(options.heads, dim)
        self.attention = nn.MultiheadAttention(
            dim, options.heads, dropout=options.dropout, kdim=encoder.dim, vdim=encoder.dim, batch_first=True
        )
        self.norm_vision = nn.LayerNorm(encoder.dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        tokens = self.norm_vision(features.tokens)
        padding = features.token_mask() == 0
        empty = padding.all(1, keepdim=True)  # rows without tokens: a softmax over none is NaN
        attended, _ = self.attention(hidden, tokens, tokens, key_padding_mask=padding & ~empty, need_weights=False)
        attended = attended.masked_fill(empty[..., None], 0)
        hidden = self.norm(hidden + attended)
        return hidden + self.mlp(hidden)
