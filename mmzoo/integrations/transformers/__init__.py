"""Register models of mmzoo with the auto classes and pipelines of transformers. Importing this module is all that it takes.

    import mmzoo.integrations.transformers

They are recognised by the ``model_type`` in config.json, and no code from a repository is run.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.models.auto import modeling_auto

from mmzoo.integrations.transformers.model import MmzooConfig, MmzooForImageTextToText
from mmzoo.integrations.transformers.processor import MmzooProcessor

AutoConfig.register(MmzooConfig.model_type, MmzooConfig, exist_ok=True)
for _auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(MmzooConfig, MmzooForImageTextToText, exist_ok=True)
AutoProcessor.register(MmzooConfig, MmzooProcessor, exist_ok=True)
# The pipeline compares class names with this table, which `register` does not extend.
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[MmzooConfig.model_type] = MmzooForImageTextToText.__name__
