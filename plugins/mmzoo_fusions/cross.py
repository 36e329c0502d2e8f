"""Gated cross-attention inside the language model (Flamingo, Alayrac et al. 2022, equation of figure 4).

    y = y + tanh(a) * cross_attention(norm(y), features);   y = y + tanh(b) * mlp(norm(y));   a = b = 0 at the start

One forward pre-hook on every nth block adds it, so the language model's own code and state stay as they are, it is the
identity at the start, and the library's generation with its cache works unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.interfaces import FeatureSpec, Fusion, LanguageModel, LanguageSpec, Options
from mmzoo_fusions.prefix import check_heads


class GatedCrossAttention(Fusion):
    """States [batch, positions, dim] attend to visual tokens [batch, tokens, dim] before every nth block."""

    needs_tokens = True
    needs_blocks = True

    class Options(Options):
        every: int = Field(1, ge=1, description="attach to every nth block, counted from the first")
        heads: int = Field(8, ge=1, description="attention heads; must divide the language model's dim")
        mlp_ratio: int = Field(4, ge=1, le=16, description="hidden channels of the MLP, in multiples of dim")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        check_heads(options.heads, language_model.dim)
        count = (language_model.blocks + options.every - 1) // options.every
        self.layers = nn.ModuleList(
            GatedLayer(language_model.dim, encoder.dim, options.heads, options.mlp_ratio) for _ in range(count)
        )

    def deep(self, language_model: LanguageModel) -> None:
        decoder = set(language_model.decoder_blocks())
        for layer, block in zip(self.layers, list(language_model.blocks())[:: self.options.every], strict=True):
            block.register_forward_pre_hook(self._hook(layer, block in decoder), with_kwargs=True)

    def _hook(self, layer: nn.Module, decoder: bool) -> Any:
        def attend(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            features = self.seen(hidden.shape[0])
            if features is None:
                return None
            hidden = layer(hidden, features.tokens, self.visible(*hidden.shape[:2], decoder=decoder))
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return attend


class GatedLayer(nn.Module):
    """Cross-attention and an MLP, each behind a gate that starts closed."""

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
        """``hidden`` [batch, positions, dim], ``tokens`` [batch, tokens, vision_dim], ``visible`` [batch, positions, tokens]."""
        attend, think = torch.tanh(self.gates).to(hidden.dtype)
        vision = self.norm_vision(tokens.to(hidden.dtype))
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.queries(self.norm1(hidden)), *self.keys_values(vision).chunk(2, dim=-1))
        )
        sees = None if visible is None else visible.any(-1, keepdim=True)
        mask = None if visible is None else (visible | ~sees).unsqueeze(1)  # a softmax over nothing is no number
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        if sees is not None:
            found = found * sees  # text before the first image attends to nothing
        hidden = hidden + attend * self.project(found)
        return hidden + think * self.mlp(self.norm2(hidden))
