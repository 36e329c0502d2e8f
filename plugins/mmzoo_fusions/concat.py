"""Join visual and text tokens in one sequence: single-stream early fusion (VisualBERT, Li et al. 2019,
https://arxiv.org/abs/1908.03557)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import BIDIRECTIONAL, Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options, insert_features


class SingleStream(Fusion):
    """Add projected visual tokens [batch, tokens, dim] plus a type embedding to the text's embeddings.

    They come after the text for a bidirectional model, whose text keeps its pretrained positions, and before it for the others,
    since a causal text can attend only to what is before it. After a text, the tokens of the last of several encoders come first.

    BERT adds its positions and its first segment's embedding to any input, and normalises the sum. So with ``norm`` off this is
    VisualBERT except for the positions: there all visual tokens have the same one, here they go on after the text. Checked
    against transformers' `VisualBertModel`.
    """

    needs_tokens = True

    class Options(Options):
        norm: bool = Field(
            True, description="normalise the projected tokens, for language models that do not normalise their input"
        )

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
        images = features.by_image()
        visual = self.norm(self.project(images.tokens)) + self.type_embedding
        if not self._after:
            return insert_features(visual, images.token_mask(), features, embeddings, mask)
        visual = visual.reshape(mask.shape[0], -1, visual.shape[-1]).to(embeddings.dtype)
        joined = torch.cat([embeddings, visual], dim=1)
        return FusedInput(joined, torch.cat([mask, features.token_mask().to(mask.dtype)], dim=1), slice(0, mask.shape[1]))
