"""Attend over a graph whose nodes are the tokens of all encoders and of the text (GAT, Velickovic et al. 2018,
https://arxiv.org/abs/1710.10903)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import Features, FeatureSpec, FusedInput, LanguageSpec, Options
from mmzoo_fusions.attention import check_heads
from mmzoo_fusions.joint import JointEarly


class GraphAttention(JointEarly):
    """Add to each embedding what its node has become, through a linear layer and a gate. No position is added.

    For a bidirectional language model every node reads every other. Else a text node reads the inputs and the text up to
    itself, and an input reads the inputs only, so that no text leaks to earlier positions. Tokens that a causal model writes
    could not be nodes, so it is refused for tasks that generate with one.
    """

    class Options(Options):
        width: int = Field(256, ge=1, le=8192, description="channels of a node")
        heads: int = Field(8, ge=1, description="attention heads; must divide width")
        layers: int = Field(2, ge=1, le=64, description="layers of graph attention")

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        super().__init__(options, encoders, language_model, options.width)
        check_heads(options.heads, options.width)
        self.layers = nn.ModuleList(GraphLayer(options.width, options.heads) for _ in range(options.layers))
        self.out = nn.Linear(options.width, language_model.dim)

    def early(self, features: Mapping[str, Features], embeddings: Tensor, mask: Tensor) -> FusedInput:
        nodes, real = self.joined(features, embeddings, mask)
        inputs = nodes.shape[1] - mask.shape[1]
        edges = self._edges(real, inputs)
        for layer in self.layers:
            nodes = layer(nodes, edges)
        return FusedInput(self.changed(embeddings, self.out(nodes[:, inputs:])), mask, slice(0, mask.shape[1]))

    def _edges(self, real: Tensor, inputs: int) -> Tensor:
        """Return which nodes each node reads, [batch, nodes, nodes]; itself always."""
        count = real.shape[1]
        edges = real.new_ones(count, count)
        if self._causal:
            edges = edges.tril()
            edges[:inputs, :inputs] = True
        return (edges & real[:, None]) | torch.eye(count, dtype=torch.bool, device=real.device)


class GraphLayer(nn.Module):
    """Apply equations 1 to 5 of the paper: ``h_i = ELU(sum_j softmax_j(LeakyReLU(a [W x_i, W x_j])) W x_j)`` for each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.values = nn.Linear(width, width, bias=False)
        self.attention = nn.Parameter(torch.empty(2, heads, width // heads))
        nn.init.xavier_uniform_(self.attention)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Return new ``nodes`` [batch, nodes, width]; ``edges`` [batch, nodes, nodes] says which others each reads."""
        values = self.values(nodes).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, nodes, width / heads]
        reader, read = (values * vector[:, None] for vector in self.attention)  # a, applied to its two halves
        scores = F.leaky_relu(reader.sum(-1)[..., :, None] + read.sum(-1)[..., None, :], 0.2)
        weights = scores.masked_fill(~edges[:, None], -torch.inf).softmax(-1)
        return F.elu((weights @ values).transpose(1, 2).flatten(2))
