"""Every visual token as an input token of the language model.

LLaVA (Liu et al. 2023, https://arxiv.org/abs/2304.08485) with one linear layer, LLaVA-1.5 (https://arxiv.org/abs/2310.03744)
with Linear, GELU, Linear.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from mmzoo.interfaces import Features, FeatureSpec, Fusion, LanguageSpec, Options, Sequenced
from mmzoo.sequence import insert


class Projector(Fusion):
    """Token features [batch, tokens, dim] to as many input tokens before the text."""

    needs_tokens = True

    class Options(Options):
        layers: Literal["linear", "mlp"] = Field("mlp", description="one linear layer, or Linear-GELU-Linear")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        self._tokens = encoder.tokens
        dim = language_model.dim
        first = nn.Linear(encoder.dim, dim)
        self.model = first if options.layers == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(dim, dim))

    @property
    def added_tokens(self) -> int | None:
        return self._tokens

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> Sequenced:
        each = features.by_image()
        return insert(self.model(each.tokens), each.token_mask(), features, embeddings, mask)
