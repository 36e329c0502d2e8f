"""Build a small decoder from scratch, with a tokenizer trained on the data.

The architecture is Llama's (Touvron et al. 2023, https://arxiv.org/abs/2302.13971): rotary positions, RMSNorm, SwiGLU.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mmzoo.api import BadRecipe, LearnedVocabulary, VocabularyOptions, default_vocabulary
from mmzoo_transformers.language import HFCausal, LanguageOptions


class GPTMini(LearnedVocabulary, HFCausal):
    """Turn embeddings [batch, text, dim] into the states of a transformer decoder, [batch, text, dim]; generate text."""

    default_train = "full"
    pretrainable = False

    class Options(VocabularyOptions):
        layers: int = Field(2, ge=1, le=48, description="decoder blocks")
        heads: int = Field(4, ge=1, description="attention heads; must divide dim")
        context: int = Field(256, ge=8, le=65536, description="positions at most, including those that the fusion adds")

    def __init__(self, options: Any) -> None:
        units = options.vocabulary or default_vocabulary(verbatim=options.verbatim)
        if options.dim % (2 * options.heads):
            raise BadRecipe(f"language_model.heads: {options.heads} heads do not divide dim {options.dim} into even parts")
        super().__init__(
            LanguageOptions(
                config={
                    "model_type": "llama",
                    "vocab_size": len(units),
                    "hidden_size": options.dim,
                    "intermediate_size": 3 * options.dim,
                    "num_hidden_layers": options.layers,
                    "num_attention_heads": options.heads,
                    "num_key_value_heads": options.heads,
                    "max_position_embeddings": options.context,
                    "tie_word_embeddings": True,
                    "pad_token_id": 0,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                }
            )
        )
        self.options = options
