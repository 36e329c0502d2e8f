"""Attend between two streams (ViLBERT, Lu et al. 2019, https://arxiv.org/abs/1908.02265; LXMERT, Tan and Bansal 2019,
https://arxiv.org/abs/1908.07490).

In LXMERT's cross-modality layer, each stream attends to the other, then to itself, then goes through an MLP, each step with a
residual and a norm after it. Here the text's own attention and MLP are the language model's block; a hook adds the step before
it, behind a gate that starts closed:

    text = text + tanh(a) * (norm(text + attention(text, vision)) - text);   a = 0 at the start

So it is LXMERT's step at an open gate (checked against transformers' `LxmertCrossAttentionLayer`) and the bare language model
at a closed one. Two things differ: each direction has weights of its own, as in ViLBERT, where LXMERT has one set for both; and
the pooled vision is added to the text behind a gate, where ViLBERT multiplies the two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import BIDIRECTIONAL, DoesNotFit, Features, FeatureSpec, Fusion, FusionCall, LanguageModel, LanguageSpec, Options
from mmzoo_fusions.attention import attend, before, check_heads

EPSILON = 1e-12  # of BERT's norms, and of LXMERT's


class CoAttention(Fusion):
    """Run a vision stream [batch, tokens, dim] beside the text's: before every nth block each attends to the other.

    Every word attends to every image, and every visual token to the whole text. The stream of all images goes from layer to
    layer, and its mean is added to the text's states after the last block.
    """

    architectures = frozenset({BIDIRECTIONAL})
    needs_tokens = True
    needs_blocks = True

    class Options(Options):
        every: int = Field(1, ge=1, description="attach to every nth block")
        first: int = Field(0, ge=0, description="the block to count from; LXMERT has nine of text alone before")
        heads: int = Field(8, ge=1, description="attention heads; must divide the language model's dim")
        mlp_ratio: int = Field(4, ge=1, le=16, description="hidden channels of the vision stream's MLP, in multiples of dim")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        """Build a layer for every nth block.

        Raises:
            DoesNotFit: the heads do not divide the dim, or there is no block to attach to.
        """
        super().__init__(options, encoder, language_model)
        dim, blocks = language_model.dim, language_model.blocks
        check_heads(options.heads, dim)
        if blocks and options.first >= blocks:
            raise DoesNotFit(f"fusion.first: {options.first}: the language model has {blocks} blocks, counted from 0")
        self._attached = range(options.first, blocks, options.every)
        self.project, self.norm = nn.Linear(encoder.dim, dim), nn.LayerNorm(dim, EPSILON)
        self.layers = nn.ModuleList(CoLayer(dim, options.heads, options.mlp_ratio) for _ in self._attached)
        self.pooler = nn.Linear(dim, dim)
        self.gate = nn.Parameter(torch.zeros(()))

    def prepare(self, features: Features) -> Features:
        return replace(features, tokens=self.norm(self.project(features.tokens)))

    def deep(self, language_model: LanguageModel) -> None:
        blocks = language_model.blocks()
        for number, block in enumerate(self._attached):
            before(blocks[block], self._exchange(number))

    def _exchange(self, number: int) -> Any:
        def change(hidden: Tensor) -> Tensor | None:
            if (call := self.call) is None or call.mask is None:
                return None
            streams = self._streams(call)
            words, tokens = call.mask.bool()[:, None], call.features.token_mask().bool()[:, None]
            hidden, vision = self.layers[number](hidden, streams[number], words, tokens)
            if len(streams) == number + 1:  # a block that runs again in the backward pass must get the same input
                streams.append(vision)
            return hidden

        return change

    @staticmethod
    def _streams(call: FusionCall) -> list[Tensor]:
        """Return the vision streams of a call: the input of each layer so far, and the output of the last."""
        return call.kept.setdefault("vision", [call.features.tokens])

    def late(self, features: Features, hidden: Tensor) -> Tensor:
        call = self.call
        assert call is not None, "the vision stream belongs to a pass"
        real = features.token_mask()[..., None].to(hidden.dtype)
        pooled = (self._streams(call)[-1] * real).sum(1) / real.sum(1).clamp(min=1)
        return hidden + torch.tanh(self.gate) * torch.tanh(self.pooler(pooled)).unsqueeze(1)


class CoLayer(nn.Module):
    """Attend from each stream to the other, then run the vision stream's own attention and MLP."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.text, self.vision, self.itself = Attention(dim, heads), Attention(dim, heads), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))
        self.norm = nn.LayerNorm(dim, EPSILON)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, text: Tensor, vision: Tensor, words: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams: ``text`` [batch, positions, dim] and ``vision`` [batch, tokens, dim].

        ``words`` [batch, 1, positions] and ``tokens`` [batch, 1, tokens] say which of them are real.
        """
        step = self.text(text, vision, tokens) - text
        vision = self.vision(vision, text, words)
        vision = self.itself(vision, vision, tokens)
        vision = self.norm(vision + self.mlp(vision))
        return text + (torch.tanh(self.gate) * step).to(text.dtype), vision


class Attention(nn.Module):
    """Attend from states to others: norm(states + projected attention), with biases, as in BERT."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys_values = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.project, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, EPSILON)

    def forward(self, states: Tensor, others: Tensor, visible: Tensor) -> Tensor:
        """Return the new ``states`` [batch, positions, dim]; ``visible`` [batch, 1, others] says which of ``others`` [batch,
        others, dim] are real."""
        key, value = self.keys_values(others).chunk(2, dim=-1)
        return self.norm(states + self.project(attend(self.queries(states), key, value, self.heads, visible)))
