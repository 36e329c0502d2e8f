"""Everything that a plugin may rely on, under one import.

    from mmzoo.api import Encoder, Entry, FeatureSpec, Features, Options, hookimpl

A name is loaded when it is first used, so a plugin's module of hooks can import `Entry` and `hookimpl` from here without
importing torch. Names change as `API_VERSION` says; everything else in `mmzoo` is private to it, but for `mmzoo` itself and
`mmzoo.testing`.
"""

from __future__ import annotations

import importlib
from typing import Any

# Name to the module that defines it, by subject.
_NAMES = {
    # Registration
    "API_VERSION": "mmzoo.registry.api_version",
    "Entry": "mmzoo.registry.entries",
    "hookimpl": "mmzoo.registry.hookspecs",
    # Parts
    "Options": "mmzoo.interfaces.part",
    "Part": "mmzoo.interfaces.part",
    "Encoder": "mmzoo.interfaces.encoder",
    "FeatureSpec": "mmzoo.interfaces.features",
    "Features": "mmzoo.interfaces.features",
    "Fusion": "mmzoo.interfaces.fusion",
    "FusedInput": "mmzoo.interfaces.fusion",
    "LanguageModel": "mmzoo.interfaces.language_model",
    "LanguageSpec": "mmzoo.interfaces.language_model",
    "CrossAttentionStates": "mmzoo.interfaces.language_model",
    "CAUSAL": "mmzoo.interfaces.language_model",
    "BIDIRECTIONAL": "mmzoo.interfaces.language_model",
    "SEQ2SEQ": "mmzoo.interfaces.language_model",
    "Task": "mmzoo.interfaces.task",
    "TextContext": "mmzoo.interfaces.task",
    "Prediction": "mmzoo.interfaces.task",
    "IGNORE": "mmzoo.interfaces.task",
    # Examples and their inputs
    "Example": "mmzoo.interfaces.example",
    "PLACEHOLDER": "mmzoo.interfaces.example",
    "PLACEHOLDER_ID": "mmzoo.interfaces.example",
    "placeholder": "mmzoo.interfaces.example",
    "NONE": "mmzoo.modalities.reader",
    "Reader": "mmzoo.modalities.reader",
    "file_of": "mmzoo.modalities.reader",
    "name_of": "mmzoo.modalities.reader",
    "open_image": "mmzoo.modalities.image",
    "input_key": "mmzoo.modalities.identity",
    # Data sets and metrics
    "Dataset": "mmzoo.data.dataset",
    "open_dataset": "mmzoo.data.open",
    "Metric": "mmzoo.evaluation.metric",
    "measure": "mmzoo.evaluation.statistics",
    # Texts
    "encode_texts": "mmzoo.data.tokens",
    "start_ids": "mmzoo.data.tokens",
    "prompt_ids": "mmzoo.data.tokens",
    "check_length": "mmzoo.data.tokens",
    "pad_rows": "mmzoo.data.tokens",
    "pad_with_mask": "mmzoo.data.tokens",
    "render_chat": "mmzoo.data.tokens",
    "with_placeholder": "mmzoo.data.tokens",
    "VocabularyOptions": "mmzoo.data.vocabulary",
    "LearnedVocabulary": "mmzoo.data.vocabulary",
    "default_vocabulary": "mmzoo.data.vocabulary",
    "learn_vocabulary": "mmzoo.data.vocabulary",
    "make_tokenizer": "mmzoo.data.vocabulary",
    # Positions of the language model's input
    "insert_features": "mmzoo.models.sequence",
    "text_states": "mmzoo.models.sequence",
    "positions_before": "mmzoo.models.sequence",
    "reorder_positions": "mmzoo.models.sequence",
    # Pretrained weights
    "Source": "mmzoo.backbones.repository",
    "explain_errors": "mmzoo.backbones.repository",
    "CONFIG_FILE": "mmzoo.backbones.repository",
    "PROCESSORS": "mmzoo.backbones.repository",
    "WEIGHTS_FILE": "mmzoo.backbones.repository",
    "Weights": "mmzoo.backbones.weights",
    "fetch_weights": "mmzoo.backbones.weights",
    "explain_loading": "mmzoo.backbones.weights",
    "read_tensors": "mmzoo.backbones.weights",
    "read_metadata": "mmzoo.backbones.weights",
    "read_pickle": "mmzoo.backbones.weights",
    "names_in": "mmzoo.backbones.weights",
    "first_names": "mmzoo.backbones.weights",
    "config_of": "mmzoo.backbones.transformers_models",
    "class_for": "mmzoo.backbones.transformers_models",
    "construct_model": "mmzoo.backbones.transformers_models",
    "load_backbone": "mmzoo.backbones.transformers_models",
    "quiet": "mmzoo.backbones.transformers_models",
    # Models and recipes
    "MultimodalModel": "mmzoo.models.model",
    "States": "mmzoo.models.model",
    "Recipe": "mmzoo.recipes.schema",
    "PartConfig": "mmzoo.recipes.schema",
    "TrainingOptions": "mmzoo.recipes.training_options",
    "read_recipe": "mmzoo.recipes.reading",
    "resolve": "mmzoo.recipes.resolve",
    "explain": "mmzoo.recipes.messages",
    # Checkpoints of other code
    "Format": "mmzoo.formats.format",
    "Clues": "mmzoo.formats.format",
    "WeightSource": "mmzoo.formats.conversion",
    "convert_checkpoint": "mmzoo.formats.conversion",
    "plan_model": "mmzoo.formats.conversion",
    "not_this_format": "mmzoo.formats.source",
    "open_source": "mmzoo.formats.source",
    # The machine
    "CHECKPOINTS": "mmzoo.checkpoints.folder",
    "cache_folder": "mmzoo.common.files",
    "environment": "mmzoo.common.environment",
    # Errors
    "MmzooError": "mmzoo.errors",
    "UnknownName": "mmzoo.errors",
    "DuplicateName": "mmzoo.errors",
    "PluginBroken": "mmzoo.errors",
    "BadRecipe": "mmzoo.errors",
    "DoesNotFit": "mmzoo.errors",
    "DataError": "mmzoo.errors",
    "BadInput": "mmzoo.errors",
    "BadImage": "mmzoo.errors",
    "CheckpointError": "mmzoo.errors",
    "SourceError": "mmzoo.errors",
    "HubError": "mmzoo.errors",
    "TrainingError": "mmzoo.errors",
}


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'mmzoo.api' has no attribute '{name}'")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
