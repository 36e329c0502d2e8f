"""Describe how a model was trained, for run.json and the model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import TrainerState

from mmzoo.common.energy import hardware
from mmzoo.common.environment import environment
from mmzoo.data import provenance
from mmzoo.data.dataset import Dataset
from mmzoo.data.fingerprint import fingerprint
from mmzoo.interfaces import Example
from mmzoo.recipes.schema import PartConfig
from mmzoo.training.trainer import MultimodalTrainer


def loss_curve(state: TrainerState) -> list[dict[str, float]]:
    """Return step, loss and learning rate of each log entry."""
    return [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry.get("learning_rate", 0.0)}
        for entry in state.log_history
        if "loss" in entry
    ]


def describe_training(
    trainer: MultimodalTrainer, dataset: str | PartConfig | Dataset, split: str, examples: Iterable[Example], *, seconds: float
) -> dict[str, Any]:
    """Return the record of a finished run as JSON data."""
    options, arguments = trainer.model.recipe.training, trainer.args
    device = str(arguments.device)
    return {
        **provenance.describe(dataset),
        "split": split,
        "examples": len(examples) if isinstance(examples, Sequence) else None,
        "fingerprint": fingerprint(examples) if isinstance(examples, Sequence) else None,
        "blank_images": options.blank_images,
        "seed": options.seed,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "processes": arguments.world_size,
        "device": device,
        "hardware": hardware(device),
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "skipped": len(trainer.skipped) if trainer.skip_bad else 0,
        "history": loss_curve(trainer.state),
        "versions": environment(),
    }
