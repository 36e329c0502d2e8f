"""A checkpoint's config.json, which says what it is and nothing more."""

from __future__ import annotations

from transformers import PreTrainedConfig


class MmzooConfig(PreTrainedConfig):
    """What a model is stands in its mmzoo.json."""

    model_type = "mmzoo"
