"""Use bidirectional encoders as decoders: BERT that writes (Rothe et al. 2020, https://arxiv.org/abs/1907.12461).

The weights are those of a masked language model, its prediction head included; only the attention's mask changes. So the
decoder starts from what the encoder knows of words, and must be trained before it writes.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mmzoo.api import class_for
from mmzoo_transformers.language import HFCausal, can_decode, position_offset


class HFDecoder(HFCausal):
    """Run an encoder such as BERT, RoBERTa or ELECTRA with a causal mask.

    A text begins with [CLS] and ends with [SEP] where the tokenizer has no tokens of its own for that.
    """

    def _plan(self, config: PreTrainedConfig) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        if not can_decode(config):
            raise self._wrong_kind(config)
        config = copy.deepcopy(config)
        config.is_decoder = True
        return class_for(config, MODEL_FOR_CAUSAL_LM_MAPPING), config, {}

    @property
    def tokenizer(self) -> Any:
        tokenizer = super().tokenizer
        if tokenizer.bos_token_id is None:
            tokenizer.bos_token = tokenizer.cls_token
        if tokenizer.eos_token_id is None:
            tokenizer.eos_token = tokenizer.sep_token
        return tokenizer

    def write(self, embeddings: Tensor, mask: Tensor, **options: Any) -> Any:
        offset = position_offset(self.model)
        if offset:  # the library counts positions from 0
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + offset
        return super().write(embeddings, mask, **options)
