"""Single-stream early fusion: visual and text tokens in one sequence (VisualBERT, Li et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import BIDIRECTIONAL, Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options, insert_features


class SingleStream(Fusion):
    """Projected visual tokens [batch, tokens, dim] plus a type embedding join the text's embeddings.

    After the text for a bidirectional model, whose text keeps its pretrained positions; before it for the others, since
    a causal text can only look back.

    BERT adds its positions and its first segment's embedding to whatever it is given, and normalises the sum. So with ``norm``
    off this is VisualBERT but for the positions: there all visual tokens have one and the same, here they count on after the
    text. Checked against transformers' `VisualBertModel`.
    """

    needs_tokens = True

    class Options(Options):
        norm: bool = Field(True, description="normalise the projected tokens, as suits models that do not themselves")

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        super().__init__(options, encoder, language_model)
        self._tokens = encoder.tokens
        self._after = language_model.architecture == BIDIRECTIONAL
        self.project = nn.Linear(encoder.dim, language_model.dim)
        self.norm = nn.LayerNorm(language_model.dim) if options.norm else nn.Identity()
        self.type_embedding = nn.Parameter(0.02 * torch.randn(language_model.dim))

    @property
    def added_tokens(self) -> int | None:
        return self._tokens

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        each = features.by_image()
        visual = self.norm(self.project(each.tokens)) + self.type_embedding
        if not self._after:
            return insert_features(visual, each.token_mask(), features, embeddings, mask)
        visual = visual.reshape(mask.shape[0], -1, visual.shape[-1]).to(embeddings.dtype)
        joined = torch.cat([embeddings, visual], dim=1)
        return FusedInput(joined, torch.cat([mask, features.token_mask().to(mask.dtype)], dim=1), slice(0, mask.shape[1]))
