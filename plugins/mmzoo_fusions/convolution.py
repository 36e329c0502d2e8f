"""Run convolutions over the joined sequence of input tokens and text (the blocks of ConvS2S, Gehring et al. 2017,
https://arxiv.org/abs/1705.03122, section 3.2: a convolution, a gated linear unit and a residual)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import Features, FeatureSpec, FusedInput, LanguageSpec, Options
from mmzoo_fusions.joint import JointEarly


class Convolution(JointEarly):
    """Put the convolved tokens of all encoders before the text, and add the convolved text to its embeddings behind a gate.

    As in the paper's decoder the convolution reads only positions before (zeros stand before the first), or for bidirectional
    language models those on both sides, as in its encoder. Masked positions are taken out first, so padding between input and
    text changes nothing, and stand as zeros at the end. All tokens are put before the text, wherever its placeholders are.
    Tokens that a causal model writes could not be convolved, so it is refused for tasks that generate with one.
    """

    class Options(Options):
        kernel: int = Field(3, ge=1, le=64, description="positions that a convolution reads")
        layers: int = Field(2, ge=1, le=64, description="convolutions, one after another")

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        dim, before = language_model.dim, options.kernel - 1
        super().__init__(options, encoders, language_model, dim)
        tokens = [spec.tokens for spec in encoders.values()]
        self._added = None if None in tokens else sum(count or 0 for count in tokens)
        self._padding = (before, 0) if self._causal else (before // 2, before - before // 2)
        self.layers = nn.ModuleList(nn.Conv1d(dim, 2 * dim, options.kernel) for _ in range(options.layers))

    @property
    def added_tokens(self) -> int | None:
        return self._added

    def early(self, features: Mapping[str, Features], embeddings: Tensor, mask: Tensor) -> FusedInput:
        states, real = self.joined(features, embeddings, mask)
        inputs = states.shape[1] - mask.shape[1]
        order = (~real).long().argsort(dim=1, stable=True)
        states = self._convolve(_reorder(states, order), real.gather(1, order)[..., None])
        states = _reorder(states, order.argsort(1))
        text = self.changed(embeddings, states[:, inputs:])
        joined = torch.cat([states[:, :inputs].to(text.dtype), text], 1)
        return FusedInput(joined, real.to(mask.dtype), slice(inputs, joined.shape[1]))

    def _convolve(self, states: Tensor, real: Tensor) -> Tensor:
        for layer in self.layers:
            padded = F.pad((states * real).transpose(1, 2), self._padding)
            states = (states + F.glu(layer(padded), 1).transpose(1, 2)) * 0.5**0.5  # keeps the variance, as in the paper
        return states * real


def _reorder(states: Tensor, order: Tensor) -> Tensor:
    return states.gather(1, order[..., None].expand_as(states))
