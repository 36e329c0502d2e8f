"""Provide everything that a plugin may rely on, in one import.

    from mmzoo.api import Encoder, Entry, FeatureSpec, Features, Options, hookimpl

Names are loaded on first use, so a module of hooks can import `Entry` and `hookimpl` from here without importing torch.
`API_VERSION` states how these names change. Everything else in mmzoo is private, except `mmzoo` itself and `mmzoo.testing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmzoo.common.lazy import lazy_names

# isort: off - by subject: docs/reference/api.md has a section for each of these comments
if TYPE_CHECKING:
    # Registration
    # Pretrained weights
    from mmzoo.backbones.repository import CONFIG_FILE, PROCESSORS, WEIGHTS_FILE, Source
    from mmzoo.backbones.transformers_models import WholeModel, class_for, config_of, construct_model, load_backbone
    from mmzoo.backbones.weights import (
        Weights,
        explain_errors,
        explain_loading,
        fetch_weights,
        first_names,
        names_in,
        quiet,
        read_metadata,
        read_pickle,
        read_tensors,
    )

    # The machine
    from mmzoo.checkpoints.folder import CHECKPOINTS
    from mmzoo.common.environment import environment

    # Helpers
    from mmzoo.common.files import cache_folder, staged_folder, write_atomically
    from mmzoo.common.sanitize import one_line
    from mmzoo.common.scripts import UNSPACED
    from mmzoo.common.suggestions import close_names, did_you_mean

    # Data sets and metrics
    from mmzoo.data.dataset import Dataset
    from mmzoo.data.open import open_dataset

    # Texts
    from mmzoo.data.tokens import (
        check_length,
        encode_texts,
        pad_rows,
        pad_with_mask,
        prompt_ids,
        render_chat,
        start_ids,
        with_placeholder,
    )
    from mmzoo.data.vocabulary import LearnedVocabulary, VocabularyOptions, default_vocabulary, learn_vocabulary, make_tokenizer

    # Errors
    from mmzoo.errors import (
        BadImage,
        BadInput,
        BadRecipe,
        CheckpointError,
        DataError,
        DoesNotFit,
        DuplicateName,
        HubError,
        MmzooError,
        PluginBroken,
        SourceError,
        TrainingError,
        UnknownName,
    )
    from mmzoo.evaluation.metric import Metric
    from mmzoo.evaluation.run import evaluate
    from mmzoo.evaluation.statistics import measure
    from mmzoo.formats.conversion import WeightSource, convert_checkpoint, plan_model

    # Checkpoints of other code
    from mmzoo.formats.format import Clues, Format, not_this_format, open_source
    from mmzoo.interfaces.augmentation import Augmentation
    from mmzoo.interfaces.encoder import Encoder

    # Examples and their inputs
    from mmzoo.interfaces.example import PLACEHOLDER, PLACEHOLDER_ID, Example, placeholder
    from mmzoo.interfaces.features import Features, FeatureSpec
    from mmzoo.interfaces.fusion import FusedInput, Fusion, FusionCall
    from mmzoo.interfaces.language_model import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, CrossAttentionStates, LanguageModel, LanguageSpec
    from mmzoo.interfaces.outputs import Outputs

    # Parts
    from mmzoo.interfaces.part import Options, Part
    from mmzoo.interfaces.task import IGNORE, Prediction, Task
    from mmzoo.interfaces.text import TextContext
    from mmzoo.modalities.identity import input_key
    from mmzoo.modalities.image import open_image
    from mmzoo.modalities.reader import NONE, Reader, file_of, is_missing, name_of
    from mmzoo.models.augmentation import make_augmentations
    from mmzoo.models.build import build, check
    from mmzoo.models.load import load

    # Models and recipes
    from mmzoo.models.model import MultimodalModel

    # Positions of the language model's input
    from mmzoo.models.sequence import insert_features, positions_before, reorder_positions, text_states

    # What users call
    from mmzoo.recipes.catalogue import entries
    from mmzoo.recipes.reading import read_recipe
    from mmzoo.recipes.resolve import resolve
    from mmzoo.recipes.schema import PartConfig, Recipe, explain
    from mmzoo.recipes.training_options import TrainingOptions
    from mmzoo.registry.api_version import API_VERSION
    from mmzoo.registry.entries import Entry
    from mmzoo.registry.hookspecs import hookimpl
    from mmzoo.training.run import train
# isort: on

_NAMES, __getattr__, __dir__ = lazy_names(__name__, __file__)
