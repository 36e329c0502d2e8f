"""Define the contracts between the parts of a model: encoders, fusions, language models and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmzoo.common.lazy import lazy_names

if TYPE_CHECKING:
    from mmzoo.interfaces.augmentation import Augmentation
    from mmzoo.interfaces.encoder import Encoder
    from mmzoo.interfaces.example import INPUT_KEYWORDS, PLACEHOLDER, PLACEHOLDER_ID, Example, placeholder
    from mmzoo.interfaces.features import Features, FeatureSpec
    from mmzoo.interfaces.fusion import FusedInput, Fusion, FusionCall, ModelPass, current_pass, repeat_rows, running
    from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, CrossAttentionStates, LanguageModel, LanguageSpec
    from mmzoo.interfaces.outputs import Outputs
    from mmzoo.interfaces.part import Options, Part
    from mmzoo.interfaces.task import IGNORE, Prediction, Task
    from mmzoo.interfaces.text import TextContext

# Loaded on first use: `mmzoo.interfaces.kinds` is imported without torch.
_, __getattr__, __dir__ = lazy_names(__name__, __file__)
