"""Define the bases of joint fusions, which read all encoders together: each side is normalised and projected to one width.

All sides are layer-normalised (Ba et al. 2016, https://arxiv.org/abs/1607.06450), since features and states of different models
differ in scale by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmzoo.api import BIDIRECTIONAL, Features, FeatureSpec, Fusion, LanguageSpec


class JointLate(Fusion):
    """Project the states and the pooled features of every encoder to ``width`` channels."""

    joint: ClassVar[bool] = True

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec, width: int) -> None:
        super().__init__(options, encoders, language_model)
        self.text = _projection(language_model.dim, width)
        self.encoders = nn.ModuleDict({name: _projection(spec.pooled_dim, width) for name, spec in encoders.items()})

    def sides(self, features: Mapping[str, Features], hidden: Tensor) -> list[Tensor]:
        """Return the vector of each encoder, [batch, 1, width], and the states [batch, positions, width] last."""
        vectors = [project(features[name].pooled).unsqueeze(1) for name, project in self.encoders.items()]
        return [*vectors, self.text(hidden)]


class JointEarly(Fusion):
    """Project the text's embeddings and the tokens of every encoder to ``width`` channels, and change the embeddings.

    The change is behind a gate that starts closed, so the language model starts from the embeddings that it knows.
    """

    joint: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = True
    changes_text: ClassVar[bool] = True

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec, width: int) -> None:
        super().__init__(options, encoders, language_model)
        self._causal = language_model.architecture != BIDIRECTIONAL
        self.text = _projection(language_model.dim, width)
        self.encoders = nn.ModuleDict({name: _projection(spec.dim, width) for name, spec in encoders.items()})
        self.gate = nn.Parameter(torch.zeros(()))

    def streams(self, features: Mapping[str, Features], embeddings: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the tokens [batch, tokens, width] of each encoder and which are real, [batch, tokens]; the text's last."""
        every = [(features[name], project) for name, project in self.encoders.items()]
        tokens = [(project(one.tokens), one.token_mask().bool()) for one, project in every]
        return [*tokens, (self.text(embeddings), mask.bool())]

    def joined(self, features: Mapping[str, Features], embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the streams as one, [batch, tokens + text, width], and which positions are real, [batch, tokens + text]."""
        states, real = zip(*self.streams(features, embeddings, mask), strict=True)
        return torch.cat(states, 1), torch.cat(real, 1)

    def changed(self, embeddings: Tensor, change: Tensor) -> Tensor:
        """Return ``embeddings`` plus the gated ``change``, both [batch, text, dim]."""
        return embeddings + (torch.tanh(self.gate) * change).to(embeddings.dtype)


def _projection(size: int, width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width))
