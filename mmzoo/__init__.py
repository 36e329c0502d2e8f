"""Provide a plugin-based multimodal model zoo: any encoder, any fusion, any language model.

    model = mmzoo.build("clip-prefix-gpt2")

Importing this package imports no torch: the names below are loaded on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmzoo import errors
from mmzoo.common.lazy import lazy_names
from mmzoo.registry.api_version import API_VERSION
from mmzoo.registry.entries import Entry
from mmzoo.registry.hookspecs import hookimpl

if TYPE_CHECKING:
    from mmzoo.data.dataset import Dataset
    from mmzoo.evaluation.run import Evaluation, evaluate
    from mmzoo.evaluation.seeds import SeedSummary, evaluate_seeds
    from mmzoo.evaluation.verify import Verification, verify
    from mmzoo.formats.format import export_model, import_model
    from mmzoo.interfaces import Example
    from mmzoo.models.build import build, check
    from mmzoo.models.load import load
    from mmzoo.models.model import MultimodalModel
    from mmzoo.publish import pack, push
    from mmzoo.recipes.catalogue import entries
    from mmzoo.recipes.schema import Recipe
    from mmzoo.sharing.locations import pull, search
    from mmzoo.training.run import Run, train
    from mmzoo.training.seeds import SeedRuns, train_seeds

__version__ = "0.1.0"

_NAMES, __getattr__, __dir__ = lazy_names(__name__, __file__)
__all__ = sorted([*_NAMES, "API_VERSION", "Entry", "errors", "hookimpl"])
