"""Attend between every pair of modalities (MulT, Tsai et al. 2019, https://arxiv.org/abs/1906.00295, section 3).

Each modality, text included, is projected and gets sinusoidal positions. For each target, one stack of cross-modal blocks per
other modality reads that modality's tokens; the results, concatenated, go through a stack of self-attention. As in the authors'
code (https://github.com/yaohungt/Multimodal-Transformer, MIT) a norm serves queries and keys of a block, and one ends a stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import BIDIRECTIONAL, Features, FeatureSpec, FusedInput, LanguageSpec, Options
from mmzoo_fusions.attention import attend, check_heads
from mmzoo_fusions.joint import JointEarly


class CrossModal(JointEarly):
    """Add to each embedding its own stream's result and the mean of each other stream, through a linear layer and a gate.

    Where MulT classifies the last element of every stream, here the text's stream keeps its positions, and each other
    modality's is summarised to the mean of its real tokens. No position is added. It mixes the positions of a text, so it is for
    bidirectional language models.
    """

    architectures = frozenset({BIDIRECTIONAL})

    class Options(Options):
        width: int = Field(64, ge=1, le=8192, description="channels of each modality")
        heads: int = Field(4, ge=1, description="attention heads; must divide width")
        layers: int = Field(4, ge=1, le=64, description="blocks of each stack")

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        super().__init__(options, encoders, language_model, options.width)
        check_heads(options.heads, options.width)
        others, sizes = len(encoders), (options.width, options.heads, options.layers)
        self.targets = nn.ModuleList(Target(others, *sizes) for _ in range(others + 1))  # those of the encoders, the text's last
        self.out = nn.Linear((others + 1) * others * options.width, language_model.dim)

    def early(self, features: Mapping[str, Features], embeddings: Tensor, mask: Tensor) -> FusedInput:
        streams = [(states + sinusoids(real, states), real) for states, real in self.streams(features, embeddings, mask)]
        results = []
        for i, (states, real) in enumerate(streams):
            result = self.targets[i](states, real, streams[:i] + streams[i + 1 :])
            results.append(result if i == len(streams) - 1 else _mean(result, real).expand(-1, mask.shape[1], -1))
        return FusedInput(self.changed(embeddings, self.out(torch.cat(results, -1))), mask, slice(0, mask.shape[1]))


class Target(nn.Module):
    """Attend from one modality to each other, then from the concatenated results to themselves."""

    def __init__(self, others: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.cross = nn.ModuleList(Stack(width, heads, layers) for _ in range(others))
        self.itself = Stack(others * width, heads, layers)

    def forward(self, states: Tensor, real: Tensor, others: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return [batch, positions, others * width] for ``states`` [batch, positions, width]; each of ``others`` is a source
        [batch, tokens, width] and which of its tokens are real, [batch, tokens]."""
        crossed = [stack(states, source, seen) for stack, (source, seen) in zip(self.cross, others, strict=True)]
        return self.itself(torch.cat(crossed, -1), None, real)


class Stack(nn.Module):
    """Apply blocks that attend to ``source``, or to their own input if that is None, and a norm."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, source: Tensor | None, real: Tensor) -> Tensor:
        """Return new ``states`` [batch, positions, width]; ``real`` [batch, tokens] says which of ``source`` [batch, tokens,
        width] are."""
        for layer in self.layers:
            states = layer(states, states if source is None else source, real[:, None])
        return self.norm(states)


class Block(nn.Module):
    """Attend from states to a source, then apply a ReLU MLP of ratio 4; each pre-normed and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor, source: Tensor, visible: Tensor) -> Tensor:
        """Return new ``states`` [batch, positions, width]; ``visible`` as in `attend`."""
        key, value = self.keys_values(self.norm1(source)).chunk(2, dim=-1)
        states = states + self.project(attend(self.queries(self.norm1(states)), key, value, self.heads, visible))
        return states + self.mlp(self.norm2(states))


def sinusoids(real: Tensor, states: Tensor) -> Tensor:
    """Return position embeddings (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) in the shape and type of ``states``
    [batch, positions, width]: sines, then cosines. They count the real positions only, so padding moves none."""
    width = states.shape[-1]
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=states.device) * (-math.log(10_000) / half))
    angles = (real.cumsum(1) - 1).clamp(min=0)[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width].to(states.dtype)


def _mean(states: Tensor, real: Tensor) -> Tensor:
    """Return the mean of the real ``states``, [batch, 1, width]; zeros where there are none."""
    weights = real[..., None].to(states.dtype)
    return (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
