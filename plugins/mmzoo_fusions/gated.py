"""Weigh all sides against one another with gates (GMU, Arevalo et al. 2017, https://arxiv.org/abs/1702.01992, figure 2a)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmzoo.api import Features, FeatureSpec, Fusion, LanguageSpec, Options


class GatedFusion(Fusion):
    """Compute ``h_i = tanh(W_i x_i)``, ``z_i = sigmoid(V_i [x_1, ..., x_n])``, ``h = sum_i z_i * h_i``.

    The x_i are the pooled features of every encoder and the state, each layer-normalised.
    """

    joint = True

    class Options(Options):
        pass

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        super().__init__(options, encoders, language_model)
        dim = language_model.dim
        self.norms = nn.ModuleDict({name: nn.LayerNorm(spec.pooled_dim) for name, spec in encoders.items()})
        self.encoders = nn.ModuleDict({name: nn.Linear(spec.pooled_dim, dim, bias=False) for name, spec in encoders.items()})
        self.norm, self.text = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        size = dim + sum(spec.pooled_dim for spec in encoders.values())
        self.gates = nn.Linear(size, (len(encoders) + 1) * dim, bias=False)

    def late(self, features: Mapping[str, Features], hidden: Tensor) -> Tensor:
        vectors = [norm(features[name].pooled).unsqueeze(1) for name, norm in self.norms.items()]
        sides = [*(vector.expand(-1, hidden.shape[1], -1) for vector in vectors), self.norm(hidden)]
        values = [torch.tanh(layer(side)) for layer, side in zip([*self.encoders.values(), self.text], sides, strict=True)]
        gates = torch.sigmoid(self.gates(torch.cat(sides, -1)))
        return (gates * torch.cat(values, -1)).unflatten(-1, (len(sides), -1)).sum(-2)
