"""Provide everything that a plugin may rely on, in one import.

    from mmzoo.api import Encoder, Entry, FeatureSpec, Features, Options, hookimpl

Names are loaded on first use, so a module of hooks can import `Entry` and `hookimpl` from here without importing torch.
`API_VERSION` states how these names change. Everything else in mmzoo is private, except `mmzoo` itself and `mmzoo.testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmzoo.backbones.repository import CONFIG_FILE as CONFIG_FILE
    from mmzoo.backbones.repository import PROCESSORS as PROCESSORS
    from mmzoo.backbones.repository import WEIGHTS_FILE as WEIGHTS_FILE
    from mmzoo.backbones.repository import Source as Source
    from mmzoo.backbones.repository import explain_errors as explain_errors
    from mmzoo.backbones.transformers_models import class_for as class_for
    from mmzoo.backbones.transformers_models import config_of as config_of
    from mmzoo.backbones.transformers_models import construct_model as construct_model
    from mmzoo.backbones.transformers_models import load_backbone as load_backbone
    from mmzoo.backbones.transformers_models import quiet as quiet
    from mmzoo.backbones.weights import Weights as Weights
    from mmzoo.backbones.weights import explain_loading as explain_loading
    from mmzoo.backbones.weights import fetch_weights as fetch_weights
    from mmzoo.backbones.weights import first_names as first_names
    from mmzoo.backbones.weights import names_in as names_in
    from mmzoo.backbones.weights import read_metadata as read_metadata
    from mmzoo.backbones.weights import read_pickle as read_pickle
    from mmzoo.backbones.weights import read_tensors as read_tensors
    from mmzoo.checkpoints.folder import CHECKPOINTS as CHECKPOINTS
    from mmzoo.common.environment import environment as environment
    from mmzoo.common.files import cache_folder as cache_folder
    from mmzoo.common.files import staged_folder as staged_folder
    from mmzoo.common.files import write_atomically as write_atomically
    from mmzoo.common.sanitize import one_line as one_line
    from mmzoo.common.suggestions import close_names as close_names
    from mmzoo.common.suggestions import did_you_mean as did_you_mean
    from mmzoo.data.dataset import Dataset as Dataset
    from mmzoo.data.open import open_dataset as open_dataset
    from mmzoo.data.tokens import check_length as check_length
    from mmzoo.data.tokens import encode_texts as encode_texts
    from mmzoo.data.tokens import pad_rows as pad_rows
    from mmzoo.data.tokens import pad_with_mask as pad_with_mask
    from mmzoo.data.tokens import prompt_ids as prompt_ids
    from mmzoo.data.tokens import render_chat as render_chat
    from mmzoo.data.tokens import start_ids as start_ids
    from mmzoo.data.tokens import with_placeholder as with_placeholder
    from mmzoo.data.vocabulary import LearnedVocabulary as LearnedVocabulary
    from mmzoo.data.vocabulary import VocabularyOptions as VocabularyOptions
    from mmzoo.data.vocabulary import default_vocabulary as default_vocabulary
    from mmzoo.data.vocabulary import learn_vocabulary as learn_vocabulary
    from mmzoo.data.vocabulary import make_tokenizer as make_tokenizer
    from mmzoo.errors import BadImage as BadImage
    from mmzoo.errors import BadInput as BadInput
    from mmzoo.errors import BadRecipe as BadRecipe
    from mmzoo.errors import CheckpointError as CheckpointError
    from mmzoo.errors import DataError as DataError
    from mmzoo.errors import DoesNotFit as DoesNotFit
    from mmzoo.errors import DuplicateName as DuplicateName
    from mmzoo.errors import HubError as HubError
    from mmzoo.errors import MmzooError as MmzooError
    from mmzoo.errors import PluginBroken as PluginBroken
    from mmzoo.errors import SourceError as SourceError
    from mmzoo.errors import TrainingError as TrainingError
    from mmzoo.errors import UnknownName as UnknownName
    from mmzoo.evaluation.metric import Metric as Metric
    from mmzoo.evaluation.run import evaluate as evaluate
    from mmzoo.evaluation.statistics import measure as measure
    from mmzoo.formats.conversion import WeightSource as WeightSource
    from mmzoo.formats.conversion import convert_checkpoint as convert_checkpoint
    from mmzoo.formats.conversion import plan_model as plan_model
    from mmzoo.formats.format import Clues as Clues
    from mmzoo.formats.format import Format as Format
    from mmzoo.formats.source import not_this_format as not_this_format
    from mmzoo.formats.source import open_source as open_source
    from mmzoo.interfaces.encoder import Encoder as Encoder
    from mmzoo.interfaces.example import PLACEHOLDER as PLACEHOLDER
    from mmzoo.interfaces.example import PLACEHOLDER_ID as PLACEHOLDER_ID
    from mmzoo.interfaces.example import Example as Example
    from mmzoo.interfaces.example import placeholder as placeholder
    from mmzoo.interfaces.features import Features as Features
    from mmzoo.interfaces.features import FeatureSpec as FeatureSpec
    from mmzoo.interfaces.fusion import FusedInput as FusedInput
    from mmzoo.interfaces.fusion import Fusion as Fusion
    from mmzoo.interfaces.language_model import BIDIRECTIONAL as BIDIRECTIONAL
    from mmzoo.interfaces.language_model import CAUSAL as CAUSAL
    from mmzoo.interfaces.language_model import SEQ2SEQ as SEQ2SEQ
    from mmzoo.interfaces.language_model import CrossAttentionStates as CrossAttentionStates
    from mmzoo.interfaces.language_model import LanguageModel as LanguageModel
    from mmzoo.interfaces.language_model import LanguageSpec as LanguageSpec
    from mmzoo.interfaces.part import Options as Options
    from mmzoo.interfaces.part import Part as Part
    from mmzoo.interfaces.task import IGNORE as IGNORE
    from mmzoo.interfaces.task import Prediction as Prediction
    from mmzoo.interfaces.task import Task as Task
    from mmzoo.interfaces.task import TextContext as TextContext
    from mmzoo.interfaces.task_model import States as States
    from mmzoo.interfaces.task_model import TaskModel as TaskModel
    from mmzoo.modalities.identity import input_key as input_key
    from mmzoo.modalities.image import open_image as open_image
    from mmzoo.modalities.reader import NONE as NONE
    from mmzoo.modalities.reader import Reader as Reader
    from mmzoo.modalities.reader import file_of as file_of
    from mmzoo.modalities.reader import name_of as name_of
    from mmzoo.models.build import build as build
    from mmzoo.models.build import check as check
    from mmzoo.models.load import load as load
    from mmzoo.models.model import MultimodalModel as MultimodalModel
    from mmzoo.models.sequence import insert_features as insert_features
    from mmzoo.models.sequence import positions_before as positions_before
    from mmzoo.models.sequence import reorder_positions as reorder_positions
    from mmzoo.models.sequence import text_states as text_states
    from mmzoo.recipes.catalogue import entries as entries
    from mmzoo.recipes.messages import explain as explain
    from mmzoo.recipes.reading import read_recipe as read_recipe
    from mmzoo.recipes.resolve import resolve as resolve
    from mmzoo.recipes.schema import PartConfig as PartConfig
    from mmzoo.recipes.schema import Recipe as Recipe
    from mmzoo.recipes.training_options import TrainingOptions as TrainingOptions
    from mmzoo.registry.api_version import API_VERSION as API_VERSION
    from mmzoo.registry.entries import Entry as Entry
    from mmzoo.registry.hookspecs import hookimpl as hookimpl
    from mmzoo.training.run import train as train

# By subject, each name and the module that defines it.
SUBJECTS: dict[str, dict[str, str]] = {
    "Registration": {
        "API_VERSION": "mmzoo.registry.api_version",
        "Entry": "mmzoo.registry.entries",
        "hookimpl": "mmzoo.registry.hookspecs",
    },
    "Parts": {
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
    },
    "Examples and their inputs": {
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
    },
    "Data sets and metrics": {
        "Dataset": "mmzoo.data.dataset",
        "open_dataset": "mmzoo.data.open",
        "Metric": "mmzoo.evaluation.metric",
        "measure": "mmzoo.evaluation.statistics",
    },
    "Texts": {
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
    },
    "Positions of the language model's input": {
        "insert_features": "mmzoo.models.sequence",
        "text_states": "mmzoo.models.sequence",
        "positions_before": "mmzoo.models.sequence",
        "reorder_positions": "mmzoo.models.sequence",
    },
    "Pretrained weights": {
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
    },
    "Models and recipes": {
        "MultimodalModel": "mmzoo.models.model",
        "States": "mmzoo.interfaces.task_model",
        "TaskModel": "mmzoo.interfaces.task_model",
        "Recipe": "mmzoo.recipes.schema",
        "PartConfig": "mmzoo.recipes.schema",
        "TrainingOptions": "mmzoo.recipes.training_options",
        "read_recipe": "mmzoo.recipes.reading",
        "resolve": "mmzoo.recipes.resolve",
        "explain": "mmzoo.recipes.messages",
    },
    "Checkpoints of other code": {
        "Format": "mmzoo.formats.format",
        "Clues": "mmzoo.formats.format",
        "WeightSource": "mmzoo.formats.conversion",
        "convert_checkpoint": "mmzoo.formats.conversion",
        "plan_model": "mmzoo.formats.conversion",
        "not_this_format": "mmzoo.formats.source",
        "open_source": "mmzoo.formats.source",
    },
    "What users call": {
        "entries": "mmzoo.recipes.catalogue",
        "build": "mmzoo.models.build",
        "check": "mmzoo.models.build",
        "load": "mmzoo.models.load",
        "train": "mmzoo.training.run",
        "evaluate": "mmzoo.evaluation.run",
    },
    "The machine": {
        "CHECKPOINTS": "mmzoo.checkpoints.folder",
        "cache_folder": "mmzoo.common.files",
        "environment": "mmzoo.common.environment",
    },
    "Helpers": {
        "staged_folder": "mmzoo.common.files",
        "write_atomically": "mmzoo.common.files",
        "one_line": "mmzoo.common.sanitize",
        "close_names": "mmzoo.common.suggestions",
        "did_you_mean": "mmzoo.common.suggestions",
    },
    "Errors": {
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
    },
}
_NAMES = {name: module for names in SUBJECTS.values() for name, module in names.items()}


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'mmzoo.api' has no attribute '{name}'")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
