"""Define the configuration that transformers reads from a checkpoint's config.json."""

from __future__ import annotations

from transformers import PreTrainedConfig


class MmzooConfig(PreTrainedConfig):
    """Hold the model type only; ``mmzoo.json`` describes the model."""

    model_type = "mmzoo"
