"""Make the trainer of a model: its arguments, callbacks and precision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from mmzoo.checkpoints.folder import CHECKPOINTS
from mmzoo.errors import TrainingError
from mmzoo.models.augmentation import augment
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import Recipe
from mmzoo.recipes.training_options import TrainingOptions
from mmzoo.registry.manager import plugin_manager
from mmzoo.training.output import read_progress
from mmzoo.training.processes import accumulated
from mmzoo.training.trainer import MultimodalTrainer
from mmzoo.training.validation import Validation


class OneGPUArguments(TrainingArguments):
    """Use at most one GPU in each process. Several GPUs need `accelerate launch`; `DataParallel` is never used."""

    @property
    def n_gpu(self) -> int:
        """Return the number of GPUs of this process: 0 or 1."""
        return min(super().n_gpu, 1)


def plugin_callbacks(recipe: Recipe) -> list[TrainerCallback]:
    """Return the callbacks of plugins for a training. A plugin may refuse the recipe with a `TrainingError`."""
    return list(chain.from_iterable(plugin_manager().manager.hook.mmzoo_train_callbacks(recipe=recipe)))


def make_trainer(
    model: MultimodalModel,
    examples: Any,
    output: Path,
    *,
    callbacks: Sequence[TrainerCallback],
    skip_bad: bool,
    progress: bool,
    checkpoint: str | None = None,
    validation: Validation | None = None,
) -> MultimodalTrainer:
    """Return the trainer of a model with the recipe's options; ``checkpoint`` will be resumed.

    Raises:
        TrainingError: no part is trained, the precision needs a GPU, or so many processes cannot resume the checkpoint.
    """
    options = model.recipe.training
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("nothing is trained: every part is frozen; set train: full, last:N or lora:r on one")
    model.checkpoint_blocks(options.gradient_checkpointing)
    before = read_progress(checkpoint) if checkpoint else {}
    trainer = MultimodalTrainer(
        model=model,
        args=_arguments(options, output, accumulated(options.accumulate, before.get("launches", ()))),
        train_dataset=examples,
        data_collator=augment(model.collator(training=True, blank=options.blank_images, skip_bad=skip_bad), model.recipe),
        callbacks=list(callbacks),
        skip_bad=skip_bad,
        progress=progress,
        validation=validation,
    )
    trainer.stream = before.get("stream")  # before it makes its data loader
    return trainer


def _arguments(options: TrainingOptions, output: Path, accumulate: int) -> TrainingArguments:
    gpu, workers = torch.cuda.is_available(), options.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if gpu else 0
    has_bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if options.precision == "fp16" and not gpu:
        raise TrainingError("training.precision: fp16 needs a GPU; use bf16 or fp32 here")
    settings: dict[str, Any] = dict(
        output_dir=str(output / CHECKPOINTS),
        run_name=output.resolve().name,
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup,
        lr_scheduler_type=options.schedule,
        max_grad_norm=options.max_grad_norm,
        gradient_accumulation_steps=accumulate,
        seed=options.seed,
        data_seed=options.seed,
        save_strategy="steps" if options.save_every else "epoch",
        save_steps=options.save_every or 500,
        save_total_limit=2,
        logging_steps=options.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=workers,
        dataloader_pin_memory=gpu,
        dataloader_persistent_workers=workers > 0,
        accelerator_config={"dispatch_batches": False, "split_batches": False, "even_batches": False},
        bf16=options.precision == "bf16" or (options.precision == "auto" and has_bf16),
        fp16=options.precision == "fp16",
    )
    return OneGPUArguments(**settings)
